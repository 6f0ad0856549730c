// SPDX-License-Identifier: Apache-2.0
//! Which backend a new connection gets: in proportion to weights, by a hash of the client, or by connections.

use std::net::IpAddr;

use weft_abi::{Addr, Algorithm, BackendKey, FlowKey6, MemberKey, RING_FAN_OUT, RingNode};
use weft_logic::ring;

use crate::{
    node::{CLIENT, CLIENT_IP, FAR_IP, HOST, HOST_IP, HOST_MAC, Node, SERVER_IP, VM, VM_IP, mac, service_number},
    packet::{ACK, FIN_ACK, L4, RST, SYN, frame, ip, ip_headers},
};

const VIP: [&str; 2] = ["10.96.0.51", "fd96::51"];
const ID: u32 = 700;
const SEED: u64 = 0x0123_4567_89ab_cdef;

fn service(family: usize) -> u32 {
    service_number(ID, 6, family)
}

/// A Service of TCP with two backends in both families.
fn node(algorithm: Algorithm) -> Node {
    let node = Node::new();
    for family in 0..2 {
        let backends = [(SERVER_IP[family], 8080), (FAR_IP[family], 8080)];
        node.set_service(VIP[family], 80, 6, ID, 1, &backends);
        change(&node, family, |balancer| {
            (balancer.algorithm, balancer.seed) = (algorithm as u32, SEED);
        });
    }
    node
}

fn change(node: &Node, family: usize, change: impl FnOnce(&mut weft_abi::Balancer)) {
    let mut balancer = node.maps().balancers().get(&service(family)).unwrap().expect("a balancer");
    change(&mut balancer);
    node.maps().balancers().insert(&service(family), &balancer).unwrap();
}

/// A ring of one level, whose arcs end there and belong to these members.
fn set_ring(node: &Node, family: usize, arcs: &[(u32, u32)]) {
    let (_, last) = *arcs.last().unwrap();
    let mut ring = RingNode { ends: [u32::MAX; RING_FAN_OUT], next: [last; RING_FAN_OUT] };
    for (place, (end, member)) in arcs.iter().enumerate() {
        (ring.ends[place], ring.next[place]) = (*end, *member);
    }
    node.maps().rings().insert(&MemberKey { service: service(family), set: 1, index: 0 }, &ring).unwrap();
    change(node, family, |balancer| {
        for set in [&mut balancer.internal, &mut balancer.external, &mut balancer.cluster] {
            set.levels = 1;
        }
    });
}

/// Sends to the Service; who gets it.
fn send(node: &Node, ifindex: u32, source: &str, family: usize, (sport, flags): (u16, u8)) -> IpAddr {
    let mac = if ifindex == HOST { HOST_MAC } else { mac(ifindex) };
    let packet = frame(mac, ip_headers(ip(source), ip(VIP[family])), L4::Tcp(sport, 80, flags), b"");
    let outcome = if ifindex == HOST { node.from_host(&packet) } else { node.from_workload(ifindex, &packet) };
    outcome.redirected().tuple.dst
}

fn connections(node: &Node, family: usize, backend: &str) -> Option<u32> {
    let backend = BackendKey::new(service(family), Addr::from(ip(backend)), 8080_u16.to_be());
    node.maps().loads().get(&backend).unwrap()
}

/// By chance one of 400 connections with odds of 1 to 7 is out of these bounds once in 10^9 times.
#[test]
fn a_backend_gets_its_part_of_new_connections() {
    let node = node(Algorithm::Random);
    for family in 0..2 {
        set_ring(&node, family, &[(u32::MAX / 8, 0), (u32::MAX, 1)]);
        let sent = (1000..1400).map(|sport| send(&node, CLIENT, CLIENT_IP[family], family, (sport, SYN)));
        let of_first = sent.filter(|backend| *backend == ip(SERVER_IP[family])).count();
        assert!((10..=92).contains(&of_first), "{of_first} of 400");
    }
}

