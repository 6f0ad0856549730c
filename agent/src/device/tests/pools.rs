// SPDX-License-Identifier: Apache-2.0
//! `masqueradeAddresses`: what the node has, by device; what it has not is named, and where nothing is left it is closed.

use std::net::IpAddr;

use super::{config, ip, net, on_a_node};
use crate::{
    device::{self, DeviceConfig, Observation},
    model::Mode,
};

fn pooled(addresses: &[&str]) -> DeviceConfig {
    DeviceConfig { masquerade_addresses: addresses.iter().map(|text| net(text)).collect(), ..config(Mode::Vxlan) }
}

/// The pool of a device; none: the address that the host itself would take.
fn pool(observed: &Observation, device: &str, is_v6: bool) -> Option<Vec<String>> {
    let heard = observed.devices.heard.iter().find(|heard| heard.name == device).unwrap();
    let pool = observed.facts.devices[&heard.index].pool(is_v6);
    let text = |address: &weft_abi::Addr| IpAddr::from(*address).to_string();
    (pool.is_set != 0).then(|| pool.addresses().iter().map(text).collect())
}

fn of(addresses: &[&str]) -> Option<Vec<String>> {
    Some(addresses.iter().map(|text| (*text).to_owned()).collect())
}

/// What stands in `weft status` of it.
fn told(observed: &Observation) -> Vec<&String> {
    observed.problems.iter().filter(|problem| problem.starts_with("masqueradeAddresses: ")).collect()
}

fn add_second_device() {
    ip("link add up1 type veth peer name wire1");
    ip("link set up1 addrgenmode none up");
    ip("link set wire1 up");
}

#[test]
fn workloads_are_masqueraded_with_configured_addresses_that_the_node_has() {
    on_a_node(|| async {
        add_second_device();
        for address in
            ["192.0.2.20/24 dev up0", "192.0.2.33/24 dev up0", "203.0.113.5/32 dev lo", "198.51.100.5/24 dev up1"]
        {
            ip(&format!("addr add {address}"));
        }
        ip("addr add 2001:db8::20/64 dev up0 nodad");
        let config = pooled(&[
            "192.0.2.20/32",
            "192.0.2.32/29",
            "203.0.113.5/32",
            "198.51.100.5/32",
            "192.0.2.99/32",
            "2001:db8::20/128",
        ]);
        let observed = device::observe(&config).await.unwrap();
        assert_eq!(pool(&observed, "up0", false), of(&["192.0.2.20", "192.0.2.33", "203.0.113.5"]));
        assert_eq!(pool(&observed, "up0", true), of(&["2001:db8::20"]));
        assert_eq!(pool(&observed, "up1", false), of(&["198.51.100.5"]));
        assert_eq!(pool(&observed, "up1", true), None);
        let reserved = |text: &str| observed.facts.reserved.contains(&text.parse().unwrap());
        assert!(reserved("192.0.2.33") && reserved("203.0.113.5"), "no Service takes them from the host");
        let problems = told(&observed);
        assert!(problems.len() == 1 && problems[0].contains("has 192.0.2.99"), "{problems:?}");
        assert!(observed.closed.is_empty(), "the others serve");
        // One goes.
        ip("addr del 192.0.2.33/24 dev up0");
        let observed = device::observe(&config).await.unwrap();
        assert_eq!(pool(&observed, "up0", false), of(&["192.0.2.20", "203.0.113.5"]));
        assert!(told(&observed).iter().any(|problem| problem.contains("any of 192.0.2.32/29")), "{observed:?}");
    });
}

/// The kernel has an address of IPv6 that is added before those that are there.
#[test]
fn an_address_that_is_added_for_a_pool_is_not_taken_for_the_nodes_own() {
    on_a_node(|| async {
        let config = pooled(&["2001:db8::20/128", "192.0.2.20/32"]);
        let before = device::observe(&config).await.unwrap();
        ip("addr add 2001:db8::20/64 dev up0 nodad");
        ip("addr add 192.0.2.20/24 dev up0");
        let after = device::observe(&config).await.unwrap();
        assert_eq!((after.node_v4, after.node_v6), (before.node_v4, before.node_v6));
        let device = |observed: &Observation| {
            let device = observed.facts.devices[&observed.uplink.index];
            (device.v4, device.v6)
        };
        assert_eq!(device(&after), device(&before));
        // Where there is no other it is.
        ip("addr del 2001:db8::10/64 dev up0");
        assert_eq!(device::observe(&config).await.unwrap().node_v6, Some("2001:db8::20".parse().unwrap()));
    });
}

