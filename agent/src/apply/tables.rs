// SPDX-License-Identifier: Apache-2.0
//! The maps as the apply step sees them, so that it can be tested without a kernel; and what it knows they hold.

use std::collections::BTreeMap;

use weft_abi::{
    AddressKey, BackendKey, Balancer, BlockKey, CidrKey, Class, Config, Device, Frontend, FrontendKey, List, Member,
    MemberKey, Owner, Port, Remote, RingNode, RuleKey, Run,
};
use weft_dataplane::{Error, Maps, Record};

use super::patch::Changes;

/// A map with keys.
pub trait Table<K, V> {
    /// All entries.
    ///
    /// # Errors
    /// The kernel refuses.
    fn entries(&self) -> Result<BTreeMap<K, V>, Error>;
    /// Adds or replaces one entry, atomically for readers.
    ///
    /// # Errors
    /// The map is full, or the kernel refuses.
    fn insert(&self, key: &K, value: &V) -> Result<(), Error>;
    /// Removes one entry, if it is there.
    ///
    /// # Errors
    /// The kernel refuses.
    fn remove(&self, key: &K) -> Result<(), Error>;
    /// Entries it can hold.
    fn capacity(&self) -> usize;
}

/// A map with an index.
pub trait Array<V> {
    /// The value at `index`.
    ///
    /// # Errors
    /// The index is out of range, or the kernel refuses.
    fn get(&self, index: u32) -> Result<V, Error>;
    /// Replaces the value at `index`.
    ///
    /// # Errors
    /// As [`Array::get`].
    fn set(&self, index: u32, value: &V) -> Result<(), Error>;
    /// How many values it has.
    fn capacity(&self) -> u32;
}

/// The maps that the agent writes; see [`weft_abi::map`].
#[expect(missing_docs, reason = "named as the maps are")]
pub trait Tables {
    fn config(&self) -> &dyn Array<Config>;
    fn generations(&self) -> &dyn Array<u32>;
    fn service_generations(&self) -> &dyn Array<u32>;
    fn digests(&self) -> &dyn Table<u32, u64>;
    fn numbering(&self) -> &dyn Array<[u64; 2]>;
    fn devices(&self) -> &dyn Table<u32, Device>;
    fn ports(&self) -> &dyn Table<u32, Port>;
    fn addresses(&self) -> &dyn Table<AddressKey, Owner>;
    fn remotes(&self) -> &dyn Table<CidrKey, Remote>;
    fn frontends(&self) -> &dyn Table<FrontendKey, Frontend>;
    fn balancers(&self) -> &dyn Table<u32, Balancer>;
    fn members(&self) -> &dyn Table<MemberKey, Member>;
    fn rings(&self) -> &dyn Table<MemberKey, RingNode>;
    fn backends(&self) -> &dyn Table<BackendKey, u32>;
    fn sources(&self) -> &dyn Table<CidrKey, u32>;
    fn peers(&self) -> &dyn Table<AddressKey, u64>;
    fn classes(&self) -> &dyn Table<u64, Class>;
    fn lists(&self) -> &dyn Table<u64, List>;
    fn rules(&self) -> &dyn Table<RuleKey, Run>;
    fn blocks(&self) -> &dyn Table<BlockKey, u64>;
    /// Empties `VERDICTS`.
    ///
    /// # Errors
    /// The kernel refuses.
    fn forget_verdicts(&self) -> Result<(), Error>;
}

impl<K: Record + Ord, V: Record> Table<K, V> for weft_dataplane::Table<K, V> {
    fn entries(&self) -> Result<BTreeMap<K, V>, Error> {
        self.iter().collect()
    }

    fn insert(&self, key: &K, value: &V) -> Result<(), Error> {
        Self::insert(self, key, value)
    }

    fn remove(&self, key: &K) -> Result<(), Error> {
        Self::remove(self, key).map(drop)
    }

    fn capacity(&self) -> usize {
        Self::capacity(self) as usize
    }
}

impl<V: Record> Array<V> for weft_dataplane::Array<V> {
    fn get(&self, index: u32) -> Result<V, Error> {
        Self::get(self, index)
    }

    fn set(&self, index: u32, value: &V) -> Result<(), Error> {
        Self::set(self, index, value)
    }

    fn capacity(&self) -> u32 {
        Self::capacity(self)
    }
}

impl Tables for Maps {
    fn config(&self) -> &dyn Array<Config> {
        self.config()
    }

    fn generations(&self) -> &dyn Array<u32> {
        self.generations()
    }

    fn service_generations(&self) -> &dyn Array<u32> {
        self.service_generations()
    }

    fn digests(&self) -> &dyn Table<u32, u64> {
        self.digests()
    }

    fn numbering(&self) -> &dyn Array<[u64; 2]> {
        self.numbering()
    }

    fn devices(&self) -> &dyn Table<u32, Device> {
        self.devices()
    }

    fn ports(&self) -> &dyn Table<u32, Port> {
        self.ports()
    }

    fn addresses(&self) -> &dyn Table<AddressKey, Owner> {
        self.addresses()
    }

    fn remotes(&self) -> &dyn Table<CidrKey, Remote> {
        self.remotes()
    }

    fn frontends(&self) -> &dyn Table<FrontendKey, Frontend> {
        self.frontends()
    }

