// SPDX-License-Identifier: Apache-2.0
//! Receive: from the port to the guest's ring.
//!
//! A port cannot be asked for the length of its next frame, so a read needs room for the longest one. Giving the kernel
//! 64 KiB of guest buffers for every small frame costs more than the frame, so a read gets guest buffers for the length
//! that recent frames had and, behind them, a private overflow buffer. What lands in the overflow buffer is copied on.
//! While frames are small they all go that way: a `read` into one buffer and a copy of a few cache lines take less time
//! than a `readv` into two.

use std::ptr::NonNull;

use nix::errno::Errno;

use super::vring::{Enable, MAX_FRAME, Moved, Queue, Turn, Vring};
use crate::dirty_log::DirtyLog;
use crate::metrics::{DropReason, count};
use crate::port::Port;
use crate::ring::{Access, MAX_SEGMENTS, Segments, Violation};
use crate::trace::Direction;

/// The expected length falls by this fraction with every shorter frame.
const DECAY: u64 = 16;
/// Greatest expected length, header included, at which frames are read into the overflow buffer alone.
const SMALL: u64 = 256;
/// Offset of `num_buffers` in the header (virtio 1.3, 5.1.6.1).
const NUM_BUFFERS: usize = 10;
const HEADER_WITH_NUM_BUFFERS: usize = 12;
/// Pieces used up at the front of the list before the list is moved down.
const COMPACT: usize = 4096;

/// One chain taken from the ring and not used yet.
#[derive(Debug)]
struct Chain {
    bytes: u64,
    pieces: u16,
    head: u16,
}

/// A frame that was read and waits for more buffers.
#[derive(Debug, Clone, Copy)]
struct Frame {
    len: usize,
    /// Pieces whose bytes the kernel filled; the rest is in the overflow buffer.
    pieces: usize,
    direct: usize,
}

/// A receive ring in service.
#[derive(Debug)]
pub struct RxQueue {
    /// The ring.
    pub vring: Vring,
    header_len: usize,
    mergeable: bool,
    /// Chains taken in advance, from `next` on.
    chains: Vec<Chain>,
    next: usize,
    /// Pieces of those chains, from `first` on.
    pieces: Segments,
    first: usize,
    bytes: u64,
    overflow: Vec<u8>,
    /// Greatest length of recent frames.
    expected: u64,
    waiting: Option<Frame>,
}

impl RxQueue {
    /// Serves a ring under these features.
    pub fn new(vring: Vring, header_len: usize, mergeable: bool) -> Self {
        Self {
            vring,
            header_len,
            mergeable,
            chains: Vec::new(),
            next: 0,
            pieces: Segments::default(),
            first: 0,
            bytes: 0,
            overflow: vec![0; MAX_FRAME],
            expected: 1,
            waiting: None,
        }
    }

    /// Number of chains taken in advance.
    #[inline]
    fn taken(&self) -> u16 {
        (self.chains.len() - self.next) as u16
    }

    /// Reads one frame into buffers taken in advance and the overflow buffer.
    #[inline]
    fn read(&mut self, port: &dyn Port) -> Result<Result<Frame, Moved>, Violation> {
        self.gather(self.expected)?;
        let Some(chain) = self.chains.get(self.next) else { return Ok(Err(Moved::Nothing(Turn::RingEmpty))) };
        if chain.bytes < self.header_len as u64 {
            return Err(Violation::NoHeader { len: chain.bytes });
        }
        let (count, direct) = match self.expected {
            ..=SMALL => (0, 0),
            _ if self.mergeable => self.cover(self.expected),
            _ => (chain.pieces.into(), chain.bytes),
        };
        let direct = direct as usize;
        match self.read_pieces(port, count) {
            Ok(len) if len > self.header_len => {
                self.expected = (len as u64).max(self.expected - self.expected / DECAY);
                Ok(Ok(Frame { len, pieces: count, direct: direct.min(len) }))
            }
            Ok(len) => {
                self.mark_dirty(len.min(direct));
                Ok(Err(Moved::Dropped(DropReason::Short)))
            }
            Err(Errno::EAGAIN) => Ok(Err(Moved::Nothing(Turn::PortWait))),
            Err(Errno::EFAULT) => {
                self.mark_dirty(direct);
                Err(Violation::MemoryLost)
            }
            Err(Errno::EIO | Errno::EBADFD) => Ok(Err(Moved::Nothing(Turn::PortWait))),
            Err(_) => {
                self.vring.counters.count_drop(DropReason::Port);
                Ok(Err(Moved::Nothing(Turn::PortWait)))
            }
        }
    }

