// SPDX-License-Identifier: Apache-2.0
//! Weft's packet logic: parse, judge, select, decide, plan the rewrite.
//!
//! Everything here is pure and generic over two small traits, [`Frame`] (a packet's bytes) and [`Tables`] (the maps), so
//! that the same code runs in the kernel and in tests on the host. Functions are `inline(always)`: the eBPF programs decide
//! where a call boundary is.

#![no_std]
#![deny(unsafe_code)]

pub mod address;
pub mod admit;
pub mod affinity;
pub mod checksum;
pub mod decide;
pub mod flow;
pub mod fragment;
pub mod frontend;
pub mod hash;
pub mod header;
pub mod locate;
pub mod masquerade;
pub mod mss;
pub mod offload;
pub mod plan;
pub mod policy;
pub mod ring;
pub mod sctp;
pub mod select;
pub mod set;
pub mod share;
pub mod socket;
pub mod walk;

mod frame;
mod tables;

pub use frame::Frame;
pub use tables::Tables;

/// IP protocol numbers that Weft knows (IANA).
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// DCCP (RFC 4340).
    pub const DCCP: u8 = 33;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite (RFC 3828).
    pub const UDP_LITE: u8 = 136;

    /// Whether its headers name ports, as rules of the kernel and of Services mean them.
    #[inline(always)]
    #[must_use]
    pub const fn names_ports(number: u8) -> bool {
        matches!(number, TCP | UDP | SCTP)
    }
}