/// `preferred_lft 0` keeps the host from taking an address of itself; that of a pool is taken by configuration.
#[test]
fn deprecated_addresses_serve_and_those_that_may_be_anothers_do_not() {
    on_a_node(|| async {
        ip("addr add 2001:db8::20/64 dev up0 nodad preferred_lft 0");
        let config = pooled(&["2001:db8::20/128", "2001:db8::21/128"]);
        let observed = device::observe(&config).await.unwrap();
        assert_eq!(pool(&observed, "up0", true), of(&["2001:db8::20"]));
        // The kernel asks for long whether it is another's.
        std::fs::write("/proc/sys/net/ipv6/conf/up0/dad_transmits", "10000").unwrap();
        ip("addr add 2001:db8::21/64 dev up0");
        assert!(ip("-6 addr show dev up0").contains("tentative"));
        let observed = device::observe(&config).await.unwrap();
        assert_eq!(pool(&observed, "up0", true), of(&["2001:db8::20"]));
        assert!(
            told(&observed).iter().any(|problem| problem.contains("has 2001:db8::21, fit for use")),
            "{observed:?}"
        );
    });
}

#[test]
fn a_device_that_has_none_of_its_addresses_is_closed_and_named() {
    on_a_node(|| async {
        add_second_device();
        ip("addr add 198.51.100.1/24 dev up1");
        // Of the uplink's network, of that of another device, and of none: the uplink is meant.
        let cases = [
            ("192.0.2.20/32", "up0", "192.0.2.20/24 dev up0"),
            ("198.51.100.128/25", "up1", "198.51.100.200/24 dev up1"),
            ("203.0.113.5/32", "up0", "203.0.113.5/32 dev lo"),
        ];
        for (configured, device, address) in cases {
            let config = pooled(&[configured]);
            let observed = device::observe(&config).await.unwrap();
            assert_eq!(pool(&observed, device, false), of(&[]), "{configured}");
            assert_eq!(pool(&observed, device, true), None, "of the other family the host's own");
            assert!(
                observed.closed.len() == 1 && observed.closed[0].contains(&format!("IPv4 addresses for {device} "))
            );
            assert!(observed.problems.contains(&observed.closed[0]), "{:?}", observed.problems);
            let other = if device == "up0" { "up1" } else { "up0" };
            assert_eq!(pool(&observed, other, false), None, "{configured} is not for {other}");
            ip(&format!("addr add {address}"));
            let observed = device::observe(&config).await.unwrap();
            let there = address.split('/').next().unwrap();
            assert_eq!((pool(&observed, device, false), observed.closed), (of(&[there]), vec![]));
            ip(&format!("addr del {address}"));
        }
    });
}

#[test]
fn addresses_of_pods_and_services_and_more_than_there_is_room_for_are_left_out() {
    on_a_node(|| async {
        for address in ["10.1.1.77/32", "10.96.0.77/32", "203.0.113.5/32"] {
            ip(&format!("addr add {address} dev lo"));
        }
        let observed = device::observe(&pooled(&["10.0.0.0/8", "203.0.113.5/32"])).await.unwrap();
        assert_eq!(pool(&observed, "up0", false), of(&["203.0.113.5"]));
        for (address, cidr) in [("10.1.1.77", "10.1.1.0/24"), ("10.96.0.77", "10.96.0.0/16")] {
            let named = |problem: &&String| problem.contains(&format!("{address} of the list is of {cidr}"));
            assert!(told(&observed).iter().any(named), "{:?}", observed.problems);
        }
        for host in 0..70 {
            ip(&format!("addr add 198.18.0.{host}/32 dev lo"));
        }
        let observed = device::observe(&pooled(&["198.18.0.0/24"])).await.unwrap();
        assert_eq!(pool(&observed, "up0", false).unwrap().len(), 64);
        let problems = told(&observed);
        assert!(problems.len() == 1 && problems[0].contains("and 5 others are left out"), "{problems:?}");
    });
}

