// SPDX-License-Identifier: Apache-2.0
//! The flow table: read as it lies there, written by a program (see [`weft_abi::EditRequest`]).

use std::{io, os::fd::BorrowedFd, thread, time::Duration};

use weft_abi::{EditKind, EditRequest, Flow, FlowEdit, FlowKey4, FlowKey6, FlowSeeds, Line, Line4, Line6};
use weft_logic::{
    hash::FlowKey,
    set::{Control, Directory, Slot, WAYS, Written},
};
use zerocopy::IntoBytes as _;

use crate::{Array, Error, Iter, Record, Table, error::Result, sys};

/// Entries that the table is made for, for each set: three of four lines. The rest keeps sets from being full.
pub(crate) const ENTRIES_OF_A_SET: u32 = 6;

/// How often an edit is tried that finds a set's lock taken, or a read that a writer meets.
const ATTEMPTS: u32 = 100;

/// Between two of them: who holds a lock for longer than some hundred nanoseconds is interrupted, or its CPU is.
const PAUSE: Duration = Duration::from_micros(200);

/// A key of a flow table.
pub trait TableKey: FlowKey + Record {
    /// An entry in memory.
    type Line: Line<Key = Self> + Record;
    /// Whether it is of IPv6.
    const V6: bool;

    /// The common form.
    fn wide(&self) -> FlowKey6;
    /// The form that the table has.
    fn narrow(key: &FlowKey6) -> Self;
}

impl TableKey for FlowKey4 {
    type Line = Line4;
    const V6: bool = false;

    fn wide(&self) -> FlowKey6 {
        self.common()
    }

    fn narrow(key: &FlowKey6) -> Self {
        Self::of(key)
    }
}

impl TableKey for FlowKey6 {
    type Line = Line6;
    const V6: bool = true;

    fn wide(&self) -> FlowKey6 {
        *self
    }

    fn narrow(key: &FlowKey6) -> Self {
        *key
    }
}

/// The flow table of a family: entries of both directions of connections.
#[derive(Clone, Copy, Debug)]
pub struct FlowTable<'m, K: TableKey> {
    pub(crate) lines: &'m Array<K::Line>,
    pub(crate) directory: &'m Array<u64>,
    pub(crate) spilled: &'m Table<K, K::Line>,
    pub(crate) seeds: &'m Array<FlowSeeds>,
    /// The program [`weft_abi::program::EDIT_FLOWS`].
    pub(crate) editor: BorrowedFd<'m>,
}

