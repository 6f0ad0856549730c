// SPDX-License-Identifier: Apache-2.0
//! Workload to workload: source check, delivery on the node, by tunnel and natively.

use weft_abi::{Addr, ConnectionFlags, Deliver, DropReason, GATEWAY_MAC, OVERLAY_MAC, WayFlags, generation};
use weft_dataplane::Program;

use crate::{
    node::{
        CLIENT, CLIENT_IP, FAR_IP, HOST, HOST_IP, HOST_MAC, NATIVE_IP, NATIVE_MAC, Node, OVERLAY, SERVER, SERVER_IP,
        STRANGER, UPLINK, VM, VM_IP, delivers, key, mac, tunnel_end, workload,
    },
    packet::{ACK, L4, SYN, SYN_ACK, Tuple, frame, ip, ip_headers, tuple},
};

const ALL: [L4; 3] = [L4::Udp(4000, 53), L4::Tcp(4000, 53, SYN), L4::Echo(9)];

#[test]
fn a_workload_sends_from_its_own_addresses_only() {
    let node = Node::new();
    for family in 0..2 {
        for l4 in ALL {
            let headers = |src: &str| ip_headers(ip(src), ip(SERVER_IP[family]));
            let spoofed_mac = frame(mac(VM), headers(CLIENT_IP[family]), l4, b"x");
            node.from_workload(CLIENT, &spoofed_mac).dropped(DropReason::SourceMac);
            let spoofed = frame(mac(CLIENT), headers(VM_IP[family]), l4, b"x");
            node.from_workload(CLIENT, &spoofed).dropped(DropReason::SourceAddress);
            let good = frame(mac(CLIENT), headers(CLIENT_IP[family]), l4, b"x");
            node.from_workload(STRANGER, &good).dropped(DropReason::UnknownPort);
            assert_eq!(node.flows(), 0, "a refused packet leaves nothing");
            node.from_workload(CLIENT, &good).redirected();
            // An established flow does not take another sender's frames either.
            node.from_workload(CLIENT, &spoofed_mac).dropped(DropReason::SourceMac);
            node.flush();
        }
    }
}

#[test]
fn workloads_of_a_node_reach_each_other_and_the_second_packet_hits() {
    let node = Node::new();
    for family in 0..2 {
        for (ports, protocol, l4, back) in [
            ((4000, 53), 17, L4::Udp(4000, 53), L4::Udp(53, 4000)),
            ((4000, 80), 6, L4::Tcp(4000, 80, SYN), L4::Tcp(80, 4000, SYN_ACK)),
        ] {
            let packet = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(SERVER_IP[family])), l4, b"hello");
            let there = tuple(CLIENT_IP[family], ports.0, SERVER_IP[family], ports.1);
            for first in [true, false] {
                let outcome = node.from_workload(CLIENT, &packet);
                if first {
                    outcome.missed()
                } else {
                    outcome.hit()
                };
                outcome.marked(false);
                let seen = outcome.redirected();
                assert_eq!((seen.dst_mac, seen.src_mac), (mac(SERVER), GATEWAY_MAC));
                assert_eq!(seen.tuple, there);
            }
            let forward = node.flow(&key(CLIENT, protocol, there)).expect("an entry");
            delivers(&forward, Deliver::Peer, SERVER);
            assert_eq!(forward.way.flags, WayFlags::CHECK_MAC);
            assert_eq!((forward.connection.packets, forward.connection.bytes), (2, 2 * packet.len() as u64));
            let slots = (u32::from(forward.way.egress), u32::from(forward.way.ingress), forward.way.service);
            assert_eq!((slots, forward.way.generations), ((workload(CLIENT), workload(SERVER), 0), 0));
            let answer = frame(mac(SERVER), ip_headers(ip(SERVER_IP[family]), ip(CLIENT_IP[family])), back, b"hi");
            let outcome = node.from_workload(SERVER, &answer);
            outcome.hit();
            assert_eq!(outcome.redirected().dst_mac, mac(CLIENT));
            let reverse = Tuple { src: there.dst, sport: there.dport, dst: there.src, dport: there.sport };
            let reverse = node.flow(&key(SERVER, protocol, reverse)).expect("an entry");
            delivers(&reverse, Deliver::Peer, CLIENT);
            assert_eq!((reverse.way.flags, reverse.connection.flags), (WayFlags::CHECK_MAC, ConnectionFlags::REPLY));
            assert_eq!(reverse.connection.packets, 1);
            assert_eq!(node.flows(), 2);
            node.flush();
        }
    }
}

