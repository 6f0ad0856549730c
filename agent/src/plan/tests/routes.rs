// SPDX-License-Identifier: Apache-2.0
//! Routes, ports and local addresses.

use weft_abi::{AddressKey, CidrKey, OwnerKind, RemoteFlags, RemoteKind};

use ipnet::IpNet;
use rstest::rstest;

use super::*;
use weft_api::Mac;

use crate::model::{HostRoute, NextHop};

fn cidr(text: &str) -> CidrKey {
    cidr_key(text.parse().unwrap())
}

fn node(world: &mut World, name: &str, cidrs: &[&str], addresses: &[&str]) {
    let addresses: Vec<Value> =
        addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
    let node = json!({"metadata": {"name": name}, "spec": {"podCIDRs": cidrs}, "status": {"addresses": addresses}});
    world.snapshot.nodes.insert(ObjectKey::new("", name), Arc::new(from_value(node).unwrap()));
}

fn two_nodes(mode: Mode) -> World {
    let mut world = World::default();
    world.facts.mode = mode;
    world.facts.pod_cidrs = vec!["10.1.0.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()];
    world.facts.service_cidrs = vec!["10.96.0.0/16".parse().unwrap()];
    node(&mut world, "here", &["10.1.0.0/24", "fd00:1::/64"], &["192.0.2.1"]);
    node(&mut world, "there", &["10.2.0.0/24", "fd00:2::/64"], &["2001:db8::2", "192.0.2.2"]);
    world
}

fn remote(desired: &Desired, text: &str) -> (u32, Addr) {
    let remote = desired.remotes[&cidr(text)];
    (remote.kind, remote.via)
}

fn host_routes(routes: &[(&str, Option<&str>)]) -> Arc<Vec<HostRoute>> {
    let route = |(dst, via): &(&str, Option<&str>)| HostRoute {
        dst: dst.parse().unwrap(),
        via: via.map(|via| via.parse().unwrap()),
    };
    Arc::new(routes.iter().map(route).collect())
}

/// `nonMasqueradeCIDRs`: what is a pod's or a Service's stays that, nodes are told apart.
#[test]
fn prefixes_that_are_reached_with_own_addresses() {
    let mut world = two_nodes(Mode::Vxlan);
    let before = world.plan();
    let texts =
        ["0.0.0.0/0", "192.0.2.0/24", "10.2.0.0/24", "10.2.0.128/25", "10.96.7.0/24", "fd00::/16", "198.51.100.7/32"];
    world.facts.plain_cidrs = texts.iter().map(|text| text.parse().unwrap()).collect();
    let desired = world.plan();
    assert_ne!(desired.routes_digest, before.routes_digest, "flows decide again");
    for text in ["0.0.0.0/0", "192.0.2.0/24", "fd00::/16", "198.51.100.7/32"] {
        assert_eq!(remote(&desired, text), (RemoteKind::Plain as u32, Addr::UNSPECIFIED), "{text}");
    }
    assert_eq!(remote(&desired, "10.2.0.0/24").0, RemoteKind::Tunnel as u32);
    assert!(
        !desired.remotes.contains_key(&cidr("10.2.0.128/25")) && !desired.remotes.contains_key(&cidr("10.96.7.0/24"))
    );
    let flags = |text| (desired.remotes[&cidr(text)].kind, desired.remotes[&cidr(text)].flags);
    assert_eq!(flags("192.0.2.2/32"), (RemoteKind::Node as u32, RemoteFlags::PLAIN));
    assert_eq!(flags("2001:db8::2/128"), (RemoteKind::Node as u32, 0));
    assert_eq!(desired.host_routes, before.host_routes, "the host's own routes lead there");
    // The flag alone is a change, too.
    world.facts.plain_cidrs = vec!["192.0.2.0/24".parse().unwrap()];
    let one = world.plan();
    let unflagged = one.remotes.iter().map(|(key, remote)| (*key, weft_abi::Remote { flags: 0, ..*remote }));
    assert_ne!(one.remotes, unflagged.collect());
}

#[test]
fn tunnels_prefer_an_ipv4_underlay() {
    let desired = two_nodes(Mode::Vxlan).plan();
    let via = addr("192.0.2.2");
    assert_eq!(remote(&desired, "10.1.0.0/24"), (RemoteKind::OwnPods as u32, Addr::UNSPECIFIED));
    assert_eq!(remote(&desired, "fd00:1::/64"), (RemoteKind::OwnPods as u32, Addr::UNSPECIFIED));
    assert_eq!(remote(&desired, "10.2.0.0/24"), (RemoteKind::Tunnel as u32, via));
    assert_eq!(remote(&desired, "fd00:2::/64"), (RemoteKind::Tunnel as u32, via));
    assert_eq!(remote(&desired, "10.96.0.0/16"), (RemoteKind::Services as u32, Addr::UNSPECIFIED));
    // What comes from the node itself by the tunnel has one of these as source.
    assert_eq!(remote(&desired, "192.0.2.2/32"), (RemoteKind::Node as u32, via));
    assert_eq!(remote(&desired, "2001:db8::2/128"), (RemoteKind::Node as u32, via));
    assert_eq!(desired.remotes.len(), 7);
    assert_eq!(
        desired.host_routes,
        host_routes(&[("10.2.0.0/24", None), ("10.96.0.0/16", None), ("fd00:2::/64", None)])
    );
    let told = desired.route_reports.iter().map(|route| format!("{} {} {}", route.node, route.pod_cidr, route.via));
    assert_eq!(told.collect::<Vec<_>>(), ["there 10.2.0.0/24 192.0.2.2", "there fd00:2::/64 192.0.2.2"]);
}

/// Every address of a node leads to the one that this node encapsulates to: a program asks for it by the outer source of what
/// comes, whichever address that is.
#[rstest]
#[case::both_families(["192.0.2.1", "2001:db8::1"], "192.0.2.2")]
#[case::no_address_is_known(["", ""], "192.0.2.2")]
#[case::only_ipv6_here(["", "2001:db8::1"], "2001:db8::2")]
#[case::only_ipv4_here(["192.0.2.1", ""], "192.0.2.2")]
fn all_addresses_of_a_node_lead_to_one_tunnel_end(#[case] own: [&str; 2], #[case] end: &str) {
    let mut world = two_nodes(Mode::Vxlan);
    [world.facts.config.node_v4, world.facts.config.node_v6] =
        own.map(|text| if text.is_empty() { Addr::UNSPECIFIED } else { addr(text) });
    let all = ["2001:db8::2", "192.0.2.2", "198.51.100.2", "2001:db8:5::2"];
    let typed = all.iter().enumerate().map(
        |(place, address)| json!({"type": if place < 2 { "InternalIP" } else { "ExternalIP" }, "address": address}),
    );
    let others =
        [json!({"type": "Hostname", "address": "203.0.113.1"}), json!({"type": "InternalIP", "address": "there"})];
    let addresses: Vec<Value> = typed.chain(others).collect();
    let there = json!({"metadata": {"name": "there"}, "spec": {"podCIDRs": ["10.2.0.0/24", "fd00:2::/64"]}, "status": {"addresses": addresses}});
    world.snapshot.nodes.insert(ObjectKey::new("", "there"), Arc::new(from_value(there).unwrap()));
    let desired = world.plan();
    assert_eq!(desired.problems, Vec::<String>::new());
    for pods in ["10.2.0.0/24", "fd00:2::/64"] {
        assert_eq!(remote(&desired, pods), (RemoteKind::Tunnel as u32, addr(end)), "{pods}");
    }
    for address in all {
        let of_node: IpNet = address.parse::<IpAddr>().unwrap().into();
        assert_eq!(remote(&desired, &of_node.to_string()), (RemoteKind::Node as u32, addr(end)), "{address}");
    }
    assert!(!desired.remotes.contains_key(&cidr("203.0.113.1/32")));
}

#[test]
fn a_node_of_another_family_is_named_and_one_without_internal_addresses_is_reached_by_an_external_one() {
    let mut world = two_nodes(Mode::Vxlan);
    world.facts.config.node_v4 = addr("192.0.2.1");
    node(&mut world, "v6only", &["10.3.0.0/24"], &["2001:db8::3"]);
    let cloud = json!({"metadata": {"name": "cloud"}, "spec": {"podCIDRs": ["10.4.0.0/24"]},
        "status": {"addresses": [{"type": "ExternalIP", "address": "198.51.100.4"}]}});
    world.snapshot.nodes.insert(ObjectKey::new("", "cloud"), Arc::new(from_value(cloud).unwrap()));
    let desired = world.plan();
    assert_eq!(remote(&desired, "10.3.0.0/24"), (RemoteKind::Unreachable as u32, Addr::UNSPECIFIED));
    assert_eq!(remote(&desired, "10.4.0.0/24"), (RemoteKind::Tunnel as u32, addr("198.51.100.4")));
    assert_eq!(remote(&desired, "198.51.100.4/32"), (RemoteKind::Node as u32, addr("198.51.100.4")));
    assert_eq!(desired.problems.len(), 1, "{:?}", desired.problems);
    assert!(
        desired.problems[0].starts_with("Node v6only: status.addresses has no InternalIP"),
        "{:?}",
        desired.problems
    );
}

#[test]
fn native_routes_are_of_one_family_and_by_the_next_hop() {
    let mut world = two_nodes(Mode::Native);
    let hop = |address: &str, hop| (address.parse().unwrap(), hop);
    let mac = Mac([2, 0, 0, 0, 0, 3]);
    world.facts.next_hops = [
        hop("192.0.2.2", NextHop::Router("192.0.2.254".parse().unwrap())),
        hop("192.0.2.3", NextHop::Neighbour(Some(mac))),
    ]
    .into();
    node(&mut world, "v4only", &["10.3.0.0/24", "fd00:3::/64"], &["192.0.2.3"]);
    let desired = world.plan();
    assert_eq!(remote(&desired, "10.2.0.0/24"), (RemoteKind::Routed as u32, addr("192.0.2.254")));
    // A neighbour whose Ethernet address is known, and one whose is not.
    let [known, unknown] = ["10.3.0.0/24", "fd00:2::/64"].map(|net| desired.remotes[&cidr_key(net.parse().unwrap())]);
    assert_eq!((known.kind, known.mac), (RemoteKind::Native as u32, mac.0));
    assert_eq!((unknown.kind, unknown.mac), (RemoteKind::Native as u32, [0; 6]));
    assert_eq!(remote(&desired, "fd00:2::/64"), (RemoteKind::Native as u32, addr("2001:db8::2")));
    assert_eq!(
        desired.host_routes,
        host_routes(&[
            ("10.2.0.0/24", Some("192.0.2.254")),
            ("10.3.0.0/24", Some("192.0.2.3")),
            ("10.96.0.0/16", None),
            ("fd00:2::/64", Some("2001:db8::2")),
        ])
    );
    assert_eq!(remote(&desired, "fd00:3::/64"), (RemoteKind::Unreachable as u32, Addr::UNSPECIFIED));
    assert_eq!(desired.problems.len(), 1, "{:?}", desired.problems);
    assert!(
        desired.problems[0].starts_with("Node v4only: status.addresses has no InternalIP"),
        "{:?}",
        desired.problems
    );
}

#[test]
fn prefixes_have_one_owner() {
    let mut world = two_nodes(Mode::Vxlan);
    node(&mut world, "thief", &["10.1.0.0/24", "10.2.0.0/24", "0.0.0.0/33", "::/0"], &["192.0.2.66"]);
    let before = two_nodes(Mode::Vxlan).plan();
    let desired = world.plan();
    assert_eq!(desired.remotes[&cidr("10.1.0.0/24")], before.remotes[&cidr("10.1.0.0/24")]);
    assert_eq!(desired.problems.len(), 4, "{:?}", desired.problems);
    let refused = "Node thief: prefix 10.2.0.0/24 already belongs to Node there".to_owned();
    assert!(desired.problems.contains(&refused), "{:?}", desired.problems);
}

#[test]
fn a_node_does_not_claim_pods_services_or_the_way_to_another() {
    let mut world = two_nodes(Mode::Vxlan);
    // By its name it comes first.
    let stolen = ["192.0.2.66", "10.2.0.5", "10.1.0.7", "10.96.0.10", "192.0.2.2", "2001:db8::2"];
    node(&mut world, "a-thief", &["10.6.0.0/24"], &stolen);
    let desired = world.plan();
    assert_eq!(remote(&desired, "192.0.2.66/32"), (RemoteKind::Node as u32, addr("192.0.2.66")));
    assert_eq!(remote(&desired, "192.0.2.2/32"), (RemoteKind::Node as u32, addr("192.0.2.2")));
    assert_eq!(remote(&desired, "2001:db8::2/128"), (RemoteKind::Node as u32, Addr::UNSPECIFIED), "of nobody");
    for pod_or_service in ["10.2.0.5/32", "10.1.0.7/32", "10.96.0.10/32"] {
        assert!(!desired.remotes.contains_key(&cidr(pod_or_service)), "{pod_or_service}");
    }
    let told = |start: &str| desired.problems.iter().filter(|problem| problem.starts_with(start)).count();
    assert_eq!((told("Node a-thief: "), told("Nodes a-thief, there: ")), (3, 2), "{:?}", desired.problems);
}

#[test]
fn the_digest_moves_with_the_routes_only() {
    let mut world = two_nodes(Mode::Vxlan);
    let before = world.plan().routes_digest;
    world.local(("x", "p"), json!({}), &["10.1.0.5"], json!({}));
    assert_eq!(world.plan().routes_digest, before);
    node(&mut world, "there", &["10.2.0.0/24", "fd00:2::/64"], &["192.0.2.7"]);
    assert_ne!(world.plan().routes_digest, before);
}

/// A node with a network of its own and a router, and Services at these addresses.
fn with_services(vips: &[&str]) -> World {
    let mut world = two_nodes(Mode::Vxlan);
    world.facts.reserved = ["192.0.2.1", "192.0.2.254"].map(|address| address.parse().unwrap()).into();
    world.facts.host_addresses =
        ["192.0.2.1", "10.1.0.1", "172.20.0.10"].map(|address| address.parse().unwrap()).into();
    for (number, vip) in vips.iter().enumerate() {
        world.service(&format!("s{number}"), json!({"clusterIP": vip, "ports": [{"port": 80}]}));
    }
    world
}

#[test]
fn prefixes_of_services_follow_service_cidrs_and_other_services_are_led_to_one_by_one() {
    let mut world = with_services(&["10.96.0.1", "10.97.0.1", "172.20.0.1", "fd00:96::1"]);
    world
        .service_cidr("more", &["10.97.0.0/16", "fd00:97::/112"])
        .service_cidr("same", &["10.96.0.0/16", "10.96.0.0/15"]);
    let desired = world.plan();
    assert_eq!(desired.problems, Vec::<String>::new());
    let services = (RemoteKind::Services as u32, Addr::UNSPECIFIED);
    let all = ["10.96.0.0/16", "10.96.0.0/15", "10.97.0.0/16", "172.20.0.1/32", "fd00:97::/112", "fd00:96::1/128"];
    for prefix in all {
        assert_eq!(remote(&desired, prefix), services, "{prefix}");
        let route = HostRoute { dst: prefix.parse().unwrap(), via: None };
        assert_eq!(desired.host_routes.iter().filter(|found| **found == route).count(), 1, "{prefix}");
    }
    assert!(
        !desired.remotes.contains_key(&cidr("10.97.0.1/32")) && !desired.remotes.contains_key(&cidr("10.96.0.1/32"))
    );
    assert!(desired.host_routes.is_sorted());
    world.snapshot.service_cidrs.clear();
    let after = world.plan();
    assert_eq!(remote(&after, "10.97.0.1/32"), services, "its Service is still there");
    assert_ne!(after.routes_digest, desired.routes_digest);
    world.snapshot.services.clear();
    assert!(!world.plan().remotes.contains_key(&cidr("10.97.0.1/32")));
}

/// What somebody writes into one object costs that object: Services are still led to, one by one, and the node stays reachable.
#[rstest]
#[case::everything("0.0.0.0/0", "wider than /8")]
#[case::half_of_everything("128.0.0.0/1", "wider than /8")]
#[case::everything_v6("::/0", "wider than /32")]
#[case::the_nodes_network("192.0.2.0/24", "192.0.2.1 in it, an address of this node or its router")]
#[case::the_router("192.0.2.254/32", "192.0.2.254 in it, an address of this node or its router")]
#[case::another_node("192.0.2.2/32", "192.0.2.2 in it, an address of Node there")]
#[case::own_pods("10.1.0.0/16", "overlaps the pod CIDR 10.1.0.0/24 of this node")]
#[case::some_own_pods("10.1.0.128/25", "overlaps the pod CIDR 10.1.0.0/24 of this node")]
#[case::others_pods("10.2.0.0/24", "overlaps the pod CIDR 10.2.0.0/24 of Node there")]
#[case::others_pods_v6("fd00:2::/48", "overlaps the pod CIDR fd00:2::/64 of Node there")]
#[case::loopback("127.0.0.0/8", "overlaps 127.0.0.0/8")]
#[case::link_local("169.254.169.254/32", "overlaps 169.254.0.0/16")]
#[case::mapped("::ffff:10.0.0.0/104", "is an IPv4 prefix in IPv6 form")]
#[case::garbage("ten", "'ten' is not a prefix")]
#[case::host_of_garbage("10.0.0.0/33", "'10.0.0.0/33' is not a prefix")]
fn a_service_cidr_that_would_cut_something_off_is_refused_alone(#[case] prefix: &str, #[case] why: &str) {
    let before = with_services(&["10.97.0.1"]).plan();
    let mut world = with_services(&["10.97.0.1"]);
    world.service_cidr("bad", &[prefix, "10.98.0.0/16"]);
    let desired = world.plan();
    assert_eq!(desired.problems.len(), 1, "{:?}", desired.problems);
    assert!(desired.problems[0].starts_with("ServiceCIDR bad: spec.cidrs: "), "{:?}", desired.problems);
    assert!(desired.problems[0].contains(why), "{:?}", desired.problems);
    let mut expected = before.remotes.clone();
    expected.insert(cidr("10.98.0.0/16"), desired.remotes[&cidr("10.97.0.1/32")]);
    assert_eq!(desired.remotes, expected, "the other prefix of it counts");
}

#[rstest]
#[case::router("192.0.2.254", "this node or its router")]
#[case::this_node("192.0.2.1", "this node or its router")]
#[case::another_node("192.0.2.2", "Node there")]
#[case::a_pod("10.2.0.5", "the pod CIDR 10.2.0.0/24")]
#[case::loopback("127.0.0.53", "127.0.0.0/8")]
fn a_service_takes_no_address_away_from_somebody(#[case] vip: &str, #[case] whose: &str) {
    let before = with_services(&[]).plan();
    let desired = with_services(&[vip]).plan();
    assert_eq!((&desired.remotes, &desired.host_routes), (&before.remotes, &before.host_routes));
    assert_eq!(desired.problems.len(), 1, "{:?}", desired.problems);
    let problem = &desired.problems[0];
    assert!(
        problem.starts_with(&format!("Service x/s0: spec.clusterIPs: {vip} is")) && problem.contains(whose),
        "{problem}"
    );
}

/// A DNS cache of the node has the DNS Service's address on a device of its own.
#[test]
fn a_service_whose_address_the_host_has_itself_is_none_that_the_host_needs_a_route_to() {
    let before = with_services(&[]).plan();
    let mut world = with_services(&["172.20.0.10"]);
    let desired = world.plan();
    assert_eq!((&desired.remotes, &desired.problems), (&before.remotes, &vec![]));
    world.service_cidr("default", &["172.20.0.0/16"]);
    assert_eq!(world.plan().problems, Vec::<String>::new(), "nor does it stand against a ServiceCIDR");
}

/// Kubelets write their nodes' addresses themselves.
#[test]
fn a_node_claims_no_services_address_but_the_one_that_it_is_reached_by() {
    let mut world = with_services(&["172.20.0.1"]);
    node(&mut world, "thief", &["10.6.0.0/24"], &["192.0.2.66", "172.20.0.1"]);
    let desired = world.plan();
    assert_eq!(remote(&desired, "172.20.0.1/32").0, RemoteKind::Services as u32);
    world.snapshot.services.clear();
    assert_eq!(remote(&world.plan(), "172.20.0.1/32"), (RemoteKind::Node as u32, addr("192.0.2.66")));
}

#[test]
fn ports_and_locals() {
    let mut world = World::default();
    world.facts.host_addresses = vec!["192.0.2.1".parse().unwrap(), "fd00:1::1".parse().unwrap()];
    let ifindex = world.local(("x", "p"), json!({}), &["10.1.0.5", "fd00:1::5", "10.1.0.9"], json!({}));
    let nameless = world.attach(None, &["10.1.0.6"]);
    Arc::make_mut(&mut world.attachments[1]).spec.port = PortKind::VhostUser;
    let waiting = world.attach(None, &["10.1.0.7"]);
    Arc::make_mut(&mut world.attachments[2]).link = None;
    let thief = world.attach(None, &["10.1.0.5"]);
    let desired = world.plan();

    let port = desired.ports[&ifindex];
    assert_eq!((port.mac, port.kind), ([2, 0, 0, 0, 0, 10], weft_abi::PortKind::Veth as u8));
    assert_eq!(desired.ports[&nameless].kind, weft_abi::PortKind::Tap as u8);
    assert!(!desired.ports.contains_key(&waiting), "no link yet");
    let owner = |text: &str| {
        desired.addresses.get(&AddressKey::of_cluster(addr(text))).map(|owner| (owner.ifindex, owner.kind))
    };
    for own in ["10.1.0.5", "fd00:1::5", "10.1.0.9"] {
        assert_eq!(owner(own), Some((ifindex, OwnerKind::Workload as u32)), "the first has it, not {thief}");
    }
    assert_eq!(owner("10.1.0.6"), Some((nameless, OwnerKind::Workload as u32)));
    assert_eq!(owner("fd00:1::1"), Some((2, OwnerKind::Host as u32)));
    assert_eq!(owner("10.1.0.7"), None);
    assert_eq!(desired.names[&addr("10.1.0.5")], "x/p");
    assert_eq!(desired.problems.len(), 1, "{:?}", desired.problems);
    assert_eq!(desired.workload_digests.len(), 3);
}
