// SPDX-License-Identifier: Apache-2.0
//! Guests that break the rules: the ring is stopped, reported and counted; the process and the other ring go on.

mod peer;

use anyhow::{Context, Result, ensure};
use peer::exchange::{receive_and_see, send_and_see};
use peer::host::{Backend, Host, Wire, eventually, frame, tcp_frame};
use peer::ram::Ram;
use peer::ring::{DriverRing, INDIRECT, NEXT, WRITE};
use peer::{HEADER, MERGEABLE, Options, Peer, RX, TX};
use vhost::VhostBackend;
use weft_vhost::protocol::features;

const INDIRECT_ON: u64 = MERGEABLE | features::INDIRECT_DESC;
/// Outside every region of the guest.
const NOWHERE: u64 = 1 << 45;
/// The last byte of the guest's memory.
const LAST: u64 = Ram::SIZE as u64 - 1;

/// Makes one bad chain available.
type Attack = fn(&mut DriverRing, buffers: u64);

fn one(ring: &mut DriverRing, addr: u64, len: u32, flags: u16, next: u16) {
    ring.descriptor(0, addr, len, flags, next);
    ring.offer(0);
}

/// An indirect table at 16 KiB into the buffers, with these entries.
fn table(ring: &mut DriverRing, buffers: u64, bytes: u32, entries: &[(u64, u32, u16, u16)]) {
    for (index, (addr, len, flags, next)) in entries.iter().enumerate() {
        ring.descriptor_at(buffers + 0x4000 + 16 * index as u64, *addr, *len, *flags, *next);
    }
    one(ring, buffers + 0x4000, bytes, INDIRECT, 0);
}

const TRANSMIT: &[(&str, u64, Attack)] = &[
    ("a chain that loops on itself", MERGEABLE, |ring, at| one(ring, at, 100, NEXT, 0)),
    ("a chain that loops over two descriptors", MERGEABLE, |ring, at| {
        ring.descriptor(1, at + 4096, 100, NEXT, 0);
        one(ring, at, 100, NEXT, 1);
    }),
    ("a descriptor without bytes", MERGEABLE, |ring, at| one(ring, at, 0, 0, 0)),
    ("a second descriptor without bytes", MERGEABLE, |ring, at| {
        ring.descriptor(1, at + 4096, 0, 0, 0);
        one(ring, at, 100, NEXT, 1);
    }),
    ("a length of 2^32-1", MERGEABLE, |ring, at| one(ring, at, u32::MAX, 0, 0)),
    ("an address outside guest memory", MERGEABLE, |ring, _| one(ring, NOWHERE, 100, 0, 0)),
    ("the last address there is", MERGEABLE, |ring, _| one(ring, u64::MAX, 100, 0, 0)),
    ("a buffer over the end of a region", MERGEABLE, |ring, _| one(ring, LAST, 100, 0, 0)),
    ("a next descriptor past the table", MERGEABLE, |ring, at| one(ring, at, 100, NEXT, 256)),
    ("a head past the table", MERGEABLE, |ring, _| ring.offer(256)),
    ("a writable buffer to transmit", MERGEABLE, |ring, at| one(ring, at, 100, WRITE, 0)),
    ("a writable buffer behind a readable one", MERGEABLE, |ring, at| {
        ring.descriptor(1, at + 4096, 100, WRITE, 0);
        one(ring, at, 100, NEXT, 1);
    }),
    ("a chain without room for the header", MERGEABLE, |ring, at| one(ring, at, 11, 0, 0)),
    ("an indirect descriptor that was not negotiated", MERGEABLE, |ring, at| table(ring, at, 16, &[(at, 100, 0, 0)])),
    ("an indirect table in an indirect table", INDIRECT_ON, |ring, at| table(ring, at, 16, &[(at, 16, INDIRECT, 0)])),
    ("an indirect descriptor with a successor", INDIRECT_ON, |ring, at| one(ring, at, 16, INDIRECT | NEXT, 1)),
    ("an indirect table of no bytes", INDIRECT_ON, |ring, at| one(ring, at, 0, INDIRECT, 0)),
    ("an indirect table of 17 bytes", INDIRECT_ON, |ring, at| one(ring, at, 17, INDIRECT, 0)),
    ("an indirect table outside guest memory", INDIRECT_ON, |ring, _| one(ring, NOWHERE, 32, INDIRECT, 0)),
    ("an indirect table over the end of memory", INDIRECT_ON, |ring, _| one(ring, LAST - 16, 32, INDIRECT, 0)),
    ("an indirect table of 2^32-16 bytes", INDIRECT_ON, |ring, at| one(ring, at, u32::MAX - 15, INDIRECT, 0)),
    ("an indirect table that loops", INDIRECT_ON, |ring, at| {
        table(ring, at, 32, &[(at, 64, NEXT, 1), (at, 64, NEXT, 0)])
    }),
    ("an indirect entry of no bytes", INDIRECT_ON, |ring, at| table(ring, at, 16, &[(at, 0, 0, 0)])),
    ("an indirect entry of 2^32-1 bytes", INDIRECT_ON, |ring, at| table(ring, at, 16, &[(at, u32::MAX, 0, 0)])),
    ("an indirect entry outside guest memory", INDIRECT_ON, |ring, at| table(ring, at, 16, &[(NOWHERE, 100, 0, 0)])),
    ("an indirect table behind a descriptor of its own", INDIRECT_ON, |ring, at| {
        ring.descriptor_at(at + 0x4000, at, 16, INDIRECT, 0);
        ring.descriptor(1, at + 0x4000, 16, INDIRECT, 0);
        one(ring, at, 100, NEXT, 1);
    }),
    ("an indirect next past its table", INDIRECT_ON, |ring, at| table(ring, at, 16, &[(at, 64, NEXT, 1)])),
    ("a chain of more pieces than the kernel takes", INDIRECT_ON, |ring, at| {
        let entries: Vec<_> = (0..1100u16).map(|index| (at, 1, NEXT, index + 1)).collect();
        table(ring, at, 16 * 1100, &entries);
    }),
];

