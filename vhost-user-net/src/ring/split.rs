// SPDX-License-Identifier: Apache-2.0
//! The ring itself: cached host pointers, private copies of the indices, one publication per batch.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use thiserror::Error;

use super::descriptor::{Access, DESCRIPTOR_LEN, Segments, Table, Walk};
use super::{MAX_SIZE, Violation, event};
use crate::dirty_log::DirtyLog;
use crate::memory::{GuestMemory, HostRange, Translator};

const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;
/// Offset of the ring of heads behind `flags` and `idx`.
const AVAIL_RING: usize = 4;
/// Offset of the ring of used elements behind `flags` and `idx`.
const USED_RING: usize = 4;
const USED_ELEMENT: usize = 8;
const CACHE_LINE: u64 = 64;

/// Where a ring lies, in addresses of the front end's process, and how many entries it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Entries; a power of two.
    pub size: u16,
    /// Descriptor table, aligned to 16.
    pub desc: u64,
    /// Available ring, aligned to 2.
    pub avail: u64,
    /// Used ring, aligned to 4.
    pub used: u64,
}

/// Why a ring cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RingError {
    /// The size is no power of two up to 32768.
    #[error("ring size {0} is not a power of two up to {MAX_SIZE}")]
    Size(u16),
    /// A part is not aligned as the specification demands.
    #[error("the {part} at {addr:#x} is not aligned to {align} bytes")]
    Alignment {
        /// Name of the part.
        part: &'static str,
        /// Its address.
        addr: u64,
        /// What it has to be aligned to.
        align: u64,
    },
    /// A part does not lie in one region of guest memory.
    #[error("the {part} at {addr:#x} of {len:#x} bytes is not in one memory region")]
    Outside {
        /// Name of the part.
        part: &'static str,
        /// Its address.
        addr: u64,
        /// Its bytes.
        len: u64,
    },
}

/// Features that change how a ring works.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// `VIRTIO_F_EVENT_IDX`
    pub event_idx: bool,
    /// `VIRTIO_F_INDIRECT_DESC`
    pub indirect: bool,
}

/// Marks what the device writes into the used ring.
#[derive(Debug, Clone)]
struct UsedLog {
    log: Arc<DirtyLog>,
    /// Guest address to log the used ring at, where the front end gave one.
    guest_addr: Option<u64>,
}

/// The three parts of a ring in host memory.
#[derive(Debug, Clone, Copy)]
struct Parts {
    table: Table,
    avail: NonNull<u8>,
    used: NonNull<u8>,
    used_guest: u64,
}

/// A split virtqueue, used by one thread.
#[derive(Debug)]
pub struct SplitRing {
    parts: Parts,
    size: u16,
    features: RingFeatures,
    /// Next available entry to take.
    next_avail: u16,
    /// The guest's available index when it was last read.
    avail_idx: u16,
    /// Next used entry to write.
    next_used: u16,
    /// The used index the guest can see.
    published: u16,
    /// The guest has not been interrupted since the ring started, so its event index says nothing yet.
    fresh: bool,
    /// The available index at which the guest was last asked to kick, while that stands.
    armed: Option<u16>,
    translator: Translator,
    log: Option<UsedLog>,
    /// Keeps `parts` mapped.
    memory: Arc<GuestMemory>,
}

