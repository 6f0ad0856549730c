// SPDX-License-Identifier: Apache-2.0
//! The words of the flow table: how CPUs find, write and remove its entries at the same time. The programs, user space's tests and the
//! model of weak memory (`tests/table/model.rs`) are all compiled from this file.
//!
//! The table is an array of lines, eight to a *set*, and one word of *directory* for each set. A key belongs to one set, where it takes
//! its *home way* if that is free, else any other; whoever finds all taken goes to a hash beside the table. So most packets read
//! their line and nothing else, and whether a key is there is decided under the lock of one word.
//!
//! | word | bits |
//! |---|---|
//! | directory | tags of the eight ways, 7 bits each (0: free); 6 bits: how many entries of the set are in the hash; lock (bit 63) |
//! | control, of each line | epoch (32), sequence (16; odd while the line is written), state (8), protocol (8; 0: no entry) |
//!
//! A reader takes the control, the key, the entry, and the control again: another sequence, and what it read is of no use. A
//! writer holds the set's lock. Programs are not preempted by others that write (softirqs are off): a lock is held for some hundred
//! nanoseconds, but for an interrupt or a virtual CPU that is stopped. Who waits gives up after [`Lines::ATTEMPTS`] and must not take that for
//! an answer: an entry that is written may be there.

/// Lines of a set.
pub const WAYS: u32 = 8;

/// Bits of a tag in a directory.
const TAG_BITS: u32 = 7;
const TAG: u64 = (1 << TAG_BITS) - 1;
/// The place of the number of entries in the hash.
const SPILLED_AT: u32 = WAYS * TAG_BITS;
/// The most that it can be.
const SPILLED: u64 = 0x3f;
const LOCK: u64 = 1 << 63;

/// A word that CPUs share. All operations but [`Word::load`] are fully ordered, as the kernel's atomics that return a value are.
pub trait Word {
    /// Reads it.
    fn load(&self) -> u64;
    /// Writes it; what it was.
    fn exchange(&self, new: u64) -> u64;
    /// Sets these bits; what it was.
    fn fetch_or(&self, bits: u64) -> u64;
    /// Writes `new` if it is `old`; whether it was.
    fn compare_exchange(&self, old: u64, new: u64) -> bool;
}

/// The memory of a table, as one operation on one key sees it.
pub trait Lines {
    /// A word of it.
    type Word: Word;
    /// How often a reader tries a line that is written meanwhile, and a writer a lock. A model of all orders has room for fewer.
    const ATTEMPTS: u32 = 32;

    /// The directory of a set; none: there is no such set.
    fn directory(&mut self, set: u32) -> Option<Self::Word>;
    /// The control of a line; none: there is no such line.
    fn control(&mut self, line: u32) -> Option<Self::Word>;
    /// Whether the line has the operation's key. It may be half of one and half of another.
    fn has_key(&mut self, line: u32) -> bool;
    /// Copies the line's entry. It may be half of one and half of another.
    fn read(&mut self, line: u32);
    /// Writes the operation's key and entry to the line.
    fn write(&mut self, line: u32);
    /// Keeps what was read before it from being read after it.
    fn fence(&self);
    /// [`read`], by a function of its own where code must be small.
    #[inline(always)]
    fn read_line(&mut self, line: u32, protocol: u8) -> Read
    where
        Self: Sized,
    {
        read(self, line, protocol)
    }

    /// A random number.
    fn random(&mut self) -> u16;

    /// The control of the key's entry in the hash, which is copied; none: there is no such entry. Called under the lock: without it
    /// the memory of one entry may become another's.
    fn spilled(&mut self) -> Option<Control>;
    /// Makes or replaces the key's entry in the hash; `false`: it is full.
    fn spill(&mut self, control: Control) -> bool;
    /// Removes the key's entry from the hash; `false`: there is none.
    fn remove_spilled(&mut self) -> bool;
}

/// Where a key belongs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Slot {
    /// Its set.
    pub set: u32,
    /// What the directory knows it by, from 1 to 127.
    pub tag: u32,
    /// The way that it takes if it can.
    pub home: u32,
}

