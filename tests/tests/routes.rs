// SPDX-License-Identifier: Apache-2.0

//! What the host routes to Services, and what of it follows objects.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use weft_testbed::{Bed, Binaries, Node, Options, Protocol, Shell, Tables, service, service_cidr, until_ok};

const PATIENCE: Duration = Duration::from_secs(10);
const PORT: u16 = 8080;
const VIPS: [&str; 2] = ["10.97.0.90", "fd00:97::90"];

fn sockets() -> Vec<SocketAddr> {
    VIPS.iter().map(|vip| SocketAddr::new(vip.parse().expect("an address"), 80)).collect()
}

/// The host's routes of Weft.
fn routes(node: &Node) -> Result<String> {
    node.sh("ip route show proto 119; ip -6 route show proto 119")?.ok()
}

fn routes_are(node: &Node, wanted: &[&str], unwanted: &[&str]) -> Result<()> {
    until_ok(&format!("{} routes {wanted:?} and not {unwanted:?}", node.name()), PATIENCE, || {
        let routes = routes(node)?;
        let has = |prefix: &&&str| routes.lines().any(|line| line.starts_with(&format!("{prefix} ")));
        let (missing, left) = (wanted.iter().find(|prefix| !has(prefix)), unwanted.iter().find(has));
        ensure!(missing.is_none() && left.is_none(), "missing {missing:?}, left {left:?} in\n{routes}");
        Ok(())
    })
    .with_context(|| node.agent_log())
}

/// No Service CIDR is configured: they follow ServiceCIDR objects, and Services that are in none are led to by themselves.
#[test]
fn hosts_and_pods_reach_services_wherever_their_addresses_are() -> Result<()> {
    let bed = Bed::with(&Options { config: json!({"serviceCIDRs": null}), ..Options::default() })?;
    let server = bed.container(2, "default/server", &[("app", "web")])?;
    server.serve("server", PORT)?;
    let client = bed.container(1, "default/client", &[])?;
    let web = service("default/web", VIPS, 80, PORT, &[("app", "web")]);
    bed.apply(&web)?;
    let node = bed.node(1);
    let reached = || -> Result<()> {
        for socket in sockets() {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                client.reaches(protocol, socket, "server")?;
                node.reaches(protocol, socket, "server")?;
            }
        }
        Ok(())
    };
    let (alone, cidrs) = (["10.97.0.90", "fd00:97::90"], ["10.97.0.0/16", "fd00:97::/112"]);
    routes_are(node, &alone, &cidrs)?;
    reached()?;
    let more = service_cidr("more", &["10.97.0.0/16", "fd00:97::/112"]);
    bed.apply(&more)?;
    routes_are(node, &cidrs, &alone)?;
    reached()?;
    let refused = node.drops("no-service")?;
    ensure!(node.sh("ping -c 1 -W 1 10.97.7.7")?.status != 0, "nobody has that address");
    ensure!(node.drops("no-service")? > refused, "what is nobody's leaves the node");
    bed.delete(&more)?;
    routes_are(node, &alone, &cidrs)?;
    reached()?;
    bed.delete(&web)?;
    routes_are(node, &[], &alone)
}

/// What somebody writes into a ServiceCIDR does not cut the node off.
#[test]
fn a_service_cidr_that_covers_the_nodes_network_is_refused_alone_and_aloud() -> Result<()> {
    let bed = Bed::with(&Options { config: json!({"serviceCIDRs": null}), ..Options::default() })?;
    let node = bed.node(1);
    let far = bed.container(2, "default/far", &[])?;
    for (name, cidrs, why) in [
        ("net", ["192.168.119.0/24", "fd00:98::/112"], "an address of this node or its router"),
        ("pods", ["10.244.2.0/24", "fd00:98::/112"], "overlaps the pod CIDR 10.244.2.0/24"),
        ("all", ["11.0.0.0/4", "fd00:98::/112"], "host bits"),
        ("wide", ["16.0.0.0/4", "fd00:98::/112"], "wider than /8"),
    ] {
        bed.apply(&service_cidr(name, &cidrs))?;
        until_ok(&format!("{name} is named"), PATIENCE, || {
            let problems = node.weft_json::<weft_api::StatusReport>("status")?.problems;
            let named = problems
                .iter()
                .any(|problem| problem.contains(&format!("ServiceCIDR {name}: spec.cidrs")) && problem.contains(why));
            ensure!(named, "{problems:?}");
            Ok(())
        })?;
        node.pings(bed.node(2).v4().into(), 56)?;
        for address in far.addresses() {
            node.pings(*address, 56)?;
        }
        routes_are(node, if name == "all" { &[] } else { &["fd00:98::/112"] }, &["192.168.119.0/24", "16.0.0.0/4"])?;
        bed.delete(&service_cidr(name, &cidrs))?;
        routes_are(node, &[], &["fd00:98::/112"])?;
    }
    Ok(())
}

