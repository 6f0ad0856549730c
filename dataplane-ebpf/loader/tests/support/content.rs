// SPDX-License-Identifier: Apache-2.0
//! What maps hold, byte by byte: all maps of a dataplane, those that its programs have for themselves among them.

use std::{collections::BTreeSet, os::fd::AsFd as _, path::Path};

use aya::{
    maps::{MapInfo, MapType},
    programs::loaded_programs,
    util::nr_cpus,
};
use weft_abi::map;

use super::sys::RawMap;

/// A map of whatever type, without the types of its keys and values.
#[derive(Debug)]
pub(crate) struct AnyMap {
    pub(crate) info: MapInfo,
    pub(crate) kind: MapType,
    raw: RawMap,
}

/// All entries, as the kernel lists them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Content {
    pub(crate) keys: Vec<u8>,
    pub(crate) values: Vec<u8>,
}

/// The maps that are pinned in a folder, and whatever other maps the programs have that use one of them.
pub(crate) fn maps_of(pins: &Path) -> Vec<AnyMap> {
    let pinned = map::ALL.map(|name| MapInfo::from_pin(pins.join(name)).expect("look at a pinned map").id());
    let pinned = BTreeSet::from(pinned);
    let mut all = pinned.clone();
    // Programs of other tests come and go meanwhile.
    for program in loaded_programs().flatten() {
        let used = program.map_ids().ok().flatten().unwrap_or_default();
        if used.iter().any(|id| pinned.contains(id)) {
            all.extend(used);
        }
    }
    all.into_iter().map(AnyMap::open).collect()
}

impl AnyMap {
    fn open(id: u32) -> Self {
        let info = MapInfo::from_id(id).expect("look at a map");
        let kind = info.map_type().expect("a type that is known");
        let cpus = (kind == MapType::PerCpuArray).then(|| nr_cpus().expect("how many CPUs there may be"));
        let fd = info.fd().expect("open a map").as_fd().try_clone_to_owned().expect("keep a map open");
        let raw = RawMap::new(fd, cpus).expect("look at a map");
        Self { info, kind, raw }
    }

    /// Up to 15 bytes of it, which is all that the kernel keeps.
    pub(crate) fn name(&self) -> &str {
        self.info.name_as_str().expect("names are text")
    }

    /// A stream has no content: what is read is gone.
    pub(crate) fn is_stream(&self) -> bool {
        self.kind == MapType::RingBuf
    }

    fn is_array(&self) -> bool {
        matches!(self.kind, MapType::Array | MapType::PerCpuArray)
    }

    fn entries<'c>(&self, content: &'c Content) -> impl Iterator<Item = (&'c [u8], &'c [u8])> {
        content.keys.chunks(self.raw.key_size()).zip(content.values.chunks(self.raw.value_size()))
    }

    /// Everything in it. Nobody may write meanwhile.
    pub(crate) fn content(&self) -> Content {
        let (key_size, value_size, room) =
            (self.raw.key_size(), self.raw.value_size(), self.raw.max_entries() as usize);
        let (mut keys, mut values) = (vec![0; room * key_size], vec![0; room * value_size]);
        let mut cursor = vec![0; self.raw.cursor_size()];
        let read = self.raw.lookup_batch(None, &mut cursor, &mut keys, &mut values);
        let count = read.unwrap_or_else(|error| panic!("list {}: {error}", self.name())).count;
        keys.truncate(count * key_size);
        values.truncate(count * value_size);
        Content { keys, values }
    }

    /// Lets it hold what it held then.
    pub(crate) fn restore(&self, then: &Content) {
        let now = self.content();
        if now == *then {
            return;
        }
        if self.is_array() {
            let changed = self.entries(then).zip(self.entries(&now)).filter(|(then, now)| then != now);
            changed.for_each(|((key, value), _)| self.write(key, value));
        } else {
            self.entries(&now).for_each(|(key, _)| self.remove(key));
            self.entries(then).for_each(|(key, value)| self.write(key, value));
        }
    }

    /// Adds or replaces an entry.
    pub(crate) fn write(&self, key: &[u8], value: &[u8]) {
        self.raw.update(key, value).unwrap_or_else(|error| panic!("write to {}: {error}", self.name()));
    }

    fn remove(&self, key: &[u8]) {
        self.raw.delete(key).unwrap_or_else(|error| panic!("remove from {}: {error}", self.name()));
    }

    /// A key and a value of these bytes: one that a trie takes, too, as a prefix of no bits.
    pub(crate) fn entry_of(&self, byte: u8) -> (Vec<u8>, Vec<u8>) {
        (vec![0; self.raw.key_size()], vec![byte; self.raw.value_size()])
    }
}
