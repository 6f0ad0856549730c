// SPDX-License-Identifier: Apache-2.0
//! Who gets room where there is not enough for all: no namespace takes from another's fair share.

use std::collections::BTreeMap;

/// Something that wants room.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish<'a> {
    /// Whose it is.
    pub(crate) namespace: &'a str,
    /// How much it takes.
    pub(crate) cost: u64,
    /// It had room at the last plan.
    pub(crate) stood: bool,
}

/// The largest share of `all` that every namespace may have at once: those that need less leave the rest to the others
/// (max-min fairness). `wanted`: what each of them wants.
pub(crate) fn fair_share(all: u64, mut wanted: Vec<u64>) -> u64 {
    wanted.sort_unstable();
    let (mut left, mut namespaces) = (all, wanted.len() as u64);
    for share in wanted {
        if share.saturating_mul(namespaces) > left {
            return left / namespaces;
        }
        left -= share;
        namespaces -= 1;
    }
    all
}

/// The order in which wishes are granted, as places in `wishes`: of each namespace the smallest ones up to its fair share of
/// `all`, then those beyond it that stood, then the rest; smaller ones first, and of equal ones those that stood, then in the order
/// given.
pub(crate) fn order(all: u64, wishes: &[Wish<'_>]) -> Vec<usize> {
    let mut by_namespace: BTreeMap<&str, Vec<(u64, bool, usize)>> = BTreeMap::new();
    for (place, wish) in wishes.iter().enumerate() {
        by_namespace.entry(wish.namespace).or_default().push((wish.cost, !wish.stood, place));
    }
    let totals = by_namespace.values().map(|wishes| wishes.iter().map(|(cost, ..)| cost).sum());
    let fair = fair_share(all, totals.collect());
    let mut order = Vec::new();
    for mut of_namespace in by_namespace.into_values() {
        of_namespace.sort_unstable();
        let mut taken = 0_u64;
        for (cost, is_new, place) in of_namespace {
            taken = taken.saturating_add(cost);
            let class = if taken <= fair { 0 } else { 1 + u8::from(is_new) };
            order.push((class, cost, is_new, place));
        }
    }
    order.sort_unstable();
    order.into_iter().map(|(.., place)| place).collect()
}

/// Which wishes are granted out of `all`.
pub(crate) fn grant(all: u64, wishes: &[Wish<'_>]) -> Vec<bool> {
    let total = wishes.iter().fold(0_u64, |total, wish| total.saturating_add(wish.cost));
    let mut granted = vec![true; wishes.len()];
    if total <= all {
        return granted;
    }
    let mut left = all;
    for place in order(all, wishes) {
        granted[place] = wishes[place].cost <= left;
        if granted[place] {
            left -= wishes[place].cost;
        }
    }
    granted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_small_ones_leave_is_shared_by_the_others() {
        assert_eq!(fair_share(1000, vec![10, 20]), 1000);
        assert_eq!(fair_share(1000, vec![2000, 200]), 800);
        assert_eq!(fair_share(1000, vec![900, 900, 100, 900]), 300);
    }

    fn wishes(list: &[(&'static str, u64, bool)]) -> Vec<Wish<'static>> {
        list.iter().map(|&(namespace, cost, stood)| Wish { namespace, cost, stood }).collect()
    }

    #[test]
    fn a_large_namespace_displaces_nobody_and_what_stood_stays() {
        assert_eq!(grant(10, &wishes(&[("a", 6, false), ("b", 4, false)])), [true, true], "all fit");
        let big = [("a", 5, true), ("a", 4, true), ("a", 2, true), ("b", 4, false)];
        assert_eq!(grant(10, &wishes(&big)), [false, true, true, true], "b is within its share; a's largest goes");
        let both = [("a", 8, true), ("b", 8, false)];
        assert_eq!(grant(10, &wishes(&both)), [true, false], "both want more than their share: who came later");
        let both = [("a", 8, false), ("b", 8, true)];
        assert_eq!(grant(10, &wishes(&both)), [false, true]);
    }
}
