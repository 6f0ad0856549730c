// SPDX-License-Identifier: Apache-2.0
//! Numbers that objects keep while they live.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use weft_abi::generation;

use crate::model::Numbers;

/// Key in [`Numbers::next`] of the generation slots.
const SLOTS: &str = "slots";
/// That of the identities.
const IDENTITIES: &str = "identities";

/// Policy sets, identities and peers: 0 means none (or the world), and the last value is [`weft_abi::ANY_IDENTITY`].
const ORDINARY: Range<u32> = 1..u32::MAX;

/// One table of numbers that are being given out for this plan.
struct Pool<'a> {
    used: BTreeSet<u32>,
    next: &'a mut u32,
    range: Range<u32>,
}

impl Pool<'_> {
    /// Forgets keys that are gone, and entries that cannot be (a number twice, or out of range: a damaged file).
    fn keep(&mut self, table: &mut BTreeMap<String, u32>, wanted: &BTreeSet<String>) {
        let (used, range) = (&mut self.used, &self.range);
        table.retain(|key, number| wanted.contains(key) && range.contains(number) && used.insert(*number));
    }

    /// Numbers the keys that have none yet; those for which none is left stay without.
    fn give(&mut self, table: &mut BTreeMap<String, u32>, wanted: &BTreeSet<String>) {
        for key in wanted {
            if table.contains_key(key) {
                continue;
            }
            let Some(number) = self.take() else { return };
            table.insert(key.clone(), number);
        }
    }

    fn free(&mut self, table: &mut BTreeMap<String, u32>, gone: &BTreeSet<String>) {
        for number in gone.iter().filter_map(|key| table.remove(key)) {
            self.used.remove(&number);
        }
    }

    fn take(&mut self) -> Option<u32> {
        let size = self.range.end - self.range.start;
        if self.used.len() >= usize::try_from(size).unwrap_or(usize::MAX) {
            return None;
        }
        loop {
            if !self.range.contains(self.next) {
                *self.next = self.range.start;
            }
            let number = *self.next;
            *self.next += 1;
            if self.used.insert(number) {
                return Some(number);
            }
        }
    }
}

impl Numbers {
    /// Gives generation slots to exactly these workloads and Service frontends.
    pub(crate) fn assign_slots(&mut self, workloads: &BTreeSet<String>, services: &BTreeSet<String>) {
        let next = self.next.entry(SLOTS.to_owned()).or_default();
        let mut pool = Pool { used: BTreeSet::new(), next, range: generation::FIRST_FREE..generation::SLOTS };
        pool.keep(&mut self.workloads, workloads);
        pool.keep(&mut self.services, services);
        pool.give(&mut self.workloads, workloads);
        pool.give(&mut self.services, services);
    }

    /// Numbers exactly these policy sets.
    pub(crate) fn assign_policies(&mut self, wanted: &BTreeSet<String>) {
        assign(&mut self.policies, &mut self.next, "policies", wanted);
    }

    /// Numbers exactly these peers.
    pub(crate) fn assign_peers(&mut self, wanted: &BTreeSet<String>) {
        assign(&mut self.peers, &mut self.next, "peers", wanted);
    }

    /// Numbers exactly these sets of peers.
    pub(crate) fn assign_identities(&mut self, wanted: &BTreeSet<String>) {
        assign(&mut self.identities, &mut self.next, IDENTITIES, wanted);
    }
}

fn assign(table: &mut BTreeMap<String, u32>, next: &mut BTreeMap<String, u32>, kind: &str, wanted: &BTreeSet<String>) {
    let next = next.entry(kind.to_owned()).or_default();
    let mut pool = Pool { used: BTreeSet::new(), next, range: ORDINARY };
    pool.keep(table, wanted);
    pool.give(table, wanted);
}

/// The generation slots and identities that are given out: so that a few of them change at the cost of a few.
#[derive(Debug, Default)]
pub(crate) struct Given {
    slots: BTreeSet<u32>,
    identities: BTreeSet<u32>,
}