// SAFETY: the pointers are into `memory`, a shared mapping that any thread may use; the ring is owned by one thread at
// a time.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// Takes up a ring at the available index `base`. The used index is the one in the guest's memory.
    ///
    /// # Errors
    /// When the size or an alignment is illegal or a part is not guest memory.
    pub fn new(memory: Arc<GuestMemory>, layout: Layout, base: u16, features: RingFeatures) -> Result<Self, RingError> {
        let parts = locate(&memory, layout, features)?;
        let mut ring = Self {
            parts,
            size: layout.size,
            features,
            next_avail: base,
            avail_idx: base,
            next_used: 0,
            published: 0,
            fresh: true,
            armed: None,
            translator: Translator::default(),
            log: None,
            memory,
        };
        ring.next_used = ring.used_cell(2).load(Ordering::Relaxed);
        ring.published = ring.next_used;
        Ok(ring)
    }

    /// Goes on with the same indices in another memory table or at other addresses.
    ///
    /// # Errors
    /// As [`SplitRing::new`]; the ring must not be used any more then.
    pub fn relocate(&mut self, memory: Arc<GuestMemory>, layout: Layout) -> Result<(), RingError> {
        self.parts = locate(&memory, layout, self.features)?;
        self.size = layout.size;
        self.armed = None;
        self.translator = Translator::default();
        self.memory = memory;
        Ok(())
    }

    /// Logs writes from now on, at this guest address of the used ring or else at its own.
    pub fn set_log(&mut self, log: Option<Arc<DirtyLog>>, guest_addr: Option<u64>) {
        self.log = log.map(|log| UsedLog { log, guest_addr });
    }

    /// The dirty log, for what is written into buffers.
    #[inline]
    pub fn dirty_log(&self) -> Option<&DirtyLog> {
        self.log.as_ref().map(|used| &*used.log)
    }

    /// The memory table the ring lives in.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Next available index to take: what `GET_VRING_BASE` answers.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Next used index to write.
    pub fn next_used(&self) -> u16 {
        self.next_used
    }

    /// Number of chains `ahead` of the next one that are available, reading the guest's index when none is known.
    ///
    /// # Errors
    /// [`Violation::AvailJump`] when the guest's index ran ahead of the ring.
    #[inline]
    pub fn available(&mut self, ahead: u16) -> Result<u16, Violation> {
        let taken = self.next_avail.wrapping_add(ahead);
        if self.avail_idx != taken {
            return Ok(self.avail_idx.wrapping_sub(taken));
        }
        self.look(ahead)
    }

    /// As [`SplitRing::available`], but always reads the guest's index.
    ///
    /// # Errors
    /// As [`SplitRing::available`].
    #[inline]
    pub fn look(&mut self, ahead: u16) -> Result<u16, Violation> {
        let index = self.avail_cell(2).load(Ordering::Acquire);
        let index = u16::from_le(index);
        let jump = Violation::AvailJump { index, next: self.next_avail, size: self.size };
        let count = event::available(index, self.next_avail, self.size).ok_or(jump)?;
        // The guest may not take back what it made available.
        let count = count.checked_sub(ahead).ok_or(jump)?;
        self.avail_idx = index;
        Ok(count)
    }

    /// The head of the chain `ahead` of the next one. It must be available.
    #[inline]
    pub fn head(&self, ahead: u16) -> u16 {
        let slot = self.next_avail.wrapping_add(ahead) & (self.size - 1);
        u16::from_le(self.avail_cell(AVAIL_RING + 2 * usize::from(slot)).load(Ordering::Relaxed))
    }

    /// Appends the pieces of the chain at `head` to `out` and returns their bytes.
    ///
    /// # Errors
    /// The violation that makes the chain unusable; `out` is as it was then.
    #[inline]
    pub fn chain(&mut self, head: u16, access: Access, out: &mut Segments) -> Result<u64, Violation> {
        let walk = Walk {
            memory: &self.memory,
            translator: &mut self.translator,
            table: self.parts.table,
            indirect: self.features.indirect,
            access,
            head,
        };
        // SAFETY: `locate` found the table in `memory`, which lives as long as the ring.
        unsafe { walk.run(out) }
    }

    /// Has the processor fetch the first bytes of the chain `ahead` of the next one, if it is known to be available:
    /// the kernel is about to copy them out of memory another processor wrote.
    #[inline]
    pub fn prefetch(&mut self, ahead: u16) {
        if self.avail_idx.wrapping_sub(self.next_avail) <= ahead {
            return;
        }
        let head = self.head(ahead);
        // SAFETY: `locate` found the table in `memory`, which lives as long as the ring.
        let Ok(descriptor) = (unsafe { self.parts.table.read(head.into()) }) else { return };
        if let Some(piece) = self.translator.translate(&self.memory, descriptor.addr, CACHE_LINE) {
            prefetch_line(piece.host.as_ptr());
            prefetch_line(piece.host.as_ptr().wrapping_add(CACHE_LINE as usize));
        }
    }

    /// Takes `count` chains for good.
    #[inline]
    pub fn advance(&mut self, count: u16) {
        self.next_avail = self.next_avail.wrapping_add(count);
    }

    /// Writes a used element. The guest sees it after [`SplitRing::publish`].
    #[inline]
    pub fn complete(&mut self, head: u16, len: u32) {
        let slot = usize::from(self.next_used & (self.size - 1));
        let element = u64::from(head) | u64::from(len) << 32;
        // SAFETY: the used ring has `size` elements from USED_RING on and slot < size; it is aligned to 4, which is
        // all an element has.
        unsafe {
            let at = self.parts.used.add(USED_RING + USED_ELEMENT * slot).cast::<[u32; 2]>();
            at.write_volatile([(element as u32).to_le(), ((element >> 32) as u32).to_le()]);
        }
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows the guest what was completed and says whether it wants an interrupt.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return false;
        }
        self.used_cell(2).store(new.to_le(), Ordering::Release);
        self.published = new;
        if self.log.is_some() {
            self.log_used(old, new);
        }
        // The index must be visible before the guest's wish is read, or both sides may go to sleep.
        fence(Ordering::SeqCst);
        let wanted = self.wants_interrupt(old, new) || self.fresh;
        self.fresh &= !wanted;
        wanted
    }

    #[inline]
    fn wants_interrupt(&self, old: u16, new: u16) -> bool {
        if self.features.event_idx {
            let at = AVAIL_RING + 2 * usize::from(self.size);
            return event::passes(u16::from_le(self.avail_cell(at).load(Ordering::Relaxed)), new, old);
        }
        u16::from_le(self.avail_cell(0).load(Ordering::Relaxed)) & AVAIL_NO_INTERRUPT == 0
    }

    /// Tells the guest not to kick. With `EVENT_IDX` nothing needs to be written: the event index stays behind.
    pub fn disable_kicks(&mut self) {
        if !self.features.event_idx {
            self.armed = None;
            self.used_cell(0).store(USED_NO_NOTIFY.to_le(), Ordering::Relaxed);
            self.log_write(0, 2);
        }
    }

    /// Asks the guest to kick when it makes more available, and looks once more.
    ///
    /// Returns whether something became available meanwhile, in which case there may be no kick for it.
    ///
    /// # Errors
    /// As [`SplitRing::available`].
    pub fn enable_kicks(&mut self, ahead: u16) -> Result<bool, Violation> {
        if self.armed != Some(self.avail_idx) {
            self.ask_for_kick();
        }
        let seen = self.avail_idx;
        self.look(ahead)?;
        Ok(self.avail_idx != seen)
    }

    fn ask_for_kick(&mut self) {
        self.armed = Some(self.avail_idx);
        let (at, value) = if self.features.event_idx {
            (USED_RING + USED_ELEMENT * usize::from(self.size), self.avail_idx)
        } else {
            (0, 0)
        };
        self.used_cell(at).store(value.to_le(), Ordering::Relaxed);
        self.log_write(at as u64, 2);
        // The wish must be visible before the index is read again, or both sides may go to sleep.
        fence(Ordering::SeqCst);
    }

    fn log_used(&self, old: u16, new: u16) {
        let mut at = old;
        while at != new {
            let slot = u64::from(at & (self.size - 1));
            self.log_write(USED_RING as u64 + USED_ELEMENT as u64 * slot, USED_ELEMENT as u64);
            at = at.wrapping_add(1);
        }
        self.log_write(2, 2);
    }

    fn log_write(&self, offset: u64, len: u64) {
        if let Some(UsedLog { log, guest_addr }) = &self.log {
            log.mark(guest_addr.unwrap_or(self.parts.used_guest).saturating_add(offset), len);
        }
    }

    /// A 16-bit field of the available ring. `offset` must be even and inside the part `locate` checked.
    #[inline]
    fn avail_cell(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: callers pass offsets of fields that `locate` found to be mapped; the part is aligned to 2, and
        // `memory` keeps it mapped as long as the ring lives.
        unsafe { AtomicU16::from_ptr(self.parts.avail.add(offset).as_ptr().cast()) }
    }

    /// A 16-bit field of the used ring. `offset` must be even and inside the part `locate` checked.
    #[inline]
    fn used_cell(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: as `avail_cell`.
        unsafe { AtomicU16::from_ptr(self.parts.used.add(offset).as_ptr().cast()) }
    }
}

