// SPDX-License-Identifier: Apache-2.0
//! Choosing by a position on a ring: in proportion to weights by a random one, consistently by a hash of the client.
//!
//! A ring of hashes moves only what the backend had that goes, and its memory is in proportion to the members (Karger et al., STOC
//! 1997). A table of Maglev's has more even parts, but moves others as well, and either has one size whatever the number of members
//! or moves everybody where that changes. Rendezvous hashing is as consistent, and asks every member.

use weft_abi::{Addr, FlowKey6, MAX_RING_LEVELS, MemberKey, MemberSet, RING_FAN_OUT, RingNode};

use crate::Tables;

/// The member of a set, by its index, that has this position; none: the ring is not there.
#[inline(always)]
pub fn find<T: Tables>(tables: &T, service: u32, set: &MemberSet, position: u32) -> Option<u32> {
    // The root, then whichever node leads on.
    let mut index = 0;
    for level in 0..MAX_RING_LEVELS {
        if level >= set.levels {
            break;
        }
        index = next(tables.ring(&MemberKey { service, set: set.set, index })?, position);
    }
    Some(index)
}

/// What the first of a node's arcs has that does not end before `position`. As many steps for all, without a branch.
#[inline(always)]
#[must_use]
pub const fn next(node: &RingNode, position: u32) -> u32 {
    let mut place = 0;
    let mut half = RING_FAN_OUT / 2;
    while half > 0 {
        place += half * (node.ends[(place + half - 1) % RING_FAN_OUT] < position) as usize;
        half /= 2;
    }
    node.next[place % RING_FAN_OUT]
}

/// The position of a new flow. `seed` is the Service port's; a client is hashed with its port unless its address is to stay at one
/// backend. What it addresses does not count: it finds the same backend by every frontend of the Service.
#[inline(always)]
#[must_use]
pub const fn position(seed: u64, key: &FlowKey6, by_address: bool) -> u32 {
    let port = if by_address { 0 } else { key.sport };
    hash(seed, &key.src, (key.protocol as u64) << 32 | port as u64)
}

/// Where one of a member's arcs ends on a consistent ring; they are numbered from 0 on. `port`: network byte order.
#[must_use]
pub const fn end(seed: u64, addr: &Addr, port: u16, arc: u32) -> u32 {
    hash(!seed, addr, (arc as u64) << 32 | port as u64)
}

#[inline(always)]
const fn hash(seed: u64, addr: &Addr, more: u64) -> u32 {
    let [a, b, c, d] = addr.0;
    let hash = mix(seed ^ ((a as u64) << 32 | b as u64));
    let hash = mix(hash ^ ((c as u64) << 32 | d as u64));
    (mix(hash ^ more) >> 32) as u32
}

/// Spreads a word (the finalizer of SplitMix64, public domain).
#[inline(always)]
#[must_use]
const fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use weft_abi::Addr;

    use super::*;

    #[test]
    fn an_arc_has_what_lies_behind_the_one_before_up_to_its_end() {
        let (mut ends, mut members) = ([u32::MAX; RING_FAN_OUT], [7; RING_FAN_OUT]);
        (ends[0], ends[1], ends[2]) = (0, 10, 20);
        (members[0], members[1], members[2]) = (3, 4, 5);
        let node = RingNode { ends, next: members };
        let found = [0, 1, 10, 11, 20, 21, u32::MAX].map(|position| next(&node, position));
        assert_eq!(found, [3, 4, 4, 5, 5, 7, 7]);
    }

    #[test]
    fn every_place_of_a_full_node_is_found() {
        let mut node = RingNode { ends: [0; RING_FAN_OUT], next: [0; RING_FAN_OUT] };
        for place in 0..RING_FAN_OUT {
            (node.ends[place], node.next[place]) = (place as u32 * 2 + 1, place as u32);
        }
        for place in 0..RING_FAN_OUT as u32 {
            assert_eq!([place * 2, place * 2 + 1].map(|position| next(&node, position)), [place; 2]);
        }
    }

    #[test]
    fn a_client_has_one_position_for_each_port_or_one_for_all() {
        let key = |sport: u16| FlowKey6 { src: Addr::v4(1), sport: sport.to_be(), protocol: 6, ..FlowKey6::default() };
        let of = |sport, by_address| position(9, &key(sport), by_address);
        assert_ne!(of(1, false), of(2, false));
        assert_eq!(of(1, true), of(2, true));
        assert_ne!(position(8, &key(1), false), of(1, false), "another Service");
        let elsewhere = FlowKey6 { ifindex: 5, dst: Addr::v4(3), dport: 80, ..key(1) };
        assert_eq!(position(9, &elsewhere, false), of(1, false), "by another frontend, on another node");
    }
}
