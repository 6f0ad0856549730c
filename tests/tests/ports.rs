// SPDX-License-Identifier: Apache-2.0

//! A port is closed until its programs are attached, and passes the first packet when ADD has answered.

use std::{rc::Rc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use weft_testbed::{Attachment, Bed, Node, Options, Plug, Shell, until_ok};

const PATIENCE: Duration = Duration::from_secs(20);

/// Starts to write down every change of a link of `node`.
fn watch_links(node: &Node) -> Result<()> {
    node.start("links", "exec ip -o monitor link")?;
    until_ok("the monitor listens", PATIENCE, || {
        node.sh("ip link add mark type veth peer name mark1 && ip link del mark")?.ok()?;
        ensure!(node.sh("cat /run/links.out")?.output.contains("mark"), "nothing yet");
        Ok(())
    })
}

/// Lines of [`watch_links`] that name `port`, up to this moment.
fn changes(node: &Node, port: &str) -> Result<Vec<String>> {
    node.sh("ip link add end type veth peer name end1 && ip link del end")?.ok()?;
    let log = until_ok("the end is written", PATIENCE, || {
        let log = node.sh("cat /run/links.out")?.output;
        ensure!(log.contains(" end@"), "{log}");
        Ok(log)
    })?;
    Ok(log.lines().filter(|line| line.contains(port)).map(str::to_owned).collect())
}

fn is_up(line: &str) -> bool {
    line.contains(",UP") || line.contains("<UP")
}

/// Takes the place of the filters on each port that appears, before the agent comes to it.
const THIEF: &str = "
    touch /run/thief
    agent=$(pidof weft-agent)
    while [ -e /run/thief ]; do
        for port in /sys/class/net/weft??????????; do
            [ -e $port ] || continue
            kill -STOP $agent
            tc qdisc add dev ${port##*/} ingress
            kill -CONT $agent
            while [ -e $port ]; do sleep 0.01; done
        done
    done";

/// What ADD says where the thief was first. At times the agent is: such a port goes to `served`.
fn refused_add(node: &Rc<Node>, pod: &str, plug: Plug, served: &mut Vec<String>) -> Result<String> {
    for _ in 0..40 {
        let mut attachment = Attachment::new(node, pod, plug)?;
        if let Err(error) = attachment.add() {
            return Ok(format!("{error:#}"));
        }
        served.push(attachment.interface(false)?["name"].as_str().context("no name")?.to_owned());
        attachment.del()?;
    }
    bail!("{pod} was never attached too late")
}

#[test]
fn a_port_without_programs_is_never_up() -> Result<()> {
    let bed = Bed::with(&Options { nodes: 1, ..Options::default() })?;
    let node = bed.node(1);
    watch_links(node)?;
    node.start("thief", THIEF)?;
    let mut served = Vec::new();
    for (pod, plug) in [("default/pod", Plug::Veth), ("default/vm", Plug::Tap), ("default/vhost", Plug::VhostUser)] {
        let refused = refused_add(node, pod, plug, &mut served)?;
        ensure!(refused.contains("`ingress` qdisc of somebody else's"), "{pod}: {refused}");
    }
    node.sh("rm /run/thief")?.ok()?;
    let mut seen = changes(node, "weft")?;
    seen.retain(|line| !served.iter().any(|port| line.contains(port)));
    ensure!(seen.len() >= 3, "the ports were not seen: {seen:#?}");
    let up: Vec<_> = seen.iter().filter(|line| is_up(line)).collect();
    ensure!(up.is_empty(), "{up:#?}");
    Attachment::new(node, "default/pod", Plug::Veth)?.add()
}

#[test]
fn a_port_that_lost_its_programs_is_closed_until_the_next_agent_attaches_them() -> Result<()> {
    let bed = Bed::with(&Options { nodes: 1, ..Options::default() })?;
    let node = bed.node(1);
    let mut ports = Vec::new();
    for (pod, plug) in [("default/pod", Plug::Veth), ("default/vm", Plug::Tap)] {
        let mut attachment = Attachment::new(node, pod, plug)?;
        attachment.add()?;
        ports.push(attachment);
    }
    node.stop_agent(Signal::SIGKILL)?;
    for attachment in &ports {
        let port = attachment.interface(false)?["name"].as_str().context("no name")?.to_owned();
        node.sh(&weft_testbed::detach_programs(&port))?.ok()?;
    }
    watch_links(node)?;
    node.start_agent()?;
    node.agent_ready()?;
    let seen = changes(node, "weft")?;
    for attachment in &ports {
        let port = attachment.interface(false)?["name"].as_str().context("no name")?.to_owned();
        let states: Vec<bool> = seen.iter().filter(|line| line.contains(&port)).map(|line| is_up(line)).collect();
        ensure!(states.first() == Some(&false) && states.last() == Some(&true), "{port}: {seen:#?}");
        // Which looks for the programs too.
        attachment.call("CHECK")?;
    }
    Ok(())
}

#[test]
fn the_first_packet_of_a_pod_finds_both_ends_running() -> Result<()> {
    let bed = Bed::with(&Options { nodes: 1, ..Options::default() })?;
    let node = bed.node(1);
    let mut late = Vec::new();
    for number in 0..40 {
        let pod = bed.container(1, &format!("default/pod{number}"), &[])?;
        let port = pod.attachment().interface(false)?["name"].as_str().context("no name")?.to_owned();
        // Asked of sysfs, which tells what is so: netlink would have the kernel make it so first.
        let state = node.sh(&format!("cat /sys/class/net/{port}/operstate"))?.ok()?;
        if state.trim() != "up" {
            late.push(format!("{port} is {}", state.trim()));
        }
        let addresses = pod.sh("ip -6 -o addr show dev eth0 scope global")?.ok()?;
        ensure!(addresses.contains("inet6") && !addresses.contains("tentative"), "{addresses}");
    }
    ensure!(late.is_empty(), "{} of 40: {late:?}", late.len());
    Ok(())
}
