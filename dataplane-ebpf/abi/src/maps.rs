// SPDX-License-Identifier: Apache-2.0
//! The table of maps: the one place where a map is declared. Names and layout hashes (here), the programs' statics, and the
//! loader's handles, checks and sizes are made of it.

use crate::{ABI_VERSION, Digest, Layout};

/// Gives the table of maps to a macro, `name! { line line ... }`. A line is
///
/// ```text
/// #[doc = ...] NAME accessor: Kind<Key, Value>, role, size;
/// ```
///
/// where `Kind` is a [`MapKind`], `role` is `derived`, `carried`, `flows4`, `flows6` or `passing` (see [`MapRole`]), and `size` is `fixed(entries)`, or of
/// the loader's sizes `sized(field)`, `per(field, factor, more)`, `part(field, divisor)`, `sets(field)` or `lines(field)`, of a flow table.
#[macro_export]
macro_rules! for_each_map {
    ($name:ident) => {
        $name! {
            /// The node's facts, at index 0.
            CONFIG config: Array<u32, $crate::Config>, derived, fixed(1);
            /// Ports by interface index.
            PORTS ports: HashMap<u32, $crate::Port>, derived, sized(ports);
            /// Devices of the node that lead out of it, by index: what comes in by them meets `from_uplink` or `from_l3`, so
            /// that answers may come by any of them.
            DEVICES devices: OnDemandHashMap<u32, $crate::Device>, derived, fixed(1024);
            /// Addresses of this node, its workloads' and its own: any number for each of them.
            ADDRESSES addresses: HashMap<$crate::AddressKey, $crate::Owner>, derived, sized(addresses);
            /// Prefixes of pods of all nodes and of Services.
            REMOTES remotes: LpmTrie<$crate::CidrKey, $crate::Remote>, derived, sized(remotes);
            /// Service frontends, and ClusterIPs themselves: one for each frontend at most.
            FRONTENDS frontends: OnDemandHashMap<$crate::FrontendKey, $crate::Frontend>, derived, per(services, 2, 0);
            /// Service ports of one family, by their numbers.
            BALANCERS balancers: OnDemandHashMap<u32, $crate::Balancer>, derived, sized(services);
            /// Members of sets.
            MEMBERS members: OnDemandHashMap<$crate::MemberKey, $crate::Member>, derived, sized(members);
            /// Rings of sets whose members have unequal parts, or are chosen consistently, by number of the node.
            RINGS rings: OnDemandHashMap<$crate::MemberKey, $crate::RingNode>, derived, part(members, $crate::RingNode::MEMBERS);
            /// Connections of this node to backends of Services with `weft_abi::Algorithm::LeastLoaded`: the programs add new ones, the
            /// agent's sweep counts anew. Who has no entry has none, or found no room.
            LOADS loads: OnDemandHashMap<$crate::BackendKey, u32>, derived, fixed(16_384);
            /// Backends by their names; the value is `weft_abi::BackendFlags`.
            BACKENDS backends: OnDemandHashMap<$crate::BackendKey, u32>, derived, sized(members);
            /// Prefixes of clients whom Service ports serve at frontends with `weft_abi::FrontendFlags::LIMITED`: in the place of a
            /// network their keys have the number of the Service port. The value is 1.
            SOURCES sources: LpmTrie<$crate::CidrKey, u32>, derived, sized(members);
            /// Which backend clients of Services with `sessionAffinity` had last. Who is evicted chooses anew, and nothing worse.
            AFFINITIES affinities: LruHashMap<$crate::AffinityKey, $crate::Affinity>, carried, sized(affinities);
            /// Classes of pods' addresses.
            PEERS peers: OnDemandHashMap<$crate::AddressKey, u64>, derived, sized(peers);
            /// What the policies of this node tell of each class.
            CLASSES classes: OnDemandHashMap<u64, $crate::Class>, derived, sized(classes);
            /// Heads of decision lists by their numbers: two for each port, and twice as many while all of them change.
            LISTS lists: OnDemandHashMap<u64, $crate::List>, derived, per(ports, 4, 0);
            /// Rules of decision lists.
            RULES rules: OnDemandHashMap<$crate::RuleKey, $crate::Run>, derived, sized(rules);
            /// Blocks of addresses of decision lists, and the parts that hold there.
            BLOCKS blocks: OnDemandHashMap<$crate::BlockKey, u64>, derived, sized(blocks);
            /// Verdicts that the programs found before.
            VERDICTS verdicts: LruHashMap<$crate::VerdictKey, $crate::KnownVerdict>, passing, sized(verdicts);
            /// Generations; see `weft_abi::generation`.
            GENERATIONS generations: Array<u32, u32>, derived, fixed($crate::generation::SLOTS);
            /// Generations of Service ports by their numbers, which begin at 1; see `weft_abi::generation`.
            SERVICE_GENERATIONS service_generations: Array<u32, u32>, derived, per(services, 1, 1);
            /// By slot of a workload or the routes: a digest of what its generation stands for, 0 while that changes. The programs do
            /// not read it; it is here because it lives as long as the generations do.
            DIGESTS digests: OnDemandHashMap<u32, u64>, derived, per(ports, 2, 2);
            /// At index 0 the secret key of the hash that numbers of lists, terms, classes and rules are; zero: none yet. The programs
            /// do not read it; it lives as long as the maps that these numbers stand in.
            NUMBERING numbering: Array<u32, [u64; 2]>, derived, fixed(1);
            /// Lines of the flow table, IPv4; see `weft_logic::set`. A third more than there may be entries.
            FLOWS4 lines4: MappedArray<u32, $crate::Line4>, flows4, lines(flows4);
            /// Lines of the flow table, IPv6.
            FLOWS6 lines6: MappedArray<u32, $crate::Line6>, flows6, lines(flows6);
            /// Directories of the sets of IPv4 lines.
            DIRECTORY4 directory4: MappedArray<u32, u64>, flows4, sets(flows4);
            /// Directories of the sets of IPv6 lines.
            DIRECTORY6 directory6: MappedArray<u32, u64>, flows6, sets(flows6);
            /// IPv4 entries whose set was full; room for one of each set. They are not moved to a line when one is free, so that where sets
            /// are three quarters full one of eight entries is here (Erlang B).
            SPILLED4 spilled4: HashMap<$crate::FlowKey4, $crate::Line4>, flows4, sets(flows4);
            /// IPv6 entries whose set was full.
            SPILLED6 spilled6: HashMap<$crate::FlowKey6, $crate::Line6>, flows6, sets(flows6);
            /// What IPv4 flows are hashed with, at index 0.
            SEEDS4 seeds4: Array<u32, $crate::FlowSeeds>, flows4, fixed(1);
            /// What IPv6 flows are hashed with, at index 0.
            SEEDS6 seeds6: Array<u32, $crate::FlowSeeds>, flows6, fixed(1);
            /// Fragmented datagrams.
            FRAGMENTS fragments: LruHashMap<$crate::FragmentKey, $crate::Datagram>, carried, sized(fragments);
            /// What each port has taken of what all share, by interface index: the programs make entries, the agent removes those of
            /// ports that are gone. Every port has one; the host and devices of the wire do, ports that are just gone, and Services that
            /// lead connections on from beyond the node (`weft_abi::LED_ON`).
            SHARES shares: OnDemandHashMap<u32, $crate::Share>, carried, per(ports, 2, 16_386);
            /// What sockets of the host asked for that were led elsewhere (`weft_logic::socket`): they are told so when they ask who is at the
            /// other end. Who is evicted is told where it was led.
            SOCKETS sockets: LruHashMap<$crate::SocketKey, $crate::SocketEnd>, carried, fixed(16_384);
            /// What was dropped, by `weft_abi::DropReason`.
            DROPS drops: PerCpuArray<u32, $crate::Tally>, carried, fixed($crate::DROP_REASONS.len() as u32);
            /// What was counted, by `weft_abi::Counter`.
            COUNTS counts: PerCpuArray<u32, u64>, carried, fixed($crate::COUNTERS.len() as u32);
            /// At index 0 until when connections of another version are being taken over, in nanoseconds of `CLOCK_MONOTONIC`: packets that
            /// no entry is for may be of one that has not come yet. In the past: none are.
            TAKEOVER takeover: Array<u32, u64>, derived, fixed(1);
            /// Which flows are told of, at index 0.
            EVENTS_WANTED events_wanted: Array<u32, $crate::EventsWanted>, derived, fixed(1);
            /// Flow and drop events; its size is in bytes.
            EVENTS events: RingBuf<(), $crate::Event>, passing, sized(events_bytes);
        }
    };
}

