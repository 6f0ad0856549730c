// SPDX-License-Identifier: Apache-2.0
//! The flow table: an entry per direction of a connection, what it is and how it goes on from here.

#[cfg(not(feature = "other-layout"))]
mod layout;
#[cfg(feature = "other-layout")]
#[path = "flow/other_layout.rs"]
mod layout;
mod line;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use self::{
    layout::{Connection, Flow, FlowKey4, FlowKey6},
    line::{FlowSeeds, Line, Line4, Line6},
};
use crate::{Addr, MAX_NET};

/// The `ifindex` of flow keys for packets that come in by a device that leads out of the node, whichever it is: a class, with the
/// number of the network in its low bits (see [`class_in`]; here [`crate::CLUSTER_NET`]). No device has such an index, the kernel's are
/// positive 32-bit integers.
pub const UPLINK: u32 = 0x8000_0000;

/// The same for packets that another node encapsulated; see [`Way::remote`] for which node.
pub const OVERLAY: u32 = 0xc000_0000;

/// The class of packets of one network: [`UPLINK`] or [`OVERLAY`], and the network's number.
#[inline(always)]
#[must_use]
pub const fn class_in(class: u32, net: u32) -> u32 {
    class | net & MAX_NET
}

/// The class ([`UPLINK`], [`OVERLAY`]) that the `ifindex` of a flow key stands for; less than [`UPLINK`]: none, it is a port.
#[inline(always)]
#[must_use]
pub const fn class_of(ifindex: u32) -> u32 {
    ifindex & !MAX_NET
}

/// The network of the class that the `ifindex` of a flow key stands for; none: it is a port, whose network `PORTS` has.
#[inline(always)]
#[must_use]
pub const fn net_of_class(ifindex: u32) -> Option<u32> {
    if ifindex >= UPLINK { Some(ifindex & MAX_NET) } else { None }
}

impl FlowKey4 {
    /// The IPv4 form of a key in common form.
    #[inline(always)]
    #[must_use]
    pub const fn of(key: &FlowKey6) -> Self {
        let FlowKey6 { ifindex, src, dst, sport, dport, protocol } = *key;
        Self { ifindex, src: src.v4_word(), dst: dst.v4_word(), sport, dport, protocol }
    }

    /// The common form of this key; addresses mapped.
    #[inline(always)]
    #[must_use]
    pub const fn common(&self) -> FlowKey6 {
        let Self { ifindex, src, dst, sport, dport, protocol } = *self;
        FlowKey6 { ifindex, src: Addr::v4(src), dst: Addr::v4(dst), sport, dport, protocol }
    }
}

/// How a decided packet goes on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Deliver {
    /// Into the namespace behind a local veth (`bpf_redirect_peer`).
    Peer = 0,
    /// Out of a local port's host end (`bpf_redirect`): taps, and veths where the hook is an egress hook.
    Port = 1,
    /// Up the host's stack, in through `weft0`.
    Host = 2,
    /// Through the VXLAN device to the node `remote`.
    Tunnel = 3,
    /// Through the uplink to the neighbour `remote`.
    Neighbour = 4,
    /// Out of the node by the device that the host's routes say.
    Route = 5,
}

/// Bits of [`Connection::flags`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ConnectionFlags;

impl ConnectionFlags {
    /// Rewrite source address and port to `src`, `sport`.
    pub const REWRITE_SRC: u16 = 1;
    /// Rewrite destination address and port to `dst`, `dport`.
    pub const REWRITE_DST: u16 = 2;
    /// The entry answers another one: policy was judged on that direction.
    pub const REPLY: u16 = 4;
    /// The sender is the node's own host: policy does not apply (probes).
    pub const FROM_HOST: u16 = 8;
    /// The host forwards it for somebody else: it is booked on its receiver.
    pub const FORWARDED: u16 = 16;
    /// The opener's: its backend's connections are counted, and this one is among them until it closes (`LOADS`).
    pub const COUNTED: u16 = 32;
}

/// Bits of [`Way::flags`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WayFlags;

impl WayFlags {
    /// The sender's Ethernet address must be `sender_mac`.
    pub const CHECK_MAC: u8 = 1;
    /// Egress policy refuses the connection, as decided under [`Way::epoch`]: its packets are dropped until the epoch moves.
    pub const REFUSED_EGRESS: u8 = 2;
    /// The same of ingress policy.
    pub const REFUSED_INGRESS: u8 = 4;
    /// Its next hop is what the host's routes say: [`Way::remote`] is who encapsulated what goes on to the outside.
    pub const BY_ROUTES: u8 = 8;
    /// Refused either way.
    pub const REFUSED: u8 = Self::REFUSED_EGRESS | Self::REFUSED_INGRESS;
}

