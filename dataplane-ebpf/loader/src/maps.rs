// SPDX-License-Identifier: Apache-2.0
//! Handles of the dataplane's maps, by name.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use weft_abi::{
    Addr, Backend, CidrKey, Config, Counter, Datagram, DropReason, Flow, FlowKey4, FlowKey6, FragmentKey, Local, Port,
    Remote, RuleKey, Rules, Service, ServiceKey, Share, SlotKey, Tally,
};

use crate::{
    Error,
    error::Result,
    layout::{Kind, Layout},
    pin::PinDir,
    sys::{self, RawMap},
    table::{Array, PerCpuArray, Record, Table},
};

/// Handles of all maps. They stay valid after the [`crate::Dataplane`] is gone, and may be used from any thread.
#[derive(Debug)]
pub struct Maps {
    config: Array<Config>,
    ports: Table<u32, Port>,
    locals: Table<Addr, Local>,
    remotes: Table<CidrKey, Remote>,
    services: Table<ServiceKey, Service>,
    slots: Table<SlotKey, Backend>,
    identities: Table<Addr, u32>,
    cidrs: Table<CidrKey, u32>,
    rules: Table<RuleKey, Rules>,
    generations: Array<u32>,
    flows4: Table<FlowKey4, Flow>,
    flows6: Table<FlowKey6, Flow>,
    fragments: Table<FragmentKey, Datagram>,
    shares: Table<u32, Share>,
    drops: PerCpuArray<Tally>,
    counts: PerCpuArray<u64>,
    events: RawMap,
}

impl Maps {
    /// Opens the maps that a [`crate::Dataplane`] has pinned, here or in another process; loads and changes nothing.
    ///
    /// # Errors
    /// [`Error::Path`] for a map that is not there, [`Error::Layout`] for one of another build.
    pub fn open(pin_dir: &Path) -> Result<Self> {
        let dir = PinDir::of_this_version(pin_dir).maps;
        Self::assemble(&dir, |layout| {
            let pin = dir.join(layout.name);
            sys::object_get(&pin).map_err(Error::path("open pinned map", pin))
        })
    }

    /// Takes the maps out of a loaded object. `dir`: where they are pinned.
    pub(crate) fn take(ebpf: &mut Ebpf, dir: &Path) -> Result<Self> {
        Self::assemble(dir, |&Layout { name, .. }| {
            let map = ebpf.take_map(name).ok_or(Error::Missing { kind: "map", name })?;
            let fd = descriptor(&map).transpose().map_err(Error::map(name, "duplicate the descriptor of"))?;
            fd.ok_or(Error::Missing { kind: "map", name })
        })
    }

    /// Checks that each map is what the ABI says.
    fn assemble(dir: &Path, mut fd: impl FnMut(&Layout) -> Result<OwnedFd>) -> Result<Self> {
        let cpus = aya::util::nr_cpus().map_err(|(path, source)| Error::Path {
            operation: "read the possible CPUs from",
            path: path.into(),
            source,
        })?;
        let [
            config,
            ports,
            locals,
            remotes,
            services,
            slots,
            identities,
            cidrs,
            rules,
            generations,
            flows4,
            flows6,
            fragments,
            shares,
            drops,
            counts,
            events,
        ] = Layout::ALL.map(|layout| raw(&layout, fd(&layout)?, dir, cpus));
        Ok(Self {
            config: array(config)?,
            ports: table(ports)?,
            locals: table(locals)?,
            remotes: table(remotes)?,
            services: table(services)?,
            slots: table(slots)?,
            identities: table(identities)?,
            cidrs: table(cidrs)?,
            rules: table(rules)?,
            generations: array(generations)?,
            flows4: table(flows4)?,
            flows6: table(flows6)?,
            fragments: table(fragments)?,
            shares: table(shares)?,
            drops: per_cpu_array(drops, cpus)?,
            counts: per_cpu_array(counts, cpus)?,
            events: events?.1,
        })
    }

    /// The node's facts, at index 0.
    #[must_use]
    pub const fn config(&self) -> &Array<Config> {
        &self.config
    }

