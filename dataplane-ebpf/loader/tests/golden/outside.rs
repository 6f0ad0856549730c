// SPDX-License-Identifier: Apache-2.0
//! The outside: masquerade out and back, the host's own traffic.

use weft_abi::{
    Addr, Config, ConnectionFlags, Deliver, Device, DropReason, OVERLAY_MAC, Remote, RemoteFlags, RemoteKind, WayFlags,
    generation,
};
use weft_dataplane::Program;

use crate::{
    node::{
        CLIENT, CLIENT_IP, HOST, HOST_IP, HOST_MAC, MASQUERADE, NODE_IP, Node, OUTSIDE_IP, SERVER, SERVER_IP, STRANGER,
        UPLINK, cidr, delivers, key, mac, tunnel_end, workload,
    },
    packet::{L4, SYN, SYN_ACK, Tuple, frame, ip, ip_headers, tuple, word},
    support::ip as run_ip,
};

fn out(family: usize, ifindex: u32, l4: L4) -> Vec<u8> {
    let src = if ifindex == CLIENT { CLIENT_IP } else { SERVER_IP };
    frame(mac(ifindex), ip_headers(ip(src[family]), ip(OUTSIDE_IP[family])), l4, b"out")
}

fn back(family: usize, l4: L4) -> Vec<u8> {
    frame([2, 0, 0, 0, 9, 9], ip_headers(ip(OUTSIDE_IP[family]), ip(HOST_IP[family])), l4, b"back")
}

#[test]
fn tcp_and_udp_leave_with_the_nodes_address_and_come_back() {
    let node = Node::new();
    for family in 0..2 {
        for (protocol, there, answer) in [
            (6, L4::Tcp(4000, 443, SYN), (|port| L4::Tcp(443, port, SYN_ACK)) as fn(u16) -> L4),
            (17, L4::Udp(4000, 53), |port| L4::Udp(53, port)),
        ] {
            let there = out(family, CLIENT, there);
            let seen = node.from_workload(CLIENT, &there).redirected();
            let Tuple { src, sport, dst, dport } = seen.tuple;
            assert_eq!((src, dst), (ip(HOST_IP[family]), ip(OUTSIDE_IP[family])));
            let range = MASQUERADE.0..MASQUERADE.0 + MASQUERADE.1;
            assert!(range.contains(&sport), "{sport}");
            let again = node.from_workload(CLIENT, &there);
            assert_eq!(again.hit().redirected().tuple, seen.tuple, "one port for the flow");
            let entry = node.flow(&key(CLIENT, protocol, tuple(CLIENT_IP[family], 4000, OUTSIDE_IP[family], dport)));
            let entry = entry.expect("an entry");
            delivers(&entry, Deliver::Route, UPLINK);
            assert_eq!((entry.way.flags, entry.connection.flags), (WayFlags::CHECK_MAC, ConnectionFlags::REWRITE_SRC));
            let outcome = node.from_uplink(&back(family, answer(sport)));
            let seen = outcome.hit().redirected();
            assert_eq!(seen.dst_mac, mac(CLIENT));
            assert_eq!(seen.tuple, tuple(OUTSIDE_IP[family], dport, CLIENT_IP[family], 4000));
        }
    }
}

#[test]
fn an_echo_leaves_with_an_identifier_of_its_own() {
    let node = Node::new();
    for family in 0..2 {
        let seen = node.from_workload(CLIENT, &out(family, CLIENT, L4::Echo(77))).redirected();
        let id = word(&seen.transport, 4);
        assert_eq!((seen.tuple.src, word(&seen.transport, 6)), (ip(HOST_IP[family]), 7), "sequence stays");
        assert!(id >= MASQUERADE.0, "{id}");
        // Another workload with the same identifier gets another one.
        let seen = node.from_workload(SERVER, &out(family, SERVER, L4::Echo(77))).redirected();
        let other = word(&seen.transport, 4);
        assert_ne!(id, other);
        for (id, ifindex, address) in [(id, CLIENT, CLIENT_IP), (other, SERVER, SERVER_IP)] {
            let seen = node.from_uplink(&back(family, L4::EchoReply(id))).hit().redirected();
            assert_eq!((seen.dst_mac, seen.tuple.dst), (mac(ifindex), ip(address[family])));
            assert_eq!(word(&seen.transport, 4), 77);
        }
    }
}

