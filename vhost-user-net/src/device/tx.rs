// SPDX-License-Identifier: Apache-2.0
//! Transmit: from the guest's ring to the port.

use std::ptr::NonNull;

use nix::errno::Errno;

use super::vring::{BATCH, ETHERNET_HEADER, Enable, MAX_FRAME, Turn, Vring, count};
use crate::metrics::DropReason;
use crate::port::Port;
use crate::protocol::features::{CSUM, HOST_ECN, HOST_TSO4, HOST_TSO6, HOST_USO};
use crate::ring::{Access, Segments, Violation};
use crate::trace::Direction;

const HEADER_NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;
const MAX_HEADER: usize = 12;

/// A transmit ring in service.
#[derive(Debug)]
pub struct TxQueue {
    /// The ring.
    pub vring: Vring,
    header_len: usize,
    features: u64,
    /// Pieces of the frame in hand. The first is the device's copy of the header.
    pieces: Segments,
    header: Box<[u8; MAX_HEADER]>,
}

/// What became of one chain.
enum Fate {
    Sent(usize),
    Dropped(DropReason),
    PortFull,
}

impl TxQueue {
    /// Serves a ring under these virtio features.
    pub fn new(vring: Vring, features: u64, header_len: usize) -> Self {
        let (pieces, header) = (Segments::default(), Box::new([0; MAX_HEADER]));
        Self { vring, header_len: header_len.min(MAX_HEADER), features, pieces, header }
    }

    /// Sends up to `budget` frames.
    ///
    /// # Errors
    /// When the guest broke the rules; what was completed before is shown to it.
    pub fn run(&mut self, port: &dyn Port, budget: u32) -> Result<Turn, Violation> {
        if self.vring.enable == Enable::Unknown {
            return Ok(Turn::RingEmpty);
        }
        let (mut left, mut turn) = (budget, Turn::More);
        while left > 0 && turn == Turn::More {
            let (mut frames, mut bytes) = (0, 0);
            let result = self.batch(port, left.min(BATCH), &mut frames, &mut bytes);
            self.vring.publish(frames, bytes);
            turn = result?;
            left = left.saturating_sub(BATCH);
        }
        Ok(turn)
    }

    /// Sends one batch, to be published by the caller.
    #[inline]
    fn batch(&mut self, port: &dyn Port, budget: u32, frames: &mut u64, bytes: &mut u64) -> Result<Turn, Violation> {
        for _ in 0..budget {
            if self.vring.ring.available(0)? == 0 {
                return Ok(Turn::RingEmpty);
            }
            self.vring.keep_quiet();
            self.vring.ring.prefetch(1);
            let head = self.vring.ring.head(0);
            match self.send(port, head)? {
                Fate::Sent(len) => {
                    *frames += 1;
                    *bytes += len as u64;
                }
                Fate::Dropped(reason) => self.vring.counters.count_drop(reason),
                Fate::PortFull => {
                    count(&self.vring.counters.port_full);
                    return Ok(Turn::PortWait);
                }
            }
            self.vring.ring.complete(head, 0);
            self.vring.ring.advance(1);
        }
        Ok(Turn::More)
    }

    #[inline]
    fn send(&mut self, port: &dyn Port, head: u16) -> Result<Fate, Violation> {
        self.pieces.clear();
        self.pieces.push(NonNull::from(&mut self.header[0]), self.header_len as u64, 0);
        let total = self.vring.ring.chain(head, Access::Read, &mut self.pieces)?;
        let Some(len) = total.checked_sub(self.header_len as u64) else {
            return Err(Violation::NoHeader { len: total });
        };
        let start = self.take_header();
        if self.vring.enable == Enable::Off {
            return Ok(Fate::Dropped(DropReason::Disabled));
        }
        if let Some(reason) = self.objection(len) {
            return Ok(Fate::Dropped(reason));
        }
        let pieces = self.pieces.iov().get(start..).unwrap_or_default();
        // SAFETY: the first piece is the device's own header; the others are guest memory that the ring keeps mapped.
        let result = unsafe { port.write(pieces) };
        if self.vring.tracer.active() {
            self.vring.tracer.frame(Direction::FromGuest, pieces, self.header_len + len as usize, result.err());
        }
        fate(result, len as usize)
    }