const RECEIVE: &[(&str, u64, Attack)] = &[
    ("a readable buffer to receive", MERGEABLE, |ring, at| one(ring, at, 2048, 0, 0)),
    ("a buffer without room for the header", MERGEABLE, |ring, at| one(ring, at, 8, WRITE, 0)),
    ("a buffer without bytes", MERGEABLE, |ring, at| one(ring, at, 0, WRITE, 0)),
    ("a chain that loops", MERGEABLE, |ring, at| one(ring, at, 100, WRITE | NEXT, 0)),
    ("a chain that loops over two descriptors", MERGEABLE, |ring, at| {
        ring.descriptor(1, at + 4096, 100, WRITE | NEXT, 0);
        one(ring, at, 100, WRITE | NEXT, 1);
    }),
    ("a head past the table", MERGEABLE, |ring, _| ring.offer(256)),
    ("a next descriptor past the table", MERGEABLE, |ring, at| one(ring, at, 100, WRITE | NEXT, 256)),
    ("an indirect descriptor that was not negotiated", MERGEABLE, |ring, at| {
        table(ring, at, 16, &[(at, 2048, WRITE, 0)])
    }),
    ("an indirect table in an indirect table", INDIRECT_ON, |ring, at| {
        table(ring, at, 16, &[(at, 16, INDIRECT | WRITE, 0)])
    }),
    ("a buffer over the end of a region", MERGEABLE, |ring, _| one(ring, LAST, 2048, WRITE, 0)),
    ("a buffer outside guest memory", MERGEABLE, |ring, _| one(ring, NOWHERE, 2048, WRITE, 0)),
    ("a length of 2^32-1", MERGEABLE, |ring, at| one(ring, at, u32::MAX, WRITE, 0)),
    ("a readable buffer behind a writable one", MERGEABLE, |ring, at| {
        ring.descriptor(1, at + 4096, 100, 0, 0);
        one(ring, at, 100, WRITE | NEXT, 1);
    }),
];