#[test]
fn a_masqueraded_flow_keeps_its_port_when_it_decides_again_and_so_do_its_replies() {
    let node = Node::new();
    for family in 0..2 {
        let there = out(family, CLIENT, L4::Tcp(4000, 443, SYN));
        let first = node.from_workload(CLIENT, &there).redirected().tuple;
        node.publish(&[workload(CLIENT)]);
        // The reply comes first: it must not be taken for the host's.
        let outcome = node.from_uplink(&back(family, L4::Tcp(443, first.sport, SYN_ACK)));
        assert_eq!(outcome.redecided().redirected().tuple.dst, ip(CLIENT_IP[family]));
        let outcome = node.from_workload(CLIENT, &there);
        assert_eq!(outcome.redecided().redirected().tuple, first);
        let entry = node.flow(&key(weft_abi::UPLINK, 6, tuple(OUTSIDE_IP[family], 443, HOST_IP[family], first.sport)));
        assert_eq!(entry.expect("an entry").connection.packets, 1, "the reply's counters go on");
    }
}

#[test]
fn without_an_address_of_the_node_in_this_family_nothing_leads_out() {
    let node = Node::new();
    let config = node.maps().config().get(0).unwrap();
    node.maps().config().set(0, &Config { masquerade_v6: weft_abi::Addr::UNSPECIFIED, ..config }).unwrap();
    node.from_workload(CLIENT, &out(1, CLIENT, L4::Udp(1, 53))).dropped(DropReason::NoRoute);
    node.from_workload(CLIENT, &out(0, CLIENT, L4::Udp(1, 53))).redirected();
    // It answers nothing that came by this node.
    node.from_workload(CLIENT, &out(0, CLIENT, L4::EchoReply(5))).dropped(DropReason::Unrewritable);
}

#[test]
fn the_hosts_own_traffic_passes_untouched() {
    let node = Node::new();
    let arp = [[0xff; 6].as_slice(), &[2; 6], &[8, 6], &[0; 28]].concat();
    node.from_uplink(&arp).passed(&arp);
    for family in 0..2 {
        for l4 in [L4::Tcp(443, 22, SYN), L4::Udp(53, 4789), L4::Echo(3), L4::EchoReply(3)] {
            let packet = back(family, l4);
            node.from_uplink(&packet).passed(&packet);
            let cut = &packet[..packet.len() - 4];
            node.from_uplink(cut).passed(cut);
        }
    }
    assert_eq!(node.flows(), 0);
    // An address that is nobody's: the host's stack decides.
    let packet = frame(HOST_MAC, ip_headers(ip(OUTSIDE_IP[0]), ip("10.1.0.99")), L4::Udp(1, 2), b"");
    node.from_uplink(&packet).passed(&packet);
}

/// The host routes the outside by another device than the uplink, where it has another address.
pub(crate) fn with_storage_network(node: &Node) {
    for device in [HOST, STRANGER] {
        run_ip(&["link", "set", &format!("port{device}"), "up"]);
    }
    let device = format!("port{STRANGER}");
    for (family, address, network) in
        [("-4", "198.18.0.1/24", "198.51.100.0/24"), ("-6", "2001:db8:5::1/64", "2001:db8:ffff::/64")]
    {
        let nodad: &[&str] = if family == "-6" { &["nodad"] } else { &[] };
        run_ip(&[&[family, "address", "add", address, "dev", &device], nodad].concat());
        run_ip(&[family, "route", "add", network, "dev", &device]);
        let version = if family == "-4" { "ipv4" } else { "ipv6" };
        std::fs::write(format!("/proc/sys/net/{version}/conf/port{HOST}/forwarding"), "1").expect("set forwarding");
    }
    for device in [UPLINK, STRANGER] {
        node.maps().devices().insert(&device, &Device::default()).unwrap();
    }
}

