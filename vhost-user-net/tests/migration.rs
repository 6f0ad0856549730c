// SPDX-License-Identifier: Apache-2.0
//! The dirty log: every page the device writes while logging is marked, after it was written.

mod peer;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use anyhow::{Result, ensure};
use peer::host::{Host, Wire, frame};
use peer::ram::Ram;
use peer::{MERGEABLE, Options, Peer, RX, TX};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use weft_vhost::protocol::features;

const PAGE: u64 = 4096;

fn marked(log: &OwnedFd) -> Result<BTreeSet<u64>> {
    let mut bytes = vec![0; Ram::SIZE / 4096 / 8];
    nix::sys::uio::pread(log, &mut bytes, 0)?;
    let bits =
        |(at, byte): (usize, u8)| (0..8).filter(move |bit| byte & 1 << bit != 0).map(move |bit| at as u64 * 8 + bit);
    Ok(bytes.into_iter().enumerate().flat_map(bits).collect())
}

/// The same without the rings: asking for kicks writes to the used ring at any time.
fn marked_buffers(peer: &Peer, log: &OwnedFd) -> Result<BTreeSet<u64>> {
    let mut pages = marked(log)?;
    pages.retain(|page| *page >= peer.ram.buffers(RX) / PAGE);
    Ok(pages)
}

/// Pages of the receive buffers and the used rings: what nobody but the device writes.
fn device_pages(peer: &Peer) -> Vec<u64> {
    let span = |from: u64, len: u64| from / PAGE..(from + len).div_ceil(PAGE);
    let used = peer.rings.iter().flat_map(|ring| span(ring.used_addr(), 6 + 8 * u64::from(ring.size())));
    span(peer.ram.buffers(RX), 256 * PAGE).chain(used).collect()
}

fn snapshot(peer: &Peer, pages: &[u64]) -> Vec<Vec<u8>> {
    pages.iter().map(|page| peer.ram.read(page * PAGE, PAGE as usize)).collect()
}

/// What changed between two snapshots.
fn changed(pages: &[u64], before: &[Vec<u8>], after: &[Vec<u8>]) -> BTreeSet<u64> {
    pages.iter().zip(before.iter().zip(after)).filter(|(_, (old, new))| old != new).map(|(page, _)| *page).collect()
}

fn receive(peer: &mut Peer, wire: &Wire, count: u8, len: usize) -> Result<()> {
    for seed in 0..count {
        let sent = frame(len, seed.wrapping_add(1));
        wire.send(&sent)?;
        ensure!(peer.receive(RX)?.1 == sent, "frame {seed}");
    }
    Ok(())
}

#[test]
fn every_page_the_device_writes_is_marked_and_no_other() -> Result<()> {
    let host = Host::new(1)?;
    let _backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    for features in [MERGEABLE, MERGEABLE | features::EVENT_IDX] {
        // Buffers of 1000 bytes make frames of 1400 take two; the device logs the used ring at a page of its own.
        for (buffer, len) in [(2048, 300), (1000, 1400)] {
            let mut peer = Peer::start(&host.socket(), Options { features, ..Options::default() })?;
            peer.fill_rx(RX, 200, buffer)?;
            // Before the log nothing is marked, and the first pages are used up.
            receive(&mut peer, &wire, 10, len)?;
            let log = peer.start_log()?;
            let pages = device_pages(&peer);
            ensure!(marked_buffers(&peer, &log)?.is_empty(), "marked before anything was written");
            let before = snapshot(&peer, &pages);
            receive(&mut peer, &wire, 40, len)?;
            peer.send(&frame(100, 1))?;
            peer.rings[TX].wait_used()?;
            // After the stop nothing can be on its way.
            peer.front.get_vring_base(RX)?;
            peer.front.get_vring_base(TX)?;
            let written = changed(&pages, &before, &snapshot(&peer, &pages));
            let marked = marked(&log)?;
            let missing: Vec<_> = written.difference(&marked).collect();
            ensure!(missing.is_empty(), "not marked under {features:#x}: {missing:?}");
            let more: Vec<_> = marked.difference(&written).filter(|page| !pages.contains(page)).collect();
            ensure!(more.is_empty(), "marked and not written: {more:?}");
            ensure!(written.len() >= 42, "the test wrote {} pages only", written.len());
        }
    }
    Ok(())
}

