// SPDX-License-Identifier: Apache-2.0
//! NetworkPolicy: who may talk to whom, by class, prefix, protocol and port.

use weft_abi::{DropReason, PROTOCOL_ANY, part};

use crate::{
    node::{
        CLIENT, CLIENT_IP, FAR_IP, HOST_IP, HOST_MAC, NATIVE_IP, NATIVE_MAC, Node, OUTSIDE_IP, SERVER, SERVER_IP, SHOT,
        VIP, VM, VM_IP, mac,
    },
    packet::{L4, SYN, SYN_ACK, frame, ip, ip_headers},
};

/// Decision lists of the tests.
const INGRESS: u64 = 11;
const EGRESS: u64 = 12;
/// A term that means the client.
const FRIEND: u64 = part::TERM | 42 << 16;

const TCP: u8 = 6;
const UDP: u8 = 17;

fn tcp(ifindex: u32, src: &str, dst: &str, port: u16) -> Vec<u8> {
    frame(mac(ifindex), ip_headers(ip(src), ip(dst)), L4::Tcp(4000, port, SYN), b"")
}

#[test]
fn an_isolated_workload_lets_nobody_in_without_a_rule() {
    let node = Node::new();
    node.isolate(SERVER, INGRESS, 0);
    for family in 0..2 {
        for l4 in [L4::Tcp(1, 80, SYN), L4::Udp(1, 80), L4::Echo(1)] {
            let packet = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(SERVER_IP[family])), l4, b"");
            node.from_workload(CLIENT, &packet).dropped(DropReason::PolicyIngress);
            let packet = frame(NATIVE_MAC, ip_headers(ip(NATIVE_IP[family]), ip(SERVER_IP[family])), l4, b"");
            node.from_uplink(&packet).dropped(DropReason::PolicyIngress);
            // Nor one that says it were itself.
            let packet = frame(HOST_MAC, ip_headers(ip(SERVER_IP[family]), ip(SERVER_IP[family])), l4, b"");
            node.from_uplink(&packet).dropped(DropReason::SourceAddress);
        }
    }
    assert_eq!(node.flows(), 0);
}

#[test]
fn ingress_is_judged_by_the_identity_of_the_original_source_and_the_backends_port() {
    let node = Node::new();
    node.isolate(SERVER, INGRESS, 0);
    node.set_rules(INGRESS, FRIEND, &[(TCP, 8080, 8090)]);
    for family in 0..2 {
        node.identify(CLIENT_IP[family], FRIEND);
        for (port, allowed) in [(8079, false), (8080, true), (8085, true), (8090, true), (8091, false)] {
            let outcome = node.from_workload(CLIENT, &tcp(CLIENT, CLIENT_IP[family], SERVER_IP[family], port));
            if allowed {
                outcome.redirected();
            } else {
                outcome.dropped(DropReason::PolicyIngress);
            }
            node.from_workload(VM, &tcp(VM, VM_IP[family], SERVER_IP[family], port)).dropped(DropReason::PolicyIngress);
        }
        // By the Service: its port 80 is the backend's 8080.
        node.from_workload(CLIENT, &tcp(CLIENT, CLIENT_IP[family], VIP[family], 80)).redirected();
        node.from_workload(VM, &tcp(VM, VM_IP[family], VIP[family], 80)).dropped(DropReason::PolicyIngress);
        let udp = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(SERVER_IP[family])), L4::Udp(1, 8080), b"");
        node.from_workload(CLIENT, &udp).dropped(DropReason::PolicyIngress);
    }
}

#[test]
fn an_answer_needs_no_rule_of_its_own() {
    let node = Node::new();
    node.isolate(SERVER, INGRESS, EGRESS);
    node.isolate(CLIENT, INGRESS, EGRESS);
    node.set_rules(INGRESS, FRIEND, &[(TCP, 80, 80)]);
    node.set_rules(EGRESS, FRIEND, &[(TCP, 80, 80)]);
    for family in 0..2 {
        node.identify(CLIENT_IP[family], FRIEND);
        node.identify(SERVER_IP[family], FRIEND);
        node.from_workload(CLIENT, &tcp(CLIENT, CLIENT_IP[family], SERVER_IP[family], 80)).redirected();
        let headers = ip_headers(ip(SERVER_IP[family]), ip(CLIENT_IP[family]));
        let answer = frame(mac(SERVER), headers, L4::Tcp(80, 4000, SYN_ACK), b"");
        node.from_workload(SERVER, &answer).hit().redirected();
        // The other way a new connection is not allowed.
        node.from_workload(SERVER, &tcp(SERVER, SERVER_IP[family], CLIENT_IP[family], 4001))
            .dropped(DropReason::PolicyEgress);
    }
}

