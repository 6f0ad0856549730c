// SPDX-License-Identifier: Apache-2.0
//! Handles of the dataplane's maps, by name.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use weft_abi::{Counter, DropReason, FlowKey4, FlowKey6, MAPS, MapInfo, MapKind, Tally, program};

use crate::{
    Error,
    error::Result,
    flows::FlowTable,
    layout,
    pin::{PinDir, open_map},
    sys::{self, RawMap},
    table::{Array, Opened, PerCpuArray, Ring, Table},
};

/// Declares the handles of the table's maps.
macro_rules! declare {
    ($(
        $(#[$doc:meta])*
        $name:ident $accessor:ident: $kind:ident<$key:ty, $value:ty>, $role:ident, $size:ident($($sizing:tt)*);
    )+) => {
        /// Handles of all maps. They stay valid after the [`crate::Dataplane`] is gone, and may be used from any thread.
        #[derive(Debug)]
        pub struct Maps {
            $($accessor: handle!($kind, $key, $value),)+
            /// The program that writes to the flow table.
            editor: OwnedFd,
        }

        impl Maps {
            $(
                $(#[$doc])*
                #[must_use]
                pub const fn $accessor(&self) -> &handle!($kind, $key, $value) {
                    &self.$accessor
                }
            )+

            fn of(mut open: impl FnMut(&MapInfo) -> Result<Opened>, editor: impl FnOnce() -> Result<OwnedFd>) -> Result<Self> {
                Ok(Self { $($accessor: <handle!($kind, $key, $value)>::of(open(&MapInfo::$name)?),)+ editor: editor()? })
            }

            /// Every map with its name, in the order of [`weft_abi::map::ALL`].
            pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, &RawMap)> {
                [$((weft_abi::map::$name, self.$accessor.raw())),+].into_iter()
            }
        }
    };
}

/// The type of a map's handle.
macro_rules! handle {
    (Array, $key:ty, $value:ty) => { Array<$value> };
    (MappedArray, $key:ty, $value:ty) => { Array<$value> };
    (PerCpuArray, $key:ty, $value:ty) => { PerCpuArray<$value> };
    (RingBuf, $key:ty, $value:ty) => { Ring };
    ($hash_or_trie:ident, $key:ty, $value:ty) => { Table<$key, $value> };
}

weft_abi::for_each_map!(declare);

impl Maps {
    /// Opens the maps that a [`crate::Dataplane`] has pinned, here or in another process; loads and changes nothing.
    ///
    /// # Errors
    /// [`Error::Path`] for a map that is not there, [`Error::Layout`] for one of another build.
    pub fn open(pin_dir: &Path) -> Result<Self> {
        let dir = PinDir::of_this_version(pin_dir).maps;
        let editor = || open_map(&dir.join(program::EDIT_FLOWS));
        Self::assemble(&dir, editor, |map| open_map(&dir.join(map.name)))
    }

    /// Takes the maps out of a loaded object. `dir`: where they are pinned.
    pub(crate) fn take(ebpf: &mut Ebpf, dir: &Path) -> Result<Self> {
        let editor = editor(ebpf);
        Self::assemble(
            dir,
            || editor,
            |&MapInfo { name, .. }| {
                let map = ebpf.take_map(name).ok_or(Error::Missing { kind: "map", name })?;
                let fd = descriptor(&map).transpose().map_err(Error::map(name, "duplicate the descriptor of"))?;
                fd.ok_or(Error::Missing { kind: "map", name })
            },
        )
    }

    /// Checks that each map is what the ABI says.
    fn assemble(
        dir: &Path,
        editor: impl FnOnce() -> Result<OwnedFd>,
        mut fd: impl FnMut(&MapInfo) -> Result<OwnedFd>,
    ) -> Result<Self> {
        let cpus = aya::util::nr_cpus().map_err(|(path, source)| Error::Path {
            operation: "read the possible CPUs from",
            path: path.into(),
            source,
        })?;
        Self::of(|map| open(map, fd(map)?, dir, cpus), editor)
    }

    /// IPv4 flows.
    #[must_use]
    pub fn flows4(&self) -> FlowTable<'_, FlowKey4> {
        let Self { lines4: lines, directory4: directory, spilled4: spilled, seeds4: seeds, .. } = self;
        FlowTable { lines, directory, spilled, seeds, editor: self.editor.as_fd() }
    }

    /// IPv6 flows.
    #[must_use]
    pub fn flows6(&self) -> FlowTable<'_, FlowKey6> {
        let Self { lines6: lines, directory6: directory, spilled6: spilled, seeds6: seeds, .. } = self;
        FlowTable { lines, directory, spilled, seeds, editor: self.editor.as_fd() }
    }

    /// What was dropped for `reason` since the map was made, on all CPUs.
    ///
    /// # Errors
    /// [`Error::Map`]; [`Error::Index`] if the pinned map was made before this reason existed.
    pub fn dropped(&self, reason: DropReason) -> Result<Tally> {
        let per_cpu = self.drops.get(reason as u32)?;
        Ok(per_cpu.into_iter().fold(Tally::default(), |sum, tally| Tally {
            packets: sum.packets.wrapping_add(tally.packets),
            bytes: sum.bytes.wrapping_add(tally.bytes),
        }))
    }

    /// How often `counter` was counted since the map was made, on all CPUs.
    ///
    /// # Errors
    /// As [`Maps::dropped`].
    pub fn counted(&self, counter: Counter) -> Result<u64> {
        Ok(self.counts.get(counter as u32)?.into_iter().fold(0, u64::wrapping_add))
    }

    /// The kernel's numbers of the maps that programs of no other layout share.
    pub(crate) fn own_ids(&self) -> Result<Vec<u32>> {
        let own = self.all().zip(MAPS).filter(|(_, info)| !info.role.is_shared());
        own.map(|((name, map), _)| id(name, map.fd())).collect()
    }
}

