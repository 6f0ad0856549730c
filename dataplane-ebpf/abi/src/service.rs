// SPDX-License-Identifier: Apache-2.0
//! Services: frontends, balancers, sets of members, backends, and which backend a client had.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Addr, CLUSTER_NET, SocketEnd};

crate::layout! {
    /// What a client addresses.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd)]
    pub struct FrontendKey {
        /// The network of its clients.
        pub net: u32,
        /// VIP; `0.0.0.0` or `::`: any address of the node that NodePorts are served at ([`crate::OwnerKind::NodePorts`]).
        pub addr: Addr,
        /// Port, network byte order.
        pub port: u16,
        /// IP protocol number.
        pub protocol: u8,
        /// Reserved, zero.
        pub pad: u8,
    }
}

impl FrontendKey {
    /// The entry of an address itself, see [`FrontendFlags::ADDRESS`].
    #[inline(always)]
    #[must_use]
    pub const fn of_address(net: u32, addr: Addr) -> Self {
        Self::new(net, addr, 0, 0)
    }

    /// A port (network byte order) of an address.
    #[inline(always)]
    #[must_use]
    pub const fn new(net: u32, addr: Addr, port: u16, protocol: u8) -> Self {
        Self { net, addr, port, protocol, pad: 0 }
    }

    /// A port (network byte order) of an address of the cluster's network.
    #[inline(always)]
    #[must_use]
    pub const fn of_cluster(addr: Addr, port: u16, protocol: u8) -> Self {
        Self::new(CLUSTER_NET, addr, port, protocol)
    }

    /// The NodePort (network byte order) of the family of `like`: at any address of the node that serves them.
    #[inline(always)]
    #[must_use]
    pub const fn of_node_port(like: &Addr, port: u16, protocol: u8) -> Self {
        Self::of_cluster(like.unspecified(), port, protocol)
    }

    /// Whether it is an address itself, and no port of it.
    #[inline(always)]
    #[must_use]
    pub const fn is_address(&self) -> bool {
        self.port == 0 && self.protocol == 0
    }
}

crate::layout! {
    /// Which Service port serves a frontend. Several frontends of one Service port and family share its balancer and members.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Frontend {
        /// Number of the Service port, from 1 on: key in `BALANCERS`, index in `SERVICE_GENERATIONS`. 0 with
        /// [`FrontendFlags::ADDRESS`].
        pub service: u32,
        /// [`FrontendFlags`].
        pub flags: u32,
    }
}

impl Frontend {
    /// Whether it is one beyond the cluster: of external clients.
    #[inline(always)]
    #[must_use]
    pub const fn is_external(&self) -> bool {
        self.flags & FrontendFlags::EXTERNAL != 0
    }

    /// Whether it is a port of the host, and no Service's.
    #[inline(always)]
    #[must_use]
    pub const fn is_host_port(&self) -> bool {
        self.flags & FrontendFlags::HOST_PORT != 0
    }

    /// Whether it serves only some clients.
    #[inline(always)]
    #[must_use]
    pub const fn is_limited(&self) -> bool {
        self.flags & FrontendFlags::LIMITED != 0
    }

    /// Whether it, of any address of the node ([`FrontendKey::of_node_port`]), comes before `exact`, at an address of the host alone and
    /// no ClusterIP's: either before `externalIPs`, a NodePort before a port of the host. A load balancer's address comes before both.
    #[inline(always)]
    #[must_use]
    pub const fn comes_before(&self, exact: &Self) -> bool {
        exact.flags & FrontendFlags::EXTERNAL_IP != 0 || exact.is_host_port() && !self.is_host_port()
    }

    /// Whether its Service port is numbered by it: no other frontend has the number before it does.
    #[inline(always)]
    #[must_use]
    pub const fn is_numbered(&self) -> bool {
        self.flags & (FrontendFlags::FURTHER | FrontendFlags::ADDRESS) == 0
    }

    /// Whether it, of any address of the node, is served at the one that `owner` has: a port of the host at all of the host's, a NodePort
    /// where those are.
    #[inline(always)]
    #[must_use]
    pub const fn is_served_at(&self, owner: &crate::Owner) -> bool {
        owner.serves_node_ports() || (self.is_host_port() && owner.is_host())
    }
}

/// Bits of [`Frontend::flags`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FrontendFlags;

impl FrontendFlags {
    /// Clients get the external set, those of this node the cluster's; else all get the internal one (ClusterIP).
    pub const EXTERNAL: u32 = 1;
    /// No frontend, but a ClusterIP itself: its ports that no Service port defines are refused aloud.
    pub const ADDRESS: u32 = 2;
    /// One beside the frontend that its Service port is numbered by.
    pub const FURTHER: u32 = 4;
    /// A port of the host that leads to a workload of this node (`hostPort` of a Pod), at the host's own address of the key: no
    /// Service's.
    pub const HOST_PORT: u32 = 8;
    /// New flows only of clients in `SOURCES` (`loadBalancerSourceRanges`).
    pub const LIMITED: u32 = 16;
    /// One of `externalIPs`: at an address of the node NodePorts and ports of the host come before it.
    pub const EXTERNAL_IP: u32 = 32;
    /// Sockets of the host that ask for it are led to its Service port's ClusterIP ([`Balancer::first`]).
    pub const FOR_HOST: u32 = 64;
}