impl<'m, K: TableKey> FlowTable<'m, K> {
    /// Entries that it has room for. A set may be full before: a port's share is counted by this.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.directory.capacity() * ENTRIES_OF_A_SET
    }

    /// The entry of `key`, if there is one.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn get(&self, key: &K) -> Result<Option<Flow>> {
        let slot = key.slot(&self.seeds.get(0)?);
        let directory = Directory(self.directory.get(slot.set)?);
        for way in (0..WAYS).filter(|way| directory.tag(*way) == slot.tag) {
            if let Some(flow) = self.read(key, slot, way)? {
                return Ok(Some(flow));
            }
        }
        if directory.spilled() == 0 {
            return Ok(None);
        }
        Ok(self.spilled.get(key)?.map(|line| entry(&line)))
    }

    /// The entry in a way of the key's set, if it is the key's.
    fn read(&self, key: &K, slot: Slot, way: u32) -> Result<Option<Flow>> {
        for _ in 0..ATTEMPTS {
            let line = self.lines.get(slot.line(way))?;
            let control = Control(line.control());
            if control.protocol() != key.protocol() || !line.key().is_same(key) {
                return Ok(None);
            }
            // A line that was written meanwhile has another sequence now.
            let again = Control(self.lines.get(slot.line(way))?.control());
            if control.sequence() == again.sequence() && !control.is_written() {
                return Ok(Some(entry(&line)));
            }
        }
        Err(self.failed("read from", "others write all the time"))
    }

    /// Adds or replaces an entry.
    ///
    /// # Errors
    /// [`Error::Full`] or [`Error::Map`].
    pub fn insert(&self, key: &K, flow: &Flow) -> Result<()> {
        self.edit(EditKind::Put, &[(*key, *flow)]).map(|_| ())
    }

    /// Adds an entry; `false` if there is one.
    ///
    /// # Errors
    /// [`Error::Full`] or [`Error::Map`].
    pub(crate) fn add(&self, key: &K, flow: &Flow) -> Result<bool> {
        Ok(self.edit(EditKind::Add, &[(*key, *flow)])? == 1)
    }

    /// Removes an entry; `false` if there was none.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn remove(&self, key: &K) -> Result<bool> {
        Ok(self.edit(EditKind::Remove, &[(*key, Flow::default())])? == 1)
    }

    /// Removes these entries, but for those that have had a packet since they were read; how many.
    ///
    /// # Errors
    /// [`Error::Map`]; entries may have been removed before it.
    pub fn remove_unseen(&self, entries: &[(K, Flow)]) -> Result<usize> {
        self.edit(EditKind::RemoveUnseen, entries)
    }

    /// All entries, in no order. Those that come, go or change meanwhile may be seen as they were or as they are, or as half of each:
    /// ask for one that matters again.
    pub fn iter(&self) -> Entries<'m, K> {
        Entries { next: 0, lines: self.lines, batch: Vec::new(), spilled: self.spilled.iter() }
    }

    /// How many entries there are. Reads them all.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn len(&self) -> Result<usize> {
        self.iter().try_fold(0, |count, entry| entry.map(|_| count + 1))
    }

    /// Whether there is no entry.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.iter().next().transpose()?.is_none())
    }

    /// Removes the entries that `keep` does not want; returns how many.
    ///
    /// # Errors
    /// [`Error::Map`]; entries may have been removed before it.
    pub fn retain(&self, mut keep: impl FnMut(&K, &Flow) -> bool) -> Result<usize> {
        let mut unwanted = Vec::new();
        for entry in self {
            let (key, flow) = entry?;
            if !keep(&key, &flow) {
                unwanted.push((key, flow));
            }
        }
        let mut removed = self.remove_unseen(&unwanted)?;
        if removed < unwanted.len() {
            // Some have had a packet, or have gone and made way for others: what is there now is asked about.
            for (key, _) in unwanted {
                if self.get(&key)?.is_some_and(|flow| !keep(&key, &flow)) {
                    removed += usize::from(self.remove(&key)?);
                }
            }
        }
        Ok(removed)
    }

    /// How many of the edits did something.
    fn edit(&self, kind: EditKind, entries: &[(K, Flow)]) -> Result<usize> {
        let is = |edit: &FlowEdit, written: Written| edit.answer == written as u32;
        let (mut done, mut refused, mut busy) = (0, 0, 0);
        for entries in entries.chunks(EditRequest::MOST) {
            let mut edits: Vec<FlowEdit> =
                entries.iter().map(|(key, flow)| FlowEdit { key: key.wide(), answer: 0, flow: *flow }).collect();
            for _ in 0..ATTEMPTS {
                self.run(kind, &mut edits)?;
                done += edits.iter().filter(|edit| is(edit, Written::Done)).count();
                refused += edits.iter().filter(|edit| is(edit, Written::Full)).count();
                edits.retain(|edit| is(edit, Written::Busy));
                if edits.is_empty() {
                    break;
                }
                thread::sleep(PAUSE);
            }
            busy += edits.len();
        }
        if busy != 0 {
            return Err(self.failed("write to", "others hold its locks all the time"));
        }
        if refused != 0 {
            return Err(Error::Full { map: self.spilled.name(), max_entries: self.capacity() });
        }
        Ok(done)
    }

    fn run(&self, kind: EditKind, edits: &mut [FlowEdit]) -> Result<()> {
        let count = u32::try_from(edits.len()).unwrap_or(0);
        let request = EditRequest { kind: kind as u32, v6: K::V6.into(), count, reserved: 0 };
        let mut packet = request.as_bytes().to_vec();
        packet.extend(edits.as_bytes());
        let code = sys::test_run(self.editor, &mut packet).map_err(Error::map(self.spilled.name(), "write to"))?;
        if code != 0 {
            return Err(self.failed("write to", "the program refuses the request"));
        }
        let answered = packet.get(size_of::<EditRequest>()..).unwrap_or_default();
        edits.as_mut_bytes().copy_from_slice(answered);
        Ok(())
    }

    fn failed(&self, operation: &'static str, what: &'static str) -> Error {
        Error::Map { map: self.spilled.name(), operation, source: io::Error::other(what) }
    }
}

impl<'m, K: TableKey> IntoIterator for &FlowTable<'m, K> {
    type Item = Result<(K, Flow)>;
    type IntoIter = Entries<'m, K>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// The entry of a line.
fn entry<L: Line>(line: &L) -> Flow {
    let (mut flow, control) = (Flow::default(), Control(line.control()));
    line.read(&mut flow);
    (flow.way.epoch, flow.connection.state) = (control.epoch(), control.state());
    flow
}

/// Entries of a [`FlowTable`]: those of lines, then those of the hash.
#[derive(Debug)]
pub struct Entries<'m, K: TableKey> {
    lines: &'m Array<K::Line>,
    /// The first line that has not been read.
    next: u32,
    /// Entries that have been read, the last one first.
    batch: Vec<(K, Flow)>,
    spilled: Iter<'m, K, K::Line>,
}

impl<K: TableKey> Entries<'_, K> {
    /// Lines read by one system call.
    const BATCH: u32 = 256;

    fn read(&mut self) -> Result<()> {
        let lines = self.lines.range(self.next, Self::BATCH)?;
        self.next = self.next.saturating_add(Self::BATCH);
        let is_there = |line: &&K::Line| Control(line.control()).protocol() != 0;
        self.batch.extend(lines.iter().filter(is_there).map(|line| (*line.key(), entry(line))));
        Ok(())
    }
}

impl<K: TableKey> Iterator for Entries<'_, K> {
    type Item = Result<(K, Flow)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.batch.pop() {
                return Some(Ok(entry));
            }
            if self.next >= self.lines.capacity() {
                return Some(self.spilled.next()?.map(|(key, line)| (key, entry(&line))));
            }
            if let Err(error) = self.read() {
                self.next = u32::MAX;
                return Some(Err(error));
            }
        }
    }
}
