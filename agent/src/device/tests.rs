// SPDX-License-Identifier: Apache-2.0
//! Against a real kernel, each test in a network namespace of its own (needs root).

use std::{
    collections::BTreeMap,
    future::Future,
    net::IpAddr,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};
use weft_abi::GATEWAY_MAC;
use weft_api::Mac;

use super::{DeviceConfig, HOST_PORT, HOST_PORT_PEER, OVERLAY, RouteChanges, links};
use crate::model::{HostRoute, Mode, NextHop, ServiceExposure};

mod changes;
mod pools;
mod routes;

/// Runs a test in a new namespace with an uplink `up0` (its wire ends in `wire0`) of 192.0.2.10/24 and 2001:db8::10/64 behind routers .1 and ::1.
fn on_a_node<T: Send + 'static, F: Future<Output = T>>(test: impl FnOnce() -> F + Send + 'static) -> T {
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("unshare needs root");
        for command in [
            "link set lo up",
            "link add up0 mtu 1500 type veth peer name wire0",
            // No addresses that come and change by themselves.
            "link set up0 addrgenmode none up",
            "link set wire0 addrgenmode none up",
            "addr add 192.0.2.10/24 dev up0",
            "addr add 2001:db8::10/64 dev up0 nodad",
            "route add default via 192.0.2.1",
            "route add default via 2001:db8::1",
        ] {
            ip(command);
        }
        // The kernel tells of a carrier in its own time, up to a second later.
        while ["up0", "wire0"].iter().any(|device| !ip(&format!("link show {device}")).contains("state UP")) {
            std::thread::yield_now();
        }
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test())
    };
    match std::thread::spawn(run).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Runs `ip` in the namespace of this thread.
fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip (iproute2) must be installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Links, addresses, routes and rules of the namespace as lines, without what the kernel changes in its own time when a carrier comes
/// (operational state, queueing, the local table); the order of routes says nothing.
fn everything() -> Vec<String> {
    let links = ["-d link", "addr"].map(ip).concat();
    let links = links.lines().map(|line| {
        let flags = line.replace("NO-CARRIER,", "").replace(",LOWER_UP", "");
        let words: Vec<_> = flags.split(' ').collect();
        let follows = |name: &str, index: usize| index > 0 && words[index - 1] == name;
        let kept = words.iter().enumerate().filter(|(index, _)| !follows("state", *index) && !follows("qdisc", *index));
        kept.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
    });
    let routes = ["route show", "-6 route show", "rule show", "-6 rule show"].map(ip).concat();
    let routes = routes.lines().map(|line| line.replace(" linkdown", ""));
    let mut routes: Vec<_> = routes.collect();
    routes.sort_unstable();
    links.chain(routes).collect()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn config(mode: Mode) -> DeviceConfig {
    DeviceConfig {
        node_name: "node-a".to_owned(),
        mode,
        uplink: None,
        node_addresses: Vec::new(),
        told_addresses: Vec::new(),
        pod_cidrs: vec![net("10.1.1.0/24"), net("fd00:1:1::/64")],
        retired_pod_cidrs: Vec::new(),
        service_cidrs: vec![net("10.96.0.0/16"), net("fd00:96::/112")],
        vni: 7765,
        vxlan_port: 8472,
        mtu: None,
        masquerade_v4: true,
        masquerade_v6: false,
        masquerade_addresses: Vec::new(),
        pool_devices: super::PoolDevices::new(),
        plain_cidrs: Vec::new(),
        exposure: ServiceExposure::default(),
        api_servers: Some(Vec::new()),
        masquerade_ports: Some(61000..=65535),
        mss_clamp: 0,
        timeouts: weft_abi::Timeouts::DEFAULT,
        checks_neighbours: true,
        limits: super::Limits::default(),
    }
}

fn to_host(dst: &str) -> HostRoute {
    HostRoute { dst: net(dst), via: None }
}

fn via(dst: &str, hop: &str) -> HostRoute {
    HostRoute { dst: net(dst), via: Some(hop.parse().unwrap()) }
}

#[test]
fn a_fresh_node_gets_its_devices_and_facts() {
    on_a_node(|| async {
        let observation = super::apply(&config(Mode::Vxlan)).await.unwrap();
        assert_eq!(observation.uplink.name, "up0");
        assert_eq!(observation.pod_mtu, 1450);
        assert_eq!(observation.node_v4, Some("192.0.2.10".parse().unwrap()));
        assert_eq!(observation.node_v6, Some("2001:db8::10".parse().unwrap()));
        let facts = &observation.facts;
        let expected: Vec<IpAddr> =
            ["10.1.1.1", "192.0.2.10", "2001:db8::10", "fd00:1:1::1"].map(|a| a.parse().unwrap()).into();
        assert_eq!(facts.host_addresses, expected);
        let config = facts.config;
        assert_eq!(config.masquerade_v4, weft_abi::Addr::v4(u32::from_ne_bytes([192, 0, 2, 10])));
        assert!(config.masquerade_v6.is_unspecified());
        assert_eq!(config.flags, weft_abi::ConfigFlags::PLAIN_V6, "not dropped");
        assert_eq!((config.vni, config.masquerade_first, config.masquerade_count), (7765, 61000, 4536));

        let host = links::find(HOST_PORT).await.unwrap().unwrap();
        let peer = links::find(HOST_PORT_PEER).await.unwrap().unwrap();
        let overlay = links::find(OVERLAY).await.unwrap().unwrap();
        assert_eq!((config.host_ifindex, config.overlay_ifindex), (host.index, overlay.index));
        assert_eq!(config.host_mac, host.mac.unwrap().0);
        for link in [&host, &peer] {
            assert!(link.up && link.noarp && !link.multicast && !link.link_local && link.mtu == 1450, "{link:?}");
            assert_eq!((link.rp_filter, link.accept_local), (0, 1), "{link:?}");
        }
        assert!(overlay.vxlan_external && !overlay.multicast && !overlay.link_local, "{overlay:?}");
        assert!(!overlay.up, "not before its program is attached");
        let vxlan = self::config(Mode::Vxlan);
        assert!(super::open_overlay(&vxlan).await.unwrap());
        assert!(!super::open_overlay(&vxlan).await.unwrap(), "once");
        assert!(links::find(OVERLAY).await.unwrap().unwrap().up);
        assert_eq!((overlay.mac, overlay.mtu, overlay.vxlan_port), (Some(Mac(GATEWAY_MAC)), 1450, Some(8472)));
        assert!(ip("-d link show weft_vxlan").contains("nolearning"));
        let addresses = ip("-o addr show dev weft0");
        assert!(addresses.contains("inet 10.1.1.1/32") && addresses.contains("inet6 fd00:1:1::1/128"), "{addresses}");
        assert_eq!(addresses.lines().count(), 2, "{addresses}");
        assert!(!addresses.contains("tentative"), "{addresses}");
    });
}

/// A process that does not outlive the test.
struct Monitor(Child);

impl Drop for Monitor {
    fn drop(&mut self) {
        // Already gone is as good.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_second_pass_and_a_restart_change_nothing() {
    on_a_node(|| async {
        let planned = [to_host("10.1.2.0/24"), to_host("fd00:1:2::/64")];
        let first = super::apply(&config(Mode::Vxlan)).await.unwrap();
        super::apply_routes(&first, &planned).await.unwrap();
        let before = everything();

        let file = tempfile::NamedTempFile::new().unwrap();
        let output = Stdio::from(file.reopen().unwrap());
        let monitor = Monitor(Command::new("ip").args(["monitor", "all"]).stdout(output).spawn().unwrap());
        let told = |marker: &str| wait_for(|| std::fs::read_to_string(file.path()).unwrap().contains(marker));
        wait_for(|| {
            ip("link add begin type veth peer name begin1");
            ip("link del begin");
            std::fs::read_to_string(file.path()).unwrap().contains("begin")
        });
        let begin = std::fs::read_to_string(file.path()).unwrap().len();
        let second = super::apply(&config(Mode::Vxlan)).await.unwrap();
        assert_eq!(super::apply_routes(&second, &planned).await.unwrap(), RouteChanges::default());
        ip("link add marker type veth peer name marker1");
        told("marker");
        ip("link del marker");
        drop(monitor);

        assert_eq!(first, second);
        assert_eq!(everything(), before);
        let events = std::fs::read_to_string(file.path()).unwrap();
        let events: Vec<_> = events[begin..].lines().filter(|line| line.contains("weft")).collect();
        assert!(events.is_empty(), "the kernel told of changes: {events:#?}");
    });
}

fn wait_for(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "the condition did not come true");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn removal_is_exact() {
    on_a_node(|| async {
        ip("link add weftpod0 type veth peer name inside");
        let before = everything();
        let observation = super::apply(&config(Mode::Vxlan)).await.unwrap();
        super::apply_routes(&observation, &[via("10.1.2.0/24", "192.0.2.2")]).await.unwrap();
        assert_ne!(everything(), before);
        super::remove().await.unwrap();
        assert_eq!(everything(), before);
        super::remove().await.unwrap();
        assert_eq!(everything(), before);
    });
}

#[test]
fn the_overlay_follows_mode_and_port() {
    on_a_node(|| async {
        let vxlan = config(Mode::Vxlan);
        super::apply(&vxlan).await.unwrap();
        let other = DeviceConfig { vxlan_port: 4789, ..vxlan };
        super::apply(&other).await.unwrap();
        assert_eq!(links::find(OVERLAY).await.unwrap().unwrap().vxlan_port, Some(4789));
        let native = super::apply(&config(Mode::Native)).await.unwrap();
        assert!(links::find(OVERLAY).await.unwrap().is_none());
        assert_eq!((native.facts.config.overlay_ifindex, native.facts.config.vni, native.pod_mtu), (0, 0, 1500));

        ip("link add other type vxlan external dstport 4789");
        ip("link set other up");
        super::apply(&other).await.unwrap();
        let text = super::open_overlay(&other).await.unwrap_err().to_string();
        assert!(text.starts_with("vxlanPort: UDP port 4789 is used"), "{text}");
    });
}

/// As after a change of the configuration: what is there moves to it, and nothing of the other kind is left.
#[test]
fn the_nodes_own_devices_follow_mode_and_mtu() {
    on_a_node(|| async {
        let mtus = async || {
            let mut found = Vec::new();
            for name in [HOST_PORT, HOST_PORT_PEER, OVERLAY] {
                found.push(links::find(name).await.unwrap().map(|link| link.mtu));
            }
            found
        };
        let first = super::apply(&config(Mode::Vxlan)).await.unwrap();
        let indices = |observation: &super::Observation| observation.facts.config.host_ifindex;
        let lower = DeviceConfig { mtu: Some(1300), ..config(Mode::Vxlan) };
        let observed = super::apply(&lower).await.unwrap();
        assert_eq!(mtus().await, [Some(1300); 3]);
        let config = observed.facts.config;
        assert_eq!((config.mtu, config.workload_mtu, observed.pod_mtu), (1300, 1300, 1300));
        assert_eq!(indices(&first), indices(&observed), "the same device");
        let native = super::apply(&self::config(Mode::Native)).await.unwrap();
        assert_eq!(mtus().await, [Some(1500), Some(1500), None]);
        assert_eq!((native.facts.config.mtu, native.facts.config.workload_mtu), (1500, 0));
        super::next_hops(&native.uplink, &["192.0.2.20".parse().unwrap()], &BTreeMap::new()).await.unwrap();
        assert!(ip("neigh show protocol 119").contains("192.0.2.20"));
        super::apply(&self::config(Mode::Vxlan)).await.unwrap();
        assert_eq!(mtus().await, [Some(1450); 3]);
        assert_eq!(ip("neigh show protocol 119"), "");
    });
}

/// A device beside the uplink becomes narrower while nobody can tell the uplink: the programs must ask it from then on.
#[test]
fn what_every_way_takes_is_known_without_an_uplink_too() {
    on_a_node(|| async {
        ip("link add up1 type veth peer name wire1");
        ip("link set up1 up");
        ip("link set wire1 up");
        let config = config(Mode::Vxlan);
        let before = super::apply(&config).await.unwrap();
        assert_eq!(before.facts.config.mtu, 1450);
        ip("route del default");
        ip("-6 route del default");
        super::repair(&config).await.unwrap_err();
        ip("link set up1 mtu 1400");
        let kept = super::keep(&config, &before).await.unwrap().observation;
        assert_eq!((kept.facts.config.mtu, kept.pod_mtu), (1400, 1450));
    });
}

#[test]
fn observing_changes_nothing() {
    on_a_node(|| async {
        let before = everything();
        let observation = super::observe(&config(Mode::Vxlan)).await.unwrap();
        assert_eq!((observation.facts.config.host_ifindex, observation.facts.config.overlay_ifindex), (0, 0));
        assert_eq!(everything(), before);
    });
}

#[test]
fn a_foreign_device_under_our_name_is_an_error_and_stays() {
    for foreign in
        ["weft0 type bridge", "weft0 type veth peer name other", "weft1 type bridge", "weft_vxlan type bridge"]
    {
        on_a_node(move || async move {
            ip(&format!("link add {foreign}"));
            let name = foreign.split(' ').next().unwrap();
            let text = super::apply(&config(Mode::Vxlan)).await.unwrap_err().to_string();
            assert!(text.contains(&format!("'{name}'")) && text.ends_with("delete or rename it"), "{text}");
            super::remove().await.unwrap_err();
            assert!(links::find(name).await.unwrap().is_some());
        });
    }
}

/// How the error begins, and what is wrong.
type Case = (&'static str, fn(&mut DeviceConfig));

#[test]
fn configuration_errors_name_field_and_fix() {
    let cases: [Case; 8] = [
        ("uplink: this node has no link 'eth7': give one of wire0, up0", |c| c.uplink = Some("eth7".to_owned())),
        ("nodeAddresses: no device of this node has the address 192.0.2.77", |c| {
            c.node_addresses = vec!["192.0.2.77".parse().unwrap()];
        }),
        ("masqueradePorts: the range is empty", |c| c.masquerade_ports = Some(0..=100)),
        ("podCIDRs: 10.1.1.0/24 and 10.1.2.0/24 are of one family", |c| {
            c.pod_cidrs = vec![net("10.1.1.0/24"), net("10.1.2.0/24")];
        }),
        ("podCIDRs: 10.1.1.0/31 has no room", |c| c.pod_cidrs = vec![net("10.1.1.0/31")]),
        ("vni: 16777216 does not fit", |c| c.vni = 1 << 24),
        ("mtu: 1451 is not within 1280 to 1450", |c| c.mtu = Some(1451)),
        ("mtu: 1279 is not within 1280 to 1450", |c| c.mtu = Some(1279)),
    ];
    for (expected, change) in cases {
        on_a_node(move || async move {
            let mut config = config(Mode::Vxlan);
            change(&mut config);
            let before = everything();
            let text = super::apply(&config).await.unwrap_err().to_string();
            assert!(text.starts_with(expected), "'{text}' does not begin with '{expected}'");
            assert_eq!(everything(), before, "{expected}");
        });
    }
}

#[test]
fn the_nodes_addresses_and_routers_are_kept_from_services() {
    on_a_node(|| async {
        ip("link add dns0 type bridge");
        ip("addr add 10.96.0.10/32 dev dns0");
        let reserved = async || super::observe(&config(Mode::Vxlan)).await.unwrap().facts.reserved;
        let expected: Vec<IpAddr> =
            ["192.0.2.1", "192.0.2.10", "2001:db8::1", "2001:db8::10"].map(|a| a.parse().unwrap()).into();
        assert_eq!(reserved().await, expected, "not what a DNS cache has for a Service");
        // As clouds give them out: the node's address stands alone, and its routers are many.
        ip("addr del 192.0.2.10/24 dev up0");
        ip("addr add 192.0.2.10/32 dev up0");
        ip("route replace default nexthop via 192.0.2.7 dev up0 onlink nexthop via 192.0.2.8 dev up0 onlink");
        let expected: Vec<IpAddr> =
            ["192.0.2.7", "192.0.2.8", "192.0.2.10", "2001:db8::1", "2001:db8::10"].map(|a| a.parse().unwrap()).into();
        assert_eq!(reserved().await, expected);
    });
}

#[test]
fn a_default_route_of_several_ways_leads_to_an_uplink() {
    on_a_node(|| async {
        ip("-6 route del default");
        ip("link add up1 type veth peer name wire1");
        ip("link set up1 up");
        ip("link set wire1 up");
        ip("addr add 198.51.100.10/24 dev up1");
        ip("route replace default nexthop via 192.0.2.1 dev up0 nexthop via 198.51.100.1 dev up1");
        let observed = super::observe(&config(Mode::Vxlan)).await.unwrap();
        assert_eq!((observed.uplink.name.as_str(), observed.node_v4), ("up0", Some("192.0.2.10".parse().unwrap())));
    });
}

/// A node whose InternalIP is not on the device of its default route, and one without a default route.
#[test]
fn the_uplink_has_the_address_of_the_node_object() {
    on_a_node(|| async {
        ip("link add up1 type veth peer name wire1");
        ip("link set up1 up");
        ip("link set wire1 up");
        ip("addr add 198.51.100.10/24 dev up1");
        let told = |addresses: &[&str]| DeviceConfig {
            told_addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ..config(Mode::Vxlan)
        };
        let here = told(&["203.0.113.1", "198.51.100.10"]);
        for _ in 0..2 {
            let observed = super::observe(&here).await.unwrap();
            let addresses = (observed.node_v4.map(IpAddr::from), observed.node_v6.map(IpAddr::from));
            assert_eq!(addresses, (Some("198.51.100.10".parse().unwrap()), None));
            assert_eq!(observed.uplink.name, "up1");
            let heard: Vec<_> = observed.devices.heard.iter().map(|heard| heard.name.as_str()).collect();
            assert_eq!((heard[0], heard.len()), ("up1", 4), "{heard:?}");
            drop(Command::new("ip").args(["route", "del", "default"]).status());
        }
        ip("route add default via 192.0.2.1");
        let absent = super::observe(&told(&["203.0.113.1"])).await.unwrap();
        assert_eq!((absent.uplink.name.as_str(), absent.node_v4), ("up0", Some("192.0.2.10".parse().unwrap())));
    });
}

#[test]
fn the_uplink_is_found_by_name_by_address_or_by_default_route() {
    on_a_node(|| async {
        ip("link add up1 mtu 9000 type veth peer name wire1");
        ip("link set up1 up");
        ip("link set wire1 up");
        ip("addr add 198.51.100.10/24 dev up1");
        let by_route = super::observe(&config(Mode::Native)).await.unwrap();
        assert_eq!(by_route.uplink.name, "up0");
        let named = DeviceConfig { uplink: Some("up1".to_owned()), ..config(Mode::Native) };
        let named = super::observe(&named).await.unwrap();
        assert_eq!((named.uplink.name.as_str(), named.pod_mtu), ("up1", 9000));
        assert_eq!((named.node_v4, named.node_v6), (Some("198.51.100.10".parse().unwrap()), None));
        let addressed = DeviceConfig { node_addresses: vec!["198.51.100.10".parse().unwrap()], ..config(Mode::Native) };
        assert_eq!(super::observe(&addressed).await.unwrap().uplink.name, "up1");
        ip("route del default");
        ip("-6 route del default");
        let text = super::observe(&config(Mode::Native)).await.unwrap_err().to_string();
        assert_eq!(text, "uplink: the node has no default route to find it by: give one of wire0, up0, wire1, up1");
    });
}

#[test]
fn next_hops_are_routers_and_neighbours_whose_ethernet_address_the_kernel_keeps() {
    on_a_node(|| async {
        let nodes: Vec<IpAddr> = ["192.0.2.10", "192.0.2.20", "203.0.113.5", "2001:db8::20", "2001:db8:5::1"]
            .map(|a| a.parse().unwrap())
            .into();
        let uplink = links::find("up0").await.unwrap().unwrap();
        let hops = async |nodes: &[IpAddr], before: &_| super::next_hops(&uplink, nodes, before).await.unwrap();
        let router = |address: &str| NextHop::Router(address.parse().unwrap());
        let mut expected: BTreeMap<IpAddr, NextHop> = [
            ("192.0.2.20".parse().unwrap(), NextHop::Neighbour(None)),
            ("203.0.113.5".parse().unwrap(), router("192.0.2.1")),
            ("2001:db8::20".parse().unwrap(), NextHop::Neighbour(None)),
            ("2001:db8:5::1".parse().unwrap(), router("2001:db8::1")),
        ]
        .into();
        assert_eq!(hops(&nodes, &BTreeMap::new()).await, expected);
        // As if the neighbour had answered, and then did no more.
        ip("neigh replace 192.0.2.20 lladdr 02:00:00:00:00:20 nud stale extern_learn dev up0 protocol 119");
        expected.insert(nodes[1], NextHop::Neighbour(Some(Mac([2, 0, 0, 0, 0, 0x20]))));
        let answered = hops(&nodes, &BTreeMap::new()).await;
        assert_eq!(answered, expected);
        ip("neigh del 192.0.2.20 dev up0");
        assert_eq!(hops(&nodes, &answered).await, expected);
        let kept = ip("neigh show dev up0 protocol 119");
        assert!(kept.contains("192.0.2.20") && kept.contains("managed"), "{kept}");
        ip("tuntap add ppp0 mode tun");
        ip("link set ppp0 up");
        ip("addr add 10.99.0.1/24 dev ppp0");
        let ppp0 = links::find("ppp0").await.unwrap().unwrap();
        let beyond = "10.99.0.2".parse().unwrap();
        let found = super::next_hops(&ppp0, &[beyond], &BTreeMap::new()).await.unwrap();
        assert_eq!(found, [(beyond, NextHop::Router(beyond))].into(), "no Ethernet address");
        // A node that has gone.
        ip("route del default");
        assert_eq!(hops(&nodes[2..3], &BTreeMap::new()).await, BTreeMap::new());
        assert!(!ip("neigh show dev up0 protocol 119").contains("192.0.2.20"));
    });
}

#[test]
fn ports_are_prepared_found_listed_and_deleted() {
    on_a_node(|| async {
        ip("tuntap add wefttap1 mode tap");
        ip("link add weftveth1 type veth peer name inside");
        for name in ["wefttap1", "weftveth1"] {
            let accept_local = format!("net.ipv4.conf.{name}.accept_local=1");
            let settings = ["-q", "-w", "net.ipv4.ip_forward=1", &accept_local];
            assert!(Command::new("sysctl").args(settings).status().unwrap().success());
            assert!(!links::is_prepared(&links::find(name).await.unwrap().unwrap()));
            let link = links::prepare_port(name).await.unwrap();
            assert!(links::is_prepared(&link));
            assert!(!link.up && !link.multicast && !link.link_local && !link.ipv6 && link.noarp, "{link:?}");
            assert_eq!((link.mac, link.rp_filter, link.forwarding), (Some(Mac(GATEWAY_MAC)), 1, 0));
            assert_eq!(link.accept_local, 0);
            assert_eq!(links::prepare_port(name).await.unwrap(), link);
            links::open_port(name).await.unwrap();
            assert!(links::find(name).await.unwrap().unwrap().up);
            links::close_port(name).await.unwrap();
            assert_eq!(links::find(name).await.unwrap().unwrap(), link);
        }
        let names: Vec<_> = links::list_weft().await.unwrap().into_iter().map(|link| link.name).collect();
        assert_eq!(names, ["wefttap1", "weftveth1"]);
        assert!(links::delete("weftveth1").await.unwrap());
        assert!(!links::delete("weftveth1").await.unwrap());
        assert_eq!(links::find("inside").await.unwrap(), None);
        let text = links::prepare_port("weftveth1").await.unwrap_err().to_string();
        assert!(text.starts_with("cannot find link 'weftveth1'"), "{text}");
    });
}

#[test]
fn the_gateway_is_the_first_address() {
    assert_eq!(super::gateway(&net("10.1.1.77/24")), "10.1.1.1".parse::<IpAddr>().unwrap());
    assert_eq!(super::gateway(&net("fd00::/64")), "fd00::1".parse::<IpAddr>().unwrap());
}
