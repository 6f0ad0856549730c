// SPDX-License-Identifier: Apache-2.0
//! The protocol: message orders real VMMs use, malformed messages, connections one after the other, the command line.

mod peer;

use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use peer::exchange::send_and_see;
use peer::host::{Backend, Host, Wire, eventually, fails, frame};
use peer::ram::Ram;
use peer::raw::{Raw, message, state, words};
use peer::ring::DriverRing;
use peer::{MERGEABLE, Options, Peer, RX, TX, connect};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use weft_vhost::protocol::features;
use weft_vhost::protocol::message::Request;

#[test]
fn rings_enabled_before_the_features_are_set_work_as_qemu_expects() -> Result<()> {
    let host = Host::new(1)?;
    let _backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let mut raw = Raw::connect(&host.socket())?;
    let ram = Arc::new(Ram::new(&[(0, Ram::SIZE)])?);
    let rings: Vec<_> = (0..2).map(|index| DriverRing::new(&ram, index, 256, false)).collect::<Result<_>>()?;
    ensure!(raw.ask(Request::GetFeatures)? & MERGEABLE == MERGEABLE, "features");
    ensure!(raw.ask(Request::GetProtocolFeatures)? & 8 == 8, "REPLY_ACK");
    raw.request(Request::SetProtocolFeatures, 0, &words(&[8 | 1 << 15]), &[])?;
    ensure!(raw.ask(Request::GetQueueNum)? == 2, "queues");
    ensure!(raw.ask(Request::GetMaxMemSlots)? > 8, "slots");
    raw.request(Request::SetOwner, 0, &[], &[])?;
    for (index, ring) in rings.iter().enumerate() {
        raw.request(Request::SetVringCall, 0, &words(&[index as u64]), &[ring.call.as_raw_fd()])?;
        raw.request(Request::SetVringErr, 0, &words(&[index as u64]), &[ring.err.as_raw_fd()])?;
    }
    // The order no stock crate takes: enabled first, features after, and never enabled again.
    for index in 0..2 {
        ensure!(raw.acknowledged(Request::SetVringEnable, &state(index, 1), &[])? == 0, "early enable");
    }
    raw.request(Request::SetFeatures, 0, &words(&[MERGEABLE]), &[])?;
    let region = &ram.regions()[0];
    let payload = words(&[0, region.guest_phys_addr, region.memory_size, region.userspace_addr, region.mmap_offset]);
    ensure!(raw.acknowledged(Request::AddMemRegion, &payload, &[region.mmap_handle])? == 0, "ADD_MEM_REG");
    for (index, ring) in rings.iter().enumerate() {
        let config = ring.config(None);
        raw.request(Request::SetVringNum, 0, &state(index as u32, 256), &[])?;
        raw.request(Request::SetVringBase, 0, &state(index as u32, 0), &[])?;
        let addr = words(&[index as u64, config.desc_table_addr, config.used_ring_addr, config.avail_ring_addr, 0]);
        raw.request(Request::SetVringAddr, 0, &addr, &[])?;
        raw.request(Request::SetVringKick, 0, &words(&[index as u64]), &[ring.kick.as_raw_fd()])?;
        raw.request(Request::SetVringCall, 0, &words(&[index as u64]), &[ring.call.as_raw_fd()])?;
    }
    let mut rings = rings;
    let sent = frame(100, 1);
    ram.write(ram.buffers(TX), &[&[0; 12][..], &sent].concat());
    rings[TX].descriptor(0, ram.buffers(TX), 12 + sent.len() as u32, 0, 0);
    rings[TX].offer(0);
    rings[TX].publish()?;
    ensure!(wire.receive()? == sent, "the frame");
    Ok(())
}

