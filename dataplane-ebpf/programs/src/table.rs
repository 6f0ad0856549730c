// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! The flow table, as everything else sees it: `weft_logic::set` on maps.
//!
//! What is found is copied: an entry may be another connection's a moment later.

mod cells;
mod clear;
mod families;

use weft_abi::{DropReason, Flow, FlowKey6, FlowSeeds, Line};
use weft_logic::{
    hash::FlowKey,
    set::{self, Control, Found, Mode, Read, Word as _, Written},
    walk::Refused,
};

use self::cells::{Cells, Shared};
use crate::maps;

/// Where what is read of the table is copied to, on this CPU: the entry that was there before is lost.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Buffer {
    /// The entry that a packet goes by.
    Packet = 0,
    /// An entry that is looked at.
    One = 1,
    /// That of the other direction.
    Other = 2,
    /// One that may make room, and what a writer finds.
    Leaving = 3,
    /// That of the other direction.
    LeavingToo = 4,
}

/// How many buffers there are.
pub const BUFFERS: usize = 5;

/// A copy of an entry.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Copied {
    /// The entry.
    pub flow: Flow,
    /// The control word that it was read with.
    pub control: Control,
    /// Its line, or [`SPILLED`].
    pub line: u32,
    /// Reserved.
    pub pad: u32,
}

/// In the place of a line: the entry is in the hash.
const SPILLED: u32 = u32::MAX;

/// The connections of one family, an entry for each direction.
pub trait FlowTable: Sized {
    /// How the table names packets.
    type Key: FlowKey;
    /// An entry in memory.
    type Line: Line<Key = Self::Key>;

    /// A line.
    fn line(index: u32) -> Option<*mut Self::Line>;
    /// What keys are hashed with.
    fn seeds() -> Option<&'static FlowSeeds>;
    /// The directory of a set.
    fn directory(set: u32) -> Option<*mut u64>;
    /// The line in the hash.
    fn spilled(key: &Self::Key) -> Option<*mut Self::Line>;
    /// Writes a line to the hash; `false`: it is full.
    fn spill(key: &Self::Key, line: &Self::Line) -> bool;
    /// Removes a line from the hash, if it is there.
    fn unspill(key: &Self::Key) -> bool;
    /// Buffer for a line that goes to the hash.
    fn scratch() -> Option<*mut Self::Line>;

    /// Copies the entry of a line into a buffer, if it is the key's: [`ENTRY`], [`OTHER`] or [`BUSY`].
    fn read_into(key: &Self::Key, line: u32, buffer: u32) -> u32;
    /// Copies the entry of a packet that is not in its home way: [`ENTRY`], [`OTHER`] or [`BUSY`].
    fn find_far(key: &Self::Key) -> u32;
    /// [`FlowTable::touch`] of an entry in the hash.
    fn touch_far(key: &Self::Key, len: u32, now: u32) -> u32;
    /// [`FlowTable::find_far`] of a key in common form, wherever it is, for the packet in the walk.
    fn find_common(key: &FlowKey6, buffer: u32) -> u32;
    /// Writes an entry, as [`ADD`], [`PUT`] or [`over`] say: a [`Written`].
    fn write(key: &FlowKey6, flow: &Flow, mode: u32) -> u32;
    /// Removes an entry, [`WHICHEVER`] it is or only the one that [`over`] says: a [`Written`].
    fn remove_common(key: &FlowKey6, over: u32) -> u32;
    /// Removes a connection of the key's set that may make room; whether there was one.
    fn clear(key: &FlowKey6) -> bool;

