// SPDX-License-Identifier: Apache-2.0
//! Ports of rules, in as few intervals as they can be.

use std::{cmp::Reverse, collections::BTreeMap};

use weft_abi::{Interval, PROTOCOL_ANY};

use crate::plan::policy::rules::ANY_PORT;

/// A range of ports of a protocol.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct PortRange {
    /// IP protocol number, or [`PROTOCOL_ANY`].
    pub(crate) protocol: u8,
    pub(crate) first: u16,
    pub(crate) last: u16,
}

/// Sorts and merges the ports of one rule: the same ports are named by the fewest ranges. Any port of any protocol swallows all
/// others.
pub(crate) fn merge(mut ranges: Vec<PortRange>) -> Vec<PortRange> {
    if ranges.iter().any(|range| range.protocol == PROTOCOL_ANY) {
        return vec![ANY_PORT];
    }
    ranges.sort_unstable();
    let mut merged: Vec<PortRange> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.protocol == range.protocol && range.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// Sorts what several rules say, and leaves out what adds nothing: an interval within another one that says the same, be it of the
/// same part or of the `general` one. Of equal ones the first stays.
pub(crate) fn condense(intervals: Vec<Interval>, general: &[Interval]) -> Vec<Interval> {
    let mut all: Vec<(usize, Interval)> = intervals.into_iter().enumerate().collect();
    all.sort_unstable_by_key(|(place, interval)| {
        let Interval { first, last, order, protocol, bits, .. } = *interval;
        (bits, order, protocol, first, Reverse(last), *place)
    });
    let mut general: Vec<&Interval> = general.iter().collect();
    general.sort_unstable_by_key(|interval| (interval.protocol, interval.first));
    // By what is said: whether it is said of everything, and up to which port of which protocol.
    let mut said: BTreeMap<(u8, u16), (u8, Option<u16>)> = BTreeMap::new();
    let adds = |(_, interval): &(usize, Interval)| {
        let (protocol, last) = said.entry((interval.bits, interval.order)).or_insert((PROTOCOL_ANY, None));
        let is_known = match last {
            Some(_) if *protocol == PROTOCOL_ANY => true,
            Some(last) => *protocol == interval.protocol && interval.last <= *last,
            None => false,
        };
        if is_known || covered(interval, &general) {
            return false;
        }
        (*protocol, *last) = (interval.protocol, Some(interval.last));
        true
    };
    all.into_iter().filter(adds).map(|(_, interval)| interval).collect()
}

/// Whether one of `general`, which are in the order of ports and not within each other, says the same.
fn covered(interval: &Interval, general: &[&Interval]) -> bool {
    let says = |wide: &Interval| {
        (wide.bits, wide.order) == (interval.bits, interval.order)
            && (wide.protocol == PROTOCOL_ANY
                || wide.protocol == interval.protocol && wide.first <= interval.first && interval.last <= wide.last)
    };
    let behind = general.partition_point(|wide| (wide.protocol, wide.first) <= (interval.protocol, interval.first));
    // What is said of everything comes first, and what may hold this one just before it.
    general.iter().take(1).chain(general[..behind].iter().rev().take(4)).any(|wide| says(wide))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use weft_abi::{Tier, Verdict};

    use super::*;

    fn ranges(list: &[(u8, u16, u16)]) -> Vec<PortRange> {
        list.iter().map(|&(protocol, first, last)| PortRange { protocol, first, last }).collect()
    }

    #[rstest]
    #[case::adjacent(&[(6, 81, 90), (6, 80, 80)], &[(6, 80, 90)])]
    #[case::a_gap_of_one(&[(6, 80, 80), (6, 82, 82)], &[(6, 80, 80), (6, 82, 82)])]
    #[case::overlapping(&[(6, 80, 85), (6, 83, 90), (6, 100, 100)], &[(6, 80, 90), (6, 100, 100)])]
    #[case::contained(&[(6, 1, 100), (6, 50, 60), (6, 99, 101)], &[(6, 1, 101)])]
    #[case::other_protocol(&[(17, 80, 80), (6, 80, 80)], &[(6, 80, 80), (17, 80, 80)])]
    #[case::to_the_last(&[(6, 0, 65535), (6, 65535, 65535)], &[(6, 0, 65535)])]
    #[case::any(&[(6, 80, 80), (0, 0, 65535)], &[(0, 0, 65535)])]
    fn merges(#[case] given: &[(u8, u16, u16)], #[case] expected: &[(u8, u16, u16)]) {
        assert_eq!(merge(ranges(given)), ranges(expected));
    }

    fn intervals(list: &[(u8, u16, u16, u32)]) -> Vec<Interval> {
        let bits = Interval::bits(Verdict::Accept, Tier::Network);
        let interval = |&(protocol, first, last, rule): &_| Interval { first, last, order: 0, protocol, bits, rule };
        list.iter().map(interval).collect()
    }

    #[rstest]
    #[case::equal_ones(&[(6, 80, 80, 2), (6, 80, 80, 1)], &[], &[(6, 80, 80, 2)])]
    #[case::within_another(&[(6, 85, 85, 1), (6, 80, 90, 2), (6, 85, 95, 3)], &[], &[(6, 80, 90, 2), (6, 85, 95, 3)])]
    #[case::protocols_are_apart(&[(17, 80, 80, 1), (6, 0, 65535, 2)], &[], &[(6, 0, 65535, 2), (17, 80, 80, 1)])]
    #[case::everything(&[(17, 80, 80, 1), (0, 0, 65535, 2), (6, 1, 1, 3)], &[], &[(0, 0, 65535, 2)])]
    #[case::what_everybody_may(&[(6, 85, 85, 1), (6, 85, 95, 2), (17, 80, 80, 3)], &[(6, 80, 90, 9)], &[(6, 85, 95, 2), (17, 80, 80, 3)])]
    #[case::everybody_may_everything(&[(6, 85, 85, 1)], &[(0, 0, 65535, 9)], &[])]
    fn condenses(
        #[case] given: &[(u8, u16, u16, u32)],
        #[case] general: &[(u8, u16, u16, u32)],
        #[case] expected: &[(u8, u16, u16, u32)],
    ) {
        assert_eq!(condense(intervals(given), &intervals(general)), intervals(expected));
    }

    #[test]
    fn what_is_said_otherwise_stays() {
        let mut both = intervals(&[(6, 80, 90, 1), (6, 85, 85, 2)]);
        both[1].bits = Interval::bits(Verdict::Deny, Tier::Admin);
        assert_eq!(condense(both.clone(), &[]).len(), 2);
        both[1] = Interval { order: 1, ..both[0] };
        assert_eq!(condense(both, &[]).len(), 2);
    }
}
