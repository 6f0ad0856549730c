// SPDX-License-Identifier: Apache-2.0
//! The ring's indices: what is available, what is done, when the other side has to be told.
//!
//! # What survives a device that is killed
//! The driver sees completions in batches. Between two publications the used elements past the used index, which the
//! driver does not read yet, are the journal: the last element of every frame carries a *mark*, its own index, in the
//! upper half of its id, where 0 is all a driver may ever see. A successor finds the greatest mark in its place and
//! knows that the frames up to there are done. Publication takes the marks away, those of the last frame under the
//! protection of a second note, the number of its chains in the unused bits of the used ring's flags:
//!
//! 1. clear the marks of all frames but the last;
//! 2. show the driver those frames, and note the chains of the last one, in one write;
//! 3. clear the mark of the last one;
//! 4. show it and take the note away, in one write.
//!
//! So a device can be stopped between any two of its instructions and no frame is lost or done twice by that, except
//! the one in hand between its mark and its system call. It costs two bytes written per frame, in a line that the
//! device has written just before. Drivers look at bit 0 of the flags only, which stays as it is; the note is there for
//! the time of a few instructions.

use std::sync::atomic::{Ordering, compiler_fence};

use super::cells::{Cells, Element};
use super::{Violation, event};

const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;
/// Tells a mark of index 0 from no mark.
const MARK: u16 = 0x8000;
/// The number of chains in the flags begins at this bit.
const NOTE_SHIFT: u32 = 1;
const MAX_NOTE: u16 = u16::MAX >> NOTE_SHIFT;

/// How the indices work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rules {
    /// Entries of the ring; a power of two up to 32768.
    pub size: u16,
    /// `VIRTIO_F_EVENT_IDX`
    pub event_idx: bool,
    /// `VIRTIO_F_IN_ORDER`
    pub in_order: bool,
}

/// The device's indices of one ring and the shared fields they belong to.
#[derive(Debug)]
pub struct Indices<C> {
    /// The shared fields.
    pub cells: C,
    rules: Rules,
    /// Next available entry to take.
    next_avail: u16,
    /// The guest's available index when it was last read.
    avail_idx: u16,
    /// Next used entry to write.
    next_used: u16,
    /// The used index the guest can see, and the flags beside it.
    published: u16,
    flags: u16,
    /// First entry of the last frame that was completed, and of the one after it.
    last_frame: u16,
    next_frame: u16,
    /// The guest has not been interrupted since the ring started, so its event index says nothing yet.
    fresh: bool,
    /// The available index at which the guest was last asked to kick, while that stands.
    armed: Option<u16>,
}

impl<C: Cells> Indices<C> {
    /// Takes up a ring at the available index `base`, unless none is given or its used index knows better. The used
    /// index is the one the guest sees; frames that a killed device had done by its journal are done, and are shown
    /// with the next publication.
    pub fn new(cells: C, rules: Rules, base: impl Into<Option<u16>>) -> Self {
        let (flags, used) = cells.used();
        let base = base.into().filter(|base| !goes_on_at_used(*base, used, rules)).unwrap_or(used);
        let mut indices = Self {
            cells,
            rules,
            next_avail: base,
            avail_idx: base,
            next_used: used,
            published: used,
            flags: flags & USED_NO_NOTIFY,
            last_frame: used,
            next_frame: used,
            fresh: true,
            armed: None,
        };
        indices.recover(flags >> NOTE_SHIFT);
        indices
    }

    /// Goes on with the same indices on other shared fields.
    pub fn relocate(&mut self, cells: C, size: u16) {
        (self.cells, self.rules.size, self.armed) = (cells, size, None);
    }

    /// Next available index to take.
    #[inline]
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Next used index to write.
    #[inline]
    pub fn next_used(&self) -> u16 {
        self.next_used
    }

    /// The used index the guest can see.
    #[inline]
    pub fn published(&self) -> u16 {
        self.published
    }

