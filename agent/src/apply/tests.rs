// SPDX-License-Identifier: Apache-2.0

mod blocks;
mod cases;
mod classes;
pub(crate) mod fake;
mod reader;
mod services;

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use proptest::prelude::*;
use weft_abi::{
    AddressKey, Class, Device, Frontend, FrontendFlags, FrontendKey, List, Owner, Pool, Port, RuleKey, Run, generation,
};

use self::{
    cases::{SERVICES, address, desired},
    fake::Fake,
    reader::{State, check, check_published, check_what_is_open, is_applied_or_closed},
    services::plan_of,
};
use super::{Applier, Patch, Summary, Table as _};
use crate::model::{Desired, DesiredBalancer};

/// Applies under the eyes of a reader; at its end the maps are what was desired.
fn apply_watched(applier: &mut Applier, fake: &Rc<Fake>, desired: &Desired) -> Summary {
    watch(fake, desired);
    let summary = applier.apply(&**fake, desired).unwrap();
    let (now, new) = (State::from(&**fake), State::from(desired));
    assert_eq!(format!("{now:?}"), format!("{new:?}"));
    assert_eq!(fake.members.all().len(), members_of(desired), "old sets are left, or one stands twice");
    check_room(fake, desired);
    for (service, balancer) in fake.balancers.all() {
        let published = fake.service_generations.all().get(&service).copied().unwrap_or_default();
        assert_eq!(published, balancer.generation, "not published");
    }
    summary
}

/// Rings take as much as the plan says, and are those of sets that stand.
fn check_room(fake: &Fake, desired: &Desired) {
    let rooms = desired.balancers.iter().map(|(service, balancer)| {
        let stand = fake.rings.all().keys().filter(|key| key.service == *service).count();
        let others = balancer.keeping.len() + balancer.sources.len();
        let members = fake.members.all().keys().filter(|key| key.service == *service).count();
        (*service, stand * weft_abi::RingNode::MEMBERS as usize + members + others, balancer.room())
    });
    for (service, taken, planned) in rooms {
        assert!(taken <= planned, "Service number {service} takes {taken}, planned are {planned}");
    }
    let is_led_to = |key: &&weft_abi::MemberKey| {
        let balancer = fake.balancers.find(&key.service);
        balancer.is_some_and(|balancer| balancer.sets().iter().any(|set| set.set == key.set && set.levels != 0))
    };
    assert!(fake.rings.all().keys().all(|key| is_led_to(&key)), "old rings are left");
}

/// How many members stand where equal sets of a Service port are one.
fn members_of(desired: &Desired) -> usize {
    let of_one = |balancer: &DesiredBalancer| -> usize {
        balancer.sets().into_iter().collect::<BTreeSet<_>>().into_iter().map(|set| set.len()).sum()
    };
    desired.balancers.values().map(of_one).sum()
}

fn watch(fake: &Rc<Fake>, desired: &Desired) {
    let (old, new) = (State::from(&**fake), State::from(desired));
    fake.watch(move |fake| {
        let now = State::from(fake);
        check(&now, &old, &new);
        check_published(fake, &now, &old, &new);
    });
}

/// Whether somebody has left a Service port, so that its flows must decide again.
fn has_left(old: &Desired, new: &Desired, number: u32) -> bool {
    let (old, new) = (State::from(old), State::from(new));
    !old.names(number).is_subset(&new.names(number)) || !old.leading_to(number).is_subset(&new.leading_to(number))
}

/// Whatever changed was published, and nothing else.
fn check_generations([before, services_before]: &[BTreeMap<u32, u32>; 2], fake: &Fake, old: &Desired, new: &Desired) {
    let (after, services) = (fake.generations.all(), [services_before, &fake.service_generations.all()]);
    let moved = |slot: u32| before.get(&slot).copied().unwrap_or(0) != after.get(&slot).copied().unwrap_or(0);
    let mut any = false;
    for slot in (110..114).chain([generation::ROUTES]) {
        let changed = if slot == generation::ROUTES {
            let (was, is) = (State::from(old), State::from(new));
            let led = |key: &FrontendKey| old.frontends.get(key).map(|frontend| frontend.service);
            let is_new = |(key, frontend): (&FrontendKey, &Frontend)| {
                frontend.flags & FrontendFlags::EXTERNAL != 0 && led(key) != Some(frontend.service)
            };
            old.routes_digest != new.routes_digest
                || was.pools != is.pools
                || was.hosts() != is.hosts()
                || new.frontends.iter().any(is_new)
        } else {
            old.workload_digests.get(&slot) != new.workload_digests.get(&slot)
        };
        assert_eq!(moved(slot), changed, "generation of {slot}");
        any |= changed;
    }
    for number in SERVICES {
        let changed = has_left(old, new, number);
        assert_eq!(
            services[0].get(&number) != services[1].get(&number),
            changed,
            "generation of Service port {number}"
        );
        any |= changed;
    }
    assert_eq!(moved(generation::EPOCH), any, "epoch");
}

