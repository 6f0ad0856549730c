// SPDX-License-Identifier: Apache-2.0
//! NetworkPolicy: who may talk to whom, by identity, prefix, protocol and port.

use weft_abi::{ANY_IDENTITY, CidrKey, DropReason, PROTOCOL_ANY};

use crate::{
    node::{
        CLIENT, CLIENT_IP, FAR_IP, HOST_IP, HOST_MAC, NATIVE_IP, NATIVE_MAC, Node, OUTSIDE_IP, SERVER, SERVER_IP, SHOT,
        VIP, VM, VM_IP, cidr, mac,
    },
    packet::{L4, SYN, SYN_ACK, frame, ip, ip_headers},
};

/// Policy sets of the tests.
const INGRESS: u32 = 11;
const EGRESS: u32 = 12;
/// Identity of the client.
const FRIEND: u32 = 42;

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
    node.set_rules(INGRESS, FRIEND, 0, false, &[(TCP, 8080, 8090)]);
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
    node.set_rules(INGRESS, FRIEND, 0, false, &[(TCP, 80, 80)]);
    node.set_rules(EGRESS, FRIEND, 0, false, &[(TCP, 80, 80)]);
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
    node.set_rules(EGRESS, FRIEND, 0, false, &[(TCP, 8080, 8080)]);
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
fn prefixes_count_by_the_longest_and_single_addresses_before_them() {
    let node = Node::new();
    node.isolate(CLIENT, 0, EGRESS);
    const NETWORK: u32 = 50;
    const EXCEPT: u32 = 51;
    node.set_rules(EGRESS, NETWORK, 0, false, &[(PROTOCOL_ANY, 0, u16::MAX)]);
    let insert = |prefix: &str, identity: u32| {
        let key: CidrKey = cidr(prefix);
        node.maps().cidrs().insert(&key, &identity).unwrap();
    };
    for (prefix, identity) in [
        ("198.51.100.0/24", NETWORK),
        ("198.51.100.128/25", EXCEPT),
        ("2001:db8:ffff::/48", NETWORK),
        ("2001:db8:ffff:8000::/49", EXCEPT),
    ] {
        insert(prefix, identity);
    }
    let allowed = |destination: &str| {
        let family = usize::from(ip(destination).is_ipv6());
        node.from_workload(CLIENT, &tcp(CLIENT, CLIENT_IP[family], destination, 443)).action != SHOT
    };
    assert!(allowed("198.51.100.7") && allowed("2001:db8:ffff::7"));
    assert!(!allowed("198.51.100.129") && !allowed("2001:db8:ffff:8000::7"));
    assert!(!allowed("198.51.101.7") && !allowed("2001:db8:fffe::7"));
    node.identify("198.51.100.9", EXCEPT);
    assert!(!allowed("198.51.100.9"));
}

#[test]
fn rules_for_everybody_hold_for_identities_that_have_none() {
    let node = Node::new();
    node.isolate(SERVER, INGRESS, 0);
    node.set_rules(INGRESS, ANY_IDENTITY, 0, false, &[(UDP, 53, 53), (PROTOCOL_ANY, 0, u16::MAX)]);
    for family in 0..2 {
        node.from_workload(CLIENT, &tcp(CLIENT, CLIENT_IP[family], SERVER_IP[family], 1)).redirected();
        let headers = ip_headers(ip(CLIENT_IP[family]), ip(SERVER_IP[family]));
        node.from_workload(CLIENT, &frame(mac(CLIENT), headers, L4::Echo(1), b"")).redirected();
    }
}

#[test]
fn more_than_ten_rules_go_on_in_the_next_chunk() {
    let node = Node::new();
    node.isolate(SERVER, INGRESS, 0);
    node.identify(CLIENT_IP[0], FRIEND);
    let rules: Vec<_> = (0..25_u16).map(|index| (TCP, 100 + index * 2, 100 + index * 2)).collect();
    for (identity, offset) in [(FRIEND, 0), (ANY_IDENTITY, 1000)] {
        let rules: Vec<_> =
            rules.iter().map(|(protocol, first, last)| (*protocol, first + offset, last + offset)).collect();
        for (chunk, rules) in (0..).zip(rules.chunks(10)) {
            node.set_rules(INGRESS, identity, chunk, chunk < 2, rules);
        }
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