/// Bytes and descriptors that make the device end the connection.
fn malformed() -> Vec<(&'static str, Vec<u8>, usize)> {
    let request = |request: Request, payload: &[u8]| message(request as u32, 1, payload.len() as u32, payload);
    vec![
        ("another version", message(1, 2, 0, &[]), 0),
        ("a reply", message(1, 5, 0, &[]), 0),
        ("an unknown request", message(77, 1, 0, &[]), 0),
        ("request 0", message(0, 1, 0, &[]), 0),
        ("a payload of 2^32-1 bytes", message(5, 1, u32::MAX, &[]), 0),
        ("a payload too short", request(Request::SetVringNum, &[0; 4]), 0),
        ("a payload too long", request(Request::SetFeatures, &[0; 16]), 0),
        ("a payload where none belongs", request(Request::GetFeatures, &[0; 8]), 0),
        (
            "a table of nine regions",
            request(Request::SetMemTable, &[&[9, 0, 0, 0, 0, 0, 0, 0][..], &[0; 288]].concat()),
            8,
        ),
        (
            "a table with missing descriptors",
            request(Request::SetMemTable, &[&[2, 0, 0, 0, 0, 0, 0, 0][..], &[0; 64]].concat()),
            1,
        ),
        ("a table cut short", request(Request::SetMemTable, &[&[2, 0, 0, 0, 0, 0, 0, 0][..], &[0; 40]].concat()), 2),
        ("a region without its descriptor", request(Request::AddMemRegion, &[0; 40]), 0),
        ("a region with two descriptors", request(Request::AddMemRegion, &[0; 40]), 2),
        ("a kick without its descriptor", request(Request::SetVringKick, &words(&[0])), 0),
        ("a kick with fifty descriptors", request(Request::SetVringKick, &words(&[0])), 50),
        ("descriptors where none belong", request(Request::GetFeatures, &[]), 3),
        ("the most descriptors there can be", request(Request::SetOwner, &[]), 253),
        ("features that were not offered", request(Request::SetFeatures, &words(&[1 << 60])), 0),
        ("a ring that does not exist", request(Request::SetVringNum, &state(2, 256)), 0),
        ("the base of a ring that does not exist", request(Request::GetVringBase, &state(99, 0)), 0),
        ("a ring of 300 entries", request(Request::SetVringNum, &state(0, 300)), 0),
        ("a ring of no entries", request(Request::SetVringNum, &state(0, 0)), 0),
        ("a ring of 32768 entries", request(Request::SetVringNum, &state(0, 32768)), 0),
        ("a base past 65535", request(Request::SetVringBase, &state(0, 65536)), 0),
        ("enable 2", request(Request::SetVringEnable, &state(0, 2)), 0),
        ("a log that was not negotiated", request(Request::SetLogBase, &words(&[4096, 0])), 1),
        ("an MTU of 67", request(Request::NetSetMtu, &words(&[67])), 0),
        ("an MTU of 65536", request(Request::NetSetMtu, &words(&[65536])), 0),
        (
            "a write to the configuration space",
            request(Request::SetConfig, &[&[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0][..], &[1]].concat()),
            0,
        ),
    ]
}

#[test]
fn a_malformed_message_ends_its_connection_and_the_next_one_is_served() -> Result<()> {
    let host = Host::new(1)?;
    let mut backend = host.backend(&[])?;
    let null = std::fs::File::open("/dev/null")?;
    // Once it answers and has closed the answer's connection, it has opened all it opens by itself.
    backend.metrics()?;
    std::thread::sleep(std::time::Duration::from_millis(200));
    let before = open_files(&backend)?;
    for (name, bytes, fds) in malformed() {
        let mut raw = Raw::connect(&host.socket())?;
        raw.send(&bytes, &vec![null.as_raw_fd(); fds]).context(name)?;
        raw.wait_closed().context(name)?;
        ensure!(backend.is_alive()?, "{name}: the device died");
    }
    // Cut in the middle, at every byte.
    let whole = message(Request::SetVringAddr as u32, 1, 40, &[0; 40]);
    for len in 1..whole.len() {
        let raw = Raw::connect(&host.socket())?;
        raw.send(&whole[..len], &[])?;
    }
    let wire = Wire::open(&host.tap, false)?;
    let mut peer = Peer::start(&host.socket(), Options::default())?;
    send_and_see(&mut peer, &wire)?;
    drop(peer);
    eventually("the descriptors of refused messages to be closed", || {
        Ok((open_files(&backend)? <= before).then_some(()))
    })
}

