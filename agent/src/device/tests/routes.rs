// SPDX-License-Identifier: Apache-2.0
//! Routes of the host.

use super::{config, ip, on_a_node, to_host, via};
use crate::{
    device::{self, RouteChanges},
    model::Mode,
};

#[test]
fn routes_are_diffed_and_foreign_ones_left_alone() {
    on_a_node(|| async {
        ip("route add 10.9.0.0/24 via 192.0.2.9 proto static");
        let observation = device::apply(&config(Mode::Native)).await.unwrap();
        let planned = [via("10.1.2.0/24", "192.0.2.2"), via("fd00:1:2::/64", "2001:db8::2"), to_host("10.1.3.0/24")];
        let first = device::apply_routes(&observation, &planned).await.unwrap();
        // Two pod CIDRs, two Service CIDRs and two hairpin addresses go with the three planned ones.
        assert_eq!(first, RouteChanges { added: 9, replaced: 0, removed: 0 });
        assert_eq!(device::apply_routes(&observation, &planned).await.unwrap(), RouteChanges::default());

        let routes = ip("route show proto 119");
        for line in [
            "10.1.1.0/24 dev weft0 scope link src 192.0.2.10",
            "10.96.0.0/16 dev weft0 scope link src 192.0.2.10",
            "169.254.119.101 dev weft0 scope link src 192.0.2.10",
            "10.1.2.0/24 via 192.0.2.2 dev up0 src 192.0.2.10",
        ] {
            assert!(routes.contains(line), "{line} is not in\n{routes}");
        }
        let routes = ip("-6 route show proto 119");
        for line in
            ["fd00:96::/112 dev weft0 src 2001:db8::10", "fd00:1:2::/64 via 2001:db8::2 dev up0 src 2001:db8::10"]
        {
            assert!(routes.contains(line), "{line} is not in\n{routes}");
        }

        let moved = [via("10.1.2.0/24", "192.0.2.3"), via("fd00:1:2::/64", "2001:db8::3")];
        let second = device::apply_routes(&observation, &moved).await.unwrap();
        assert_eq!(second, RouteChanges { added: 0, replaced: 2, removed: 1 });
        assert!(ip("route show 10.1.2.0/24").contains("via 192.0.2.3"));
        assert_eq!(ip("-6 route show fd00:1:2::/64").lines().count(), 1, "replaced, not doubled");
        assert!(ip("route show 10.9.0.0/24").contains("192.0.2.9"));

        let taken =
            device::apply_routes(&observation, &[via("10.9.0.0/24", "192.0.2.3"), to_host("10.1.4.0/24")]).await;
        let text = taken.unwrap_err().to_string();
        assert!(text.contains("10.9.0.0/24") && text.contains("exists"), "{text}");
        assert!(ip("route show 10.9.0.0/24").contains("192.0.2.9"), "a foreign route is not taken over");
        assert!(ip("route show 10.1.4.0/24").contains("weft0"), "the others are applied");
    });
}

#[test]
fn prefixes_that_make_a_wider_one_are_one_route() {
    on_a_node(|| async {
        let observation = device::apply(&config(Mode::Vxlan)).await.unwrap();
        let nodes = ["10.1.0.0/24", "10.1.2.0/24", "10.1.3.0/24", "fd00:1::/64"].map(to_host);
        device::apply_routes(&observation, &nodes).await.unwrap();
        let routes = || [ip("route show proto 119"), ip("-6 route show proto 119")].concat();
        // With the node's own.
        assert!(routes().contains("10.1.0.0/22 dev weft0"), "{}", routes());
        assert!(!routes().contains("10.1.1.0/24") && !routes().contains("10.1.2.0/24"), "{}", routes());
        let leads_there = |address: &str| ip(&format!("route get {address}")).contains("dev weft0");

        // One of them goes: its addresses, and no others.
        let left = [&nodes[..1], &nodes[2..]].concat();
        let changes = device::follow_routes(&observation, &nodes, &left).await.unwrap();
        assert_eq!(changes, RouteChanges { added: 2, replaced: 0, removed: 1 });
        assert!(["10.1.0.7", "10.1.1.7", "10.1.3.7"].into_iter().all(leads_there) && !leads_there("10.1.2.7"));
        assert_eq!(device::apply_routes(&observation, &left).await.unwrap(), RouteChanges::default());
    });
}

