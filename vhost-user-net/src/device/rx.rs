// SPDX-License-Identifier: Apache-2.0
//! Receive: from the port to the guest's ring.
//!
//! A port cannot be asked for the length of its next frame, so a read needs room for the longest one. Giving the kernel
//! 64 KiB of guest buffers for every small frame costs more than the frame, so a read gets guest buffers for the length
//! that recent frames had and, behind them, a private overflow buffer. What lands in the overflow buffer is copied on.

use std::collections::VecDeque;
use std::ptr::NonNull;

use nix::errno::Errno;

use super::vring::{BATCH, Enable, MAX_FRAME, Turn, Vring, count};
use crate::metrics::DropReason;
use crate::port::Port;
use crate::ring::{Access, MAX_SEGMENTS, Segments, Violation};
use crate::trace::Direction;

/// The expected length falls by this fraction with every shorter frame.
const DECAY: u64 = 16;
/// Offset of `num_buffers` in the header (virtio 1.3, 5.1.6.1).
const NUM_BUFFERS: usize = 10;
const HEADER_WITH_NUM_BUFFERS: usize = 12;
/// Pieces used up at the front of the list before the list is moved down.
const COMPACT: usize = 4096;

/// One chain taken from the ring and not used yet.
#[derive(Debug)]
struct Chain {
    head: u16,
    pieces: usize,
    bytes: u64,
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
    chains: VecDeque<Chain>,
    /// Pieces of `chains`, from `first` on.
    pieces: Segments,
    first: usize,
    bytes: u64,
    overflow: Vec<u8>,
    /// Greatest length of recent frames.
    expected: u64,
    waiting: Option<Frame>,
}

/// How an attempt to receive one frame ended.
enum Outcome {
    Delivered(usize),
    Dropped(DropReason),
    NoBuffers,
    PortEmpty,
}

impl RxQueue {
    /// Serves a ring under these features.
    pub fn new(vring: Vring, header_len: usize, mergeable: bool) -> Self {
        Self {
            vring,
            header_len,
            mergeable,
            chains: VecDeque::new(),
            pieces: Segments::default(),
            first: 0,
            bytes: 0,
            overflow: vec![0; MAX_FRAME],
            expected: 1,
            waiting: None,
        }
    }

    /// Gives the chains back that were taken in advance, before the ring or its memory changes. A frame that waits for
    /// buffers is lost.
    pub fn give_back(&mut self) {
        if self.waiting.take().is_some() {
            self.vring.counters.count_drop(DropReason::TooLong);
        }
        self.chains.clear();
        self.pieces.clear();
        (self.first, self.bytes) = (0, 0);
    }