impl Slot {
    /// The slot for a hash in a table of that many sets.
    #[inline(always)]
    #[must_use]
    pub const fn of(hash: u64, sets: u32) -> Self {
        let set = (((hash >> 32) * sets as u64) >> 32) as u32;
        let low = hash as u32;
        let tag = low & TAG as u32;
        Self { set, tag: if tag == 0 { 1 } else { tag }, home: (low >> TAG_BITS) & (WAYS - 1) }
    }

    /// The line of a way.
    #[inline(always)]
    #[must_use]
    pub const fn line(&self, way: u32) -> u32 {
        self.set * WAYS + way
    }
}

/// A line's control word.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Control(pub u64);

impl Control {
    /// Of an entry that is about to be written: its sequence is the line's.
    #[inline(always)]
    #[must_use]
    pub const fn of(epoch: u32, state: u8, protocol: u8) -> Self {
        Self(epoch as u64 | (state as u64) << 48 | (protocol as u64) << 56)
    }

    /// Value of the epoch when the entry's generations were last found unmoved.
    #[inline(always)]
    #[must_use]
    pub const fn epoch(self) -> u32 {
        self.0 as u32
    }

    /// How often the line was written, twice.
    #[inline(always)]
    #[must_use]
    pub const fn sequence(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// State of the entry's direction.
    #[inline(always)]
    #[must_use]
    pub const fn state(self) -> u8 {
        (self.0 >> 48) as u8
    }

    /// IP protocol number; 0: there is no entry. Protocol 0 is an IPv6 extension header, and no flow's.
    #[inline(always)]
    #[must_use]
    pub const fn protocol(self) -> u8 {
        (self.0 >> 56) as u8
    }

    /// With another epoch and state.
    #[inline(always)]
    #[must_use]
    pub const fn with(self, epoch: u32, state: u8) -> Self {
        Self(self.0 & 0xff00_ffff_0000_0000 | epoch as u64 | (state as u64) << 48)
    }

    /// With the later one of both states.
    #[inline(always)]
    #[must_use]
    pub const fn with_later_state(self, other: Self) -> Self {
        if other.state() > self.state() { self.with(self.epoch(), other.state()) } else { self }
    }

    /// With a sequence.
    #[inline(always)]
    #[must_use]
    pub const fn with_sequence(self, sequence: u16) -> Self {
        Self(self.0 & !(0xffff << 32) | (sequence as u64) << 32)
    }

    /// Whether somebody writes the line just now.
    #[inline(always)]
    #[must_use]
    pub const fn is_written(self) -> bool {
        self.sequence() & 1 != 0
    }
}

/// A set's directory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Directory(pub u64);

impl Directory {
    /// The tag of a way; 0: it is free.
    #[inline(always)]
    #[must_use]
    pub const fn tag(self, way: u32) -> u32 {
        ((self.0 >> (way * TAG_BITS)) & TAG) as u32
    }

    #[inline(always)]
    const fn with_tag(self, way: u32, tag: u32) -> Self {
        Self(self.0 & !(TAG << (way * TAG_BITS)) | (tag as u64) << (way * TAG_BITS))
    }

    /// How many of the set's entries are in the hash.
    #[inline(always)]
    #[must_use]
    pub const fn spilled(self) -> u64 {
        (self.0 >> SPILLED_AT) & SPILLED
    }

    #[inline(always)]
    const fn one_more_spilled(self) -> Self {
        Self(self.0 + (1 << SPILLED_AT))
    }

    #[inline(always)]
    const fn one_less_spilled(self) -> Self {
        Self(self.0 - (1 << SPILLED_AT))
    }
}

/// What a reader found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Found {
    /// An entry in this line, and its control. It was copied.
    Line(u32, Control),
    /// One in the hash. It was copied.
    Spilled(Control),
    /// No entry.
    Nothing,
    /// Others write all the time.
    Busy,
}

/// What a writer wants.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// A new entry, if there is none.
    Add,
    /// The entry, whatever is there.
    Put,
    /// The entry in the place of the one with this sequence.
    Over(u16),
}

