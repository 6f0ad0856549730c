// SPDX-License-Identifier: Apache-2.0
//! The life of a decision: changes of policy and Services, idle time, new connections on old five-tuples.

use std::net::UdpSocket;

use weft_abi::{DropReason, FlowState, TICK_SHIFT, Timeouts, generation};

use crate::{
    node::{
        CLIENT, CLIENT_IP, HOST, HOST_IP, LONG, NATIVE_IP, Node, OUTSIDE_IP, SERVER, SERVER_IP, SHOT, VIP, VM, VM_IP,
        key, mac, service_number, workload,
    },
    packet::{ACK, FIN_ACK, L4, SYN, SYN_ACK, Seen, frame, ip, ip_headers, tuple},
};

/// Any address of the host.
const UNSPECIFIED: [&str; 2] = ["0.0.0.0", "::"];

const INGRESS: u64 = 21;
const EGRESS: u64 = 22;

fn there(family: usize, l4: L4) -> Vec<u8> {
    frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(SERVER_IP[family])), l4, b"x")
}

fn back(family: usize, l4: L4) -> Vec<u8> {
    frame(mac(SERVER), ip_headers(ip(SERVER_IP[family]), ip(CLIENT_IP[family])), l4, b"x")
}

#[test]
fn a_policy_that_forbids_ends_an_established_flow_in_both_directions() {
    for family in 0..2 {
        // Who is isolated how, and what each direction is then dropped for.
        for (ifindex, ingress, egress, reason) in
            [(SERVER, INGRESS, 0, DropReason::PolicyIngress), (CLIENT, 0, EGRESS, DropReason::PolicyEgress)]
        {
            let node = Node::new();
            node.from_workload(CLIENT, &there(family, L4::Tcp(4000, 80, SYN))).redirected();
            node.from_workload(SERVER, &back(family, L4::Tcp(80, 4000, SYN_ACK))).redirected();
            node.from_workload(CLIENT, &there(family, L4::Tcp(4000, 80, ACK))).hit();
            node.isolate(ifindex, ingress, egress);
            node.publish(&[workload(ifindex)]);
            node.from_workload(CLIENT, &there(family, L4::Tcp(4000, 80, ACK))).redecided().dropped(reason);
            node.from_workload(SERVER, &back(family, L4::Tcp(80, 4000, ACK))).redecided().dropped(reason);
            // What is refused is remembered: nothing is decided, until a policy lets it go on.
            for _ in 0..2 {
                let again = node.from_workload(CLIENT, &there(family, L4::Tcp(4000, 80, ACK)));
                assert_eq!(again.dropped(reason).counts, []);
                let again = node.from_workload(SERVER, &back(family, L4::Tcp(80, 4000, ACK)));
                assert_eq!(again.dropped(reason).counts, []);
            }
            for policy in [INGRESS, EGRESS] {
                node.set_rules(policy, weft_abi::part::ANY, &[(6, 80, 80)]);
            }
            node.publish(&[workload(ifindex)]);
            node.from_workload(SERVER, &back(family, L4::Tcp(80, 4000, ACK))).redecided().redirected();
            node.from_workload(CLIENT, &there(family, L4::Tcp(4000, 80, ACK))).redecided().redirected();
            node.from_workload(CLIENT, &there(family, L4::Tcp(4000, 80, ACK))).hit().redirected();
            node.from_workload(SERVER, &back(family, L4::Tcp(80, 4000, ACK))).hit().redirected();
        }
    }
}

/// The agent's sweep goes by the clock itself, the programs by jiffies.
#[test]
fn a_flow_was_last_seen_now_as_the_kernels_clock_has_it() {
    let now = || {
        let clock = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).unwrap();
        u32::try_from(std::time::Duration::from(clock).as_nanos() >> TICK_SHIFT).unwrap()
    };
    let node = Node::new();
    let packet = there(0, L4::Udp(1, 2));
    let seen = key(CLIENT, 17, tuple(CLIENT_IP[0], 1, SERVER_IP[0], 2));
    node.from_workload(CLIENT, &packet).missed();
    let first = node.flow(&seen).unwrap().way.last_seen;
    assert!(first.abs_diff(now()) <= 1, "{first} for {}", now());
    std::thread::sleep(std::time::Duration::from_millis(2500));
    node.from_workload(CLIENT, &packet).hit();
    let second = node.flow(&seen).unwrap().way.last_seen;
    assert!(second.abs_diff(now()) <= 1 && second > first, "{second} for {}, after {first}", now());
}

#[test]
fn a_change_elsewhere_makes_no_flow_decide_again() {
    let node = Node::new();
    let packet = there(0, L4::Udp(1, 2));
    node.from_workload(CLIENT, &packet).missed();
    node.publish(&[workload(VM), 5000, generation::ROUTES]);
    node.from_workload(CLIENT, &packet).hit();
    node.publish(&[workload(SERVER)]);
    node.from_workload(CLIENT, &packet).redecided();
    node.from_workload(CLIENT, &packet).hit();
    // Counters go on.
    assert_eq!(
        node.flow(&key(CLIENT, 17, tuple(CLIENT_IP[0], 1, SERVER_IP[0], 2))).expect("an entry").connection.packets,
        4
    );
}