/// Keys that go and keys that come.
#[derive(Debug, Default)]
pub(crate) struct Turnover {
    pub(crate) gone: BTreeSet<String>,
    pub(crate) new: BTreeSet<String>,
}

impl Turnover {
    pub(crate) fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.new.is_empty()
    }
}

impl Given {
    /// As `numbers` stand.
    pub(crate) fn of(numbers: &Numbers) -> Self {
        let slots = numbers.workloads.values().chain(numbers.services.values());
        Self { slots: slots.copied().collect(), identities: numbers.identities.values().copied().collect() }
    }

    /// As [`Numbers::assign_slots`], by what has changed.
    pub(crate) fn change_slots(&mut self, numbers: &mut Numbers, workloads: &Turnover, services: &Turnover) {
        let next = numbers.next.entry(SLOTS.to_owned()).or_default();
        let used = std::mem::take(&mut self.slots);
        let mut pool = Pool { used, next, range: generation::FIRST_FREE..generation::SLOTS };
        pool.free(&mut numbers.workloads, &workloads.gone);
        pool.free(&mut numbers.services, &services.gone);
        pool.give(&mut numbers.workloads, &workloads.new);
        pool.give(&mut numbers.services, &services.new);
        self.slots = pool.used;
    }

    /// As [`Numbers::assign_identities`], by what has changed.
    pub(crate) fn change_identities(&mut self, numbers: &mut Numbers, sets: &Turnover) {
        let next = numbers.next.entry(IDENTITIES.to_owned()).or_default();
        let mut pool = Pool { used: std::mem::take(&mut self.identities), next, range: ORDINARY };
        pool.free(&mut numbers.identities, &sets.gone);
        pool.give(&mut numbers.identities, &sets.new);
        self.identities = pool.used;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn numbers_stay_and_freed_ones_rest() {
        let mut numbers = Numbers::default();
        numbers.assign_policies(&keys(&["a", "b"]));
        assert_eq!((numbers.policies["a"], numbers.policies["b"]), (1, 2));
        numbers.assign_policies(&keys(&["b", "c"]));
        assert_eq!(numbers.policies, BTreeMap::from([("b".into(), 2), ("c".into(), 3)]), "1 rests");
        let before = numbers.clone();
        numbers.assign_policies(&keys(&["b", "c"]));
        assert_eq!(numbers, before);
    }

    #[test]
    fn slots_of_services_and_workloads_never_meet_and_run_out_gracefully() {
        let mut numbers = Numbers::default();
        let many: BTreeSet<String> = (0..generation::SLOTS).map(|n| format!("s{n:05}")).collect();
        numbers.assign_slots(&keys(&["w1", "w2"]), &many);
        let all: BTreeSet<u32> = numbers.services.values().chain(numbers.workloads.values()).copied().collect();
        assert_eq!(all.len(), (generation::SLOTS - generation::FIRST_FREE) as usize);
        assert_eq!(all.first(), Some(&generation::FIRST_FREE));
        assert_eq!(numbers.services.len() + 2, all.len(), "workloads come first");
        numbers.assign_slots(&keys(&["w1", "w2"]), &keys(&["s00003", "new"]));
        assert_eq!(numbers.services["new"], generation::FIRST_FREE + 2, "wraps around to what is free");
    }

    #[test]
    fn a_damaged_table_is_mended() {
        let policies = BTreeMap::from([("a".into(), 7), ("b".into(), 7), ("c".into(), 0)]);
        let mut numbers = Numbers { policies, ..Numbers::default() };
        numbers.assign_policies(&keys(&["a", "b", "c"]));
        let distinct: BTreeSet<u32> = numbers.policies.values().copied().collect();
        assert_eq!((distinct.len(), numbers.policies["a"], distinct.contains(&0)), (3, 7, false));
    }
}
