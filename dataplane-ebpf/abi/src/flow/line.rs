// SPDX-License-Identifier: Apache-2.0
//! Lines of the flow table: an entry as it lies in memory, what every packet reads first.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{ConnectionFlags, Flow, FlowKey4, FlowKey6, layout::SPARE};
use crate::Addr;

crate::layout! {
    /// One direction of an IPv4 connection: two cache lines, of which an established packet reads the first, and counts in the second.
    #[repr(C, align(8))]
    #[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Line4 {
        /// Epoch, sequence, state and protocol; see `weft_logic::set`.
        pub control: u64,
        /// Its packets, before any rewrite.
        pub key: FlowKey4,
        /// [`super::Way::last_seen`].
        pub last_seen: u32,
        /// [`super::Way::ifindex`].
        pub ifindex: u32,
        /// [`super::Way::dst_mac`].
        pub dst_mac: [u8; 6],
        /// [`super::Way::sender_mac`].
        pub sender_mac: [u8; 6],
        /// [`super::Way::deliver`].
        pub deliver: u8,
        /// [`super::Way::flags`].
        pub way_flags: u8,
        /// [`super::Connection::flags`].
        pub flags: u16,
        /// [`super::Connection::src`], network byte order.
        pub src: u32,
        /// [`super::Connection::dst`], network byte order.
        pub dst: u32,
        /// [`super::Connection::sport`].
        pub sport: u16,
        /// [`super::Connection::dport`].
        pub dport: u16,
        /// [`super::Connection::packets`].
        pub packets: u64,
        /// [`super::Connection::bytes`].
        pub bytes: u64,
        /// [`super::Way::egress`].
        pub egress: u16,
        /// [`super::Way::ingress`].
        pub ingress: u16,
        /// [`super::Way::service`].
        pub service: u32,
        /// [`super::Way::generations`].
        pub generations: u32,
        /// [`super::Way::net`].
        pub net: u32,
        /// [`super::Way::remote`].
        pub remote: Addr,
        /// [`super::Connection::rules`].
        pub rules: [u32; 2],
        /// Reserved, zero.
        pub spare: [u64; SPARE],
    }
}

crate::layout! {
    /// One direction of an IPv6 connection: three cache lines. Fields as in [`Line4`].
    #[repr(C, align(8))]
    #[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Line6 {
        /// See [`Line4::control`].
        pub control: u64,
        /// See [`Line4::key`].
        pub key: FlowKey6,
        /// See [`Line4::last_seen`].
        pub last_seen: u32,
        /// See [`Line4::ifindex`].
        pub ifindex: u32,
        /// See [`Line4::deliver`].
        pub deliver: u8,
        /// See [`Line4::way_flags`].
        pub way_flags: u8,
        /// See [`Line4::flags`].
        pub flags: u16,
        /// See [`Line4::dst_mac`].
        pub dst_mac: [u8; 6],
        /// See [`Line4::sender_mac`].
        pub sender_mac: [u8; 6],
        /// See [`Line4::src`].
        pub src: Addr,
        /// See [`Line4::dst`].
        pub dst: Addr,
        /// See [`Line4::sport`].
        pub sport: u16,
        /// See [`Line4::dport`].
        pub dport: u16,
        /// See [`Line4::net`].
        pub net: u32,
        /// See [`Line4::generations`].
        pub generations: u32,
        /// See [`Line4::packets`].
        pub packets: u64,
        /// See [`Line4::bytes`].
        pub bytes: u64,
        /// See [`Line4::service`].
        pub service: u32,
        /// See [`Line4::egress`].
        pub egress: u16,
        /// See [`Line4::ingress`].
        pub ingress: u16,
        /// See [`Line4::rules`].
        pub rules: [u32; 2],
        /// See [`Line4::remote`].
        pub remote: Addr,
        /// Reserved, zero.
        pub reserved: [u32; 4],
        /// Reserved, zero.
        pub spare: [u64; SPARE],
    }
}

