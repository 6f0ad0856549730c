// SPDX-License-Identifier: Apache-2.0
//! Several addresses of the node that workloads are masqueraded with: each has one of them, and its ports there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, UdpSocket},
};

use weft_abi::{Addr, CLUSTER_NET, Device, DropReason, Owner, Pool, PortKind, generation};

use crate::{
    icmp_error::error,
    masquerade::other,
    node::{CLIENT, CLIENT_IP, HOST, HOST_IP, MASQUERADE, Node, OUTSIDE_IP, STRANGER, UPLINK, address_key, mac},
    outside::{STORAGE_IP, with_storage_network},
    packet::{L4, SYN, SYN_ACK, frame, ip, ip_headers, word},
    support::ip as run_ip,
};

/// Of both families.
const POOL: [[&str; 4]; 2] = [
    ["192.0.2.201", "192.0.2.202", "192.0.2.203", "192.0.2.204"],
    ["2001:db8::c1", "2001:db8::c2", "2001:db8::c3", "2001:db8::c4"],
];

/// Lets what leaves by the uplink have one of these addresses, which are the host's.
fn set_pool(node: &Node, pools: [&[&str]; 2]) {
    for address in pools.into_iter().flatten() {
        set_host(node, address);
    }
    set_places(node, pools.map(|pool| Pool::of(&pool.iter().map(|address| ip(address).into()).collect::<Vec<_>>())));
}

fn set_places(node: &Node, [pool_v4, pool_v6]: [Pool; 2]) {
    node.maps().devices().insert(&UPLINK, &Device { pool_v4, pool_v6, ..Device::default() }).unwrap();
    node.publish(&[generation::ROUTES]);
}

fn set_host(node: &Node, address: &str) {
    let host = Owner::host(HOST);
    node.maps().addresses().insert(&address_key(CLUSTER_NET, address), &host).unwrap();
}

fn with_pool() -> Node {
    let node = Node::new();
    set_pool(&node, [&POOL[0], &POOL[1]]);
    node
}

fn out(family: usize, l4: L4) -> Vec<u8> {
    frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(OUTSIDE_IP[family])), l4, b"out")
}

/// The address that the client leaves with.
fn source(node: &Node, family: usize, l4: L4) -> String {
    node.from_workload(CLIENT, &out(family, l4)).redirected().tuple.src.to_string()
}

#[test]
fn a_workload_leaves_with_one_address_whatever_it_speaks_and_is_answered_there() {
    let node = with_pool();
    for family in 0..2 {
        let own = source(&node, family, L4::Udp(3999, 53));
        assert!(POOL[family].contains(&own.as_str()), "{own}");
        for (there, answer) in [
            (L4::Udp(4000, 53), (|port| L4::Udp(53, port)) as fn(u16) -> L4),
            (L4::Tcp(4000, 443, SYN), |port| L4::Tcp(443, port, SYN_ACK)),
            (L4::Echo(77), L4::EchoReply),
        ] {
            let outcome = node.from_workload(CLIENT, &out(family, there));
            let seen = outcome.redirected();
            assert_eq!(seen.tuple.src, ip(&own));
            let port = if matches!(there, L4::Echo(_)) { word(&seen.transport, 4) } else { seen.tuple.sport };
            let headers = ip_headers(ip(OUTSIDE_IP[family]), ip(&own));
            let back = node.from_uplink(&frame([2, 0, 0, 0, 9, 9], headers, answer(port), b"back"));
            let back = back.hit().redirected();
            assert_eq!((back.tuple.dst, back.dst_mac), (ip(CLIENT_IP[family]), mac(CLIENT)));
            // A router on the way is heard by that address too.
            let ends = [ip(["203.0.113.1", "2001:db8:aaaa::1"][family]), ip(&own)];
            let told = error([2, 0, 0, 0, 9, 9], ends, [[3, 4], [2, 0]][family], &outcome.bytes, 8);
            let told = node.from_uplink(&told).redirected();
            assert_eq!((told.tuple.dst, told.dst_mac), (ip(CLIENT_IP[family]), mac(CLIENT)));
        }
        // What comes to it and answers nothing is the host's.
        let stranger = frame([2, 0, 0, 0, 9, 9], ip_headers(ip(OUTSIDE_IP[family]), ip(&own)), L4::Udp(53, 22), b"x");
        node.from_uplink(&stranger).passed(&stranger);
    }
}

#[test]
fn workloads_are_spread_over_the_addresses() {
    let node = with_pool();
    for family in 0..2 {
        let mut had = BTreeSet::new();
        for host in 1..=24 {
            let own = [format!("10.1.0.{}", 100 + host), format!("fd01::1:{host:x}")];
            node.add_port(CLIENT, PortKind::Veth, [&own[0], &own[1]]);
            let headers = ip_headers(ip(&own[family]), ip(OUTSIDE_IP[family]));
            let seen = node.from_workload(CLIENT, &frame(mac(CLIENT), headers, L4::Udp(4000, 53), b"x")).redirected();
            had.insert(seen.tuple.src.to_string());
        }
        assert_eq!(had.iter().map(String::as_str).collect::<Vec<_>>(), POOL[family]);
    }
}