    /// Copies the entry of a packet, on the established path. An error: it is not known whether there is one.
    #[inline(always)]
    fn established(key: &Self::Key) -> Result<Option<&'static mut Copied>, DropReason> {
        const PACKET: u32 = Buffer::Packet as u32;
        let (Some(found), Some(seeds)) = (maps::buffer(PACKET), Self::seeds()) else { return Err(DropReason::Kernel) };
        let slot = key.slot(seeds);
        let line = slot.line(slot.home);
        let mut cells = Cells::<Self>::read(key, found, PACKET);
        if let Read::Entry(control) = set::read_once(&mut cells, line, key.protocol()) {
            found.take(line, control);
            return Ok(Some(found));
        }
        match Self::find_far(key) {
            ENTRY => Ok(maps::buffer(PACKET)),
            OTHER => Ok(None),
            _ => Err(DropReason::FlowBusy),
        }
    }

    /// Counts a packet of an entry that was found, and writes down its epoch and state, if they are others now.
    #[inline(always)]
    fn touch(key: &Self::Key, found: &Copied, len: u32, now: u32) {
        if found.line == SPILLED {
            Self::touch_far(key, len, now);
        } else if let Some(line) = Self::line(found.line) {
            touch_line(line, found, len, now);
        }
    }

    /// The entry of a key in common form.
    #[inline(always)]
    fn find(key: &FlowKey6, buffer: Buffer) -> Option<&'static Flow> {
        Self::look_up(key, buffer).map(|found| &found.flow)
    }

    /// [`FlowTable::find`], to replace it by [`FlowTable::put_over`].
    #[inline(always)]
    fn look_up(key: &FlowKey6, buffer: Buffer) -> Option<&'static mut Copied> {
        if Self::find_common(key, buffer as u32) == ENTRY { maps::buffer(buffer as u32) } else { None }
    }

    /// Makes an entry; `false`: there is one, or no room.
    #[inline(always)]
    fn add(key: &FlowKey6, flow: &Flow) -> bool {
        write_or_clear::<Self>(key, flow, ADD)
    }

    /// Makes or replaces an entry; `false`: there is no room.
    #[inline(always)]
    fn put(key: &FlowKey6, flow: &Flow) -> bool {
        write_or_clear::<Self>(key, flow, PUT)
    }

    /// Replaces the entry that was found; `false`: it is another one by now.
    #[inline(always)]
    fn put_over(key: &FlowKey6, flow: &Flow, before: Control) -> bool {
        Self::write(key, flow, over(before)) == Written::Done as u32
    }

    /// Removes an entry, if it is there.
    #[inline(always)]
    fn remove(key: &FlowKey6) {
        let _was_there = Self::remove_common(key, WHICHEVER);
    }
}

/// [`Mode`] as a number.
pub const ADD: u32 = 1 << 16;
pub const PUT: u32 = 2 << 16;
/// With a sequence.
const OVER: u32 = 3 << 16;
/// In the place of [`over`], where entries are removed.
pub const WHICHEVER: u32 = 0;

/// The entry that was found, and no other.
#[inline(always)]
pub const fn over(before: Control) -> u32 {
    OVER | before.sequence() as u32
}

#[inline(always)]
const fn mode_of(mode: u32) -> Mode {
    match mode & !0xffff {
        ADD => Mode::Add,
        PUT => Mode::Put,
        _ => Mode::Over(mode as u16),
    }
}

impl Copied {
    /// Completes the copy.
    #[inline(always)]
    fn take(&mut self, line: u32, control: Control) {
        (self.line, self.control) = (line, control);
        (self.flow.way.epoch, self.flow.connection.state) = (control.epoch(), control.state());
    }
}

/// Writes an entry; where its set is full and so is the hash, in the place of a connection that may leave.
#[inline(always)]
fn write_or_clear<F: FlowTable>(key: &FlowKey6, flow: &Flow, mode: u32) -> bool {
    let mut written = F::write(key, flow, mode);
    if written == Written::Full as u32 {
        if F::clear(key) {
            written = F::write(key, flow, mode);
        }
        if written == Written::Full as u32 {
            refuse(Refused::Full);
        }
    }
    written == Written::Done as u32
}

/// From here on nothing is done in the table for the packet in the walk.
#[inline(always)]
fn refuse(reason: Refused) {
    if let Some(walk) = maps::walk() {
        walk.refused = reason as u8;
    }
}

#[inline(always)]
fn is_refused() -> bool {
    maps::walk().is_none_or(|walk| walk.refused != Refused::Nothing as u8)
}

/// A packet asks the table: nothing is refused to it yet.
#[inline(always)]
pub fn begin() {
    refuse(Refused::Nothing);
}

/// The reason to drop the packet in the walk that the table has refused something to.
#[inline(always)]
pub fn refusal() -> Option<DropReason> {
    match maps::walk()?.refused {
        refused if refused == Refused::Busy as u8 => Some(DropReason::FlowBusy),
        refused if refused == Refused::Full as u8 => Some(DropReason::FlowTable),
        _ => None,
    }
}

