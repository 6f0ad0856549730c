// SPDX-License-Identifier: Apache-2.0
//! Nobody speaks for another: encapsulation towards nodes, sources from the uplink, the host's exemption, tricks of headers.

use weft_abi::{CLUSTER_NET, DropReason};
use weft_dataplane::{Arrival, Program};

use crate::{
    node::{
        CLIENT, CLIENT_IP, FAR_IP, HOST, HOST_IP, HOST_MAC, HOST_OTHER_IP, NATIVE_IP, NATIVE_MAC, NODE_IP, Node,
        OUTSIDE_IP, SERVER, SERVER_IP, STRANGER, VIP, VM, VXLAN_PORT, mac,
    },
    packet::{L4, SYN, frame, ip, ip_headers, v4},
};

/// From a workload to `dst`.
fn sent(family: usize, dst: &str, l4: L4) -> Vec<u8> {
    frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(dst)), l4, b"x")
}

/// From a neighbour on the wire.
fn received(src: &str, dst: &str, l4: L4) -> Vec<u8> {
    frame([2, 0, 0, 0, 9, 9], ip_headers(ip(src), ip(dst)), l4, b"x")
}

#[test]
fn workloads_do_not_encapsulate_towards_nodes() {
    let node = Node::new();
    for family in 0..2 {
        let service = ["10.96.0.13", "fd96::13"][family];
        node.set_service(service, 80, 17, 700, 1, &[(NODE_IP[family], VXLAN_PORT)]);
        for (dst, port) in [
            (HOST_IP[family], VXLAN_PORT),
            (HOST_OTHER_IP[family], VXLAN_PORT),
            (NODE_IP[family], VXLAN_PORT),
            (service, 80),
        ] {
            node.from_workload(CLIENT, &sent(family, dst, L4::Udp(4000, port))).dropped(DropReason::Encapsulated);
        }
        assert_eq!(node.flows(), 0);
        // An overlay of the workload's own.
        node.from_workload(CLIENT, &sent(family, OUTSIDE_IP[family], L4::Udp(4000, VXLAN_PORT))).redirected();
        node.from_workload(CLIENT, &sent(family, NODE_IP[family], L4::Udp(4000, VXLAN_PORT + 1))).redirected();
        node.from_workload(CLIENT, &sent(family, NODE_IP[family], L4::Tcp(4000, VXLAN_PORT, SYN))).redirected();
        node.flush();
    }
}

#[test]
fn encapsulated_packets_reach_the_address_that_nodes_know_and_no_other() {
    let node = Node::new();
    for family in 0..2 {
        let to = |dst| received(NODE_IP[family], dst, L4::Udp(4000, VXLAN_PORT));
        node.from_uplink(&to(HOST_IP[family])).passed(&to(HOST_IP[family]));
        node.from_uplink(&to(HOST_OTHER_IP[family])).dropped(DropReason::Encapsulated);
        node.from_uplink(&to(NODE_IP[family])).dropped(DropReason::Encapsulated);
        node.from_uplink(&to(OUTSIDE_IP[family])).passed(&to(OUTSIDE_IP[family]));
    }
}

#[test]
fn nobody_on_the_uplink_is_a_pod_of_the_overlay_a_service_or_this_node() {
    let node = Node::new();
    for family in 0..2 {
        // To a workload, to the host, to a Service by the host.
        for dst in [SERVER_IP[family], HOST_IP[family], VIP[family]] {
            for src in
                [FAR_IP[family], VIP[family], HOST_IP[family], CLIENT_IP[family], ["10.1.0.99", "fd01::99"][family]]
            {
                node.from_uplink(&received(src, dst, L4::Udp(4000, 8080))).dropped(DropReason::SourceAddress);
            }
        }
        for src in [OUTSIDE_IP[family], NODE_IP[family]] {
            node.from_uplink(&received(src, SERVER_IP[family], L4::Udp(4000, 8080))).redirected();
        }
    }
}

#[test]
fn a_pod_of_a_neighbour_is_heard_from_its_nodes_ethernet_address_on_every_path() {
    let node = Node::new();
    for family in 0..2 {
        let (pod, server) = (NATIVE_IP[family], SERVER_IP[family]);
        let asks = L4::Udp(4000, 8080);
        // A new flow, and to the host.
        for dst in [server, HOST_IP[family]] {
            node.from_uplink(&received(pod, dst, asks)).dropped(DropReason::SourceMac);
        }
        // Into one that stands, both ways round.
        let own = |l4, payload: &[u8]| frame(NATIVE_MAC, ip_headers(ip(pod), ip(server)), l4, payload);
        node.from_uplink(&own(asks, b"x")).redirected();
        node.from_uplink(&received(pod, server, asks)).dropped(DropReason::SourceMac);
        node.from_uplink(&own(asks, b"y")).redirected();
        let opened = frame(mac(SERVER), ip_headers(ip(server), ip(pod)), L4::Udp(5000, 53), b"x");
        node.from_workload(SERVER, &opened).redirected();
        let answer = L4::Udp(53, 5000);
        node.from_uplink(&received(pod, server, answer)).dropped(DropReason::SourceMac);
        node.from_uplink(&own(answer, b"x")).redirected();
    }
}

