// SPDX-License-Identifier: Apache-2.0
//! `sessionAffinity: ClientIP`: which backend a client has that has been there before.

use std::net::IpAddr;

use weft_abi::{
    Addr, Affinity, AffinityKey, BackendFlags, BackendKey, CLUSTER_NET, DropReason, Frontend, FrontendFlags,
};

use crate::{
    node::{
        CLIENT, CLIENT_IP, FAR_IP, HOST, HOST_IP, HOST_MAC, Node, Outcome, SERVER, SERVER_IP, VM, VM_IP, mac,
        service_number,
    },
    packet::{ACK, L4, SYN, frame, ip, ip_headers},
};

const NAME: u64 = 0x1234_5678_9abc_def0;
/// Long, and nobody's clock is slow enough for a test to be as long.
const TIMEOUT: u32 = 10_000;
/// New connections that show a choice: by chance all of them go to one of two backends once in 2^39 times.
const MANY: u16 = 40;

const VIP: [&str; 2] = ["10.96.0.50", "fd96::50"];
const ID: u32 = 2000;

/// Who sends, by which port, with which Ethernet address.
type Client = (u32, [&'static str; 2]);
const CLIENTS: [Client; 3] = [(CLIENT, CLIENT_IP), (VM, VM_IP), (HOST, HOST_IP)];

fn send(node: &Node, (ifindex, source): Client, family: usize, vip: &str, l4: L4) -> Outcome {
    let mac = if ifindex == HOST { HOST_MAC } else { mac(ifindex) };
    let packet = frame(mac, ip_headers(ip(source[family]), ip(vip)), l4, b"");
    if ifindex == HOST { node.from_host(&packet) } else { node.from_workload(ifindex, &packet) }
}

/// The backend that a new connection has.
fn backend(node: &Node, client: Client, family: usize, protocol: u8, sport: u16) -> IpAddr {
    let l4 = if protocol == 6 { L4::Tcp(sport, 80, SYN) } else { L4::Udp(sport, 80) };
    send(node, client, family, VIP[family], l4).redirected().tuple.dst
}

/// The backends that so many new connections have, each once.
fn backends(node: &Node, client: Client, family: usize, sports: std::ops::Range<u16>) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = sports.map(|sport| backend(node, client, family, 6, sport)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn service(family: usize, protocol: u8) -> u32 {
    service_number(ID, protocol, family)
}

/// Clients keep their backend for so many ticks; 0: they do not.
fn keep(node: &Node, service: u32, name: u64, affinity: u32) {
    let mut balancer = node.maps().balancers().get(&service).unwrap().expect("a balancer");
    (balancer.affinity, balancer.name) = (affinity, name);
    node.maps().balancers().insert(&service, &balancer).unwrap();
}

/// A Service on this node's and another node's backends, of both families and protocols, which keeps its clients.
fn node() -> Node {
    let node = Node::new();
    for family in 0..2 {
        for (protocol, name) in [(6, NAME), (17, NAME + 2)] {
            serve(&node, family, protocol, 1, &[SERVER_IP[family], FAR_IP[family]]);
            keep(&node, service(family, protocol), name + family as u64, TIMEOUT);
        }
    }
    node
}

fn serve(node: &Node, family: usize, protocol: u8, set: u32, backends: &[&str]) {
    let backends: Vec<_> = backends.iter().map(|backend| (*backend, 8080)).collect();
    node.set_service(VIP[family], 80, protocol, ID, set, &backends);
}

fn key(client: Client, family: usize) -> AffinityKey {
    AffinityKey::new(NAME + family as u64, CLUSTER_NET, Addr::from(ip(client.1[family])))
}

fn remembered(node: &Node, client: Client, family: usize) -> Affinity {
    node.maps().affinities().get(&key(client, family)).unwrap().expect("it is remembered")
}

/// What the map has of the client, with this age.
fn aged(node: &Node, client: Client, family: usize, ticks: u32) {
    let mut entry = remembered(node, client, family);
    entry.last = entry.last.wrapping_sub(ticks);
    node.maps().affinities().insert(&key(client, family), &entry).unwrap();
}

/// What is told of a backend.
fn set_flags(node: &Node, service: u32, backend: IpAddr, flags: u32) {
    let name = BackendKey::new(service, Addr::from(backend), 8080_u16.to_be());
    node.maps().backends().insert(&name, &flags).unwrap();
}

#[test]
fn a_client_keeps_its_backend_whoever_and_wherever_it_is() {
    let node = node();
    for family in 0..2 {
        for client in CLIENTS {
            let first = backend(&node, client, family, 6, 1000);
            assert_eq!(backends(&node, client, family, 1001..1000 + MANY), [first], "{client:?}");
            let Affinity { addr, port, .. } = remembered(&node, client, family);
            assert_eq!((addr, port), (Addr::from(first), 8080_u16.to_be()));
            let first = backend(&node, client, family, 17, 1000);
            for sport in 1001..1000 + MANY {
                assert_eq!(backend(&node, client, family, 17, sport), first, "{client:?}");
            }
        }
    }
    // One for each client, protocol and family.
    assert_eq!(node.maps().affinities().len().unwrap(), 12);
}

/// Everybody has his own backend, and on each Service port: all four ways round.
#[test]
fn clients_and_service_ports_are_kept_apart() {
    let node = node();
    backend(&node, CLIENTS[2], 0, 6, 1000);
    let now = remembered(&node, CLIENTS[2], 0).last;
    for turn in 0..2 {
        let of_client = |number: usize| ip([FAR_IP[0], SERVER_IP[0]][(number + turn) % 2]);
        for number in 0..2 {
            let entry = Affinity { addr: Addr::from(of_client(number)), port: 8080_u16.to_be(), pad: 0, last: now };
            node.maps().affinities().insert(&key(CLIENTS[number], 0), &entry).unwrap();
        }
        for number in 0..2 {
            let sport = 2000 + 100 * turn as u16;
            assert_eq!(backends(&node, CLIENTS[number], 0, sport..sport + MANY), [of_client(number)]);
        }
    }
    // By another name nobody is known.
    let entries = node.maps().affinities().len().unwrap();
    keep(&node, service(0, 6), NAME + 77, TIMEOUT);
    backend(&node, CLIENTS[0], 0, 6, 3000);
    assert_eq!(node.maps().affinities().len().unwrap(), entries + 1);
}

#[test]
fn a_service_without_affinity_remembers_nobody() {
    let node = node();
    keep(&node, service(0, 6), 0, 0);
    assert_eq!(backends(&node, CLIENTS[0], 0, 1000..1000 + MANY).len(), 2);
    assert_eq!(node.maps().affinities().len().unwrap(), 0);
}

/// The timeout slides: each new connection begins it anew, and no other packet does.
#[test]
fn a_client_is_forgotten_after_the_timeout_and_not_before() {
    let node = node();
    let client = CLIENTS[0];
    let first = backend(&node, client, 0, 6, 1000);
    for sport in 1001..1000 + MANY {
        // The test may take ticks of its own.
        aged(&node, client, 0, TIMEOUT - 100);
        assert_eq!(backend(&node, client, 0, 6, sport), first, "renewed by each");
    }
    let before = remembered(&node, client, 0).last;
    aged(&node, client, 0, 100);
    let packet = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[0]), ip(VIP[0])), L4::Tcp(1000, 80, ACK), b"");
    node.from_workload(CLIENT, &packet).hit().redirected();
    assert_eq!(remembered(&node, client, 0).last, before.wrapping_sub(100), "not a new connection");
    let mut seen = Vec::new();
    for sport in 2000..2000 + MANY {
        aged(&node, client, 0, TIMEOUT + 1);
        seen.push(backend(&node, client, 0, 6, sport));
    }
    assert!(seen.contains(&ip(SERVER_IP[0])) && seen.contains(&ip(FAR_IP[0])), "{seen:?}");
}

