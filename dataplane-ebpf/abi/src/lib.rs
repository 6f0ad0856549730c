// SPDX-License-Identifier: Apache-2.0
//! What Weft's eBPF programs and user space share: map keys and values, verdicts, drop reasons, events.
//!
//! No logic lives here. Every type is `repr(C)` without implicit padding (zerocopy's `IntoBytes` refuses it), so a key's
//! bytes are the same on both sides. Addresses and ports are in network byte order, everything else in the host's.
//!
//! Change a layout, and [`ABI_VERSION`] must change with it: it is part of the folder that the maps are pinned under, so
//! programs and maps of different layouts never meet.

#![no_std]
#![deny(unsafe_code)]

mod address;
pub mod bench;
mod config;
mod event;
mod flow;
mod policy;
mod port;
mod reason;
mod service;
mod share;
mod skb;

pub use address::{Addr, CidrKey};
pub use config::{
    ANSWER_RATE, Config, ConfigFlags, FLOW_RATE, FRAGMENT_RATE, GATEWAY_MAC, HAIRPIN_V4, HAIRPIN_V6, MARK_DELIVERED,
    OVERLAY_MAC,
};
pub use event::{Event, EventKind, Hook};
pub use flow::{
    Datagram, Deliver, FRAGMENT_GROUPS, FRAGMENT_SLOTS, Flow, FlowFlags, FlowKey4, FlowKey6, FlowState, FragmentKey,
    GenerationRef, OVERLAY, UPLINK,
};
pub use policy::{ANY_IDENTITY, PROTOCOL_ANY, PortRule, RULES_PER_CHUNK, RuleKey, Rules, WORLD_IDENTITY};
pub use port::{Local, LocalKind, Port, PortKind, Remote, RemoteKind};
pub use reason::{COUNTERS, Counter, DROP_REASONS, DropReason, Tally};
pub use service::{Backend, Service, ServiceKey, SlotKey};
pub use share::{ACCOUNTS, ALL_PORTS, FlowAccount, OPENED, RECEIVED, Share};
pub use skb::SkbLayout;

/// Version of every layout in this crate but those of [`mod@bench`] and [`SkbLayout`].
pub const ABI_VERSION: u32 = 4;

/// [`Flow::last_seen`] counts units of 2^30 ns (1.07 s) of `CLOCK_MONOTONIC`: a shift, no division, in the programs.
pub const TICK_SHIFT: u32 = 30;

/// Names of the maps in the object file; pinned under the same names.
pub mod map {
    /// `Array<u32, Config>`, one entry.
    pub const CONFIG: &str = "CONFIG";
    /// `HashMap<u32 ifindex, Port>`.
    pub const PORTS: &str = "PORTS";
    /// `HashMap<Addr, Local>`: addresses of this node, its workloads' and its own.
    pub const LOCALS: &str = "LOCALS";
    /// `LpmTrie<CidrKey, Remote>`: pod CIDRs of all nodes, Service CIDRs.
    pub const REMOTES: &str = "REMOTES";
    /// `HashMap<ServiceKey, Service>`.
    pub const SERVICES: &str = "SERVICES";
    /// `HashMap<SlotKey, Backend>`, not preallocated.
    pub const SLOTS: &str = "SLOTS";
    /// `HashMap<Addr, u32 identity>`, not preallocated: addresses that policies know singly.
    pub const IDENTITIES: &str = "IDENTITIES";
    /// `LpmTrie<CidrKey, u32 identity>`: every other address that policies know.
    pub const CIDRS: &str = "CIDRS";
    /// `HashMap<RuleKey, Rules>`, not preallocated.
    pub const RULES: &str = "RULES";
    /// `Array<u32, u32>`: generations; see [`crate::GenerationRef`].
    pub const GENERATIONS: &str = "GENERATIONS";
    /// `LruHashMap<FlowKey4, Flow>`.
    pub const FLOWS4: &str = "FLOWS4";
    /// `LruHashMap<FlowKey6, Flow>`.
    pub const FLOWS6: &str = "FLOWS6";
    /// `LruHashMap<FragmentKey, Datagram>`.
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// `HashMap<u32 ifindex, Share>`, not preallocated; the programs make entries, the agent removes those of ports that are gone.
    pub const SHARES: &str = "SHARES";
    /// `PerCpuArray<Tally>`, indexed by [`crate::DropReason`].
    pub const DROPS: &str = "DROPS";
    /// `PerCpuArray<u64>`, indexed by [`crate::Counter`].
    pub const COUNTS: &str = "COUNTS";
    /// `RingBuf` of [`crate::Event`].
    pub const EVENTS: &str = "EVENTS";

    /// Every map that is pinned.
    pub const ALL: [&str; 17] = [
        CONFIG,
        PORTS,
        LOCALS,
        REMOTES,
        SERVICES,
        SLOTS,
        IDENTITIES,
        CIDRS,
        RULES,
        GENERATIONS,
        FLOWS4,
        FLOWS6,
        FRAGMENTS,
        SHARES,
        DROPS,
        COUNTS,
        EVENTS,
    ];
}

/// Names of the programs in the object file.
pub mod program {
    /// Ingress of a workload's veth or tap, by `clsact`.
    pub const FROM_WORKLOAD: &str = "from_workload";
    /// Egress of a workload's veth or tap, by `clsact`.
    pub const TO_WORKLOAD: &str = "to_workload";
    /// tcx egress of the host's own port `weft0`.
    pub const FROM_HOST: &str = "from_host";
    /// tcx ingress of the uplink.
    pub const FROM_UPLINK: &str = "from_uplink";
    /// tcx ingress of the VXLAN device.
    pub const FROM_OVERLAY: &str = "from_overlay";

    /// All of them.
    pub const ALL: [&str; 5] = [FROM_WORKLOAD, TO_WORKLOAD, FROM_HOST, FROM_UPLINK, FROM_OVERLAY];
}

/// Generation slots: the first ones are fixed, the rest the agent gives to workloads and Services.
///
/// A change is published in this order: the maps; [`generation::EPOCH`] + 1; the generations of what changed, each + 1;
/// [`generation::EPOCH`] + 1 again. A program reads the epoch, then decides, then reads it again: a decision that ran
/// beside a change sees another epoch at its end and lets the next packet decide again. Without the first step it could
/// pair what an old map said with the new generation and stand for ever.
pub mod generation {
    /// While it stands still, no flow looks at its own generations.
    pub const EPOCH: u32 = 0;
    /// Bumped when a route to a remote pod CIDR changes.
    pub const ROUTES: u32 = 1;
    /// First slot for workloads and Services.
    pub const FIRST_FREE: u32 = 2;
    /// How many slots there are.
    pub const SLOTS: u32 = 65_536;
}

/// Implements `aya::Pod` for types whose every bit pattern user space may read.
macro_rules! pod {
    ($($type:ty),+ $(,)?) => {
        $(
            #[cfg(feature = "user")]
            #[expect(unsafe_code, reason = "aya's marker trait is unsafe")]
            // SAFETY: repr(C), Copy, 'static, and without padding (zerocopy::IntoBytes is derived).
            unsafe impl aya::Pod for $type {}
        )+
    };
}
pub(crate) use pod;
