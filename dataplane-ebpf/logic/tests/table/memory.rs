// SPDX-License-Identifier: Apache-2.0
//! The memory of a table, of words as std or loom has them. An entry is a number, written twice: halves of two do not pass for one.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering, fence},
    },
};

use weft_logic::set::{self, Control, Found, Lines, Mode, Slot, WAYS, Word, Written};

pub(crate) const PROTOCOL: u8 = 6;

/// A word that a memory is made of.
pub(crate) trait Cell {
    /// See [`Lines::ATTEMPTS`].
    const ATTEMPTS: u32;

    fn new(value: u64) -> Self;
    /// As plain memory: in no order with anything.
    fn read(&self) -> u64;
    fn write(&self, value: u64);
    /// See [`Lines::fence`].
    fn fence();
    /// See [`Word`].
    fn exchange(&self, new: u64) -> u64;
    fn fetch_or(&self, bits: u64) -> u64;
    fn compare_exchange(&self, old: u64, new: u64) -> bool;
}

impl Cell for AtomicU64 {
    // Threads are preempted, which programs are not.
    const ATTEMPTS: u32 = 1 << 30;

    fn new(value: u64) -> Self {
        Self::new(value)
    }

    fn read(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }

    fn write(&self, value: u64) {
        self.store(value, Ordering::Relaxed);
    }

    fn fence() {
        fence(Ordering::SeqCst);
    }

    fn exchange(&self, new: u64) -> u64 {
        self.swap(new, Ordering::SeqCst)
    }

    fn fetch_or(&self, bits: u64) -> u64 {
        self.fetch_or(bits, Ordering::SeqCst)
    }

    fn compare_exchange(&self, old: u64, new: u64) -> bool {
        self.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

/// A word, for an operation.
pub(crate) struct Borrowed<'m, C>(&'m C);

impl<C: Cell> Word for Borrowed<'_, C> {
    fn load(&self) -> u64 {
        self.0.read()
    }

    fn exchange(&self, new: u64) -> u64 {
        self.0.exchange(new)
    }

    fn fetch_or(&self, bits: u64) -> u64 {
        self.0.fetch_or(bits)
    }

    fn compare_exchange(&self, old: u64, new: u64) -> bool {
        self.0.compare_exchange(old, new)
    }
}

/// A line: control, key, and the entry twice.
struct Line<C> {
    control: C,
    key: C,
    entry: [C; 2],
}

/// A table and the hash beside it.
pub(crate) struct Memory<C> {
    directory: Vec<C>,
    lines: Vec<Line<C>>,
    /// Control and entry by key. The kernel's hash replaces values whole.
    hash: Mutex<HashMap<u64, (Control, u64)>>,
    most_spilled: usize,
}

impl<C: Cell> Memory<C> {
    pub(crate) fn new(sets: usize, most_spilled: usize) -> Self {
        let line = || Line { control: C::new(0), key: C::new(0), entry: [C::new(0), C::new(0)] };
        Self {
            directory: (0..sets).map(|_| C::new(0)).collect(),
            lines: (0..sets * WAYS as usize).map(|_| line()).collect(),
            hash: Mutex::default(),
            most_spilled,
        }
    }

    pub(crate) fn write(&self, key: u64, slot: Slot, entry: u64, mode: Mode) -> Written {
        set::write(&mut self.operation(key, entry), slot, Control::of(0, 0, PROTOCOL), mode)
    }

    pub(crate) fn remove(&self, key: u64, slot: Slot, over: Option<u16>) -> Written {
        set::remove(&mut self.operation(key, 0), slot, PROTOCOL, over)
    }

    pub(crate) fn find(&self, key: u64, slot: Slot) -> Option<u64> {
        self.try_find(key, slot).expect("nobody writes for as long")
    }

    /// Not [`Memory::find`] where a writer may be stopped meanwhile; none: it was.
    pub(crate) fn try_find(&self, key: u64, slot: Slot) -> Option<Option<u64>> {
        let mut operation = self.operation(key, 0);
        match set::find(&mut operation, slot, PROTOCOL) {
            Found::Line(..) | Found::Spilled(_) => {
                let [one, other] = operation.found;
                assert_eq!(one, other, "half of one entry and half of another");
                Some(Some(one))
            }
            Found::Nothing => Some(None),
            Found::Busy => None,
        }
    }

    pub(crate) fn sequence(&self, key: u64, slot: Slot) -> Option<u16> {
        match set::find(&mut self.operation(key, 0), slot, PROTOCOL) {
            Found::Line(_, control) | Found::Spilled(control) => Some(control.sequence()),
            Found::Nothing | Found::Busy => None,
        }
    }

    /// The control word of a line.
    pub(crate) fn control(&self, line: u32) -> Borrowed<'_, C> {
        Borrowed(&self.lines[line as usize].control)
    }

    pub(crate) fn is_unlocked(&self) -> bool {
        self.directory.iter().all(|word| word.read() >> 63 == 0)
    }

    pub(crate) fn spilled(&self) -> usize {
        self.hash().len()
    }

    /// Lines and entries of the hash that have the key.
    pub(crate) fn count(&self, key: u64) -> usize {
        let has_key = |line: &&Line<C>| Control(line.control.read()).protocol() != 0 && line.key.read() == key;
        self.lines.iter().filter(has_key).count() + usize::from(self.hash().contains_key(&key))
    }

    fn hash(&self) -> MutexGuard<'_, HashMap<u64, (Control, u64)>> {
        self.hash.lock().expect("nobody panics with it")
    }

    fn operation(&self, key: u64, entry: u64) -> Operation<'_, C> {
        Operation { memory: self, key, entry, found: [0; 2] }
    }
}

/// An operation on a key.
struct Operation<'m, C> {
    memory: &'m Memory<C>,
    key: u64,
    /// What is written.
    entry: u64,
    /// What was read.
    found: [u64; 2],
}

impl<'m, C: Cell> Lines for Operation<'m, C> {
    type Word = Borrowed<'m, C>;
    const ATTEMPTS: u32 = C::ATTEMPTS;

    fn directory(&mut self, set: u32) -> Option<Self::Word> {
        self.memory.directory.get(set as usize).map(Borrowed)
    }

    fn control(&mut self, line: u32) -> Option<Self::Word> {
        self.memory.lines.get(line as usize).map(|line| Borrowed(&line.control))
    }

    fn has_key(&mut self, line: u32) -> bool {
        self.memory.lines[line as usize].key.read() == self.key
    }

    fn read(&mut self, line: u32) {
        let [one, other] = &self.memory.lines[line as usize].entry;
        self.found = [one.read(), other.read()];
    }

    fn write(&mut self, line: u32) {
        let line = &self.memory.lines[line as usize];
        line.key.write(self.key);
        line.entry.iter().for_each(|word| word.write(self.entry));
    }

    fn fence(&self) {
        C::fence();
    }

    fn random(&mut self) -> u16 {
        self.key as u16
    }

    fn spilled(&mut self) -> Option<Control> {
        let (control, entry) = *self.memory.hash().get(&self.key)?;
        self.found = [entry; 2];
        Some(control)
    }

    fn spill(&mut self, control: Control) -> bool {
        let mut hash = self.memory.hash();
        let has_room = hash.len() < self.memory.most_spilled || hash.contains_key(&self.key);
        if has_room {
            hash.insert(self.key, (control, self.entry));
        }
        has_room
    }

    fn remove_spilled(&mut self) -> bool {
        self.memory.hash().remove(&self.key).is_some()
    }
}
