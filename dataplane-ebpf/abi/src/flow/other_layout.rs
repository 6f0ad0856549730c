// SPDX-License-Identifier: Apache-2.0
//! The same keys and values in another order and another size: a second version of Weft, as far as maps can tell, for tests of
//! upgrades and the way back.

#![expect(missing_docs, reason = "fields are those of `layout.rs`")]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Way;
use crate::Addr;

/// Words of a line that have no meaning.
pub(super) const SPARE: usize = 9;

crate::layout! {
    /// Key of an IPv4 flow.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct FlowKey4 {
        pub protocol: u32,
        pub dport: u16,
        pub sport: u16,
        pub dst: u32,
        pub src: u32,
        pub ifindex: u32,
    }
}

crate::layout! {
    /// Key of an IPv6 flow.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct FlowKey6 {
        pub protocol: u32,
        pub dport: u16,
        pub sport: u16,
        pub dst: Addr,
        pub src: Addr,
        pub ifindex: u32,
    }
}

crate::layout! {
    /// What holds of one direction of a connection.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Connection {
        /// What the first layout does not have.
        pub more: [u64; 2],
        pub packets: u64,
        pub bytes: u64,
        pub rules: [u32; 2],
        pub src: Addr,
        pub dst: Addr,
        pub sport: u16,
        pub dport: u16,
        pub flags: u16,
        pub state: u8,
        pub pad: u8,
    }
}

crate::layout! {
    /// One direction of a connection.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Flow {
        pub way: Way,
        pub connection: Connection,
    }
}
