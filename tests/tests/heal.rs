// SPDX-License-Identifier: Apache-2.0

//! What others change on a node is put back: devices, addresses, routes, programs, ports.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use weft_testbed::{Attachment, Bed, Container, Mode, Node, Options, Plug, Shell, detach_programs, until_ok};

const PATIENCE: Duration = Duration::from_secs(40);

/// That the host of `node` reaches `containers`, in both families, from now on.
fn reaches(node: &Node, containers: &[&Container]) -> Result<()> {
    for address in containers.iter().flat_map(|container| container.addresses()) {
        until_ok(&format!("{} reaches {address}", node.name()), PATIENCE, || {
            node.sh(&format!("ping -c 1 -W 1 {address}"))?.ok()
        })
        .with_context(|| node.agent_log())?;
    }
    Ok(())
}

/// What `weft status` complains of.
fn problems(node: &Node) -> Result<Vec<String>> {
    Ok(node.weft_json::<weft_api::StatusReport>("status")?.problems)
}

/// How often the agent has put back `what`.
fn repairs(node: &Node, what: &str) -> Result<u64> {
    let metrics = node.metrics()?;
    let name = format!("weft_repairs_total{{what=\"{what}\"}} ");
    let line =
        metrics.lines().find_map(|line| line.strip_prefix(&name)).with_context(|| format!("{name}: {metrics}"))?;
    Ok(line.trim().parse()?)
}

/// Breaks something on node 1 by `script`; the host must reach pods again, and `what` must have been counted.
fn heals(bed: &Bed, containers: &[&Container], what: &str, script: &str) -> Result<()> {
    let node = bed.node(1);
    let before = repairs(node, what)?;
    node.sh(script)?.ok()?;
    reaches(node, containers)?;
    until_ok(&format!("{script} is counted"), PATIENCE, || {
        ensure!(repairs(node, what)? > before, "{what} after {script}: {}", node.agent_log());
        Ok(())
    })?;
    until_ok("no problem is left", PATIENCE, || {
        let problems = problems(node)?;
        ensure!(problems.is_empty(), "{script}: {problems:?}");
        Ok(())
    })
}

#[test]
fn routes_addresses_and_devices_come_back() -> Result<()> {
    let bed = Bed::new()?;
    let (near, far) = (bed.container(1, "default/near", &[])?, bed.container(2, "default/far", &[])?);
    let all = [&near, &far];
    reaches(bed.node(1), &all)?;
    for (what, script) in [
        ("routes", "ip route flush proto 119; ip -6 route flush proto 119"),
        ("routes", "ip route del 10.244.2.0/24"),
        ("devices", "ip addr flush dev weft0"),
        ("devices", "ip link set weft0 down"),
        ("devices", "ip link set weft1 down; ip link set weft_vxlan down"),
        ("devices", "ip link del weft_vxlan"),
        ("devices", "ip link del weft0"),
        // Before the routes that name it as their source the address must be there again.
        (
            "routes",
            "ip addr del 192.168.119.1/24 dev eth0; ip addr add 192.168.119.1/24 dev eth0; ip route add default via 192.168.119.254",
        ),
    ] {
        heals(&bed, &all, what, script)?;
    }
    Ok(())
}

#[test]
fn an_uplink_that_flaps_gets_its_routes_again() -> Result<()> {
    let bed = Bed::with(&Options { mode: Mode::Native, ..Options::default() })?;
    let far = bed.container(2, "default/far", &[])?;
    reaches(bed.node(1), &[&far])?;
    let node = bed.node(1);
    node.sh("ip link set eth0 down")?.ok()?;
    until_ok("the uplink is missed", PATIENCE, || {
        let problems = problems(node)?;
        ensure!(problems.iter().any(|problem| problem.contains("uplink")), "{problems:?}");
        Ok(())
    })?;
    heals(
        &bed,
        &[&far],
        "routes",
        "ip link set eth0 up; ip addr add fd00:119::1/64 dev eth0 nodad
         ip route add default via 192.168.119.254; ip route add default via fd00:119::fe",
    )
}

#[test]
fn ports_get_their_programs_and_settings_again() -> Result<()> {
    let bed = Bed::with(&Options { nodes: 1, ..Options::default() })?;
    let node = bed.node(1);
    let pod = bed.container(1, "default/pod", &[])?;
    let mut tap = Attachment::new(node, "default/vm", Plug::Tap)?;
    tap.add()?;
    for attachment in [pod.attachment(), &tap] {
        let port = attachment.interface(false)?["name"].as_str().context("no name")?.to_owned();
        for (what, script) in [
            ("ports", format!("ip link set {port} down")),
            ("ports", "sysctl -q -w net.ipv4.ip_forward=0 net.ipv4.ip_forward=1".to_owned()),
            ("ports", format!("ip link set {port} arp on address 02:00:00:00:00:99")),
            // The kernel tells nobody of this one.
            ("ports", format!("sysctl -q -w net.ipv6.conf.{port}.disable_ipv6=0")),
            ("programs", format!("tc filter del dev {port} ingress pref 1")),
            ("programs", format!("tc filter del dev {port} egress")),
            ("programs", detach_programs(&port)),
            ("programs", detach_programs("weft0")),
        ] {
            heals(&bed, &[&pod], what, &script)?;
            let state =
                node.sh(&format!("ip -o link show {port}; cat /proc/sys/net/ipv4/conf/{port}/forwarding"))?.ok()?;
            ensure!(state.contains("NOARP") && state.contains(",UP") && state.ends_with("0\n"), "{script}: {state}");
            // Which looks for the programs too.
            attachment.call("CHECK")?;
        }
    }
    Ok(())
}

#[test]
fn a_port_that_is_gone_is_named_until_its_pod_goes() -> Result<()> {
    let bed = Bed::with(&Options { nodes: 1, ..Options::default() })?;
    let node = bed.node(1);
    let mut tap = Attachment::new(node, "default/vm", Plug::Tap)?;
    tap.add()?;
    let port = tap.interface(false)?["name"].as_str().context("no name")?.to_owned();
    node.sh(&format!("ip link del {port}"))?.ok()?;
    until_ok("the port is missed", PATIENCE, || {
        let problems = problems(node)?;
        ensure!(
            problems.iter().any(|problem| problem.contains(&port) && problem.contains("delete its pod")),
            "{problems:?}"
        );
        Ok(())
    })?;
    tap.del()?;
    until_ok("the port is forgotten", PATIENCE, || {
        let problems = problems(node)?;
        ensure!(problems.is_empty(), "{problems:?}");
        Ok(())
    })
}

/// While a process changes addresses and routes without end the agent goes on serving, and heals afterwards.
#[test]
fn a_storm_of_changes_does_not_stop_the_agent() -> Result<()> {
    let bed = Bed::with(&Options { nodes: 1, ..Options::default() })?;
    let node = bed.node(1);
    let storm = node.start(
        "storm",
        "for round in $(seq 60); do
             for host in $(seq 250); do echo \"addr add 198.51.100.$host/32 dev lo\"; done >/run/add
             for host in $(seq 250); do echo \"addr del 198.51.100.$host/32 dev lo\"; done >/run/del
             ip -batch /run/add; ip -batch /run/del
         done",
    )?;
    let pod = bed.container(1, "default/pod", &[])?;
    node.sh("ip addr flush dev weft0")?.ok()?;
    reaches(node, &[&pod])?;
    storm.finish(&**node, Duration::from_secs(60))?;
    heals(&bed, &[&pod], "routes", "ip route flush proto 119")
}