/// To one destination, with one address: as many workloads as there are addresses.
#[test]
fn protocols_without_ports_take_the_addresses_that_others_have_left() {
    const GRE: u8 = 47;
    const WORKLOADS: u32 = 200;
    let node = with_pool();
    let own = |family: usize, number: u32| {
        [format!("10.1.0.{}", 100 + number), format!("fd01::1:{number:x}")][family].clone()
    };
    for number in 0..5 {
        let index = (WORKLOADS + number).to_string();
        run_ip(&["link", "add", "name", &format!("port{index}"), "index", &index, "type", "bridge"]);
        node.add_port(WORKLOADS + number, PortKind::Veth, [&own(0, number), &own(1, number)]);
    }
    for family in 0..2 {
        let speak = |number: u32| {
            let ifindex = WORKLOADS + number;
            node.from_workload(ifindex, &other(mac(ifindex), &own(family, number), OUTSIDE_IP[family], GRE))
        };
        let mut had: BTreeMap<IpAddr, u32> = BTreeMap::new();
        for number in 0..4 {
            let seen = speak(number).redirected().tuple.src;
            assert!(POOL[family].contains(&seen.to_string().as_str()), "{seen}");
            assert_eq!(had.insert(seen, number), None, "{seen} serves two");
            assert_eq!(speak(number).hit().redirected().tuple.src, seen);
        }
        speak(4).dropped(DropReason::MasqueradeTaken);
        // Each is answered there, and goes on when it is decided again.
        for (address, number) in had.clone() {
            let answer = other([2, 0, 0, 0, 9, 9], OUTSIDE_IP[family], &address.to_string(), GRE);
            let back = node.from_uplink(&answer).hit().redirected();
            assert_eq!((back.tuple.dst, back.dst_mac), (ip(&own(family, number)), mac(WORKLOADS + number)));
        }
        node.publish(&[generation::ROUTES]);
        for (address, number) in had {
            assert_eq!(speak(number).redecided().redirected().tuple.src, address);
        }
        // Towards somebody else they are free.
        let elsewhere = ["198.51.100.8", "2001:db8:ffff::8"][family];
        node.from_workload(WORKLOADS + 4, &other(mac(WORKLOADS + 4), &own(family, 4), elsewhere, GRE)).redirected();
    }
}

#[test]
fn a_socket_of_the_host_on_one_address_is_respected_there() {
    let node = with_pool();
    run_ip(&["link", "set", "lo", "up"]);
    let ports = MASQUERADE.0..MASQUERADE.0 + MASQUERADE.1;
    for family in 0..2 {
        let own = source(&node, family, L4::Udp(3999, 53));
        let nodad: &[&str] = if family == 1 { &["nodad"] } else { &[] };
        run_ip(&[&["address", "add", &format!("{own}/{}", [32, 128][family]), "dev", "lo"], nodad].concat());
        let bound: Vec<_> = ports
            .clone()
            .map(|port| UdpSocket::bind((ip(&own), port)).unwrap_or_else(|e| panic!("{own}: {e}")))
            .collect();
        node.from_workload(CLIENT, &out(family, L4::Udp(4001, 54))).dropped(DropReason::MasqueradeFull);
        // Elsewhere nobody has them.
        let others: Vec<&str> = POOL[family].into_iter().filter(|address| *address != own).collect();
        set_pool(&node, if family == 0 { [&others, &POOL[1]] } else { [&POOL[0], &others] });
        node.from_workload(CLIENT, &out(family, L4::Udp(4001, 55))).redirected();
        drop(bound);
        set_pool(&node, [&POOL[0], &POOL[1]]);
    }
}

/// What the outside answers to a datagram to its port 53.
fn answered(node: &Node, family: usize, port: u16, own: &str) {
    let headers = ip_headers(ip(OUTSIDE_IP[family]), ip(own));
    let back = node.from_uplink(&frame([2, 0, 0, 0, 9, 9], headers, L4::Udp(53, port), b"back")).redirected();
    assert_eq!((back.tuple.dst, back.dst_mac), (ip(CLIENT_IP[family]), mac(CLIENT)));
}