#[test]
fn a_shorter_timeout_counts_from_the_next_connection_on() {
    let node = node();
    let client = CLIENTS[0];
    backend(&node, client, 0, 6, 1000);
    let mut seen = Vec::new();
    for sport in 2000..2000 + MANY {
        aged(&node, client, 0, 1000);
        keep(&node, service(0, 6), NAME, 999);
        seen.push(backend(&node, client, 0, 6, sport));
    }
    assert!(seen.contains(&ip(SERVER_IP[0])) && seen.contains(&ip(FAR_IP[0])), "{seen:?}");
}

/// It left the set that is chosen from, whether it serves on or not: the next one is remembered.
#[test]
fn a_backend_that_may_not_be_chosen_is_left_for_another_one() {
    for flags in [0, BackendFlags::SERVING, BackendFlags::SERVING | BackendFlags::EXTERNAL | BackendFlags::CLUSTER] {
        let node = node();
        let client = CLIENTS[0];
        let first = backend(&node, client, 0, 6, 1000);
        let other = if first == ip(FAR_IP[0]) { SERVER_IP[0] } else { FAR_IP[0] };
        serve(&node, 0, 6, 2, &[other]);
        keep(&node, service(0, 6), NAME, TIMEOUT);
        set_flags(&node, service(0, 6), first, flags);
        assert_eq!(backend(&node, client, 0, 6, 1001), ip(other));
        // Once it is back it is one of two, and the client has the other one.
        serve(&node, 0, 6, 3, &[SERVER_IP[0], FAR_IP[0]]);
        keep(&node, service(0, 6), NAME, TIMEOUT);
        assert_eq!(backends(&node, client, 0, 2000..2000 + MANY), [ip(other)]);
    }
}