#[test]
fn an_echo_and_its_reply_are_one_flow() {
    let node = Node::new();
    for family in 0..2 {
        let echo = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(SERVER_IP[family])), L4::Echo(9), b"ping");
        node.from_workload(CLIENT, &echo).missed().redirected_unchanged(&echo);
        let reply =
            frame(mac(SERVER), ip_headers(ip(SERVER_IP[family]), ip(CLIENT_IP[family])), L4::EchoReply(9), b"ping");
        node.from_workload(SERVER, &reply).hit().redirected_unchanged(&reply);
    }
}

#[test]
fn a_vm_is_reached_through_its_tap_with_the_mark() {
    let node = Node::new();
    for family in 0..2 {
        let packet = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(VM_IP[family])), L4::Udp(1, 2), b"x");
        let outcome = node.from_workload(CLIENT, &packet);
        assert_eq!(outcome.marked(true).redirected().dst_mac, mac(VM));
        let there = tuple(CLIENT_IP[family], 1, VM_IP[family], 2);
        delivers(&node.flow(&key(CLIENT, 17, there)).expect("an entry"), Deliver::Port, VM);
        let back = frame(mac(VM), ip_headers(ip(VM_IP[family]), ip(CLIENT_IP[family])), L4::Udp(2, 1), b"x");
        let outcome = node.from_workload(VM, &back);
        assert_eq!(outcome.hit().marked(false).redirected().dst_mac, mac(CLIENT));
    }
}

#[test]
fn a_remote_workload_is_reached_through_the_tunnel() {
    let node = Node::new();
    for family in 0..2 {
        let packet = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(FAR_IP[family])), L4::Udp(1, 2), b"x");
        let seen = node.from_workload(CLIENT, &packet).redirected();
        assert_eq!((seen.dst_mac, seen.src_mac), (GATEWAY_MAC, OVERLAY_MAC));
        let there = tuple(CLIENT_IP[family], 1, FAR_IP[family], 2);
        assert_eq!(seen.tuple, there);
        let flow = node.flow(&key(CLIENT, 17, there)).expect("an entry");
        delivers(&flow, Deliver::Tunnel, OVERLAY);
        assert_eq!((flow.way.remote, u32::from(flow.way.ingress)), (tunnel_end(), generation::ROUTES));
        let back = tuple(FAR_IP[family], 2, CLIENT_IP[family], 1);
        let answers = node.flow(&key(weft_abi::OVERLAY, 17, back)).expect("an entry");
        delivers(&answers, Deliver::Peer, CLIENT);
        assert_eq!(answers.way.remote, tunnel_end(), "nobody else may encapsulate them");
    }
}

#[test]
fn a_remote_workload_is_reached_natively_and_answers_by_the_uplink() {
    let node = Node::new();
    for family in 0..2 {
        let packet = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(NATIVE_IP[family])), L4::Udp(1, 2), b"x");
        let there = tuple(CLIENT_IP[family], 1, NATIVE_IP[family], 2);
        assert_eq!(node.from_workload(CLIENT, &packet).redirected().tuple, there);
        let flow = node.flow(&key(CLIENT, 17, there)).expect("an entry");
        delivers(&flow, Deliver::Neighbour, UPLINK);
        let via = ["192.0.2.3", "2001:db8::3"][family];
        assert_eq!(flow.way.remote, Addr::from(ip(via)));
        let back = frame(NATIVE_MAC, ip_headers(ip(NATIVE_IP[family]), ip(CLIENT_IP[family])), L4::Udp(2, 1), b"x");
        assert_eq!(node.from_uplink(&back).hit().redirected().dst_mac, mac(CLIENT));
    }
}