/// As [`apply_watched`], by the patch alone.
fn patch_watched(applier: &mut Applier, fake: &Rc<Fake>, old: &Desired, desired: &Desired) {
    watch(fake, desired);
    applier.patch(&**fake, desired, &Patch::between(old, desired)).unwrap();
    assert_eq!(format!("{:?}", State::from(&**fake)), format!("{:?}", State::from(desired)));
    assert_eq!(fake.members.all().len(), members_of(desired), "old sets are left, or one stands twice");
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
            prop_assert_eq!(whole.service_generations.all(), patched.service_generations.all());
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
            let before = [fake.generations.all(), fake.service_generations.all()];
            apply_watched(&mut applier, &fake, &plan);
            check_generations(&before, &fake, &old, &plan);
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
        let (before, services_before) = (fake.generations.all(), fake.service_generations.all());
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
        let after_services = fake.service_generations.all();
        for number in SERVICES.filter(|number| has_left(&old, &new, *number)) {
            prop_assert_ne!(services_before.get(&number), after_services.get(&number));
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
        let services_before = fake.service_generations.all();
        let contents = format!("{:?}", State::from(&*fake));
        watch(&fake, &new);
        fake.fail_after(Some(writes));
        let outcome = Applier::default().apply(&*fake, &new);
        fake.fail_after(None);
        let between = State::from(&*fake);
        let touched = format!("{between:?}") != contents;
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
        // Flows may have been decided under what is taken back: towards members, or by frontends, that are not there again.
        let stood = State::from(&old);
        for number in SERVICES {
            let came = !between.names(number).is_subset(&stood.names(number))
                || !between.leading_to(number).is_subset(&stood.leading_to(number));
            let moved = services_before.get(&number) != fake.service_generations.all().get(&number);
            prop_assert!(!came || moved, "{number}");
        }
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

/// Between the two steps of the epoch a flow may have compared a generation that moved only then.
#[test]
fn a_pass_that_broke_off_while_it_published_is_published() {
    let fake = Fake::new();
    let plan = plan_of(&[(20, &[1], &[1], &[])]);
    let epoch = || fake.generations.all().get(&generation::EPOCH).copied().unwrap_or_default();
    Applier::default().apply(&*fake, &plan).unwrap();
    let whole = epoch();
    assert_eq!(whole % 2, 0);
    Applier::default().apply(&*fake, &plan).unwrap();
    assert_eq!(epoch(), whole, "nothing to do");
    super::Tables::generations(&*fake).set(generation::EPOCH, &(whole + 1)).unwrap();
    Applier::default().apply(&*fake, &plan).unwrap();
    assert!(epoch() > whole + 1 && epoch() % 2 == 0, "{} after {}", epoch(), whole + 1);
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
    let host = |last| (AddressKey::of_cluster(address(last)), Owner::host(2));
    let workload = |last| (AddressKey::of_cluster(address(last)), Owner::workload(10));
    let port = Port { workload: 110, ..Port::default() };
    let plan = |devices: &[u32], addresses: &[(AddressKey, Owner)]| Desired {
        devices: devices.iter().map(|index| (*index, Device::default())).collect(),
        addresses: addresses.iter().copied().collect(),
        ports: [(10, port)].into(),
        ..Desired::default()
    };
    applier.apply(&*fake, &plan(&[3], &[host(1)])).unwrap();
    let mut moved = |devices: &[u32], addresses: &[(AddressKey, Owner)]| {
        let before = fake.generations.all();
        applier.apply(&*fake, &plan(devices, addresses)).unwrap();
        before.get(&generation::ROUTES) != fake.generations.all().get(&generation::ROUTES)
    };
    assert!(!moved(&[3], &[host(1), workload(5)]));
    assert!(moved(&[3, 4], &[host(1), workload(5)]), "a device");
    assert!(moved(&[3, 4], &[workload(5)]), "an address that goes");
    assert!(moved(&[3, 4], &[workload(5), host(2)]), "one that comes");
    assert!(moved(&[4], &[host(2)]));
}

/// What a device was masqueraded with may not be the node's any more.
#[test]
fn a_device_whose_new_pool_is_refused_is_closed() {
    let fake = Fake::new();
    let host = Owner::host(2);
    let plan = |last: u8| Desired {
        devices: [(3, Device { pool_v4: Pool::of(&[address(last)]), ..Device::default() })].into(),
        addresses: [(AddressKey::of_cluster(address(last)), host)].into(),
        ..Desired::default()
    };
    let mut applier = Applier::default();
    applier.apply(&*fake, &plan(1)).unwrap();
    // Of the pass: the digest of the routes, the address, the device.
    fake.fail(vec![false, false, true]);
    let summary = applier.apply(&*fake, &plan(2)).unwrap();
    assert!(summary.problems.iter().any(|problem| problem.contains("devices of the node")), "{:?}", summary.problems);
    assert!(fake.devices.all().is_empty());
    applier.apply(&*fake, &plan(2)).unwrap();
    assert_eq!(fake.devices.all(), plan(2).devices);
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
            let refused = |key: &FrontendKey| State::from(fake).served(key).is_some_and(<[_]>::is_empty);
            now.maps.frontends.retain(|key, _| !refused(key));
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
fn where_more_lists_stand_than_a_plan_may_take_what_goes_makes_room() {
    let plan = |lists: std::ops::Range<u64>| {
        let port = Port { ingress_list: lists.start, workload: 110, ..Port::default() };
        let head = List { flags: weft_abi::ListFlags::ANY, ..List::EMPTY };
        Desired {
            ports: [(10, port)].into(),
            lists: lists.clone().map(|list| (list, head)).collect(),
            rules: lists.map(|list| (RuleKey { list, part: weft_abi::part::ANY }, Run::default())).collect(),
            ..Desired::default()
        }
    };
    let fake = Fake::new();
    let mut applier = Applier::default();
    apply_watched(&mut applier, &fake, &plan(1..8));
    fake.rules.limit(8);
    assert!(apply_watched(&mut applier, &fake, &plan(11..15)).problems.is_empty());
    assert_eq!(Applier::room(&*fake).rules, 4);
}

/// A verdict stands for what its list and class say, by their numbers.
#[test]
fn verdicts_of_what_was_not_what_its_number_says_are_forgotten() {
    let part = weft_abi::part::ANY;
    let plan = Desired {
        ports: [(10, Port { ingress_list: 1, workload: 110, ..Port::default() })].into(),
        lists: [(1, List { flags: weft_abi::ListFlags::ANY, ..List::EMPTY })].into(),
        rules: [(RuleKey { list: 1, part }, Run::default())].into(),
        classes: [(40, Class { version: 7, ..Class::default() })].into(),
        ..Desired::default()
    };
    let fake = Fake::new();
    apply_watched(&mut Applier::default(), &fake, &plan);
    fake.watch(|_| {});
    // What is applied to what is known: forgotten, and generations moved.
    let applied = |known: &mut Applier, plan: &Desired| {
        let before = (fake.forgotten.get(), fake.generations.all().get(&110).copied());
        known.apply(&*fake, plan).unwrap();
        (fake.forgotten.get() > before.0, fake.generations.all().get(&110).copied() != before.1)
    };
    let mut known = Applier::default();
    assert_eq!(applied(&mut known, &plan), (true, false), "an agent begins");
    assert_eq!(applied(&mut known, &plan), (false, false));
    let mut open = Run::default();
    open.intervals[0].bits = weft_abi::Interval::bits(weft_abi::Verdict::Accept, weft_abi::Tier::Network);
    fake.rules.insert(&RuleKey { list: 1, part }, &open).unwrap();
    assert_eq!(applied(&mut Applier::default(), &plan), (true, true), "a rule: who was let in by it is judged anew");
    assert_eq!(applied(&mut known, &plan), (false, false));
    let relabelled = Desired { classes: [(40, Class { version: 8, ..Class::default() })].into(), ..plan };
    assert_eq!(applied(&mut known, &relabelled), (false, false), "another version of a class");
    let mistaken =
        Desired { classes: [(40, Class { version: 8, namespace: 9, ..Class::default() })].into(), ..relabelled };
    assert_eq!(applied(&mut known, &mistaken), (true, false), "another class under the same version");
}

/// A list that knows any pod tells pods by `REMOTES` and `ADDRESSES`: where one of those cannot be written, it is closed, and judges anew
/// when it opens.
#[test]
fn lists_that_know_any_pod_are_closed_while_who_is_a_pod_cannot_be_written() {
    let (cidr, own, part) =
        (weft_abi::CidrKey::of_cluster(address(0), 120), AddressKey::of_cluster(address(7)), weft_abi::part::ANY_POD);
    let remote =
        weft_abi::Remote { prefix_len: 120, ..weft_abi::Remote::new(address(250), weft_abi::RemoteKind::Tunnel) };
    let standing = Desired {
        ports: [10, 11]
            .map(|index| (index, Port { ingress_list: index.into(), workload: 100 + index, ..Port::default() }))
            .into(),
        lists: [(10, weft_abi::ListFlags::ANY_POD), (11, weft_abi::ListFlags::ANY)]
            .map(|(list, flags)| (list, List { flags, ..List::EMPTY }))
            .into(),
        rules: [(10, part), (11, weft_abi::part::ANY)]
            .map(|(list, part)| (RuleKey { list, part }, Run::default()))
            .into(),
        remotes: [(cidr, remote)].into(),
        addresses: [(own, weft_abi::Owner::workload(11))].into(),
        workload_digests: [(110, 1), (111, 1)].into(),
        ..Desired::default()
    };
    let without_remote = Desired { remotes: BTreeMap::new(), ..standing.clone() };
    let without_address = Desired { addresses: BTreeMap::new(), ..standing.clone() };
    let host = Desired { addresses: [(own, weft_abi::Owner::host(2))].into(), ..standing.clone() };
    // A host's address that comes is marked as a change first.
    for (next, failing) in [(without_remote, vec![true]), (without_address, vec![true]), (host, vec![false, true])] {
        let fake = Fake::new();
        let mut applier = Applier::default();
        apply_watched(&mut applier, &fake, &standing);
        fake.watch(|_| {});
        fake.fail(failing);
        let problems = applier.apply(&*fake, &next).unwrap().problems;
        assert_eq!(problems.len(), 1, "{problems:?}");
        let lists = || [10, 11].map(|index| fake.ports.all()[&index].ingress_list);
        assert_eq!(lists(), [weft_abi::CLOSED_LIST, 11]);
        let before = fake.generations.all();
        assert!(applier.apply(&*fake, &next).unwrap().problems.is_empty());
        assert_eq!(lists(), [10, 11]);
        let moved = [110, 111].map(|slot| before.get(&slot) != fake.generations.all().get(&slot));
        assert_eq!(moved, [true, false], "connections that it refused meanwhile are judged anew");
    }
}

/// A policy's edit: its rules, and one word of the port.
#[test]
fn an_edit_writes_a_list_and_swaps_a_word() {
    let part = weft_abi::part::ANY;
    let plan = |list: u64| Desired {
        ports: [(10, Port { ingress_list: list, workload: 110, ..Port::default() })].into(),
        lists: [(list, List { flags: weft_abi::ListFlags::ANY, ..List::EMPTY })].into(),
        rules: [(RuleKey { list, part }, Run::default())].into(),
        peers: [(AddressKey::of_cluster(address(1)), 40)].into(),
        classes: [(40, Class::default())].into(),
        workload_digests: [(110, list)].into(),
        ..Desired::default()
    };
    let fake = Fake::new();
    let mut applier = Applier::default();
    apply_watched(&mut applier, &fake, &plan(1));
    let seen = Rc::new(std::cell::RefCell::new(BTreeSet::new()));
    let words = seen.clone();
    fake.watch(move |fake| {
        words.borrow_mut().insert(fake.ports.find(&10).unwrap().ingress_list);
    });
    let summary = applier.patch(&*fake, &plan(2), &Patch::between(&plan(1), &plan(2))).unwrap();
    assert_eq!(*seen.borrow(), [1, 2].into(), "never closed");
    // Its list's head and rule, the port's word, and the digest's mark and value.
    assert_eq!((summary.written, summary.removed), (5, 2));
}
