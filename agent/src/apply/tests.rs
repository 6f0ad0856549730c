// SPDX-License-Identifier: Apache-2.0

mod cases;
mod fake;

use std::{collections::BTreeMap, rc::Rc};

use proptest::prelude::*;
use weft_abi::{
    ANY_IDENTITY, Addr, Backend, CidrKey, Local, Port, Remote, RuleKey, Rules, ServiceKey, SlotKey, generation,
};

use self::{
    cases::{ADDRESSES, address, desired},
    fake::Fake,
};
use super::{Applier, Digests, Summary, policy::Lookup};
use crate::model::Desired;

/// What a reader could find: maps at one moment, or a plan.
#[derive(Clone, Debug)]
struct State {
    ports: BTreeMap<u32, Port>,
    locals: BTreeMap<Addr, Local>,
    remotes: BTreeMap<CidrKey, Remote>,
    services: BTreeMap<ServiceKey, (u32, Vec<Option<Backend>>)>,
    identities: BTreeMap<Addr, u32>,
    cidrs: BTreeMap<CidrKey, u32>,
    rules: BTreeMap<RuleKey, Rules>,
}

impl From<&Fake> for State {
    fn from(fake: &Fake) -> Self {
        let backends = |service: weft_abi::Service| {
            let key = |index| SlotKey { service: service.id, generation: service.generation, index };
            (service.id, (0..service.count).map(|index| fake.slots.find(&key(index))).collect())
        };
        Self {
            ports: fake.ports.all(),
            locals: fake.locals.all(),
            remotes: fake.remotes.all(),
            services: fake.services.all().into_iter().map(|(key, service)| (key, backends(service))).collect(),
            identities: fake.identities.all(),
            cidrs: fake.cidrs.all(),
            rules: fake.rules.all(),
        }
    }
}

impl From<&Desired> for State {
    fn from(desired: &Desired) -> Self {
        let services = desired.services.iter();
        let services = services.map(|(key, s)| (*key, (s.id, s.backends.iter().copied().map(Some).collect())));
        Self {
            ports: desired.ports.clone(),
            locals: desired.locals.clone(),
            remotes: desired.remotes.clone(),
            services: services.collect(),
            identities: desired.identities.clone(),
            cidrs: desired.cidrs.clone(),
            rules: desired.rules.clone(),
        }
    }
}

impl State {
    fn identity(&self, address: Addr) -> u32 {
        Lookup::new(&self.identities, &self.cidrs).identity(&address)
    }

    fn remote(&self, address: Addr) -> Option<Remote> {
        let numbers: Vec<Remote> = self.remotes.values().copied().collect();
        let by_number = (1..).zip(self.remotes.keys()).map(|(number, key)| (*key, number)).collect();
        let found = Lookup::new(&BTreeMap::new(), &by_number).identity(&address);
        (found > 0).then(|| numbers[found as usize - 1])
    }

    /// The ports that a policy set allows with a peer, as bits.
    fn allows(&self, policy: u32, peer: Addr) -> u32 {
        if policy == 0 {
            return u32::MAX;
        }
        self.rules_of(policy, self.identity(peer)) | self.rules_of(policy, ANY_IDENTITY)
    }

    fn rules_of(&self, policy: u32, identity: u32) -> u32 {
        let mut allowed = 0;
        for chunk in 0..RuleKey::MAX_CHUNKS {
            let Some(rules) = self.rules.get(&RuleKey { policy, identity, chunk }) else { break };
            let counted = rules.rules.iter().take(usize::from(rules.count));
            allowed |= counted.fold(0, |bits, rule| bits | 1 << rule.first);
            if rules.more == 0 {
                break;
            }
        }
        allowed
    }

    /// (port, direction) to what it lets in or out.
    fn policies(&self, ifindex: u32) -> Option<[u32; 2]> {
        self.ports.get(&ifindex).map(|port| [port.ingress_policy, port.egress_policy])
    }
}

fn check(now: &State, old: &State, new: &State) {
    for (key, service) in &now.services {
        assert!(service.1.iter().all(Option::is_some), "a slot without a backend: {service:?}");
        let known = [old, new].into_iter().any(|state| state.services.get(key).is_some_and(|s| s.1 == service.1));
        assert!(known, "backends that nobody asked for: {service:?}");
    }
    for (key, rules) in &now.rules {
        let next = RuleKey { chunk: key.chunk + 1, ..*key };
        assert!(rules.more == 0 || now.rules.contains_key(&next), "{key:?} leads to a chunk that is not there");
    }
    for local in now.locals.values() {
        assert!(now.ports.contains_key(&local.ifindex), "{local:?} leads to a port that is not there");
    }
    for peer in ADDRESSES.map(address) {
        let identity = now.identity(peer);
        assert!([old.identity(peer), new.identity(peer)].contains(&identity), "{peer:?} is {identity} for a moment");
        assert!([old.remote(peer), new.remote(peer)].contains(&now.remote(peer)), "{peer:?} leads astray for a moment");
    }
    for ifindex in now.ports.keys() {
        check_policy(*ifindex, now, old, new);
    }
}

fn check_policy(ifindex: u32, now: &State, old: &State, new: &State) {
    let (Some(is), Some(was), Some(will)) = (now.policies(ifindex), old.policies(ifindex), new.policies(ifindex))
    else {
        return;
    };
    for direction in [0, 1] {
        for peer in ADDRESSES.map(address) {
            let meant = old.allows(was[direction], peer) | new.allows(will[direction], peer);
            let opened = now.allows(is[direction], peer) & !meant;
            assert_eq!(opened, 0, "port {ifindex}: {peer:?} is let through for a moment");
        }
    }
}