    /// Ports by interface index.
    #[must_use]
    pub const fn ports(&self) -> &Table<u32, Port> {
        &self.ports
    }

    /// Addresses of this node.
    #[must_use]
    pub const fn locals(&self) -> &Table<Addr, Local> {
        &self.locals
    }

    /// Prefixes of pods and Services.
    #[must_use]
    pub const fn remotes(&self) -> &Table<CidrKey, Remote> {
        &self.remotes
    }

    /// Service frontends.
    #[must_use]
    pub const fn services(&self) -> &Table<ServiceKey, Service> {
        &self.services
    }

    /// Backends of Services.
    #[must_use]
    pub const fn slots(&self) -> &Table<SlotKey, Backend> {
        &self.slots
    }

    /// Identities of single addresses.
    #[must_use]
    pub const fn identities(&self) -> &Table<Addr, u32> {
        &self.identities
    }

    /// Identities of prefixes.
    #[must_use]
    pub const fn cidrs(&self) -> &Table<CidrKey, u32> {
        &self.cidrs
    }

    /// Policy rules.
    #[must_use]
    pub const fn rules(&self) -> &Table<RuleKey, Rules> {
        &self.rules
    }

    /// Generations; see [`weft_abi::generation`].
    #[must_use]
    pub const fn generations(&self) -> &Array<u32> {
        &self.generations
    }

    /// IPv4 flows.
    #[must_use]
    pub const fn flows4(&self) -> &Table<FlowKey4, Flow> {
        &self.flows4
    }

    /// IPv6 flows.
    #[must_use]
    pub const fn flows6(&self) -> &Table<FlowKey6, Flow> {
        &self.flows6
    }

    /// Fragmented datagrams.
    #[must_use]
    pub const fn fragments(&self) -> &Table<FragmentKey, Datagram> {
        &self.fragments
    }

    /// What each port has taken of what all share, by interface index.
    #[must_use]
    pub const fn shares(&self) -> &Table<u32, Share> {
        &self.shares
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

    /// The kernel's numbers of all maps.
    pub(crate) fn ids(&self) -> Result<Vec<u32>> {
        let id = |(name, map): (_, &RawMap)| {
            Ok(sys::map_info(map.fd()).map_err(Error::map(name, "ask the kernel about"))?.id)
        };
        self.all().map(id).collect()
    }

    pub(crate) const fn events(&self) -> &RawMap {
        &self.events
    }

    /// Every map with its name, in the order of [`weft_abi::map::ALL`].
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, &RawMap)> {
        let maps = [
            self.config.raw(),
            self.ports.raw(),
            self.locals.raw(),
            self.remotes.raw(),
            self.services.raw(),
            self.slots.raw(),
            self.identities.raw(),
            self.cidrs.raw(),
            self.rules.raw(),
            self.generations.raw(),
            self.flows4.raw(),
            self.flows6.raw(),
            self.fragments.raw(),
            self.shares.raw(),
            self.drops.raw(),
            self.counts.raw(),
            &self.events,
        ];
        weft_abi::map::ALL.into_iter().zip(maps)
    }
}

type Named = Result<(&'static str, RawMap)>;

fn raw(layout: &Layout, fd: OwnedFd, dir: &Path, cpus: usize) -> Named {
    let name = layout.name;
    layout.check(fd.as_fd(), &dir.join(name))?;
    let cpus = (layout.kind == Kind::PerCpuArray).then_some(cpus);
    Ok((name, RawMap::new(fd, cpus).map_err(Error::map(name, "ask the kernel about"))?))
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

fn table<K: Record, V: Record>(map: Named) -> Result<Table<K, V>> {
    map.map(|(name, map)| Table::new(name, map))
}

fn array<V: Record>(map: Named) -> Result<Array<V>> {
    map.map(|(name, map)| Array::new(name, map))
}

fn per_cpu_array<V: Record>(map: Named, cpus: usize) -> Result<PerCpuArray<V>> {
    map.map(|(name, map)| PerCpuArray::new(name, map, cpus))
}
