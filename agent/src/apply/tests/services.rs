// SPDX-License-Identifier: Apache-2.0
//! Services: whose generation moves when, and what does not fit.

use weft_abi::{CLUSTER_NET, Frontend, FrontendFlags, FrontendKey, Member, generation};

use super::{
    apply_watched,
    cases::{address, frontend},
    fake::{self, Fake},
};
use crate::{
    apply::{Applier, Table as _},
    model::{Desired, DesiredBalancer},
};

fn member(last: u8) -> Member {
    Member::new(address(last), 1)
}

/// A Service port: its number, frontends, members, and those that terminate.
pub(super) type Served<'s> = (u32, &'s [u8], &'s [u8], &'s [u8]);

pub(super) fn plan_of(services: &[Served<'_>]) -> Desired {
    let mut plan = Desired { routes_digest: 1, ..Desired::default() };
    for (service, frontends, members, keeping) in services {
        let [members, keeping] = [members, keeping].map(|set| set.iter().copied().map(member).collect::<Vec<_>>());
        plan.balancers.insert(*service, DesiredBalancer::of(members, keeping));
        plan.frontends.extend(frontends.iter().map(|last| (frontend(*last), Frontend { service: *service, flags: 0 })));
    }
    plan
}

/// Until its ports stand a ClusterIP refuses none of them.
#[test]
fn a_cluster_ip_stands_after_its_ports_and_goes_before_them() {
    let fake = Fake::new();
    let mut plan = plan_of(&[(20, &[1], &[1], &[])]);
    let (port, itself) = (frontend(1), FrontendKey::of_address(CLUSTER_NET, frontend(1).addr));
    plan.frontends.insert(itself, Frontend { service: 0, flags: FrontendFlags::ADDRESS });
    fake.watch(move |fake| {
        let stand = fake.frontends.all();
        assert!(stand.contains_key(&port) || !stand.contains_key(&itself), "refused aloud: {stand:?}");
    });
    let mut applier = Applier::default();
    applier.apply(&*fake, &plan).unwrap();
    assert_eq!(fake.frontends.all().len(), 2);
    applier.apply(&*fake, &Desired::default()).unwrap();
    assert_eq!(fake.frontends.all().len(), 0);
}

#[test]
fn services_with_numbers_that_cannot_be_give_way() {
    let plan = Desired {
        frontends: [(frontend(1), Frontend { service: 20, flags: 0 })].into(),
        balancers: [(20, DesiredBalancer::of([], []))].into(),
        ..Desired::default()
    };
    let fake = Fake::new();
    for (last, service) in [(1, u32::MAX), (2, fake::SERVICE_PORTS + 1), (3, 0)] {
        fake.frontends.insert(&frontend(last), &Frontend { service, flags: 0 }).unwrap();
        fake.balancers
            .insert(&service, &weft_abi::Balancer { generation: 1, ..weft_abi::Balancer::default() })
            .unwrap();
    }
    apply_watched(&mut Applier::default(), &fake, &plan);
}

/// The kernel takes neither the next sets of a balancer nor that it has none: what it had serves no more.
#[test]
fn a_service_that_can_be_neither_changed_nor_emptied_leads_nowhere() {
    let fake = Fake::new();
    let mut applier = Applier::default();
    applier.apply(&*fake, &plan_of(&[(20, &[1], &[1], &[]), (21, &[3], &[3], &[])])).unwrap();
    let sets = fake.balancers.find(&20).unwrap().sets();
    fake.balancers.refuse(move |balancer| balancer.sets() != sets);
    let next = plan_of(&[(20, &[1, 2], &[1, 2], &[]), (21, &[3], &[3], &[])]);
    let summary = applier.apply(&*fake, &next).unwrap();
    assert!(summary.problems[0].starts_with("service number 20 with 2 backends"), "{summary:?}");
    assert_eq!(fake.frontends.all().into_keys().collect::<Vec<_>>(), [frontend(3)]);
    fake.balancers.refuse(|_| false);
    assert!(applier.apply(&*fake, &next).unwrap().problems.is_empty());
    assert_eq!(fake.frontends.all().len(), 3);
}

/// What moves the generation of a Service port, and with it all of its flows.
#[test]
fn a_service_moves_when_somebody_leaves_and_not_when_somebody_comes() {
    let fake = Fake::new();
    let mut applier = Applier::default();
    applier.apply(&*fake, &plan_of(&[(20, &[1], &[1, 2], &[])])).unwrap();
    let mut moved = |services: &[Served<'_>]| {
        let before = [fake.generations.all(), fake.service_generations.all()];
        apply_watched(&mut applier, &fake, &plan_of(services));
        let epoch = before[0].get(&generation::EPOCH) != fake.generations.all().get(&generation::EPOCH);
        let after = fake.service_generations.all();
        assert_eq!(before[1] != after, epoch, "where nothing moves nobody compares");
        before[1].get(&20) != after.get(&20)
    };
    assert!(!moved(&[(20, &[1], &[1, 2, 3], &[])]), "a member comes");
    assert!(!moved(&[(20, &[1], &[3, 1, 2], &[])]), "another order");
    assert!(!moved(&[(20, &[1], &[1, 3], &[2])]), "one terminates, and serves on");
    assert!(moved(&[(20, &[1], &[1, 3], &[])]), "it is gone");
    assert!(!moved(&[(20, &[1, 2], &[1, 3], &[])]), "a frontend comes");
    assert!(moved(&[(20, &[2], &[1, 3], &[])]), "one goes");
    assert!(moved(&[(21, &[2], &[1, 3], &[])]), "the other one changes its number");
    assert!(!moved(&[(20, &[2], &[1], &[])]), "nobody is left of what it was");
    assert!(!moved(&[(20, &[2], &[1], &[]), (21, &[3], &[4], &[])]), "another Service port");
}

#[test]
fn a_service_that_does_not_fit_has_no_backend_and_is_told() {
    let plan = |counts: [u8; 2]| {
        let members = counts.map(|count| (0..count).collect::<Vec<u8>>());
        plan_of(&[(20, &[0], &members[0], &[]), (21, &[1], &members[1], &[])])
    };
    let fake = Fake::new();
    let mut applier = Applier::default();
    assert!(applier.apply(&*fake, &plan([2, 1])).unwrap().problems.is_empty());
    fake.members.limit(5);
    let counts = || [20, 21].map(|number| fake.balancers.all()[&number].internal.count);
    assert!(applier.apply(&*fake, &plan([4, 1])).unwrap().problems.is_empty(), "it leaves its own set first");
    assert_eq!((counts(), fake.members.all().len()), ([4, 1], 5));
    assert!(applier.apply(&*fake, &plan([1, 4])).unwrap().problems.is_empty(), "what shrinks makes room");
    assert_eq!((counts(), fake.members.all().len()), ([1, 4], 5));
    let summary = applier.apply(&*fake, &plan([2, 4])).unwrap();
    let told = &summary.problems[0];
    assert!(told.contains("service number 20") && told.contains("new flows to it are refused"), "{summary:?}");
    assert_eq!((counts(), fake.members.all().len()), ([0, 4], 4), "none rather than an old one");
    fake.members.limit(6);
    assert!(applier.apply(&*fake, &plan([2, 4])).unwrap().problems.is_empty());
    assert_eq!((counts(), fake.members.all().len()), ([2, 4], 6));
}

/// Service ports, frontends and backends that take all there is change places: what goes makes room.
#[test]
fn full_maps_of_services_change_over() {
    let fake = Fake::new();
    let mut applier = Applier::default();
    apply_watched(&mut applier, &fake, &plan_of(&[(20, &[1, 2], &[1, 2], &[]), (21, &[3], &[3], &[])]));
    fake.frontends.limit(3);
    fake.balancers.limit(2);
    fake.members.limit(3);
    fake.backends.limit(3);
    let summary = apply_watched(&mut applier, &fake, &plan_of(&[(22, &[3], &[4], &[]), (23, &[4, 5], &[5, 6], &[])]));
    assert!(summary.problems.is_empty(), "{summary:?}");
}