    fn balancers(&self) -> &dyn Table<u32, Balancer> {
        self.balancers()
    }

    fn members(&self) -> &dyn Table<MemberKey, Member> {
        self.members()
    }

    fn rings(&self) -> &dyn Table<MemberKey, RingNode> {
        self.rings()
    }

    fn backends(&self) -> &dyn Table<BackendKey, u32> {
        self.backends()
    }

    fn sources(&self) -> &dyn Table<CidrKey, u32> {
        self.sources()
    }

    fn peers(&self) -> &dyn Table<AddressKey, u64> {
        self.peers()
    }

    fn classes(&self) -> &dyn Table<u64, Class> {
        self.classes()
    }

    fn lists(&self) -> &dyn Table<u64, List> {
        self.lists()
    }

    fn rules(&self) -> &dyn Table<RuleKey, Run> {
        self.rules()
    }

    fn blocks(&self) -> &dyn Table<BlockKey, u64> {
        self.blocks()
    }

    fn forget_verdicts(&self) -> Result<(), Error> {
        self.verdicts().retain(|_, _| false).map(drop)
    }
}

/// What one map is known to hold. Writes go through it, so that only differences reach the kernel.
#[derive(Clone, Debug)]
pub(super) struct Known<K, V>(pub(super) BTreeMap<K, V>);

/// How many entries a pass wrote and removed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Summary {
    /// Entries added or replaced.
    pub written: usize,
    /// Entries removed.
    pub removed: usize,
    /// Generations moved.
    pub generations: usize,
    /// What could not be programmed, and why; everything else was, and whatever depends on it is closed.
    pub problems: Vec<String>,
}

/// Keys of one map that could not be written or removed, with the first error.
#[derive(Debug)]
pub(super) struct Failed<K> {
    pub(super) keys: Vec<K>,
    error: Option<Error>,
}

impl<K> Failed<K> {
    pub(super) const fn new() -> Self {
        Self { keys: Vec::new(), error: None }
    }

    pub(super) fn note(&mut self, key: K, result: Result<(), Error>) {
        if let Err(error) = result {
            self.keys.push(key);
            self.error.get_or_insert(error);
        }
    }

    /// Tells it in the summary, and how it goes on: `closed`.
    pub(super) fn tell(&self, what: &str, closed: &str, summary: &mut Summary) {
        if let Some(error) = &self.error {
            summary.problems.push(format!("{} {what}: {error}; {closed}", self.keys.len()));
        }
    }
}

impl Summary {
    /// Whether everything was as it should be already.
    #[must_use]
    pub fn is_unchanged(&self) -> bool {
        *self == Self::default()
    }
}

impl<K: Copy + Ord, V: Copy + PartialEq> Known<K, V> {
    pub(super) fn observe(table: &dyn Table<K, V>) -> Result<Self, Error> {
        table.entries().map(Self)
    }

    /// Writes the entry unless it is there.
    pub(super) fn put(
        &mut self,
        table: &dyn Table<K, V>,
        key: K,
        value: V,
        summary: &mut Summary,
    ) -> Result<(), Error> {
        if self.0.get(&key) != Some(&value) {
            table.insert(&key, &value)?;
            self.0.insert(key, value);
            summary.written += 1;
        }
        Ok(())
    }

    /// Removes the entry if it is there.
    pub(super) fn take(&mut self, table: &dyn Table<K, V>, key: K, summary: &mut Summary) -> Result<(), Error> {
        if self.0.contains_key(&key) {
            table.remove(&key)?;
            self.0.remove(&key);
            summary.removed += 1;
        }
        Ok(())
    }

    /// Writes every new value of `changes`, in the reverse order of keys: of tries, the longest prefix first. One that cannot
    /// be written holds up no other.
    pub(super) fn put_all(
        &mut self,
        table: &dyn Table<K, V>,
        changes: &Changes<K, V>,
        summary: &mut Summary,
    ) -> Failed<K> {
        let mut failed = Failed::new();
        let wanted = changes.iter().rev().filter_map(|(key, value)| Some((key, value.as_ref()?)));
        for (key, value) in wanted {
            failed.note(*key, self.put(table, *key, *value, summary));
        }
        failed
    }

    /// Removes every entry that goes, in the order of keys: of tries, the shortest prefix first.
    pub(super) fn take_gone(
        &mut self,
        table: &dyn Table<K, V>,
        changes: &Changes<K, V>,
        summary: &mut Summary,
    ) -> Failed<K> {
        let mut failed = Failed::new();
        for key in self.gone(changes) {
            failed.note(key, self.take(table, key, summary));
        }
        failed
    }

    /// Whether there is no room for what comes beside what stands.
    pub(super) fn grows_beyond(&self, table: &dyn Table<K, V>, changes: &Changes<K, V>) -> bool {
        let added = changes.iter().filter(|(key, new)| new.is_some() && !self.0.contains_key(key)).count();
        self.0.len() + added > table.capacity()
    }

    /// Keys that go and are still there.
    pub(super) fn gone<W>(&self, changes: &Changes<K, W>) -> Vec<K> {
        let gone = changes.iter().filter(|(key, value)| value.is_none() && self.0.contains_key(key));
        gone.map(|(key, _)| *key).collect()
    }
}