crate::layout! {
    /// A run of members. It never changes: a change writes another one.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct MemberSet {
        /// Its number within the Service.
        pub set: u32,
        /// How many members; 0: there is none, and new flows are refused.
        pub count: u32,
        /// Levels of its ring in `RINGS` ([`RingNode`]), [`MAX_RING_LEVELS`] at most; 0: it has none, all members have equal parts.
        pub levels: u32,
    }
}

impl MemberSet {
    /// A set whose members have equal parts.
    #[must_use]
    pub const fn even(set: u32, count: u32) -> Self {
        Self { set, count, levels: 0 }
    }
}

/// How a new flow gets its backend: the values of [`Balancer::algorithm`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(u32)]
pub enum Algorithm {
    /// By a random number, in proportion to weights.
    #[default]
    Random = 0,
    /// By a hash of the client (with `sessionAffinity` its address, else its port, too), which falls on a ring of the members: the
    /// same on every node and after every restart.
    Consistent = 1,
    /// Of two by random numbers the one with fewer connections of this node for its weight ([`crate::map::LOADS`]).
    LeastLoaded = 2,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Random, Self::Consistent, Self::LeastLoaded];

    /// The one with this number.
    #[must_use]
    pub fn of(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|known| *known as u32 == number)
    }
}

/// Entries of a [`RingNode`].
pub const RING_FAN_OUT: usize = 32;
/// As many levels lead to 2^30 arcs.
pub const MAX_RING_LEVELS: u32 = 6;

crate::layout! {
    /// A node of a set's ring. The ring is all numbers of 32 bits, divided into arcs that members have: where members are chosen at
    /// random each has one as long as its weight, where they are chosen consistently as many as its weight, that end at hashes of its
    /// address. The nodes are a search tree over the ends of arcs; node 0 is the root, and leaves are at one depth
    /// ([`MemberSet::levels`]). Like its set, a ring never changes.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct RingNode {
        /// Last positions of the arcs, or of the nodes below, ascending; `u32::MAX` from the last one on.
        pub ends: [u32; RING_FAN_OUT],
        /// For each the member that has the arc ([`MemberKey::index`]), or the number of the node below.
        pub next: [u32; RING_FAN_OUT],
    }
}

impl RingNode {
    /// As how many members of sets a node counts: keys and values of so many have as many bytes as it has.
    pub const MEMBERS: u32 = (size_of::<Self>() / (size_of::<MemberKey>() + size_of::<Member>())) as u32;
}

crate::layout! {
    /// A Service port of one family: whom its clients get. Equal sets are one set.
    ///
    /// A change writes the new sets to `MEMBERS`, then this value (one atomic update), and removes the old ones at its end: no reader
    /// ever meets a set without its members. Where somebody leaves (a member, a frontend), `generation` is the next one, and
    /// `SERVICE_GENERATIONS` follows as [`crate::generation`] says: where the two differ a change was not published yet.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Balancer {
        /// Of clients of internal frontends, as internalTrafficPolicy says.
        pub internal: MemberSet,
        /// Of clients of external frontends, as externalTrafficPolicy says.
        pub external: MemberSet,
        /// All of the cluster: what clients of this node get where they address an external frontend.
        pub cluster: MemberSet,
        /// The generation that `SERVICE_GENERATIONS` has once what this value says is published.
        pub generation: u32,
        /// For how many ticks ([`crate::TICK_SHIFT`]) after its last new connection a client gets the same backend again
        /// (`sessionAffinity: ClientIP`); 0: every new connection chooses.
        pub affinity: u32,
        /// [`Algorithm`].
        pub algorithm: u32,
        /// The Service port and family in [`AffinityKey::service`].
        pub name: u64,
        /// What clients are hashed with where they are chosen for consistently: every node has the same, and clients do not know it.
        pub seed: u64,
        /// The frontend that the Service port is numbered by: a port of a ClusterIP. Unspecified: a port of the host.
        pub first: SocketEnd,
        /// Reserved, zero.
        pub pad: u32,
    }
}

/// Which clients of a Service port: each have a set of members.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Clients {
    /// Of internal frontends.
    Internal,
    /// From elsewhere, of external frontends.
    External,
    /// Of this node, of external frontends: its workloads and the host itself.
    OfNode,
}

impl Clients {
    /// Those of a frontend with these [`FrontendFlags`]; `of_node`: who is this node's workload, or the host itself.
    #[inline(always)]
    #[must_use]
    pub const fn of(flags: u32, of_node: bool) -> Self {
        match (flags & FrontendFlags::EXTERNAL != 0, of_node) {
            (false, _) => Self::Internal,
            (true, false) => Self::External,
            (true, true) => Self::OfNode,
        }
    }
}

impl Balancer {
    /// The set for these clients.
    #[inline(always)]
    #[must_use]
    pub const fn set_of(&self, clients: Clients) -> &MemberSet {
        match clients {
            Clients::Internal => &self.internal,
            Clients::External => &self.external,
            Clients::OfNode => &self.cluster,
        }
    }

