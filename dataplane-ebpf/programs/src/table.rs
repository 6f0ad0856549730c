// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! The flow table, as everything else sees it: `weft_logic::set` on maps.
//!
//! What is found is copied: an entry may be another connection's a moment later. The functions here are exported, and thereby global to
//! the verifier, as in `far`.

use core::{arch::asm, borrow::Borrow as _};

use aya_ebpf::bindings::BPF_ANY;
use weft_abi::{ConnectionFlags, Counter, DropReason, Flow, FlowKey4, FlowKey6, FlowSeeds, Line, Line4, Line6};
use weft_logic::{
    Tables as _,
    flow::{self as life, Lifetime},
    hash::FlowKey,
    set::{self, Control, Found, Lines, Mode, Read, WAYS, Word, Written},
    walk::Refused,
};

use crate::{
    family::{Family, V4, V6},
    helpers,
    maps::{self, DIRECTORY4, DIRECTORY6, FLOWS4, FLOWS6, Kernel, LINE4, LINE6, SEEDS4, SEEDS6, SPILLED4, SPILLED6},
    report, share,
};

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

/// How many rooms there are.
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
    /// Writes an entry: a [`Written`].
    fn write(key: &FlowKey6, flow: &Flow, mode: u32) -> u32;
    /// Removes an entry, or with `over` only the one with this sequence ([`WHICHEVER`]: any): a [`Written`].
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

    /// Makes an entry, where there is none; a [`Written`].
    #[inline(always)]
    fn write_new(key: &FlowKey6, flow: &Flow) -> u32 {
        Self::write(key, flow, ADD)
    }

    /// Makes or replaces an entry; a [`Written`].
    #[inline(always)]
    fn write_any(key: &FlowKey6, flow: &Flow) -> u32 {
        Self::write(key, flow, PUT)
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
        Self::write(key, flow, OVER | u32::from(before.sequence())) == Written::Done as u32
    }

    /// Removes an entry, if it is there.
    #[inline(always)]
    fn remove(key: &FlowKey6) {
        let _was_there = Self::remove_common(key, WHICHEVER);
    }

    /// Removes the entry that was found; a [`Written`].
    #[inline(always)]
    fn remove_over(key: &FlowKey6, before: Control) -> u32 {
        Self::remove_common(key, u32::from(before.sequence()))
    }

    /// Removes an entry, whichever it is; a [`Written`].
    #[inline(always)]
    fn remove_any(key: &FlowKey6) -> u32 {
        Self::remove_common(key, WHICHEVER)
    }
}

/// In the place of a sequence.
const WHICHEVER: u32 = 1 << 16;

/// [`Mode`] as a number.
const ADD: u32 = 1 << 16;
const PUT: u32 = 2 << 16;
/// With a sequence.
const OVER: u32 = 3 << 16;

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

/// A word of a map value.
pub struct Shared(*mut u64);

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

/// The table of a family, for an operation on `key`.
struct Cells<'k, F: FlowTable> {
    key: &'k F::Key,
    /// What is written; of an operation that only reads, as `into`.
    from: *const Flow,
    /// What is read, in the buffer of this number.
    into: *mut Flow,
    buffer: u32,
}

impl<'k, F: FlowTable> Cells<'k, F> {
    #[inline(always)]
    const fn read(key: &'k F::Key, buffer: &mut Copied, number: u32) -> Self {
        let into = &raw mut buffer.flow;
        Self { key, from: into, into, buffer: number }
    }

