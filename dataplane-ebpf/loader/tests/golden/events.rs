// SPDX-License-Identifier: Apache-2.0
//! What is told of packets, to whom it is wanted by.

use weft_abi::{Counter, Deliver, DropReason, EventKind, EventsWanted, part, rule};

use crate::{
    node::{CLIENT, CLIENT_IP, Node, SERVER, SERVER_IP, mac},
    packet::{L4, frame, ip, ip_headers},
};

/// A datagram of a flow of its own.
fn datagram(sport: u16) -> Vec<u8> {
    frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[0]), ip(SERVER_IP[0])), L4::Udp(sport, 53), b"x")
}

#[test]
fn flows_that_are_let_through_are_told_while_somebody_wants_to_know() {
    let node = Node::new();
    let mut told = node.told();
    let want = |wanted: EventsWanted| node.maps().events_wanted().set(0, &wanted).unwrap();
    let mut send = |sport: u16| {
        node.from_workload(CLIENT, &datagram(sport)).redirected();
        told().len()
    };
    assert_eq!(send(4000), 0, "nobody");
    want(EventsWanted { until: u32::MAX, one_in: 0 });
    assert_eq!(send(4001), 1, "a follower");
    assert_eq!(send(4001), 0, "the flow is known");
    want(EventsWanted { until: 1, one_in: 0 });
    assert_eq!(send(4002), 0, "a follower that has gone");
    want(EventsWanted { until: 0, one_in: 1 });
    assert_eq!(send(4003), 1, "a sample of all");
    want(EventsWanted { until: 0, one_in: 4 });
    let sampled: usize = (5000..6000).map(&mut send).sum();
    assert!((100..400).contains(&sampled), "a quarter of a thousand, by chance: {sampled}");
    want(EventsWanted::default());
    assert_eq!(send(4004), 0, "nobody any more");
}

#[test]
fn an_event_says_where_a_flow_goes() {
    let node = Node::new();
    let mut told = node.told();
    node.maps().events_wanted().set(0, &EventsWanted { until: u32::MAX, one_in: 0 }).unwrap();
    node.from_workload(CLIENT, &datagram(4000)).redirected();
    let events = told();
    let [event] = &events[..] else { panic!("{events:?}") };
    assert_eq!((event.kind, event.reason, event.ifindex), (EventKind::Flow as u8, Deliver::Peer as u8, CLIENT));
    assert_eq!((event.src, event.dst), (ip(CLIENT_IP[0]).into(), ip(SERVER_IP[0]).into()));
    assert!(event.time_ns > 0);
}

/// Also of a connection that its entry refuses.
#[test]
fn an_event_says_which_rules_decided() {
    let node = Node::new();
    let mut told = node.told();
    node.maps().events_wanted().set(0, &EventsWanted { until: u32::MAX, one_in: 0 }).unwrap();
    let mut rules = || {
        let events = told();
        let [event] = &events[..] else { panic!("{events:?}") };
        (event.egress_rule, event.ingress_rule)
    };
    node.from_workload(CLIENT, &datagram(4000)).redirected();
    assert_eq!(rules(), (rule::NONE, rule::NONE));
    node.isolate(CLIENT, 0, 12);
    node.isolate(SERVER, 11, 0);
    node.set_rules(12, part::ANY_POD, &[(17, 1, 1), (17, 53, 53)]);
    node.from_workload(CLIENT, &datagram(4001)).dropped(DropReason::PolicyIngress);
    assert_eq!(rules(), (Node::first_rule(part::ANY_POD) + 1, Node::isolated_by(11)));
    node.set_rules(11, part::ANY, &[(17, 53, 53)]);
    node.from_workload(CLIENT, &datagram(4002)).redirected();
    assert_eq!(rules(), (Node::first_rule(part::ANY_POD) + 1, Node::first_rule(part::ANY)));
    node.isolate(CLIENT, 0, weft_abi::CLOSED_LIST);
    node.publish(&[crate::node::workload(CLIENT)]);
    for _ in 0..2 {
        node.from_workload(CLIENT, &datagram(4002)).dropped(DropReason::PolicyEgress);
        assert_eq!(rules(), (rule::CLOSED, rule::NONE));
    }
}

/// What one port is refused a thousand times crowds out neither another port's drops nor its own for another reason.
#[test]
fn drops_are_told_by_port_and_reason_within_a_rate() {
    let node = Node::new();
    let mut told = node.drops_told();
    let to = |ifindex: u32, dst: &str| {
        let src = if ifindex == CLIENT { CLIENT_IP[0] } else { SERVER_IP[0] };
        frame(mac(ifindex), ip_headers(ip(src), ip(dst)), L4::Udp(4000, 82), b"x")
    };
    const FLOOD: u64 = 20_000;
    const NOBODY: &str = "10.96.7.7";
    let held = || node.maps().counted(Counter::EventsHeld).unwrap();
    let before = held();
    node.flood(CLIENT, &to(CLIENT, NOBODY), u32::try_from(FLOOD).unwrap());
    let flood = told();
    assert!(flood.len() >= 200 && flood.iter().all(|drop| *drop == (CLIENT, DropReason::NoService as u8)));
    assert_eq!(flood.len() as u64 + held() - before, FLOOD, "told or counted");
    node.from_workload(SERVER, &to(SERVER, NOBODY)).dropped(DropReason::NoService);
    node.from_workload(CLIENT, &to(CLIENT, "10.1.0.99")).dropped(DropReason::NoEndpoint);
    assert_eq!(told(), [(SERVER, DropReason::NoService as u8), (CLIENT, DropReason::NoEndpoint as u8)]);
}