fn open_files(backend: &Backend) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{}/fd", backend.child.id()))?.count())
}

#[test]
fn a_failed_request_is_told_to_a_front_end_that_asks_and_changes_nothing() -> Result<()> {
    let host = Host::new(1)?;
    let backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let mut peer = Peer::start(&host.socket(), Options::default())?;
    ensure!(peer.front.set_features(MERGEABLE | features::EVENT_IDX).is_err(), "features changed under running rings");
    ensure!(peer.front.set_vring_num(TX, 128).is_err(), "size changed under a running ring");
    ensure!(peer.front.set_vring_base(TX, 5).is_err(), "base changed under a running ring");
    let mut region = peer.ram.regions()[0];
    region.guest_phys_addr = 1 << 40;
    ensure!(peer.front.add_mem_region(&region).is_err(), "a region twice at one user address");
    let mut config = peer.rings[TX].config(None);
    config.avail_ring_addr = 0x1000;
    ensure!(peer.front.set_vring_addr(TX, &config).is_err(), "a ring outside memory");
    let error = backend.metrics()?["last_error"].to_string();
    ensure!(error.contains("available ring") && error.contains("0x1000"), "last error: {error}");
    send_and_see(&mut peer, &wire)
}

#[test]
fn every_offered_feature_can_be_left_out() -> Result<()> {
    let host = Host::new(1)?;
    let _backend = host.backend(&["--mac", "52:54:00:00:00:07", "--mtu", "1400"])?;
    let wire = Wire::open(&host.tap, false)?;
    let offered = connect(&host.socket(), 2)?.get_features()?;
    for bit in (0..64).map(|bit| 1u64 << bit).filter(|bit| offered & bit != 0) {
        let without = offered & !bit & !features::LOG_ALL | MERGEABLE;
        let mut peer = Peer::start(&host.socket(), Options { features: without, ..Options::default() })
            .with_context(|| format!("without {bit:#x}"))?;
        send_and_see(&mut peer, &wire).with_context(|| format!("without {bit:#x}"))?;
    }
    Ok(())
}

#[test]
fn a_ring_goes_on_where_it_was_after_a_reconnect() -> Result<()> {
    let host = Host::new(1)?;
    let mut backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let ram = Arc::new(Ram::new(&[(0, Ram::SIZE)])?);
    let options = Options { features: MERGEABLE | features::EVENT_IDX | features::IN_ORDER, ..Options::default() };
    let (mut bases, mut indices) = (vec![0, 0], [(0, 0), (0, 0)]);
    let mut kept = Vec::new();
    for turn in 0..6 {
        let mut peer = Peer::negotiate(&host.socket(), Arc::clone(&ram), options)?;
        for (ring, (next, used)) in peer.rings.iter_mut().zip(indices) {
            ring.resume(next, used);
        }
        peer.start_rings(&bases)?;
        if turn == 0 {
            peer.fill_rx(RX, 100, 2048)?;
        }
        for seed in 0..70 {
            send_and_see(&mut peer, &wire)?;
            peer.rings[TX].wait_used()?;
            let sent = frame(400, seed);
            wire.send(&sent)?;
            ensure!(peer.receive(RX)?.1 == sent, "turn {turn}, frame {seed}");
            peer.fill_rx(RX, 1, 2048)?;
        }
        indices = [0, 1].map(|ring: usize| (peer.rings[ring].next_avail, peer.rings[ring].last_used));
        if turn % 2 == 0 {
            // The polite way: the device says where the rings stand.
            bases = vec![peer.front.get_vring_base(RX)? as u16, peer.front.get_vring_base(TX)? as u16];
            ensure!(bases == [indices[RX].1, indices[TX].1], "bases {bases:?}, used {indices:?}");
        } else {
            // Without a word: the front end goes by the used index.
            backend.kill()?;
            backend = host.backend(&[])?;
            bases = vec![indices[RX].1, indices[TX].1];
        }
        kept.push(peer);
        kept.clear();
    }
    Ok(())
}

