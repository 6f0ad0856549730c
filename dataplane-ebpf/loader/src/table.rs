// SPDX-License-Identifier: Apache-2.0
//! Typed access to hashes, tries and arrays. Every method takes `&self`: the kernel does the locking.

use std::{fmt::Debug, io, marker::PhantomData};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    Error,
    error::Result,
    sys::{Batch, RawMap},
};

/// A key or value of a map: plain bytes on both sides.
pub trait Record: Copy + Debug + FromBytes + Immutable + IntoBytes {}

impl<T: Copy + Debug + FromBytes + Immutable + IntoBytes> Record for T {}

/// A hash or LPM trie.
#[derive(Debug)]
pub struct Table<K, V> {
    name: &'static str,
    map: RawMap,
    types: PhantomData<fn(K) -> V>,
}

/// A map that was opened and checked.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) name: &'static str,
    pub(crate) map: RawMap,
    /// Possible CPUs.
    pub(crate) cpus: usize,
}

impl<K: Record, V: Record> Table<K, V> {
    pub(crate) fn of(Opened { name, map, .. }: Opened) -> Self {
        Self { name, map, types: PhantomData }
    }

    pub(crate) const fn raw(&self) -> &RawMap {
        &self.map
    }

    /// Name of the map.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Most entries it can hold.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.map.max_entries()
    }

    /// The value of `key`, if there is one. A trie answers with the longest prefix that contains `key`.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        let mut value = V::new_zeroed();
        let found =
            self.map.lookup(key.as_bytes(), value.as_mut_bytes()).map_err(Error::map(self.name, "read from"))?;
        Ok(found.then_some(value))
    }

    /// Adds or replaces an entry, atomically for readers.
    ///
    /// # Errors
    /// [`Error::Full`] or [`Error::Map`].
    pub fn insert(&self, key: &K, value: &V) -> Result<()> {
        self.map.update(key.as_bytes(), value.as_bytes()).map_err(|source| match source.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => Error::Full { map: self.name, max_entries: self.map.max_entries() },
            _ => Error::Map { map: self.name, operation: "write to", source },
        })
    }

    /// Removes an entry; `false` if there was none. A trie removes that very prefix only.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn remove(&self, key: &K) -> Result<bool> {
        self.map.delete(key.as_bytes()).map_err(Error::map(self.name, "remove from"))
    }

    /// All entries, in no order. Those that are added or removed meanwhile may or may not be seen.
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter::new(self)
    }

    /// How many entries there are. Reads them all: the kernel keeps no count.
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
    pub fn retain(&self, mut keep: impl FnMut(&K, &V) -> bool) -> Result<usize> {
        let mut unwanted = Vec::new();
        for entry in self {
            let (key, value) = entry?;
            if !keep(&key, &value) {
                unwanted.push(key);
            }
        }
        // Only now: a trie finds its place again by the last key, which must still be there.
        let mut removed = 0;
        for key in unwanted {
            removed += usize::from(self.remove(&key)?);
        }
        Ok(removed)
    }
}

impl<'a, K: Record, V: Record> IntoIterator for &'a Table<K, V> {
    type Item = Result<(K, V)>;
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Entries of a [`Table`]; ends after an error.
#[derive(Debug)]
pub struct Iter<'a, K, V> {
    table: &'a Table<K, V>,
    cursor: Option<Vec<u8>>,
    keys: Vec<K>,
    values: Vec<V>,
    /// Entries of `keys` and `values` that are read, and how many of them were handed out.
    filled: usize,
    taken: usize,
    last: bool,
}

impl<'a, K: Record, V: Record> Iter<'a, K, V> {
    /// Entries read by one system call.
    const BATCH: usize = 256;

    fn new(table: &'a Table<K, V>) -> Self {
        let (keys, values) = (vec![K::new_zeroed(); Self::BATCH], vec![V::new_zeroed(); Self::BATCH]);
        Self { table, cursor: None, keys, values, filled: 0, taken: 0, last: false }
    }

    fn read(&mut self) -> Result<()> {
        let mut next = vec![0; self.table.map.cursor_size()];
        let Batch { count, last } = loop {
            let (keys, values) = (self.keys.as_mut_bytes(), self.values.as_mut_bytes());
            match self.table.map.lookup_batch(self.cursor.as_deref(), &mut next, keys, values) {
                Ok(batch) => break batch,
                // One hash bucket has more entries than there is room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => self.grow(error)?,
                Err(error) => return Err(Error::map(self.table.name, "list")(error)),
            }
        };
        (self.filled, self.taken, self.last) = (count, 0, last);
        self.cursor = Some(next);
        Ok(())
    }