crate::layout! {
    /// What the hash of a flow table's keys is made with, and how large the table is. User space writes it before a program runs, and
    /// never again: another seed is another table.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct FlowSeeds {
        /// Secret words that are added to those of a key.
        pub words: [u32; 12],
        /// A secret odd number that the sum is multiplied with. 0: nothing has been written yet.
        pub finish: u64,
        /// How many sets there are.
        pub sets: u32,
        /// Reserved, zero.
        pub pad: u32,
    }
}

crate::pod!(Line4, Line6, FlowSeeds);

const _: () = assert!(size_of::<Line4>() == 120 + 8 * SPARE);
const _: () = assert!(size_of::<Line6>() == 184 + 8 * SPARE);
const _: () = assert!(core::mem::offset_of!(Line4, packets) == 64 && core::mem::offset_of!(Line6, sender_mac) < 128);

/// A line, whichever family its connection is of.
pub trait Line: Copy {
    /// How it names packets.
    type Key: Copy;

    /// Its key.
    fn key(&self) -> &Self::Key;
    /// Its control word.
    fn control(&self) -> u64;
    /// Copies its entry, without epoch and state, which the control word has.
    fn read(&self, flow: &mut Flow);
    /// Writes an entry, without the control word.
    fn write(&mut self, key: &Self::Key, flow: &Flow);
    /// Whether it is of answers, of which there has been none.
    fn is_unanswered(&self) -> bool;
    /// Counts a packet of `len` bytes at `now`, in ticks.
    fn count(&mut self, len: u32, now: u32);
}

macro_rules! line {
    ($line:ident, $key:ident, $narrow:expr, $widen:expr) => {
        impl Line for $line {
            type Key = $key;

            #[inline(always)]
            fn key(&self) -> &$key {
                &self.key
            }

            #[inline(always)]
            fn control(&self) -> u64 {
                self.control
            }

            #[inline(always)]
            fn read(&self, Flow { connection, way }: &mut Flow) {
                connection.src = $widen(self.src);
                connection.dst = $widen(self.dst);
                (connection.sport, connection.dport) = (self.sport, self.dport);
                connection.flags = self.flags;
                connection.rules = self.rules;
                (connection.packets, connection.bytes) = (self.packets, self.bytes);
                (way.last_seen, way.ifindex, way.net) = (self.last_seen, self.ifindex, self.net);
                (way.dst_mac, way.sender_mac) = (self.dst_mac, self.sender_mac);
                (way.deliver, way.flags) = (self.deliver, self.way_flags);
                (way.egress, way.ingress, way.service) = (self.egress, self.ingress, self.service);
                way.generations = self.generations;
                way.remote = self.remote;
            }

            #[inline(always)]
            fn write(&mut self, key: &$key, Flow { connection, way }: &Flow) {
                self.key = *key;
                self.src = $narrow(connection.src);
                self.dst = $narrow(connection.dst);
                (self.sport, self.dport) = (connection.sport, connection.dport);
                self.flags = connection.flags;
                self.rules = connection.rules;
                (self.packets, self.bytes) = (connection.packets, connection.bytes);
                (self.last_seen, self.ifindex, self.net) = (way.last_seen, way.ifindex, way.net);
                (self.dst_mac, self.sender_mac) = (way.dst_mac, way.sender_mac);
                (self.deliver, self.way_flags) = (way.deliver, way.flags);
                (self.egress, self.ingress, self.service) = (way.egress, way.ingress, way.service);
                self.generations = way.generations;
                self.remote = way.remote;
            }

            #[inline(always)]
            fn is_unanswered(&self) -> bool {
                self.flags & ConnectionFlags::REPLY != 0 && self.packets == 0
            }

            #[inline(always)]
            fn count(&mut self, len: u32, now: u32) {
                if self.last_seen != now {
                    self.last_seen = now;
                }
                // Other CPUs may count, too: two packets at once lose a count at most.
                self.packets += 1;
                self.bytes += u64::from(len);
            }
        }
    };
}

line!(Line4, FlowKey4, |addr: Addr| addr.v4_word(), Addr::v4);
line!(Line6, FlowKey6, |addr: Addr| addr, |addr: Addr| addr);
