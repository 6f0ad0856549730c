// SPDX-License-Identifier: Apache-2.0
//! Compiled policy.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Identity of an address that matches no peer of any policy.
pub const WORLD_IDENTITY: u32 = 0;

/// Stands in a [`RuleKey`] for every identity.
pub const ANY_IDENTITY: u32 = u32::MAX;

/// In a [`PortRule`]: every protocol, and every port of it.
pub const PROTOCOL_ANY: u8 = 0;

/// Rules in one map value.
pub const RULES_PER_CHUNK: usize = 10;

crate::layout! {
    /// What a policy set says of one identity; at most `MAX_CHUNKS` chunks, numbered from 0.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd)]
    pub struct RuleKey {
        /// Number of the policy set, from 1; one direction of one combination of selecting policies.
        pub policy: u32,
        /// Identity of the peer, or [`ANY_IDENTITY`].
        pub identity: u32,
        /// Number of the chunk.
        pub chunk: u32,
    }
}

impl RuleKey {
    /// Chunks of one (policy set, identity) at most: the programs look at no more.
    pub const MAX_CHUNKS: u32 = 16;
}

crate::layout! {
    /// One allowed protocol and port range; the destination port counts.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd)]
    pub struct PortRule {
        /// First port, host byte order.
        pub first: u16,
        /// Last port, host byte order.
        pub last: u16,
        /// IP protocol number, or [`PROTOCOL_ANY`]. For ICMP and others without ports the range must be 0..=65535 to match.
        pub protocol: u8,
        /// Reserved, zero.
        pub pad: u8,
    }
}

crate::layout! {
    /// A chunk of rules: the packet is allowed if one of them matches it.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Rules {
        /// How many of `rules` count.
        pub count: u16,
        /// Not 0: the next chunk goes on.
        pub more: u16,
        /// The rules.
        pub rules: [PortRule; RULES_PER_CHUNK],
    }
}

crate::pod!(RuleKey, PortRule, Rules);

const _: () = assert!(size_of::<PortRule>() == 6);
const _: () = assert!(size_of::<Rules>() == 64);
