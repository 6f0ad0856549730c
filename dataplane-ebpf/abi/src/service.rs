// SPDX-License-Identifier: Apache-2.0
//! Services and their backends.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Addr;

crate::layout! {
    /// A frontend: what a client addresses.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd)]
    pub struct ServiceKey {
        /// VIP.
        pub addr: Addr,
        /// Port, network byte order.
        pub port: u16,
        /// IP protocol number.
        pub protocol: u8,
        /// Reserved, zero.
        pub pad: u8,
    }
}

crate::layout! {
    /// A frontend's backends.
    ///
    /// The backends of one generation stand in `SLOTS` under (`id`, `generation`, 0..`count`). A change writes the slots of the
    /// next generation, then this value (one atomic update), then moves `GENERATIONS[id]` as [`crate::generation`] says, and only
    /// then removes the old slots: no reader ever meets a slot without a backend.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Service {
        /// Number of the Service port; also its generation slot.
        pub id: u32,
        /// Generation of its backends.
        pub generation: u32,
        /// How many backends; 0: there is none, and new flows are refused.
        pub count: u32,
        /// Reserved, zero.
        pub flags: u32,
    }
}

crate::layout! {
    /// Key of one backend of one generation.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd)]
    pub struct SlotKey {
        /// [`Service::id`].
        pub service: u32,
        /// [`Service::generation`].
        pub generation: u32,
        /// 0..[`Service::count`].
        pub index: u32,
    }
}

crate::layout! {
    /// One backend.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Backend {
        /// Address.
        pub addr: Addr,
        /// Port, network byte order.
        pub port: u16,
        /// Reserved, zero.
        pub flags: u16,
    }
}

crate::layout! {
    /// A backend by its name: who serves which Service, where. Flows of any protocol stay with one that is there, whatever else
    /// changes of its Service.
    ///
    /// It comes before a [`SlotKey`] leads to it, and goes after the last one of the Service's value, before the Service's
    /// generation moves: a flow that decides again then finds the backends that serve, and no other.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd)]
    pub struct BackendKey {
        /// [`Service::id`].
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

/// What is known of a backend by its name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum BackendState {
    /// It takes connections, or keeps those that it has.
    Serving = 1,
}

crate::pod!(ServiceKey, Service, SlotKey, Backend, BackendKey);

const _: () = assert!(size_of::<ServiceKey>() == 20);
const _: () = assert!(size_of::<Backend>() == 20);