#[test]
fn a_route_of_somebody_else_wins_over_no_more_than_before() {
    on_a_node(|| async {
        let observation = device::apply(&config(Mode::Vxlan)).await.unwrap();
        let nodes = ["10.1.0.0/24", "fd00:7::/64", "fd00:7:0:1::/64"].map(to_host);
        device::apply_routes(&observation, &nodes).await.unwrap();
        let leads_there = |address: &str| ip(&format!("route get {address}")).contains("dev weft0");
        let routes = || [ip("route show"), ip("-6 route show")].concat();
        assert!(
            routes().contains("fd00:7::/63 dev weft0") && routes().contains("10.1.0.0/23 dev weft0"),
            "{}",
            routes()
        );

        // As long as what both make, and before it: longer ones come first.
        ip("-6 route add fd00:7::/63 via 2001:db8::9 metric 256");
        assert!(!leads_there("fd00:7::7"));
        device::apply_routes(&observation, &nodes).await.unwrap();
        assert!(["fd00:7::7", "fd00:7:0:1::7"].into_iter().all(leads_there), "{}", routes());

        // The very prefix of a node is named, and leads nobody else away; what led there before goes all the same.
        ip("route add 10.1.0.0/24 via 192.0.2.9");
        let error = device::apply_routes(&observation, &nodes).await.unwrap_err().to_string();
        assert!(error.contains("a route to 10.1.0.0/24 that is not Weft's exists"), "{error}");
        assert!(leads_there("10.1.1.7") && ip("route show 10.1.0.0/24").contains("192.0.2.9"), "{}", routes());
        assert!(!routes().contains("10.1.0.0/23"), "{}", routes());
    });
}

#[test]
fn a_route_stays_until_the_one_that_takes_its_place_stands() {
    on_a_node(|| async {
        let mut observation = device::apply(&config(Mode::Vxlan)).await.unwrap();
        let nodes = ["10.1.2.0/24", "10.1.3.0/24"].map(to_host);
        device::apply_routes(&observation, &nodes[..1]).await.unwrap();
        // The kernel refuses every route from an address that the node has no more.
        let had = observation.node_v4.replace("192.0.2.99".parse().unwrap());
        device::apply_routes(&observation, &nodes).await.unwrap_err();
        assert!(ip("route show proto 119").contains("10.1.2.0/24 dev weft0"));
        observation.node_v4 = had;
        device::apply_routes(&observation, &nodes).await.unwrap();
        assert!(ip("route show proto 119").contains("10.1.2.0/23 dev weft0"));
        assert!(!ip("route show proto 119").contains("10.1.2.0/24"));
        // A wide one in whose place narrower ones come as well.
        observation.node_v4.replace("192.0.2.99".parse().unwrap());
        device::apply_routes(&observation, &nodes[..1]).await.unwrap_err();
        assert!(ip("route show proto 119").contains("10.1.2.0/23 dev weft0"));
    });
}

#[test]
fn the_host_reaches_services_and_pods_through_its_port() {
    on_a_node(|| async {
        let observation = device::apply(&config(Mode::Vxlan)).await.unwrap();
        device::apply_routes(&observation, &[to_host("10.1.2.0/24")]).await.unwrap();
        for address in ["10.96.0.1", "10.1.1.7", "10.1.2.7", "fd00:96::1", "fd00:1:1::7", "169.254.119.101"] {
            assert!(ip(&format!("route get {address}")).contains("dev weft0"), "{address}");
        }
        let frames = |text: &str| -> u64 {
            let line = text.lines().skip_while(|line| !line.contains("TX:")).nth(1).unwrap_or_default();
            line.split_whitespace().nth(1).unwrap_or_default().parse().unwrap()
        };
        let before = frames(&ip("-s link show weft0"));
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(b"hello", "10.96.0.1:53").unwrap();
        let socket = std::net::UdpSocket::bind("[::]:0").unwrap();
        socket.send_to(b"hello", "[fd00:96::1]:53").unwrap();
        assert_eq!(frames(&ip("-s link show weft0")), before + 2, "the two datagrams, and nothing to resolve anybody");
    });
}

#[test]
fn routes_of_services_come_and_go_one_by_one() {
    on_a_node(|| async {
        let observation = device::apply(&config(Mode::Vxlan)).await.unwrap();
        let many = [to_host("10.97.0.1/32"), to_host("10.97.0.2/32"), to_host("fd00:97::1/128")];
        device::apply_routes(&observation, &many[..2]).await.unwrap();
        // Somebody else's, which took the place of one of ours: what is not Weft's stays.
        ip("route del 10.97.0.1/32");
        ip("route add 10.97.0.1/32 via 192.0.2.9");
        let changes = device::follow_routes(&observation, &many[..2], &many[1..]).await.unwrap();
        assert_eq!(changes, RouteChanges { added: 1, replaced: 0, removed: 1 });
        assert_eq!(ip("route show 10.97.0.1").trim(), "10.97.0.1 via 192.0.2.9 dev up0");
        assert!(ip("-6 route show proto 119").contains("fd00:97::1 dev weft0"));
        let all = many.to_vec();
        let error = device::follow_routes(&observation, &many[1..], &all).await.unwrap_err().to_string();
        assert!(error.contains("a route to 10.97.0.1/32 that is not Weft's exists"), "{error}");
        device::follow_routes(&observation, &many[1..], &[]).await.unwrap();
        assert!(!ip("route show proto 119").contains("10.97"));
        assert_eq!(device::apply_routes(&observation, &[]).await.unwrap(), RouteChanges::default(), "as a look has it");
    });
}