fn options(features: u64) -> Options {
    Options { features, ..Options::default() }
}

fn expect_broken(backend: &mut Backend, peer: &Peer, ring: usize) -> Result<()> {
    peer.rings[ring].wait_broken()?;
    let metrics = backend.metrics()?;
    ensure!(metrics["rings"][ring]["state"] == "broken", "state: {metrics}");
    ensure!(backend.is_alive()?, "the device died");
    Ok(())
}

#[test]
fn a_bad_chain_stops_the_transmit_ring_and_nothing_else() -> Result<()> {
    let host = Host::new(1)?;
    let mut backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    for (name, features, attack) in TRANSMIT {
        let mut peer = Peer::start(&host.socket(), options(*features))?;
        peer.fill_rx(RX, 16, 2048)?;
        let buffers = peer.ram.buffers(TX);
        attack(&mut peer.rings[TX], buffers);
        peer.rings[TX].publish()?;
        expect_broken(&mut backend, &peer, TX).context(*name)?;
        ensure!(peer.rings[TX].used_index() == 0, "{name}: the chain was used");
        receive_and_see(&mut peer, &wire).context(*name)?;
        // The ring can be set up again by a driver that starts over.
        ensure!(peer.front.get_vring_base(TX)? == 0, "{name}: base");
        ensure!(peer.front.get_vring_base(RX)? == 1, "{name}: base of the other ring");
        peer.rings[TX] = DriverRing::new(&peer.ram, TX, 256, false)?;
        peer.rings[TX].set_avail_index(0);
        peer.start_rings(&[1, 0])?;
        send_and_see(&mut peer, &wire).context(*name)?;
    }
    let violations = backend.metrics()?["rings"][TX]["violations"].as_u64();
    ensure!(violations == Some(TRANSMIT.len() as u64), "violations: {violations:?}");
    Ok(())
}

#[test]
fn a_bad_chain_stops_the_receive_ring_and_nothing_else() -> Result<()> {
    let host = Host::new(1)?;
    let mut backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    for (name, features, attack) in RECEIVE {
        let mut peer = Peer::start(&host.socket(), options(*features))?;
        let buffers = peer.ram.buffers(RX);
        attack(&mut peer.rings[RX], buffers);
        peer.rings[RX].publish()?;
        wire.send(&frame(300, 8))?;
        expect_broken(&mut backend, &peer, RX).context(*name)?;
        send_and_see(&mut peer, &wire).context(*name)?;
    }
    Ok(())
}

#[test]
fn an_available_index_that_jumps_stops_its_ring() -> Result<()> {
    for index in [257, 1000, 0x8000, 0xffff] {
        let host = Host::new(1)?;
        let mut backend = host.backend(&[])?;
        let wire = Wire::open(&host.tap, false)?;
        let mut peer = Peer::start(&host.socket(), options(MERGEABLE))?;
        peer.rings[TX].set_avail_index(index);
        peer.rings[TX].kick.write(1)?;
        expect_broken(&mut backend, &peer, TX).with_context(|| format!("index {index}"))?;
        peer.fill_rx(RX, 4, 2048)?;
        receive_and_see(&mut peer, &wire)?;
        // The device looks again when it has used what it knows of.
        peer.rings[RX].set_avail_index(index.wrapping_add(4));
        (0..4).try_for_each(|seed| wire.send(&frame(300, seed)))?;
        expect_broken(&mut backend, &peer, RX).with_context(|| format!("receive index {index}"))?;
    }
    Ok(())
}

