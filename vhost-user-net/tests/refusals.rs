// SPDX-License-Identifier: Apache-2.0
//! Front ends that are wrong about memory, rings, logs and descriptors, and operators who are wrong about taps and
//! sockets: a clear error, everything else as it was.

mod peer;

use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use peer::exchange::{receive_and_see, send_and_see};
use peer::host::{Backend, Host, Wire, eventually, fails, run};
use peer::ram::Ram;
use peer::raw::{Raw, words};
use peer::{MERGEABLE, Options, Peer, RX, TX};
use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use vmm_sys_util::eventfd::EventFd;
use weft_vhost::protocol::features;
use weft_vhost::protocol::message::Request;

/// The last error the device reports has these words.
fn last_error(backend: &Backend, words: &[&str]) -> Result<()> {
    let error = backend.metrics()?["last_error"].to_string();
    for word in words {
        ensure!(error.contains(word), "no {word:?} in {error}");
    }
    Ok(())
}

#[test]
fn a_running_ring_moves_where_its_front_end_says_or_stays() -> Result<()> {
    let host = Host::new(1)?;
    let backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let mut peer = Peer::start(&host.socket(), Options::default())?;
    send_and_see(&mut peer, &wire)?;
    peer.rings[TX].wait_used()?;
    let good = peer.rings[TX].config(None);
    for (name, offset, words) in [
        ("descriptors at an odd address", (8, 0, 0), &["ring 1", "descriptor table", "aligned"][..]),
        ("available ring at an odd address", (0, 1, 0), &["ring 1", "available ring", "aligned"][..]),
        ("used ring at an odd address", (0, 0, 2), &["ring 1", "used ring", "aligned"][..]),
        ("used ring past the end of memory", (0, 0, 1 << 40), &["ring 1", "used ring"][..]),
    ] {
        let mut config = good;
        config.desc_table_addr += offset.0;
        config.avail_ring_addr += offset.1;
        config.used_ring_addr += offset.2;
        ensure!(peer.front.set_vring_addr(TX, &config).is_err(), "{name} was taken");
        last_error(&backend, words).context(name)?;
        send_and_see(&mut peer, &wire).context(name)?;
        peer.rings[TX].wait_used()?;
    }
    // A copy of the whole ring elsewhere, and the device goes on there.
    let (from, to) = (peer.ram.ring_space(TX), peer.ram.ring_space(5));
    let bytes = (peer.rings[TX].used_addr() - from) as usize + 8192;
    peer.ram.write(to, &peer.ram.read(from, bytes));
    let mut config = good;
    let distance = to - from;
    config.desc_table_addr += distance;
    config.avail_ring_addr += distance;
    config.used_ring_addr += distance;
    peer.front.set_vring_addr(TX, &config)?;
    peer.rings[TX].move_by(distance);
    send_and_see(&mut peer, &wire)?;
    peer.rings[TX].wait_used()?;
    ensure!(backend.metrics()?["rings"][TX]["violations"] == 0, "violations");
    Ok(())
}

#[test]
fn a_memory_table_that_cannot_be_is_refused() -> Result<()> {
    let host = Host::new(1)?;
    let backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let mut peer = Peer::start(&host.socket(), Options::default())?;
    peer.fill_rx(RX, 8, 2048)?;
    let good = peer.ram.regions()[0];
    let mut wrong = good;
    wrong.memory_size = u64::MAX - 4095;
    ensure!(peer.front.set_mem_table(&[wrong]).is_err(), "a region that wraps around was taken");
    wrong.memory_size = 2 * Ram::SIZE as u64;
    ensure!(peer.front.set_mem_table(&[wrong]).is_err(), "a region longer than its file was taken");
    last_error(&backend, &["file"])?;
    let mut twice = good;
    twice.guest_phys_addr += 4096;
    ensure!(peer.front.set_mem_table(&[good, twice]).is_err(), "two regions at one place were taken");
    send_and_see(&mut peer, &wire)?;
    receive_and_see(&mut peer, &wire)
}