    /// How many of the pieces taken in advance it needs for `want` bytes, and the bytes they have.
    #[inline]
    fn cover(&self, want: u64) -> (usize, u64) {
        let taken = self.pieces.iov().get(self.first..).unwrap_or_default();
        if let Some(last) = taken.last()
            && self.bytes - (last.iov_len as u64) < want
            && taken.len() <= MAX_SEGMENTS
        {
            return (taken.len(), self.bytes);
        }
        let (mut count, mut bytes) = (0, 0);
        for piece in taken.iter().take(MAX_SEGMENTS) {
            count += 1;
            bytes += piece.iov_len as u64;
            if bytes >= want {
                break;
            }
        }
        (count, bytes)
    }

    /// Reads into the first `count` pieces and then into the overflow buffer.
    #[inline]
    fn read_pieces(&mut self, port: &dyn Port, count: usize) -> Result<usize, Errno> {
        let (start, end) = (self.first, self.first + count);
        let overflow = NonNull::from(&mut self.overflow[0]);
        // The kernel wants one array: the piece behind the last one used makes place for the overflow buffer meanwhile.
        let saved = self.pieces.iov().get(end).copied();
        if saved.is_none() {
            self.pieces.push(overflow, 0, 0);
        }
        self.pieces.iov_mut()[end] = libc::iovec { iov_base: overflow.as_ptr().cast(), iov_len: self.overflow.len() };
        // SAFETY: the pieces are guest memory the ring keeps mapped, and a buffer of this queue.
        let result = unsafe { port.read(self.pieces.iov().get(start..=end).unwrap_or_default()) };
        match saved {
            Some(piece) => self.pieces.iov_mut()[end] = piece,
            None => self.pieces.truncate(end),
        }
        result
    }

    /// Takes chains from the ring until they have `want` bytes or the ring has no more.
    #[inline]
    fn gather(&mut self, want: u64) -> Result<(), Violation> {
        let mut known = 0;
        while self.bytes < want && self.pieces.len() - self.first < MAX_SEGMENTS {
            let ahead = self.taken();
            if known == 0 {
                known = self.vring.ring.available(ahead)?;
                if known == 0 {
                    return Ok(());
                }
                self.vring.keep_quiet();
            }
            known -= 1;
            let head = self.vring.ring.head(ahead);
            let before = self.pieces.len();
            let bytes = self.vring.ring.chain(head, Access::Write, &mut self.pieces)?;
            self.chains.push(Chain { bytes, pieces: (self.pieces.len() - before) as u16, head });
            self.bytes += bytes;
        }
        Ok(())
    }

