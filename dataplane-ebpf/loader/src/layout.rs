// SPDX-License-Identifier: Apache-2.0
//! Type and sizes that each map must have, from the types of the ABI.

use std::{fmt, os::fd::BorrowedFd, path::Path};

use weft_abi::{
    Addr, Backend, CidrKey, Config, Datagram, Flow, FlowKey4, FlowKey6, FragmentKey, Local, Port, Remote, RuleKey,
    Rules, Service, ServiceKey, Share, SlotKey, Tally, generation, map,
};

use crate::{
    Error,
    error::Result,
    options::MapSizes,
    sys::{self, MapInfo},
};

/// `enum bpf_map_type`, as far as Weft uses it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub(crate) enum Kind {
    Hash = 1,
    Array = 2,
    PerCpuArray = 6,
    LruHash = 9,
    LpmTrie = 11,
    RingBuf = 27,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Hash, Self::Array, Self::PerCpuArray, Self::LruHash, Self::LpmTrie, Self::RingBuf];
}

/// What a map is made of. Programs compiled for another layout would read garbage.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Layout {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    key_size: u32,
    value_size: u32,
}

impl Layout {
    const fn of<K, V>(name: &'static str, kind: Kind) -> Self {
        // The ABI's types are small: its size assertions keep them so.
        Self { name, kind, key_size: size_of::<K>() as u32, value_size: size_of::<V>() as u32 }
    }

    /// Every map of [`map::ALL`], in its order.
    pub(crate) const ALL: [Self; 17] = [
        Self::of::<u32, Config>(map::CONFIG, Kind::Array),
        Self::of::<u32, Port>(map::PORTS, Kind::Hash),
        Self::of::<Addr, Local>(map::LOCALS, Kind::Hash),
        Self::of::<CidrKey, Remote>(map::REMOTES, Kind::LpmTrie),
        Self::of::<ServiceKey, Service>(map::SERVICES, Kind::Hash),
        Self::of::<SlotKey, Backend>(map::SLOTS, Kind::Hash),
        Self::of::<Addr, u32>(map::IDENTITIES, Kind::Hash),
        Self::of::<CidrKey, u32>(map::CIDRS, Kind::LpmTrie),
        Self::of::<RuleKey, Rules>(map::RULES, Kind::Hash),
        Self::of::<u32, u32>(map::GENERATIONS, Kind::Array),
        Self::of::<FlowKey4, Flow>(map::FLOWS4, Kind::LruHash),
        Self::of::<FlowKey6, Flow>(map::FLOWS6, Kind::LruHash),
        Self::of::<FragmentKey, Datagram>(map::FRAGMENTS, Kind::LruHash),
        Self::of::<u32, Share>(map::SHARES, Kind::Hash),
        Self::of::<u32, Tally>(map::DROPS, Kind::PerCpuArray),
        Self::of::<u32, u64>(map::COUNTS, Kind::PerCpuArray),
        Self::of::<(), ()>(map::EVENTS, Kind::RingBuf),
    ];

    /// Entries that a new map gets.
    pub(crate) fn entries(&self, sizes: &MapSizes) -> u32 {
        let fixed = match self.name {
            map::GENERATIONS => generation::SLOTS,
            map::DROPS => weft_abi::DROP_REASONS.len() as u32,
            map::COUNTS => weft_abi::COUNTERS.len() as u32,
            // Every port has one; the host and the wire do, and ports that are just gone.
            map::SHARES => sizes.ports.saturating_mul(2).saturating_add(2),
            _ => 1,
        };
        sizes.entries(self.name).unwrap_or(fixed)
    }

    /// Checks the map behind a descriptor; `pin` is where it is pinned, for the error.
    pub(crate) fn check(&self, fd: BorrowedFd<'_>, pin: &Path) -> Result<MapInfo> {
        let info = sys::map_info(fd).map_err(Error::map(self.name, "ask the kernel about"))?;
        let same =
            info.kind == self.kind as u32 && info.key_size == self.key_size && info.value_size == self.value_size;
        if !same {
            return Err(Error::Layout {
                map: self.name,
                pin: pin.to_owned(),
                found: shape(info.kind, info.key_size, info.value_size),
                wanted: self.to_string(),
            });
        }
        Ok(info)
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shape(self.kind as u32, self.key_size, self.value_size))
    }
}

fn shape(kind: u32, key_size: u32, value_size: u32) -> String {
    let name = Kind::ALL.into_iter().find(|known| *known as u32 == kind);
    let name = name.map_or_else(|| format!("map type {kind}"), |kind| format!("type {kind:?}"));
    format!("{name}, keys of {key_size} and values of {value_size} bytes")
}

#[cfg(test)]
mod tests {
    use super::Layout;

    #[test]
    fn describes_every_map_of_the_abi() {
        assert_eq!(Layout::ALL.map(|layout| layout.name), weft_abi::map::ALL);
    }
}
