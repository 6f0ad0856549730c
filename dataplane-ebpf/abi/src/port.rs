// SPDX-License-Identifier: Apache-2.0
//! Ports and where addresses are.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Addr;

/// What is on the other side of a port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum PortKind {
    /// A veth pair into a container's namespace: `bpf_redirect_peer` may enter it.
    Veth = 0,
    /// A tap that a VMM or `weft-vhost` reads.
    Tap = 1,
}

crate::layout! {
    /// A workload's port, keyed by the index of the host's end.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Port {
        /// The network that its addresses are of. Which they are is in `ADDRESSES`: a port may have any number of them.
        pub net: u32,
        /// Generation slot of the workload's policy and place.
        pub workload: u32,
        /// Decision list for what it receives, or [`crate::NO_LIST`].
        pub ingress_list: u64,
        /// Decision list for what it sends, or [`crate::NO_LIST`].
        pub egress_list: u64,
        /// The workload's Ethernet address.
        pub mac: [u8; 6],
        /// [`PortKind`].
        pub kind: u8,
        /// Reserved, zero.
        pub pad: u8,
    }
}

/// Whose an address of this node is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum OwnerKind {
    /// A workload's.
    Workload = 0,
    /// The host's own.
    Host = 1,
    /// The host's own, and NodePorts are served at it.
    NodePorts = 2,
}

crate::layout! {
    /// Who has an address of this node: the only one that may send with it, and who gets what is sent to it.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Owner {
        /// Index of the port; of `weft0` for the host's own addresses.
        pub ifindex: u32,
        /// [`OwnerKind`].
        pub kind: u32,
    }
}

impl Owner {
    /// The host.
    #[inline(always)]
    #[must_use]
    pub const fn host(ifindex: u32) -> Self {
        Self { ifindex, kind: OwnerKind::Host as u32 }
    }

    /// The host, at whose address NodePorts are served.
    #[inline(always)]
    #[must_use]
    pub const fn node_ports(ifindex: u32) -> Self {
        Self { ifindex, kind: OwnerKind::NodePorts as u32 }
    }

    /// The workload behind a port.
    #[inline(always)]
    #[must_use]
    pub const fn workload(ifindex: u32) -> Self {
        Self { ifindex, kind: OwnerKind::Workload as u32 }
    }

    /// Whether the host has the address.
    #[inline(always)]
    #[must_use]
    pub const fn is_host(&self) -> bool {
        self.kind == OwnerKind::Host as u32 || self.serves_node_ports()
    }

    /// Whether NodePorts are served at the address, which the host has.
    #[inline(always)]
    #[must_use]
    pub const fn serves_node_ports(&self) -> bool {
        self.kind == OwnerKind::NodePorts as u32
    }

    /// Whether a workload has the address.
    #[inline(always)]
    #[must_use]
    pub const fn is_workload(&self) -> bool {
        self.kind == OwnerKind::Workload as u32
    }
}

/// What a prefix is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum RemoteKind {
    /// This node's pod CIDR: an address in it that is not in `ADDRESSES` does not exist.
    OwnPods = 0,
    /// A remote node's pod CIDR, through the VXLAN device to `via`.
    Tunnel = 1,
    /// A remote node's pod CIDR, natively through the uplink to `via`, a neighbour there: its pods are heard from `mac` only.
    Native = 2,
    /// A Service CIDR: an address and port in it that is not in `FRONTENDS` leads nowhere.
    Services = 3,
    /// An address of another node itself, which encapsulates from `via` (VXLAN; else unspecified). It is reached as the outside is.
    Node = 4,
    /// A remote node's pod CIDR without a way to it.
    Unreachable = 5,
    /// A remote node's pod CIDR, natively through the uplink to the router `via`: what comes back may be of another one, so
    /// that its pods are heard from every Ethernet address.
    Routed = 6,
    /// Beyond the cluster; workloads reach it with their own addresses.
    Plain = 7,
}

/// Bits of [`Remote::flags`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RemoteFlags;