#[test]
fn a_set_without_members_refuses_whoever_was_there_before() {
    let node = node();
    backend(&node, CLIENTS[0], 0, 6, 1000);
    serve(&node, 0, 6, 2, &[]);
    keep(&node, service(0, 6), NAME, TIMEOUT);
    let outcome = send(&node, CLIENTS[0], 0, VIP[0], L4::Tcp(1001, 80, SYN));
    outcome.refused(DropReason::NoBackend);
}

/// Frontends of a Service port share its clients, as far as the backend is of the set of both.
#[test]
fn each_frontend_has_its_own_set_and_the_same_clients() {
    let node = node();
    let (number, external) = (service(0, 6), "203.0.113.9");
    node.set_frontend((external, 80, 6), Frontend { service: number, flags: FrontendFlags::EXTERNAL });
    let to_external = |sport| send(&node, CLIENTS[0], 0, external, L4::Tcp(sport, 80, SYN)).redirected().tuple.dst;
    let first = backend(&node, CLIENTS[0], 0, 6, 1000);
    for sport in 1001..1000 + MANY {
        assert_eq!(to_external(sport), first);
    }
    let mut balancer = node.maps().balancers().get(&number).unwrap().expect("a balancer");
    balancer.cluster = node.set_members(number, 2, &[(VM_IP[0], 8080)]);
    node.maps().balancers().insert(&number, &balancer).unwrap();
    set_flags(&node, number, first, BackendFlags::SERVING | BackendFlags::INTERNAL);
    assert_eq!(to_external(2000), ip(VM_IP[0]));
}

/// Nobody is bound by what was refused, and by what nothing was sent to.
#[test]
fn a_connection_that_is_refused_binds_nobody() {
    let node = node();
    node.isolate(SERVER, 1, 2);
    serve(&node, 0, 6, 2, &[SERVER_IP[0]]);
    keep(&node, service(0, 6), NAME, TIMEOUT);
    send(&node, CLIENTS[0], 0, VIP[0], L4::Tcp(1000, 80, SYN)).dropped(DropReason::PolicyIngress);
    assert_eq!(node.maps().affinities().len().unwrap(), 0);
}

/// Who is pushed out chooses anew, and his connections go on.
#[test]
fn an_eviction_costs_a_choice_and_nothing_else() {
    let node = node();
    let client = CLIENTS[0];
    let first = backend(&node, client, 0, 6, 1000);
    node.maps().affinities().remove(&key(client, 0)).unwrap();
    let packet = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[0]), ip(VIP[0])), L4::Tcp(1000, 80, ACK), b"");
    let outcome = node.from_workload(CLIENT, &packet);
    assert_eq!(outcome.hit().redirected().tuple.dst, first);
    let next = backend(&node, client, 0, 6, 1001);
    assert_eq!(backends(&node, client, 0, 1002..1002 + MANY), [next]);
}
