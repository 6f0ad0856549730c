// SPDX-License-Identifier: Apache-2.0
//! A Linux guest in QEMU behind the device: numbered records, files and pings both ways, with the device killed and
//! restarted under them, both socket roles, two queue pairs, live migration between two devices.
//!
//! Needs the Debian packages `qemu-system-x86`, `busybox-static`, `linux-image-cloud-amd64`, `cpio`, `iproute2` and
//! `iputils-ping`; a missing one is a failure.

mod guest;
mod peer;

use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guest::monitor::Monitor;
use guest::traffic::{Traffic, fetch};
use guest::{BOOT_PATIENCE, Guest, Machine};
use peer::host::{Backend, Host, eventually, run};

fn set_address(host: &Host) -> Result<()> {
    run(&format!("ip addr add 10.9.0.1/24 dev {}", host.tap))
}

fn frames(device: &Backend, ring: usize) -> Result<u64> {
    device.metrics()?["rings"][ring]["frames"].as_u64().context("frames")
}

/// The guest broke no rule on any of these rings.
fn no_violations(device: &Backend, rings: usize) -> Result<()> {
    let metrics = device.metrics()?;
    ensure!((0..rings).all(|ring| metrics["rings"][ring]["violations"] == 0), "violations: {metrics}");
    Ok(())
}

#[test]
fn a_guest_talks_through_a_device_that_is_killed_and_restarted() -> Result<()> {
    const CONFINED: &[&str] = &["--user", "65534:65534", "--socket-mode", "0666"];
    let host = Host::new(1)?;
    let mut backend = host.backend(CONFINED)?;
    set_address(&host)?;
    let machine = Machine { status: false, ..Machine::connecting("guest", &host.socket()) };
    let mut guest = machine.boot(&host)?;
    let traffic = Traffic::start(&mut guest, &host)?;
    traffic.fetch_while(|| {
        let metrics = backend.metrics()?;
        for feature in ["MRG_RXBUF", "EVENT_IDX", "VERSION_1", "HOST_TSO4", "GUEST_TSO4", "GUEST_CSUM"] {
            let features = metrics["features"].as_array().context("features")?;
            ensure!(features.iter().any(|name| name == feature), "{feature} is not in force: {metrics}");
        }
        no_violations(&backend, 2)?;
        backend.kill()?;
        backend = host.backend(CONFINED)?;
        Ok(())
    })?;
    ensure!(traffic.finish(&mut guest, &host)? == 0, "the guest's link changed");
    ensure!(backend.metrics()?["connected"] == true, "not connected");
    no_violations(&backend, 2)?;
    ensure!(backend.stop()?, "the device did not end well");
    Ok(())
}

#[test]
fn a_legacy_guest_whose_vmm_listens_is_served_again_after_each_kill() -> Result<()> {
    let host = Host::new(1)?;
    set_address(&host)?;
    let machine = Machine { legacy: true, ..Machine::listening("guest", &host.socket()) };
    let mut guest = machine.boot(&host)?;
    let socket = host.socket().to_str().context("path")?.to_owned();
    let args = ["--socket", &socket, "--tap", &host.tap, "--client"];
    let mut backend = host.spawn(&args, &[])?;
    let traffic = Traffic::start(&mut guest, &host)?;
    traffic.fetch_while(|| {
        for _ in 0..3 {
            backend.kill()?;
            backend = host.spawn(&args, &[])?;
            backend.wait_counter(0, "/frames", 20)?;
            backend.wait_counter(1, "/frames", 20)?;
        }
        Ok(())
    })?;
    // QEMU itself takes the link down and up again with each connection, unless it has status=off.
    let changes = traffic.finish(&mut guest, &host)?;
    ensure!(changes <= 6, "the guest's link changed {changes} times in three restarts");
    no_violations(&backend, 2)?;
    ensure!(backend.stop()?, "the device did not end well");
    Ok(())
}

#[test]
fn both_pairs_of_a_guest_carry_frames_both_ways() -> Result<()> {
    let host = Host::new(2)?;
    let backend = host.backend(&["--queues", "2"])?;
    set_address(&host)?;
    let machine = Machine { pairs: 2, ..Machine::connecting("guest", &host.socket()) };
    let mut guest = machine.boot(&host)?;
    let ready = guest.wait_for("GUEST-READY", BOOT_PATIENCE)?;
    ensure!(ready == "2 processors", "the guest has {ready}");
    // Flows of their own ports, until each pair has had some of them.
    eventually("frames on all four rings", || {
        TcpStream::connect_timeout(&"10.9.0.2:80".parse()?, Duration::from_secs(30))?;
        let moved = (0..4).map(|ring| frames(&backend, ring)).collect::<Result<Vec<_>>>()?;
        Ok(moved.iter().all(|frames| *frames >= 3).then_some(()))
    })?;
    let metrics = backend.metrics()?;
    ensure!(metrics["features"].as_array().is_some_and(|names| names.iter().any(|name| name == "MQ")), "{metrics}");
    ensure!((0..4).all(|ring| metrics["rings"][ring]["enabled"] == true), "{metrics}");
    let traffic = Traffic::start(&mut guest, &host)?;
    traffic.fetch_while(|| Ok(()))?;
    traffic.finish(&mut guest, &host)?;
    no_violations(&backend, 4)
}