#[test]
fn egress_is_judged_after_translation() {
    let node = Node::new();
    node.isolate(CLIENT, 0, EGRESS);
    node.set_rules(EGRESS, FRIEND, &[(TCP, 8080, 8080)]);
    for family in 0..2 {
        node.identify(SERVER_IP[family], FRIEND);
        node.from_workload(CLIENT, &tcp(CLIENT, CLIENT_IP[family], VIP[family], 80)).redirected();
        for (destination, port) in [(SERVER_IP, 80), (VM_IP, 8080), (FAR_IP, 8080), (OUTSIDE_IP, 8080), (HOST_IP, 8080)]
        {
            node.from_workload(CLIENT, &tcp(CLIENT, CLIENT_IP[family], destination[family], port))
                .dropped(DropReason::PolicyEgress);
        }
    }
}

#[test]
fn the_longest_prefix_of_the_list_counts_and_a_pod_is_let_in_beside_it() {
    let node = Node::new();
    node.isolate(CLIENT, 0, EGRESS);
    let except = part::BLOCKS + part::STEP;
    node.set_rules(EGRESS, part::BLOCKS, &[(PROTOCOL_ANY, 0, u16::MAX)]);
    node.set_rules(EGRESS, except, &[(TCP, 1, 1)]);
    for (prefix, part) in [
        ("198.51.100.0/24", part::BLOCKS),
        ("198.51.100.128/25", except),
        ("2001:db8:ffff::/48", part::BLOCKS),
        ("2001:db8:ffff:8000::/49", except),
    ] {
        node.set_block(EGRESS, prefix, part);
    }
    let allowed = |destination: &str| {
        let family = usize::from(ip(destination).is_ipv6());
        node.from_workload(CLIENT, &tcp(CLIENT, CLIENT_IP[family], destination, 443)).action != SHOT
    };
    assert!(allowed("198.51.100.7") && allowed("2001:db8:ffff::7"));
    assert!(!allowed("198.51.100.129") && !allowed("2001:db8:ffff:8000::7"));
    assert!(!allowed("198.51.101.7") && !allowed("2001:db8:fffe::7"));
    node.set_rules(EGRESS, FRIEND, &[(TCP, 443, 443)]);
    node.identify("198.51.100.200", FRIEND);
    assert!(allowed("198.51.100.200") && !allowed("198.51.100.201"));
}

#[test]
fn rules_for_everybody_hold_for_those_of_whom_nothing_is_known() {
    let node = Node::new();
    node.isolate(SERVER, INGRESS, 0);
    node.set_rules(INGRESS, part::ANY, &[(UDP, 53, 53), (PROTOCOL_ANY, 0, u16::MAX)]);
    for family in 0..2 {
        node.from_workload(CLIENT, &tcp(CLIENT, CLIENT_IP[family], SERVER_IP[family], 1)).redirected();
        let headers = ip_headers(ip(CLIENT_IP[family]), ip(SERVER_IP[family]));
        node.from_workload(CLIENT, &frame(mac(CLIENT), headers, L4::Echo(1), b"")).redirected();
    }
}

#[test]
fn more_than_two_rules_go_on_in_the_next_run() {
    let node = Node::new();
    node.isolate(SERVER, INGRESS, 0);
    node.identify(CLIENT_IP[0], FRIEND);
    for (part, offset) in [(FRIEND, 0), (part::ANY, 1000)] {
        let rules = (0..25_u16).map(|index| 100 + offset + index * 2).map(|port| (TCP, port, port));
        node.set_rules(INGRESS, part, &rules.collect::<Vec<_>>());
    }
    let allowed = |port| node.from_workload(CLIENT, &tcp(CLIENT, CLIENT_IP[0], SERVER_IP[0], port)).action != SHOT;
    for index in 0..25 {
        assert!(allowed(100 + index * 2) && allowed(1100 + index * 2), "rule {index}");
        assert!(!allowed(101 + index * 2) && !allowed(1101 + index * 2), "rule {index}");
    }
    assert!(!allowed(150) && !allowed(1150));
}