#[test]
fn workload_and_host_reach_each_other() {
    let node = Node::new();
    for family in 0..2 {
        let packet = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(HOST_IP[family])), L4::Udp(1, 2), b"x");
        let seen = node.from_workload(CLIENT, &packet).redirected();
        assert_eq!((seen.dst_mac, seen.src_mac), (HOST_MAC, GATEWAY_MAC));
        let flow = node.flow(&key(CLIENT, 17, tuple(CLIENT_IP[family], 1, HOST_IP[family], 2))).expect("an entry");
        delivers(&flow, Deliver::Host, HOST);
        let back = frame(HOST_MAC, ip_headers(ip(HOST_IP[family]), ip(CLIENT_IP[family])), L4::Udp(2, 1), b"x");
        // From an egress hook `bpf_redirect_peer` does not work: out of the host's end, marked.
        let outcome = node.from_host(&back);
        assert_eq!(outcome.hit().marked(true).redirected().dst_mac, mac(CLIENT));
        let probe = frame(HOST_MAC, ip_headers(ip(HOST_IP[family]), ip(SERVER_IP[family])), L4::Tcp(9, 80, SYN), b"");
        assert_eq!(node.from_host(&probe).missed().marked(true).redirected().dst_mac, mac(SERVER));
        let flow = node.flow(&key(HOST, 6, tuple(HOST_IP[family], 9, SERVER_IP[family], 80))).expect("an entry");
        delivers(&flow, Deliver::Port, SERVER);
        let answer =
            frame(mac(SERVER), ip_headers(ip(SERVER_IP[family]), ip(HOST_IP[family])), L4::Tcp(80, 9, SYN_ACK), b"");
        assert_eq!(node.from_workload(SERVER, &answer).hit().redirected().dst_mac, HOST_MAC);
    }
}

#[test]
fn addresses_that_lead_nowhere_are_named() {
    let node = Node::new();
    for (destination, reason) in [
        ("10.1.0.99", DropReason::NoEndpoint),
        ("fd01::99", DropReason::NoEndpoint),
        ("10.96.7.7", DropReason::NoService),
        ("fd96::99", DropReason::NoService),
        ("127.0.0.1", DropReason::Multicast),
        ("255.255.255.255", DropReason::Multicast),
        ("fe80::1", DropReason::Multicast),
        ("ff02::1", DropReason::Multicast),
        ("::ffff:10.1.0.20", DropReason::BadHeader),
    ] {
        let destination = ip(destination);
        let family = usize::from(destination.is_ipv6());
        let packet = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), destination), L4::Tcp(1, 80, ACK), b"");
        node.from_workload(CLIENT, &packet).dropped(reason);
    }
    assert_eq!(node.flows(), 0);
}

/// A test run's packet has no tunnel metadata: it came by no node that could own its source.
#[test]
fn what_comes_out_of_the_tunnel_device_without_a_peer_is_dropped() {
    let node = Node::new();
    for family in 0..2 {
        let packet = frame(OVERLAY_MAC, ip_headers(ip(FAR_IP[family]), ip(CLIENT_IP[family])), L4::Udp(1, 2), b"x");
        node.send(Program::FromOverlay, OVERLAY, &packet).dropped(DropReason::TunnelPeer);
    }
}

#[test]
fn other_nodes_reach_workloads_by_the_uplink_and_nothing_else() {
    let node = Node::new();
    for family in 0..2 {
        let packet = |destination: &str| {
            frame(NATIVE_MAC, ip_headers(ip(NATIVE_IP[family]), ip(destination)), L4::Udp(1, 2), b"x")
        };
        assert_eq!(node.from_uplink(&packet(SERVER_IP[family])).redirected().dst_mac, mac(SERVER));
        let back = frame(mac(SERVER), ip_headers(ip(SERVER_IP[family]), ip(NATIVE_IP[family])), L4::Udp(2, 1), b"x");
        node.from_workload(SERVER, &back).hit().redirected();
        for host_business in [HOST_IP[family], FAR_IP[family]] {
            let packet = packet(host_business);
            node.from_uplink(&packet).passed(&packet);
        }
    }
}