#[test]
fn memory_taken_from_under_a_ring_stops_it_until_it_is_back() -> Result<()> {
    let host = Host::new(1)?;
    let mut backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let mut peer = Peer::start(&host.socket(), Options::default())?;
    peer.fill_rx(RX, 8, 2048)?;
    let elsewhere = Ram::new(&[(1 << 32, 1 << 20)])?;
    for turn in 0..3 {
        send_and_see(&mut peer, &wire)?;
        receive_and_see(&mut peer, &wire)?;
        peer.front.set_mem_table(&elsewhere.regions())?;
        let metrics = backend.metrics()?;
        for ring in [RX, TX] {
            ensure!(metrics["rings"][ring]["state"] == "stopped", "ring {ring} in turn {turn}: {metrics}");
        }
        ensure!(backend.log()?.contains("the ring is not in the new memory table"), "the log does not say so");
        peer.front.set_mem_table(&peer.ram.regions())?;
        let bases = [peer.front.get_vring_base(RX)? as u16, peer.front.get_vring_base(TX)? as u16];
        ensure!(bases == [turn + 1, turn + 1], "bases {bases:?} in turn {turn}");
        peer.start_rings(&bases)?;
    }
    ensure!(backend.is_alive()?, "the device died");
    send_and_see(&mut peer, &wire)
}

#[test]
fn a_log_that_is_cut_short_stops_no_frame() -> Result<()> {
    let host = Host::new(1)?;
    let mut backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let mut peer = Peer::start(&host.socket(), Options::default())?;
    peer.fill_rx(RX, 32, 2048)?;
    let log = peer.start_log()?;
    receive_and_see(&mut peer, &wire)?;
    nix::unistd::ftruncate(&log, 0)?;
    for _ in 0..10 {
        send_and_see(&mut peer, &wire)?;
        receive_and_see(&mut peer, &wire)?;
    }
    ensure!(backend.is_alive()?, "the device died with its log");
    Ok(())
}

/// A pipe nobody reads, as what a front end would take for an eventfd.
fn closed_pipe() -> Result<EventFd> {
    let (_, writer) = nix::unistd::pipe()?;
    // SAFETY: the descriptor is new and given away here.
    Ok(unsafe { EventFd::from_raw_fd(writer.into_raw_fd()) })
}

#[test]
fn descriptors_that_are_no_eventfds_are_refused_or_do_no_harm() -> Result<()> {
    let host = Host::new(1)?;
    let mut backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    // Nobody can wait for a plain file.
    let file = std::fs::File::open("/proc/self/exe")?;
    let mut raw = Raw::connect(&host.socket())?;
    let ram = Ram::new(&[(0, Ram::SIZE)])?;
    let region = &ram.regions()[0];
    raw.request(Request::SetProtocolFeatures, 0, &words(&[Protocol::REPLY_ACK.bits()]), &[])?;
    raw.request(Request::SetFeatures, 0, &words(&[MERGEABLE]), &[])?;
    let table = [&[1, 0, 0, 0, 0, 0, 0, 0][..], &words(&[0, region.memory_size, region.userspace_addr, 0])].concat();
    ensure!(raw.acknowledged(Request::SetMemTable, &table, &[region.mmap_handle])? == 0, "memory");
    raw.request(Request::SetVringNum, 0, &peer::raw::state(1, 256), &[])?;
    let at = |offset: u64| region.userspace_addr + offset;
    let addr = words(&[1, at(0), at(0x4000), at(0x2000), 0]);
    raw.request(Request::SetVringAddr, 0, &addr, &[])?;
    ensure!(raw.acknowledged(Request::SetVringKick, &words(&[1]), &[file.as_raw_fd()])? == 1, "a file as kick");
    last_error(&backend, &["ring 1", "kick descriptor", "eventfd"])?;
    drop(raw);

    // Calls to nobody: the device works with what it has.
    let mut peer = Peer::start(&host.socket(), Options::default())?;
    peer.fill_rx(RX, 16, 2048)?;
    for index in [RX, TX] {
        let call = closed_pipe()?;
        peer.front.set_vring_call(index, &call)?;
        peer.front.set_vring_err(index, &call)?;
    }
    for _ in 0..5 {
        send_and_see(&mut peer, &wire)?;
        receive_and_see(&mut peer, &wire)?;
    }
    ensure!(backend.is_alive()?, "the device died");
    Ok(())
}

