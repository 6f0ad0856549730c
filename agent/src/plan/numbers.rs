// SPDX-License-Identifier: Apache-2.0
//! Numbers that objects keep while they live. No file remembers them: those that generations go by are read out of the maps by
//! whoever starts anew; those of policy are keyed hashes of what they stand for.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use weft_abi::{BackendKey, CLOSED_LIST, CidrKey, Class, Frontend, FrontendKey, NO_LIST, Port, generation};

use crate::{
    model::{Attachment, HashKey, Numbers},
    plan::policy::isolation::SetKey,
};

/// The generation slots of workloads.
const SLOTS: Range<u32> = generation::FIRST_FREE..generation::SLOTS;

/// The numbers of Service ports where there is room for so many.
fn services(most: usize) -> Range<u32> {
    1..u32::try_from(most).unwrap_or(u32::MAX).saturating_add(1)
}

/// Numbers of one kind, which are being given out for this plan.
struct Pool<'a> {
    range: Range<u32>,
    used: BTreeSet<u32>,
    next: &'a mut u32,
}

impl Pool<'_> {
    /// Numbers exactly these keys. Forgets those that are gone, and entries that cannot be (a number twice, or out of range: a damaged
    /// map).
    fn assign<K: Clone + Ord>(&mut self, table: &mut BTreeMap<K, u32>, wanted: &BTreeSet<K>) {
        let Self { range, used, .. } = self;
        table.retain(|key, number| wanted.contains(key) && range.contains(number) && used.insert(*number));
        self.give(table, wanted);
    }

    /// Numbers the keys that have none yet; those for which none is left stay without.
    fn give<K: Clone + Ord>(&mut self, table: &mut BTreeMap<K, u32>, wanted: &BTreeSet<K>) {
        for key in wanted {
            if table.contains_key(key) {
                continue;
            }
            let Some(number) = self.take() else { return };
            table.insert(key.clone(), number);
        }
    }

    fn take(&mut self) -> Option<u32> {
        if self.used.len() >= self.range.len() {
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

fn free<K: Ord>(used: &mut BTreeSet<u32>, table: &mut BTreeMap<K, u32>, gone: &BTreeSet<K>) {
    for number in gone.iter().filter_map(|key| table.remove(key)) {
        used.remove(&number);
    }
}

fn change<K: Clone + Ord>(
    range: Range<u32>,
    given: &mut BTreeSet<u32>,
    (table, next): (&mut BTreeMap<K, u32>, &mut u32),
    turnover: &Turnover<K>,
) {
    free(given, table, &turnover.gone);
    let mut pool = Pool { range, used: std::mem::take(given), next };
    pool.give(table, &turnover.new);
    *given = pool.used;
}

fn terms_of(class: &Class) -> Box<[u64]> {
    class.terms.iter().copied().take_while(|term| *term != 0).collect()
}

impl Numbers {
    /// What an earlier agent gave out, as the maps `FRONTENDS` and `PORTS` have it; `key`: the one that it numbered by. A Service
    /// port without backends and sources was refused, or has none. Whatever stands there, also by mistake, does no harm: a number that
    /// cannot be is given anew, and one that is another's stands for other digests and backends, so that its generation moves.
    #[must_use]
    pub fn recovered(
        key: HashKey,
        frontends: &BTreeMap<FrontendKey, Frontend>,
        (backends, sources): (&BTreeMap<BackendKey, u32>, &BTreeMap<CidrKey, u32>),
        classes: &BTreeMap<u64, Class>,
        ports: &BTreeMap<u32, Port>,
        attachments: &[Arc<Attachment>],
    ) -> Self {
        let slot_of = |attachment: &Arc<Attachment>| {
            let port = ports.get(&attachment.link.as_ref()?.ifindex)?;
            Some((attachment.spec.id.to_string(), port.workload))
        };
        let slots = ports.values().map(|port| port.workload);
        // Those that were freed lately are likely beyond it, or far before it.
        let highest = slots.filter(|slot| SLOTS.contains(slot)).max().unwrap_or_default();
        // Others share the number of the first one, and addresses have none.
        let numbered = frontends.iter().filter(|(_, frontend)| frontend.is_numbered());
        let services: BTreeMap<FrontendKey, u32> = numbered.map(|(key, frontend)| (*key, frontend.service)).collect();
        let serving = backends.keys().map(|backend| backend.service).chain(sources.keys().map(|source| source.net));
        let serving: BTreeSet<u32> = serving.collect();
        let lists = ports.values().flat_map(|port| [port.ingress_list, port.egress_list]);
        Self {
            key,
            workloads: attachments.iter().filter_map(slot_of).collect(),
            next_slot: highest + 1,
            refused: services.iter().filter(|(_, number)| !serving.contains(number)).map(|(key, _)| *key).collect(),
            // Where a damaged map has one that cannot be, the first ones come next.
            next_service: services.values().max().map_or(0, |highest| highest.saturating_add(1)),
            services,
            standing_terms: classes.iter().map(|(class, has)| (*class, terms_of(has))).collect(),
            standing_lists: lists.filter(|list| ![NO_LIST, CLOSED_LIST].contains(list)).collect(),
            ..Self::default()
        }
    }

    /// Gives generation slots to exactly these workloads.
    pub(crate) fn assign_slots(&mut self, workloads: &BTreeSet<String>) {
        let mut pool = Pool { range: SLOTS, used: BTreeSet::new(), next: &mut self.next_slot };
        pool.assign(&mut self.workloads, workloads);
    }

    /// Numbers exactly these Service ports, for `most` of which there is room.
    pub(crate) fn assign_services(&mut self, wanted: &BTreeSet<FrontendKey>, most: usize) {
        let mut pool = Pool { range: services(most), used: BTreeSet::new(), next: &mut self.next_service };
        pool.assign(&mut self.services, wanted);
    }

    /// These lists have room.
    pub(crate) fn assign_lists<'k>(&mut self, keys: impl Iterator<Item = &'k SetKey>) {
        self.lists = keys.map(|key| key.name(self.key)).collect();
        self.standing_lists.clear();
        self.standing_terms.clear();
    }

    /// Whether a list had room at the last plan, also that of an earlier agent.
    pub(crate) fn had_list(&self, key: &SetKey, number: u64) -> bool {
        self.lists.contains(&key.name(self.key)) || self.standing_lists.contains(&number)
    }
}

/// The numbers that are given out: so that a few of them change at the cost of a few.
#[derive(Debug, Default)]
pub(crate) struct Given {
    slots: BTreeSet<u32>,
    services: BTreeSet<u32>,
}

/// Keys that go and keys that come.
#[derive(Debug)]
pub(crate) struct Turnover<K> {
    pub(crate) gone: BTreeSet<K>,
    pub(crate) new: BTreeSet<K>,
}

impl<K> Default for Turnover<K> {
    fn default() -> Self {
        Self { gone: BTreeSet::new(), new: BTreeSet::new() }
    }
}

impl<K> Turnover<K> {
    pub(crate) fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.new.is_empty()
    }
}

