// SPDX-License-Identifier: Apache-2.0
//! What maps hold, byte by byte: all maps of a dataplane, those that its programs have for themselves among them.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use aya::{
    maps::{MapFd, MapInfo, MapType},
    programs::loaded_programs,
    util::nr_cpus,
};
use weft_abi::map;

// enum bpf_cmd of include/uapi/linux/bpf.h.
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;

/// Members of `union bpf_attr`.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// A map of whatever type, without the types of its keys and values.
#[derive(Debug)]
pub(crate) struct AnyMap {
    pub(crate) info: MapInfo,
    fd: MapFd,
    pub(crate) kind: MapType,
    key_size: usize,
    /// Of a value; of one of each CPU, where they have their own.
    value_size: usize,
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
        let (fd, kind) = (info.fd().expect("open a map"), info.map_type().expect("a type that is known"));
        let (key_size, value_size) = (info.key_size() as usize, info.value_size() as usize);
        let value_size = match kind {
            MapType::PerCpuArray => value_size.next_multiple_of(8) * nr_cpus().expect("how many CPUs there may be"),
            _ => value_size,
        };
        Self { info, fd, kind, key_size, value_size }
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
        content.keys.chunks(self.key_size).zip(content.values.chunks(self.value_size))
    }

    /// Everything in it. Nobody may write meanwhile.
    pub(crate) fn content(&self) -> Content {
        let room = self.info.max_entries() as usize;
        let (mut keys, mut values) = (vec![0; room * self.key_size], vec![0; room * self.value_size]);
        // A cursor is a number, or a key.
        let mut cursor = vec![0_u8; self.key_size.max(8)];
        let mut attr = BatchAttr {
            out_batch: cursor.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: self.info.max_entries(),
            map_fd: self.number(),
            ..BatchAttr::default()
        };
        // SAFETY: the kernel writes at most `count` keys and values and one cursor; there is room for them.
        match unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) } {
            // There are no more.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            result => result.unwrap_or_else(|error| panic!("list {}: {error}", self.name())),
        }
        keys.truncate(attr.count as usize * self.key_size);
        values.truncate(attr.count as usize * self.value_size);
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
        assert_eq!((key.len(), value.len()), (self.key_size, self.value_size), "{}", self.name());
        let mut attr = self.element(key);
        attr.value = value.as_ptr() as u64;
        // SAFETY: the kernel reads a key and a value, whose sizes were checked.
        let done = unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr) };
        done.unwrap_or_else(|error| panic!("write to {}: {error}", self.name()));
    }

    fn remove(&self, key: &[u8]) {
        assert_eq!(key.len(), self.key_size, "{}", self.name());
        // SAFETY: the kernel reads a key, whose size was checked.
        let done = unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut self.element(key)) };
        done.unwrap_or_else(|error| panic!("remove from {}: {error}", self.name()));
    }

    /// A key and a value of these bytes: one that a trie takes, too, as a prefix of no bits.
    pub(crate) fn entry_of(&self, byte: u8) -> (Vec<u8>, Vec<u8>) {
        (vec![0; self.key_size], vec![byte; self.value_size])
    }

    fn element(&self, key: &[u8]) -> ElementAttr {
        ElementAttr { map_fd: self.number(), pad: 0, key: key.as_ptr() as u64, value: 0, flags: 0 }
    }

    fn number(&self) -> u32 {
        self.fd.as_fd().as_raw_fd().cast_unsigned()
    }
}

/// # Safety
/// `attr` must be the member of `union bpf_attr` that `command` reads, and every address and length in it must describe
/// memory that outlives the call and that the kernel may read or write as that command does.
unsafe fn bpf<A>(command: libc::c_int, attr: &mut A) -> io::Result<()> {
    let attr: *mut A = attr;
    // SAFETY: the pointer and the length are those of a live value; the rest is the caller's promise.
    match unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<A>()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
