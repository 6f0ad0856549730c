// SPDX-License-Identifier: Apache-2.0
//! Whatever one guest or one ring does, the others go on: pairs of one guest, devices of one host.

mod peer;

use std::io::{PipeReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use peer::host::{Host, Wire, eventually, frame, run};
use peer::ring::NEXT;
use peer::{HEADER, MERGEABLE, Options, Peer, RX, TX};
use vhost::VhostBackend;
use vmm_sys_util::eventfd::EventFd;
use weft_vhost::protocol::features;

const SECOND_RX: usize = RX + 2;
const SECOND_TX: usize = TX + 2;

/// Sends a frame on the second pair.
fn send_on_second(peer: &mut Peer, frame: &[u8]) -> Result<()> {
    let slot = peer.rings[SECOND_TX].next_slot();
    let addr = peer.ram.buffers(SECOND_TX) + u64::from(slot) * 4096;
    peer.ram.write(addr, &[&[0; HEADER][..], frame].concat());
    peer.rings[SECOND_TX].descriptor(slot, addr, (HEADER + frame.len()) as u32, 0, 0);
    peer.rings[SECOND_TX].offer(slot);
    peer.rings[SECOND_TX].publish()
}

/// Frames of many flows, of which the tap gives some to each pair; returns how many came on the second.
fn receive_on_second(peer: &mut Peer, wire: &Wire) -> Result<usize> {
    for flow in 0..64u8 {
        // An IPv4 header is all the tap looks at.
        let mut sent = frame(80, flow);
        sent[12..14].copy_from_slice(&[8, 0]);
        sent[14..34].copy_from_slice(&[0x45, 0, 0, 66, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, flow, 10, 0, 0, 2]);
        wire.send(&sent)?;
    }
    peer.receive(SECOND_RX)?;
    let mut count = 1;
    while peer.rings[SECOND_RX].used().is_some() {
        count += 1;
    }
    Ok(count)
}

#[test]
fn a_pair_goes_on_when_the_other_is_broken() -> Result<()> {
    let host = Host::new(2)?;
    let mut backend = host.backend(&["--queues", "2"])?;
    let wire = Wire::open(&host.tap, false)?;
    let options = Options { features: MERGEABLE | features::MQ, pairs: 2, ..Options::default() };
    let mut peer = Peer::start(&host.socket(), options)?;
    peer.fill_rx(SECOND_RX, 200, 2048)?;
    // Both rings of the first pair: a chain that loops, a buffer that nobody may write to.
    let (tx, rx) = (peer.ram.buffers(TX), peer.ram.buffers(RX));
    peer.rings[TX].descriptor(0, tx, 100, NEXT, 0);
    peer.rings[TX].offer(0);
    peer.rings[TX].publish()?;
    peer.rings[TX].wait_broken()?;
    peer.rings[RX].descriptor(0, rx, 2048, 0, 0);
    peer.rings[RX].offer(0);
    peer.rings[RX].publish()?;
    let came = receive_on_second(&mut peer, &wire)?;
    peer.rings[RX].wait_broken()?;
    for seed in 0..100 {
        let sent = frame(200, seed);
        send_on_second(&mut peer, &sent)?;
        ensure!(wire.receive()? == sent, "frame {seed} of the second pair");
    }
    let metrics = backend.metrics()?;
    ensure!(came > 0 && metrics["rings"][SECOND_RX]["state"] == "running", "{metrics}");
    ensure!(metrics["rings"][TX]["state"] == "broken" && metrics["rings"][RX]["state"] == "broken", "{metrics}");
    ensure!(backend.is_alive()?, "the device died");
    Ok(())
}

#[test]
fn a_pair_goes_on_under_a_storm_of_kicks_for_the_other() -> Result<()> {
    let host = Host::new(2)?;
    let backend = host.backend(&["--queues", "2"])?;
    let wire = Wire::open(&host.tap, false)?;
    let options = Options { features: MERGEABLE | features::MQ, pairs: 2, ..Options::default() };
    let mut peer = Peer::start(&host.socket(), options)?;
    let kick = peer.rings[TX].kick.try_clone()?;
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    let storm = std::thread::spawn(move || -> std::io::Result<()> {
        while !seen.load(Ordering::Relaxed) {
            kick.write(1)?;
        }
        Ok(())
    });
    backend.wait_counter(TX, "/kicks", 1)?;
    for seed in 0..100 {
        let sent = frame(200, seed);
        send_on_second(&mut peer, &sent)?;
        ensure!(wire.receive()? == sent, "frame {seed} of the second pair");
    }
    stop.store(true, Ordering::Relaxed);
    storm.join().ok().context("the storm panicked")??;
    ensure!(backend.metrics()?["rings"][TX]["violations"] == 0, "a kick without a buffer is no violation");
    Ok(())
}

#[test]
fn a_guest_goes_on_while_another_breaks_its_rings_over_and_over() -> Result<()> {
    let host = Host::new(1)?;
    let _backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    run("ip tuntap add dev vm1 mode tap vnet_hdr")?;
    run("ip link set dev vm1 up")?;
    let socket = host.path("hostile.sock");
    let mut hostile = host.spawn_as("hostile", &["--socket", socket.to_str().context("path")?, "--tap", "vm1"], &[])?;
    let mut peer = Peer::start(&host.socket(), Options::default())?;
    peer.fill_rx(RX, 200, 2048)?;
    for turn in 0..30u8 {
        let mut bad = Peer::start(&socket, Options::default())?;
        bad.rings[TX].descriptor(0, 1 << 45, 100, 0, 0);
        bad.rings[TX].offer(0);
        bad.rings[TX].publish()?;
        bad.rings[RX].set_avail_index(0x8000);
        bad.rings[RX].kick.write(1)?;
        for seed in 0..5 {
            let sent = frame(200 + usize::from(turn), seed);
            peer.send(&sent)?;
            ensure!(wire.receive()? == sent, "frame {seed} of turn {turn} on the wire");
            wire.send(&sent)?;
            ensure!(peer.receive(RX)?.1 == sent, "frame {seed} of turn {turn} in the guest");
        }
        bad.rings[TX].wait_broken()?;
    }
    eventually("thirty violations", || {
        Ok((hostile.metrics()?["rings"][TX]["violations"].as_u64() >= Some(30)).then_some(()))
    })?;
    ensure!(hostile.is_alive()?, "the hostile guest's device died");
    Ok(())
}

#[test]
fn a_pair_goes_on_while_interrupts_of_the_other_go_into_a_full_pipe() -> Result<()> {
    let host = Host::new(2)?;
    let mut backend = host.backend(&["--queues", "2"])?;
    let wire = Wire::open(&host.tap, false)?;
    let options = Options { features: MERGEABLE | features::MQ, pairs: 2, ..Options::default() };
    let mut peer = Peer::start(&host.socket(), options)?;
    let (_reader, writer) = full_pipe()?;
    peer.front.set_vring_call(TX, &writer)?;
    for seed in 0..100 {
        let sent = frame(200, seed);
        peer.send(&sent)?;
        ensure!(wire.receive()? == sent, "frame {seed} of the first pair");
        send_on_second(&mut peer, &sent)?;
        ensure!(wire.receive()? == sent, "frame {seed} of the second pair");
    }
    ensure!(peer.front.get_vring_base(TX)? == 100, "the first pair's ring");
    ensure!(backend.stop()?, "the device did not end well");
    Ok(())
}

/// A pipe that waits when written to, and is full; the side to write to in the shape the front end sends.
fn full_pipe() -> Result<(PipeReader, EventFd)> {
    let (reader, mut writer) = std::io::pipe()?;
    // SAFETY: it asks for the size of a pipe and touches no memory.
    let size = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_GETPIPE_SZ) };
    writer.write_all(&vec![0; usize::try_from(size)?])?;
    // SAFETY: the descriptor is handed over, nobody else has it.
    Ok((reader, unsafe { EventFd::from_raw_fd(writer.into_raw_fd()) }))
}