    /// Its sets; equal ones have one number.
    #[must_use]
    pub const fn sets(&self) -> [MemberSet; 3] {
        [self.internal, self.external, self.cluster]
    }
}

crate::layout! {
    /// Key of one member of one set.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd)]
    pub struct MemberKey {
        /// [`Frontend::service`].
        pub service: u32,
        /// [`MemberSet::set`].
        pub set: u32,
        /// 0..[`MemberSet::count`].
        pub index: u32,
    }
}

crate::layout! {
    /// A member of a set: a backend.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd)]
    pub struct Member {
        /// Address.
        pub addr: Addr,
        /// Port, network byte order.
        pub port: u16,
        /// Its part of new flows in relation to others of its set, from 1 on.
        pub weight: u16,
    }
}

/// [`Member::weight`] of a backend of which nobody says anything else.
pub const DEFAULT_WEIGHT: u16 = 100;

impl Member {
    /// One of the usual weight; `port`: network byte order.
    #[must_use]
    pub const fn new(addr: Addr, port: u16) -> Self {
        Self { addr, port, weight: DEFAULT_WEIGHT }
    }
}

crate::layout! {
    /// A backend by its name: who serves which Service, where. Flows of any protocol stay with one that is there, whatever else
    /// changes of its Service.
    ///
    /// It comes before a [`MemberKey`] leads to it, and goes after the last set that has it, before the Service's generation moves: a
    /// flow that decides again then finds the backends that serve, and no other.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd)]
    pub struct BackendKey {
        /// [`Frontend::service`].
        pub service: u32,
        /// Address.
        pub addr: Addr,
        /// Port, network byte order.
        pub port: u16,
        /// Reserved, zero.
        pub pad: u16,
    }
}

impl BackendKey {
    /// The name of a Service's backend.
    #[inline(always)]
    #[must_use]
    pub const fn new(service: u32, addr: Addr, port: u16) -> Self {
        Self { service, addr, port, pad: 0 }
    }
}

/// Bits of what is known of a backend by its name. Those of the sets follow them in the pass that changes them: for a moment a set
/// and its bit may differ.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BackendFlags;

impl BackendFlags {
    /// It takes connections, or keeps those that it has.
    pub const SERVING: u32 = 1;
    /// It is one of [`Balancer::internal`].
    pub const INTERNAL: u32 = 2;
    /// It is one of [`Balancer::external`].
    pub const EXTERNAL: u32 = 4;
    /// It is one of [`Balancer::cluster`].
    pub const CLUSTER: u32 = 8;

    /// The bit of each set, in the order of [`Balancer::sets`].
    pub const OF_SETS: [u32; 3] = [Self::INTERNAL, Self::EXTERNAL, Self::CLUSTER];

    /// The bit of the set for these clients: that of [`Balancer::set_of`].
    #[inline(always)]
    #[must_use]
    pub const fn of_clients(clients: Clients) -> u32 {
        match clients {
            Clients::Internal => Self::INTERNAL,
            Clients::External => Self::EXTERNAL,
            Clients::OfNode => Self::CLUSTER,
        }
    }
}

crate::layout! {
    /// A client of a Service port that keeps its backend.
    #[repr(C)]
    #[derive(
        Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd,
    )]
    pub struct AffinityKey {
        /// [`Balancer::name`]: a hash of what the Service port is called, which is the same in maps of any layout, as numbers of
        /// Service ports are not.
        pub service: u64,
        /// The client's address, as it sent the packet.
        pub addr: Addr,
        /// Its network.
        pub net: u32,
        /// Reserved, zero.
        pub pad: u32,
    }
}

impl AffinityKey {
    /// The client `addr` of the network `net`.
    #[inline(always)]
    #[must_use]
    pub const fn new(service: u64, net: u32, addr: Addr) -> Self {
        Self { service, addr, net, pad: 0 }
    }
}

crate::layout! {
    /// The backend of a client's last new connection to a Service port. Who finds one compares `last`, and asks `BACKENDS` whether it
    /// may be chosen still.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Affinity {
        /// Address.
        pub addr: Addr,
        /// Port, network byte order.
        pub port: u16,
        /// Reserved, zero.
        pub pad: u16,
        /// When that connection began, in ticks ([`crate::TICK_SHIFT`]).
        pub last: u32,
    }
}

crate::pod!(FrontendKey, Frontend, MemberSet, Balancer, MemberKey, Member, RingNode, BackendKey, AffinityKey, Affinity);

const _: () = assert!(size_of::<FrontendKey>() == 24);
// What new flows read is one cache line.
const _: () = assert!(core::mem::offset_of!(Balancer, first) == 64);
const _: () = assert!(size_of::<Balancer>() == 88);
const _: () = assert!(size_of::<Member>() == 20);
const _: () = assert!(size_of::<RingNode>() == 256);
const _: () = assert!(size_of::<AffinityKey>() == 32);
const _: () = assert!(size_of::<Affinity>() == 24);
