// SPDX-License-Identifier: Apache-2.0
//! Addresses of a port, as many as it has, and networks that have the same ones.

use weft_abi::{CLUSTER_NET, Counter, Deliver, DropReason, Frontend, FrontendKey, PortKind};

use crate::{
    link::{arp, neighbour},
    node::{
        CLIENT, CLIENT_IP, FAR_IP, HOST_IP, HOST_MAC, Node, OUTSIDE_IP, SERVER, SERVER_IP, STRANGER, VIP, VM, VM_IP,
        address_key, delivers, key, mac, service_number,
    },
    packet::{L4, frame, ip, ip_headers, tuple},
};

/// More addresses of the client.
const MORE: [[&str; 2]; 2] = [["10.1.0.11", "172.20.0.9"], ["fd01::11", "2001:db8:20::9"]];

/// A network beside the cluster's.
const OTHER: u32 = 7;

fn udp(sender: u32, src: &str, dst: &str, ports: (u16, u16)) -> Vec<u8> {
    frame(mac(sender), ip_headers(ip(src), ip(dst)), L4::Udp(ports.0, ports.1), b"x")
}

#[test]
fn a_port_sends_and_is_reached_with_every_address_that_leads_to_it() {
    let node = Node::new();
    for family in 0..2 {
        for own in MORE[family] {
            let there = udp(CLIENT, own, SERVER_IP[family], (4000, 53));
            node.from_workload(CLIENT, &there).dropped(DropReason::SourceAddress);
            node.give(CLUSTER_NET, own, CLIENT);
            node.from_workload(CLIENT, &there).missed().redirected();
            let back = udp(SERVER, SERVER_IP[family], own, (53, 4000));
            assert_eq!(node.from_workload(SERVER, &back).hit().redirected().dst_mac, mac(CLIENT));
            let new = udp(SERVER, SERVER_IP[family], own, (53, 4001));
            assert_eq!(node.from_workload(SERVER, &new).missed().redirected().dst_mac, mac(CLIENT));
            // Nobody else's for that.
            node.from_workload(SERVER, &udp(SERVER, own, CLIENT_IP[family], (1, 2))).dropped(DropReason::SourceAddress);
            assert!(node.maps().addresses().remove(&address_key(CLUSTER_NET, own)).unwrap());
            let taken_back = udp(CLIENT, own, SERVER_IP[family], (4002, 53));
            node.from_workload(CLIENT, &taken_back).dropped(DropReason::SourceAddress);
        }
        let first = udp(CLIENT, CLIENT_IP[family], SERVER_IP[family], (4000, 53));
        node.from_workload(CLIENT, &first).missed().redirected();
    }
}

#[test]
fn neighbours_are_answered_whatever_address_of_the_port_asks_and_its_own_are_its_own() {
    let node = Node::new();
    for [own, solicits] in [["10.1.0.11", "fd01::11"], ["172.20.0.9", "2001:db8:20::9"]] {
        let packets = [
            (arp(1, mac(CLIENT), own, "10.1.0.99"), own),
            (neighbour(135, solicits, "fd01::99", mac(CLIENT)), solicits),
        ];
        for (packet, address) in &packets {
            node.from_workload(CLIENT, packet).dropped(DropReason::ArpSpoofed);
            node.give(CLUSTER_NET, address, CLIENT);
            assert_eq!(node.from_workload(CLIENT, packet).counts, [(Counter::ArpAnswered, 1)]);
        }
        node.from_workload(CLIENT, &arp(1, mac(CLIENT), CLIENT_IP[0], own)).consumed();
        node.from_workload(CLIENT, &neighbour(135, CLIENT_IP[1], solicits, mac(CLIENT))).consumed();
    }
}

/// A client and a server of another network, with the addresses of those of the cluster's.
fn node_of_two_networks() -> Node {
    let node = Node::new();
    for address in VM_IP {
        assert!(node.maps().addresses().remove(&address_key(CLUSTER_NET, address)).unwrap());
    }
    node.add_port_in(OTHER, STRANGER, PortKind::Veth, CLIENT_IP);
    node.add_port_in(OTHER, VM, PortKind::Tap, SERVER_IP);
    node
}