#[test]
fn an_available_index_that_goes_back_stops_its_ring() -> Result<()> {
    let host = Host::new(1)?;
    let mut backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let mut peer = Peer::start(&host.socket(), options(MERGEABLE))?;
    for _ in 0..5 {
        send_and_see(&mut peer, &wire)?;
        peer.rings[TX].wait_used()?;
    }
    peer.rings[TX].set_avail_index(3);
    peer.rings[TX].kick.write(1)?;
    expect_broken(&mut backend, &peer, TX)?;
    ensure!(
        backend.log()?.contains("the available index jumped to 3 while 5 is the next one"),
        "the log does not say so"
    );
    Ok(())
}

#[test]
fn a_frame_longer_than_any_packet_is_dropped_and_its_ring_goes_on() -> Result<()> {
    let host = Host::new(1)?;
    let backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let mut peer = Peer::start(&host.socket(), options(MERGEABLE))?;
    let addr = peer.ram.buffers(TX);
    // One buffer of a mebibyte; then buffers whose lengths add up to more than 32 bits hold.
    peer.rings[TX].descriptor(0, addr, 1 << 20, 0, 0);
    peer.rings[TX].offer(0);
    for slot in 0..100 {
        let (flags, next) = if slot == 99 { (0, 0) } else { (NEXT, slot + 2) };
        peer.rings[TX].descriptor(slot + 1, 0, Ram::SIZE as u32, flags, next);
    }
    peer.rings[TX].offer(1);
    peer.rings[TX].publish()?;
    backend.wait_counter(TX, "/drops/too_long", 2)?;
    ensure!([peer.rings[TX].wait_used()?.0, peer.rings[TX].wait_used()?.0] == [0, 1], "used elements");
    send_and_see(&mut peer, &wire)
}

#[test]
fn a_header_that_lies_costs_its_frame_only() -> Result<()> {
    const OFFLOADS: u64 = features::CSUM | features::HOST_TSO4 | features::HOST_TSO6 | features::HOST_ECN;
    // flags, gso type, header length, gso size, checksum start, checksum offset
    let lies: [(&str, [u8; HEADER], &str); 12] = [
        ("checksum for the destination", [1, 0, 0, 0, 0, 0, 14, 0, 16, 0, 0, 0], "/drops/bad_checksum_place"),
        ("checksum for the source", [1, 0, 0, 0, 0, 0, 14, 0, 12, 0, 0, 0], "/drops/bad_checksum_place"),
        ("checksum for a port", [1, 0, 0, 0, 0, 0, 34, 0, 2, 0, 0, 0], "/drops/bad_checksum_place"),
        ("checksum of an inner packet", [1, 0, 0, 0, 0, 0, 84, 0, 16, 0, 0, 0], "/drops/bad_checksum_place"),
        ("checksum past the end", [1, 0, 0, 0, 0, 0, 0xff, 0xff, 16, 0, 0, 0], "/drops/bad_checksum_place"),
        ("gso size 0", [1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0], "/drops/bad_segmentation"),
        ("gso size 1", [1, 1, 54, 0, 1, 0, 34, 0, 16, 0, 0, 0], "/drops/bad_segmentation"),
        ("segments of the other family", [1, 4, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0], "/drops/bad_segmentation"),
        ("headers longer than the frame", [1, 1, 0xff, 0xff, 0xa8, 5, 34, 0, 16, 0, 0, 0], "/drops/malformed"),
        ("unknown gso type", [0, 0x42, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], "/drops/not_negotiated"),
        ("UDP fragmentation", [1, 3, 54, 0, 8, 0, 34, 0, 6, 0, 0, 0], "/drops/not_negotiated"),
        ("UDP segmentation that was not negotiated", [1, 5, 54, 0, 8, 0, 34, 0, 6, 0, 0, 0], "/drops/not_negotiated"),
    ];
    let host = Host::new(1)?;
    let backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let mut peer = Peer::start(&host.socket(), options(MERGEABLE | OFFLOADS))?;
    let mut expected = std::collections::BTreeMap::new();
    for (name, header, counter) in lies {
        peer.send_with(header, &tcp_frame(146))?;
        peer.rings[TX].wait_used().context(name)?;
        let count = expected.entry(counter).or_insert(0);
        *count += 1;
        backend.wait_counter(TX, counter, *count).context(name)?;
        send_and_see(&mut peer, &wire).context(name)?;
        peer.rings[TX].wait_used()?;
    }
    // The driver has to set num_buffers to 0; the device has no use for it.
    peer.send_with([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff], &frame(200, 3))?;
    ensure!(wire.receive()? == frame(200, 3), "the frame whose header gives a number of buffers");
    peer.rings[TX].wait_used()?;
    for len in [0, 13] {
        peer.send(&frame(200, 1)[..len])?;
        peer.rings[TX].wait_used()?;
    }
    backend.wait_counter(TX, "/drops/short", 2)?;
    ensure!(backend.metrics()?["rings"][TX]["violations"] == 0, "a lying header is no violation of the ring");
    Ok(())
}

