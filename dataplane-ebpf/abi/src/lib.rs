// SPDX-License-Identifier: Apache-2.0
//! What Weft's eBPF programs and user space share: map keys and values, verdicts, drop reasons, events.
//!
//! No logic lives here. Every type is `repr(C)` without implicit padding (zerocopy's `IntoBytes` refuses it), so a key's
//! bytes are the same on both sides. Addresses and ports are in network byte order, everything else in the host's.
//!
//! A map is declared in one place, the table of `maps.rs`. Its layout is described at compile time (`layout.rs`), and what comes
//! of all of them, [`LAYOUT`], is in the name of the folder that the maps are pinned in, together with [`ABI_VERSION`]: programs and
//! maps of different layouts never meet, whether somebody thinks of it or not. Maps that are carried over ([`MapRole::Carried`]) have a
//! second pin whose name tells their own layout.

#![no_std]
#![deny(unsafe_code)]

mod address;
pub mod bench;
mod clock;
mod config;
mod edit;
mod event;
mod flow;
mod layout;
mod maps;
mod policy;
mod port;
mod reason;
mod record;
mod service;
mod share;
mod skb;
mod socket;

pub use address::{Addr, AddressKey, CLUSTER_NET, CidrKey, MAX_NET};
pub use clock::{Jiffies, TICK_SHIFT};
pub use config::{
    ANSWER_RATE, Config, ConfigFlags, FLOW_RATE, FRAGMENT_RATE, GATEWAY_MAC, HAIRPIN_V4, HAIRPIN_V6, MARK_DELIVERED,
    OVERLAY_MAC, Timeouts, ticks, timeout_seconds,
};
pub use edit::{EditKind, EditRequest, FlowEdit};
pub use event::{Event, EventKind, EventsWanted, Hook};
pub use flow::{
    Connection, ConnectionFlags, Datagram, Deliver, FRAGMENT_GROUPS, FRAGMENT_SLOTS, Flow, FlowKey4, FlowKey6,
    FlowSeeds, FlowState, FragmentKey, Line, Line4, Line6, OVERLAY, UPLINK, Way, WayFlags, class_in, class_of,
    net_of_class,
};
pub(crate) use layout::layout;
pub use layout::{Digest, Layout};
pub use maps::{CarriedPin, LAYOUT, MAPS, MapInfo, MapKind, MapRole, PinFolder, map};
pub use policy::{
    BlockKey, CLOSED_LIST, Class, INTERVALS_PER_RUN, Interval, KnownVerdict, List, ListFlags, MAX_LENGTHS,
    MAX_MORE_RUNS, MAX_RUNS, MAX_STEPS, NO_LIST, PROTOCOL_ANY, RuleKey, Run, TERMS_PER_CLASS, Tier, Verdict,
    VerdictKey, part, rule,
};
pub use port::{Device, Owner, OwnerKind, POOL_ADDRESSES, Pool, Port, PortKind, Remote, RemoteFlags, RemoteKind};
pub use reason::{COUNTERS, Counter, DROP_REASONS, DropReason, Tally};
pub use record::{ConnectionRecord, ExportRequest};
pub use service::{
    Affinity, AffinityKey, Algorithm, BackendFlags, BackendKey, Balancer, Clients, DEFAULT_WEIGHT, Frontend,
    FrontendFlags, FrontendKey, MAX_RING_LEVELS, Member, MemberKey, MemberSet, RING_FAN_OUT, RingNode,
};
pub use share::{ACCOUNTS, ALL_PORTS, FlowAccount, LED_ON, OPENED, RECEIVED, Share};
pub use skb::SkbLayout;
pub use socket::{SocketEnd, SocketKey};

/// Version of what the fields of keys and values mean, which [`LAYOUT`] does not see: change it when a number in a field means
/// something else than before.
pub const ABI_VERSION: u32 = 8;

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
    /// tcx ingress of other devices that lead out of the node, whose packets have no Ethernet header.
    pub const FROM_L3: &str = "from_l3";
    /// tcx ingress of the VXLAN device.
    pub const FROM_OVERLAY: &str = "from_overlay";

    /// On no device: writes entries of this version's flow table as records, see [`crate::ExportRequest`]. Pinned beside the maps under
    /// this name, for the version that comes next.
    pub const EXPORT_CONNECTIONS: &str = "export_connections";

    /// On no device: writes to this version's flow table for user space, see [`crate::EditRequest`]. Pinned beside the maps under this
    /// name.
    pub const EDIT_FLOWS: &str = "edit_flows";

    /// On the root of the control groups: sockets of the host that name a port of the host, see `weft_logic::socket`. The names are those
    /// of the hooks.
    pub const SOCKETS: [&str; 8] =
        ["connect4", "connect6", "sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6", "getpeername4", "getpeername6"];

    /// All that belong on devices.
    pub const ALL: [&str; 6] = [FROM_WORKLOAD, TO_WORKLOAD, FROM_HOST, FROM_UPLINK, FROM_L3, FROM_OVERLAY];
}

/// Generation slots: the first ones are fixed, the rest the agent gives to workloads. Service ports have `SERVICE_GENERATIONS` to
/// themselves, by their numbers.
///
/// A change is published in this order: the maps; [`generation::EPOCH`] + 1; the generations of what changed, each + 1;
/// [`generation::EPOCH`] + 1 again. What nobody decides anew for (somebody comes to a Service) is not published at all. A
/// program reads the epoch, then decides, then reads it again: a decision that ran beside a change sees another epoch at its
/// end and lets the next packet decide again. Without the first step it could pair what an old map said with the new generation
/// and stand for ever.
pub mod generation {
    /// While it stands still, no flow looks at its own generations.
    pub const EPOCH: u32 = 0;
    /// Bumped when anything beside workloads and Services changes that decisions are made of: prefixes of pods and Services, the
    /// node's facts, devices and addresses, the host's own routes.
    pub const ROUTES: u32 = 1;
    /// First slot for workloads.
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