    /// Entries of the ring.
    #[inline]
    pub fn size(&self) -> u16 {
        self.rules.size
    }

    /// The slot of an index.
    #[inline]
    pub fn slot(&self, index: u16) -> u16 {
        index & (self.rules.size - 1)
    }

    /// Number of chains `ahead` of the next one that are known to be available, without a look at the guest's index.
    #[inline]
    pub fn known(&self, ahead: u16) -> u16 {
        self.avail_idx.wrapping_sub(self.next_avail).saturating_sub(ahead)
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

    /// As [`Indices::available`], but always reads the guest's index.
    ///
    /// # Errors
    /// As [`Indices::available`].
    #[inline]
    pub fn look(&mut self, ahead: u16) -> Result<u16, Violation> {
        let index = self.cells.avail_index();
        let jump = Violation::AvailJump { index, next: self.next_avail, size: self.rules.size };
        let count = event::available(index, self.next_avail, self.rules.size).ok_or(jump)?;
        // The guest may not take back what it made available.
        let count = count.checked_sub(ahead).ok_or(jump)?;
        self.avail_idx = index;
        Ok(count)
    }

    /// The head of the chain `ahead` of the next one. It must be available.
    #[inline]
    pub fn head(&self, ahead: u16) -> u16 {
        self.cells.head(self.slot(self.next_avail.wrapping_add(ahead)))
    }

    /// Takes `count` chains for good.
    #[inline]
    pub fn advance(&mut self, count: u16) {
        self.next_avail = self.next_avail.wrapping_add(count);
    }

    /// Completes a chain in the middle of a frame. The guest sees it after [`Indices::publish`].
    #[inline]
    pub fn complete(&mut self, head: u16, len: u32) {
        self.cells.set_element(self.slot(self.next_used), Element { id: head.into(), len });
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Completes the last chain of a frame: from here on the frame is done, whatever becomes of the device.
    #[inline]
    pub fn complete_frame(&mut self, head: u16, len: u32) {
        let id = u32::from(head) | u32::from(mark(self.next_used)) << 16;
        self.cells.set_element(self.slot(self.next_used), Element { id, len });
        self.next_used = self.next_used.wrapping_add(1);
        self.last_frame = self.next_frame;
        self.next_frame = self.next_used;
    }

    /// Takes back the frame completed last, which was one chain and is not published.
    #[inline]
    pub fn take_back(&mut self) {
        self.next_used = self.next_used.wrapping_sub(1);
        self.cells.clear_mark(self.slot(self.next_used));
        self.next_frame = self.next_used;
        self.last_frame = self.next_used.wrapping_sub(1);
    }

    /// Shows the guest what was completed and says whether it wants an interrupt.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let (old, new, last) = (self.published, self.next_used, self.last_frame);
        if old == new {
            return false;
        }
        self.clear_marks(old, last);
        self.cells.set_used(self.flags | new.wrapping_sub(last) << NOTE_SHIFT, last);
        // A successor relies on the order. The processor keeps it, for the thread that is killed.
        compiler_fence(Ordering::SeqCst);
        self.clear_marks(last, new);
        self.cells.set_used(self.flags, new);
        self.published = new;
        // The index must be visible before the guest's wish is read, or both sides may go to sleep.
        self.cells.fence();
        let wanted = self.wants_interrupt(old, new) || self.fresh;
        self.fresh &= !wanted;
        wanted
    }

    #[inline]
    fn clear_marks(&self, from: u16, to: u16) {
        let mut at = from;
        while at != to {
            self.cells.clear_mark(self.slot(at));
            at = at.wrapping_add(1);
        }
    }

    #[inline]
    fn wants_interrupt(&self, old: u16, new: u16) -> bool {
        if self.rules.event_idx {
            return event::passes(self.cells.used_event(), new, old);
        }
        self.cells.avail_flags() & AVAIL_NO_INTERRUPT == 0
    }

    /// Tells the guest not to kick; returns whether something was written. With `EVENT_IDX` nothing needs to be: the
    /// event index stays behind.
    pub fn disable_kicks(&mut self) -> bool {
        if !self.rules.event_idx {
            self.armed = None;
            self.flags = USED_NO_NOTIFY;
            self.cells.set_used_flags(self.flags);
        }
        !self.rules.event_idx
    }

    /// Asks the guest to kick when it makes more available, and looks once more.
    ///
    /// Returns whether something became available meanwhile, in which case there may be no kick for it.
    ///
    /// # Errors
    /// As [`Indices::available`].
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
        if self.rules.event_idx {
            self.cells.set_avail_event(self.avail_idx);
        } else {
            self.flags = 0;
            self.cells.set_used_flags(self.flags);
        }
        // The wish must be visible before the index is read again, or both sides may go to sleep.
        self.cells.fence();
    }

