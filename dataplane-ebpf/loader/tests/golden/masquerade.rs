// SPDX-License-Identifier: Apache-2.0
//! What masqueraded flows leave under: ports kept, found, shared, given back; protocols without ports; not at all.

use std::{
    collections::BTreeSet,
    net::{TcpListener, UdpSocket},
};

use weft_abi::{ConfigFlags, DropReason};

use crate::{
    node::{
        CLIENT, CLIENT_IP, HOST_IP, MASQUERADE, Node, OUTSIDE_IP, SERVER, SERVER_IP, SHOT, VM, VM_IP, eventually, mac,
    },
    packet::{ACK, L4, SYN, SYN_ACK, frame, ip, ip_headers, pseudo_header, sum, tuple, word},
};

const RST: u8 = 0x04;
/// Ports of the range that are one workload's own.
const OWN: usize = MASQUERADE.1 as usize / 2;

fn out(family: usize, ifindex: u32, l4: L4) -> Vec<u8> {
    let src = match ifindex {
        CLIENT => CLIENT_IP,
        SERVER => SERVER_IP,
        _ => VM_IP,
    };
    frame(mac(ifindex), ip_headers(ip(src[family]), ip(OUTSIDE_IP[family])), l4, b"out")
}

fn back(family: usize, l4: L4) -> Vec<u8> {
    frame([2, 0, 0, 0, 9, 9], ip_headers(ip(OUTSIDE_IP[family]), ip(HOST_IP[family])), l4, b"back")
}

/// Opens a UDP flow to port 53 outside; the source port it leaves under, or none where there is no port.
fn ask(node: &Node, ifindex: u32, sport: u16) -> Option<u16> {
    let outcome = node.from_workload(ifindex, &out(0, ifindex, L4::Udp(sport, 53)));
    if outcome.action == SHOT {
        outcome.dropped(DropReason::MasqueradeFull);
        return None;
    }
    Some(outcome.redirected().tuple.sport)
}

#[test]
fn a_source_port_in_the_range_is_kept_where_it_is_free() {
    let node = Node::new();
    let port = MASQUERADE.0 + 5;
    for family in 0..2 {
        for l4 in [L4::Udp(port, 53), L4::Tcp(port, 443, SYN), L4::Echo(port)] {
            let kept = |ifindex| {
                let seen = node.from_workload(ifindex, &out(family, ifindex, l4)).redirected();
                match l4 {
                    L4::Echo(_) => word(&seen.transport, 4),
                    _ => seen.tuple.sport,
                }
            };
            assert_eq!(kept(CLIENT), port);
            assert_ne!(kept(SERVER), port, "it is the client's towards this destination");
        }
    }
}

#[test]
fn a_workload_may_keep_few_of_the_ports_of_others() {
    let node = Node::new();
    let kept = (MASQUERADE.0..MASQUERADE.0 + MASQUERADE.1).filter(|port| ask(&node, CLIENT, *port) == Some(*port));
    // Its own half, and an eighth of the range; a flow that may not keep its port takes one that another would have kept.
    assert!(kept.count() <= OWN + OWN / 4);
}

#[test]
fn a_workload_takes_half_of_the_ports_and_others_find_theirs() {
    let node = Node::new();
    let used: Vec<_> = (1..100).filter_map(|sport| ask(&node, CLIENT, sport)).collect();
    let distinct: BTreeSet<_> = used.iter().copied().collect();
    assert_eq!((used.len(), distinct.len()), (OWN, OWN), "each once, and no more than its own");
    // It is remembered as full for this workload alone.
    assert!(ask(&node, SERVER, 1).is_some());
    assert!(ask(&node, VM, 1).is_some());
    // Another destination has ports as well.
    node.from_workload(CLIENT, &out(0, CLIENT, L4::Udp(1, 54))).redirected();
}