#[test]
fn a_route_that_moves_makes_flows_to_other_nodes_decide_again() {
    let node = Node::new();
    let packet = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[0]), ip(NATIVE_IP[0])), L4::Udp(1, 2), b"x");
    node.from_workload(CLIENT, &packet).missed();
    node.publish(&[generation::ROUTES]);
    node.from_workload(CLIENT, &packet).redecided();
}

/// Changes the backends of the Service to the VM and publishes that.
fn move_backends(node: &Node, family: usize) {
    for protocol in [6, 17] {
        node.set_service(VIP[family], 80, protocol, 500, 2, &[(VM_IP[family], 8080)]);
        node.publish_service(service_number(500, protocol, family));
    }
}

/// The server is no backend of the Service any more.
fn forget_server(node: &Node, family: usize) {
    for protocol in [6, 17] {
        let id = service_number(500, protocol, family);
        let name = weft_abi::BackendKey::new(id, ip(SERVER_IP[family]).into(), 8080_u16.to_be());
        assert!(node.maps().backends().remove(&name).unwrap());
        node.publish_service(id);
    }
}

fn to_service(node: &Node, family: usize, l4: L4) -> Seen {
    node.from_workload(CLIENT, &frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(VIP[family])), l4, b"x"))
        .redirected()
}

#[test]
fn every_flow_keeps_a_backend_that_serves_and_tcp_any() {
    for family in 0..2 {
        let node = Node::new();
        for l4 in [L4::Tcp(4000, 80, SYN), L4::Tcp(4000, 80, ACK), L4::Udp(4000, 80)] {
            assert_eq!(to_service(&node, family, l4).tuple.dst, ip(SERVER_IP[family]));
        }
        move_backends(&node, family);
        assert_eq!(to_service(&node, family, L4::Tcp(4000, 80, ACK)).tuple.dst, ip(SERVER_IP[family]));
        // The first one serves as well: only new flows may go elsewhere.
        assert_eq!(to_service(&node, family, L4::Udp(4000, 80)).tuple.dst, ip(SERVER_IP[family]));
        assert_eq!(to_service(&node, family, L4::Udp(4001, 80)).tuple.dst, ip(VM_IP[family]));
        forget_server(&node, family);
        assert_eq!(to_service(&node, family, L4::Udp(4000, 80)).tuple.dst, ip(VM_IP[family]));
        assert_eq!(to_service(&node, family, L4::Tcp(4000, 80, ACK)).tuple.dst, ip(SERVER_IP[family]));
        // A new connection takes the new one, also on a five-tuple that had an established one.
        assert_eq!(to_service(&node, family, L4::Tcp(4001, 80, SYN)).tuple.dst, ip(VM_IP[family]));
        let seen = to_service(&node, family, L4::Tcp(4000, 80, SYN));
        assert_eq!((seen.tuple.dst, seen.dst_mac), (ip(VM_IP[family]), mac(VM)));
    }
}

#[test]
fn a_retransmitted_syn_keeps_its_backend() {
    let node = Node::new();
    to_service(&node, 0, L4::Tcp(4000, 80, SYN));
    move_backends(&node, 0);
    assert_eq!(to_service(&node, 0, L4::Tcp(4000, 80, SYN)).tuple.dst, ip(SERVER_IP[0]));
}

/// As kube-proxy leaves it: who is connected stays so, and nobody connects any more.
#[test]
fn a_service_that_is_gone_keeps_established_tcp_and_nothing_else() {
    for family in 0..2 {
        let node = Node::new();
        for l4 in [L4::Tcp(4000, 80, SYN), L4::Tcp(4000, 80, ACK), L4::Udp(4000, 80)] {
            to_service(&node, family, l4);
        }
        for protocol in [6, 17] {
            let addr = ip(VIP[family]).into();
            let key = weft_abi::FrontendKey::of_cluster(addr, 80_u16.to_be(), protocol);
            assert!(node.maps().frontends().remove(&key).unwrap());
            node.publish_service(service_number(500, protocol, family));
        }
        assert!(
            node.maps()
                .frontends()
                .remove(&weft_abi::FrontendKey::of_address(weft_abi::CLUSTER_NET, ip(VIP[family]).into()))
                .unwrap()
        );
        assert_eq!(to_service(&node, family, L4::Tcp(4000, 80, ACK)).tuple.dst, ip(SERVER_IP[family]));
        let answer = node.from_workload(SERVER, &back(family, L4::Tcp(8080, 4000, ACK))).redirected();
        assert_eq!(answer.tuple, tuple(VIP[family], 80, CLIENT_IP[family], 4000));
        for l4 in [L4::Udp(4000, 80), L4::Tcp(4000, 80, SYN), L4::Tcp(4001, 80, ACK)] {
            let packet = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(VIP[family])), l4, b"x");
            node.from_workload(CLIENT, &packet).dropped(DropReason::NoService);
        }
    }
}