/// What a writer did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum Written {
    /// What was wanted.
    Done = 0,
    /// Nothing: there is an entry, or with [`Mode::Over`] not that one.
    Other = 1,
    /// Nothing: there is no room.
    Full = 2,
    /// Nothing: others hold the lock.
    Busy = 3,
}

/// What a reader of one line found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Read {
    /// The entry, which was copied.
    Entry(Control),
    /// Another key's entry, or none.
    Other,
    /// It was written meanwhile.
    Busy,
}

/// Reads a line once.
#[inline(always)]
pub fn read_once<L: Lines>(lines: &mut L, line: u32, protocol: u8) -> Read {
    let Some(word) = lines.control(line) else { return Read::Other };
    let before = Control(word.load());
    lines.fence();
    if before.protocol() != protocol || !lines.has_key(line) {
        return Read::Other;
    }
    lines.read(line);
    lines.fence();
    let after = Control(word.load());
    if before.is_written() || before.sequence() != after.sequence() { Read::Busy } else { Read::Entry(after) }
}

/// Reads a line that others may write.
#[inline(always)]
pub fn read<L: Lines>(lines: &mut L, line: u32, protocol: u8) -> Read {
    let mut attempts = 0;
    while attempts < L::ATTEMPTS {
        match read_once(lines, line, protocol) {
            Read::Busy => attempts += 1,
            read => return read,
        }
    }
    Read::Busy
}

/// Finds and copies the entry of the operation's key.
#[inline(always)]
pub fn find<L: Lines>(lines: &mut L, slot: Slot, protocol: u8) -> Found {
    let Some(word) = lines.directory(slot.set) else { return Found::Nothing };
    let directory = Directory(word.load());
    lines.fence();
    let mut way = 0;
    while way < WAYS {
        if directory.tag(way) == slot.tag {
            match lines.read_line(slot.line(way), protocol) {
                Read::Entry(control) => return Found::Line(slot.line(way), control),
                Read::Busy => return Found::Busy,
                Read::Other => {}
            }
        }
        way += 1;
    }
    if directory.spilled() == 0 {
        return Found::Nothing;
    }
    let Some(directory) = lock(lines, slot.set) else { return Found::Busy };
    let spilled = lines.spilled();
    unlock(lines, slot.set, directory);
    spilled.map_or(Found::Nothing, Found::Spilled)
}

/// Calls `update` under the lock of the set; `false`: others hold it.
#[inline(always)]
pub fn with_lock<L: Lines>(lines: &mut L, set: u32, update: impl FnOnce(&mut L)) -> bool {
    let Some(directory) = lock(lines, set) else { return false };
    update(lines);
    unlock(lines, set, directory);
    true
}

/// Writes the operation's entry; `control` has its epoch, state and protocol.
#[inline(always)]
pub fn write<L: Lines>(lines: &mut L, slot: Slot, control: Control, mode: Mode) -> Written {
    let Some(directory) = lock(lines, slot.set) else { return Written::Busy };
    let (directory, written) = write_locked(lines, slot, directory, control, mode);
    unlock(lines, slot.set, directory);
    written
}

/// Removes the entry of the operation's key; whether there was one. `over`: only the one with this sequence.
#[inline(always)]
pub fn remove<L: Lines>(lines: &mut L, slot: Slot, protocol: u8, over: Option<u16>) -> Written {
    let Some(directory) = lock(lines, slot.set) else { return Written::Busy };
    let (directory, written) = remove_locked(lines, slot, directory, protocol, over);
    unlock(lines, slot.set, directory);
    written
}

#[inline(always)]
fn lock<L: Lines>(lines: &mut L, set: u32) -> Option<Directory> {
    let word = lines.directory(set)?;
    let mut attempts = 0;
    while attempts < L::ATTEMPTS {
        let before = word.fetch_or(LOCK);
        if before & LOCK == 0 {
            return Some(Directory(before));
        }
        attempts += 1;
    }
    None
}

#[inline(always)]
fn unlock<L: Lines>(lines: &mut L, set: u32, directory: Directory) {
    if let Some(word) = lines.directory(set) {
        word.exchange(directory.0);
    }
}