#[test]
fn under_pressure_a_workload_takes_ports_back_from_its_own_flows() {
    let node = Node::new();
    while ask(&node, CLIENT, 1).is_some() && (2..100).all(|sport| ask(&node, CLIENT, sport).is_some()) {}
    // Nobody answered for some seconds. That is no reason to give another workload's ports away: those wait longer.
    node.age_by(5);
    eventually(|| ask(&node, CLIENT, 200).is_some());
    for sport in 201..220 {
        let port = ask(&node, CLIENT, sport).expect("a port of its own");
        // The flow that gave its port up decides anew.
        assert!((MASQUERADE.0..MASQUERADE.0 + MASQUERADE.1).contains(&port));
        node.age_by(5);
    }
}

#[test]
fn a_port_that_was_given_up_leads_back_to_one_flow_only() {
    let node = Node::new();
    node.reconfigure(|config| config.masquerade_count = 1);
    let port = ask(&node, CLIENT, 1);
    node.age_by(5);
    assert_eq!(ask(&node, CLIENT, 2), port);
    // The first flow is gone whole: it does not go on under a port that is another one's.
    let outcome = node.from_workload(CLIENT, &out(0, CLIENT, L4::Udp(1, 53)));
    outcome.missed().dropped(DropReason::MasqueradeFull);
    let seen = node.from_uplink(&back(0, L4::Udp(53, MASQUERADE.0))).hit().redirected();
    assert_eq!(seen.tuple, tuple(OUTSIDE_IP[0], 53, CLIENT_IP[0], 2));
}

/// Whether the range's only port is given to another workload after these many idle ticks.
fn is_given_back(node: &Node, ticks: u32, l4: L4) -> bool {
    node.age_by(ticks);
    let outcome = node.from_workload(SERVER, &out(0, SERVER, l4));
    let given = outcome.action != SHOT;
    if !given {
        outcome.dropped(DropReason::MasqueradeFull);
    }
    given
}

fn node_with_one_port() -> Node {
    let node = Node::new();
    node.reconfigure(|config| config.masquerade_count = 1);
    node
}

/// Ticks that may pass by themselves while a test runs.
const SLACK: u32 = 6;

#[test]
fn what_nobody_answers_holds_its_port_for_half_a_minute() {
    for (there, other) in [(L4::Udp(1, 53), L4::Udp(9, 53)), (L4::Tcp(1, 443, SYN), L4::Tcp(9, 443, SYN))] {
        for (ticks, given) in [(28 - SLACK, false), (29, true)] {
            let node = node_with_one_port();
            node.from_workload(CLIENT, &out(0, CLIENT, there)).redirected();
            assert_eq!(is_given_back(&node, ticks, other), given, "{there:?} after {ticks}");
        }
    }
}

#[test]
fn an_acknowledgement_that_nobody_answers_holds_no_port_for_hours() {
    let node = node_with_one_port();
    node.from_workload(CLIENT, &out(0, CLIENT, L4::Tcp(1, 443, ACK))).redirected();
    assert!(is_given_back(&node, 29, L4::Tcp(9, 443, SYN)));
}

#[test]
fn a_question_that_was_answered_holds_its_port_for_seconds() {
    for (ticks, given) in [(10 - SLACK, false), (11, true)] {
        let node = node_with_one_port();
        node.from_workload(CLIENT, &out(0, CLIENT, L4::Udp(1, 53))).redirected();
        node.from_uplink(&back(0, L4::Udp(53, MASQUERADE.0))).hit().redirected();
        assert_eq!(is_given_back(&node, ticks, L4::Udp(9, 53)), given, "after {ticks}");
    }
    // Three packets are more than a question: whoever answers to a user port may answer again in a minute (RFC 4787).
    for (dport, packets, given) in [(53, 3, false), (5060, 1, false)] {
        let node = node_with_one_port();
        for _ in 0..packets {
            node.from_workload(CLIENT, &out(0, CLIENT, L4::Udp(1, dport))).redirected();
        }
        node.from_uplink(&back(0, L4::Udp(dport, MASQUERADE.0))).hit().redirected();
        assert_eq!(is_given_back(&node, 60, L4::Udp(9, dport)), given, "to {dport}");
    }
}

