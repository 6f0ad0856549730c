// SPDX-License-Identifier: Apache-2.0
//! The driver's side of a split ring (virtio 1.3, 2.7).
//!
//! Chains are used in turn, each with descriptors of its own. Used elements that come in another order are counted.

use core::sync::atomic::{AtomicU64, Ordering, fence};

use super::abi::{self, Place};
use super::memory::Memory;
use super::platform::Platform;

/// The chain goes on.
pub const NEXT: u16 = 1;
/// The device writes the buffer.
pub const WRITE: u16 = 2;

/// Where the parts of a ring lie.
#[derive(Debug, Clone, Copy)]
pub struct Parts {
    /// Entries.
    pub size: u16,
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
}

impl Parts {
    /// The parts of ring `index`.
    pub const fn of(index: usize, size: u16) -> Self {
        let descriptors = abi::RINGS + index as u64 * abi::RING_SPACE;
        let available = descriptors + 16 * size as u64;
        let used = (available + 6 + 2 * size as u64).next_multiple_of(4096);
        Self { size, descriptors, available, used }
    }

    /// Guest address of the used index.
    pub const fn used_index(&self) -> u64 {
        self.used + 2
    }
}

/// Guest address of the buffers of ring `index`.
pub const fn buffers(index: usize) -> u64 {
    abi::BUFFERS + index as u64 * abi::BUFFER_SPACE
}

/// Whether moving an index from `old` to `new` passes `event` (virtio 1.3, 2.7.7.1).
#[inline(always)]
pub const fn passes(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// A ring that a driver drives.
#[derive(Debug)]
pub struct DriverRing<'a> {
    memory: Memory,
    parts: Parts,
    index: u16,
    event_idx: bool,
    /// Chains in flight at most.
    chains: u16,
    /// Distance of the first descriptors of two chains, a power of two so that chains wrap with the indices.
    stride: u16,
    next_avail: u16,
    published: u16,
    last_used: u16,
    place: &'a Place,
    misordered: &'a AtomicU64,
}

impl<'a> DriverRing<'a> {
    /// Goes on where an earlier driver of this ring left it; nothing may be in flight if `pieces` changes.
    pub fn new(
        memory: Memory,
        control: &'a abi::Control,
        index: usize,
        size: u16,
        event_idx: bool,
        pieces: u16,
    ) -> Self {
        let (place, stride) = (&control.places[index], pieces.next_power_of_two());
        let next_avail = place.next_avail.load(Ordering::Relaxed) as u16;
        let last_used = place.last_used.load(Ordering::Relaxed) as u16;
        Self {
            memory,
            parts: Parts::of(index, size),
            index: index as u16,
            event_idx,
            chains: size / stride,
            stride,
            next_avail,
            published: next_avail,
            last_used,
            place,
            misordered: &control.counters.misordered,
        }
    }

    /// Guest address of this ring's buffers.
    pub fn buffers(&self) -> u64 {
        buffers(self.index.into())
    }

    /// Chains that can be in flight.
    pub fn chains(&self) -> u16 {
        self.chains
    }

    /// Chains in flight or offered.
    #[inline(always)]
    pub fn outstanding(&self) -> u16 {
        self.next_avail.wrapping_sub(self.last_used)
    }

    /// The chain the next offer uses, if one is free.
    #[inline(always)]
    pub fn free_chain(&self) -> Option<u16> {
        (self.outstanding() < self.chains).then(|| self.chain_of(self.next_avail))
    }

    #[inline(always)]
    fn chain_of(&self, index: u16) -> u16 {
        index & (self.chains - 1)
    }

    /// Writes descriptor `piece` of `chain`.
    pub fn describe(&self, chain: u16, piece: u16, address: u64, len: u32, flags: u16) {
        let number = chain * self.stride + piece;
        let at = self.parts.descriptors + 16 * u64::from(number);
        self.memory.write(at, address);
        self.memory.write(at + 8, u64::from(len) | u64::from(flags) << 32 | u64::from(number + 1) << 48);
    }

    /// Makes a chain available; the device sees it after `publish`.
    #[inline(always)]
    pub fn offer(&mut self, chain: u16) {
        let slot = u64::from(self.next_avail & (self.parts.size - 1));
        let at = self.parts.available + 4 + 2 * slot;
        self.memory.cell(at).store(chain * self.stride, Ordering::Relaxed);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Shows the device what was offered, and kicks it if it wants that. Returns the kicks: 0 or 1.
    #[inline(always)]
    pub fn publish(&mut self, platform: &mut impl Platform) -> u64 {
        let (old, new) = (self.published, self.next_avail);
        if old == new {
            return 0;
        }
        self.memory.cell(self.parts.available + 2).store(new, Ordering::Release);
        self.place.next_avail.store(new.into(), Ordering::Relaxed);
        self.published = new;
        // The index must be visible before the device's wish is read, or both sides may go to sleep.
        fence(Ordering::SeqCst);
        if !self.wants_kick(old, new) {
            return 0;
        }
        platform.kick(self.index);
        1
    }

    #[inline(always)]
    fn wants_kick(&self, old: u16, new: u16) -> bool {
        if !self.event_idx {
            return self.memory.cell(self.parts.used).load(Ordering::Relaxed) & 1 == 0;
        }
        let at = self.parts.used + 4 + 8 * u64::from(self.parts.size);
        let event = self.memory.cell(at).load(Ordering::Relaxed);
        passes(event, new, old)
    }

    /// Chains that were used and not taken back.
    #[inline(always)]
    pub fn completed(&self) -> u16 {
        self.memory.cell(self.parts.used_index()).load(Ordering::Acquire).wrapping_sub(self.last_used)
    }

    /// Takes the next used chain back: its number and the bytes written to it. There must be one.
    #[inline(always)]
    pub fn take(&mut self) -> (u16, u32) {
        let at = self.parts.used + 4 + 8 * u64::from(self.last_used & (self.parts.size - 1));
        let element: u64 = self.memory.read(at);
        let expected = self.chain_of(self.last_used);
        if element as u32 != u32::from(expected * self.stride) {
            self.misordered.fetch_add(1, Ordering::Relaxed);
        }
        self.skip(1);
        (expected, (element >> 32) as u32)
    }

    /// Takes `count` used chains back without a look at them.
    #[inline(always)]
    pub fn skip(&mut self, count: u16) {
        self.last_used = self.last_used.wrapping_add(count);
        self.place.last_used.store(self.last_used.into(), Ordering::Relaxed);
    }

    /// Asks for an interrupt once `ahead` more chains are used. They may be already: look again.
    pub fn ask_for_interrupt(&self, ahead: u16) {
        if self.event_idx {
            self.set_event(self.last_used.wrapping_add(ahead).wrapping_sub(1));
        } else {
            self.memory.cell(self.parts.available).store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    /// Asks for no interrupts.
    #[inline(always)]
    pub fn refuse_interrupts(&self) {
        if self.event_idx {
            // Half the index space away.
            self.set_event(self.last_used.wrapping_sub(0x8000));
        } else {
            self.memory.cell(self.parts.available).store(1, Ordering::Relaxed);
        }
    }

    #[inline(always)]
    fn set_event(&self, event: u16) {
        self.memory.cell(self.parts.available + 4 + 2 * u64::from(self.parts.size)).store(event, Ordering::Relaxed);
    }
}