#[test]
fn a_device_as_client_finds_its_front_end_again() -> Result<()> {
    let host = Host::new(1)?;
    let socket = host.socket();
    let wire = Wire::open(&host.tap, false)?;
    let text = socket.to_str().context("path")?.to_owned();
    let backend = host.spawn(&["--socket", &text, "--tap", &host.tap, "--client", "--retry-ms", "20"], &[])?;
    for _ in 0..3 {
        let listener = UnixListener::bind(&socket)?;
        let (stream, _) = listener.accept()?;
        std::fs::remove_file(&socket)?;
        // A second path to the same connection, for the peer's `connect`.
        let front = vhost::vhost_user::Frontend::from_stream(stream, 2);
        front.set_owner()?;
        ensure!(front.get_features()? & MERGEABLE == MERGEABLE, "features");
    }
    eventually("three connections", || Ok((backend.metrics()?["connections"] == 3).then_some(())))?;
    drop(wire);
    Ok(())
}

#[test]
fn a_connection_that_is_handed_over_is_served_and_ends_the_device() -> Result<()> {
    let host = Host::new(1)?;
    let (ours, theirs) = UnixStream::pair()?;
    // The child keeps this descriptor and no other of the pair.
    nix::fcntl::fcntl(&theirs, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
    let number = theirs.as_raw_fd().to_string();
    let mut backend = host.spawn(&["--fd", &number, "--tap", &host.tap], &[])?;
    let front = vhost::vhost_user::Frontend::from_stream(ours, 2);
    front.set_owner()?;
    ensure!(front.get_features()? & MERGEABLE == MERGEABLE, "features");
    drop(front);
    let status = eventually("the device's end", || Ok(backend.child.try_wait()?))?;
    ensure!(status.success(), "{status}");
    Ok(())
}

#[test]
fn a_second_front_end_is_refused_and_the_first_goes_on() -> Result<()> {
    let host = Host::new(1)?;
    let _backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let mut peer = Peer::start(&host.socket(), Options::default())?;
    Raw::connect(&host.socket())?.wait_closed()?;
    send_and_see(&mut peer, &wire)
}

#[test]
fn a_front_end_that_connects_in_a_loop_is_slowed_down() -> Result<()> {
    let host = Host::new(1)?;
    let start = Instant::now();
    let backend = host.backend(&[])?;
    for _ in 0..100 {
        drop(UnixStream::connect(host.socket())?);
    }
    let served = eventually("some connections", || {
        let served = backend.metrics()?["connections"].as_u64().context("no connections")?;
        Ok((served >= 40).then_some(served))
    })?;
    // However slow this machine is, it has not served more than came at once and ten a second.
    let most = 32 + start.elapsed().as_millis() / 100 + 1;
    ensure!(u128::from(served) <= most, "{served} connections, {most} at most");
    Ok(())
}

#[test]
fn what_a_front_end_has_logged_is_bounded() -> Result<()> {
    let host = Host::new(4)?;
    let backend = host.backend(&["--queues", "4"])?;
    let options = Options { pairs: 4, features: MERGEABLE | features::MQ, ..Options::default() };
    // A line for the connection, one for its end, and for each ring two: 360, of which 200 are written at once.
    let connections = 20;
    for _ in 0..connections {
        drop(Peer::start(&host.socket(), options)?);
    }
    eventually("a line on those that were left out", || {
        drop(UnixStream::connect(host.socket())?);
        std::thread::sleep(Duration::from_millis(200));
        Ok(backend.log()?.contains("lines were left out").then_some(()))
    })?;
    let lines = backend.log()?.lines().filter(|line| line.contains("ring st")).count();
    ensure!(lines < connections * 16, "every one of {lines} lines was written");
    Ok(())
}

#[test]
fn memory_comes_and_goes_under_running_rings() -> Result<()> {
    let host = Host::new(1)?;
    let backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let protocol = VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
    let mut peer = Peer::start(&host.socket(), Options { protocol: protocol.bits(), ..Options::default() })?;
    let more = Ram::new(&[(1 << 32, 1 << 20)])?;
    peer.front.add_mem_region(&more.regions()[0])?;
    ensure!(backend.metrics()?["memory_regions"] == 2, "regions");
    let sent = frame(100, 2);
    more.write((1 << 32) + 64, &[&[0; 12][..], &sent].concat());
    peer.rings[TX].descriptor(0, (1 << 32) + 64, 12 + sent.len() as u32, 0, 0);
    peer.rings[TX].offer(0);
    peer.rings[TX].publish()?;
    ensure!(wire.receive()? == sent, "a frame in new memory");
    peer.front.remove_mem_region(&more.regions()[0])?;
    peer.rings[TX].offer(0);
    peer.rings[TX].publish()?;
    peer.rings[TX].wait_broken()?;
    ensure!(peer.front.remove_mem_region(&more.regions()[0]).is_err(), "removed twice");
    Ok(())
}

#[test]
fn the_guest_is_announced_and_the_device_reset() -> Result<()> {
    let host = Host::new(1)?;
    let backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let mut raw = Raw::connect(&host.socket())?;
    let bits = VhostUserProtocolFeatures::RARP
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::MTU;
    raw.request(Request::SetProtocolFeatures, 0, &words(&[bits.bits()]), &[])?;
    let mac = [0x52, 0x54, 0, 0, 0, 9];
    ensure!(raw.acknowledged(Request::SendRarp, &[&mac[..], &[0, 0]].concat(), &[])? == 0, "SEND_RARP");
    let got = wire.receive()?;
    ensure!(got.len() == 60 && got[..6] == [0xff; 6] && got[6..12] == mac && got[12..14] == [0x80, 0x35], "{got:x?}");
    ensure!(got[14..28] == [&[0, 1, 8, 0, 6, 4, 0, 3], &mac[..]].concat()[..] && got[32..38] == mac, "{got:x?}");
    ensure!(raw.acknowledged(Request::NetSetMtu, &words(&[1450]), &[])? == 0, "NET_SET_MTU");
    ensure!(backend.metrics()?["mtu"] == 1450, "mtu");
    ensure!(raw.acknowledged(Request::ResetDevice, &[], &[])? == 0, "RESET_DEVICE");
    ensure!(backend.metrics()?["mtu"].is_null(), "mtu after the reset");
    Ok(())
}

#[test]
fn the_configuration_space_has_what_the_operator_gave() -> Result<()> {
    let host = Host::new(2)?;
    let _backend = host.backend(&["--mac", "52:54:00:00:00:07", "--mtu", "1400", "--queues", "2"])?;
    let mut front = connect(&host.socket(), 4)?;
    ensure!(front.get_features()? & (features::MAC | features::MTU | features::MQ) != 0, "features");
    front.set_owner()?;
    front.set_features(MERGEABLE)?;
    let _offered = front.get_protocol_features()?;
    front.set_protocol_features(VhostUserProtocolFeatures::CONFIG)?;
    let (_, bytes) = front.get_config(0, 12, VhostUserConfigFlags::empty(), &[0; 12])?;
    ensure!(bytes == [0x52, 0x54, 0, 0, 0, 7, 1, 0, 2, 0, 0x78, 5], "{bytes:x?}");
    Ok(())
}

#[test]
fn frames_can_be_followed_and_bad_questions_are_answered() -> Result<()> {
    let host = Host::new(1)?;
    let backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let mut peer = Peer::start(&host.socket(), Options::default())?;
    peer.fill_rx(RX, 4, 2048)?;
    let trace = backend.ask("trace 2")?;
    // The trace starts some time after the question.
    std::thread::sleep(std::time::Duration::from_millis(300));
    send_and_see(&mut peer, &wire)?;
    wire.send(&frame(99, 3))?;
    peer.receive(RX)?;
    let text = peer::host::read_all(trace)?;
    let lines: Vec<serde_json::Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(lines.len() == 2, "{text}");
    ensure!(lines[0]["direction"] == "from_guest" && lines[0]["len"] == 212, "{text}");
    ensure!(lines[1]["direction"] == "to_guest" && lines[1]["len"] == 111, "{text}");
    ensure!(lines[1]["data"].as_str().is_some_and(|data| data[24..].starts_with("ffffffffffff525400000001")), "{text}");
    ensure!(backend.answer("what")?["error"].is_string() && backend.answer("trace x")?["error"].is_string(), "errors");
    ensure!(backend.answer("capabilities")?["type"] == "net", "capabilities");
    Ok(())
}

#[test]
fn what_cannot_work_is_refused_with_what_to_do() -> Result<()> {
    let host = Host::new(1)?;
    let socket = host.socket();
    let socket = socket.to_str().context("path")?;
    let long = format!("/tmp/{}", "x".repeat(120));
    fails(&["--socket", &long, "--tap", &host.tap], &["125 bytes", "at most 107"])?;
    fails(&["--socket", &long, "--tap", &host.tap, "--client"], &["at most 107"])?;
    fails(&["--socket", socket, "--tap", "nosuchtap"], &["no interface nosuchtap", "ip tuntap add"])?;
    fails(&["--socket", socket, "--tap", "a-name-that-is-too-long"], &["15 bytes"])?;
    fails(&["--socket", socket, "--tap", "lo"], &["is it a tap"])?;
    fails(&["--socket", socket, "--tap", &host.tap, "--queues", "2"], &["multi_queue"])?;
    fails(&["--socket", socket, "--tap", &host.tap, "--queues", "17"], &["1..=16"])?;
    fails(&["--tap", &host.tap, "--fd", "77"], &["--fd 77 is not an open descriptor"])?;
    std::fs::write(host.path("plain"), "")?;
    let plain = host.path("plain");
    fails(&["--socket", plain.to_str().context("path")?, "--tap", &host.tap], &["is not a socket"])?;
    let _backend = host.backend(&[])?;
    fails(&["--socket", socket, "--tap", &host.tap], &["TUNSETIFF", "no other process"])?;
    peer::host::run("ip tuntap add dev other mode tap vnet_hdr")?;
    fails(&["--socket", socket, "--tap", "other"], &["another process listens"])
}

#[test]
fn a_stale_socket_is_replaced_and_one_pair_works_on_a_tap_for_many() -> Result<()> {
    let host = Host::new(4)?;
    let wire = Wire::open(&host.tap, false)?;
    drop(UnixListener::bind(host.socket())?);
    let mut backend = host.backend(&["--user", "65534:65534", "--socket-mode", "0600"])?;
    let mut peer = Peer::start(&host.socket(), Options::default())?;
    send_and_see(&mut peer, &wire)?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", backend.child.id()))?;
    for line in ["Uid:\t65534\t65534", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        ensure!(status.contains(line), "no {line:?} in {status}");
    }
    ensure!(backend.stop()?, "the device did not end well");
    Ok(())
}

#[test]
fn what_the_device_can_do_is_printed_in_the_form_of_other_back_ends() -> Result<()> {
    let run = |arg: &str| Command::new(env!("CARGO_BIN_EXE_weft-vhost")).arg(arg).output();
    let capabilities: serde_json::Value = serde_json::from_slice(&run("--print-capabilities")?.stdout)?;
    ensure!(capabilities["type"] == "net", "{capabilities}");
    let names = capabilities["virtio-features"].as_array().context("features")?;
    ensure!(names.iter().any(|name| name == "MRG_RXBUF"), "{capabilities}");
    let manual = String::from_utf8(run("--man")?.stdout)?;
    ensure!(manual.contains(".TH weft-vhost 1") && manual.contains("queue\\-size"), "{manual}");
    Ok(())
}