/// As long as nobody can tell the uplink, its addresses are followed all the same, with those of the host.
#[test]
fn pools_follow_the_node_without_an_uplink_too() {
    on_a_node(|| async {
        ip("addr add 192.0.2.20/24 dev up0");
        ip("addr add 203.0.113.5/32 dev lo");
        let config = pooled(&["192.0.2.20/32", "192.0.2.21/32", "203.0.113.5/32"]);
        let before = device::apply(&config).await.unwrap();
        ip("route del default");
        ip("-6 route del default");
        ip("addr del 192.0.2.20/24 dev up0");
        ip("addr add 192.0.2.21/24 dev up0");
        device::repair(&config).await.unwrap_err();
        let kept = device::keep(&config, &before).await.unwrap().observation;
        assert_eq!(pool(&kept, "up0", false), of(&["192.0.2.21", "203.0.113.5"]));
        assert!(told(&kept).len() == 1 && told(&kept)[0].contains("has 192.0.2.20"), "{:?}", kept.problems);
        let hosts = &kept.facts.host_addresses;
        let has = |text: &str| hosts.contains(&text.parse().unwrap());
        assert!(has("192.0.2.21") && !has("192.0.2.20"), "{hosts:?}");
        assert_eq!((kept.node_v4, kept.uplink), (before.node_v4, before.uplink));
    });
}

/// Looks, and keeps for the next look what this one has learned.
async fn look(config: &mut DeviceConfig) -> Observation {
    let observed = device::observe(config).await.unwrap();
    config.pool_devices.clone_from(&observed.pool_devices);
    observed
}

#[test]
fn what_another_device_has_lost_does_not_close_the_uplink() {
    on_a_node(|| async {
        add_second_device();
        ip("addr add 198.51.100.5/24 dev up1");
        let mut config = pooled(&["198.51.100.5/32"]);
        assert_eq!(pool(&look(&mut config).await, "up1", false), of(&["198.51.100.5"]));
        // Its network goes with it: nothing but the look before knows what it was for.
        ip("addr del 198.51.100.5/24 dev up1");
        let observed = look(&mut config).await;
        assert_eq!((pool(&observed, "up1", false), pool(&observed, "up0", false)), (of(&[]), None));
        // Down, it is heard no more, and has its address.
        ip("addr add 198.51.100.5/24 dev up1");
        ip("link set up1 down");
        let observed = device::observe(&pooled(&["198.51.100.5/32"])).await.unwrap();
        assert_eq!((pool(&observed, "up0", false), observed.closed), (None, vec![]));
        assert!(told(&look(&mut config).await)[0].contains("has 198.51.100.5"));
        ip("link del up1");
        config.masquerade_addresses.push(net("192.0.2.10/32"));
        let observed = look(&mut config).await;
        assert_eq!((pool(&observed, "up0", false), observed.closed), (of(&["192.0.2.10"]), vec![]));
    });
}

/// One list for all nodes names addresses of others.
#[test]
fn addresses_that_this_node_never_had_close_nothing_beside_those_that_it_has() {
    on_a_node(|| async {
        add_second_device();
        ip("addr add 198.51.100.5/24 dev up1");
        let observed = device::observe(&pooled(&["198.51.100.5/32", "203.0.113.5/32"])).await.unwrap();
        assert_eq!(pool(&observed, "up1", false), of(&["198.51.100.5"]));
        assert_eq!((pool(&observed, "up0", false), observed.closed), (None, vec![]));
    });
}

#[test]
fn an_address_that_goes_closes_what_it_was_for_whoever_has_a_network_around_it() {
    on_a_node(|| async {
        add_second_device();
        ip("addr add 198.0.0.1/8 dev up1");
        ip("addr add 198.18.0.5/32 dev lo");
        let mut config = pooled(&["198.18.0.5/32"]);
        assert_eq!(pool(&look(&mut config).await, "up0", false), of(&["198.18.0.5"]));
        ip("addr del 198.18.0.5/32 dev lo");
        for _ in 0..2 {
            let observed = look(&mut config).await;
            assert_eq!((pool(&observed, "up0", false), pool(&observed, "up1", false)), (of(&[]), None));
        }
    });
}

#[test]
fn an_address_that_stands_alone_serves_all_default_routes() {
    on_a_node(|| async {
        add_second_device();
        ip("addr add 198.51.100.1/24 dev up1");
        ip("addr add 203.0.113.5/32 dev lo");
        ip("route replace default nexthop via 192.0.2.1 dev up0 nexthop via 198.51.100.2 dev up1");
        let mut config = pooled(&["203.0.113.5/32"]);
        let there = of(&["203.0.113.5"]);
        let observed = look(&mut config).await;
        assert_eq!((pool(&observed, "up0", false), pool(&observed, "up1", false)), (there.clone(), there.clone()));
        // Connections may come back to a device whose route is away.
        ip("route replace default via 192.0.2.1 dev up0");
        assert_eq!(pool(&look(&mut config).await, "up1", false), there);
        assert_eq!(pool(&device::observe(&pooled(&["203.0.113.5/32"])).await.unwrap(), "up1", false), None);
    });
}