impl Given {
    /// As `numbers` stand.
    pub(crate) fn of(numbers: &Numbers) -> Self {
        let of = |numbers: &mut dyn Iterator<Item = &u32>| numbers.copied().collect();
        Self { slots: of(&mut numbers.workloads.values()), services: of(&mut numbers.services.values()) }
    }

    /// As [`Numbers::assign_slots`], by what has changed.
    pub(crate) fn change_slots(&mut self, numbers: &mut Numbers, workloads: &Turnover<String>) {
        change(SLOTS, &mut self.slots, (&mut numbers.workloads, &mut numbers.next_slot), workloads);
    }

    /// As [`Numbers::assign_services`], by what has changed.
    pub(crate) fn change_services(&mut self, numbers: &mut Numbers, turnover: &Turnover<FrontendKey>, most: usize) {
        change(services(most), &mut self.services, (&mut numbers.services, &mut numbers.next_service), turnover);
    }
}

#[cfg(test)]
mod tests {
    use weft_abi::{Addr, FrontendFlags};

    use super::*;

    fn keys(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn service(number: u32) -> FrontendKey {
        FrontendKey::of_cluster(weft_abi::Addr::v4(number.to_be()), 80, 6)
    }

    #[test]
    fn numbers_stay_and_freed_ones_rest() {
        let mut numbers = Numbers::default();
        numbers.assign_slots(&keys(&["a", "b"]));
        assert_eq!((numbers.workloads["a"], numbers.workloads["b"]), (2, 3));
        numbers.assign_slots(&keys(&["b", "c"]));
        assert_eq!(numbers.workloads, BTreeMap::from([("b".into(), 3), ("c".into(), 4)]), "2 rests");
        let before = numbers.clone();
        numbers.assign_slots(&keys(&["b", "c"]));
        assert_eq!(numbers, before);
    }

    #[test]
    fn numbers_of_services_are_their_own_and_run_out_gracefully() {
        let mut numbers = Numbers::default();
        let many: BTreeSet<FrontendKey> = (0..100_001).map(service).collect();
        numbers.assign_slots(&keys(&["w1", "w2"]));
        numbers.assign_services(&many, 100_000);
        let all: BTreeSet<u32> = numbers.services.values().copied().collect();
        assert_eq!((all.len(), all.first(), all.last()), (100_000, Some(&1), Some(&100_000)));
        assert_eq!(numbers.workloads, BTreeMap::from([("w1".into(), 2), ("w2".into(), 3)]));
        let (kept, new) = (service(3), service(100_001));
        let before = numbers.services[&kept];
        numbers.assign_services(&[kept, new].into(), 100_000);
        assert_eq!(numbers.services, [(kept, before), (new, 1)].into(), "wraps around to what is free");
    }

    #[test]
    fn what_the_maps_hold_is_recovered_and_mended() {
        let value = |service, flags| Frontend { service, flags };
        let frontends = BTreeMap::from([
            (service(1), value(7, 0)),
            (service(2), value(8, 0)),
            (service(3), value(7, 0)),
            (service(4), value(101, 0)),
            (service(5), value(0, 0)),
            (service(6), value(7, FrontendFlags::EXTERNAL | FrontendFlags::FURTHER)),
            (service(7), value(0, FrontendFlags::ADDRESS)),
        ]);
        let port = |workload| Port { workload, ingress_list: 5, egress_list: CLOSED_LIST, ..Port::default() };
        let ports = BTreeMap::from([(10, port(9)), (11, port(8)), (12, port(9))]);
        let attachment = |ifindex: u32| {
            let link = weft_api::PortLink { ifindex, ifname: format!("weft{ifindex}") };
            let sample = Attachment::sample(u8::try_from(ifindex).unwrap(), None, &["10.0.0.1"]);
            Arc::new(Attachment { link: Some(link), ..sample })
        };
        let attachments = [10, 11, 13].map(attachment);
        let ids = attachments.clone().map(|attachment| attachment.spec.id.to_string());
        let serving = ([(BackendKey::new(7, Addr::v4(1), 80), 0)].into(), BTreeMap::new());
        let mut numbers = Numbers::recovered(
            HashKey([1, 2]),
            &frontends,
            (&serving.0, &serving.1),
            &BTreeMap::new(),
            &ports,
            &attachments,
        );
        assert_eq!(numbers.refused, [2, 4, 5].map(service).into());
        assert_eq!(numbers.standing_lists, [5].into(), "neither none nor closed");
        assert_eq!((numbers.key, numbers.next_slot), (HashKey([1, 2]), 10), "after the highest");
        numbers.assign_slots(&ids.clone().into());
        assert_eq!([&ids[0], &ids[1]].map(|id| numbers.workloads[id]), [9, 8]);
        let wanted: BTreeSet<FrontendKey> = (1..6).map(service).collect();
        numbers.assign_services(&wanted, 100);
        assert_eq!([1, 2].map(|key| numbers.services[&service(key)]), [7, 8]);
        let all: BTreeSet<u32> = numbers.services.values().copied().collect();
        assert_eq!(all.len(), wanted.len(), "each has its own");
        assert!(all.iter().all(|number| (1..=100).contains(number)), "{all:?}");
        let slots: BTreeSet<u32> = numbers.workloads.values().copied().collect();
        assert!(slots.len() == ids.len() && slots.iter().all(|slot| SLOTS.contains(slot)), "{slots:?}");
    }
}