pub(crate) const STORAGE_IP: [&str; 2] = ["198.18.0.1", "2001:db8:5::1"];

fn to_outside(family: usize, sport: u16) -> Vec<u8> {
    frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(OUTSIDE_IP[family])), L4::Udp(sport, 53), b"x")
}

#[test]
fn what_leaves_the_node_goes_by_the_hosts_routes_and_answers_come_by_any_device() {
    let node = Node::new();
    with_storage_network(&node);
    for family in 0..2 {
        let seen = node.from_workload(CLIENT, &to_outside(family, 4000)).redirected();
        assert_eq!((seen.tuple.src, seen.tuple.dst), (ip(STORAGE_IP[family]), ip(OUTSIDE_IP[family])));
        let entry = node.flow(&key(CLIENT, 17, tuple(CLIENT_IP[family], 4000, OUTSIDE_IP[family], 53)));
        let entry = entry.expect("an entry");
        delivers(&entry, Deliver::Route, STRANGER);
        assert_eq!(entry.way.remote, ip(OUTSIDE_IP[family]).into(), "on the link");
        let l4 = L4::Udp(53, seen.tuple.sport);
        let answer = frame([2, 0, 0, 0, 9, 9], ip_headers(seen.tuple.dst, seen.tuple.src), l4, b"x");
        for device in [STRANGER, UPLINK] {
            let back = node.send(Program::FromUplink, device, &answer).redirected();
            assert_eq!(back.tuple, tuple(OUTSIDE_IP[family], 53, CLIENT_IP[family], 4000));
        }
    }
}

#[test]
fn a_route_that_changes_moves_flows_to_its_device_and_address() {
    let node = Node::new();
    node.from_workload(CLIENT, &to_outside(0, 4000)).redirected();
    with_storage_network(&node);
    node.publish(&[generation::ROUTES]);
    let seen = node.from_workload(CLIENT, &to_outside(0, 4000)).redecided().redirected();
    assert_eq!(seen.tuple.src, ip(STORAGE_IP[0]));
    let entry = node.flow(&key(CLIENT, 17, tuple(CLIENT_IP[0], 4000, OUTSIDE_IP[0], 53))).expect("an entry");
    delivers(&entry, Deliver::Route, STRANGER);
    // By a router: the kernel would look for another one of several.
    let routers = ["198.18.0.254", "2001:db8:5::254"];
    for (family, network) in ["198.51.100.0/24", "2001:db8:ffff::/64"].into_iter().enumerate() {
        run_ip(&["route", "replace", network, "via", routers[family], "dev", &format!("port{STRANGER}")]);
        node.publish(&[generation::ROUTES]);
        node.from_workload(CLIENT, &to_outside(family, 4000)).redirected();
        let entry = node.flow(&key(CLIENT, 17, tuple(CLIENT_IP[family], 4000, OUTSIDE_IP[family], 53)));
        assert_eq!(entry.expect("an entry").way.remote, ip(routers[family]).into());
    }
}

#[test]
fn nothing_leaves_where_the_host_has_no_route_or_hears_no_answer() {
    let node = Node::new();
    with_storage_network(&node);
    assert!(node.maps().devices().remove(&STRANGER).unwrap());
    for family in 0..2 {
        node.from_workload(CLIENT, &to_outside(family, 4000)).dropped(DropReason::NoRoute);
    }
    node.maps().devices().insert(&STRANGER, &Device::default()).unwrap();
    run_ip(&["route", "replace", "unreachable", "198.51.100.0/24"]);
    node.from_workload(CLIENT, &to_outside(0, 4001)).dropped(DropReason::NoRoute);
    node.from_workload(CLIENT, &to_outside(1, 4001)).redirected();
}

