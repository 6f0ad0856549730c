// SPDX-License-Identifier: Apache-2.0
//! The ring itself: cached host pointers, private copies of the indices, one publication per batch.

use std::sync::Arc;

use thiserror::Error;

use super::cells::{ENTRIES, GuestCells, USED_ELEMENT};
use super::descriptor::{Access, DESCRIPTOR_LEN, Descriptor, Segments, Table, Walk};
use super::indices::{Indices, Rules};
use super::{MAX_SIZE, Violation};
use crate::dirty_log::DirtyLog;
use crate::memory::{GuestMemory, HostRange, Translator};

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
    /// `VIRTIO_F_IN_ORDER`
    pub in_order: bool,
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
    cells: GuestCells,
    used_guest: u64,
}

/// A split virtqueue, used by one thread.
#[derive(Debug)]
pub struct SplitRing {
    indices: Indices<GuestCells>,
    table: Table,
    used_guest: u64,
    features: RingFeatures,
    translator: Translator,
    log: Option<UsedLog>,
    /// Keeps the parts mapped.
    memory: Arc<GuestMemory>,
}

// SAFETY: the pointers are into `memory`, a shared mapping that any thread may use; the ring is owned by one thread at
// a time.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// Takes up a ring at the available index `base`, as [`Indices::new`] does.
    ///
    /// # Errors
    /// When the size or an alignment is illegal or a part is not guest memory.
    pub fn new(
        memory: Arc<GuestMemory>,
        layout: Layout,
        base: impl Into<Option<u16>>,
        features: RingFeatures,
    ) -> Result<Self, RingError> {
        let Parts { table, cells, used_guest } = locate(&memory, layout, features)?;
        let RingFeatures { event_idx, in_order, .. } = features;
        let indices = Indices::new(cells, Rules { size: layout.size, event_idx, in_order }, base);
        Ok(Self { indices, table, used_guest, features, translator: Translator::default(), log: None, memory })
    }

    /// Goes on with the same indices in another memory table or at other addresses.
    ///
    /// # Errors
    /// As [`SplitRing::new`]; the ring must not be used any more then.
    pub fn relocate(&mut self, memory: Arc<GuestMemory>, layout: Layout) -> Result<(), RingError> {
        let parts = locate(&memory, layout, self.features)?;
        self.indices.relocate(parts.cells, layout.size);
        (self.table, self.used_guest) = (parts.table, parts.used_guest);
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
    #[inline]
    pub fn size(&self) -> u16 {
        self.indices.size()
    }

    /// Next available index to take: what `GET_VRING_BASE` answers.
    pub fn next_avail(&self) -> u16 {
        self.indices.next_avail()
    }

    /// Next used index to write.
    pub fn next_used(&self) -> u16 {
        self.indices.next_used()
    }

    /// Chains that are completed and not shown to the guest yet.
    #[inline]
    pub fn unpublished(&self) -> u16 {
        self.indices.next_used().wrapping_sub(self.indices.published())
    }

    /// As [`Indices::available`].
    ///
    /// # Errors
    /// [`Violation::AvailJump`] when the guest's index ran ahead of the ring.
    #[inline]
    pub fn available(&mut self, ahead: u16) -> Result<u16, Violation> {
        self.indices.available(ahead)
    }

    /// As [`Indices::look`].
    ///
    /// # Errors
    /// As [`SplitRing::available`].
    #[inline]
    pub fn look(&mut self, ahead: u16) -> Result<u16, Violation> {
        self.indices.look(ahead)
    }

    /// As [`Indices::head`].
    #[inline]
    pub fn head(&self, ahead: u16) -> u16 {
        self.indices.head(ahead)
    }

    /// Appends the pieces of the chain at `head` to `out` and returns their bytes.
    ///
    /// # Errors
    /// The violation that makes the chain unusable; `out` is as it was then.
    #[inline]
    pub fn chain(&mut self, head: u16, access: Access, out: &mut Segments) -> Result<u64, Violation> {
        // SAFETY: `locate` found the table in `memory`, which lives as long as the ring.
        let first = unsafe { self.table.read(head.into())? };
        let len = u64::from(first.len);
        if first.is_alone(access)
            && let Some(piece) = self.translator.translate(&self.memory, first.addr, len)
            && piece.len == len
        {
            out.push(piece.host, len, first.addr);
            return Ok(len);
        }
        self.walk(head, first, access, out)
    }

    /// The chains of several descriptors, and those that are none.
    #[inline(never)]
    fn walk(&mut self, head: u16, first: Descriptor, access: Access, out: &mut Segments) -> Result<u64, Violation> {
        let walk = Walk {
            memory: &self.memory,
            translator: &mut self.translator,
            table: self.table,
            indirect: self.features.indirect,
            access,
            head,
        };
        // SAFETY: `locate` found the table in `memory`, which lives as long as the ring.
        unsafe { walk.run(first, out) }
    }

    /// Has the processor fetch the first bytes of the chain `ahead` of the next one, if it is known to be available:
    /// the kernel is about to copy them out of memory another processor wrote.
    #[inline]
    pub fn prefetch(&mut self, ahead: u16) {
        if self.indices.known(ahead) == 0 {
            return;
        }
        let head = self.head(ahead);
        // SAFETY: `locate` found the table in `memory`, which lives as long as the ring.
        let Ok(descriptor) = (unsafe { self.table.read(head.into()) }) else { return };
        if let Some(piece) = self.translator.translate(&self.memory, descriptor.addr, CACHE_LINE) {
            prefetch_line(piece.host.as_ptr());
            prefetch_line(piece.host.as_ptr().wrapping_add(CACHE_LINE as usize));
        }
    }

    /// As [`Indices::advance`].
    #[inline]
    pub fn advance(&mut self, count: u16) {
        self.indices.advance(count);
    }

    /// As [`Indices::complete`].
    #[inline]
    pub fn complete(&mut self, head: u16, len: u32) {
        self.indices.complete(head, len);
    }

    /// As [`Indices::complete_frame`].
    #[inline]
    pub fn complete_frame(&mut self, head: u16, len: u32) {
        self.indices.complete_frame(head, len);
    }

    /// As [`Indices::take_back`].
    #[inline]
    pub fn take_back(&mut self) {
        self.indices.take_back();
    }

    /// Shows the guest what was completed and says whether it wants an interrupt.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let old = self.indices.published();
        let wanted = self.indices.publish();
        if self.log.is_some() {
            self.log_used(old, self.indices.published());
        }
        wanted
    }

    /// As [`Indices::disable_kicks`].
    pub fn disable_kicks(&mut self) {
        if self.indices.disable_kicks() {
            self.log_write(0, 2);
        }
    }

    /// As [`Indices::enable_kicks`].
    ///
    /// # Errors
    /// As [`SplitRing::available`].
    pub fn enable_kicks(&mut self, ahead: u16) -> Result<bool, Violation> {
        let more = self.indices.enable_kicks(ahead);
        let event = ENTRIES + USED_ELEMENT * usize::from(self.size());
        self.log_write(if self.features.event_idx { event as u64 } else { 0 }, 2);
        more
    }

    fn log_used(&self, old: u16, new: u16) {
        let mut at = old;
        while at != new {
            let slot = usize::from(self.indices.slot(at));
            self.log_write((ENTRIES + USED_ELEMENT * slot) as u64, USED_ELEMENT as u64);
            at = at.wrapping_add(1);
        }
        if old != new {
            self.log_write(0, ENTRIES as u64);
        }
    }

    fn log_write(&self, offset: u64, len: u64) {
        if let Some(UsedLog { log, guest_addr }) = &self.log {
            log.mark(guest_addr.unwrap_or(self.used_guest).saturating_add(offset), len);
        }
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
    let avail = part(memory, "available ring", avail, ENTRIES as u64 + 2 * entries + event, 2)?;
    let used = part(memory, "used ring", used, ENTRIES as u64 + USED_ELEMENT as u64 * entries + event, 4)?;
    let table = Table { start: table.host, len: size.into() };
    // SAFETY: both parts are in `memory`, with the event index where it is used, and aligned; the ring keeps `memory`
    // as long as the cells.
    let cells = unsafe { GuestCells::new(avail.host, used.host, size) };
    Ok(Parts { table, cells, used_guest: used.guest_addr })
}

fn part(memory: &GuestMemory, part: &'static str, addr: u64, len: u64, align: u64) -> Result<HostRange, RingError> {
    let range = memory.find_user(addr, len).ok_or(RingError::Outside { part, addr, len })?;
    // Both addresses: the rings are accessed through the host's.
    if !addr.is_multiple_of(align) || !range.host.as_ptr().addr().is_multiple_of(align as usize) {
        return Err(RingError::Alignment { part, addr, align });
    }
    Ok(range)
}