/// Kubelet's probes (KEP: NetworkPolicy, "traffic to and from the node where a Pod is running is always allowed").
#[test]
fn the_own_node_is_let_in_always_and_other_nodes_are_not() {
    let node = Node::new();
    node.isolate(SERVER, INGRESS, 0);
    for family in 0..2 {
        let headers = |src: &str| ip_headers(ip(src), ip(SERVER_IP[family]));
        let probe = frame(HOST_MAC, headers(HOST_IP[family]), L4::Tcp(9, 80, SYN), b"");
        node.from_host(&probe).redirected();
        let back = ip_headers(ip(SERVER_IP[family]), ip(HOST_IP[family]));
        let answer = frame(mac(SERVER), back, L4::Tcp(80, 9, SYN_ACK), b"");
        node.from_workload(SERVER, &answer).hit().redirected();
        node.publish(&[crate::node::workload(SERVER)]);
        node.from_workload(SERVER, &answer).redecided().redirected();
        node.from_host(&probe).redecided().redirected();
        // What the host only forwards, and another node's host, are like anybody.
        let forwarded = frame(HOST_MAC, headers(OUTSIDE_IP[family]), L4::Tcp(9, 80, SYN), b"");
        node.from_host(&forwarded).dropped(DropReason::PolicyIngress);
        let other = ["192.0.2.3", "2001:db8::3"][family];
        node.from_uplink(&frame(HOST_MAC, headers(other), L4::Tcp(9, 80, SYN), b"")).dropped(DropReason::PolicyIngress);
    }
}

#[test]
fn all_pods_are_told_from_where_they_lie() {
    let node = Node::new();
    node.isolate(SERVER, INGRESS, 0);
    node.set_rules(INGRESS, part::ANY_POD, &[(TCP, 80, 80)]);
    for family in 0..2 {
        node.from_workload(CLIENT, &tcp(CLIENT, CLIENT_IP[family], SERVER_IP[family], 80)).redirected();
        let headers = |src: &str| ip_headers(ip(src), ip(SERVER_IP[family]));
        let native = frame(NATIVE_MAC, headers(NATIVE_IP[family]), L4::Tcp(9, 80, SYN), b"");
        node.from_uplink(&native).redirected();
        // That node itself, which speaks to pods by the first address there.
        let neighbour = frame(NATIVE_MAC, headers(["10.3.0.1", "fd03::1"][family]), L4::Tcp(9, 80, SYN), b"");
        node.from_uplink(&neighbour).dropped(DropReason::PolicyIngress);
        let outside = frame(HOST_MAC, headers(OUTSIDE_IP[family]), L4::Tcp(9, 80, SYN), b"");
        node.from_uplink(&outside).dropped(DropReason::PolicyIngress);
        let forwarded = frame(HOST_MAC, headers(HOST_IP[family]), L4::Tcp(9, 80, SYN), b"");
        node.from_host(&forwarded).redirected();
    }
}

/// A list that is not there, or not whole, is closed; so is one of whose peer nothing can be told.
#[test]
fn what_is_not_whole_is_closed() {
    let node = Node::new();
    let allowed = |port| node.from_workload(CLIENT, &tcp(CLIENT, CLIENT_IP[0], SERVER_IP[0], port)).action != SHOT;
    node.isolate(SERVER, INGRESS, 0);
    node.set_rules(INGRESS, FRIEND, &[80, 81, 82, 83, 84].map(|port| (TCP, port, port)));
    node.identify(CLIENT_IP[0], FRIEND);
    assert!(allowed(84) && !allowed(85));
    node.maps().verdicts().retain(|_, _| false).unwrap();
    node.maps().rules().remove(&weft_abi::RuleKey { list: INGRESS, part: FRIEND + 1 }).unwrap();
    assert!(!allowed(80), "the rest is missing");
    node.set_rules(INGRESS, FRIEND, &[(PROTOCOL_ANY, 0, u16::MAX)]);
    assert!(allowed(86));
    node.maps().classes().retain(|_, _| false).unwrap();
    assert!(!allowed(88), "its class is missing");
    node.identify(CLIENT_IP[0], FRIEND);
    assert!(allowed(90));
    node.maps().lists().retain(|_, _| false).unwrap();
    assert!(!allowed(92), "the list is missing");
}

/// What a list has said once it is not asked again, and what it says of one peer and port is nobody else's.
#[test]
fn verdicts_are_remembered_apart() {
    let node = Node::new();
    node.isolate(SERVER, INGRESS, 0);
    node.set_rules(INGRESS, FRIEND, &[(TCP, 80, 80)]);
    node.identify(CLIENT_IP[0], FRIEND);
    let known = || node.maps().verdicts().len().unwrap();
    for (ifindex, source, port, expected) in
        [(CLIENT, CLIENT_IP[0], 80, 1), (CLIENT, CLIENT_IP[0], 81, 2), (VM, VM_IP[0], 80, 3), (VM, VM_IP[0], 81, 4)]
    {
        let allowed = expected == 1;
        for sport in [4000, 4001] {
            let headers = ip_headers(ip(source), ip(SERVER_IP[0]));
            let packet = frame(mac(ifindex), headers, L4::Tcp(sport, port, SYN), b"");
            assert_eq!(node.from_workload(ifindex, &packet).action != SHOT, allowed);
            assert_eq!(known(), expected);
        }
    }
}