/// The program that writes to the flow table.
fn editor(ebpf: &Ebpf) -> Result<OwnedFd> {
    const NAME: &str = program::EDIT_FLOWS;
    let program = ebpf.program(NAME).ok_or(Error::Missing { kind: "program", name: NAME })?;
    let fd =
        program.fd().map_err(|error| Error::Program { program: NAME, operation: "use", source: Box::new(error) })?;
    fd.as_fd().try_clone_to_owned().map_err(Error::map(NAME, "duplicate the descriptor of"))
}

/// The kernel's number of a map.
pub(crate) fn id(name: &'static str, fd: BorrowedFd<'_>) -> Result<u32> {
    Ok(sys::map_info(fd).map_err(Error::map(name, "ask the kernel about"))?.id)
}

/// Opens a map of the ABI in a folder of pins.
pub(crate) fn open_pinned(map: &MapInfo, dir: &Path) -> Result<Opened> {
    open(map, open_map(&dir.join(map.name))?, dir, 1)
}

fn open(map: &MapInfo, fd: OwnedFd, dir: &Path, cpus: usize) -> Result<Opened> {
    let name = map.name;
    layout::check(map, fd.as_fd(), &dir.join(name))?;
    let per_cpu = (map.kind == MapKind::PerCpuArray).then_some(cpus);
    let map = RawMap::new(fd, per_cpu).map_err(Error::map(name, "ask the kernel about"))?;
    Ok(Opened { name, map, cpus })
}

/// `None`: of a type that no map of the ABI has.
fn descriptor(map: &Map) -> Option<std::io::Result<OwnedFd>> {
    let (Map::Array(data)
    | Map::HashMap(data)
    | Map::LruHashMap(data)
    | Map::LpmTrie(data)
    | Map::PerCpuArray(data)
    | Map::RingBuf(data)) = map
    else {
        return None;
    };
    Some(MapData::fd(data).as_fd().try_clone_to_owned())
}
