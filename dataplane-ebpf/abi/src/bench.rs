// SPDX-License-Identifier: Apache-2.0
//! What the programs of `cargo xtask bench datapath` share with user space. Both sides are always of one build and nothing is
//! pinned, so [`crate::ABI_VERSION`] does not count these layouts.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What `next_packet` writes into each packet; user space sets it before a run.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
pub struct Template {
    /// Index of the program to call.
    pub program: u32,
    /// Flows - 1; a power of two - 1.
    pub mask: u32,
    /// Number of the last flow; `next_packet` moves it on.
    pub flow: u32,
    /// Destination, network byte order.
    pub dst: u32,
    /// Destination port, network byte order.
    pub dport: u16,
    /// Bits of a flow's number that are added to the destination; those beyond 13 of them to the port.
    pub spread: u16,
    /// Ethernet destination, then source, as in the frame.
    pub macs: [u16; 6],
    /// IPv4 address of the node that has encapsulated each packet, host byte order; 0: it comes by no tunnel.
    pub tunnel_peer: u32,
    /// The network that it did that for.
    pub vni: u32,
}

/// Key of `lru_dnat`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
pub struct DnatKey {
    /// Source, network byte order.
    pub src: u32,
    /// Destination, network byte order.
    pub dst: u32,
    /// [`DnatKey::ports`].
    pub ports: u32,
    /// IP protocol number.
    pub protocol: u32,
}

impl DnatKey {
    /// Source and destination port, each in network byte order, as one word: one store in the program.
    #[inline(always)]
    #[must_use]
    pub const fn ports(sport: u16, dport: u16) -> u32 {
        sport as u32 | (dport as u32) << 16
    }
}

/// Value of `lru_dnat`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
pub struct DnatValue {
    /// New destination, network byte order.
    pub dst: u32,
    /// New destination port, network byte order.
    pub dport: u16,
    /// Reserved, zero.
    pub pad: u16,
    /// Device to redirect to.
    pub ifindex: u32,
    /// Reserved, zero.
    pub pad2: u32,
    /// Packets so far.
    pub packets: u64,
    /// Bytes so far, Ethernet header included.
    pub bytes: u64,
}

crate::pod!(Template, DnatKey, DnatValue);

const _: () = assert!(size_of::<Template>() == 40);
const _: () = assert!(size_of::<DnatKey>() == 16);
const _: () = assert!(size_of::<DnatValue>() == 32);
