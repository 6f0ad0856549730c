// SPDX-License-Identifier: Apache-2.0
//! Keys and values of the flow tables.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Way;
use crate::Addr;

/// Words of a line that have no meaning.
pub(super) const SPARE: usize = 1;

crate::layout! {
    /// Key of an IPv4 flow, as the packet was before any rewrite.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct FlowKey4 {
        /// The port that sent it (its address is thereby checked, and its network), `weft0` for the host, or a class and its network: see
        /// [`super::class_in`].
        pub ifindex: u32,
        /// Source, network byte order.
        pub src: u32,
        /// Destination, network byte order.
        pub dst: u32,
        /// Source port, network byte order; the identifier of an ICMP echo request.
        pub sport: u16,
        /// Destination port, network byte order; the identifier of an ICMP echo reply.
        pub dport: u16,
        /// IP protocol number.
        pub protocol: u32,
    }
}

crate::layout! {
    /// Key of an IPv6 flow; fields as in [`FlowKey4`].
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct FlowKey6 {
        /// See [`FlowKey4::ifindex`].
        pub ifindex: u32,
        /// Source.
        pub src: Addr,
        /// Destination.
        pub dst: Addr,
        /// See [`FlowKey4::sport`].
        pub sport: u16,
        /// See [`FlowKey4::dport`].
        pub dport: u16,
        /// IP protocol number.
        pub protocol: u32,
    }
}

crate::layout! {
    /// What holds of one direction of a connection wherever its packets are handled: upgrades and other sizes of the table take it
    /// along.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Connection {
        /// New source address.
        pub src: Addr,
        /// New destination address.
        pub dst: Addr,
        /// New source port, network byte order.
        pub sport: u16,
        /// New destination port, network byte order.
        pub dport: u16,
        /// [`super::ConnectionFlags`].
        pub flags: u16,
        /// [`super::FlowState`].
        pub state: u8,
        /// Reserved, zero.
        pub pad: u8,
        /// Numbers of the rules that let it through, or refuse it: of egress and of ingress; see [`crate::rule`].
        pub rules: [u32; 2],
        /// Packets so far.
        pub packets: u64,
        /// Bytes so far, Ethernet header included.
        pub bytes: u64,
    }
}

crate::layout! {
    /// One direction of a connection: a value of the flow table.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Flow {
        /// What it is.
        pub connection: Connection,
        /// How it goes on from here.
        pub way: Way,
    }
}

const _: () = assert!(size_of::<FlowKey4>() == 20);
const _: () = assert!(size_of::<FlowKey6>() == 44);
const _: () = assert!(size_of::<Connection>() == 64 && size_of::<Flow>() == 128);
