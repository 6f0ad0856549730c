// SPDX-License-Identifier: Apache-2.0
//! What the programs tell user space as it happens.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Addr;

/// What happened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum EventKind {
    /// A flow was decided and let through; `reason` is a [`crate::Deliver`].
    Flow = 0,
    /// A packet was dropped; `reason` is a [`crate::DropReason`].
    Drop = 1,
}

/// The hook that saw it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Hook {
    /// [`crate::program::FROM_WORKLOAD`].
    FromWorkload = 0,
    /// [`crate::program::TO_WORKLOAD`].
    ToWorkload = 1,
    /// [`crate::program::FROM_HOST`].
    FromHost = 2,
    /// [`crate::program::FROM_UPLINK`].
    FromUplink = 3,
    /// [`crate::program::FROM_OVERLAY`].
    FromOverlay = 4,
}

crate::layout! {
    /// A record of the ring buffer.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Event {
        /// `CLOCK_MONOTONIC_COARSE` in nanoseconds: up to 10 ms behind.
        pub time_ns: u64,
        /// The device that the hook is on.
        pub ifindex: u32,
        /// Bytes of the packet.
        pub len: u32,
        /// Source as the packet said; unspecified where it was not parsed.
        pub src: Addr,
        /// Destination as the packet said.
        pub dst: Addr,
        /// Backend chosen, or unspecified.
        pub backend: Addr,
        /// Source port, network byte order.
        pub sport: u16,
        /// Destination port, network byte order.
        pub dport: u16,
        /// Backend's port, network byte order.
        pub backend_port: u16,
        /// IP protocol number.
        pub protocol: u8,
        /// [`EventKind`].
        pub kind: u8,
        /// By `kind`.
        pub reason: u8,
        /// [`Hook`].
        pub hook: u8,
        /// Reserved, zero.
        pub pad: u16,
        /// Number of the rule of the sender's policies that decided; see [`crate::rule`].
        pub egress_rule: u32,
        /// The same of the receiver's.
        pub ingress_rule: u32,
        /// Reserved, zero.
        pub pad2: u32,
    }
}

crate::layout! {
    /// Which flows that are let through are told of; drops are always. Nobody asks for any: then none costs an event.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct EventsWanted {
        /// All of them, up to and with this time in units of [`crate::TICK_SHIFT`]: whoever follows flows puts it off again and
        /// again, and looks at the ring without being woken.
        pub until: u32,
        /// One of so many beside that, by chance, which wakes the reader; 0: none.
        pub one_in: u32,
    }
}

crate::pod!(Event, EventsWanted);

const _: () = assert!(size_of::<Event>() == 88);