impl RemoteFlags {
    /// Workloads reach it with their own addresses ([`RemoteKind::Node`]; of another kind it follows from that).
    pub const PLAIN: u8 = 1;
}

crate::layout! {
    /// Where a prefix leads.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Remote {
        /// Underlay address of the node (tunnel) or next hop (native); its family is the underlay's.
        pub via: Addr,
        /// [`RemoteKind`].
        pub kind: u32,
        /// Ethernet address of `via` ([`RemoteKind::Native`]); all zero: not known, and nothing is heard of its pods.
        pub mac: [u8; 6],
        /// [`RemoteFlags`].
        pub flags: u8,
        /// Of a pod CIDR: bits of it that count, of 128; else 0. Tells what in it is the node's own.
        pub prefix_len: u8,
    }
}

impl Remote {
    /// Whether it is another node's pod CIDR, whichever way leads there.
    #[inline(always)]
    #[must_use]
    pub const fn is_pods(&self) -> bool {
        self.kind == RemoteKind::Tunnel as u32
            || self.kind == RemoteKind::Native as u32
            || self.kind == RemoteKind::Routed as u32
            || self.kind == RemoteKind::Unreachable as u32
    }

    /// A prefix of which no Ethernet address is known, nor its length.
    #[must_use]
    pub const fn new(via: Addr, kind: RemoteKind) -> Self {
        Self { via, kind: kind as u32, mac: [0; 6], flags: 0, prefix_len: 0 }
    }
}

crate::layout! {
    /// A device that leads out of the node.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Device {
        /// The node's own IPv4 address there (mapped) that is fit to be a source, or unspecified.
        pub v4: Addr,
        /// The same of IPv6.
        pub v6: Addr,
        /// IPv4 addresses that what leaves by it is masqueraded with.
        pub pool_v4: Pool,
        /// The same of IPv6.
        pub pool_v6: Pool,
    }
}

/// Addresses of a [`Pool`], at most.
pub const POOL_ADDRESSES: u32 = 64;

crate::layout! {
    /// Addresses of the node, of one family, that workloads are masqueraded with by configuration. They change by one write of their
    /// device. A reader in whose time the device changes twice may see another's, so that what it takes must be the host's; the generation
    /// that moves then has it decide again.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Pool {
        /// Not 0: these addresses and no other; where there is none, nothing is masqueraded. 0: the address that the host itself
        /// would take.
        pub is_set: u32,
        /// How many there are.
        pub count: u32,
        /// The addresses.
        pub addresses: [Addr; POOL_ADDRESSES as usize],
    }
}

impl Pool {
    /// The address that the host itself would take.
    pub const UNSET: Self = Self { is_set: 0, count: 0, addresses: [Addr::UNSPECIFIED; POOL_ADDRESSES as usize] };

    /// These addresses and no other: the first [`POOL_ADDRESSES`] of them.
    #[must_use]
    pub fn of(addresses: &[Addr]) -> Self {
        let mut pool = Self { is_set: 1, ..Self::UNSET };
        for (place, address) in pool.addresses.iter_mut().zip(addresses) {
            *place = *address;
            pool.count += 1;
        }
        pool
    }

    /// Those that it has.
    #[must_use]
    pub fn addresses(&self) -> &[Addr] {
        self.addresses.get(..self.count as usize).unwrap_or(&self.addresses)
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self::UNSET
    }
}

impl Device {
    /// Its pool of a family.
    #[inline(always)]
    #[must_use]
    pub const fn pool(&self, is_v6: bool) -> &Pool {
        if is_v6 { &self.pool_v6 } else { &self.pool_v4 }
    }

    /// The node's own address there of the family of `peer`.
    #[inline(always)]
    #[must_use]
    pub const fn address_for(&self, peer: &Addr) -> Addr {
        if peer.is_v4() { self.v4 } else { self.v6 }
    }
}

crate::pod!(Port, Owner, Remote, Pool, Device);

const _: () = assert!(size_of::<Port>() == 32);
const _: () = assert!(size_of::<Remote>() == 28);
const _: () = assert!(size_of::<Pool>() == 1032);
const _: () = assert!(size_of::<Device>() == 2096);