#[test]
fn workloads_of_different_networks_have_the_same_addresses_and_never_meet() {
    let node = node_of_two_networks();
    for family in 0..2 {
        for (from, to, deliver) in [(CLIENT, SERVER, Deliver::Peer), (STRANGER, VM, Deliver::Port)] {
            let there = udp(from, CLIENT_IP[family], SERVER_IP[family], (4000, 53));
            assert_eq!(node.from_workload(from, &there).missed().redirected().dst_mac, mac(to));
            let there = tuple(CLIENT_IP[family], 4000, SERVER_IP[family], 53);
            delivers(&node.flow(&key(from, 17, there)).expect("an entry"), deliver, to);
            let back = udp(to, SERVER_IP[family], CLIENT_IP[family], (53, 4000));
            assert_eq!(node.from_workload(to, &back).hit().redirected().dst_mac, mac(from));
        }
        assert_eq!(node.flows(), 4);
        // The host, other nodes and the outside know the cluster's alone.
        let from_host = frame(HOST_MAC, ip_headers(ip(HOST_IP[family]), ip(SERVER_IP[family])), L4::Udp(1, 2), b"x");
        assert_eq!(node.from_host(&from_host).redirected().dst_mac, mac(SERVER));
        node.flush();
    }
}

#[test]
fn a_network_ends_where_its_own_addresses_do() {
    let node = node_of_two_networks();
    for family in 0..2 {
        for beyond in [FAR_IP[family], OUTSIDE_IP[family], HOST_IP[family], VIP[family], VM_IP[family]] {
            let packet = udp(STRANGER, CLIENT_IP[family], beyond, (4000, 80));
            node.from_workload(STRANGER, &packet).dropped(DropReason::NoRoute);
        }
        assert_eq!(node.flows(), 0);
    }
}

#[test]
fn an_address_does_not_lead_to_a_port_of_another_network() {
    let node = node_of_two_networks();
    for family in 0..2 {
        node.give(CLUSTER_NET, VM_IP[family], VM);
        let packet = udp(CLIENT, CLIENT_IP[family], VM_IP[family], (4000, 80));
        node.from_workload(CLIENT, &packet).dropped(DropReason::NoEndpoint);
    }
}

#[test]
fn services_are_of_a_network() {
    let node = node_of_two_networks();
    for family in 0..2 {
        node.set_service(VIP[family], 80, 17, 700, 1, &[(SERVER_IP[family], 8080)]);
        let service = service_number(700, 17, family);
        let frontend = FrontendKey::new(OTHER, ip(VIP[family]).into(), 80_u16.to_be(), 17);
        node.maps().frontends().insert(&frontend, &Frontend { service, flags: 0 }).unwrap();
        for (from, to) in [(CLIENT, SERVER), (STRANGER, VM)] {
            let there = udp(from, CLIENT_IP[family], VIP[family], (4000, 80));
            let seen = node.from_workload(from, &there).missed().redirected();
            assert_eq!((seen.dst_mac, seen.tuple), (mac(to), tuple(CLIENT_IP[family], 4000, SERVER_IP[family], 8080)));
            let back = udp(to, SERVER_IP[family], CLIENT_IP[family], (8080, 4000));
            let seen = node.from_workload(to, &back).hit().redirected();
            assert_eq!((seen.dst_mac, seen.tuple), (mac(from), tuple(VIP[family], 80, CLIENT_IP[family], 4000)));
        }
    }
}

#[test]
fn policy_knows_a_peer_by_its_network() {
    let node = node_of_two_networks();
    for server in [SERVER, VM] {
        node.isolate(server, 9, 0);
    }
    let known = weft_abi::part::TERM | 5 << 16;
    node.set_rules(9, known, &[(17, 53, 53)]);
    for family in 0..2 {
        node.identify(CLIENT_IP[family], known);
        for (from, is_known) in [(CLIENT, true), (STRANGER, false)] {
            let outcome = node.from_workload(from, &udp(from, CLIENT_IP[family], SERVER_IP[family], (4000, 53)));
            if is_known {
                outcome.redirected();
            } else {
                outcome.dropped(DropReason::PolicyIngress);
            }
        }
        // And there.
        node.classify(OTHER, CLIENT_IP[family], &[known]);
        let again = udp(STRANGER, CLIENT_IP[family], SERVER_IP[family], (4001, 53));
        assert_eq!(node.from_workload(STRANGER, &again).redirected().dst_mac, mac(VM));
    }
}