    /// Copies the header out of guest memory, so that what is checked is what is sent, and returns the index of the
    /// piece the frame now starts with.
    #[inline]
    fn take_header(&mut self) -> usize {
        let own = self.pieces.iov()[0];
        let (mut done, mut at) = (0, 1);
        while let Some(piece) = self.pieces.iov_mut().get_mut(at).filter(|_| done < self.header_len) {
            let take = piece.iov_len.min(self.header_len - done);
            let to = self.header.get_mut(done..done + take).unwrap_or_default();
            // SAFETY: the piece is guest memory of at least `take` bytes.
            unsafe { copy_from_guest(to, piece.iov_base.cast()) };
            done += take;
            if take == piece.iov_len {
                at += 1;
            } else {
                // SAFETY: take < iov_len, so the pointer stays inside the piece.
                piece.iov_base = unsafe { piece.iov_base.byte_add(take) };
                piece.iov_len -= take;
            }
        }
        // The piece before the frame's first is free: it held nothing but header, or is the device's own already.
        let start = at - 1;
        if let Some(piece) = self.pieces.iov_mut().get_mut(start) {
            *piece = own;
        }
        start
    }

    /// Why this frame must not be sent, judged by its length and its header.
    #[inline]
    fn objection(&self, len: u64) -> Option<DropReason> {
        if len < ETHERNET_HEADER as u64 {
            return Some(DropReason::Short);
        }
        if len > (MAX_FRAME - MAX_HEADER) as u64 {
            return Some(DropReason::TooLong);
        }
        let [flags, gso, ..] = *self.header;
        if gso == GSO_NONE && flags & HEADER_NEEDS_CSUM == 0 {
            return None;
        }
        let needed = match gso & !GSO_ECN {
            GSO_NONE => 0,
            GSO_TCPV4 => HOST_TSO4,
            GSO_TCPV6 => HOST_TSO6,
            GSO_UDP_L4 => HOST_USO,
            _ => return Some(DropReason::NotNegotiated),
        };
        let ecn = if gso & GSO_ECN != 0 { HOST_ECN } else { 0 };
        let missing = (CSUM | needed | ecn) & !self.features;
        (missing != 0).then_some(DropReason::NotNegotiated)
    }

    /// Asks for kicks; returns whether there is something to send at once instead.
    ///
    /// # Errors
    /// When the guest's index is illegal.
    pub fn arm(&mut self) -> Result<bool, Violation> {
        self.vring.arm(0)
    }
}

fn fate(result: Result<usize, Errno>, len: usize) -> Result<Fate, Violation> {
    match result {
        Ok(_) => Ok(Fate::Sent(len)),
        Err(Errno::EAGAIN) => Ok(Fate::PortFull),
        Err(Errno::EFAULT) => Err(Violation::MemoryLost),
        Err(Errno::EINVAL) => Ok(Fate::Dropped(DropReason::Malformed)),
        Err(Errno::EIO | Errno::EBADFD) => Ok(Fate::Dropped(DropReason::LinkDown)),
        Err(Errno::ENOMEM | Errno::ENOBUFS) => Ok(Fate::Dropped(DropReason::NoMemory)),
        Err(_) => Ok(Fate::Dropped(DropReason::Port)),
    }
}

/// Copies bytes that the guest may change meanwhile.
///
/// # Safety
/// `from` must have `to.len()` mapped bytes.
#[inline]
unsafe fn copy_from_guest(to: &mut [u8], from: *const u8) {
    if to.len() == MAX_HEADER && from.addr().is_multiple_of(4) {
        for (at, word) in to.chunks_exact_mut(4).enumerate() {
            // SAFETY: twelve mapped bytes, aligned to 4.
            word.copy_from_slice(&unsafe { from.cast::<u32>().add(at).read_volatile() }.to_ne_bytes());
        }
        return;
    }
    for (at, byte) in to.iter_mut().enumerate() {
        // SAFETY: at < to.len().
        *byte = unsafe { from.add(at).read_volatile() };
    }
}
