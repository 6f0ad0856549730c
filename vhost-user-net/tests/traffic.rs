// SPDX-License-Identifier: Apache-2.0
//! Real frames through a real tap, with every ring feature.

mod peer;

use anyhow::{Result, ensure};
use peer::host::{Host, Wire, frame, tcp_frame};
use peer::ring::{INDIRECT, NEXT, WRITE};
use peer::{HEADER, MERGEABLE, Options, PLAIN, Peer, RX, TX};
use weft_vhost::protocol::features;

/// Feature sets every basic test runs under.
const MATRIX: &[u64] = &[
    0,
    PLAIN,
    MERGEABLE,
    MERGEABLE | features::EVENT_IDX,
    MERGEABLE | features::EVENT_IDX | features::INDIRECT_DESC | features::IN_ORDER,
];

fn options(features: u64) -> Options {
    Options { features: features | features::PROTOCOL_FEATURES, ..Options::default() }
}

fn header_len(features: u64) -> usize {
    features::net_header_len(features)
}

#[test]
fn frames_of_the_guest_reach_the_wire_unchanged_and_in_order() -> Result<()> {
    let host = Host::new(1)?;
    let _backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    for features in MATRIX {
        let mut peer = Peer::start(&host.socket(), options(*features))?;
        let short = HEADER - header_len(*features);
        // Twice around the ring, in all sizes.
        for turn in 0..600usize {
            let sent = frame(60 + turn * 7 % 1455, turn as u8);
            let slot = peer.rings[TX].next_slot();
            let addr = peer.ram.buffers(TX) + u64::from(slot) * 4096;
            peer.ram.write(addr, &vec![0; header_len(*features)]);
            peer.ram.write(addr + header_len(*features) as u64, &sent);
            peer.rings[TX].descriptor(slot, addr, (HEADER - short + sent.len()) as u32, 0, 0);
            peer.rings[TX].offer(slot);
            peer.rings[TX].publish()?;
            ensure!(wire.receive()? == sent, "frame {turn} under {features:#x}");
            ensure!(peer.rings[TX].wait_used()? == (slot, 0), "used element {turn}");
        }
    }
    Ok(())
}

#[test]
fn frames_of_the_wire_reach_the_guest_unchanged_and_in_order() -> Result<()> {
    let host = Host::new(1)?;
    let _backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    for features in MATRIX.iter().filter(|features| header_len(**features) == HEADER) {
        let mut peer = Peer::start(&host.socket(), options(*features))?;
        peer.fill_rx(RX, 200, 2048)?;
        for turn in 0..600usize {
            let sent = frame(60 + turn * 7 % 1455, turn as u8);
            wire.send(&sent)?;
            let (header, got) = peer.receive(RX)?;
            ensure!(got == sent, "frame {turn} under {features:#x}");
            ensure!(header[10..12] == [1, 0], "num_buffers of frame {turn}: {header:?}");
            peer.fill_rx(RX, 1, 2048)?;
        }
    }
    Ok(())
}

#[test]
fn a_frame_is_spread_over_small_mergeable_buffers() -> Result<()> {
    let host = Host::new(1)?;
    let _backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let mut peer = Peer::start(&host.socket(), options(MERGEABLE | features::EVENT_IDX))?;
    for turn in 0..300usize {
        // Fewer buffers than the frame needs at first: the device has to wait for the rest.
        peer.fill_rx(RX, 2, 128)?;
        let sent = frame(1000 + turn % 200, turn as u8);
        wire.send(&sent)?;
        peer.fill_rx(RX, 8, 128)?;
        let (header, got) = peer.receive(RX)?;
        ensure!(got == sent, "frame {turn}: {} bytes for {}", got.len(), sent.len());
        let buffers = (sent.len() + HEADER).div_ceil(128);
        ensure!(header[10..12] == (buffers as u16).to_le_bytes(), "num_buffers of frame {turn}: {header:?}");
        // The buffers the frame did not need are there for the next one.
        let spare = 10 - buffers;
        for _ in 0..spare {
            wire.send(&frame(60, 1))?;
            peer.receive(RX)?;
        }
    }
    Ok(())
}