    /// Takes over what a killed device noted, and removes every mark that is not part of it.
    fn recover(&mut self, note: u16) {
        let done = self.done(note);
        for step in done..self.rules.size {
            let slot = self.slot(self.published.wrapping_add(step));
            if self.cells.element(slot).id >> 16 != 0 {
                self.cells.clear_mark(slot);
            }
        }
        if done == 0 {
            self.cells.set_used_flags(self.flags);
            return;
        }
        self.advance(done);
        self.avail_idx = self.next_avail;
        self.next_used = self.published.wrapping_add(done);
        self.next_frame = self.next_used;
        // Where the last frame begins is not known: all of them are shown as one.
        self.last_frame = self.next_used.wrapping_sub(done.min(MAX_NOTE));
    }

    /// Number of chains past the used index that a killed device had done.
    fn done(&self, note: u16) -> u16 {
        if self.next_avail != self.published {
            // The front end starts the ring somewhere else: what is there is not this ring's.
            return 0;
        }
        let index = self.cells.avail_index();
        let Some(count) = event::available(index, self.next_avail, self.rules.size) else { return 0 };
        let marked = (0..count).rev().find(|step| self.is_marked(*step)).map_or(0, |last| last + 1);
        let done = marked.max(note);
        // The device completes in order, so every element before has to be of the chain that is available there.
        let own = |step| {
            let slot = self.slot(self.published.wrapping_add(step));
            self.cells.element(slot).id as u16 == self.cells.head(slot)
        };
        if done <= count && (0..done).all(own) { done } else { 0 }
    }

    fn is_marked(&self, step: u16) -> bool {
        let index = self.published.wrapping_add(step);
        self.cells.element(self.slot(index)).id >> 16 == u32::from(mark(index))
    }
}

/// Whether a ring goes on at its used index instead of the base that the front end gave.
///
/// A base behind the used index would use buffers twice: DPDK's virtio_user says 0 when it finds its device again and
/// leaves it to the device to look. Under `IN_ORDER` (virtio 1.3, 2.7.9) the used index says everything: what lies
/// between it and a base ahead of it was taken by a device that is no more.
fn goes_on_at_used(base: u16, used: u16, rules: Rules) -> bool {
    let ahead = base.wrapping_sub(used);
    ahead > rules.size || (ahead > 0 && rules.in_order)
}

/// The mark of a used index: never 0, and different for all entries of a ring.
#[inline]
fn mark(index: u16) -> u16 {
    MARK | index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_goes_on_at_the_base_unless_the_used_index_knows_better() {
        for (base, used, in_order, expected) in [
            (5, 5, true, false),
            (0, 96, false, true),
            (0, 0xfff0, false, false),
            (0xfff0, 0, false, true),
            (100, 96, false, false),
            (100, 96, true, true),
            (352, 96, false, false),
            (353, 96, false, true),
        ] {
            let rules = Rules { size: 256, in_order, ..Rules::default() };
            assert_eq!(goes_on_at_used(base, used, rules), expected, "base {base}, used {used}");
        }
    }
}