    #[inline(always)]
    fn copy(&mut self, line: *mut F::Line) {
        // SAFETY: a map value, and a room on this CPU. A copy that is torn is found out by the control word and not used.
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

/// Makes room in a key's set: removes a connection that nobody has answered yet, which is the least that is lost, or another one that
/// [`may_leave`]. Whether there was one.
#[inline(always)]
fn clear_in<F: Family>(key: &F::Key, clear_line: extern "C" fn(u32, u32) -> u32) -> Option<()> {
    let slot = key.slot(F::seeds()?);
    let mut turn = 0;
    while turn < 2 * WAYS {
        let which = if turn < WAYS { UNANSWERED } else { ANY };
        if clear_line(slot.line(turn & (WAYS - 1)), which) != 0 {
            return Some(());
        }
        turn += 1;
    }
    None
}

/// Which connections are asked to leave: those whose line alone tells that they were not answered, or all.
const UNANSWERED: u32 = 0;
const ANY: u32 = 1;

/// Removes the connection of a line if it is one of those. That of an entry whose other direction is not there stays: it may be a
/// reservation whose connection is about to be written, or what masqueraded TCP leaves to rest.
#[inline(always)]
fn clear_line<F: Family>(index: u32, which: u32) -> Option<()> {
    let [key, answer] = maps::leaving()?;
    // SAFETY: a map value.
    let line = unsafe { &*F::line(index)? };
    if which == UNANSWERED && !line.is_unanswered() {
        return None;
    }
    // One that is torn has no entry.
    *key = F::widen(line.key());
    let flow = F::find(key, Buffer::Leaving)?;
    *answer = life::answer_key(flow, key.protocol);
    let other = F::find(answer, Buffer::LeavingToo).filter(|other| life::leads_back(other, key))?;
    let is_answer = flow.connection.flags & ConnectionFlags::REPLY != 0;
    let (opener, opened_by) = if is_answer { (other, &*answer) } else { (flow, &*key) };
    if !may_leave(key, flow, other, opener, opened_by)? {
        return None;
    }
    share::unbook(opener, opened_by);
    // The opener's first: it must not go on under a tuple that is free.
    F::remove(opened_by);
    F::remove(if is_answer { key } else { answer });
    report::count(Counter::FlowsGivenUp);
    Some(())
}

/// Whether a connection makes room for anybody's: it is over, nobody has answered it, or it is closed and its tuple need not rest; or
/// it is on no port's account, and not translated, so that its next packet is decided on as this one was.
#[inline(always)]
fn may_leave(key: &FlowKey6, flow: &Flow, other: &Flow, opener: &Flow, opened_by: &FlowKey6) -> Option<bool> {
    const TRANSLATED: u16 = ConnectionFlags::REWRITE_SRC | ConnectionFlags::REWRITE_DST;
    let (config, now) = (Kernel.config()?, helpers::coarse_ticks());
    let lifetime = Lifetime::of(key.dport, key.protocol, flow, Some(other), &config.timeouts);
    let is_masqueraded = opener.connection.flags & ConnectionFlags::REWRITE_SRC != 0;
    let is_nobodys = share::account_of(opener, opened_by, config).is_none();
    Some(
        lifetime.is_over(now)
            || !lifetime.is_answered()
            || lifetime.makes_room(now) && !is_masqueraded
            || is_nobodys && opener.connection.flags & TRANSLATED == 0,
    )
}

macro_rules! table {
    (
        $family:ty, $key:ty, $line:ty, $lines:ident, $seeds:ident, $directory:ident, $spilled:ident, $scratch:ident,
        $read:ident, $find:ident, $touch:ident, $find_common:ident, $write:ident, $remove:ident, $clear_line:ident
    ) => {
        impl FlowTable for $family {
            type Key = $key;
            type Line = $line;

            #[inline(always)]
            fn line(index: u32) -> Option<*mut $line> {
                $lines.get_ptr_mut(index)
            }

            #[inline(always)]
            fn seeds() -> Option<&'static FlowSeeds> {
                $seeds.get(0)
            }

            #[inline(always)]
            fn directory(set: u32) -> Option<*mut u64> {
                $directory.get_ptr_mut(set)
            }

            #[inline(always)]
            fn spilled(key: &$key) -> Option<*mut $line> {
                $spilled.get_ptr_mut(key)
            }

            #[inline(always)]
            fn spill(key: &$key, line: &$line) -> bool {
                $spilled.insert(key, line, u64::from(BPF_ANY)).is_ok()
            }

            #[inline(always)]
            fn unspill(key: &$key) -> bool {
                $spilled.remove(key).is_ok()
            }

            #[inline(always)]
            fn scratch() -> Option<*mut $line> {
                $scratch.get_ptr_mut(0)
            }

            #[inline(always)]
            fn read_into(key: &$key, line: u32, buffer: u32) -> u32 {
                $read(key, line, buffer)
            }

            #[inline(always)]
            fn find_far(key: &$key) -> u32 {
                $find(key)
            }

            #[inline(always)]
            fn touch_far(key: &$key, len: u32, now: u32) -> u32 {
                $touch(key, len, now)
            }

            #[inline(always)]
            fn find_common(key: &FlowKey6, buffer: u32) -> u32 {
                $find_common(key, buffer)
            }

            #[inline(always)]
            fn write(key: &FlowKey6, flow: &Flow, mode: u32) -> u32 {
                $write(key, flow, mode)
            }

            #[inline(always)]
            fn remove_common(key: &FlowKey6, over: u32) -> u32 {
                $remove(key, over)
            }

            #[inline(always)]
            fn clear(key: &FlowKey6) -> bool {
                clear_in::<$family>(<$family>::narrow(key).borrow(), $clear_line).is_some()
            }
        }

        /// [`FlowTable::read_into`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $read(key: *const $key, line: u32, buffer: u32) -> u32 {
            // SAFETY: the caller's reference; the verifier checked its size.
            let Some(key) = (unsafe { key.as_ref() }) else { return OTHER };
            read_into::<$family>(key, line, buffer).unwrap_or(OTHER)
        }

        /// [`FlowTable::find_far`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $find(key: *const $key) -> u32 {
            // SAFETY: the caller's reference; the verifier checked its size.
            let Some(key) = (unsafe { key.as_ref() }) else { return BUSY };
            find_in::<$family>(key, Buffer::Packet as u32).unwrap_or(BUSY)
        }