#[test]
fn chains_of_many_descriptors_and_indirect_tables_are_followed() -> Result<()> {
    let host = Host::new(1)?;
    let _backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let mut peer = Peer::start(&host.socket(), options(MERGEABLE | features::INDIRECT_DESC))?;
    let sent = frame(900, 9);
    let data = peer.ram.buffers(TX);
    peer.ram.write(data, &[&[0; HEADER][..], &sent].concat());
    // The header in its own descriptor, the header cut in two, everything in one piece, one byte a descriptor.
    let whole = (HEADER + sent.len()) as u32;
    let cuts: [&[u32]; 4] = [&[12, 100, 800], &[5, 7, 300, 600], &[whole], &[1; 40]];
    for (turn, lens) in cuts.iter().enumerate() {
        let mut lens = lens.to_vec();
        let rest = whole - lens.iter().sum::<u32>();
        lens.extend((rest > 0).then_some(rest));
        for indirect in [false, true] {
            let ring = &mut peer.rings[TX];
            let table = if indirect { data + 0x10_0001 } else { ring.desc_addr() };
            let mut at = data;
            for (index, len) in lens.iter().enumerate() {
                let last = index + 1 == lens.len();
                let (flags, next) = if last { (0, 0) } else { (NEXT, index as u16 + 1) };
                ring.descriptor_at(table + 16 * index as u64, at, *len, flags, next);
                at += u64::from(*len);
            }
            if indirect {
                ring.descriptor(200, table, 16 * lens.len() as u32, INDIRECT, 0);
            }
            ring.offer(if indirect { 200 } else { 0 });
            ring.publish()?;
            ensure!(wire.receive()? == sent, "cut {turn}, indirect {indirect}");
            ring.wait_used()?;
        }
    }
    Ok(())
}

#[test]
fn a_received_frame_follows_a_chain_of_descriptors() -> Result<()> {
    let host = Host::new(1)?;
    let _backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    for features in [PLAIN, MERGEABLE] {
        let mut peer = Peer::start(&host.socket(), options(features))?;
        let base = peer.ram.buffers(RX);
        // The header alone, then pieces of 300 bytes.
        for (slot, (len, next)) in [(12, 1), (300, 2), (300, 3), (1200, 0)].into_iter().enumerate() {
            let flags = if next == 0 { WRITE } else { WRITE | NEXT };
            peer.rings[RX].descriptor(slot as u16, base + slot as u64 * 4096, len, flags, next);
        }
        peer.rings[RX].offer(0);
        peer.rings[RX].publish()?;
        let sent = frame(1400, 5);
        wire.send(&sent)?;
        ensure!(peer.rings[RX].wait_used()? == (0, (HEADER + sent.len()) as u32), "used element under {features:#x}");
        let read = |slot: u64, len| peer.ram.read(base + slot * 4096, len);
        let got = [read(1, 300), read(2, 300), read(3, 800)].concat();
        ensure!(got == sent, "bytes under {features:#x}");
        ensure!(read(0, 12)[10..] == [1, 0], "num_buffers under {features:#x}");
    }
    Ok(())
}

#[test]
fn segmentation_frames_pass_both_ways_when_negotiated() -> Result<()> {
    const GSO: u64 = features::CSUM | features::HOST_TSO4 | features::GUEST_CSUM | features::GUEST_TSO4;
    let host = Host::new(1)?;
    let backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, true)?;
    let mut peer = Peer::start(&host.socket(), Options { ring_size: 512, ..options(MERGEABLE | GSO) })?;
    let sent = tcp_frame(60_000);
    // NEEDS_CSUM, TCPV4, header length 54, segments of 1448, checksum of TCP.
    let mut header = [1, 1, 54, 0, 0xa8, 0x05, 34, 0, 16, 0, 0, 0];
    let data = peer.ram.buffers(TX);
    peer.ram.write(data, &[&header[..], &sent].concat());
    peer.rings[TX].descriptor(0, data, (HEADER + sent.len()) as u32, 0, 0);
    peer.rings[TX].offer(0);
    peer.rings[TX].publish()?;
    let got = wire.receive()?;
    ensure!(got[10..] == sent[..], "{} bytes on the wire", got.len());
    ensure!(got[..2] == [1, 1], "header on the wire: {:?}", &got[..10]);

    peer.fill_rx(RX, 256, 1536)?;
    for _ in 0..40 {
        wire.send_with(header[..10].try_into()?, &sent)?;
        let (got_header, got) = peer.receive(RX)?;
        ensure!(got == sent, "{} bytes in the guest", got.len());
        ensure!(got_header[..2] == [1, 1], "header in the guest: {got_header:?}");
        let used = peer.rings[RX].last_used;
        let offered = peer.rings[RX].next_avail;
        peer.fill_rx(RX, 256 - offered.wrapping_sub(used), 1536)?;
    }
    // An offload that was not negotiated is refused: UDP segmentation.
    header[1] = 5;
    peer.ram.write(data, &header);
    peer.rings[TX].offer(0);
    peer.rings[TX].publish()?;
    backend.wait_counter(TX, "/drops/not_negotiated", 1)
}