/// Applies under the eyes of a reader; at its end the maps are what was desired.
fn apply_watched(applier: &mut Applier, fake: &Rc<Fake>, desired: &Desired) -> Summary {
    watch(fake, desired);
    let summary = applier.apply(&**fake, desired).unwrap();
    let (now, new) = (State::from(&**fake), State::from(desired));
    assert_eq!(format!("{now:?}"), format!("{new:?}"));
    let slots: usize = desired.services.values().map(|service| service.backends.len()).sum();
    assert_eq!(fake.slots.all().len(), slots, "old slots are left");
    for service in fake.services.all().values() {
        assert_eq!(fake.generations.all().get(&service.id), Some(&service.generation), "not published");
    }
    summary
}

fn watch(fake: &Rc<Fake>, desired: &Desired) {
    let (old, new) = (State::from(&**fake), State::from(desired));
    fake.watch(move |fake| check(&State::from(fake), &old, &new));
}

/// Whatever changed was published, and nothing else.
fn check_generations(before: &BTreeMap<u32, u32>, after: &BTreeMap<u32, u32>, old: &Desired, new: &Desired) {
    let moved = |slot: u32| before.get(&slot).copied().unwrap_or(0) != after.get(&slot).copied().unwrap_or(0);
    let mut any = false;
    for slot in (110..114).chain([generation::ROUTES]) {
        let changed = if slot == generation::ROUTES {
            old.routes_digest != new.routes_digest
        } else {
            old.workload_digests.get(&slot) != new.workload_digests.get(&slot)
        };
        assert_eq!(moved(slot), changed, "generation of {slot}");
        any |= changed;
    }
    let with_id =
        |desired: &Desired, id| desired.services.iter().find(|(_, s)| s.id == id).map(|(k, s)| (*k, s.clone()));
    for id in 20..28 {
        let changed = with_id(old, id) != with_id(new, id);
        assert_eq!(moved(id), changed, "generation of service {id}");
        any |= changed;
    }
    assert_eq!(moved(generation::EPOCH), any, "epoch");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_reader_is_served_at_every_moment(plans in proptest::collection::vec(desired(), 1..5)) {
        let fake = Fake::new();
        let mut applier = Applier::default();
        let mut old = Desired::default();
        for plan in plans {
            let before = fake.generations.all();
            apply_watched(&mut applier, &fake, &plan);
            check_generations(&before, &fake.generations.all(), &old, &plan);
            prop_assert!(applier.apply(&*fake, &plan).unwrap().is_unchanged());
            old = plan;
        }
    }

    #[test]
    fn a_pass_that_breaks_off_is_finished_by_the_next(
        old in desired(), new in desired(), writes in 0_usize..60, restart in any::<bool>(),
    ) {
        let fake = Fake::new();
        let mut applier = Applier::default();
        apply_watched(&mut applier, &fake, &old);
        let (before, digests) = (fake.generations.all(), applier.digests().clone());
        watch(&fake, &new);
        fake.fail_after(Some(writes));
        let broken = applier.apply(&*fake, &new).is_err();
        fake.fail_after(None);
        if broken {
            prop_assert_eq!(applier.digests(), &digests);
            if restart {
                applier = Applier::new(digests);
            }
            apply_watched(&mut applier, &fake, &new);
        }
        // Whatever was changed has moved since: more may have.
        let after = fake.generations.all();
        for (key, service) in &new.services {
            if old.services.get(key) != Some(service) {
                prop_assert_ne!(before.get(&service.id), after.get(&service.id));
            }
        }
        for service in old.services.iter().filter(|(key, _)| !new.services.contains_key(key)).map(|(_, s)| s) {
            prop_assert!(service.backends.is_empty() || before.get(&service.id) != after.get(&service.id));
        }
        for (slot, digest) in &new.workload_digests {
            prop_assert!(old.workload_digests.get(slot) == Some(digest) || before.get(slot) != after.get(slot));
        }
    }
}

#[test]
fn a_restart_changes_nothing() {
    let fake = Fake::new();
    let plan = Desired { workload_digests: [(110, 7)].into(), routes_digest: 3, ..Desired::default() };
    let mut applier = Applier::default();
    assert!(!applier.apply(&*fake, &plan).unwrap().is_unchanged());
    let digests: Digests = serde_json::from_str(&serde_json::to_string(applier.digests()).unwrap()).unwrap();
    assert!(Applier::new(digests).apply(&*fake, &plan).unwrap().is_unchanged());
}

#[test]
fn a_service_that_does_not_fit_keeps_its_old_backends_and_is_told() {
    let key = ServiceKey { addr: address(200), port: 80, protocol: 6, pad: 0 };
    let backends = |count: u8| (0..count).map(|last| Backend { addr: address(last), port: 1, flags: 0 }).collect();
    let plan = |count: u8| {
        let service = crate::model::DesiredService { id: 20, backends: backends(count) };
        Desired { services: [(key, service)].into(), routes_digest: u64::from(count), ..Desired::default() }
    };
    let fake = Fake::new();
    let mut applier = Applier::default();
    assert!(applier.apply(&*fake, &plan(2)).unwrap().problems.is_empty());
    fake.slots.limit(4);
    let summary = applier.apply(&*fake, &plan(3)).unwrap();
    assert!(
        summary.problems[0].contains("service number 20") && summary.problems[0].contains("mapSizes"),
        "{summary:?}"
    );
    assert_eq!((fake.services.all()[&key].count, fake.slots.all().len()), (2, 2));
    assert_eq!(fake.generations.all()[&generation::ROUTES], 2, "the rest of the plan was applied");
    fake.slots.limit(5);
    assert!(applier.apply(&*fake, &plan(3)).unwrap().problems.is_empty());
    assert_eq!((fake.services.all()[&key].count, fake.slots.all().len()), (3, 3));
}
