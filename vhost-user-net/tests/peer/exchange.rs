// SPDX-License-Identifier: Apache-2.0
//! One frame across the device, and a look at what came of it.

use anyhow::{Result, ensure};

use super::host::{Wire, frame};
use super::{Peer, RX, TX};

/// Sends a frame from the guest; it is on the wire as it was sent.
pub fn send_and_see(peer: &mut Peer, wire: &Wire) -> Result<()> {
    send(peer, wire, &frame(200, 7))
}

/// Sends a frame to the guest, which has a buffer for it; it is there as it was sent.
pub fn receive_and_see(peer: &mut Peer, wire: &Wire) -> Result<()> {
    receive(peer, wire, &frame(300, 8))
}

/// A frame both ways, of a length and with bytes that follow the seed; the guest takes both buffers back.
pub fn both_ways(peer: &mut Peer, wire: &Wire, seed: u8) -> Result<()> {
    let sent = frame(200 + usize::from(seed), seed);
    send(peer, wire, &sent)?;
    peer.rings[TX].wait_used()?;
    receive(peer, wire, &sent)?;
    peer.fill_rx(RX, 1, 2048)
}

fn send(peer: &mut Peer, wire: &Wire, sent: &[u8]) -> Result<()> {
    peer.send(sent)?;
    ensure!(wire.receive()? == sent, "another frame on the wire");
    Ok(())
}

fn receive(peer: &mut Peer, wire: &Wire, sent: &[u8]) -> Result<()> {
    wire.send(sent)?;
    ensure!(peer.receive(RX)?.1 == sent, "another frame in the guest");
    Ok(())
}
