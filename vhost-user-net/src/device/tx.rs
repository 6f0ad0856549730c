// SPDX-License-Identifier: Apache-2.0
//! Transmit: from the guest's ring to the port.

use std::ptr::NonNull;

use nix::errno::Errno;

use super::offload::{self, Asked};
use super::vring::{ETHERNET_HEADER, Enable, MAX_FRAME, Moved, Queue, Turn, Vring};
use crate::metrics::{DropReason, count};
use crate::port::Port;
use crate::ring::{Access, Segments, Violation};
use crate::trace::Direction;

const MAX_HEADER: usize = 12;
/// Frames up to this length are copied whole and go out in one piece: that takes a tenth longer than from where the guest has
/// them, and a call with several pieces takes as long again.
const WHOLE: usize = 2048;

/// A transmit ring in service.
#[derive(Debug)]
pub struct TxQueue {
    /// The ring.
    pub vring: Vring,
    header_len: usize,
    features: u64,
    /// Pieces of the chain in hand; the first is the front.
    pieces: Segments,
    /// The device's own copy of the header and of the frame's beginning: what is judged is what is sent.
    front: Box<[u8; MAX_HEADER + WHOLE]>,
    /// Bytes in it.
    copied: usize,
    /// The first piece that is not wholly copied.
    next: usize,
}

impl TxQueue {
    /// Serves a ring under these virtio features.
    pub fn new(vring: Vring, features: u64, header_len: usize) -> Self {
        let (pieces, front) = (Segments::default(), Box::new([0; MAX_HEADER + WHOLE]));
        Self { vring, header_len: header_len.min(MAX_HEADER), features, pieces, front, copied: 0, next: 1 }
    }

    /// Gathers the chain at `head` and copies its header; returns the frame's bytes.
    #[inline]
    fn gather(&mut self, head: u16) -> Result<u64, Violation> {
        self.pieces.clear();
        self.pieces.push(NonNull::from(&mut self.front[0]), 0, 0);
        (self.copied, self.next) = (0, 1);
        let total = self.vring.ring.chain(head, Access::Read, &mut self.pieces)?;
        let len = total.checked_sub(self.header_len as u64).ok_or(Violation::NoHeader { len: total })?;
        self.copy(self.header_len);
        Ok(len)
    }

    /// Copies from the chain until the front has `want` bytes, or all there are.
    #[inline]
    fn copy(&mut self, want: usize) {
        while let Some(piece) = self.pieces.iov_mut().get_mut(self.next).filter(|_| self.copied < want) {
            let take = piece.iov_len.min(want - self.copied);
            let to = self.front.get_mut(self.copied..self.copied + take).unwrap_or_default();
            // SAFETY: the piece is guest memory of at least `take` bytes.
            unsafe { copy_from_guest(to, piece.iov_base.cast()) };
            self.copied += take;
            if take == piece.iov_len {
                self.next += 1;
            } else {
                // SAFETY: take < iov_len, so the pointer stays inside the piece.
                piece.iov_base = unsafe { piece.iov_base.byte_add(take) };
                piece.iov_len -= take;
            }
        }
    }

    /// Why this frame of `len` bytes must not be sent, judged by its length, its header and its beginning.
    ///
    /// The beginning is copied where it is judged: a guest that changes it afterwards would move the transport header away
    /// from under a checksum that was right.
    #[inline]
    fn objection(&mut self, len: u64) -> Option<DropReason> {
        if len < ETHERNET_HEADER as u64 {
            return Some(DropReason::Short);
        }
        if len > (MAX_FRAME - MAX_HEADER) as u64 {
            return Some(DropReason::TooLong);
        }
        let Some(header) = self.front.first_chunk() else { return Some(DropReason::Short) };
        let asked = Asked::of(header);
        let len = len as usize;
        if len <= WHOLE {
            self.copy(self.header_len + len);
        } else if !asked.is_nothing() {
            self.copy(self.header_len + offload::FRONT);
        }
        let end = self.copied.min(self.header_len + offload::FRONT);
        let front = self.front.get(self.header_len..end).unwrap_or_default();
        asked.objection(front, len, self.features)
    }

    /// Sends the frame: the front, and what was not copied of the chain.
    #[inline]
    fn send(&mut self, port: &dyn Port, len: usize) -> Result<Moved, Violation> {
        // The piece before the first that is left is free: it was copied, or is the front's own already.
        let start = self.next - 1;
        let own = libc::iovec { iov_base: self.front.as_mut_ptr().cast(), iov_len: self.copied };
        if let Some(piece) = self.pieces.iov_mut().get_mut(start) {
            *piece = own;
        }
        let pieces = self.pieces.iov().get(start..).unwrap_or_default();
        // SAFETY: the pieces are the device's own front and guest memory that the ring keeps mapped.
        let result = unsafe { port.write(pieces) };
        if self.vring.tracer.active() {
            self.vring.tracer.frame(Direction::FromGuest, pieces, self.header_len + len, result.err());
        }
        fate(result, len)
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
        let len = self.gather(head)?;
        let refused = if self.vring.enable == Enable::Off { Some(DropReason::Disabled) } else { self.objection(len) };
        // Before it is sent: of a device that is killed here the frame in hand may be lost, but never sent twice. The
        // kernel finishes a call it has begun, so it is lost in the few instructions up to the call only; written
        // afterwards, every kill during the call would send it again.
        self.vring.ring.complete_frame(head, 0);
        let moved = match refused {
            Some(reason) => Ok(Moved::Dropped(reason)),
            None => self.send(port, len as usize),
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

/// Copies bytes that the guest may change meanwhile: each is read once.
///
/// # Safety
/// `from` must have `to.len()` mapped bytes.
#[inline]
unsafe fn copy_from_guest(to: &mut [u8], from: *const u8) {
    #[cfg(target_arch = "x86_64")]
    if to.len() > FEW {
        // SAFETY: reads the mapped bytes and writes those of the slice, which do not overlap; the direction flag is clear.
        unsafe {
            std::arch::asm!(
                "rep movsb",
                inout("rcx") to.len() => _,
                inout("rsi") from => _,
                inout("rdi") to.as_mut_ptr() => _,
                options(nostack, preserves_flags)
            );
        }
        return;
    }
    // SAFETY: as the caller's.
    unsafe { copy_words(to, from) }
}

/// Up to here words are as fast as the processor's own copy loop, which takes a while to start.
#[cfg(target_arch = "x86_64")]
const FEW: usize = 128;

/// Copies by words, where they are aligned.
///
/// # Safety
/// As of [`copy_from_guest`].
#[inline]
unsafe fn copy_words(to: &mut [u8], from: *const u8) {
    const WORD: usize = size_of::<u64>();
    let before = from.align_offset(WORD).min(to.len());
    let (head, rest) = to.split_at_mut(before);
    // SAFETY: as the caller's.
    unsafe { copy_bytes(head, from) };
    let mut at = before;
    let mut words = rest.chunks_exact_mut(WORD);
    for word in &mut words {
        // SAFETY: eight mapped bytes, aligned to 8.
        word.copy_from_slice(&unsafe { from.add(at).cast::<u64>().read_volatile() }.to_ne_bytes());
        at += WORD;
    }
    // SAFETY: what is left of the mapped bytes.
    unsafe { copy_bytes(words.into_remainder(), from.add(at)) };
}

/// # Safety
/// As of [`copy_from_guest`].
#[inline]
unsafe fn copy_bytes(to: &mut [u8], from: *const u8) {
    for (at, byte) in to.iter_mut().enumerate() {
        // SAFETY: at < to.len().
        *byte = unsafe { from.add(at).read_volatile() };
    }
}
