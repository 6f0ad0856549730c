// SPDX-License-Identifier: Apache-2.0
//! Dragonball's front end (Kata Containers), step by step: it listens, asks for the features before and after it owns
//! the device, has no control queue for one pair, knows of the protocol features only MQ, gives call descriptors before
//! the memory and again after it, and says nothing of a base when the backend comes back.

mod peer;

use std::os::unix::net::UnixListener;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use peer::exchange::both_ways;
use peer::host::{Host, Wire, frame};
use peer::ram::Ram;
use peer::ring::DriverRing;
use peer::{Options, Peer, RX, TX};
use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use weft_vhost::protocol::features as f;

/// A connection that was accepted, and what the backend offered on it.
fn accept(listener: &UnixListener, rings: usize) -> Result<(Frontend, u64)> {
    let (stream, _) = listener.accept()?;
    let front = Frontend::from_stream(stream, rings as u64);
    let offered = front.get_features()?;
    Ok((front, offered))
}

/// What the guest is offered: the backend's features without a control queue, except for several pairs.
fn guest_features(offered: u64, pairs: usize) -> u64 {
    let several = if pairs > 1 { f::MQ | f::CTRL_VQ } else { 0 };
    // A driver knows nothing of LOG_ALL, and need not know IN_ORDER.
    (offered | several) & !(f::GUEST_ANNOUNCE | (f::MQ | f::CTRL_VQ) & !several | f::LOG_ALL | f::IN_ORDER)
}

/// Everything from `SET_OWNER` to the rings that are enabled: those of the first pair.
fn negotiate(mut front: Frontend, ram: &Arc<Ram>, pairs: usize, features: u64, bases: Option<u16>) -> Result<Peer> {
    let options = Options { features, protocol: Protocol::MQ.bits(), ring_size: 256, pairs };
    let rings = options.rings(ram)?;
    front.set_owner()?;
    front.get_features()?;
    front.set_features(features)?;
    let protocol = front.get_protocol_features()?;
    ensure!(protocol.contains(Protocol::MQ), "{protocol:?}");
    front.set_protocol_features(protocol & Protocol::MQ)?;
    ensure!(front.get_queue_num()? >= rings.len() as u64, "queues");
    for (index, ring) in rings.iter().enumerate() {
        front.set_vring_call(index, &ring.call)?;
    }
    front.set_mem_table(&ram.regions())?;
    for (index, ring) in rings.iter().enumerate() {
        front.set_vring_num(index, ring.size())?;
    }
    if let Some(base) = bases {
        (0..rings.len()).try_for_each(|index| front.set_vring_base(index, base))?;
    }
    for (index, ring) in rings.iter().enumerate() {
        front.set_vring_addr(index, &ring.config(None))?;
    }
    for (index, ring) in rings.iter().enumerate() {
        front.set_vring_kick(index, &ring.kick)?;
    }
    for (index, ring) in rings.iter().enumerate() {
        front.set_vring_call(index, &ring.call)?;
    }
    front.set_vring_enable(RX, true)?;
    front.set_vring_enable(TX, true)?;
    Ok(Peer { front, ram: Arc::clone(ram), rings, options })
}

#[test]
fn one_pair_has_no_control_queue_and_several_start_with_the_first() -> Result<()> {
    for pairs in [1, 2] {
        let host = Host::new(pairs)?;
        let listener = UnixListener::bind(host.socket())?;
        let socket = host.socket();
        let (socket, queues) = (socket.to_str().context("path")?, pairs.to_string());
        let args = ["--socket", socket, "--tap", &host.tap, "--client", "--queues", &queues];
        let backend = host.spawn(&args, &[])?;
        let wire = Wire::open(&host.tap, false)?;
        let (front, offered) = accept(&listener, 2 * pairs)?;
        let features = guest_features(offered, pairs);
        ensure!((features & f::CTRL_VQ != 0) == (pairs > 1), "CTRL_VQ for {pairs} pairs");
        let mut peer = negotiate(front, &Arc::new(Ram::new(&[(0, Ram::SIZE)])?), pairs, features, Some(0))?;
        for pair in 0..pairs {
            peer.fill_rx(2 * pair, 100, 2048)?;
        }
        // Frames for the guest come on the first pair as long as it is the only one that is enabled.
        (0..40).try_for_each(|seed| both_ways(&mut peer, &wire, seed))?;
        // The guest asked its control queue for all pairs.
        (0..2 * pairs).try_for_each(|index| peer.front.set_vring_enable(index, true))?;
        peer.send(&frame(99, 9))?;
        ensure!(wire.receive()? == frame(99, 9), "another frame on the wire");
        ensure!(backend.metrics()?["last_error"].is_null(), "{}", backend.metrics()?);
    }
    Ok(())
}

#[test]
fn a_backend_that_comes_back_finds_its_place_without_being_told() -> Result<()> {
    let host = Host::new(1)?;
    let listener = UnixListener::bind(host.socket())?;
    let socket = host.socket();
    let args = ["--socket", socket.to_str().context("path")?, "--tap", &host.tap, "--client", "--retry-ms", "20"];
    let mut backend = host.spawn(&args, &[])?;
    let wire = Wire::open(&host.tap, false)?;
    let ram = Arc::new(Ram::new(&[(0, Ram::SIZE)])?);
    let (front, offered) = accept(&listener, 2)?;
    let features = guest_features(offered, 1);
    // The rings have run for long: their indices wrap around under the test, and what no base is mistaken for is 0.
    let start = 65_400;
    for index in 0..2 {
        let ring = DriverRing::new(&ram, index, 256, true)?;
        ring.set_avail_index(start);
        ring.set_used_index(start);
    }
    let mut peer = negotiate(front, &ram, 1, features, Some(start))?;
    peer.rings.iter_mut().for_each(|ring| ring.resume(start, start));
    peer.fill_rx(RX, 100, 2048)?;
    for turn in 0..8u8 {
        (0..20).try_for_each(|seed| both_ways(&mut peer, &wire, seed)).with_context(|| format!("turn {turn}"))?;
        backend.kill()?;
        backend = host.spawn(&args, &[])?;
        let before = peer.rings;
        peer = negotiate(accept(&listener, 2)?.0, &ram, 1, features, None)?;
        for (ring, before) in peer.rings.iter_mut().zip(before) {
            ring.resume(before.next_avail, before.last_used);
        }
    }
    both_ways(&mut peer, &wire, 77)
}
