// SPDX-License-Identifier: Apache-2.0
//! What the programs know of their node.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Addr;

/// The gateway's Ethernet address on every port of every node, so that a VM that moves keeps its neighbour entry. The
/// host's ends of veths, the taps and the VXLAN devices have it as their own.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0x77, 0x65, 0x66, 0x74, 0x01];

/// Inner source address of encapsulated frames: the VXLAN driver drops frames that seem to come from its own address.
pub const OVERLAY_MAC: [u8; 6] = [0x02, 0x77, 0x65, 0x66, 0x74, 0x02];

/// Stands for the client where client and backend are the same workload (or both are the host): replies to it come back
/// through the dataplane. Link-local, never on the wire.
pub const HAIRPIN_V4: Addr = Addr::v4(u32::from_ne_bytes([169, 254, 119, 101]));

/// The same for IPv6 (unique local).
pub const HAIRPIN_V6: Addr = Addr::from_octets([0xfd, 0x77, 0x65, 0x66, 0x74, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// `skb->mark` of packets that the dataplane has decided; `to_workload` lets them through. Also set by the agent
/// (`SO_MARK`) on its DHCP and RA frames. It never leaves the node: crossing a network namespace clears it.
pub const MARK_DELIVERED: u32 = 0x7765_0001;

crate::layout! {
    /// Idle ticks ([`crate::TICK_SHIFT`]) after which a connection is over, without a packet of either direction.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Timeouts {
        /// TCP that was established (RFC 5382, REQ-5: 2 h 4 min at least).
        pub established: u32,
        /// TCP that both sides spoke, before and after that (RFC 9293: 2 MSL).
        pub transitory: u32,
        /// UDP, SCTP and everything else (RFC 4787, REQ-5: 2 min at least).
        pub datagram: u32,
        /// Whatever was never answered.
        pub unanswered: u32,
        /// A question and its answer: echo, and UDP to a well-known port (RFC 4787, REQ-5a). The least of them: nothing is over before.
        pub brief: u32,
    }
}

impl Timeouts {
    /// What connections have if nobody says otherwise. A day for established TCP: TCP keep-alive comes every two hours (RFC 1122,
    /// 4.2.3.6), and what loses its entry is reset in the middle of its silence.
    pub const DEFAULT: Self = Self {
        established: ticks(timeout_seconds::ESTABLISHED),
        transitory: ticks(timeout_seconds::TRANSITORY),
        datagram: ticks(timeout_seconds::DATAGRAM),
        unanswered: ticks(timeout_seconds::UNANSWERED),
        brief: ticks(timeout_seconds::BRIEF),
    };
}

/// [`Timeouts::DEFAULT`] in seconds.
pub mod timeout_seconds {
    /// Of [`super::Timeouts::established`].
    pub const ESTABLISHED: u32 = 24 * 60 * 60;
    /// Of [`super::Timeouts::transitory`].
    pub const TRANSITORY: u32 = 120;
    /// Of [`super::Timeouts::datagram`].
    pub const DATAGRAM: u32 = 180;
    /// Of [`super::Timeouts::unanswered`].
    pub const UNANSWERED: u32 = 30;
    /// Of [`super::Timeouts::brief`].
    pub const BRIEF: u32 = 10;
}

impl Default for Timeouts {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Ticks ([`crate::TICK_SHIFT`]) that are not less than so many seconds.
#[must_use]
pub const fn ticks(seconds: u32) -> u32 {
    (seconds as u64 * 1_000_000_000).div_ceil(1 << crate::TICK_SHIFT) as u32
}

crate::layout! {
    /// Facts of the node, one entry of an array map; the agent rewrites it when they change.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Config {
        /// Source of masqueraded IPv4 packets; unspecified: IPv4 to the outside is dropped, but for
        /// [`ConfigFlags::PLAIN_V4`].
        pub masquerade_v4: Addr,
        /// Source of masqueraded IPv6 packets; unspecified: IPv6 to the outside is dropped, but for
        /// [`ConfigFlags::PLAIN_V6`].
        pub masquerade_v6: Addr,
        /// The device that leads out of the node.
        pub uplink_ifindex: u32,
        /// The host's own port, `weft0`.
        pub host_ifindex: u32,
        /// The VXLAN device in external mode; 0 in native mode.
        pub overlay_ifindex: u32,
        /// VXLAN network identifier.
        pub vni: u32,
        /// First port of the masquerade range, host byte order. Best outside `net.ipv4.ip_local_port_range`: a port that the host
        /// has a socket on is skipped, but the host does not ask the flow table before it takes one.
        pub masquerade_first: u16,
        /// How many ports the range has.
        pub masquerade_count: u16,
        /// Ethernet address of `weft0`.
        pub host_mac: [u8; 6],
        /// UDP port of VXLAN, network byte order; 0 in native mode.
        pub vxlan_port: u16,
        /// The node's IPv4 address as the other nodes know it, or unspecified: the only one that hears encapsulated packets.
        pub node_v4: Addr,
        /// The same of IPv6.
        pub node_v6: Addr,
        /// [`ConfigFlags`].
        pub flags: u16,
        /// Bytes of an IP packet that every way out of the node takes; of a larger one the device is asked. 0: none is asked.
        pub mtu: u16,
        /// Connections of one port that the flow tables of IPv4 and IPv6 take, of those that it opened and of those that were
        /// opened towards it from other nodes and the outside; 0: as many as there is room for.
        pub flow_share: [u32; 2],
        /// Connections of all ports, IPv4 and IPv6, beyond which a port gets no more than `flow_floor`.
        pub flow_most: [u32; 2],
        /// Connections, IPv4 and IPv6, that every port gets however full the table is.
        pub flow_floor: [u32; 2],
        /// New flows a second of one port, on average; twice as many at once. 0: no limit.
        pub flow_rate: u32,
        /// What is answered for one port or handed to the agent (ARP, neighbour and router solicitations, DHCP, ICMP) a second, on
        /// average; twice as many at once. 0: no limit.
        pub answer_rate: u32,
        /// Datagrams in pieces a second of one port, on average; twice as many at once. 0: no limit.
        pub fragment_rate: u32,
        /// The largest TCP segment that is named to the other side where a connection leaves the node or comes in, unless its way takes
        /// less; `u16::MAX`: what its way takes. 0: whatever its ends name.
        pub mss_clamp: u16,
        /// Bytes of an IP packet that every way out of the node takes at most, because the MTU of workloads was configured; 0: it was
        /// not.
        pub workload_mtu: u16,
        /// When connections are over.
        pub timeouts: Timeouts,
    }
}

/// Bits of [`Config::flags`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ConfigFlags;

impl ConfigFlags {
    /// IPv4 to the outside keeps its addresses.
    pub const PLAIN_V4: u16 = 1;
    /// IPv6 to the outside keeps its addresses.
    pub const PLAIN_V6: u16 = 2;
}

/// New flows a second that one port may open by default: some times what a busy proxy opens.
pub const FLOW_RATE: u32 = 10_000;

/// Answers a second for one port by default.
pub const ANSWER_RATE: u32 = 100;

/// Datagrams in pieces a second of one port by default. An identifier of IPv4 comes again after 65,536 of them: at twice this
/// rate in three seconds, long after the pieces of the one before it have arrived.
pub const FRAGMENT_RATE: u32 = 10_000;

crate::pod!(Config, Timeouts);

const _: () = assert!(size_of::<Config>() == 156);
