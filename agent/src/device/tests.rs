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
use crate::model::{HostRoute, Mode, NextHop};

mod changes;
mod pools;

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

/// Links, addresses and routes of the namespace as lines, without what the kernel changes in its own time when a carrier comes
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
    let routes = ["route show", "-6 route show"].map(ip).concat();
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

#[test]
fn routes_are_diffed_and_foreign_ones_left_alone() {
    on_a_node(|| async {
        ip("route add 10.9.0.0/24 via 192.0.2.9 proto static");
        let observation = super::apply(&config(Mode::Native)).await.unwrap();
        let planned = [via("10.1.2.0/24", "192.0.2.2"), via("fd00:1:2::/64", "2001:db8::2"), to_host("10.1.3.0/24")];
        let first = super::apply_routes(&observation, &planned).await.unwrap();
        // Two pod CIDRs, two Service CIDRs and two hairpin addresses go with the three planned ones.
        assert_eq!(first, RouteChanges { added: 9, replaced: 0, removed: 0 });
        assert_eq!(super::apply_routes(&observation, &planned).await.unwrap(), RouteChanges::default());

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
        let second = super::apply_routes(&observation, &moved).await.unwrap();
        assert_eq!(second, RouteChanges { added: 0, replaced: 2, removed: 1 });
        assert!(ip("route show 10.1.2.0/24").contains("via 192.0.2.3"));
        assert_eq!(ip("-6 route show fd00:1:2::/64").lines().count(), 1, "replaced, not doubled");
        assert!(ip("route show 10.9.0.0/24").contains("192.0.2.9"));

        let taken = super::apply_routes(&observation, &[via("10.9.0.0/24", "192.0.2.3"), to_host("10.1.4.0/24")]).await;
        let text = taken.unwrap_err().to_string();
        assert!(text.contains("10.9.0.0/24") && text.contains("exists"), "{text}");
        assert!(ip("route show 10.9.0.0/24").contains("192.0.2.9"), "a foreign route is not taken over");
        assert!(ip("route show 10.1.4.0/24").contains("weft0"), "the others are applied");
    });
}

#[test]
fn prefixes_that_make_a_wider_one_are_one_route() {
    on_a_node(|| async {
        let observation = super::apply(&config(Mode::Vxlan)).await.unwrap();
        let nodes = ["10.1.0.0/24", "10.1.2.0/24", "10.1.3.0/24", "fd00:1::/64"].map(to_host);
        super::apply_routes(&observation, &nodes).await.unwrap();
        let routes = || [ip("route show proto 119"), ip("-6 route show proto 119")].concat();
        // With the node's own.
        assert!(routes().contains("10.1.0.0/22 dev weft0"), "{}", routes());
        assert!(!routes().contains("10.1.1.0/24") && !routes().contains("10.1.2.0/24"), "{}", routes());
        let leads_there = |address: &str| ip(&format!("route get {address}")).contains("dev weft0");

        // One of them goes: its addresses, and no others.
        let left = [&nodes[..1], &nodes[2..]].concat();
        let changes = super::follow_routes(&observation, &nodes, &left).await.unwrap();
        assert_eq!(changes, RouteChanges { added: 2, replaced: 0, removed: 1 });
        assert!(["10.1.0.7", "10.1.1.7", "10.1.3.7"].into_iter().all(leads_there) && !leads_there("10.1.2.7"));
        assert_eq!(super::apply_routes(&observation, &left).await.unwrap(), RouteChanges::default());
    });
}

#[test]
fn a_route_of_somebody_else_wins_over_no_more_than_before() {
    on_a_node(|| async {
        let observation = super::apply(&config(Mode::Vxlan)).await.unwrap();
        let nodes = ["10.1.0.0/24", "fd00:7::/64", "fd00:7:0:1::/64"].map(to_host);
        super::apply_routes(&observation, &nodes).await.unwrap();
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
        super::apply_routes(&observation, &nodes).await.unwrap();
        assert!(["fd00:7::7", "fd00:7:0:1::7"].into_iter().all(leads_there), "{}", routes());

        // The very prefix of a node is named, and leads nobody else away; what led there before goes all the same.
        ip("route add 10.1.0.0/24 via 192.0.2.9");
        let error = super::apply_routes(&observation, &nodes).await.unwrap_err().to_string();
        assert!(error.contains("a route to 10.1.0.0/24 that is not Weft's exists"), "{error}");
        assert!(leads_there("10.1.1.7") && ip("route show 10.1.0.0/24").contains("192.0.2.9"), "{}", routes());
        assert!(!routes().contains("10.1.0.0/23"), "{}", routes());
    });
}

#[test]
fn a_route_stays_until_the_one_that_takes_its_place_stands() {
    on_a_node(|| async {
        let mut observation = super::apply(&config(Mode::Vxlan)).await.unwrap();
        let nodes = ["10.1.2.0/24", "10.1.3.0/24"].map(to_host);
        super::apply_routes(&observation, &nodes[..1]).await.unwrap();
        // The kernel refuses every route from an address that the node has no more.
        let had = observation.node_v4.replace("192.0.2.99".parse().unwrap());
        super::apply_routes(&observation, &nodes).await.unwrap_err();
        assert!(ip("route show proto 119").contains("10.1.2.0/24 dev weft0"));
        observation.node_v4 = had;
        super::apply_routes(&observation, &nodes).await.unwrap();
        assert!(ip("route show proto 119").contains("10.1.2.0/23 dev weft0"));
        assert!(!ip("route show proto 119").contains("10.1.2.0/24"));
        // A wide one in whose place narrower ones come as well.
        observation.node_v4.replace("192.0.2.99".parse().unwrap());
        super::apply_routes(&observation, &nodes[..1]).await.unwrap_err();
        assert!(ip("route show proto 119").contains("10.1.2.0/23 dev weft0"));
    });
}

#[test]
fn the_host_reaches_services_and_pods_through_its_port() {
    on_a_node(|| async {
        let observation = super::apply(&config(Mode::Vxlan)).await.unwrap();
        super::apply_routes(&observation, &[to_host("10.1.2.0/24")]).await.unwrap();
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
fn routes_of_services_come_and_go_one_by_one() {
    on_a_node(|| async {
        let observation = super::apply(&config(Mode::Vxlan)).await.unwrap();
        let many = [to_host("10.97.0.1/32"), to_host("10.97.0.2/32"), to_host("fd00:97::1/128")];
        super::apply_routes(&observation, &many[..2]).await.unwrap();
        // Somebody else's, which took the place of one of ours: what is not Weft's stays.
        ip("route del 10.97.0.1/32");
        ip("route add 10.97.0.1/32 via 192.0.2.9");
        let changes = super::follow_routes(&observation, &many[..2], &many[1..]).await.unwrap();
        assert_eq!(changes, RouteChanges { added: 1, replaced: 0, removed: 1 });
        assert_eq!(ip("route show 10.97.0.1").trim(), "10.97.0.1 via 192.0.2.9 dev up0");
        assert!(ip("-6 route show proto 119").contains("fd00:97::1 dev weft0"));
        let all = many.to_vec();
        let error = super::follow_routes(&observation, &many[1..], &all).await.unwrap_err().to_string();
        assert!(error.contains("a route to 10.97.0.1/32 that is not Weft's exists"), "{error}");
        super::follow_routes(&observation, &many[1..], &[]).await.unwrap();
        assert!(!ip("route show proto 119").contains("10.97"));
        assert_eq!(super::apply_routes(&observation, &[]).await.unwrap(), RouteChanges::default(), "as a look has it");
    });
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