/// QEMU's file of guest memory.
fn memory_of(guest: &Guest) -> Result<std::fs::File> {
    let folder = format!("/proc/{}/fd", guest.pid());
    for entry in std::fs::read_dir(&folder).context(folder)? {
        let path = entry?.path();
        if std::fs::read_link(&path).is_ok_and(|target| target.to_string_lossy().contains("memory-backend-memfd")) {
            return std::fs::File::open(&path).with_context(|| path.display().to_string());
        }
    }
    anyhow::bail!("qemu {} has no memory-backend-memfd", guest.pid())
}

/// Pages that differ between two guests that both stand still.
fn different_pages(one: &Guest, other: &Guest) -> Result<Vec<u64>> {
    let (one, other) = (memory_of(one)?, memory_of(other)?);
    let len = one.metadata()?.len();
    ensure!(len > 0 && len == other.metadata()?.len(), "sizes of guest memory");
    let mut buffers = [vec![0; 1 << 20], vec![0; 1 << 20]];
    let mut different = Vec::new();
    for at in (0..len).step_by(1 << 20) {
        one.read_exact_at(&mut buffers[0], at)?;
        other.read_exact_at(&mut buffers[1], at)?;
        let pages = buffers[0].chunks(4096).zip(buffers[1].chunks(4096));
        different.extend((at / 4096..).zip(pages).filter(|(_, (a, b))| a != b).map(|(page, _)| page));
    }
    Ok(different)
}

#[test]
fn a_guest_migrates_between_two_devices_under_a_stream_with_the_same_memory() -> Result<()> {
    let host = Host::new(1)?;
    for command in [
        "ip tuntap add dev vm1 mode tap vnet_hdr",
        "ip link add br0 type bridge",
        "ip link set vm0 master br0",
        "ip link set vm1 master br0 up",
        "ip link set br0 up",
        "ip addr add 10.9.0.1/24 dev br0",
    ] {
        run(command)?;
    }
    let source_device = host.backend(&[])?;
    let target_socket = host.path("target.sock");
    let target_text = target_socket.to_str().context("path")?;
    let target_device = host.spawn_as("target", &["--socket", target_text, "--tap", "vm1"], &[])?;
    eventually("the target's socket", || Ok(target_socket.exists().then_some(())))?;
    let (source_monitor, target_monitor) = (host.path("source.qmp"), host.path("target.qmp"));
    let stream = format!("unix:{}", host.path("migrate.sock").display());
    let machine = Machine::connecting("source", &host.socket());
    let mut source = Machine { more: Monitor::arguments(&source_monitor), ..machine }.boot(&host)?;
    // The target waits for a word: until then both stand still and can be compared.
    let mut more = Monitor::arguments(&target_monitor);
    more.extend(["-S".to_owned(), "-incoming".to_owned(), stream.clone()]);
    let mut target = Machine { more, ..Machine::connecting("target", &target_socket) }.boot(&host)?;
    let traffic = Traffic::start(&mut source, &host)?;
    traffic.fetch_while(|| {
        Monitor::connect(&source_monitor)?.migrate(&stream)?;
        let mut monitor = Monitor::connect(&target_monitor)?;
        eventually("the target to have everything", || Ok((monitor.status()? == "paused").then_some(())))?;
        let different = different_pages(&source, &target)?;
        let first: Vec<_> = different.iter().take(10).collect();
        ensure!(first.is_empty(), "{} pages differ, the first are {first:x?}", different.len());
        monitor.ask(r#"{"execute":"cont"}"#)?;
        Ok(())
    })?;
    ensure!(traffic.finish(&mut target, &host)? == 0, "the guest's link changed");
    ensure!(!fetch("sum", || Ok(()))?.is_empty(), "the guest serves nothing");
    ensure!(frames(&target_device, 0)? > 0 && frames(&target_device, 1)? > 0, "the target moved nothing");
    ensure!(source_device.log()?.contains("ring stopped"), "the source still runs");
    ensure!(source_device.metrics()?["log_missed"] == 0, "pages outside the log");
    no_violations(&source_device, 2)?;
    no_violations(&target_device, 2)
}
