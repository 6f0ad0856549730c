// SPDX-License-Identifier: Apache-2.0
//! The outside: masquerade out and back, the host's own traffic.

use weft_abi::{Config, Deliver, DropReason, Flow, FlowFlags};

use crate::{
    node::{
        CLIENT, CLIENT_IP, HOST_IP, HOST_MAC, LONG, MASQUERADE, Node, OUTSIDE_IP, SERVER, SERVER_IP, UPLINK, delivers,
        key, mac, workload,
    },
    packet::{L4, SYN, SYN_ACK, Tuple, frame, ip, ip_headers, tuple, word},
};

fn out(family: usize, ifindex: u32, l4: L4) -> Vec<u8> {
    let src = if ifindex == CLIENT { CLIENT_IP } else { SERVER_IP };
    frame(mac(ifindex), ip_headers(ip(src[family]), ip(OUTSIDE_IP[family])), l4, b"out")
}

fn back(family: usize, l4: L4) -> Vec<u8> {
    frame([2, 0, 0, 0, 9, 9], ip_headers(ip(OUTSIDE_IP[family]), ip(HOST_IP[family])), l4, b"back")
}

#[test]
fn tcp_and_udp_leave_with_the_nodes_address_and_come_back() {
    let node = Node::new();
    for family in 0..2 {
        for (protocol, there, answer) in [
            (6, L4::Tcp(4000, 443, SYN), (|port| L4::Tcp(443, port, SYN_ACK)) as fn(u16) -> L4),
            (17, L4::Udp(4000, 53), |port| L4::Udp(53, port)),
        ] {
            let there = out(family, CLIENT, there);
            let seen = node.from_workload(CLIENT, &there).redirected();
            let Tuple { src, sport, dst, dport } = seen.tuple;
            assert_eq!((src, dst), (ip(HOST_IP[family]), ip(OUTSIDE_IP[family])));
            let range = MASQUERADE.0..MASQUERADE.0 + MASQUERADE.1;
            assert!(range.contains(&sport), "{sport}");
            let again = node.from_workload(CLIENT, &there);
            assert_eq!(again.hit().redirected().tuple, seen.tuple, "one port for the flow");
            let entry = node.flow(&key(CLIENT, protocol, tuple(CLIENT_IP[family], 4000, OUTSIDE_IP[family], dport)));
            let entry = entry.expect("an entry");
            delivers(&entry, Deliver::Route, UPLINK);
            assert_eq!(entry.flags, FlowFlags::CHECK_MAC | FlowFlags::REWRITE_SRC);
            let outcome = node.from_uplink(&back(family, answer(sport)));
            let seen = outcome.hit().redirected();
            assert_eq!(seen.dst_mac, mac(CLIENT));
            assert_eq!(seen.tuple, tuple(OUTSIDE_IP[family], dport, CLIENT_IP[family], 4000));
        }
    }
}

#[test]
fn an_echo_leaves_with_an_identifier_of_its_own() {
    let node = Node::new();
    for family in 0..2 {
        let seen = node.from_workload(CLIENT, &out(family, CLIENT, L4::Echo(77))).redirected();
        let id = word(&seen.transport, 4);
        assert_eq!((seen.tuple.src, word(&seen.transport, 6)), (ip(HOST_IP[family]), 7), "sequence stays");
        assert!(id >= MASQUERADE.0, "{id}");
        // Another workload with the same identifier gets another one.
        let seen = node.from_workload(SERVER, &out(family, SERVER, L4::Echo(77))).redirected();
        let other = word(&seen.transport, 4);
        assert_ne!(id, other);
        for (id, ifindex, address) in [(id, CLIENT, CLIENT_IP), (other, SERVER, SERVER_IP)] {
            let seen = node.from_uplink(&back(family, L4::EchoReply(id))).hit().redirected();
            assert_eq!((seen.dst_mac, seen.tuple.dst), (mac(ifindex), ip(address[family])));
            assert_eq!(word(&seen.transport, 4), 77);
        }
    }
}

