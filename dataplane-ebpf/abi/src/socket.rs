// SPDX-License-Identifier: Apache-2.0
//! Sockets of the host that were led elsewhere than they asked for.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Addr;

crate::layout! {
    /// Where a socket was led.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd)]
    pub struct SocketKey {
        /// The kernel's number of the socket (`SO_COOKIE`).
        pub cookie: u64,
        /// The address that it talks to.
        pub addr: Addr,
        /// Port there, network byte order.
        pub port: u16,
        /// Reserved, zero.
        pub pad: [u16; 3],
    }
}

impl SocketKey {
    /// What is at the other end of this socket.
    #[inline(always)]
    #[must_use]
    pub const fn new(cookie: u64, end: SocketEnd) -> Self {
        Self { cookie, addr: end.addr, port: end.port, pad: [0; 3] }
    }
}

crate::layout! {
    /// An end of a socket.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct SocketEnd {
        /// Address.
        pub addr: Addr,
        /// Port, network byte order.
        pub port: u16,
        /// Reserved, zero.
        pub pad: u16,
    }
}

impl SocketEnd {
    /// A port (network byte order) of an address.
    #[inline(always)]
    #[must_use]
    pub const fn new(addr: Addr, port: u16) -> Self {
        Self { addr, port, pad: 0 }
    }
}