#[test]
fn a_frame_that_waits_for_buffers_when_the_ring_stops_is_marked() -> Result<()> {
    let host = Host::new(1)?;
    let _backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let mut peer = Peer::start(&host.socket(), Options::default())?;
    // The device now expects frames of this length, and has them written into the guest's buffers at once.
    peer.fill_rx(RX, 2, 1000)?;
    receive(&mut peer, &wire, 1, 1400)?;
    let log = peer.start_log()?;
    let page = peer.ram.buffers(RX) / PAGE + u64::from(peer.rings[RX].next_slot());
    let before = snapshot(&peer, &[page]);
    peer.fill_rx(RX, 1, 1000)?;
    wire.send(&frame(1400, 77))?;
    peer::host::eventually("a part of the frame", || Ok((snapshot(&peer, &[page]) != before).then_some(())))?;
    peer.front.get_vring_base(RX)?;
    ensure!(peer.rings[RX].used().is_none(), "the frame was delivered");
    ensure!(marked(&log)?.contains(&page), "written and not marked");
    Ok(())
}

#[test]
fn logging_ends_with_its_feature_bit() -> Result<()> {
    let host = Host::new(1)?;
    let backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let mut peer = Peer::start(&host.socket(), Options::default())?;
    peer.fill_rx(RX, 100, 2048)?;
    let log = peer.start_log()?;
    ensure!(backend.metrics()?["logging"] == true, "logging");
    peer.front.set_features(MERGEABLE)?;
    receive(&mut peer, &wire, 5, 300)?;
    ensure!(marked_buffers(&peer, &log)?.is_empty(), "marked after the migration was given up");
    ensure!(backend.metrics()?["logging"] == false, "logging");
    Ok(())
}

#[test]
fn memory_added_while_logging_is_logged() -> Result<()> {
    let host = Host::new(1)?;
    let backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let protocol = VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::LOG_SHMFD
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
    let ram = std::sync::Arc::new(Ram::new(&[(0, Ram::SIZE / 2)])?);
    let options = Options { protocol: protocol.bits(), ..Options::default() };
    let mut peer = Peer::negotiate(&host.socket(), ram, options)?;
    peer.start_rings(&[0, 0])?;
    let log = peer.start_log()?;
    // The log covers twice the memory there was, so this region has bits in it.
    let base = Ram::SIZE as u64 / 2 + 0x10_0000;
    let more = Ram::new(&[(base, 1 << 20)])?;
    peer.front.add_mem_region(&more.regions()[0])?;
    peer.rings[RX].descriptor(0, base + 3 * PAGE, 2048, peer::ring::WRITE, 0);
    peer.rings[RX].offer(0);
    peer.rings[RX].publish()?;
    wire.send(&frame(300, 1))?;
    peer.rings[RX].wait_used()?;
    peer.front.get_vring_base(RX)?;
    ensure!(marked(&log)?.contains(&(base / PAGE + 3)), "the new region's page is not marked");
    // A region past the log's end is counted, not written anywhere.
    let far = Ram::new(&[(1 << 40, 1 << 20)])?;
    peer.front.add_mem_region(&far.regions()[0])?;
    peer.front.get_vring_base(TX)?;
    peer.rings[RX] = peer::ring::DriverRing::new(&peer.ram, RX, 256, false)?;
    for ring in &peer.rings {
        ring.set_avail_index(0);
        ring.set_used_index(0);
    }
    peer.start_rings(&[0, 0])?;
    peer.rings[RX].descriptor(0, 1 << 40, 2048, peer::ring::WRITE, 0);
    peer.rings[RX].offer(0);
    peer.rings[RX].publish()?;
    wire.send(&frame(300, 1))?;
    peer::host::eventually("a missed page", || {
        // Any message brings the reported state up to date.
        peer.front.get_features()?;
        Ok((backend.metrics()?["log_missed"].as_u64() > Some(0)).then_some(()))
    })
}