/// Counts a packet in a line, and writes down the epoch and the state of what was found there, where that is still there.
#[inline(always)]
fn touch_line<L: Line>(line: *mut L, found: &Copied, len: u32, now: u32) {
    // SAFETY: a map value, which lives as long as the program runs. Where it is another connection's by now, one packet is counted for
    // that one.
    unsafe { (*line).count(len, now) };
    let wanted = found.control.with(found.flow.way.epoch, found.flow.connection.state);
    let word = Shared(line.cast());
    let (mut before, mut attempts) = (found.control, 0);
    while before != wanted && attempts < 4 {
        if word.compare_exchange(before.0, wanted.with_later_state(before).0) {
            return;
        }
        before = Control(word.load());
        if before.sequence() != found.control.sequence() || before.protocol() != found.control.protocol() {
            return;
        }
        attempts += 1;
    }
}

/// What [`FlowTable::read_into`] answers.
const ENTRY: u32 = 0;
const OTHER: u32 = 1;
const BUSY: u32 = 2;

#[inline(always)]
fn read_into<F: FlowTable>(key: &F::Key, line: u32, buffer: u32) -> Option<u32> {
    let found = maps::buffer(buffer)?;
    Some(match set::read(&mut Cells::<F>::read(key, found, buffer), line, key.protocol()) {
        Read::Entry(control) => {
            found.take(line, control);
            ENTRY
        }
        Read::Other => OTHER,
        Read::Busy => BUSY,
    })
}

#[inline(always)]
fn find_in<F: FlowTable>(key: &F::Key, buffer: u32) -> Option<u32> {
    let found = maps::buffer(buffer)?;
    let slot = key.slot(F::seeds()?);
    Some(match set::find(&mut Cells::<F>::read(key, found, buffer), slot, key.protocol()) {
        Found::Line(line, control) => {
            found.take(line, control);
            ENTRY
        }
        Found::Spilled(control) => {
            found.take(SPILLED, control);
            ENTRY
        }
        Found::Nothing => OTHER,
        Found::Busy => BUSY,
    })
}

/// [`find_in`], for the packet in the walk.
#[inline(always)]
fn find_for_walk<F: FlowTable>(key: &F::Key, buffer: u32) -> u32 {
    if is_refused() {
        return BUSY;
    }
    let found = find_in::<F>(key, buffer).unwrap_or(BUSY);
    if found == BUSY {
        refuse(Refused::Busy);
    }
    found
}

#[inline(always)]
fn touch_spilled<F: FlowTable>(key: &F::Key, len: u32, now: u32) -> Option<()> {
    const PACKET: u32 = Buffer::Packet as u32;
    let found = maps::buffer(PACKET)?;
    let slot = key.slot(F::seeds()?);
    let mut cells = Cells::<F>::read(key, found, PACKET);
    // Who does not get the lock has its packet go on, and does not count it.
    let _counted = set::with_lock(&mut cells, slot.set, |_| {
        if let Some(line) = F::spilled(key) {
            touch_line(line, found, len, now);
        }
    });
    Some(())
}

#[inline(always)]
fn write_in<F: FlowTable>(key: &F::Key, from: *const Flow, mode: u32) -> Option<Written> {
    if is_refused() {
        return None;
    }
    let buffer = Buffer::Leaving as u32;
    let into = &raw mut maps::buffer(buffer)?.flow;
    let slot = key.slot(F::seeds()?);
    // SAFETY: a map value.
    let (epoch, state) = unsafe { ((*from).way.epoch, (*from).connection.state) };
    let control = Control::of(epoch, state, key.protocol());
    told(set::write(&mut Cells::<F> { key, from, into, buffer }, slot, control, mode_of(mode)))
}

#[inline(always)]
fn remove_in<F: FlowTable>(key: &F::Key, over: u32) -> Option<Written> {
    if is_refused() {
        return None;
    }
    let buffer = Buffer::Leaving as u32;
    let mut cells = Cells::<F>::read(key, maps::buffer(buffer)?, buffer);
    let slot = key.slot(F::seeds()?);
    let over = if over == WHICHEVER { None } else { Some(over as u16) };
    told(set::remove(&mut cells, slot, key.protocol(), over))
}

/// What was done, where it is known; else the packet in the walk does no more.
#[inline(always)]
fn told(written: Written) -> Option<Written> {
    if written == Written::Busy {
        refuse(Refused::Busy);
        return None;
    }
    Some(written)
}