/// Nodes without IPv4 addresses carry both families of their pods over IPv6; one beside them that has both reaches them too.
#[test]
fn nodes_with_ipv6_alone_are_tunnel_ends() -> Result<()> {
    let bed = Bed::idle(&Options { nodes: 3, ..Options::default() }, &Binaries::locate()?)?;
    for node in &bed.nodes()[..2] {
        node.sh("ip -4 address flush dev eth0")?.ok()?;
    }
    bed.nodes().iter().try_for_each(|node| node.start_agent())?;
    bed.nodes().iter().try_for_each(|node| node.agent_ready())?;
    bed.nodes().iter().try_for_each(|node| node.agent_knows(2))?;
    let pods: Vec<_> =
        (1..=3).map(|number| bed.container(number, &format!("default/p{number}"), &[])).collect::<Result<_>>()?;
    for (from, pod) in pods.iter().enumerate() {
        for address in pods.iter().flat_map(|pod| pod.addresses()) {
            pod.pings(*address, 56).with_context(|| bed.node(from + 1).agent_log())?;
        }
        let status: weft_api::StatusReport = bed.node(from + 1).weft_json("status")?;
        let ends: Vec<bool> = status.routes.iter().map(|route| route.via.is_ipv6()).collect();
        ensure!(ends.iter().all(|is_ipv6| *is_ipv6), "{:?}", status.routes);
    }
    Ok(())
}