/// Changes with what the maps of a flow table mean beyond their layouts: the bits of its words and of flags, its hash, where a key
/// belongs (`weft_logic::set`, `weft_logic::hash`).
const FLOW_FORMAT: u64 = 2;

/// What kind of map the kernel makes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MapKind {
    /// All indices have a value.
    Array,
    /// The same, on pages of its own (`BPF_F_MMAPABLE`): values of 64 bytes begin where cache lines do.
    MappedArray,
    /// A hash that takes its memory at once.
    HashMap,
    /// A hash that takes memory as entries come.
    OnDemandHashMap,
    /// A hash that forgets what was not used for long.
    LruHashMap,
    /// Longest prefix match.
    LpmTrie,
    /// An array with a value per CPU.
    PerCpuArray,
    /// Records from programs to user space.
    RingBuf,
}

impl MapKind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Array,
        Self::MappedArray,
        Self::HashMap,
        Self::OnDemandHashMap,
        Self::LruHashMap,
        Self::LpmTrie,
        Self::PerCpuArray,
        Self::RingBuf,
    ];

    /// `enum bpf_map_type` of `linux/bpf.h`.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::HashMap | Self::OnDemandHashMap => 1,
            Self::Array | Self::MappedArray => 2,
            Self::PerCpuArray => 6,
            Self::LruHashMap => 9,
            Self::LpmTrie => 11,
            Self::RingBuf => 27,
        }
    }
}