#[test]
fn the_hosts_exemption_is_for_packets_that_it_made() {
    let node = Node::new();
    // A policy without rules: nobody reaches the server.
    node.isolate(SERVER, 77, 0);
    for family in 0..2 {
        let probe = frame(HOST_MAC, ip_headers(ip(HOST_IP[family]), ip(SERVER_IP[family])), L4::Tcp(9, 80, SYN), b"");
        for received_by in [HOST, STRANGER] {
            let forwarded = Arrival { ifindex: HOST, received_by, ..Arrival::default() };
            node.send_as(Program::FromHost, &probe, forwarded).dropped(DropReason::PolicyIngress);
        }
        let pod = frame(HOST_MAC, ip_headers(ip(FAR_IP[family]), ip(SERVER_IP[family])), L4::Tcp(9, 80, SYN), b"");
        let forwarded = Arrival { ifindex: HOST, received_by: STRANGER, ..Arrival::default() };
        node.send_as(Program::FromHost, &pod, forwarded).dropped(DropReason::SourceAddress);
        node.from_host(&probe).redirected();
    }
}

#[test]
fn an_unspecified_address_is_nobodys() {
    let node = Node::new();
    ["0.0.0.0", "::"].into_iter().for_each(|unspecified| node.give(CLUSTER_NET, unspecified, CLIENT));
    for family in 0..2 {
        let unspecified = ip(["0.0.0.0", "::"][family]);
        for dst in [OUTSIDE_IP[family], SERVER_IP[family]] {
            let packet = frame(mac(CLIENT), ip_headers(unspecified, ip(dst)), L4::Udp(4000, 80), b"x");
            node.from_workload(CLIENT, &packet).dropped(DropReason::SourceAddress);
        }
    }
}

#[test]
fn routers_to_go_by_are_refused_and_other_options_are_not() {
    let node = Node::new();
    let gateway = v4(ip(HOST_IP[0]));
    // Loose and strict source route, the first behind padding; record route, router alert.
    let route = |kind: u8| [[kind, 7, 4].as_slice(), &gateway, &[0]].concat();
    for (options, refused) in [
        (route(131), true),
        (route(137), true),
        ([[1, 1, 1, 1].as_slice(), &route(131)].concat(), true),
        ([[148, 4, 0, 0].as_slice(), &route(137)].concat(), true),
        (route(7), false),
        (vec![148, 4, 0, 0], false),
    ] {
        let packet = with_options(&options);
        let outcome = node.from_workload(CLIENT, &packet);
        if refused {
            outcome.dropped(DropReason::SourceRoute);
        } else {
            outcome.redirected();
        }
    }
}

/// A UDP packet between two workloads with these IPv4 options.
fn with_options(options: &[u8]) -> Vec<u8> {
    let mut packet = sent(0, SERVER_IP[0], L4::Udp(4000, 80));
    packet.splice(34..34, options.iter().copied());
    packet[14] = 0x45 + u8::try_from(options.len() / 4).expect("short");
    let total = u16::try_from(packet.len() - 14).expect("short");
    packet[16..18].copy_from_slice(&total.to_be_bytes());
    packet[24..26].fill(0);
    let checksum = !crate::packet::sum(&[&packet[14..34 + options.len()]]);
    packet[24..26].copy_from_slice(&checksum.to_be_bytes());
    packet
}

#[test]
fn what_leads_nowhere_does_not_leave_by_the_default_route() {
    let node = Node::new();
    for dst in ["169.254.119.101", "fd77:6566:7400::1", "10.4.0.9", "fd04::9"] {
        let family = usize::from(dst.contains(':'));
        node.from_workload(CLIENT, &sent(family, dst, L4::Udp(4000, 80))).dropped(DropReason::NoRoute);
    }
    // 240.0.0.0/4 is unicast to Linux.
    node.from_workload(CLIENT, &sent(0, "240.1.2.3", L4::Udp(4000, 80))).redirected();
}

#[test]
fn absurdly_short_segments_are_refused() {
    let node = Node::new();
    for (segment, l4, refused) in [
        (1, L4::Tcp(9, 80, SYN), true),
        (47, L4::Tcp(9, 80, SYN), true),
        (48, L4::Tcp(9, 80, SYN), false),
        (1, L4::Udp(9, 80), false),
    ] {
        let packet = sent(0, SERVER_IP[0], l4);
        let arrival = Arrival { ifindex: CLIENT, received_by: CLIENT, segment, ..Arrival::default() };
        let outcome = node.send_as(Program::FromWorkload, &packet, arrival);
        if refused {
            outcome.dropped(DropReason::ChecksumOffload);
        } else {
            outcome.redirected();
        }
    }
    node.from_workload(VM, &sent(0, SERVER_IP[0], L4::Udp(9, 80))).dropped(DropReason::SourceMac);
}
