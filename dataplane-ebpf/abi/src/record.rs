// SPDX-License-Identifier: Apache-2.0
//! Connections as versions of Weft tell them to each other: whatever the layouts of their maps are, this one stays.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Addr, Connection, ConnectionFlags, Deliver, Flow, FlowKey6, FlowState, Way};

/// One direction of a connection, in version 1 of the record. What its numbers mean does not change with
/// [`crate::ABI_VERSION`]: a version of Weft that gives them another meaning writes them as they are here.
///
/// Numbers are in the byte order of the machine, which is little endian wherever Weft runs; addresses and ports in that of the
/// network.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
pub struct ConnectionRecord {
    /// [`ConnectionRecord::VERSION`]; 0: there is no entry in this place.
    pub version: u16,
    /// Bytes of it that have a meaning in this version; the rest is zero.
    pub size: u16,
    /// [`FlowKey6::ifindex`].
    pub from: u32,
    /// Source, as the packet was before any rewrite.
    pub src: Addr,
    /// Destination.
    pub dst: Addr,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// IP protocol number.
    pub protocol: u32,
    /// [`Connection::src`].
    pub new_src: Addr,
    /// [`Connection::dst`].
    pub new_dst: Addr,
    /// [`Connection::sport`].
    pub new_sport: u16,
    /// [`Connection::dport`].
    pub new_dport: u16,
    /// [`Connection::flags`].
    pub flags: u16,
    /// [`Connection::state`].
    pub state: u8,
    /// [`Way::deliver`]: together with `to` and `net` it tells who answers.
    pub deliver: u8,
    /// [`Connection::packets`].
    pub packets: u64,
    /// [`Connection::bytes`].
    pub bytes: u64,
    /// [`Way::last_seen`].
    pub last_seen: u32,
    /// [`Way::ifindex`].
    pub to: u32,
    /// [`Way::net`].
    pub net: u32,
    /// Zero.
    pub reserved: [u32; 11],
}

impl ConnectionRecord {
    /// The version that is written here.
    pub const VERSION: u16 = 1;

    /// Bytes of all versions.
    pub const SIZE: usize = 160;

    /// The record of an entry.
    #[inline(always)]
    #[must_use]
    pub const fn of(key: &FlowKey6, flow: &Flow) -> Self {
        let FlowKey6 { ifindex: from, src, dst, sport, dport, protocol } = *key;
        let Connection { src: new_src, dst: new_dst, sport: new_sport, dport: new_dport, .. } = flow.connection;
        let Connection { flags, state, packets, bytes, .. } = flow.connection;
        let Way { deliver, last_seen, ifindex: to, net, .. } = flow.way;
        Self {
            version: Self::VERSION,
            size: (Self::SIZE - size_of::<[u32; 11]>()) as u16,
            from,
            src,
            dst,
            sport,
            dport,
            protocol,
            new_src,
            new_dst,
            new_sport,
            new_dport,
            flags,
            state,
            deliver,
            packets,
            bytes,
            last_seen,
            to,
            net,
            reserved: [0; 11],
        }
    }

    /// The entry of the record: its way is void, the next packet decides on it. `epoch`: the one that is now.
    #[must_use]
    pub fn entry(&self, epoch: u32) -> (FlowKey6, Flow) {
        let Self { from: ifindex, src, dst, sport, dport, protocol, .. } = *self;
        let connection = Connection {
            src: self.new_src,
            dst: self.new_dst,
            sport: self.new_sport,
            dport: self.new_dport,
            flags: self.flags,
            state: self.state,
            packets: self.packets,
            bytes: self.bytes,
            ..Connection::default()
        };
        let way = Way {
            epoch: epoch.wrapping_sub(1),
            last_seen: self.last_seen,
            ifindex: self.to,
            net: self.net,
            deliver: self.deliver,
            // The sum of no generations is 0.
            generations: u32::MAX,
            ..Way::default()
        };
        (FlowKey6 { ifindex, src, dst, sport, dport, protocol }, Flow { connection, way })
    }
}