        /// [`FlowTable::touch_far`]. Always 0.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $touch(key: *const $key, len: u32, now: u32) -> u32 {
            // SAFETY: the caller's reference; the verifier checked its size.
            if let Some(key) = unsafe { key.as_ref() } {
                let _done = touch_spilled::<$family>(key, len, now);
            }
            0
        }

        /// [`FlowTable::find_common`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $find_common(key: *const FlowKey6, buffer: u32) -> u32 {
            // SAFETY: the caller's reference; the verifier checked its size.
            let Some(key) = (unsafe { key.as_ref() }) else { return BUSY };
            find_for_walk::<$family>(<$family>::narrow(key).borrow(), buffer)
        }

        /// [`FlowTable::write`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $write(key: *const FlowKey6, flow: *const Flow, mode: u32) -> u32 {
            // SAFETY: the caller's references; the verifier checked their sizes.
            let (Some(key), Some(flow)) = (unsafe { (key.as_ref(), flow.as_ref()) }) else {
                return Written::Other as u32;
            };
            write_in::<$family>(<$family>::narrow(key).borrow(), flow, mode).unwrap_or(Written::Busy) as u32
        }

        /// [`FlowTable::remove_common`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $remove(key: *const FlowKey6, over: u32) -> u32 {
            // SAFETY: the caller's reference; the verifier checked its size.
            let Some(key) = (unsafe { key.as_ref() }) else { return Written::Other as u32 };
            remove_in::<$family>(<$family>::narrow(key).borrow(), over).unwrap_or(Written::Busy) as u32
        }

        /// Of [`FlowTable::clear`]: 1, or 0.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $clear_line(line: u32, which: u32) -> u32 {
            u32::from(clear_line::<$family>(line, which).is_some())
        }
    };
}

table!(
    V4,
    FlowKey4,
    Line4,
    FLOWS4,
    SEEDS4,
    DIRECTORY4,
    SPILLED4,
    LINE4,
    weft_read_v4,
    weft_find_far_v4,
    weft_touch_v4,
    weft_find_v4,
    weft_write_v4,
    weft_remove_v4,
    weft_clear_line_v4
);
table!(
    V6,
    FlowKey6,
    Line6,
    FLOWS6,
    SEEDS6,
    DIRECTORY6,
    SPILLED6,
    LINE6,
    weft_read_v6,
    weft_find_far_v6,
    weft_touch_v6,
    weft_find_v6,
    weft_write_v6,
    weft_remove_v6,
    weft_clear_line_v6
);
