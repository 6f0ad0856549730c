// SPDX-License-Identifier: Apache-2.0
//! Transmit: from the guest's ring to the port.

use std::ptr::NonNull;

use nix::errno::Errno;

use super::vring::{ETHERNET_HEADER, Enable, MAX_FRAME, Moved, Queue, Turn, Vring};
use crate::metrics::{DropReason, count};
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
    /// Pieces of the frame in hand. The first is the device's copy of the header, if it is sent from there.
    pieces: Segments,
    header: Box<[u8; MAX_HEADER]>,
}

impl TxQueue {
    /// Serves a ring under these virtio features.
    pub fn new(vring: Vring, features: u64, header_len: usize) -> Self {
        let (pieces, header) = (Segments::default(), Box::new([0; MAX_HEADER]));
        Self { vring, header_len: header_len.min(MAX_HEADER), features, pieces, header }
    }

    /// Gathers the chain at `head`; returns the frame's bytes and the piece it starts with.
    #[inline]
    fn gather(&mut self, head: u16) -> Result<(u64, usize), Violation> {
        self.pieces.clear();
        self.pieces.push(NonNull::from(&mut self.header[0]), self.header_len as u64, 0);
        let total = self.vring.ring.chain(head, Access::Read, &mut self.pieces)?;
        let len = total.checked_sub(self.header_len as u64).ok_or(Violation::NoHeader { len: total })?;
        Ok((len, self.take_header()))
    }

    /// Sends the frame in `pieces`, from `start` on.
    #[inline]
    fn send(&mut self, port: &dyn Port, start: usize, len: usize) -> Result<Moved, Violation> {
        let pieces = self.pieces.iov().get(start..).unwrap_or_default();
        // SAFETY: the pieces are the device's own header and guest memory that the ring keeps mapped.
        let result = unsafe { port.write(pieces) };
        if self.vring.tracer.active() {
            self.vring.tracer.frame(Direction::FromGuest, pieces, self.header_len + len, result.err());
        }
        fate(result, len)
    }

    /// Copies the header out of guest memory and returns the index of the piece the frame now starts with.
    ///
    /// What is checked is what is sent, with one exception: a frame in one buffer with its header goes to the kernel as
    /// it lies, which saves a tenth of its time. A guest that changes the header in that moment has an offload that was
    /// not negotiated asked of the kernel, which judges every header by itself and copies it once.
    #[inline]
    fn take_header(&mut self) -> usize {
        if let [_, whole] = self.pieces.iov()
            && whole.iov_len >= self.header_len
        {
            let to = self.header.get_mut(..self.header_len).unwrap_or_default();
            // SAFETY: the piece is guest memory of at least `header_len` bytes.
            unsafe { copy_from_guest(to, whole.iov_base.cast()) };
            return 1;
        }
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
}

impl Queue for TxQueue {
    #[inline]
    fn vring(&mut self) -> &mut Vring {
        &mut self.vring
    }

    fn works(&self) -> bool {
        self.vring.enable != Enable::Unknown
    }

    #[inline]
    fn move_one(&mut self, port: &dyn Port) -> Result<Moved, Violation> {
        if self.vring.ring.available(0)? == 0 {
            return Ok(Moved::Nothing(Turn::RingEmpty));
        }
        self.vring.keep_quiet();
        self.vring.ring.prefetch(1);
        let head = self.vring.ring.head(0);
        let (len, start) = self.gather(head)?;
        let refused = if self.vring.enable == Enable::Off { Some(DropReason::Disabled) } else { self.objection(len) };
        // Before it is sent: of a device that is killed here the frame in hand may be lost, but never sent twice. The
        // kernel finishes a call it has begun, so it is lost in the few instructions up to the call only; written
        // afterwards, every kill during the call would send it again.
        self.vring.ring.complete_frame(head, 0);
        let moved = match refused {
            Some(reason) => Ok(Moved::Dropped(reason)),
            None => self.send(port, start, len as usize),
        };
        if matches!(moved, Ok(Moved::Nothing(_)) | Err(_)) {
            self.vring.ring.take_back();
        } else {
            self.vring.ring.advance(1);
        }
        if matches!(moved, Ok(Moved::Nothing(_))) {
            count(&self.vring.counters.port_full);
        }
        moved
    }

    fn arm(&mut self) -> Result<bool, Violation> {
        self.vring.arm(0)
    }
}

fn fate(result: Result<usize, Errno>, len: usize) -> Result<Moved, Violation> {
    match result {
        Ok(_) => Ok(Moved::Frame(len)),
        Err(Errno::EAGAIN) => Ok(Moved::Nothing(Turn::PortWait)),
        Err(Errno::EFAULT) => Err(Violation::MemoryLost),
        Err(Errno::EINVAL) => Ok(Moved::Dropped(DropReason::Malformed)),
        Err(Errno::EIO | Errno::EBADFD) => Ok(Moved::Dropped(DropReason::LinkDown)),
        Err(Errno::ENOMEM | Errno::ENOBUFS) => Ok(Moved::Dropped(DropReason::NoMemory)),
        Err(_) => Ok(Moved::Dropped(DropReason::Port)),
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