    fn grow(&mut self, error: io::Error) -> Result<()> {
        let size = self.keys.len() * 2;
        if self.keys.len() > self.table.capacity() as usize {
            return Err(Error::map(self.table.name, "list")(error));
        }
        self.keys.resize(size, K::new_zeroed());
        self.values.resize(size, V::new_zeroed());
        Ok(())
    }
}

impl<K: Record, V: Record> Iterator for Iter<'_, K, V> {
    type Item = Result<(K, V)>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.taken == self.filled {
            if self.last {
                return None;
            }
            if let Err(error) = self.read() {
                (self.filled, self.taken, self.last) = (0, 0, true);
                return Some(Err(error));
            }
        }
        let entry = (*self.keys.get(self.taken)?, *self.values.get(self.taken)?);
        self.taken += 1;
        Some(Ok(entry))
    }
}

/// An array: every index below [`Array::capacity`] has a value, at first zero.
#[derive(Debug)]
pub struct Array<V> {
    name: &'static str,
    map: RawMap,
    types: PhantomData<fn() -> V>,
}

impl<V: Record> Array<V> {
    pub(crate) fn of(Opened { name, map, .. }: Opened) -> Self {
        Self { name, map, types: PhantomData }
    }

    pub(crate) const fn raw(&self) -> &RawMap {
        &self.map
    }

    /// How many values it has.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.map.max_entries()
    }

    /// The value at `index`.
    ///
    /// # Errors
    /// [`Error::Index`] or [`Error::Map`].
    pub fn get(&self, index: u32) -> Result<V> {
        self.check(index)?;
        let mut value = V::new_zeroed();
        self.map.lookup(index.as_bytes(), value.as_mut_bytes()).map_err(Error::map(self.name, "read from"))?;
        Ok(value)
    }

    /// The values from `first` on, as many as there are, `most` at most. Each may be half of what a program writes meanwhile.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub(crate) fn range(&self, first: u32, most: u32) -> Result<Vec<V>> {
        let count = most.min(self.capacity().saturating_sub(first)) as usize;
        let (mut keys, mut values) = (vec![0_u32; count], vec![V::new_zeroed(); count]);
        // The kernel goes on behind the cursor, an index.
        let cursor = first.checked_sub(1).map(u64::from);
        let mut next = [0; 8];
        if count != 0 {
            self.map
                .lookup_batch(
                    cursor.as_ref().map(IntoBytes::as_bytes),
                    &mut next,
                    keys.as_mut_bytes(),
                    values.as_mut_bytes(),
                )
                .map_err(Error::map(self.name, "list"))?;
        }
        Ok(values)
    }

    /// Writes the value at `index`. A program that reads a value of more than 8 bytes meanwhile may see half of it.
    ///
    /// # Errors
    /// [`Error::Index`] or [`Error::Map`].
    pub fn set(&self, index: u32, value: &V) -> Result<()> {
        self.check(index)?;
        self.map.update(index.as_bytes(), value.as_bytes()).map_err(Error::map(self.name, "write to"))
    }

    const fn check(&self, index: u32) -> Result<()> {
        check_index(self.name, index, self.capacity())
    }
}

/// An array with one value per CPU.
#[derive(Debug)]
pub struct PerCpuArray<V> {
    name: &'static str,
    map: RawMap,
    cpus: usize,
    types: PhantomData<fn() -> V>,
}

impl<V: Record> PerCpuArray<V> {
    pub(crate) fn of(Opened { name, map, cpus }: Opened) -> Self {
        Self { name, map, cpus, types: PhantomData }
    }

    pub(crate) const fn raw(&self) -> &RawMap {
        &self.map
    }

    /// How many indices it has.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.map.max_entries()
    }

    /// The values at `index`, one per possible CPU.
    ///
    /// # Errors
    /// [`Error::Index`] or [`Error::Map`].
    pub fn get(&self, index: u32) -> Result<Vec<V>> {
        check_index(self.name, index, self.capacity())?;
        let stride = size_of::<V>().next_multiple_of(8);
        let mut bytes = vec![0; stride * self.cpus];
        self.map.lookup(index.as_bytes(), &mut bytes).map_err(Error::map(self.name, "read from"))?;
        // A chunk is never shorter than a value, so that no value is left out.
        Ok(bytes
            .chunks_exact(stride)
            .filter_map(|chunk| V::read_from_prefix(chunk).ok())
            .map(|(value, _)| value)
            .collect())
    }
}

/// A ring of records; [`crate::Dataplane::events`] reads it.
#[derive(Debug)]
pub struct Ring {
    map: RawMap,
}

impl Ring {
    pub(crate) fn of(Opened { map, .. }: Opened) -> Self {
        Self { map }
    }

    pub(crate) const fn raw(&self) -> &RawMap {
        &self.map
    }
}

const fn check_index(map: &'static str, index: u32, max_entries: u32) -> Result<()> {
    if index < max_entries { Ok(()) } else { Err(Error::Index { map, index, max_entries }) }
}
