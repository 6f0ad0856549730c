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

/// Facts of the node, one entry of an array map; the agent rewrites it when they change.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
pub struct Config {
    /// Source of masqueraded IPv4 packets; unspecified: IPv4 to the outside is dropped.
    pub masquerade_v4: Addr,
    /// Source of masqueraded IPv6 packets; unspecified: IPv6 to the outside is dropped.
    pub masquerade_v6: Addr,
    /// The device that leads out of the node.
    pub uplink_ifindex: u32,
    /// The host's own port, `weft0`.
    pub host_ifindex: u32,
    /// The VXLAN device in external mode; 0 in native mode.
    pub overlay_ifindex: u32,
    /// VXLAN network identifier.
    pub vni: u32,
    /// First port of the masquerade range, host byte order. It must lie outside `net.ipv4.ip_local_port_range`, so that the
    /// host's own connections never meet it.
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
}

crate::pod!(Config);

const _: () = assert!(size_of::<Config>() == 92);
