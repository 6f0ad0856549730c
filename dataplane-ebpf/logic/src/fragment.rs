// SPDX-License-Identifier: Apache-2.0
//! Datagrams in pieces: where they are remembered, and which piece belongs to which.

use weft_abi::{Addr, Datagram, FRAGMENT_GROUPS, FRAGMENT_SLOTS, FlowKey6, FragmentKey};

use crate::{address::word, flow, masquerade::mix};

/// Ticks for which a first piece that comes again is the same datagram's.
const AGAIN: u32 = 1;

/// Where the datagram of a piece with this key (its ports do not matter) and identification is remembered.
#[inline(always)]
#[must_use]
pub const fn key(packet: &FlowKey6, id: u32) -> FragmentKey {
    // Neighbours in the order of identifiers, in either byte order, have slots of their own.
    let step = id.wrapping_add(id >> 8).wrapping_add(id >> 16).wrapping_add(id >> 24);
    let place = mix(word(&packet.src) ^ mix(word(&packet.dst) ^ packet.protocol)).wrapping_add(step) % FRAGMENT_SLOTS;
    let group = if flow::is_from_outside(packet.ifindex) { mix(word(&packet.dst)) % FRAGMENT_GROUPS } else { 0 };
    FragmentKey { ifindex: packet.ifindex, slot: group * FRAGMENT_SLOTS + place }
}

/// What a first piece tells.
#[inline(always)]
#[must_use]
pub const fn datagram(packet: &FlowKey6, id: u32, masqueraded_id: u32, now: u32) -> Datagram {
    let FlowKey6 { src, dst, sport, dport, protocol, .. } = *packet;
    Datagram { src, dst, id, protocol, sport, dport, masqueraded_id, since: now, by_stack: 0 }
}

/// Whether a piece with this key and identification belongs to a datagram.
#[inline(always)]
#[must_use]
pub fn belongs(packet: &FlowKey6, id: u32, datagram: &Datagram) -> bool {
    datagram.id == id
        && datagram.protocol == packet.protocol
        && datagram.src == packet.src
        && datagram.dst == packet.dst
}

/// Whether a first piece that belongs to the datagram is the one that told of it, once more.
#[inline(always)]
#[must_use]
pub const fn is_again(datagram: &Datagram, now: u32) -> bool {
    now.wrapping_sub(datagram.since) <= AGAIN
}

/// The word that chooses the counter of identifiers towards an address, for a protocol.
#[inline(always)]
#[must_use]
pub const fn destination(address: &Addr, protocol_number: u32) -> u32 {
    mix(word(address) ^ protocol_number)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::BTreeSet;

    use super::*;

    fn packet(ifindex: u32, dst: u32) -> FlowKey6 {
        FlowKey6 { ifindex, src: Addr::v4(1), dst: Addr::v4(dst), protocol: 17, ..FlowKey6::default() }
    }

    #[test]
    fn a_port_has_its_slots_and_no_more() {
        let slots: BTreeSet<_> = (0..10_000).map(|id| key(&packet(7, id * 31), id * 7)).map(|key| key.slot).collect();
        assert_eq!(slots.len(), FRAGMENT_SLOTS as usize);
        assert!(slots.iter().all(|slot| *slot < FRAGMENT_SLOTS));
        let wire: BTreeSet<_> =
            (0..10_000).map(|id| key(&packet(weft_abi::UPLINK, 5), id)).map(|key| key.slot).collect();
        assert_eq!(wire.len(), FRAGMENT_SLOTS as usize, "towards one destination as few");
        assert!(wire.iter().all(|slot| *slot < FRAGMENT_SLOTS * FRAGMENT_GROUPS));
    }

    #[test]
    fn datagrams_of_one_flow_do_not_push_each_other_out() {
        for bytes in [|id: u16| u32::from(id.to_be()), |id: u16| u32::from(id).to_be()] {
            let slots: BTreeSet<_> = (500..700).map(|id| key(&packet(7, 9), bytes(id)).slot).collect();
            assert_eq!(slots.len(), 200);
        }
    }

    #[test]
    fn a_piece_belongs_to_its_own_datagram() {
        let first = packet(7, 9);
        let known = datagram(&first, 5, 99, 100);
        assert!(belongs(&first, 5, &known) && !belongs(&first, 6, &known) && !belongs(&packet(7, 8), 5, &known));
        assert!(is_again(&known, 101) && !is_again(&known, 102));
    }
}