/// What becomes of what a map holds when programs and maps of other layouts take over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MapRole {
    /// The agent fills a new one from what it knows.
    Derived,
    /// Old and new programs share the map where its own layout is the same in both; else what it held is lost. Its values mean the
    /// same in all layouts of one [`ABI_VERSION`]: what they name of other maps are generations, which never go down, and devices.
    Carried,
    /// A part of the IPv4 flow table: as [`MapRole::Carried`], but all of them or none, and in the size that is wanted. Else connections
    /// are copied ([`crate::ConnectionRecord`]).
    Flows4,
    /// The same of IPv6.
    Flows6,
    /// Lost, and safe to lose: a cache, or a stream of events.
    Passing,
}

impl MapRole {
    /// Whether versions with the same layouts share the map.
    #[must_use]
    pub const fn is_shared(self) -> bool {
        matches!(self, Self::Carried) || self.is_flows()
    }

    /// Whether the map is a part of a flow table.
    #[must_use]
    pub const fn is_flows(self) -> bool {
        matches!(self, Self::Flows4 | Self::Flows6)
    }
}

/// A line of the table.
#[derive(Clone, Copy, Debug)]
pub struct MapInfo {
    /// Name in the object, and of the pin.
    pub name: &'static str,
    /// Kind.
    pub kind: MapKind,
    /// Derived or state.
    pub role: MapRole,
    /// Bytes of a key, as the kernel has it.
    pub key_size: u32,
    /// Bytes of a value, as the kernel has it.
    pub value_size: u32,
    /// Of name, kind and the layouts of key and value.
    pub hash: u64,
}

impl MapInfo {
    const fn of<K: Layout, V: Layout>(name: &'static str, kind: MapKind, role: MapRole) -> Self {
        let hash = Digest::EMPTY.text(name).number(kind.number() as u64).number(K::HASH).number(V::HASH).finish();
        // A ring has records, and for the kernel neither keys nor values. The sizes are small: assertions keep them so.
        let (key_size, value_size) = match kind {
            MapKind::RingBuf => (0, 0),
            _ => (size_of::<K>() as u32, size_of::<V>() as u32),
        };
        let hash = if role.is_flows() { Digest::EMPTY.number(hash).number(FLOW_FORMAT).finish() } else { hash };
        Self { name, kind, role, key_size, value_size, hash }
    }

    /// Those that versions with the same layouts share.
    pub fn carried() -> impl Iterator<Item = &'static Self> {
        MAPS.iter().filter(|map| map.role.is_shared())
    }
}

macro_rules! declare {
    ($(
        $(#[$doc:meta])*
        $name:ident $accessor:ident: $kind:ident<$key:ty, $value:ty>, $role:ident, $size:ident($($sizing:tt)*);
    )+) => {
        /// Names of the maps in the object file; pinned under the same names.
        pub mod map {
            $($(#[$doc])* pub const $name: &str = stringify!($name);)+

            /// How many there are.
            pub const COUNT: usize = [$($name),+].len();

            /// Every map that is pinned.
            pub const ALL: [&str; COUNT] = [$($name),+];
        }

        impl MapInfo {
            $(
                $(#[$doc])*
                pub const $name: Self = Self::of::<$key, $value>(map::$name, MapKind::$kind, role!($role));
            )+
        }

        /// Every line of the table, in its order.
        pub const MAPS: [MapInfo; map::COUNT] = [$(MapInfo::$name),+];
    };
}

macro_rules! role {
    (derived) => {
        MapRole::Derived
    };
    (carried) => {
        MapRole::Carried
    };
    (flows4) => {
        MapRole::Flows4
    };
    (flows6) => {
        MapRole::Flows6
    };
    (passing) => {
        MapRole::Passing
    };
}

for_each_map!(declare);

/// Of all maps: programs and maps of different ones never meet, since it is in the name of the folder that maps are pinned in.
pub const LAYOUT: u64 = {
    let mut digest = Digest::EMPTY;
    let mut index = 0;
    while index < MAPS.len() {
        digest = digest.number(MAPS[index].hash);
        index += 1;
    }
    digest.finish()
};

/// Name of the folder that this version's maps are pinned in: `v<ABI_VERSION>-<LAYOUT>`.
#[derive(Clone, Copy, Debug)]
pub struct PinFolder;

impl core::fmt::Display for PinFolder {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "v{ABI_VERSION}-{LAYOUT:016x}")
    }
}

/// Name of the pin by which builds of other layouts find a [`MapRole::Carried`] map: `<NAME>-v<ABI_VERSION>-<hash>`.
#[derive(Clone, Copy, Debug)]
pub struct CarriedPin<'m>(pub &'m MapInfo);

impl core::fmt::Display for CarriedPin<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self(MapInfo { name, hash, .. }) = self;
        write!(f, "{name}-v{ABI_VERSION}-{hash:016x}")
    }
}

#[cfg(test)]
mod tests {
    use super::{MAPS, map};

    #[test]
    fn no_two_maps_are_the_same() {
        for (number, map) in MAPS.iter().enumerate() {
            assert_eq!(map.name, map::ALL[number]);
            assert!(!MAPS[..number].iter().any(|other| other.name == map.name || other.hash == map.hash), "{map:?}");
        }
    }
}