/// The way of the operation's key; under the lock nobody else writes.
#[inline(always)]
fn way_of<L: Lines>(lines: &mut L, slot: Slot, directory: Directory, protocol: u8) -> Option<(u32, Control)> {
    let mut way = 0;
    while way < WAYS {
        if directory.tag(way) == slot.tag && lines.has_key(slot.line(way)) {
            let control = Control(lines.control(slot.line(way))?.load());
            if control.protocol() == protocol {
                return Some((way, control));
            }
        }
        way += 1;
    }
    None
}

#[inline(always)]
fn write_locked<L: Lines>(
    lines: &mut L,
    slot: Slot,
    directory: Directory,
    control: Control,
    mode: Mode,
) -> (Directory, Written) {
    if let Some((way, before)) = way_of(lines, slot, directory, control.protocol()) {
        if !may_replace(mode, before) {
            return (directory, Written::Other);
        }
        // Readers wait for it: to them it is there all the time.
        publish(lines, slot.line(way), control, control.protocol());
        return (directory, Written::Done);
    }
    if directory.spilled() != 0
        && let Some(before) = lines.spilled()
    {
        let control = control.with_sequence(next(lines, before.sequence() | 1));
        let done = may_replace(mode, before) && lines.spill(control);
        return (directory, if done { Written::Done } else { Written::Other });
    }
    if let Mode::Over(_) = mode {
        return (directory, Written::Other);
    }
    if let Some(way) = free_way(slot, directory) {
        publish(lines, slot.line(way), control, 0);
        return (directory.with_tag(way, slot.tag), Written::Done);
    }
    let first = next(lines, 1);
    if directory.spilled() < SPILLED && lines.spill(control.with_sequence(first)) {
        return (directory.one_more_spilled(), Written::Done);
    }
    (directory, Written::Full)
}

#[inline(always)]
const fn may_replace(mode: Mode, before: Control) -> bool {
    match mode {
        Mode::Add => false,
        Mode::Put => true,
        Mode::Over(sequence) => sequence == before.sequence(),
    }
}

/// The home way if it is free, else another one.
#[inline(always)]
const fn free_way(slot: Slot, directory: Directory) -> Option<u32> {
    if directory.tag(slot.home) == 0 {
        return Some(slot.home);
    }
    let mut way = 0;
    while way < WAYS {
        if directory.tag(way) == 0 {
            return Some(way);
        }
        way += 1;
    }
    None
}

/// Writes a line, which for readers has `meanwhile` as its protocol.
#[inline(always)]
fn publish<L: Lines>(lines: &mut L, line: u32, control: Control, meanwhile: u8) {
    let Some(word) = lines.control(line) else { return };
    let written = Control(word.load()).sequence() | 1;
    word.exchange(Control::of(0, 0, meanwhile).with_sequence(written).0);
    lines.write(line);
    word.exchange(control.with_sequence(next(lines, written)).0);
}

/// The sequence after the odd one that a line has while it is written. By chance one of many: an entry that is read in one place and
/// written anew in another has not the same.
#[inline(always)]
fn next<L: Lines>(lines: &mut L, written: u16) -> u16 {
    written.wrapping_add(1 + 2 * (lines.random() & 0x1fff))
}

#[inline(always)]
fn remove_locked<L: Lines>(
    lines: &mut L,
    slot: Slot,
    directory: Directory,
    protocol: u8,
    over: Option<u16>,
) -> (Directory, Written) {
    let is_meant = |control: Control| over.is_none_or(|sequence| sequence == control.sequence());
    if let Some((way, before)) = way_of(lines, slot, directory, protocol) {
        if !is_meant(before) {
            return (directory, Written::Other);
        }
        if let Some(word) = lines.control(slot.line(way)) {
            word.exchange(Control(0).with_sequence(next(lines, before.sequence() | 1)).0);
        }
        return (directory.with_tag(way, 0), Written::Done);
    }
    if directory.spilled() == 0 {
        return (directory, Written::Other);
    }
    if lines.spilled().is_some_and(is_meant) && lines.remove_spilled() {
        return (directory.one_less_spilled(), Written::Done);
    }
    (directory, Written::Other)
}