#[test]
fn a_client_has_its_place_on_the_ring_whoever_it_is() {
    let node = node(Algorithm::Consistent);
    let arcs = [(0x1fff_ffff, 1), (0x5fff_ffff, 0), (0xdfff_ffff, 1), (u32::MAX, 0)];
    for family in 0..2 {
        set_ring(&node, family, &arcs);
        let backends = [SERVER_IP[family], FAR_IP[family]].map(ip);
        for by_address in [false, true] {
            change(&node, family, |balancer| {
                (balancer.affinity, balancer.name) = (by_address.into(), 77);
            });
            for (ifindex, address) in [(CLIENT, CLIENT_IP), (VM, VM_IP), (HOST, HOST_IP)] {
                for sport in 0..64_u16 {
                    let sport = sport + if by_address { 3000 } else { 2000 };
                    let key = FlowKey6 {
                        src: Addr::from(ip(address[family])),
                        sport: sport.to_be(),
                        protocol: 6,
                        ..FlowKey6::default()
                    };
                    let position = ring::position(SEED, &key, by_address);
                    let (_, member) = arcs.iter().find(|(end, _)| *end >= position).unwrap();
                    let found = send(&node, ifindex, address[family], family, (sport, SYN));
                    assert_eq!(found, backends[*member as usize], "{address:?} {sport} at {position:#x}");
                }
            }
        }
    }
}

#[test]
fn a_ring_that_has_gone_refuses_and_chooses_nobody() {
    let node = node(Algorithm::Consistent);
    set_ring(&node, 0, &[(u32::MAX, 0)]);
    node.maps().rings().remove(&MemberKey { service: service(0), set: 1, index: 0 }).unwrap();
    let packet = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[0]), ip(VIP[0])), L4::Tcp(1000, 80, SYN), b"");
    let outcome = node.from_workload(CLIENT, &packet);
    assert_eq!(outcome.drops, [(weft_abi::DropReason::NoBackend, 1)]);
}

#[test]
fn the_backend_with_fewer_connections_for_its_weight_is_chosen() {
    let node = node(Algorithm::LeastLoaded);
    for family in 0..2 {
        for sport in 1000..1100 {
            send(&node, CLIENT, CLIENT_IP[family], family, (sport, SYN));
        }
        let counted = [SERVER_IP[family], FAR_IP[family]].map(|backend| connections(&node, family, backend).unwrap());
        assert_eq!(counted.iter().sum::<u32>(), 100);
        // Two by chance are one and the same half of the time: the difference is a walk that is drawn back.
        assert!(counted[0].abs_diff(counted[1]) < 30, "{counted:?}");
        // Where one has many more, only chance of both choices leads there.
        let busy = BackendKey::new(service(family), Addr::from(ip(SERVER_IP[family])), 8080_u16.to_be());
        node.maps().loads().insert(&busy, &1000).unwrap();
        let sent = (2000..2100).map(|sport| send(&node, CLIENT, CLIENT_IP[family], family, (sport, SYN)));
        let of_busy = sent.filter(|backend| *backend == ip(SERVER_IP[family])).count();
        assert!(of_busy < 60, "{of_busy} of 100");
    }
}

#[test]
fn connections_count_until_their_opener_closes_them() {
    let node = node(Algorithm::LeastLoaded);
    for family in 0..2 {
        // One backend is left.
        node.set_service(VIP[family], 80, 6, ID, 1, &[(SERVER_IP[family], 8080)]);
        change(&node, family, |balancer| balancer.algorithm = Algorithm::LeastLoaded as u32);
        let packet = |sport, flags| {
            send(&node, CLIENT, CLIENT_IP[family], family, (sport, flags));
            connections(&node, family, SERVER_IP[family])
        };
        assert_eq!(packet(1000, SYN), Some(1));
        assert_eq!([packet(1000, SYN), packet(1000, ACK)], [Some(1); 2], "once each");
        assert_eq!(packet(1001, SYN), Some(2));
        assert_eq!(packet(1001, ACK), Some(2));
        // What is decided again stays counted.
        node.publish_service(service(family));
        assert_eq!(packet(1001, ACK), Some(2));
        assert_eq!(packet(1000, FIN_ACK), Some(1));
        assert_eq!(packet(1000, ACK), Some(1), "once");
        assert_eq!(packet(1001, RST), Some(0));
        assert_eq!(packet(1001, RST), Some(0));
    }
    // Nobody asks for them.
    let node = self::node(Algorithm::Random);
    send(&node, CLIENT, CLIENT_IP[0], 0, (1000, SYN));
    assert!(node.maps().loads().is_empty().unwrap());
}