#[test]
fn taps_and_sockets_that_cannot_work_are_named() -> Result<()> {
    let host = Host::new(1)?;
    let socket = host.socket();
    let socket = socket.to_str().context("path")?;
    run("ip tuntap add dev tun0 mode tun")?;
    fails(&["--socket", socket, "--tap", "tun0"], &["tun0", "is it a tap"])?;
    run("ip link add veth0 type veth peer name veth1")?;
    fails(&["--socket", socket, "--tap", "veth0"], &["veth0", "is it a tap"])?;
    let (long, first) = (format!("/tmp/{}", "x".repeat(120)), host.path("first.sock"));
    let first = first.to_str().context("path")?;
    fails(&["--socket", first, "--tap", &host.tap, "--control", &long], &["control socket", "at most 107"])?;
    fails(&["--socket", "/nonexistent/folder/sock", "--tap", &host.tap], &["bind", "/nonexistent/folder/sock"])?;
    fails(&["--tap", &host.tap, "--fd", "1"], &["--fd 1", "from 3 on"])?;
    fails(&["--socket", socket, "--tap", &host.tap, "--user", "no-such-user"], &["no user no-such-user"])?;
    fails(&["--socket", socket, "--tap", &host.tap, "--queue-size", "100"], &["100 is not a power of two"])?;
    fails(&["--socket", socket, "--tap", &host.tap, "--mac", "01:00:5e:00:00:01"], &["multicast"])?;
    fails(&["--socket", socket], &["--tap"])?;
    // None of these left anything that is in the way of one that works.
    let mut backend = host.spawn(&["--socket", first, "--tap", &host.tap], &[])?;
    ensure!(backend.metrics()?["connected"] == false, "connected");
    ensure!(backend.stop()?, "the device did not end well");
    Ok(())
}

#[test]
fn a_tap_without_virtio_net_headers_gets_them() -> Result<()> {
    let host = Host::new(1)?;
    run("ip tuntap add dev bare mode tap")?;
    run("ip link set dev bare up")?;
    let socket = host.path("bare.sock");
    let text = socket.to_str().context("path")?;
    let _backend = host.spawn(&["--socket", text, "--tap", "bare"], &[])?;
    let wire = Wire::open("bare", false)?;
    let features = MERGEABLE | features::CSUM | features::HOST_TSO4;
    let mut peer = Peer::start(&socket, Options { features, ..Options::default() })?;
    peer.fill_rx(RX, 8, 2048)?;
    send_and_see(&mut peer, &wire)?;
    receive_and_see(&mut peer, &wire)
}

#[test]
fn a_connection_that_is_no_socket_is_refused() -> Result<()> {
    let host = Host::new(1)?;
    let file = std::fs::File::open("/proc/self/exe")?;
    fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let number = file.as_raw_fd().to_string();
    let mut backend = host.spawn(&["--fd", &number, "--tap", &host.tap], &[])?;
    // It ends, and says why; it does not wait for messages that cannot come.
    eventually("the device's end", || Ok(backend.child.try_wait()?))?;
    let log = backend.log()?;
    ensure!(log.contains("socket"), "the log does not name the socket: {log}");
    Ok(())
}

#[test]
fn half_a_message_holds_up_neither_frames_nor_questions() -> Result<()> {
    let host = Host::new(1)?;
    let backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let mut peer = Peer::start(&host.socket(), Options::default())?;
    peer.fill_rx(RX, 32, 2048)?;
    let whole = peer::raw::message(Request::GetFeatures as u32, 1, 0, &[]);
    let half = &whole[..whole.len() / 2];
    // SAFETY: the descriptor is the peer's and lives as long as the peer.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(peer.front.as_raw_fd()) };
    ensure!(nix::unistd::write(fd, half)? == half.len(), "short write");
    for _ in 0..10 {
        send_and_see(&mut peer, &wire)?;
        receive_and_see(&mut peer, &wire)?;
        ensure!(backend.metrics()?["connected"] == true, "not connected");
    }
    drop(peer);
    let mut peer = Peer::start(&host.socket(), Options::default())?;
    send_and_see(&mut peer, &wire)
}
