// SPDX-License-Identifier: Apache-2.0
//! What a port has taken of what all ports share.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Accounts of connections that a port has: opened by it and opened towards it, IPv4 and IPv6.
pub const ACCOUNTS: usize = 4;

/// Index in [`Share::flows`] of connections that the port opened. An IPv6 one is the next.
pub const OPENED: usize = 0;

/// Index in [`Share::flows`] of connections opened towards the port from other nodes and the outside. An IPv6 one is the next.
pub const RECEIVED: usize = 2;

crate::layout! {
    /// Connections of one account.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct FlowAccount {
        /// How many there are: the programs add, the agent's sweep counts anew.
        pub count: u32,
        /// Number of the oldest one that the programs remember.
        pub oldest: u32,
        /// Number of the next one.
        pub next: u32,
    }
}

/// Stands for an ifindex in the key of a [`Share`]: all ports together.
pub const ALL_PORTS: u32 = 0;

/// Beside the number of a Service port ([`crate::Way::service`]) it stands for an ifindex in the key of a [`Share`]: what the Service
/// leads on from beyond the node to other nodes and the outside. No device has such an index, nor has a class.
pub const LED_ON: u32 = 1 << 30;

crate::layout! {
    /// A port's use of what all share, keyed by its ifindex; [`ALL_PORTS`]: of all ports together.
    ///
    /// Programs on several CPUs write to it without a lock: a race gives a token too much or counts one connection less, until the
    /// sweep counts anew.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Share {
        /// When all tokens for new flows are there again, `CLOCK_MONOTONIC` in nanoseconds.
        pub flows_full_at: u64,
        /// When all tokens for answers are there again.
        pub answers_full_at: u64,
        /// When all tokens for datagrams in pieces are there again.
        pub fragments_full_at: u64,
        /// Packets refused for want of tokens or room.
        pub refused: u64,
        /// See [`OPENED`] and [`RECEIVED`].
        pub flows: [FlowAccount; ACCOUNTS],
        /// Masqueraded connections that kept a source port outside of the part of the range that is the port's own.
        pub kept: u32,
        /// Under [`ALL_PORTS`]: ports that had connections when the sweep last counted.
        pub ports: u32,
    }
}

crate::pod!(Share);

const _: () = assert!(size_of::<Share>() == 88);
