// SPDX-License-Identifier: Apache-2.0
//! Connections as a whole: unique tuples, refused attempts, and one decision for both directions.

use weft_abi::{ConnectionFlags, Deliver};
use weft_dataplane::{Arrival, Program};

use crate::{
    node::{
        CLIENT, CLIENT_IP, FAR_IP, HOST, HOST_MAC, Node, OUTSIDE_IP, SERVER, SERVER_IP, STRANGER, VIP, VM_IP, delivers,
        key, mac, service_number, workload,
    },
    packet::{ACK, L4, RST, SYN, SYN_ACK, Tuple, frame, ip, ip_headers, tuple},
};

/// A second Service.
const OTHER_VIP: [&str; 2] = ["10.96.0.20", "fd96::20"];

/// The client sends; what arrives.
fn to(node: &Node, family: usize, dst: &str, l4: L4) -> Tuple {
    node.from_workload(CLIENT, &frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(dst)), l4, b"x"))
        .redirected()
        .tuple
}

/// The server answers a packet that arrived so; what the client sees.
fn back(node: &Node, arrived: Tuple, l4: impl Fn(u16, u16) -> L4) -> Tuple {
    let l4 = l4(arrived.dport, arrived.sport);
    node.from_workload(SERVER, &frame(mac(SERVER), ip_headers(arrived.dst, arrived.src), l4, b"x")).redirected().tuple
}

type Kind = (fn(u16, u16) -> L4, fn(u16, u16) -> L4);

const KINDS: [Kind; 3] =
    [(|s, d| L4::Tcp(s, d, SYN), |s, d| L4::Tcp(s, d, SYN_ACK)), (L4::Udp, L4::Udp), (L4::Sctp, L4::Sctp)];

/// Two Services with one backend, and the backend itself, from one source port: each is answered by whom it asked.
#[test]
fn connections_that_would_look_alike_leave_under_different_ports() {
    for family in 0..2 {
        for (request, answer) in KINDS {
            let node = Node::new();
            for protocol in [6, 17, 132] {
                node.set_service(OTHER_VIP[family], 80, protocol, 600, 1, &[(SERVER_IP[family], 8080)]);
            }
            let asked = [(VIP[family], 80), (OTHER_VIP[family], 80), (SERVER_IP[family], 8080)];
            let arrived = asked.map(|(dst, port)| to(&node, family, dst, request(4000, port)));
            assert_eq!(arrived[0], tuple(CLIENT_IP[family], 4000, SERVER_IP[family], 8080), "the first keeps its port");
            for (index, one) in arrived.iter().enumerate() {
                assert_eq!((one.src, one.dst, one.dport), (arrived[0].src, arrived[0].dst, 8080));
                assert!(arrived[..index].iter().all(|other| other.sport != one.sport), "{arrived:?}");
            }
            for ((dst, port), one) in asked.into_iter().zip(arrived) {
                assert_eq!(back(&node, one, answer), tuple(dst, port, CLIENT_IP[family], 4000));
                // It stays so: in the next packet, and after a change that has it decided again.
                assert_eq!(to(&node, family, dst, request(4000, port)), one);
                node.publish(&[workload(SERVER)]);
                assert_eq!(to(&node, family, dst, request(4000, port)), one);
                assert_eq!(back(&node, one, answer), tuple(dst, port, CLIENT_IP[family], 4000));
            }
        }
    }
}

/// Towards another node as well.
#[test]
fn tuples_are_unique_beyond_the_node() {
    let node = Node::new();
    for vip in [VIP[0], OTHER_VIP[0]] {
        node.set_service(vip, 80, 17, 600 + u32::from(vip == VIP[0]), 1, &[(FAR_IP[0], 8080)]);
    }
    let [one, other] = [VIP[0], OTHER_VIP[0]].map(|vip| to(&node, 0, vip, L4::Udp(4000, 80)));
    assert_eq!((one.dst, other.dst, one.sport), (ip(FAR_IP[0]), ip(FAR_IP[0]), 4000));
    assert_ne!(other.sport, 4000);
}

/// Somebody on the wire with the addresses and ports of a connection that came another way takes none of its answers.
#[test]
fn who_comes_in_another_way_takes_no_answers() {
    let node = Node::new();
    for family in 0..2 {
        let packet = |mac| {
            let headers = ip_headers(ip(OUTSIDE_IP[family]), ip(CLIENT_IP[family]));
            frame(mac, headers, L4::Udp(4000, 80), b"x")
        };
        // What the host forwards for a device of its own.
        let forwarded = Arrival { ifindex: HOST, received_by: STRANGER, ..Arrival::default() };
        let first = node.send_as(Program::FromHost, &packet(HOST_MAC), forwarded).redirected();
        assert_eq!(first.tuple, tuple(OUTSIDE_IP[family], 4000, CLIENT_IP[family], 80));
        let second = node.from_uplink(&packet([2, 0, 0, 0, 9, 9])).redirected();
        assert_ne!(second.tuple.sport, 4000, "the second leaves under another port");
        let answers = key(CLIENT, 17, tuple(CLIENT_IP[family], 80, OUTSIDE_IP[family], 4000));
        delivers(&node.flow(&answers).expect("the first one's answers"), Deliver::Host, HOST);
    }
}

