// SPDX-License-Identifier: Apache-2.0
//! What one port may take: connections, new flows, answers, datagrams in pieces. The others go on.

use weft_abi::DropReason;

use crate::{
    link::{arp, neighbour},
    node::{
        CLIENT, CLIENT_IP, NATIVE_IP, NATIVE_MAC, Node, OUTSIDE_IP, REDIRECT, SERVER, SERVER_IP, SHOT, VM, VM_IP,
        eventually, mac,
    },
    packet::{ACK, FIN_ACK, L4, SYN, SYN_ACK, frame, ip, ip_headers},
};

const SHARE: u16 = 8;

/// A node whose ports get `SHARE` connections each.
fn node() -> Node {
    let node = Node::new();
    node.reconfigure(|config| {
        (config.flow_share, config.flow_most, config.flow_floor) = ([SHARE.into(); 2], [1000; 2], [2; 2]);
    });
    node
}

fn from_client(family: usize, l4: L4) -> Vec<u8> {
    frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(SERVER_IP[family])), l4, b"x")
}

fn from_server(family: usize, l4: L4) -> Vec<u8> {
    frame(mac(SERVER), ip_headers(ip(SERVER_IP[family]), ip(CLIENT_IP[family])), l4, b"x")
}

#[test]
fn a_port_beyond_its_share_opens_nothing_and_all_else_goes_on() {
    let node = node();
    for family in 0..2 {
        for port in 0..SHARE {
            node.from_workload(CLIENT, &from_client(family, L4::Udp(port, 9))).redirected();
        }
        let entries = node.flows();
        for port in 100..200 {
            node.from_workload(CLIENT, &from_client(family, L4::Udp(port, 9))).dropped(DropReason::FlowShare);
        }
        assert_eq!(node.flows(), entries, "nothing was put in or pushed out");
        for port in 0..SHARE {
            node.from_workload(CLIENT, &from_client(family, L4::Udp(port, 9))).hit().redirected();
            node.from_workload(SERVER, &from_server(family, L4::Udp(9, port))).hit().redirected();
        }
        node.from_workload(SERVER, &from_server(family, L4::Udp(1, 10))).redirected();
        // A change makes flows decide again: none is refused for it.
        node.publish(&[crate::node::workload(CLIENT)]);
        node.from_workload(CLIENT, &from_client(family, L4::Udp(0, 9))).redecided().redirected();
    }
    assert_eq!(node.maps().shares().get(&CLIENT).unwrap().expect("a share").refused, 200);
}

#[test]
fn a_ports_own_oldest_flows_make_room_when_nobody_waits_for_them() {
    for family in 0..2 {
        let node = node();
        for port in 0..SHARE {
            node.from_workload(CLIENT, &from_client(family, L4::Udp(port, 9))).redirected();
        }
        let entries = node.flows();
        node.age_by(5);
        for port in 100..100 + SHARE / 2 {
            node.from_workload(CLIENT, &from_client(family, L4::Udp(port, 9))).redirected();
            assert_eq!(node.flows(), entries, "both entries of one for both of another");
        }
        // Those that came first, while there was room, are not asked; the new ones are too young.
        for port in 0..SHARE / 2 {
            node.from_workload(CLIENT, &from_client(family, L4::Udp(port, 9))).hit();
        }
        node.from_workload(CLIENT, &from_client(family, L4::Udp(300, 9))).dropped(DropReason::FlowShare);
    }
}

#[test]
fn closed_connections_make_room_at_once_and_established_ones_never() {
    let node = node();
    let open = |port| {
        node.from_workload(CLIENT, &from_client(0, L4::Tcp(port, 80, SYN))).redirected();
        node.from_workload(SERVER, &from_server(0, L4::Tcp(80, port, SYN_ACK))).redirected();
        node.from_workload(CLIENT, &from_client(0, L4::Tcp(port, 80, ACK))).redirected();
    };
    for port in 0..SHARE {
        open(port);
    }
    node.age_by(1000);
    node.from_workload(CLIENT, &from_client(0, L4::Tcp(100, 80, SYN))).dropped(DropReason::FlowShare);
    // One that is closed by both is over for everybody.
    node.from_workload(CLIENT, &from_client(0, L4::Tcp(SHARE - 1, 80, FIN_ACK))).redirected();
    node.from_workload(SERVER, &from_server(0, L4::Tcp(80, SHARE - 1, FIN_ACK))).redirected();
    open(101);
    // Any number of short ones one after the other.
    for port in 200..300 {
        node.from_workload(CLIENT, &from_client(0, L4::Tcp(port - 1, 80, ACK)));
        let previous = if port == 200 { 101 } else { port - 1 };
        node.from_workload(CLIENT, &from_client(0, L4::Tcp(previous, 80, FIN_ACK))).redirected();
        node.from_workload(SERVER, &from_server(0, L4::Tcp(80, previous, FIN_ACK))).redirected();
        open(port);
    }
    node.from_workload(CLIENT, &from_client(0, L4::Tcp(0, 80, ACK))).hit().redirected();
}

