// SPDX-License-Identifier: Apache-2.0

//! Guests on vhost-user ports: the same dataplane, and a device that may die under them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use weft_api::{EndpointReport, VmReport};
use weft_testbed::{Bed, Node, Protocol, Shell, service, until_ok};

const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(60);

/// The one vhost-user port of the node, once its device serves its VMM.
fn served(node: &Node) -> Result<VmReport> {
    until_ok("the device serves its VMM", PATIENCE, || {
        let mut vms: Vec<VmReport> = node.weft_json("vm")?;
        let vm = vms.pop().context("no vhost-user port")?;
        let connected = vm.metrics.as_ref().is_some_and(|metrics| metrics["connected"] == true);
        ensure!(vms.is_empty() && vm.state == "ready" && connected, "{vm:?}");
        Ok(vm)
    })
}

/// The value of a metric of the agent's, of the port's own labels and `more`.
fn metric(node: &Node, name: &str, tap: &str, more: &str) -> Result<u64> {
    let text = node.metrics()?;
    let start = format!("weft_vhost_{name}{{namespace=\"default\",pod=\"guest\",interface=\"{tap}\"{more}}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&start));
    value.with_context(|| format!("no {start} in:\n{text}"))?.parse().context("not a number")
}

/// What an operator sees of a guest: single frames, and counters.
#[test]
fn a_guests_frames_are_counted_and_can_be_followed() -> Result<()> {
    let bed = Bed::new()?;
    let node = bed.node(1);
    let guest = bed.vhost_vm(1, "default/guest", &[])?;
    let near = bed.container(1, "default/near", &[])?;
    guest.serve("guest", PORT)?;
    let tap = served(node)?.ifname;
    let [to_guest, from_guest] = ["to", "from"].map(|way| format!(",direction=\"{way}_guest\""));
    let before = metric(node, "frames_total", &tap, &to_guest)?;

    let server = guest.sockets(PORT)[0];
    let trace = node.start("trace", "weft vm trace guest --frames 6")?;
    // Until the device follows, frames pass unseen.
    let seen = until_ok("six frames", PATIENCE, || {
        near.reaches(Protocol::Tcp, server, "guest")?;
        let seen = trace.output(node.as_ref())?;
        ensure!(seen.lines().count() >= 6, "{seen}");
        Ok(seen)
    })?;
    ensure!(trace.finish(node.as_ref(), PATIENCE)?.status == 0 && seen.lines().count() == 6, "{seen}");
    let addresses = [format!("TCP {server} -> "), format!(" -> {server} [")];
    ensure!(addresses.iter().any(|ends| seen.contains(ends)) && seen.contains(" bytes  "), "{seen}");
    let refused = node.sh("weft vm trace nobody")?;
    ensure!(
        refused.status == 1 && refused.output.contains("no vhost-user port of this node is of 'nobody'"),
        "{refused:?}"
    );

    ensure!(metric(node, "frames_total", &tap, &to_guest)? > before);
    for counter in ["bytes_total", "kicks_total"] {
        ensure!(metric(node, counter, &tap, &from_guest)? > 0, "{counter}");
    }
    ensure!(metric(node, "connected", &tap, "")? == 1 && metric(node, "up", &tap, "")? == 1);
    ensure!(metric(node, "restarts_total", &tap, "")? == 0);
    ensure!(metric(node, "violations_total", &tap, &from_guest)? == 0);
    metric(node, "drops_total", &tap, &format!("{to_guest},reason=\"malformed\""))?;
    let memory = metric(node, "resident_memory_bytes", &tap, "")?;
    ensure!((1 << 20..64 << 20).contains(&memory), "{memory} bytes");
    println!("{seen}{}", node.weft("vm show guest")?);
    Ok(())
}

/// A guest that configures itself by DHCP and RA over a vhost-user port, as a server behind a Service and as a client;
/// before and after its device is killed, and over an agent that is killed.
#[test]
fn a_guest_on_vhost_user_outlives_its_device_and_the_agent() -> Result<()> {
    let bed = Bed::new()?;
    let node = bed.node(1);
    let guest = bed.vhost_vm(1, "default/guest", &[("app", "guest")])?;
    let [near, far] = [(1, "default/near"), (2, "default/far")].map(|(number, pod)| bed.container(number, pod, &[]));
    let (near, far) = (near?, far?);
    guest.serve("guest", PORT)?;
    far.serve("far", PORT)?;
    bed.apply(&service("default/guest", ["10.96.0.20", "fd00:96::20"], 80, PORT, &[("app", "guest")]))?;
    let reaches = || -> Result<()> {
        for client in [&near, &far] {
            for to in guest.sockets(PORT).into_iter().chain(["10.96.0.20:80".parse()?, "[fd00:96::20]:80".parse()?]) {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    until_ok("the guest answers", PATIENCE, || client.reaches(protocol, to, "guest"))?;
                }
            }
        }
        for to in far.sockets(PORT) {
            guest.reaches(Protocol::Tcp, to, "far")?;
        }
        Ok(())
    };
    reaches()?;
    let first = served(node)?;
    let tap = node.sh(&format!("ip -d link show {}", first.ifname))?.ok()?;
    ensure!(tap.contains("tun type tap") && tap.contains("vnet_hdr on"), "{tap}");

    // The guest's link stays: QEMU comes back to the socket by itself.
    let pid = first.pid.context("no process")?;
    node.sh(&format!("kill -9 {pid}"))?.ok()?;
    until_ok("another process", PATIENCE, || {
        let vm = served(node)?;
        ensure!(vm.pid != first.pid && vm.restarts == 1, "{vm:?}");
        Ok(())
    })?;
    reaches()?;
    let second = served(node)?;

    node.stop_agent(Signal::SIGKILL)?;
    for to in guest.sockets(PORT) {
        far.reaches(Protocol::Tcp, to, "guest")?;
    }
    node.start_agent()?;
    node.agent_ready()?;
    let adopted = served(node)?;
    ensure!(adopted.pid == second.pid && adopted.restarts == 0, "not the same process: {second:?} {adopted:?}");
    reaches()?;
    let endpoints: Vec<EndpointReport> = node.weft_json("endpoints")?;
    ensure!(endpoints.iter().all(|endpoint| endpoint.state == "ready"), "{endpoints:?}");

    // An agent that is killed after it has started a device and before it has recorded it.
    node.stop_agent(Signal::SIGKILL)?;
    node.sh("rm /run/weft/vhost/*/device.json")?.ok()?;
    node.start_agent()?;
    node.agent_ready()?;
    let found = served(node)?;
    ensure!(found.pid == second.pid && found.restarts == 0, "not the same process: {second:?} {found:?}");
    for to in guest.sockets(PORT) {
        far.reaches(Protocol::Tcp, to, "guest")?;
    }

    // At DEL the device goes, and everything of it.
    let pid = adopted.pid.context("no process")?;
    drop(guest);
    let left: Vec<VmReport> = node.weft_json("vm")?;
    ensure!(left.is_empty(), "{left:?}");
    // Its parent was killed: there may be nobody to take its exit status.
    let running = node.sh(&format!("grep -q weft-vhost /proc/{pid}/cmdline"))?;
    ensure!(running.status != 0, "process {pid} is still there");
    ensure!(node.sh("ls /run/weft/vhost")?.ok()?.trim().is_empty(), "files are left");
    Ok(())
}