#[test]
fn a_buffer_may_cross_from_one_region_into_the_next_but_not_over_a_gap() -> Result<()> {
    const HALF: usize = Ram::SIZE / 2;
    let host = Host::new(1)?;
    let mut backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    // Regions that touch, given in the wrong order; then regions with a page between them.
    for (second, touches) in [(HALF as u64, true), (HALF as u64 + 4096, false)] {
        let ram = std::sync::Arc::new(Ram::new(&[(0, HALF), (second, HALF)])?);
        let mut peer = Peer::negotiate(&host.socket(), std::sync::Arc::clone(&ram), options(MERGEABLE))?;
        let mut unsorted = ram.regions();
        unsorted.reverse();
        peer.front.set_mem_table(&unsorted)?;
        peer.start_rings(&[0, 0])?;
        let sent = frame(1000, 3);
        let bytes = [&[0; HEADER][..], &sent].concat();
        let at = HALF as u64 - 500;
        ram.write(at, &bytes[..500]);
        ram.write(second, &bytes[500..]);
        one(&mut peer.rings[TX], at, bytes.len() as u32, 0, 0);
        peer.rings[TX].publish()?;
        if touches {
            ensure!(wire.receive()? == sent, "a frame over two regions");
        } else {
            expect_broken(&mut backend, &peer, TX)?;
        }
    }
    Ok(())
}

#[test]
fn memory_that_is_cut_short_stops_the_rings_and_says_so() -> Result<()> {
    let host = Host::new(1)?;
    let mut backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let mut peer = Peer::start(&host.socket(), options(MERGEABLE))?;
    peer.fill_rx(RX, 4, 2048)?;
    send_and_see(&mut peer, &wire)?;
    nix::unistd::ftruncate(&peer.ram.file, 0)?;
    peer.rings[TX].kick.write(1)?;
    expect_broken(&mut backend, &peer, TX)?;
    wire.send(&frame(300, 1))?;
    expect_broken(&mut backend, &peer, RX)?;
    ensure!(backend.log()?.contains("guest memory went away"), "nothing in the log");
    drop(peer);
    // The next front end is served as if nothing had been.
    let mut peer = Peer::start(&host.socket(), options(MERGEABLE))?;
    send_and_see(&mut peer, &wire)
}

#[test]
fn a_frame_too_long_for_a_single_buffer_is_dropped_and_the_buffer_kept() -> Result<()> {
    let host = Host::new(1)?;
    let backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let mut peer = Peer::start(&host.socket(), options(features::VERSION_1 | features::PROTOCOL_FEATURES))?;
    peer.fill_rx(RX, 1, 500)?;
    wire.send(&frame(1400, 1))?;
    backend.wait_counter(RX, "/drops/too_long", 1)?;
    receive_and_see(&mut peer, &wire)?;
    eventually("one frame", || Ok((backend.metrics()?["rings"][RX]["frames"] == 1).then_some(())))
}