#[test]
fn a_reset_of_either_side_gives_the_port_back_in_two_minutes() {
    for by_the_workload in [true, false] {
        for (reset, ticks, given) in [(true, 121, true), (false, 121, false)] {
            let node = node_with_one_port();
            let there = |flags| node.from_workload(CLIENT, &out(0, CLIENT, L4::Tcp(1, 443, flags))).redirected();
            let back = |flags| node.from_uplink(&back(0, L4::Tcp(443, MASQUERADE.0, flags))).redirected();
            there(SYN);
            back(SYN_ACK);
            there(ACK);
            back(ACK);
            match (reset, by_the_workload) {
                (false, _) => {}
                (true, true) => drop(there(RST)),
                (true, false) => drop(back(RST)),
            }
            assert_eq!(is_given_back(&node, ticks, L4::Tcp(9, 443, SYN)), given);
        }
    }
}

#[test]
fn a_port_that_the_host_has_a_socket_on_is_not_given() {
    let node = Node::new();
    let ports = MASQUERADE.0..MASQUERADE.0 + MASQUERADE.1;
    // Of both families: `::` takes IPv4 too.
    let _listeners: Vec<_> = ports.clone().map(|port| TcpListener::bind(("::", port)).expect("listen")).collect();
    for family in 0..2 {
        let outcome = node.from_workload(CLIENT, &out(family, CLIENT, L4::Tcp(4000, 443, SYN)));
        outcome.dropped(DropReason::MasqueradeFull);
        let outcome = node.from_workload(CLIENT, &out(family, CLIENT, L4::Tcp(MASQUERADE.0, 443, SYN)));
        outcome.dropped(DropReason::MasqueradeFull);
        node.from_workload(CLIENT, &out(family, CLIENT, L4::Udp(4000, 443))).redirected();
    }
    // A socket on all but one: that one is found, whatever the workload would have kept.
    let node = Node::new();
    let free = MASQUERADE.0 + MASQUERADE.1 - 1;
    node.reconfigure(|config| (config.masquerade_first, config.masquerade_count) = (free - 2, 3));
    let _sockets: Vec<_> = (free - 2..free).map(|port| UdpSocket::bind(("::", port)).expect("bind")).collect();
    for family in 0..2 {
        let seen = node.from_workload(CLIENT, &out(family, CLIENT, L4::Udp(free - 1, 53))).redirected();
        assert_eq!(seen.tuple.sport, free);
    }
}

#[test]
fn an_echo_with_identifier_0_goes_out_and_its_answer_comes_back() {
    let node = Node::new();
    for family in 0..2 {
        let mut ids = BTreeSet::new();
        for ifindex in [CLIENT, SERVER] {
            let seen = node.from_workload(ifindex, &out(family, ifindex, L4::Echo(0))).redirected();
            let id = word(&seen.transport, 4);
            assert!(id >= MASQUERADE.0 && ids.insert(id), "{id}");
            let seen = node.from_uplink(&back(family, L4::EchoReply(id))).hit().redirected();
            assert_eq!((word(&seen.transport, 4), seen.dst_mac), (0, mac(ifindex)));
        }
    }
}

/// Protocols without ports that Weft rewrites.
const GRE: u8 = 47;
const PORTLESS: [u8; 4] = [GRE, 50, 4, UDP_LITE];
const UDP_LITE: u8 = 136;

/// A packet of `protocol` with something behind the IP header that starts with two ports and a checksum as UDP has.
pub(crate) fn other(mac: [u8; 6], src: &str, dst: &str, protocol: u8) -> Vec<u8> {
    let mut packet = frame(mac, ip_headers(ip(src), ip(dst)), L4::Udp(3000, 3868), b"whatever");
    let l4 = if ip(src).is_ipv4() { 34 } else { 54 };
    if l4 == 34 {
        packet[23] = protocol;
        packet[24..26].fill(0);
        let checksum = !sum(&[&packet[14..34]]);
        packet[24..26].copy_from_slice(&checksum.to_be_bytes());
    } else {
        packet[20] = protocol;
    }
    packet[l4 + 6..l4 + 8].fill(0);
    let pseudo = pseudo_header(ip(src), ip(dst), protocol, packet.len() - l4);
    let checksum = !sum(&[&pseudo, &packet[l4..]]);
    packet[l4 + 6..l4 + 8].copy_from_slice(&checksum.to_be_bytes());
    packet
}

