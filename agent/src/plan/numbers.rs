// SPDX-License-Identifier: Apache-2.0
//! Numbers that objects keep while they live. No file remembers them: those that generations go by are read out of the maps by
//! whoever starts anew, the others are keyed hashes.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use weft_abi::{Port, Service, ServiceKey, generation};

use crate::model::{Attachment, HashKey, Numbers, TextHash};

/// Numbers of policy sets and identities: 0 means none (or the world), and the last value is [`weft_abi::ANY_IDENTITY`].
const ORDINARY: Range<u32> = 1..u32::MAX;

/// The generation slots, which are being given out for this plan.
struct Pool<'a> {
    used: BTreeSet<u32>,
    next: &'a mut u32,
}

impl Pool<'_> {
    const RANGE: Range<u32> = generation::FIRST_FREE..generation::SLOTS;

    /// Forgets keys that are gone, and entries that cannot be (a number twice, or out of range: a damaged map).
    fn keep<K: Ord>(&mut self, table: &mut BTreeMap<K, u32>, wanted: &BTreeSet<K>) {
        let used = &mut self.used;
        table.retain(|key, number| wanted.contains(key) && Self::RANGE.contains(number) && used.insert(*number));
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
        if self.used.len() >= Self::RANGE.len() {
            return None;
        }
        loop {
            if !Self::RANGE.contains(self.next) {
                *self.next = Self::RANGE.start;
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

/// The number that a name has unless another name has it.
fn first_choice(name: TextHash) -> u32 {
    ORDINARY.start + name.number(ORDINARY.end - ORDINARY.start)
}

/// Numbers the names that have none yet: by their hash, or the next one that is free.
fn give_names(used: &mut BTreeSet<u32>, table: &mut BTreeMap<TextHash, u32>, wanted: &BTreeSet<TextHash>) {
    for name in wanted {
        if table.contains_key(name) {
            continue;
        }
        // There are more numbers than any memory holds names.
        let mut number = first_choice(*name);
        while !used.insert(number) {
            number = if number + 1 < ORDINARY.end { number + 1 } else { ORDINARY.start };
        }
        table.insert(*name, number);
    }
}

fn assign_names(table: &mut BTreeMap<TextHash, u32>, wanted: &BTreeSet<TextHash>) {
    table.retain(|name, _| wanted.contains(name));
    let mut used = table.values().copied().collect();
    give_names(&mut used, table, wanted);
}

impl Numbers {
    /// What an earlier agent gave out, as the maps `SERVICES` and `PORTS` have it; `key`: the one that it numbered by. Whatever
    /// stands there, also by mistake, does no harm: a number that cannot be is given anew, and one that is another's stands for
    /// other digests and backends, so that its generation moves.
    #[must_use]
    pub fn recovered(
        key: HashKey,
        services: &BTreeMap<ServiceKey, Service>,
        ports: &BTreeMap<u32, Port>,
        attachments: &[Arc<Attachment>],
    ) -> Self {
        let slot_of = |attachment: &Arc<Attachment>| {
            let port = ports.get(&attachment.link.as_ref()?.ifindex)?;
            Some((attachment.spec.id.to_string(), port.workload))
        };
        let slots = services.values().map(|service| service.id).chain(ports.values().map(|port| port.workload));
        // Those that were freed lately are likely beyond it, or far before it.
        let highest = slots.filter(|slot| Pool::RANGE.contains(slot)).max().unwrap_or_default();
        let policies = ports.values().flat_map(|port| [port.ingress_policy, port.egress_policy]);
        Self {
            key,
            services: services.iter().map(|(key, service)| (*key, service.id)).collect(),
            workloads: attachments.iter().filter_map(slot_of).collect(),
            next_slot: highest + 1,
            refused: services.iter().filter(|(_, service)| service.count == 0).map(|(key, _)| *key).collect(),
            standing_policies: policies.filter(|number| ORDINARY.contains(number)).collect(),
            ..Self::default()
        }
    }

    /// Gives generation slots to exactly these workloads and Service frontends.
    pub(crate) fn assign_slots(&mut self, workloads: &BTreeSet<String>, services: &BTreeSet<ServiceKey>) {
        let mut pool = Pool { used: BTreeSet::new(), next: &mut self.next_slot };
        pool.keep(&mut self.workloads, workloads);
        pool.keep(&mut self.services, services);
        pool.give(&mut self.workloads, workloads);
        pool.give(&mut self.services, services);
    }

    /// Numbers exactly these policy sets.
    pub(crate) fn assign_policies(&mut self, wanted: &BTreeSet<TextHash>) {
        assign_names(&mut self.policies, wanted);
        self.standing_policies.clear();
    }

    /// Whether a policy set had room at the last plan, also that of an earlier agent.
    pub(crate) fn had_policy(&self, name: TextHash) -> bool {
        self.policies.contains_key(&name) || self.standing_policies.contains(&first_choice(name))
    }

    /// Numbers exactly these sets of peers.
    pub(crate) fn assign_identities(&mut self, wanted: &BTreeSet<TextHash>) {
        assign_names(&mut self.identities, wanted);
    }
}

/// The generation slots and identities that are given out: so that a few of them change at the cost of a few.
#[derive(Debug, Default)]
pub(crate) struct Given {
    slots: BTreeSet<u32>,
    identities: BTreeSet<u32>,
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
        let slots = numbers.workloads.values().chain(numbers.services.values());
        Self { slots: slots.copied().collect(), identities: numbers.identities.values().copied().collect() }
    }

    /// As [`Numbers::assign_slots`], by what has changed.
    pub(crate) fn change_slots(
        &mut self,
        numbers: &mut Numbers,
        workloads: &Turnover<String>,
        services: &Turnover<ServiceKey>,
    ) {
        free(&mut self.slots, &mut numbers.workloads, &workloads.gone);
        free(&mut self.slots, &mut numbers.services, &services.gone);
        let mut pool = Pool { used: std::mem::take(&mut self.slots), next: &mut numbers.next_slot };
        pool.give(&mut numbers.workloads, &workloads.new);
        pool.give(&mut numbers.services, &services.new);
        self.slots = pool.used;
    }

    /// As [`Numbers::assign_identities`], by what has changed.
    pub(crate) fn change_identities(&mut self, numbers: &mut Numbers, sets: &Turnover<TextHash>) {
        free(&mut self.identities, &mut numbers.identities, &sets.gone);
        give_names(&mut self.identities, &mut numbers.identities, &sets.new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn service(number: u32) -> ServiceKey {
        ServiceKey { addr: weft_abi::Addr::v4(number.to_be()), port: 80, protocol: 6, pad: 0 }
    }

    #[test]
    fn numbers_stay_and_freed_ones_rest() {
        let mut numbers = Numbers::default();
        let none = BTreeSet::new();
        numbers.assign_slots(&keys(&["a", "b"]), &none);
        assert_eq!((numbers.workloads["a"], numbers.workloads["b"]), (2, 3));
        numbers.assign_slots(&keys(&["b", "c"]), &none);
        assert_eq!(numbers.workloads, BTreeMap::from([("b".into(), 3), ("c".into(), 4)]), "2 rests");
        let before = numbers.clone();
        numbers.assign_slots(&keys(&["b", "c"]), &none);
        assert_eq!(numbers, before);
    }

    #[test]
    fn slots_of_services_and_workloads_never_meet_and_run_out_gracefully() {
        let mut numbers = Numbers::default();
        let many: BTreeSet<ServiceKey> = (0..generation::SLOTS).map(service).collect();
        numbers.assign_slots(&keys(&["w1", "w2"]), &many);
        let all: BTreeSet<u32> = numbers.services.values().chain(numbers.workloads.values()).copied().collect();
        assert_eq!(all.len(), (generation::SLOTS - generation::FIRST_FREE) as usize);
        assert_eq!(all.first(), Some(&generation::FIRST_FREE));
        assert_eq!(numbers.services.len() + 2, all.len(), "workloads come first");
        let (kept, new) = (service(3), service(generation::SLOTS));
        numbers.assign_slots(&keys(&["w1", "w2"]), &[kept, new].into());
        assert_eq!(numbers.services[&new], generation::FIRST_FREE + 2, "wraps around to what is free");
    }

    #[test]
    fn names_keep_their_numbers_and_give_way_where_two_meet() {
        let mut numbers = Numbers::default();
        let [a, b, c] = ["a", "b", "c"].map(|text| numbers.key.of_text(text));
        numbers.assign_policies(&[a, b].into());
        assert_eq!(numbers.policies, BTreeMap::from([(a, first_choice(a)), (b, first_choice(b))]));
        // As if `c` had come to the number of `b` first.
        numbers.policies = BTreeMap::from([(c, first_choice(b))]);
        numbers.assign_policies(&[b, c].into());
        assert_eq!(numbers.policies, BTreeMap::from([(b, first_choice(b) + 1), (c, first_choice(b))]));
        numbers.assign_policies(&[b].into());
        assert_eq!(numbers.policies, BTreeMap::from([(b, first_choice(b) + 1)]), "while it lives");
        let mut used = BTreeSet::from([ORDINARY.end - 1, ORDINARY.start]);
        let mut table = BTreeMap::new();
        give_names(&mut used, &mut table, &[a].into());
        assert!(ORDINARY.contains(&table[&a]));
    }

    #[test]
    fn what_the_maps_hold_is_recovered_and_mended() {
        let value = |id, count| Service { id, generation: 1, count, flags: 0 };
        let services = BTreeMap::from([
            (service(1), value(7, 2)),
            (service(2), value(8, 0)),
            (service(3), value(7, 1)),
            (service(4), value(generation::SLOTS, 1)),
            (service(5), value(generation::ROUTES, 1)),
        ]);
        let port = |workload| Port { workload, ingress_policy: 5, egress_policy: u32::MAX, ..Port::default() };
        let ports = BTreeMap::from([(10, port(9)), (11, port(8)), (12, port(9))]);
        let attachment = |ifindex: u32| {
            let link = weft_api::PortLink { ifindex, ifname: format!("weft{ifindex}") };
            let sample = Attachment::sample(u8::try_from(ifindex).unwrap(), None, &["10.0.0.1"]);
            Arc::new(Attachment { link: Some(link), ..sample })
        };
        let attachments = [10, 11, 13].map(attachment);
        let ids = attachments.clone().map(|attachment| attachment.spec.id.to_string());
        let mut numbers = Numbers::recovered(HashKey([1, 2]), &services, &ports, &attachments);
        assert_eq!(numbers.refused, [service(2)].into());
        assert_eq!(numbers.standing_policies, [5].into(), "neither none nor closed");
        assert_eq!((numbers.key, numbers.next_slot), (HashKey([1, 2]), 10), "after the highest");
        numbers.assign_slots(&ids.clone().into(), &services.keys().copied().collect());
        assert_eq!([&ids[0], &ids[1]].map(|id| numbers.workloads[id]), [9, 8]);
        assert_eq!(numbers.services[&service(1)], 7);
        let all: BTreeSet<u32> = numbers.services.values().chain(numbers.workloads.values()).copied().collect();
        assert_eq!(all.len(), services.len() + ids.len(), "each has its own");
        assert!(all.iter().all(|slot| Pool::RANGE.contains(slot)));
    }
}