/// What the program [`crate::program::EXPORT_CONNECTIONS`] is asked for: it begins a "packet", in which `count` entries follow, each in a
/// place of `stride` bytes that its record takes afterwards. An entry is the bytes of its key, and then those of its value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
pub struct ExportRequest {
    /// The version of the record that is asked for.
    pub version: u32,
    /// Which map's entries: [`ExportRequest::V6`] and [`ExportRequest::SPILLED`]; 0: those of `FLOWS4`.
    pub of: u32,
    /// How many.
    pub count: u32,
    /// At least [`ConnectionRecord::SIZE`].
    pub stride: u32,
}

impl ExportRequest {
    /// They are of `FLOWS6`.
    pub const V6: u32 = 1;

    /// They are of the hash beside it.
    pub const SPILLED: u32 = 2;

    /// Most entries of a request.
    pub const MOST: u32 = 16;
}

crate::pod!(ConnectionRecord, ExportRequest);

const _: () = assert!(size_of::<ConnectionRecord>() == ConnectionRecord::SIZE && size_of::<ExportRequest>() == 16);
// What the numbers in version 1 mean. Where one becomes another here, the record's stays: `of` and `entry` then say which is which.
const _: () = assert!(
    ConnectionFlags::REWRITE_SRC == 1
        && ConnectionFlags::REWRITE_DST == 2
        && ConnectionFlags::REPLY == 4
        && ConnectionFlags::FROM_HOST == 8
        && ConnectionFlags::FORWARDED == 16
);
const _: () = assert!(Deliver::Peer as u8 == 0 && Deliver::Port as u8 == 1 && Deliver::Host as u8 == 2);
const _: () = assert!(Deliver::Tunnel as u8 == 3 && Deliver::Neighbour as u8 == 4 && Deliver::Route as u8 == 5);
const _: () = assert!(FlowState::New as u8 == 0 && FlowState::Established as u8 == 1 && FlowState::Closing as u8 == 2);
const _: () = assert!(crate::UPLINK == 0x8000_0000 && crate::OVERLAY == 0xc000_0000 && crate::TICK_SHIFT == 30);

#[cfg(test)]
mod tests {
    use super::*;

    /// Other versions have these places in their programs.
    #[test]
    fn the_places_of_version_1_stay() {
        use core::mem::offset_of;
        let places = [
            offset_of!(ConnectionRecord, from),
            offset_of!(ConnectionRecord, src),
            offset_of!(ConnectionRecord, dst),
            offset_of!(ConnectionRecord, sport),
            offset_of!(ConnectionRecord, dport),
            offset_of!(ConnectionRecord, protocol),
            offset_of!(ConnectionRecord, new_src),
            offset_of!(ConnectionRecord, new_dst),
            offset_of!(ConnectionRecord, new_sport),
            offset_of!(ConnectionRecord, new_dport),
            offset_of!(ConnectionRecord, flags),
            offset_of!(ConnectionRecord, state),
            offset_of!(ConnectionRecord, deliver),
            offset_of!(ConnectionRecord, packets),
            offset_of!(ConnectionRecord, bytes),
            offset_of!(ConnectionRecord, last_seen),
            offset_of!(ConnectionRecord, to),
            offset_of!(ConnectionRecord, net),
            offset_of!(ConnectionRecord, reserved),
        ];
        assert_eq!(places, [4, 8, 24, 40, 42, 44, 48, 64, 80, 82, 84, 86, 87, 88, 96, 104, 108, 112, 116]);
    }

    #[test]
    fn a_record_keeps_all_of_a_connection_but_its_rules_and_its_way() {
        let key = FlowKey6 { ifindex: 7, src: Addr::v4(1), dst: Addr::v4(2), sport: 3, dport: 4, protocol: 6 };
        let connection = Connection {
            src: Addr::v4(5),
            dst: Addr::v4(6),
            sport: 8,
            dport: 9,
            flags: 3,
            state: 1,
            packets: 10,
            bytes: 11,
            ..Connection::default()
        };
        let way = Way { last_seen: 12, ifindex: 13, net: 14, deliver: 5, generations: 20, epoch: 30, ..Way::default() };
        let rules = Connection { rules: [77, 78], ..connection };
        let record = ConnectionRecord::of(&key, &Flow { connection: rules, way });
        let void = Way { generations: u32::MAX, epoch: 99, ..way };
        assert_eq!(record.entry(100), (key, Flow { connection, way: void }));
        assert_eq!((record.version, record.size), (1, 116));
    }
}