#[test]
fn a_port_belongs_to_one_flow_per_destination_until_that_is_over() {
    let node = Node::new();
    let mut used = Vec::new();
    let mut full = 0;
    for port in 1..200 {
        let outcome = node.from_workload(CLIENT, &out(0, CLIENT, L4::Udp(port, 53)));
        if outcome.drops.is_empty() {
            used.push(outcome.redirected().tuple.sport);
        } else {
            outcome.dropped(DropReason::MasqueradeFull);
            full += 1;
        }
    }
    let taken = used.len();
    used.sort_unstable();
    used.dedup();
    assert_eq!(used.len(), taken, "no port was given twice");
    assert_eq!(taken, usize::from(MASQUERADE.1), "all ports of the range were given");
    assert!(full > 0);
    // Another destination has the whole range.
    node.from_workload(CLIENT, &out(0, CLIENT, L4::Udp(1, 54))).redirected();
    // Without answers a flow lives on; when it is over it gives its port back.
    for (key, flow) in node.maps().flows4().iter().map(Result::unwrap) {
        if key.ifindex == weft_abi::UPLINK {
            let last_seen = flow.last_seen.wrapping_sub(LONG);
            node.maps().flows4().insert(&key, &Flow { last_seen, ..flow }).unwrap();
        }
    }
    assert_full(&node, true);
    node.age();
    assert_full(&node, false);
}

/// Whether a flow towards the exhausted destination finds no port.
fn assert_full(node: &Node, full: bool) {
    let refused = (300..320).all(|port| {
        let outcome = node.from_workload(CLIENT, &out(0, CLIENT, L4::Udp(port, 53)));
        outcome.action == crate::node::SHOT
    });
    assert_eq!(refused, full);
}

#[test]
fn a_masqueraded_flow_keeps_its_port_when_it_decides_again_and_so_do_its_replies() {
    let node = Node::new();
    for family in 0..2 {
        let there = out(family, CLIENT, L4::Tcp(4000, 443, SYN));
        let first = node.from_workload(CLIENT, &there).redirected().tuple;
        node.publish(&[workload(CLIENT)]);
        // The reply comes first: it must not be taken for the host's.
        let outcome = node.from_uplink(&back(family, L4::Tcp(443, first.sport, SYN_ACK)));
        assert_eq!(outcome.redecided().redirected().tuple.dst, ip(CLIENT_IP[family]));
        let outcome = node.from_workload(CLIENT, &there);
        assert_eq!(outcome.redecided().redirected().tuple, first);
        let entry = node.flow(&key(weft_abi::UPLINK, 6, tuple(OUTSIDE_IP[family], 443, HOST_IP[family], first.sport)));
        assert_eq!(entry.expect("an entry").packets, 1, "the reply's counters go on");
    }
}

#[test]
fn without_an_address_of_the_node_in_this_family_nothing_leads_out() {
    let node = Node::new();
    let config = node.maps().config().get(0).unwrap();
    node.maps().config().set(0, &Config { masquerade_v6: weft_abi::Addr::UNSPECIFIED, ..config }).unwrap();
    node.from_workload(CLIENT, &out(1, CLIENT, L4::Udp(1, 53))).dropped(DropReason::NoRoute);
    node.from_workload(CLIENT, &out(0, CLIENT, L4::Udp(1, 53))).redirected();
    // Without ports there is nothing to tell flows apart by.
    node.from_workload(CLIENT, &out(0, CLIENT, L4::EchoReply(5))).dropped(DropReason::Unrewritable);
}

#[test]
fn the_hosts_own_traffic_passes_untouched() {
    let node = Node::new();
    let arp = [[0xff; 6].as_slice(), &[2; 6], &[8, 6], &[0; 28]].concat();
    node.from_uplink(&arp).passed(&arp);
    for family in 0..2 {
        for l4 in [L4::Tcp(443, 22, SYN), L4::Udp(53, 4789), L4::Echo(3), L4::EchoReply(3)] {
            let packet = back(family, l4);
            node.from_uplink(&packet).passed(&packet);
            let cut = &packet[..packet.len() - 4];
            node.from_uplink(cut).passed(cut);
        }
    }
    assert_eq!(node.flows(), 0);
    // An address that is nobody's: the host's stack decides.
    let packet = frame(HOST_MAC, ip_headers(ip(OUTSIDE_IP[0]), ip("10.1.0.99")), L4::Udp(1, 2), b"");
    node.from_uplink(&packet).passed(&packet);
}