#[test]
fn what_comes_from_other_nodes_counts_for_its_receiver_and_apart() {
    let node = node();
    let flood = |dst, sport| {
        node.from_uplink(&frame(NATIVE_MAC, ip_headers(ip(NATIVE_IP[0]), ip(dst)), L4::Udp(sport, 9), b"x"))
    };
    for port in 0..SHARE {
        flood(CLIENT_IP[0], port).redirected();
    }
    flood(CLIENT_IP[0], 100).dropped(DropReason::FlowShare);
    // Another one is reached, and the one that is flooded reaches others.
    flood(SERVER_IP[0], 100).redirected();
    node.from_workload(CLIENT, &from_client(0, L4::Udp(1, 9))).redirected();
}

#[test]
fn the_rest_of_a_table_that_fills_is_for_those_below_their_floor() {
    let node = node();
    node.reconfigure(|config| config.flow_most = [10; 2]);
    for port in 0..SHARE {
        node.from_workload(CLIENT, &from_client(0, L4::Udp(port, 9))).redirected();
    }
    let vm = |port| frame(mac(VM), ip_headers(ip(VM_IP[0]), ip(CLIENT_IP[0])), L4::Udp(port, 9), b"x");
    for (port, refused) in [(1, false), (2, false), (3, true)] {
        assert_eq!(node.from_workload(SERVER, &from_server(0, L4::Udp(port, 99))).action == SHOT, refused);
        assert_eq!(node.from_workload(VM, &vm(port)).action == SHOT, refused);
    }
}

#[test]
fn new_flows_are_refused_beyond_the_rate_and_established_ones_go_on() {
    let node = Node::new();
    node.reconfigure(|config| config.flow_rate = 20);
    let new = |port| node.from_workload(CLIENT, &from_client(0, L4::Udp(port, 9)));
    // Twice the rate at once; more come while the test runs.
    let refused = (1..2000).find(|port| new(*port).action == SHOT).expect("an end");
    assert!(refused > 40, "{refused}");
    // What policy would deny, or nothing leads to, counts as well: to decide is what costs.
    assert!((3000..6000).any(|port| {
        let packet = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[0]), ip("10.1.0.99")), L4::Udp(port, 9), b"x");
        node.from_workload(CLIENT, &packet).drops == [(DropReason::FlowRate, 1)]
    }));
    new(1).hit().redirected();
    node.from_workload(SERVER, &from_server(0, L4::Udp(9, 1))).hit().redirected();
    node.from_workload(SERVER, &from_server(0, L4::Udp(7, 7))).redirected();
    eventually(|| new(7000).action == REDIRECT);
}

#[test]
fn what_the_node_answers_itself_has_a_rate() {
    let node = Node::new();
    node.reconfigure(|config| config.answer_rate = 5);
    let request = arp(1, mac(CLIENT), CLIENT_IP[0], "10.1.0.99");
    let solicitation = neighbour(135, CLIENT_IP[1], "fd01::99", mac(CLIENT));
    for packet in [&request, &solicitation] {
        // One bucket for all of it.
        let drops = (0..3000).map(|_| node.from_workload(CLIENT, packet)).find(|outcome| outcome.action == SHOT);
        drops.expect("an end").dropped(DropReason::AnswerRate);
    }
    let discover = frame(mac(VM), ip_headers(ip("0.0.0.0"), ip("255.255.255.255")), L4::Udp(68, 67), &[0; 240]);
    let drops = (0..3000).map(|_| node.from_workload(VM, &discover)).find(|outcome| outcome.action == SHOT);
    drops.expect("an end").dropped(DropReason::AnswerRate);
    // Another port is answered, and this one's flows go on.
    let other = frame(mac(SERVER), ip_headers(ip(SERVER_IP[0]), ip(CLIENT_IP[0])), L4::Udp(1, 2), b"x");
    node.from_workload(SERVER, &other).redirected();
    node.from_workload(CLIENT, &from_client(0, L4::Udp(1, 9))).redirected();
    eventually(|| node.from_workload(CLIENT, &request).action == REDIRECT);
}

#[test]
fn datagrams_in_pieces_have_a_rate() {
    let node = Node::new();
    node.reconfigure(|config| config.fragment_rate = 5);
    let first = |id: u16| {
        let packet = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[0]), ip(OUTSIDE_IP[0])), L4::Udp(1, 2), &[0; 16]);
        let mut packet = packet;
        packet[18..20].copy_from_slice(&id.to_be_bytes());
        packet[20..22].copy_from_slice(&0x2000_u16.to_be_bytes());
        packet[24..26].fill(0);
        let checksum = !crate::packet::sum(&[&packet[14..34]]);
        packet[24..26].copy_from_slice(&checksum.to_be_bytes());
        node.from_workload(CLIENT, &packet)
    };
    let refused = (0..3000).map(first).find(|outcome| outcome.action == SHOT).expect("an end");
    refused.dropped(DropReason::FragmentShare);
    node.from_workload(CLIENT, &from_client(0, L4::Udp(1, 9))).redirected();
}