#[test]
fn protocols_without_ports_go_out_under_the_nodes_address_one_workload_a_destination() {
    for family in 0..2 {
        for protocol in PORTLESS {
            let node = Node::new();
            let there = other(mac(CLIENT), CLIENT_IP[family], OUTSIDE_IP[family], protocol);
            let seen = node.from_workload(CLIENT, &there).redirected();
            assert_eq!((seen.tuple.src, seen.protocol), (ip(HOST_IP[family]), protocol));
            let l4 = if family == 0 { 34 } else { 54 };
            if protocol == UDP_LITE {
                let pseudo = pseudo_header(seen.tuple.src, seen.tuple.dst, protocol, seen.transport.len());
                assert_eq!(sum(&[&pseudo, &seen.transport]), 0xffff, "its checksum covers the addresses");
            } else {
                assert_eq!(seen.transport, there[l4..], "nothing else changes");
            }
            node.from_workload(CLIENT, &there).hit().redirected();
            // The answer: ports, where there are any, the other way round.
            let mut answer = other([2, 0, 0, 0, 9, 9], OUTSIDE_IP[family], HOST_IP[family], protocol);
            answer[l4..l4 + 4].rotate_left(2);
            let seen = node.from_uplink(&answer).hit().redirected();
            assert_eq!((seen.tuple.dst, seen.dst_mac), (ip(CLIENT_IP[family]), mac(CLIENT)));
            let second = other(mac(SERVER), SERVER_IP[family], OUTSIDE_IP[family], protocol);
            node.from_workload(SERVER, &second).dropped(DropReason::MasqueradeTaken);
            // After a change the flow keeps what it has.
            node.publish(&[crate::node::workload(CLIENT)]);
            node.from_workload(CLIENT, &there).redecided().redirected();
            node.from_workload(SERVER, &second).dropped(DropReason::MasqueradeTaken);
            // When it is over, another one may speak.
            node.age();
            node.from_workload(SERVER, &second).redirected();
        }
    }
}

#[test]
fn what_is_not_masqueraded_keeps_its_addresses() {
    for family in 0..2 {
        let node = Node::new();
        let plain = [ConfigFlags::PLAIN_V4, ConfigFlags::PLAIN_V6][family];
        node.reconfigure(|config| {
            config.flags = plain;
            (config.masquerade_v4, config.masquerade_v6) = Default::default();
        });
        for (there, answer) in
            [(L4::Udp(4000, 53), L4::Udp(53, 4000)), (L4::Tcp(4000, 443, SYN), L4::Tcp(443, 4000, SYN_ACK))]
        {
            let packet = out(family, CLIENT, there);
            node.from_workload(CLIENT, &packet).redirected_a_hop_on(&packet);
            let headers = ip_headers(ip(OUTSIDE_IP[family]), ip(CLIENT_IP[family]));
            let answer = frame([2, 0, 0, 0, 9, 9], headers, answer, b"back");
            assert_eq!(node.from_uplink(&answer).hit().redirected().dst_mac, mac(CLIENT));
        }
        let gre = other(mac(CLIENT), CLIENT_IP[family], OUTSIDE_IP[family], GRE);
        node.from_workload(CLIENT, &gre).redirected_a_hop_on(&gre);
        // The other family has no address: it is not off.
        let other_family = 1 - family;
        node.from_workload(CLIENT, &out(other_family, CLIENT, L4::Udp(1, 53))).dropped(DropReason::NoRoute);
    }
}

/// A pod that opens one connection again and again, each time acknowledging what nobody sent, has one connection.
#[test]
fn a_connection_that_is_opened_again_leaves_nothing_of_the_one_before() {
    for family in 0..2 {
        let node = Node::new();
        for _ in 0..20 {
            for flags in [SYN, ACK] {
                node.from_workload(CLIENT, &out(family, CLIENT, L4::Tcp(4000, 443, flags))).redirected();
            }
        }
        assert_eq!(node.flows(), 2);
    }
}