/// A hint, without effect on any other processor than this one's kind.
#[inline]
fn prefetch_line(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address is allowed and never faults; every x86_64 processor has SSE.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

fn locate(memory: &GuestMemory, layout: Layout, features: RingFeatures) -> Result<Parts, RingError> {
    let Layout { size, desc, avail, used } = layout;
    if !size.is_power_of_two() || size > MAX_SIZE {
        return Err(RingError::Size(size));
    }
    let entries = u64::from(size);
    // The event index behind each ring is there only when it was negotiated.
    let event = if features.event_idx { 2 } else { 0 };
    let table = part(memory, "descriptor table", desc, DESCRIPTOR_LEN * entries, 16)?;
    let avail = part(memory, "available ring", avail, AVAIL_RING as u64 + 2 * entries + event, 2)?;
    let used = part(memory, "used ring", used, USED_RING as u64 + USED_ELEMENT as u64 * entries + event, 4)?;
    Ok(Parts {
        table: Table { start: table.host, len: size.into() },
        avail: avail.host,
        used: used.host,
        used_guest: used.guest_addr,
    })
}

fn part(memory: &GuestMemory, part: &'static str, addr: u64, len: u64, align: u64) -> Result<HostRange, RingError> {
    let range = memory.find_user(addr, len).ok_or(RingError::Outside { part, addr, len })?;
    // Both addresses: the rings are accessed through the host's.
    if !addr.is_multiple_of(align) || !range.host.as_ptr().addr().is_multiple_of(align as usize) {
        return Err(RingError::Alignment { part, addr, align });
    }
    Ok(range)
}