/// `nonMasqueradeCIDRs`.
#[test]
fn where_workloads_keep_their_addresses_nothing_is_masqueraded() {
    let node = Node::new();
    for (family, prefix) in ["198.51.100.0/24", "2001:db8:ffff::/64"].into_iter().enumerate() {
        let there = to_outside(family, 4000);
        assert_eq!(node.from_workload(CLIENT, &there).redirected().tuple.src, ip(HOST_IP[family]));
        let plain = Remote::new(Addr::UNSPECIFIED, RemoteKind::Plain);
        node.maps().remotes().insert(&cidr(prefix), &plain).unwrap();
        node.publish(&[generation::ROUTES]);
        let outcome = node.from_workload(CLIENT, &there);
        assert_eq!(outcome.redecided().redirected().tuple, tuple(CLIENT_IP[family], 4000, OUTSIDE_IP[family], 53));
        let entry = node.flow(&key(CLIENT, 17, tuple(CLIENT_IP[family], 4000, OUTSIDE_IP[family], 53)));
        delivers(&entry.expect("an entry"), Deliver::Route, UPLINK);
        let headers = ip_headers(ip(OUTSIDE_IP[family]), ip(CLIENT_IP[family]));
        let answer = frame([2, 0, 0, 0, 9, 9], headers, L4::Udp(53, 4000), b"x");
        let seen = node.from_uplink(&answer);
        assert_eq!(seen.hit().redirected().dst_mac, mac(CLIENT));
        // Who is there may speak to the host and to pods as before.
        let packet = back(family, L4::Udp(53, 22));
        node.from_uplink(&packet).passed(&packet);
    }
    // Of another node, whose uplink hears no pod: by the tunnel.
    for family in 0..2 {
        let to = |port| {
            let headers = ip_headers(ip(CLIENT_IP[family]), ip(NODE_IP[family]));
            frame(mac(CLIENT), headers, L4::Udp(port, 53), b"x")
        };
        assert_eq!(node.from_workload(CLIENT, &to(1)).redirected().tuple.src, ip(HOST_IP[family]));
        let remote = Remote { flags: RemoteFlags::PLAIN, ..Remote::new(tunnel_end(), RemoteKind::Node) };
        node.maps().remotes().insert(&cidr(&format!("{}/{}", NODE_IP[family], [32, 128][family])), &remote).unwrap();
        let seen = node.from_workload(CLIENT, &to(2)).redirected();
        assert_eq!((seen.tuple.src, seen.src_mac), (ip(CLIENT_IP[family]), OVERLAY_MAC));
    }
}

/// As before kernel 6.7: the device and its next hop are the route's, the source is the device's as the agent knows it, or the node's
/// where the device has none.
#[test]
fn a_kernel_that_does_not_tell_sources_is_asked_for_the_way() {
    let node = Node::with(|options| options.as_kernel_6_1 = true);
    with_storage_network(&node);
    for family in 0..2 {
        let seen = node.from_workload(CLIENT, &to_outside(family, 4000)).redirected();
        assert_eq!(seen.tuple.src, ip(HOST_IP[family]), "the device has no address that is known");
        let entry = node.flow(&key(CLIENT, 17, tuple(CLIENT_IP[family], 4000, OUTSIDE_IP[family], 53)));
        let entry = entry.expect("an entry");
        delivers(&entry, Deliver::Route, STRANGER);
        assert_eq!(entry.way.remote, ip(OUTSIDE_IP[family]).into(), "on the link");
    }
    let [v4, v6] = STORAGE_IP.map(|address| Addr::from(ip(address)));
    node.maps().devices().insert(&STRANGER, &Device { v4, v6, ..Device::default() }).unwrap();
    node.publish(&[generation::ROUTES]);
    for (family, address) in STORAGE_IP.into_iter().enumerate() {
        let seen = node.from_workload(CLIENT, &to_outside(family, 4000)).redecided().redirected();
        assert_eq!(seen.tuple.src, ip(address));
    }
    run_ip(&["route", "replace", "unreachable", "198.51.100.0/24"]);
    node.from_workload(CLIENT, &to_outside(0, 4001)).dropped(DropReason::NoRoute);
}