/// What is left of a connection is another one's by now: only its own goes with it.
#[test]
fn a_connection_that_begins_anew_removes_no_other_ones_answers() {
    let node = Node::new();
    node.set_service(OTHER_VIP[0], 80, 6, 600, 1, &[(SERVER_IP[0], 8080)]);
    let first = to(&node, 0, VIP[0], L4::Tcp(4000, 80, SYN));
    to(&node, 0, VIP[0], L4::Tcp(4000, 80, ACK));
    // The kernel's table has forgotten its answers, and another one has their place.
    let answers = key(SERVER, 6, tuple(SERVER_IP[0], 8080, CLIENT_IP[0], 4000));
    node.remove_flow(&answers);
    let second = to(&node, 0, OTHER_VIP[0], L4::Tcp(4000, 80, SYN));
    assert_eq!(second, first, "the same tuple");
    assert_ne!(to(&node, 0, VIP[0], L4::Tcp(4000, 80, SYN)).sport, 4000);
    assert_eq!(back(&node, second, |s, d| L4::Tcp(s, d, SYN_ACK)), tuple(OTHER_VIP[0], 80, CLIENT_IP[0], 4000));
}

/// Its port is free again once the first connection is over.
#[test]
fn a_tuple_is_free_when_its_connection_is_over() {
    let node = Node::new();
    node.set_service(OTHER_VIP[0], 80, 17, 600, 1, &[(SERVER_IP[0], 8080)]);
    to(&node, 0, VIP[0], L4::Udp(4000, 80));
    node.age();
    assert_eq!(to(&node, 0, OTHER_VIP[0], L4::Udp(4000, 80)).sport, 4000);
}

/// Whoever is refused and tries again from the same port meets another backend, if there is one.
#[test]
fn a_refused_attempt_is_over() {
    for family in 0..2 {
        let node = Node::new();
        let refused = to(&node, family, VIP[family], L4::Tcp(4000, 80, SYN));
        // Its backend still stands for who retransmits.
        node.set_service(VIP[family], 80, 6, 500, 2, &[(VM_IP[family], 8080)]);
        node.publish_service(service_number(500, 6, family));
        assert_eq!(to(&node, family, VIP[family], L4::Tcp(4000, 80, SYN)).dst, ip(SERVER_IP[family]));
        back(&node, refused, |s, d| L4::Tcp(s, d, RST));
        assert_eq!(to(&node, family, VIP[family], L4::Tcp(4000, 80, SYN)).dst, ip(VM_IP[family]));
    }
}

/// Two CPUs decide on the first packets of one connection at once: what the first of them wrote counts.
#[test]
fn the_first_decision_counts() {
    let node = Node::new();
    node.reconfigure(|config| config.masquerade_count = 4000);
    let first = to(&node, 0, OUTSIDE_IP[0], L4::Udp(4000, 53));
    let entry = key(CLIENT, 17, tuple(CLIENT_IP[0], 4000, OUTSIDE_IP[0], 53));
    let flow = node.flow(&entry).expect("an entry");
    assert_ne!(flow.connection.flags & ConnectionFlags::REWRITE_SRC, 0);
    let entries = node.flows();
    // Many at once, from all CPUs.
    let packet = |port| frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[0]), ip(OUTSIDE_IP[0])), L4::Udp(port, 53), b"x");
    let ports = 5000..5040;
    for port in ports.clone() {
        let sent = node.at_once(CLIENT, &packet(port));
        let sports: std::collections::BTreeSet<u16> = sent.iter().map(|seen| seen.tuple.sport).collect();
        assert_eq!(sports.len(), 1, "one connection, {sports:?}");
    }
    assert_eq!(node.flows(), entries + 2 * ports.len(), "one reservation each");
    assert_eq!(to(&node, 0, OUTSIDE_IP[0], L4::Udp(4000, 53)), first);
}

/// A packet that comes late of a connection whose Service has several backends is not new.
#[test]
fn established_tcp_that_is_known_keeps_its_way() {
    let node = Node::new();
    to(&node, 0, VIP[0], L4::Tcp(4000, 80, SYN));
    to(&node, 0, VIP[0], L4::Tcp(4000, 80, ACK));
    node.publish(&[workload(CLIENT), workload(SERVER)]);
    node.publish_service(service_number(500, 6, 0));
    assert_eq!(to(&node, 0, VIP[0], L4::Tcp(4000, 80, ACK)).dst, ip(SERVER_IP[0]));
}
