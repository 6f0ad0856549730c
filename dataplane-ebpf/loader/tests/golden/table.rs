// SPDX-License-Identifier: Apache-2.0
//! The flow table where it is full, and where somebody else writes.

use weft_abi::DropReason;

use crate::{
    node::{CLIENT, CLIENT_IP, Node, SERVER, SERVER_IP, mac, workload},
    packet::{ACK, FIN_ACK, L4, SYN, SYN_ACK, frame, ip, ip_headers},
};

/// A set of eight lines for each family, and one entry more in the hash.
fn smallest() -> Node {
    Node::with(|options| (options.sizes.flows4, options.sizes.flows6) = (6, 6))
}

/// Connections that the lines hold.
const LINES: u16 = 4;

fn from_client(family: usize, l4: L4) -> Vec<u8> {
    frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(SERVER_IP[family])), l4, b"x")
}

fn from_server(family: usize, l4: L4) -> Vec<u8> {
    frame(mac(SERVER), ip_headers(ip(SERVER_IP[family]), ip(CLIENT_IP[family])), l4, b"x")
}

fn establish(node: &Node, family: usize, port: u16) {
    node.from_workload(CLIENT, &from_client(family, L4::Tcp(port, 80, SYN))).redirected();
    node.from_workload(SERVER, &from_server(family, L4::Tcp(80, port, SYN_ACK))).hit().redirected();
    node.from_workload(CLIENT, &from_client(family, L4::Tcp(port, 80, ACK))).hit().redirected();
}

fn goes_on(node: &Node, family: usize, port: u16) {
    node.from_workload(CLIENT, &from_client(family, L4::Tcp(port, 80, ACK))).hit().redirected();
    node.from_workload(SERVER, &from_server(family, L4::Tcp(80, port, ACK))).hit().redirected();
}

#[test]
fn established_connections_make_no_room_in_a_full_table() {
    for family in 0..2 {
        let node = smallest();
        for port in 0..LINES {
            establish(&node, family, port);
        }
        for port in 100..110 {
            let packet = from_client(family, L4::Tcp(port, 80, SYN));
            node.from_workload(CLIENT, &packet).dropped(DropReason::FlowTable);
        }
        for port in 0..LINES {
            goes_on(&node, family, port);
        }
        // What is closed does, in a while.
        node.from_workload(CLIENT, &from_client(family, L4::Tcp(0, 80, FIN_ACK))).hit();
        node.from_workload(SERVER, &from_server(family, L4::Tcp(80, 0, FIN_ACK))).hit();
        node.from_workload(CLIENT, &from_client(family, L4::Tcp(200, 80, SYN))).redirected();
        for port in 1..LINES {
            goes_on(&node, family, port);
        }
    }
}

#[test]
fn connections_that_nobody_answered_make_room_in_a_full_table() {
    for family in 0..2 {
        let node = smallest();
        for port in 0..LINES - 1 {
            establish(&node, family, port);
        }
        for port in 100..160 {
            node.from_workload(CLIENT, &from_client(family, L4::Tcp(port, 80, SYN))).redirected();
            // Its answer comes all the same.
            node.from_workload(SERVER, &from_server(family, L4::Tcp(80, port, SYN_ACK))).hit().redirected();
            if port % 2 == 0 {
                // It is refused, and leaves room.
                let reset = from_server(family, L4::Tcp(80, port, FIN_ACK));
                node.from_workload(SERVER, &reset).hit();
                node.from_workload(CLIENT, &from_client(family, L4::Tcp(port, 80, FIN_ACK))).hit();
            } else {
                node.from_workload(CLIENT, &from_client(family, L4::Tcp(port, 80, FIN_ACK))).hit();
                node.from_workload(SERVER, &from_server(family, L4::Tcp(80, port, FIN_ACK))).hit();
            }
        }
        for port in 0..LINES - 1 {
            goes_on(&node, family, port);
        }
    }
}

#[test]
fn of_a_flood_that_nobody_answers_each_makes_room_for_the_next() {
    let node = smallest();
    establish(&node, 0, 7);
    for port in 100..400 {
        node.from_workload(CLIENT, &from_client(0, L4::Tcp(port, 80, SYN))).redirected();
    }
    goes_on(&node, 0, 7);
    assert!(node.flows() <= 9, "{} entries", node.flows());
}

/// Takes or gives back the lock of every set of IPv4.
fn toggle_locks(node: &Node) {
    let directory = node.maps().directory4();
    for set in 0..directory.capacity() {
        directory.set(set, &(directory.get(set).unwrap() ^ 1 << 63)).unwrap();
    }
}

#[test]
fn a_packet_that_meets_a_lock_is_dropped_and_its_connection_stays_what_it_is() {
    let node = Node::new();
    establish(&node, 0, 7);
    let entries = node.flows();
    // A way that is void must be decided on again.
    node.publish(&[workload(CLIENT)]);
    toggle_locks(&node);
    node.from_workload(CLIENT, &from_client(0, L4::Tcp(8, 80, SYN))).dropped(DropReason::FlowBusy);
    node.from_workload(CLIENT, &from_client(0, L4::Tcp(7, 80, ACK))).dropped(DropReason::FlowBusy);
    node.from_workload(SERVER, &from_server(0, L4::Tcp(80, 7, ACK))).dropped(DropReason::FlowBusy);
    assert_eq!(node.flows(), entries, "nothing came or went");
    toggle_locks(&node);
    node.from_workload(CLIENT, &from_client(0, L4::Tcp(7, 80, ACK))).redecided().redirected();
    goes_on(&node, 0, 7);
    node.from_workload(CLIENT, &from_client(0, L4::Tcp(8, 80, SYN))).missed().redirected();
}