/// The devices that `weft status` names, and those that have the uplink's program; they agree before this returns.
fn devices(node: &Node, heard: &[&str], by_stack: &[&str]) -> Result<()> {
    until_ok(&format!("{} is heard by {heard:?}, and {by_stack:?} by its stack", node.name()), PATIENCE, || {
        let status: weft_api::StatusReport = node.weft_json("status")?;
        ensure!(status.devices == heard && status.stack_devices == by_stack, "told: {status:?}");
        let attached =
            node.sh("for pin in /sys/fs/bpf/weft/*/links/*-from_uplink /sys/fs/bpf/weft/*/links/*-from_l3; do
                 index=$(basename $pin); index=${index%%-*}
                 ip -o link | sed -n \"s/^$index: \\([^:@]*\\).*/\\1/p\"
             done | sort")?;
        let mut wanted = heard.to_vec();
        wanted.sort_unstable();
        ensure!(attached.clone().ok()?.lines().eq(wanted), "attached: {}", attached.output);
        ensure!(status.problems.is_empty(), "{:?}", status.problems);
        Ok(())
    })
    .with_context(|| node.agent_log())
}

/// Every device by which somebody outside may be heard has the program, whenever it comes, goes, is renamed or becomes a port.
#[test]
fn all_devices_of_a_node_are_heard() -> Result<()> {
    let bed = Bed::with(&Options { nodes: 1, ..Options::default() })?;
    let node = bed.node(1);
    let _pod = bed.container(1, "default/pod", &[])?;
    devices(node, &["eth0"], &[])?;
    for (script, heard, by_stack) in [
        ("ip link add eth1 type veth peer name far1; ip link set far1 down", &["eth0"][..], &[][..]),
        ("ip link set eth1 up", &["eth0", "eth1"], &[]),
        ("ip link set eth1 down; ip link set eth1 name nic1; ip link set nic1 up", &["eth0", "nic1"], &[]),
        ("ip link add br1 type bridge; ip link set br1 up; ip link set nic1 master br1", &["eth0", "br1"], &[]),
        ("ip link set nic1 nomaster", &["eth0", "nic1", "br1"], &[]),
        ("ip link del nic1", &["eth0", "br1"], &[]),
        ("ip tuntap add ppp0 mode tun; ip link set ppp0 up", &["eth0", "br1", "ppp0"], &[]),
        ("ip link del br1; ip link del ppp0", &["eth0"], &[]),
    ] {
        node.sh(&format!("set -e; {script}"))?.ok()?;
        devices(node, heard, by_stack).with_context(|| script.to_owned())?;
    }
    Ok(())
}

/// Agents start on nodes whose default route has several ways, or an uplink without Ethernet header.
#[test]
fn agents_start_whatever_the_default_route_is() -> Result<()> {
    let bed = Bed::idle(&Options { nodes: 3, ..Options::default() }, &Binaries::locate()?)?;
    let second = "ip link add eth1 type veth peer name far1; ip link set far1 up
                  ip link set eth1 up; ip address add 198.51.100.1/24 dev eth1";
    let ways = "nexthop via 192.168.119.254 dev eth0 nexthop via 198.51.100.2 dev eth1";
    bed.node(1).sh(&format!("set -e; {second}; ip route replace default {ways}; ip -6 route del default"))?.ok()?;
    let tun = "ip tuntap add ppp0 mode tun; ip link set ppp0 up; ip address add 10.99.0.1/30 dev ppp0";
    bed.node(2).sh(&format!("set -e; {tun}; ip route replace default via 10.99.0.2; ip -6 route del default"))?.ok()?;
    // The routes of VPNs: two halves in place of a default route, which stands.
    bed.node(3)
        .sh(&format!("set -e; {tun}; ip route add 0.0.0.0/1 via 10.99.0.2; ip route add 128.0.0.0/1 via 10.99.0.2"))?
        .ok()?;
    for (node, heard) in [
        (bed.node(1), &["eth0", "eth1", "far1"][..]),
        (bed.node(2), &["eth0", "ppp0"]),
        (bed.node(3), &["eth0", "ppp0"]),
    ] {
        node.start_agent()?;
        node.agent_ready()?;
        let status: weft_api::StatusReport = node.weft_json("status")?;
        let mut found = status.devices.clone();
        found.sort_unstable();
        ensure!(found == heard && status.stack_devices.is_empty(), "{}: {status:?}", node.name());
    }
    Ok(())
}

/// Flows decide again when the host's own routes, addresses or links are others, and not for what Weft does itself.
#[test]
fn what_changes_of_the_host_moves_the_generation_of_routes() -> Result<()> {
    let bed = Bed::with(&Options { nodes: 1, ..Options::default() })?;
    let node = bed.node(1);
    let tables = Tables::of(node)?;
    let quiet = || -> Result<u32> {
        let mut last = tables.routes_generation()?;
        until_ok("the generation stands", PATIENCE, || {
            std::thread::sleep(Duration::from_secs(1));
            let now = tables.routes_generation()?;
            let before = std::mem::replace(&mut last, now);
            ensure!(before == now, "{before} to {now}");
            Ok(())
        })?;
        Ok(last)
    };
    let before = quiet()?;
    let pod = bed.container(1, "default/pod", &[("app", "web")])?;
    bed.apply(&service("default/web", ["10.96.0.10", "fd00:96::10"], 80, PORT, &[("app", "web")]))?;
    node.pings(pod.addresses()[0], 56)?;
    node.sh("ip route flush proto 119")?.ok()?;
    routes_are(node, &["10.96.0.0/16"], &[])?;
    drop(pod);
    ensure!(quiet()? == before, "Weft's own writes move nothing: {}", node.agent_log());
    for script in [
        "ip route add 198.51.100.0/24 via 192.168.119.254",
        "ip -6 route add 2001:db8:9::/64 via fd00:119::fe",
        "ip address add 192.168.119.77/32 dev eth0",
        "ip link add eth1 type veth peer name far1",
        "ip rule add from 192.168.119.77 table 7",
    ] {
        let before = quiet()?;
        node.sh(script)?.ok()?;
        until_ok(script, PATIENCE, || {
            ensure!(tables.routes_generation()? != before, "it is not told");
            Ok(())
        })?;
    }
    let before = quiet()?;
    let began = Instant::now();
    node.sh(
        "for a in $(seq 40); do for b in $(seq 250); do echo route add 172.16.$a.$b via 192.168.119.254; done; done >/run/batch
         ip -batch /run/batch",
    )?
    .ok()?;
    let moves = quiet()? - before;
    let most = 2 + began.elapsed().as_millis() / 250;
    ensure!((1..=most).contains(&u128::from(moves)), "{moves} moves for 10,000 routes, {most} at most");
    // The next agent finds out what changed while none ran. The first restart only settles: the killed agent may not have published the
    // last of the 10,000 routes yet.
    let restarted = |meanwhile: &str| -> Result<(u32, u32)> {
        let before = quiet()?;
        node.stop_agent(Signal::SIGKILL)?;
        node.sh(meanwhile)?.ok()?;
        node.start_agent()?;
        node.agent_ready()?;
        Ok((before, quiet()?))
    };
    restarted("true")?;
    for (meanwhile, moves) in [("true", false), ("ip route del 198.51.100.0/24", true), ("true", false)] {
        let (before, now) = restarted(meanwhile)?;
        ensure!((now != before) == moves, "{before} to {now} after {meanwhile}: {}", node.agent_log());
    }
    Ok(())
}
