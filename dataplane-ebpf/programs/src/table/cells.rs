// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! The memory of a table, as the operations on its words see it: `weft_logic::set::Lines` on maps.

use core::arch::asm;

use weft_abi::{Flow, Line as _};
use weft_logic::{
    hash::FlowKey as _,
    set::{Control, Lines, Read, Word},
};

use super::{BUSY, Copied, ENTRY, FlowTable};
use crate::{helpers, maps};

/// A word of a map value.
pub(super) struct Shared(pub(super) *mut u64);

impl Word for Shared {
    #[inline(always)]
    fn load(&self) -> u64 {
        // SAFETY: an aligned word of a map value, which lives as long as the program runs.
        unsafe { self.0.read_volatile() }
    }

    #[inline(always)]
    fn exchange(&self, new: u64) -> u64 {
        helpers::exchange(self.0, new)
    }

    #[inline(always)]
    fn fetch_or(&self, bits: u64) -> u64 {
        helpers::fetch_or(self.0, bits)
    }

    #[inline(always)]
    fn compare_exchange(&self, old: u64, new: u64) -> bool {
        helpers::compare_exchange(self.0, old, new)
    }
}

/// The table of a family, for an operation on `key`.
pub(super) struct Cells<'k, F: FlowTable> {
    pub(super) key: &'k F::Key,
    /// What is written; of an operation that only reads, as `into`.
    pub(super) from: *const Flow,
    /// What is read, in the buffer of this number.
    pub(super) into: *mut Flow,
    pub(super) buffer: u32,
}

impl<'k, F: FlowTable> Cells<'k, F> {
    #[inline(always)]
    pub(super) const fn read(key: &'k F::Key, buffer: &mut Copied, number: u32) -> Self {
        let into = &raw mut buffer.flow;
        Self { key, from: into, into, buffer: number }
    }

    #[inline(always)]
    fn copy(&mut self, line: *mut F::Line) {
        // SAFETY: a map value, and a buffer of this CPU. A copy that is torn is found out by the control word and not used.
        unsafe { (*line).read(&mut *self.into) };
        barrier();
    }
}

impl<F: FlowTable> Lines for Cells<'_, F> {
    type Word = Shared;

    #[inline(always)]
    fn directory(&mut self, set: u32) -> Option<Shared> {
        F::directory(set).map(Shared)
    }

    #[inline(always)]
    fn control(&mut self, line: u32) -> Option<Shared> {
        // The control word is the first of a line.
        F::line(line).map(|line| Shared(line.cast()))
    }

    #[inline(always)]
    fn has_key(&mut self, line: u32) -> bool {
        // SAFETY: as in `copy`.
        F::line(line).is_some_and(|line| unsafe { (*line).key() }.is_same(self.key))
    }

    #[inline(always)]
    fn read(&mut self, line: u32) {
        if let Some(line) = F::line(line) {
            self.copy(line);
        }
    }

    #[inline(always)]
    fn write(&mut self, line: u32) {
        if let Some(line) = F::line(line) {
            // SAFETY: a map value that the lock of its set is held for, and an entry in a map value.
            unsafe { (*line).write(self.key, &*self.from) };
        }
        barrier();
    }

    #[inline(always)]
    fn fence(&self) {
        barrier();
        helpers::order_reads();
    }

    #[inline(always)]
    fn read_line(&mut self, line: u32, _: u8) -> Read {
        match (F::read_into(self.key, line, self.buffer), maps::buffer(self.buffer)) {
            (ENTRY, Some(found)) => Read::Entry(found.control),
            (BUSY, _) => Read::Busy,
            _ => Read::Other,
        }
    }

    #[inline(always)]
    fn random(&mut self) -> u16 {
        helpers::random() as u16
    }

    #[inline(always)]
    fn spilled(&mut self) -> Option<Control> {
        let line = F::spilled(self.key)?;
        self.copy(line);
        // SAFETY: as in `copy`.
        Some(Control(unsafe { (*line).control() }))
    }

    #[inline(always)]
    fn spill(&mut self, control: Control) -> bool {
        let Some(line) = F::scratch() else { return false };
        // SAFETY: map values, the line this CPU's own; its first word is the control.
        unsafe {
            (*line).write(self.key, &*self.from);
            line.cast::<u64>().write(control.0);
            F::spill(self.key, &*line)
        }
    }

    #[inline(always)]
    fn remove_spilled(&mut self) -> bool {
        F::unspill(self.key)
    }
}

/// Keeps the compiler from moving memory accesses across it.
#[inline(always)]
fn barrier() {
    // SAFETY: no instruction at all.
    unsafe { asm!("", options(nostack, preserves_flags)) };
}
