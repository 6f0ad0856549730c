// SPDX-License-Identifier: Apache-2.0
//! Choosing a backend for a new flow.

use weft_abi::{Algorithm, BackendKey, Balancer, Member, MemberKey, MemberSet};

use crate::{Tables, masquerade::mix, ring, walk::Question};

/// Maps a random word evenly to `0..count` without division; 0 where `count` is 0.
#[inline(always)]
#[must_use]
pub const fn index(random: u32, count: u32) -> u32 {
    ((random as u64 * count as u64) >> 32) as u32
}

/// A member of one of a balancer's sets, as its algorithm says; none: the set has none, or is not there any more.
#[inline(always)]
pub fn member<'t, T: Tables>(
    tables: &'t T,
    question: &Question,
    service: u32,
    (balancer, set): (&Balancer, &MemberSet),
) -> Option<&'t Member> {
    let position = if balancer.algorithm == Algorithm::Consistent as u32 {
        ring::position(balancer.seed, &question.key, balancer.affinity != 0)
    } else {
        question.random
    };
    let first = at(tables, service, set, position)?;
    if balancer.algorithm != Algorithm::LeastLoaded as u32 {
        return Some(first);
    }
    let second = at(tables, service, set, mix(position))?;
    Some(if is_less_loaded(tables, service, second, first) { second } else { first })
}

/// The member at a position between 0 and all of a set.
#[inline(always)]
fn at<'t, T: Tables>(tables: &'t T, service: u32, set: &MemberSet, position: u32) -> Option<&'t Member> {
    let index = if set.levels == 0 { index(position, set.count) } else { tables.on_ring(service, set, position)? };
    tables.member(&MemberKey { service, set: set.set, index })
}

/// Whether `one` has fewer connections for its weight than `other`.
#[inline(always)]
fn is_less_loaded<T: Tables>(tables: &T, service: u32, one: &Member, other: &Member) -> bool {
    let load = |member: &Member| u64::from(tables.load(&BackendKey::new(service, member.addr, member.port)));
    load(one) * u64::from(other.weight) < load(other) * u64::from(one.weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_covers_the_range_and_never_leaves_it() {
        for count in [1_u32, 2, 3, 7, 250] {
            assert_eq!(index(0, count), 0);
            assert_eq!(index(u32::MAX, count), count - 1);
        }
        assert_eq!(index(u32::MAX, 0), 0);
    }
}