    /// Receives up to `budget` frames.
    ///
    /// # Errors
    /// When the guest broke the rules; what was completed before is shown to it.
    pub fn run(&mut self, port: &dyn Port, budget: u32) -> Result<Turn, Violation> {
        if self.vring.enable != Enable::On {
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

    #[inline]
    fn batch(&mut self, port: &dyn Port, budget: u32, frames: &mut u64, bytes: &mut u64) -> Result<Turn, Violation> {
        for _ in 0..budget {
            match self.receive(port)? {
                Outcome::Delivered(len) => {
                    *frames += 1;
                    *bytes += len as u64;
                }
                Outcome::Dropped(reason) => self.vring.counters.count_drop(reason),
                Outcome::NoBuffers => return Ok(Turn::RingEmpty),
                Outcome::PortEmpty => return Ok(Turn::PortWait),
            }
        }
        Ok(Turn::More)
    }

    #[inline]
    fn receive(&mut self, port: &dyn Port) -> Result<Outcome, Violation> {
        let frame = match self.waiting.take() {
            Some(frame) => frame,
            None => match self.read(port)? {
                Ok(frame) => frame,
                Err(outcome) => return Ok(outcome),
            },
        };
        if frame.len > frame.direct && !self.make_room(frame)? {
            return Ok(self.postpone(frame));
        }
        self.deliver(frame).map(|()| Outcome::Delivered(frame.len - self.header_len))
    }

    /// Reads one frame into buffers taken in advance and the overflow buffer.
    #[inline]
    fn read(&mut self, port: &dyn Port) -> Result<Result<Frame, Outcome>, Violation> {
        self.gather(self.expected)?;
        let Some(chain) = self.chains.front() else { return Ok(Err(Outcome::NoBuffers)) };
        if chain.bytes < self.header_len as u64 {
            return Err(Violation::NoHeader { len: chain.bytes });
        }
        let (count, direct) = if self.mergeable { self.cover(self.expected) } else { (chain.pieces, chain.bytes) };
        let direct = direct as usize;
        match self.read_pieces(port, count) {
            Ok(len) if len > self.header_len => {
                self.expected = (len as u64).max(self.expected - self.expected / DECAY);
                Ok(Ok(Frame { len, pieces: count, direct: direct.min(len) }))
            }
            Ok(_) => Ok(Err(Outcome::Dropped(DropReason::Short))),
            Err(Errno::EAGAIN) => Ok(Err(Outcome::PortEmpty)),
            Err(Errno::EFAULT) => Err(Violation::MemoryLost),
            Err(Errno::EIO | Errno::EBADFD) => Ok(Err(Outcome::PortEmpty)),
            Err(_) => {
                self.vring.counters.count_drop(DropReason::Port);
                Ok(Err(Outcome::PortEmpty))
            }
        }
    }

    /// How many of the pieces taken in advance it needs for `want` bytes, and the bytes they have.
    #[inline]
    fn cover(&self, want: u64) -> (usize, u64) {
        let (mut count, mut bytes) = (0, 0);
        for piece in self.pieces.iov().get(self.first..).unwrap_or_default().iter().take(MAX_SEGMENTS) {
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
        while self.bytes < want && self.pieces.len() - self.first < MAX_SEGMENTS {
            let ahead = self.chains.len() as u16;
            if self.vring.ring.available(ahead)? == 0 {
                return Ok(());
            }
            self.vring.keep_quiet();
            let head = self.vring.ring.head(ahead);
            let before = self.pieces.len();
            let bytes = self.vring.ring.chain(head, Access::Write, &mut self.pieces)?;
            self.chains.push_back(Chain { head, pieces: self.pieces.len() - before, bytes });
            self.bytes += bytes;
            self.vring.ring.prefetch(ahead.wrapping_add(1));
        }
        Ok(())
    }

    /// Copies what is in the overflow buffer into further guest buffers. Returns whether there were enough.
    fn make_room(&mut self, frame: Frame) -> Result<bool, Violation> {
        if self.mergeable {
            self.gather(frame.len as u64)?;
        }
        let room = if self.mergeable { self.bytes } else { self.chains.front().map_or(0, |chain| chain.bytes) };
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
    fn postpone(&mut self, frame: Frame) -> Outcome {
        let full = self.chains.len() >= usize::from(self.vring.ring.size());
        let segments = self.pieces.len() - self.first >= MAX_SEGMENTS;
        if !self.mergeable || full || segments {
            return Outcome::Dropped(DropReason::TooLong);
        }
        self.waiting = Some(frame);
        Outcome::NoBuffers
    }

    /// Completes the chains the frame fills.
    #[inline]
    fn deliver(&mut self, frame: Frame) -> Result<(), Violation> {
        let chains = self.chains_of(frame.len as u64);
        if self.header_len == HEADER_WITH_NUM_BUFFERS {
            self.write_num_buffers(chains as u16);
        }
        if self.vring.tracer.active() {
            let pieces = self.pieces.iov().get(self.first..).unwrap_or_default();
            self.vring.tracer.frame(Direction::ToGuest, pieces, frame.len, None);
        }
        if self.vring.ring.dirty_log().is_some() {
            self.mark_dirty(frame.len);
        }
        let mut left = frame.len as u64;
        for chain in self.chains.drain(..chains) {
            let used = left.min(chain.bytes);
            left -= used;
            self.vring.ring.complete(chain.head, used as u32);
            self.first += chain.pieces;
            self.bytes -= chain.bytes;
        }
        self.vring.ring.advance(chains as u16);
        self.compact();
        Ok(())
    }

    #[inline]
    fn chains_of(&self, len: u64) -> usize {
        let mut left = len;
        for (index, chain) in self.chains.iter().enumerate() {
            if left <= chain.bytes {
                return index + 1;
            }
            left -= chain.bytes;
        }
        self.chains.len()
    }

    /// Writes the header's last field, which may lie in any of the first pieces.
    #[inline]
    fn write_num_buffers(&self, chains: u16) {
        let mut skip = NUM_BUFFERS;
        let mut bytes = chains.to_le_bytes().into_iter();
        for piece in self.pieces.iov().get(self.first..).unwrap_or_default() {
            while skip < piece.iov_len {
                let Some(byte) = bytes.next() else { return };
                // SAFETY: skip < iov_len, and the piece is guest memory the ring keeps mapped.
                unsafe { piece.iov_base.cast::<u8>().add(skip).write_volatile(byte) };
                skip += 1;
            }
            skip -= piece.iov_len;
        }
    }

    fn mark_dirty(&self, len: usize) {
        let Some(log) = self.vring.ring.dirty_log() else { return };
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
            self.pieces.clear();
            self.first = 0;
        } else if self.first >= COMPACT {
            self.pieces.drop_front(self.first);
            self.first = 0;
        }
    }

    /// Asks for kicks; returns whether buffers came at once instead.
    ///
    /// # Errors
    /// When the guest's index is illegal.
    pub fn arm(&mut self) -> Result<bool, Violation> {
        if self.vring.enable != Enable::On {
            return Ok(false);
        }
        let newly = !self.vring.kicks_enabled();
        let more = self.vring.arm(self.chains.len() as u16)?;
        if newly && !more {
            count(&self.vring.counters.starved);
        }
        Ok(more)
    }
}
