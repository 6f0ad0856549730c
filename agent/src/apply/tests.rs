// SPDX-License-Identifier: Apache-2.0

mod cases;
pub(crate) mod fake;

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use proptest::prelude::*;
use weft_abi::{
    ANY_IDENTITY, Addr, Backend, BackendKey, CidrKey, Device, Local, Port, Remote, RuleKey, Rules, ServiceKey, SlotKey,
    generation,
};

use self::{
    cases::{ADDRESSES, address, desired},
    fake::Fake,
};
use super::{Applier, Patch, Summary, Table as _, patch::Layered, policy::Lookup};
use crate::model::{Desired, DesiredService};

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
    serving: BTreeSet<BackendKey>,
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
            serving: fake.backends.all().into_keys().collect(),
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
            serving: desired.services.values().flat_map(DesiredService::names).collect(),
        }
    }
}

impl State {
    fn identity(&self, address: Addr) -> u32 {
        Lookup::new(Layered::new(&self.identities), Layered::new(&self.cidrs)).identity(&address)
    }

    fn remote(&self, address: Addr) -> Option<Remote> {
        let numbers: Vec<Remote> = self.remotes.values().copied().collect();
        let by_number = (1..).zip(self.remotes.keys()).map(|(number, key)| (*key, number)).collect();
        let found = Lookup::new(Layered::new(&BTreeMap::new()), Layered::new(&by_number)).identity(&address);
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
    for peer in ADDRESSES.map(address) {
        let identity = now.identity(peer);
        assert!([old.identity(peer), new.identity(peer)].contains(&identity), "{peer:?} is {identity} for a moment");
        assert!([old.remote(peer), new.remote(peer)].contains(&now.remote(peer)), "{peer:?} leads astray for a moment");
    }
    check_what_is_open(now, old, new);
}

/// What must hold also where the kernel refuses something.
fn check_what_is_open(now: &State, old: &State, new: &State) {
    for (key, service) in &now.services {
        assert!(service.1.iter().all(Option::is_some), "a slot without a backend: {service:?}");
        let known = [old, new].into_iter().any(|state| state.services.get(key).is_some_and(|s| s.1 == service.1));
        assert!(known, "backends that nobody asked for: {service:?}");
        let serves = |backend: &Backend| now.serving.contains(&BackendKey::new(service.0, backend.addr, backend.port));
        assert!(service.1.iter().flatten().all(serves), "a backend without a name: {service:?}");
    }
    for (key, rules) in &now.rules {
        let next = RuleKey { chunk: key.chunk + 1, ..*key };
        assert!(rules.more == 0 || now.rules.contains_key(&next), "{key:?} leads to a chunk that is not there");
    }
    for local in now.locals.values() {
        assert!(now.ports.contains_key(&local.ifindex), "{local:?} leads to a port that is not there");
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

/// After a pass every port is as planned, closed, or not there; where nothing was refused all are as planned.
fn is_applied_or_closed(fake: &Fake, new: &Desired, refused: bool) {
    let (now, planned) = (State::from(fake), State::from(new));
    for ifindex in now.ports.keys() {
        let (Some(is), Some(will)) = (now.policies(*ifindex), planned.policies(*ifindex)) else { continue };
        for direction in [0, 1] {
            for peer in ADDRESSES.map(address) {
                let (opens, may) = (now.allows(is[direction], peer), planned.allows(will[direction], peer));
                assert_eq!(opens & !may, 0, "port {ifindex}: {peer:?} is let through");
                assert!(refused || opens == may, "port {ifindex}: {peer:?} is kept out");
            }
        }
    }
    for (key, (_, backends)) in &now.services {
        let wanted = planned.services.get(key).map(|(_, backends)| backends);
        assert!(backends.is_empty() || wanted == Some(backends), "a stale backend of {key:?}");
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
    fake.watch(move |fake| {
        let now = State::from(fake);
        check(&now, &old, &new);
        check_published(fake, &now, &old, &new);
    });
}

/// A flow that decides again, because the generation of its Service has moved, finds none of those who serve no more: neither new flows nor
/// those that they have.
fn check_published(fake: &Fake, now: &State, old: &State, new: &State) {
    let generations = fake.generations.all();
    let serving = |state: &State, number: u32| -> BTreeSet<BackendKey> {
        let services = state.services.values().filter(|(id, _)| *id == number);
        let backends = services.flat_map(|(id, backends)| backends.iter().flatten().map(move |backend| (*id, backend)));
        backends.map(|(id, backend)| BackendKey::new(id, backend.addr, backend.port)).collect()
    };
    for value in fake.services.all().into_values() {
        if generations.get(&value.id) == Some(&value.generation) {
            let (is, was) = (serving(now, value.id), serving(old, value.id));
            let gone = was.difference(&is).filter(|name| !new.serving.contains(*name));
            let gone: Vec<_> = gone.filter(|name| now.serving.contains(*name)).collect();
            assert!(gone.is_empty(), "{gone:?} serve no more");
        }
    }
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

/// As [`apply_watched`], by the patch alone.
fn patch_watched(applier: &mut Applier, fake: &Rc<Fake>, old: &Desired, desired: &Desired) {
    watch(fake, desired);
    applier.patch(&**fake, desired, &Patch::between(old, desired)).unwrap();
    assert_eq!(format!("{:?}", State::from(&**fake)), format!("{:?}", State::from(desired)));
    let slots: usize = desired.services.values().map(|service| service.backends.len()).sum();
    assert_eq!(fake.slots.all().len(), slots, "old slots are left");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_patch_is_as_good_as_its_whole_plan(plans in proptest::collection::vec(desired(), 2..6)) {
        let (whole, patched) = (Fake::new(), Fake::new());
        let (mut one, mut other) = (Applier::default(), Applier::default());
        let mut old = Desired::default();
        for plan in plans {
            one.apply(&*whole, &plan).unwrap();
            patch_watched(&mut other, &patched, &old, &plan);
            prop_assert_eq!(whole.generations.all(), patched.generations.all());
            prop_assert_eq!(whole.digests.all(), patched.digests.all());
            prop_assert!(other.apply(&*patched, &plan).unwrap().is_unchanged());
            old = plan;
        }
    }
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
        let before = fake.generations.all();
        watch(&fake, &new);
        fake.fail_after(Some(writes));
        let outcome = applier.apply(&*fake, &new);
        fake.fail_after(None);
        if outcome.is_err() || outcome.is_ok_and(|summary| !summary.problems.is_empty()) {
            if restart {
                applier = Applier::default();
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

    /// What was decided meanwhile must not stand, though the plan that it was decided under never came to be.
    #[test]
    fn a_pass_that_breaks_off_and_is_taken_back_has_moved_what_it_touched(
        old in desired(), new in desired(), writes in 0_usize..60,
    ) {
        let fake = Fake::new();
        apply_watched(&mut Applier::default(), &fake, &old);
        let (before, marked) = (fake.generations.all(), fake.digests.all());
        let contents = format!("{:?}", State::from(&*fake));
        watch(&fake, &new);
        fake.fail_after(Some(writes));
        let outcome = Applier::default().apply(&*fake, &new);
        fake.fail_after(None);
        let touched = format!("{:?}", State::from(&*fake)) != contents;
        fake.watch(|_| {});
        let mut applier = Applier::default();
        applier.apply(&*fake, &old).unwrap();
        let after = fake.generations.all();
        let slots = old.workload_digests.keys().chain(new.workload_digests.keys());
        for slot in slots.filter(|slot| old.workload_digests.get(slot) != new.workload_digests.get(slot)) {
            prop_assert!(!touched || before.get(slot) != after.get(slot), "{slot}");
        }
        let routes = generation::ROUTES;
        prop_assert!(!touched || old.routes_digest == new.routes_digest || before.get(&routes) != after.get(&routes));
        prop_assert!(outcome.is_err() || writes > 0);
        prop_assert_eq!(fake.digests.all(), marked, "the digests of the plan that stands");
        prop_assert!(applier.apply(&*fake, &old).unwrap().is_unchanged());
    }
}

#[test]
fn a_restart_changes_nothing() {
    let fake = Fake::new();
    let plan = Desired { workload_digests: [(110, 7)].into(), routes_digest: 3, ..Desired::default() };
    assert!(!Applier::default().apply(&*fake, &plan).unwrap().is_unchanged());
    assert!(Applier::default().apply(&*fake, &plan).unwrap().is_unchanged());
}

#[test]
fn another_node_has_flows_beyond_it_decided_again_and_other_shares_do_not() {
    let fake = Fake::new();
    let mut applier = Applier::default();
    let config = weft_abi::Config { overlay_ifindex: 7, flow_rate: 10, ..weft_abi::Config::default() };
    let plan = |config| Desired { config, routes_digest: 3, workload_digests: [(110, 7)].into(), ..Desired::default() };
    applier.apply(&*fake, &plan(config)).unwrap();
    let moved = |applier: &mut Applier, config| {
        let before = fake.generations.all();
        applier.apply(&*fake, &plan(config)).unwrap();
        let after = fake.generations.all();
        assert_eq!(before.get(&110), after.get(&110));
        assert_eq!(fake.digests.all(), [(110, 7), (generation::ROUTES, 3)].into());
        before.get(&generation::ROUTES) != after.get(&generation::ROUTES)
    };
    let overlay = weft_abi::Config { overlay_ifindex: 8, ..config };
    assert!(moved(&mut applier, overlay), "the overlay was made anew");
    assert!(!moved(&mut applier, weft_abi::Config { flow_rate: 11, ..overlay }));
    assert!(!moved(&mut Applier::default(), weft_abi::Config { flow_rate: 11, ..overlay }), "a restart");
}

#[test]
fn the_hosts_addresses_and_devices_have_flows_decided_again_and_workloads_do_not() {
    let fake = Fake::new();
    let mut applier = Applier::default();
    let host = |last| (address(last), Local { ifindex: 2, kind: weft_abi::LocalKind::Host as u32 });
    let workload = |last| (address(last), Local { ifindex: 10, kind: weft_abi::LocalKind::Workload as u32 });
    let port = Port { workload: 110, ..Port::default() };
    let plan = |devices: &[u32], locals: &[(Addr, Local)]| Desired {
        devices: devices.iter().map(|index| (*index, Device::default())).collect(),
        locals: locals.iter().copied().collect(),
        ports: [(10, port)].into(),
        ..Desired::default()
    };
    applier.apply(&*fake, &plan(&[3], &[host(1)])).unwrap();
    let mut moved = |devices: &[u32], locals: &[(Addr, Local)]| {
        let before = fake.generations.all();
        applier.apply(&*fake, &plan(devices, locals)).unwrap();
        before.get(&generation::ROUTES) != fake.generations.all().get(&generation::ROUTES)
    };
    assert!(!moved(&[3], &[host(1), workload(5)]));
    assert!(moved(&[3, 4], &[host(1), workload(5)]), "a device");
    assert!(moved(&[3, 4], &[workload(5)]), "an address that goes");
    assert!(moved(&[3, 4], &[workload(5), host(2)]), "one that comes");
    assert!(moved(&[4], &[host(2)]));
}

#[test]
fn digests_that_are_lost_or_of_something_else_move_generations_once() {
    let plan = Desired { workload_digests: [(110, 7), (111, 8)].into(), routes_digest: 3, ..Desired::default() };
    let fake = Fake::new();
    Applier::default().apply(&*fake, &plan).unwrap();
    let standing = fake.digests.all();
    let moved = |entries: &[(u32, Option<u64>)]| {
        for (slot, digest) in entries {
            match digest {
                Some(digest) => fake.digests.insert(slot, digest).unwrap(),
                None => fake.digests.remove(slot).unwrap(),
            }
        }
        let summary = Applier::default().apply(&*fake, &plan).unwrap();
        assert_eq!(fake.digests.all(), standing);
        assert!(Applier::default().apply(&*fake, &plan).unwrap().is_unchanged());
        summary.generations
    };
    assert_eq!(moved(&[(110, None)]), 1);
    assert_eq!(moved(&[(110, Some(9)), (generation::ROUTES, Some(9))]), 2);
    assert_eq!(moved(&[(111, Some(0)), (112, Some(5)), (u32::MAX, Some(5))]), 2, "there is no generation {}", u32::MAX);
}

#[test]
fn a_digest_of_zero_is_one_like_any_other() {
    let plan = Desired { workload_digests: [(110, 0)].into(), ..Desired::default() };
    let fake = Fake::new();
    Applier::default().apply(&*fake, &plan).unwrap();
    assert!(Applier::default().apply(&*fake, &plan).unwrap().is_unchanged());
}

#[test]
fn services_with_numbers_that_cannot_be_give_way() {
    let key = |last| ServiceKey { addr: address(last), port: 80, protocol: 6, pad: 0 };
    let service = |id| DesiredService { id, backends: vec![], keeping: vec![] };
    let plan = Desired { services: [(key(1), service(20))].into(), ..Desired::default() };
    let fake = Fake::new();
    for (last, id) in [(1, u32::MAX), (2, generation::SLOTS)] {
        let value = weft_abi::Service { id, generation: 1, count: 0, flags: 0 };
        fake.services.insert(&key(last), &value).unwrap();
    }
    apply_watched(&mut Applier::default(), &fake, &plan);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// The kernel refuses some writes, one by one: nothing opens, nobody else waits, and the next pass has everything.
    #[test]
    fn what_cannot_be_written_is_closed_and_holds_up_nobody(
        old in desired(), new in desired(), failing in proptest::collection::vec(prop::bool::weighted(0.1), 0..80),
    ) {
        let fake = Fake::new();
        let mut applier = Applier::default();
        apply_watched(&mut applier, &fake, &old);
        let (before, after) = (State::from(&*fake), State::from(&new));
        fake.watch(move |fake| {
            let mut now = State::from(fake);
            // Frontends that are refused have no backend, which neither plan asks for.
            now.services.retain(|_, (_, backends)| !backends.is_empty());
            check_what_is_open(&now, &before, &after);
        });
        fake.fail(failing);
        let outcome = applier.apply(&*fake, &new);
        fake.fail(Vec::new());
        if let Ok(summary) = &outcome {
            is_applied_or_closed(&fake, &new, !summary.problems.is_empty());
        }
        fake.watch(|_| {});
        applier.apply(&*fake, &new).unwrap();
        prop_assert_eq!(format!("{:?}", State::from(&*fake)), format!("{:?}", State::from(&new)));
    }
}

#[test]
fn a_service_that_does_not_fit_has_no_backend_and_is_told() {
    let key = |last| ServiceKey { addr: address(last), port: 80, protocol: 6, pad: 0 };
    let backends = |count: u8| (0..count).map(|last| Backend { addr: address(last), port: 1, flags: 0 }).collect();
    let plan = |counts: [u8; 2]| {
        let service = |id, count| DesiredService { id, backends: backends(count), keeping: vec![] };
        let services = [(key(200), service(20, counts[0])), (key(201), service(21, counts[1]))].into();
        Desired { services, routes_digest: counts.map(u64::from).iter().sum(), ..Desired::default() }
    };
    let fake = Fake::new();
    let mut applier = Applier::default();
    assert!(applier.apply(&*fake, &plan([2, 1])).unwrap().problems.is_empty());
    fake.slots.limit(5);
    let counts = || [200, 201].map(|last| fake.services.all()[&key(last)].count);
    assert!(applier.apply(&*fake, &plan([4, 1])).unwrap().problems.is_empty(), "it leaves its own slots first");
    assert_eq!((counts(), fake.slots.all().len()), ([4, 1], 5));
    assert!(applier.apply(&*fake, &plan([1, 4])).unwrap().problems.is_empty(), "what shrinks makes room");
    assert_eq!((counts(), fake.slots.all().len()), ([1, 4], 5));
    let summary = applier.apply(&*fake, &plan([2, 4])).unwrap();
    let told = &summary.problems[0];
    assert!(told.contains("service number 20") && told.contains("new flows to it are refused"), "{summary:?}");
    assert_eq!((counts(), fake.slots.all().len()), ([0, 4], 4), "none rather than an old one");
    fake.slots.limit(6);
    assert!(applier.apply(&*fake, &plan([2, 4])).unwrap().problems.is_empty());
    assert_eq!((counts(), fake.slots.all().len()), ([2, 4], 6));
}

#[test]
fn where_more_rules_stand_than_a_plan_may_take_what_goes_makes_room() {
    let port = |set| [(10, Port { ingress_policy: set, workload: 110, ..Port::default() })].into();
    let rules = |sets: std::ops::Range<u32>| {
        let key = |policy| RuleKey { policy, identity: ANY_IDENTITY, chunk: 0 };
        sets.map(|set| (key(set), Rules { count: 1, ..Rules::default() })).collect()
    };
    let fake = Fake::new();
    let mut applier = Applier::default();
    let old = Desired { ports: port(1), rules: rules(1..8), ..Desired::default() };
    apply_watched(&mut applier, &fake, &old);
    fake.rules.limit(8);
    let new = Desired { ports: port(11), rules: rules(11..15), ..Desired::default() };
    assert!(apply_watched(&mut applier, &fake, &new).problems.is_empty());
    assert_eq!(applier.room(&*fake).unwrap().rules, 4);
}