    /// Copies what is in the overflow buffer into further guest buffers. Returns whether there were enough.
    fn make_room(&mut self, frame: Frame) -> Result<bool, Violation> {
        if self.mergeable {
            self.gather(frame.len as u64)?;
        }
        let room = if self.mergeable { self.bytes } else { self.chains.get(self.next).map_or(0, |chain| chain.bytes) };
        if room < frame.len as u64 {
            return Ok(false);
        }
        let mut rest = self.overflow.get(..frame.len - frame.direct).unwrap_or_default();
        for piece in self.pieces.iov().get(self.first + frame.pieces..).unwrap_or_default() {
            let (now, later) = rest.split_at(rest.len().min(piece.iov_len));
            // SAFETY: the piece is guest memory of at least `now.len()` bytes; the overflow buffer is this queue's own.
            unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), piece.iov_base.cast(), now.len()) };
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        Ok(true)
    }

    /// Keeps a frame until there are more buffers, or gives it up when there can never be enough.
    fn postpone(&mut self, frame: Frame) -> Moved {
        // It may never be delivered, and has been written this far.
        self.mark_dirty(frame.direct);
        let full = self.taken() >= self.vring.ring.size();
        let segments = self.pieces.len() - self.first >= MAX_SEGMENTS;
        if !self.mergeable || full || segments {
            return Moved::Dropped(DropReason::TooLong);
        }
        self.waiting = Some(frame);
        Moved::Nothing(Turn::RingEmpty)
    }

    /// Completes the chains the frame fills.
    #[inline]
    fn deliver(&mut self, frame: Frame) {
        if self.vring.tracer.active() {
            let pieces = self.pieces.iov().get(self.first..).unwrap_or_default();
            self.vring.tracer.frame(Direction::ToGuest, pieces, frame.len, None);
        }
        let (mut left, mut chains, mut pieces, mut bytes) = (frame.len as u64, 0, 0, 0);
        for chain in self.chains.get(self.next..).unwrap_or_default() {
            chains += 1;
            pieces += usize::from(chain.pieces);
            bytes += chain.bytes;
            if left <= chain.bytes {
                // The frame has to be whole before its last chain says that it is.
                if self.header_len == HEADER_WITH_NUM_BUFFERS {
                    write_num_buffers(self.pieces.iov().get(self.first..).unwrap_or_default(), chains);
                }
                self.mark_dirty(frame.len);
                self.vring.ring.complete_frame(chain.head, left as u32);
                break;
            }
            self.vring.ring.complete(chain.head, chain.bytes as u32);
            left -= chain.bytes;
        }
        self.next += usize::from(chains);
        self.first += pieces;
        self.bytes -= bytes;
        self.vring.ring.advance(chains);
        self.compact();
    }

    /// Marks the pages of the first `len` bytes of the buffers taken in advance, while there is a log.
    #[inline]
    fn mark_dirty(&self, len: usize) {
        if let Some(log) = self.vring.ring.dirty_log().filter(|_| len > 0) {
            self.mark_pieces(log, len);
        }
    }

    #[cold]
    fn mark_pieces(&self, log: &DirtyLog, len: usize) {
        let mut left = len;
        let iov = self.pieces.iov().get(self.first..).unwrap_or_default();
        let guest = self.pieces.guest().get(self.first..).unwrap_or_default();
        for (piece, guest) in iov.iter().zip(guest) {
            let written = left.min(piece.iov_len);
            log.mark(*guest, written as u64);
            left -= written;
            if left == 0 {
                return;
            }
        }
    }

    #[inline]
    fn compact(&mut self) {
        if self.first == self.pieces.len() {
            self.chains.clear();
            self.pieces.clear();
            (self.next, self.first) = (0, 0);
        } else if self.first >= COMPACT {
            self.chains.drain(..self.next);
            self.pieces.drop_front(self.first);
            (self.next, self.first) = (0, 0);
        }
    }
}

impl Queue for RxQueue {
    #[inline]
    fn vring(&mut self) -> &mut Vring {
        &mut self.vring
    }

    fn works(&self) -> bool {
        self.vring.enable == Enable::On
    }

    #[inline]
    fn move_one(&mut self, port: &dyn Port) -> Result<Moved, Violation> {
        let frame = match self.waiting.take() {
            Some(frame) => frame,
            None => match self.read(port)? {
                Ok(frame) => frame,
                Err(moved) => return Ok(moved),
            },
        };
        if frame.len > frame.direct && !self.make_room(frame)? {
            return Ok(self.postpone(frame));
        }
        self.deliver(frame);
        Ok(Moved::Frame(frame.len - self.header_len))
    }

    fn arm(&mut self) -> Result<bool, Violation> {
        if !self.works() {
            return Ok(false);
        }
        let newly = !self.vring.kicks_enabled();
        let more = self.vring.arm(self.taken())?;
        if newly && !more {
            count(&self.vring.counters.starved);
        }
        Ok(more)
    }

    fn give_back(&mut self) {
        if self.waiting.take().is_some() {
            self.vring.counters.count_drop(DropReason::TooLong);
        }
        self.chains.clear();
        self.pieces.clear();
        (self.next, self.first, self.bytes) = (0, 0, 0);
    }
}

/// Writes the header's last field, which may lie in any of the frame's first pieces.
#[inline]
fn write_num_buffers(pieces: &[libc::iovec], chains: u16) {
    let bytes = chains.to_le_bytes();
    if let Some(piece) = pieces.first().filter(|piece| piece.iov_len >= HEADER_WITH_NUM_BUFFERS) {
        let at = piece.iov_base.cast::<u8>().wrapping_add(NUM_BUFFERS).cast::<[u8; 2]>();
        // SAFETY: the piece is guest memory the ring keeps mapped, and has these two bytes.
        unsafe { at.write_volatile(bytes) };
        return;
    }
    let (mut skip, mut bytes) = (NUM_BUFFERS, bytes.into_iter());
    for piece in pieces {
        while skip < piece.iov_len {
            let Some(byte) = bytes.next() else { return };
            // SAFETY: skip < iov_len, and the piece is guest memory the ring keeps mapped.
            unsafe { piece.iov_base.cast::<u8>().add(skip).write_volatile(byte) };
            skip += 1;
        }
        skip -= piece.iov_len;
    }
}