#[test]
fn connections_that_stand_keep_their_address_while_it_is_the_hosts() {
    let node = Node::new();
    for family in 0..2 {
        let set = |addresses: &[&str]| set_pool(&node, if family == 0 { [addresses, &[]] } else { [&[], addresses] });
        let unset = || set_places(&node, [Pool::UNSET; 2]);
        let of = |sport: u16| node.from_workload(CLIENT, &out(family, L4::Udp(sport, 53))).redirected().tuple;
        unset();
        let first = of(4001);
        assert_eq!(first.src, ip(HOST_IP[family]));
        answered(&node, family, first.sport, HOST_IP[family]);
        let unheard = of(4000);
        set(&POOL[family]);
        assert_eq!(of(4001), first, "it began before");
        assert_ne!(of(4000).src, unheard.src, "nobody knows it");
        let second = of(4002);
        let own = second.src.to_string();
        assert!(POOL[family].contains(&own.as_str()));
        answered(&node, family, second.sport, &own);
        // More addresses, as many as leave a new connection another one; and in another place.
        let more: Vec<String> =
            (1..40).map(|host| format!("{}{host}", ["198.18.0.", "2001:db8:7::"][family])).collect();
        let all: Vec<&str> = more.iter().map(String::as_str).chain(POOL[family]).collect();
        set(&all);
        let kept = node.from_workload(CLIENT, &out(family, L4::Udp(4002, 53)));
        assert_eq!(kept.redecided().redirected().tuple, second);
        answered(&node, family, second.sport, &own);
        assert_ne!(of(4003).src, second.src, "a new one has that of the larger pool");
        // It is no more in the pool, and still the host's.
        let rest: Vec<&str> = all.into_iter().filter(|address| *address != own).collect();
        set(&rest);
        assert_eq!(of(4002), second);
        unset();
        assert_eq!(of(4002), second);
        assert_eq!(of(4004).src, ip(HOST_IP[family]));
        // It goes.
        set(&rest);
        assert!(node.maps().addresses().remove(&address_key(CLUSTER_NET, &own)).unwrap());
        node.publish(&[generation::ROUTES]);
        let other = of(4002).src;
        assert!(other != second.src && rest.contains(&other.to_string().as_str()), "{other}");
        assert_eq!(of(4001), first);
        node.flush();
    }
}

/// Rather than with an address that nobody was told of.
#[test]
fn where_a_pool_has_no_address_of_the_host_nothing_new_leaves() {
    let node = Node::new();
    for family in 0..2 {
        set_places(&node, [Pool::UNSET; 2]);
        let stands = node.from_workload(CLIENT, &out(family, L4::Udp(4001, 53))).redirected().tuple;
        answered(&node, family, stands.sport, HOST_IP[family]);
        let not_hosts = ["192.0.2.250", "2001:db8::fa"].map(|address| Addr::from(ip(address)));
        let other_family = Addr::from(ip(POOL[1 - family][0]));
        set_host(&node, POOL[1 - family][0]);
        for pool in [
            Pool::of(&[]),
            Pool::of(&[Addr::UNSPECIFIED]),
            Pool::of(&[other_family]),
            Pool::of(&[not_hosts[family]]),
            // Longer than it is.
            Pool { count: 3, ..Pool::of(&[]) },
            Pool { count: u32::MAX, ..Pool::of(&[]) },
        ] {
            set_places(&node, if family == 0 { [pool, Pool::UNSET] } else { [Pool::UNSET, pool] });
            for l4 in [L4::Udp(4002, 53), L4::Tcp(4002, 443, SYN), L4::Echo(7)] {
                node.from_workload(CLIENT, &out(family, l4)).dropped(DropReason::NoMasqueradeAddress);
            }
            let gre = other(mac(CLIENT), CLIENT_IP[family], OUTSIDE_IP[family], 47);
            node.from_workload(CLIENT, &gre).dropped(DropReason::NoMasqueradeAddress);
            let again = node.from_workload(CLIENT, &out(family, L4::Udp(4001, 53)));
            assert_eq!(again.redecided().redirected().tuple, stands, "it began before");
        }
        // Beside them one that serves.
        set_host(&node, POOL[family][0]);
        let serves = Pool::of(&[Addr::UNSPECIFIED, other_family, ip(POOL[family][0]).into()]);
        set_places(&node, if family == 0 { [serves, Pool::UNSET] } else { [Pool::UNSET, serves] });
        assert_eq!(source(&node, family, L4::Udp(4003, 53)), POOL[family][0]);
        // The host itself is no workload.
        let headers = ip_headers(ip(HOST_IP[family]), ip(OUTSIDE_IP[family]));
        let own = frame(mac(HOST), headers, L4::Udp(4000, 53), b"x");
        assert_eq!(node.from_host(&own).redirected().tuple.src, ip(HOST_IP[family]));
        node.flush();
    }
}

/// The device that a packet leaves by has the addresses that it may leave with.
#[test]
fn each_device_has_a_pool_of_its_own() {
    let node = with_pool();
    with_storage_network(&node);
    for family in 0..2 {
        let of = |sport: u16| node.from_workload(CLIENT, &out(family, L4::Udp(sport, 53))).redirected().tuple.src;
        assert_eq!(of(4001), ip(STORAGE_IP[family]), "that of the route");
        let there = ["198.18.0.77", "2001:db8:5::77"][family];
        set_host(&node, there);
        let pool = Pool::of(&[ip(there).into()]);
        let mut device = Device::default();
        *(if family == 0 { &mut device.pool_v4 } else { &mut device.pool_v6 }) = pool;
        node.maps().devices().insert(&STRANGER, &device).unwrap();
        node.publish(&[generation::ROUTES]);
        assert_eq!(of(4002), ip(there));
    }
}