#[test]
fn several_queue_pairs_work_side_by_side() -> Result<()> {
    let host = Host::new(4)?;
    let backend = host.backend(&["--queues", "4"])?;
    let wire = Wire::open(&host.tap, false)?;
    let mut peer = Peer::start(&host.socket(), Options { pairs: 4, ..options(MERGEABLE | features::MQ) })?;
    for pair in 0..4usize {
        let tx = 2 * pair + 1;
        let sent = frame(100 + pair, pair as u8);
        let addr = peer.ram.buffers(7) + 0x1000 * pair as u64;
        peer.ram.write(addr, &[&[0; HEADER][..], &sent].concat());
        peer.rings[tx].descriptor(0, addr, (HEADER + sent.len()) as u32, 0, 0);
        peer.rings[tx].offer(0);
        peer.rings[tx].publish()?;
        ensure!(wire.receive()? == sent, "frame of pair {pair}");
    }
    for pair in 0..4 {
        peer.fill_rx(2 * pair, 64, 2048)?;
    }
    // Flows are steered by their hash; all of them have to arrive somewhere, wherever that is.
    for flow in 0..64u8 {
        let mut sent = tcp_frame(10);
        sent[34] = flow;
        wire.send(&sent)?;
        peer::host::eventually("a frame on any ring", || Ok((0..4).find_map(|pair| peer.rings[2 * pair].used())))?;
    }
    let metrics = backend.metrics()?;
    let busy = (0..4).filter(|pair| metrics["rings"][2 * pair]["frames"] != 0).count();
    ensure!(busy > 1, "all flows on one queue: {metrics}");
    Ok(())
}

#[test]
fn flows_are_steered_to_enabled_queues_only() -> Result<()> {
    use vhost::vhost_user::VhostUserFrontend;
    let host = Host::new(4)?;
    let _backend = host.backend(&["--queues", "4"])?;
    let wire = Wire::open(&host.tap, false)?;
    let mut peer = Peer::start(&host.socket(), Options { pairs: 4, ..options(MERGEABLE | features::MQ) })?;
    for pair in 1..4 {
        peer.front.set_vring_enable(2 * pair, false)?;
    }
    peer.fill_rx(RX, 128, 2048)?;
    for flow in 0..64u8 {
        let mut sent = tcp_frame(10);
        sent[34] = flow;
        wire.send(&sent)?;
        peer.receive(RX)?;
    }
    Ok(())
}

#[test]
fn notifications_are_given_only_when_wanted() -> Result<()> {
    let host = Host::new(1)?;
    let _backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let mut peer = Peer::start(&host.socket(), options(MERGEABLE))?;
    peer.rings[RX].set_avail_flags(1);
    peer.rings[TX].set_avail_flags(1);
    peer.fill_rx(RX, 64, 2048)?;
    // The first completion after a start is always signalled, because nothing is known of the driver's wish.
    wire.send(&frame(60, 0))?;
    peer.receive(RX)?;
    peer.rings[RX].interrupts();
    for turn in 0..20 {
        wire.send(&frame(60, turn))?;
        peer.receive(RX)?;
    }
    ensure!(peer.rings[RX].interrupts() == 0, "interrupts in spite of VRING_AVAIL_F_NO_INTERRUPT");

    let mut peer = {
        drop(peer);
        Peer::start(&host.socket(), options(MERGEABLE | features::EVENT_IDX))?
    };
    peer.fill_rx(RX, 64, 2048)?;
    peer.rings[RX].set_used_event(4);
    for turn in 0..4 {
        wire.send(&frame(60, turn))?;
        peer.receive(RX)?;
    }
    peer.rings[RX].interrupts();
    wire.send(&frame(60, 5))?;
    peer.receive(RX)?;
    peer::host::eventually("the interrupt asked for", || Ok((peer.rings[RX].interrupts() == 1).then_some(())))?;
    Ok(())
}