/// Where a connection stands, from the packets of one direction; decides the idle time after which an entry is void.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum FlowState {
    /// Not TCP, or TCP not seen to be established.
    New = 0,
    /// TCP with data or acknowledgements under way.
    Established = 1,
    /// TCP after FIN or RST.
    Closing = 2,
}

crate::layout! {
    /// How packets of one direction of a connection go on from this node, and what was decided on to tell so. One that is lost, or
    /// void, is decided on again, and the connection stays what it is.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Way {
        /// Value of the epoch when the generations below were last found unmoved.
        pub epoch: u32,
        /// When the last packet passed, in ticks of [`crate::TICK_SHIFT`].
        pub last_seen: u32,
        /// Where to: a port, a device that leads out of the node, or the VXLAN device.
        pub ifindex: u32,
        /// The network that both ends are in.
        pub net: u32,
        /// Ethernet destination to write.
        pub dst_mac: [u8; 6],
        /// Ethernet source that the sender must have.
        pub sender_mac: [u8; 6],
        /// [`Deliver`].
        pub deliver: u8,
        /// [`WayFlags`].
        pub flags: u8,
        /// Slot in `GENERATIONS` of the sending workload if it is here, else of the routes; 0: none.
        pub egress: u16,
        /// The same of the receiving workload.
        pub ingress: u16,
        /// Reserved, zero.
        pub pad: u16,
        /// Number of the Service port that was addressed, which is its slot in `SERVICE_GENERATIONS`; 0: none.
        pub service: u32,
        /// Sum of the generations in these slots when it was decided (modulo 2^32): none of them ever goes down, so that it stands
        /// as long as the sum is the same.
        pub generations: u32,
        /// Reserved, zero.
        pub pad2: u32,
        /// Node, or next hop, of [`Deliver::Tunnel`], [`Deliver::Neighbour`] and [`Deliver::Route`] (unspecified: the kernel looks
        /// for one). In an entry for [`OVERLAY`], which never goes out again: the node that must have encapsulated the packet.
        pub remote: Addr,
    }
}

crate::layout! {
    /// Place of a datagram in pieces: a port has [`FRAGMENT_SLOTS`] of them and no more, so that its datagrams make room for each
    /// other and never take that of another port's.
    #[repr(C)]
    #[derive(
        Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd,
    )]
    pub struct FragmentKey {
        /// Port it came from; see [`FlowKey4::ifindex`].
        pub ifindex: u32,
        /// By hash of the datagram.
        pub slot: u32,
    }
}

/// Datagrams in pieces of one port that are known at a time; of the wire, towards one of [`FRAGMENT_GROUPS`] groups of
/// destinations.
pub const FRAGMENT_SLOTS: u32 = 256;

/// Groups of destinations that datagrams from other nodes and the outside are sorted into.
pub const FRAGMENT_GROUPS: u32 = 16;

crate::layout! {
    /// A datagram in pieces (RFC 791, RFC 8200 4.5), and what its first fragment told.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Datagram {
        /// Source.
        pub src: Addr,
        /// Destination.
        pub dst: Addr,
        /// Identification, as in the packet.
        pub id: u32,
        /// IP protocol number.
        pub protocol: u32,
        /// Source port, network byte order.
        pub sport: u16,
        /// Destination port, network byte order.
        pub dport: u16,
        /// Identification that its pieces leave the node with where they are masqueraded; as in the packet.
        pub masqueraded_id: u32,
        /// When the first piece came, in ticks of [`crate::TICK_SHIFT`].
        pub since: u32,
        /// Not 0: a piece was larger than the way out takes, and went by the host's stack; all that follow do.
        pub by_stack: u32,
    }
}

crate::pod!(FlowKey4, FlowKey6, Connection, Way, Flow, FragmentKey, Datagram);

const _: () = assert!(size_of::<Way>() == 64);
const _: () = assert!(crate::generation::SLOTS <= 1 << 16, "slots are 16 bits wide in a `Way`");
const _: () = assert!(size_of::<FragmentKey>() == 8);
const _: () = assert!(size_of::<Datagram>() == 56);
