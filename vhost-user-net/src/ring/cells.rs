// SPDX-License-Identifier: Apache-2.0
//! The fields of a ring that both sides touch, behind a trait.
//!
//! In service they lie in guest memory ([`GuestCells`]). The model checker and the tests that stop a device half-way
//! bring their own; the engine above is the same code ([`super::indices`]).

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

/// Offset of the ring of heads, or of used elements, behind `flags` and `idx`.
pub(super) const ENTRIES: usize = 4;
pub(super) const USED_ELEMENT: usize = 8;
const INDEX: usize = 2;

/// An entry of the used ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element {
    /// Head of the chain in the lower half; the upper half is 0 in whatever the driver can see.
    pub id: u32,
    /// Bytes written into the chain.
    pub len: u32,
}

/// The shared fields of a split ring (virtio 1.3, 2.7). Slots are below the ring's size.
pub trait Cells {
    /// The driver's flags.
    fn avail_flags(&self) -> u16;
    /// The driver's index. What the driver wrote before it is visible afterwards (acquire).
    fn avail_index(&self) -> u16;
    /// The head in a slot of the available ring.
    fn head(&self, slot: u16) -> u16;
    /// The used index at which the driver wants an interrupt (`EVENT_IDX`).
    fn used_event(&self) -> u16;
    /// The device's flags and index.
    fn used(&self) -> (u16, u16);
    /// Writes the device's flags and index at once; everything written before is visible to who sees them (release).
    fn set_used(&self, flags: u16, index: u16);
    /// Writes the device's flags.
    fn set_used_flags(&self, flags: u16);
    /// Writes the available index at which the device wants a kick (`EVENT_IDX`).
    fn set_avail_event(&self, index: u16);
    /// Reads an element of the used ring.
    fn element(&self, slot: u16) -> Element;
    /// Writes an element of the used ring, its length before its id.
    fn set_element(&self, slot: u16, element: Element);
    /// Writes 0 to the upper half of an element's id.
    fn clear_mark(&self, slot: u16);
    /// Orders what was written before against what is read afterwards (sequentially consistent).
    fn fence(&self);
}

/// The fields in guest memory.
#[derive(Debug, Clone, Copy)]
pub struct GuestCells {
    avail: NonNull<u8>,
    used: NonNull<u8>,
    size: u16,
}

impl GuestCells {
    /// The two rings of `size` entries at these addresses.
    ///
    /// # Safety
    /// Both must be mapped with all their entries, and with the event index behind them where `EVENT_IDX` is used, for
    /// as long as the value or a copy of it is used; `avail` must be aligned to 2 and `used` to 4.
    pub(super) unsafe fn new(avail: NonNull<u8>, used: NonNull<u8>, size: u16) -> Self {
        Self { avail, used, size }
    }

    #[inline]
    fn avail_at(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: `new`'s caller vouches for the part; offsets are even and of fields inside it.
        unsafe { AtomicU16::from_ptr(self.avail.add(offset).as_ptr().cast()) }
    }

    #[inline]
    fn used_at(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: as `avail_at`.
        unsafe { AtomicU16::from_ptr(self.used.add(offset).as_ptr().cast()) }
    }

    /// Flags and index in one.
    #[inline]
    fn used_head(&self) -> &AtomicU32 {
        // SAFETY: as `avail_at`; the used ring is aligned to 4.
        unsafe { AtomicU32::from_ptr(self.used.as_ptr().cast()) }
    }

    #[inline]
    fn at(&self, slot: u16) -> NonNull<u32> {
        // SAFETY: the slot is one of `size`, all of which are mapped; the used ring is aligned to 4.
        unsafe { self.used.add(ENTRIES + USED_ELEMENT * usize::from(slot)).cast() }
    }
}

impl Cells for GuestCells {
    #[inline]
    fn avail_flags(&self) -> u16 {
        u16::from_le(self.avail_at(0).load(Ordering::Relaxed))
    }

    #[inline]
    fn avail_index(&self) -> u16 {
        u16::from_le(self.avail_at(INDEX).load(Ordering::Acquire))
    }

    #[inline]
    fn head(&self, slot: u16) -> u16 {
        u16::from_le(self.avail_at(ENTRIES + 2 * usize::from(slot)).load(Ordering::Relaxed))
    }

    #[inline]
    fn used_event(&self) -> u16 {
        u16::from_le(self.avail_at(ENTRIES + 2 * usize::from(self.size)).load(Ordering::Relaxed))
    }

    #[inline]
    fn used(&self) -> (u16, u16) {
        let both = u32::from_le(self.used_head().load(Ordering::Relaxed));
        (both as u16, (both >> 16) as u16)
    }

    #[inline]
    fn set_used(&self, flags: u16, index: u16) {
        let both = u32::from(flags) | u32::from(index) << 16;
        self.used_head().store(both.to_le(), Ordering::Release);
    }

    #[inline]
    fn set_used_flags(&self, flags: u16) {
        self.used_at(0).store(flags.to_le(), Ordering::Relaxed);
    }

    #[inline]
    fn set_avail_event(&self, index: u16) {
        self.used_at(ENTRIES + USED_ELEMENT * usize::from(self.size)).store(index.to_le(), Ordering::Relaxed);
    }

    #[inline]
    fn element(&self, slot: u16) -> Element {
        let at = self.at(slot);
        // SAFETY: `at` is a mapped element, which has two words.
        let (id, len) = unsafe { (at.read_volatile(), at.add(1).read_volatile()) };
        Element { id: u32::from_le(id), len: u32::from_le(len) }
    }

    #[inline]
    fn set_element(&self, slot: u16, element: Element) {
        let at = self.at(slot);
        // SAFETY: as `element`. Volatile writes stay in this order.
        unsafe {
            at.add(1).write_volatile(element.len.to_le());
            at.write_volatile(element.id.to_le());
        }
    }

    #[inline]
    fn clear_mark(&self, slot: u16) {
        // SAFETY: as `element`; the upper half of a little-endian word lies behind the lower one.
        unsafe { self.at(slot).cast::<u16>().add(1).write_volatile(0) };
    }

    #[inline]
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}