#[test]
fn tcp_states_follow_the_packets() {
    let node = Node::new();
    let key = key(CLIENT, 6, tuple(CLIENT_IP[0], 4000, SERVER_IP[0], 80));
    for (flags, state) in
        [(SYN, FlowState::New), (ACK, FlowState::Established), (FIN_ACK, FlowState::Closing), (ACK, FlowState::Closing)]
    {
        node.from_workload(CLIENT, &there(0, L4::Tcp(4000, 80, flags))).redirected();
        assert_eq!(node.flow(&key).expect("an entry").connection.state, state as u8);
    }
    // Also of a connection that was there before the entry.
    node.flush();
    node.from_workload(CLIENT, &there(0, L4::Tcp(4000, 80, ACK))).redirected();
    assert_eq!(node.flow(&key).expect("an entry").connection.state, FlowState::Established as u8);
}

#[test]
fn an_idle_entry_counts_as_long_as_the_other_direction_lives() {
    let node = Node::new();
    let reverse = key(SERVER, 6, tuple(SERVER_IP[0], 8080, CLIENT_IP[0], 4000));
    to_service(&node, 0, L4::Tcp(4000, 80, SYN));
    to_service(&node, 0, L4::Tcp(4000, 80, ACK));
    // The server was silent since its SYN-ACK; the client was not.
    let mut flow = node.flow(&reverse).expect("an entry");
    flow.way.last_seen = flow.way.last_seen.wrapping_sub(LONG);
    flow.connection.state = FlowState::New as u8;
    node.set_flow(&reverse, &flow);
    let answer = back(0, L4::Tcp(8080, 4000, ACK));
    let outcome = node.from_workload(SERVER, &answer);
    assert_eq!(outcome.redecided().redirected().tuple, tuple(VIP[0], 80, CLIENT_IP[0], 4000));
    assert_eq!(node.from_workload(SERVER, &answer).hit().redirected().tuple.src, ip(VIP[0]));
    // Both silent: over. What the server sends now is a packet of its own.
    node.age();
    let outcome = node.from_workload(SERVER, &answer);
    assert_eq!(outcome.redecided().redirected().tuple, tuple(SERVER_IP[0], 8080, CLIENT_IP[0], 4000));
}

#[test]
fn established_tcp_lives_as_long_as_is_configured() {
    let node = Node::new();
    let answer = back(0, L4::Tcp(8080, 4000, ACK));
    for flags in [SYN, ACK] {
        to_service(&node, 0, L4::Tcp(4000, 80, flags));
    }
    let answered = || node.from_workload(SERVER, &answer).redirected().tuple;
    assert_eq!(answered(), tuple(VIP[0], 80, CLIENT_IP[0], 4000));
    node.age_by(Timeouts::DEFAULT.established - 1);
    assert_eq!(node.from_workload(SERVER, &answer).hit().redirected().tuple.src, ip(VIP[0]));
    node.reconfigure(|config| config.timeouts.established = 100);
    node.age_by(99);
    assert_eq!(answered(), tuple(VIP[0], 80, CLIENT_IP[0], 4000));
    // Over: what the server sends now is a packet of its own.
    node.age_by(101);
    assert_eq!(answered(), tuple(SERVER_IP[0], 8080, CLIENT_IP[0], 4000));
}

#[test]
fn an_idle_flow_decides_anew() {
    let node = Node::new();
    let packet = there(0, L4::Udp(1, 2));
    node.from_workload(CLIENT, &packet).redirected();
    node.age();
    node.isolate(SERVER, INGRESS, 0);
    // No generation was published: idle alone makes it decide.
    assert_eq!(node.from_workload(CLIENT, &packet).redecided().action, SHOT);
}

/// While connections of another version come, what no entry is for may be of one of them; the host's own goes on.
#[test]
fn what_is_unknown_is_held_while_connections_are_taken_over() {
    for family in 0..2 {
        let node = Node::new();
        node.from_workload(CLIENT, &there(family, L4::Udp(4000, 80))).redirected();
        node.maps().takeover().set(0, &u64::MAX).expect("write");
        node.from_workload(CLIENT, &there(family, L4::Udp(4000, 80))).hit().redirected();
        node.from_workload(SERVER, &back(family, L4::Udp(80, 4000))).hit().redirected();
        for l4 in [L4::Tcp(4001, 80, SYN), L4::Tcp(4001, 80, ACK), L4::Udp(4001, 80), L4::Echo(7)] {
            node.from_workload(CLIENT, &there(family, l4)).dropped(DropReason::Takeover);
        }
        let to_host =
            frame(mac(HOST), ip_headers(ip(OUTSIDE_IP[family]), ip(HOST_IP[family])), L4::Udp(53, 61_000), b"x");
        node.from_uplink(&to_host).dropped(DropReason::Takeover);
        let socket = UdpSocket::bind((ip(UNSPECIFIED[family]), 61_000)).expect("bind");
        node.from_uplink(&to_host).passed(&to_host);
        drop(socket);
        node.maps().takeover().set(0, &1).expect("write");
        node.from_uplink(&to_host).passed(&to_host);
        node.from_workload(CLIENT, &there(family, L4::Udp(4001, 80))).redirected();
    }
}
