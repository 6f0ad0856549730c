// SPDX-License-Identifier: Apache-2.0

mod cases;
pub(crate) mod fake;

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use proptest::prelude::*;
use weft_abi::{
    ANY_IDENTITY, Addr, AddressKey, BackendKey, CLUSTER_NET, CidrKey, Device, Frontend, FrontendFlags, FrontendKey,
    Member, MemberKey, MemberSet, Owner, Pool, Port, Remote, RuleKey, Rules, generation,
};

use self::{
    cases::{SERVICES, address, addresses, desired, frontend},
    fake::Fake,
};
use super::{Applier, Patch, Summary, Table as _, patch::Layered, policy::Lookup};
use crate::model::{Desired, DesiredBalancer};

/// What a reader could find: maps at one moment, or a plan.
#[derive(Clone, Debug)]
struct State {
    /// The pools of each device, of both families; none: the host's own address.
    pools: BTreeMap<u32, [Option<Vec<Addr>>; 2]>,
    ports: BTreeMap<u32, Port>,
    addresses: BTreeMap<AddressKey, Owner>,
    remotes: BTreeMap<CidrKey, Remote>,
    frontends: BTreeMap<FrontendKey, Frontend>,
    /// The sets of each Service port: internal, external, cluster.
    balancers: BTreeMap<u32, [Vec<Option<Member>>; 3]>,
    identities: BTreeMap<AddressKey, u32>,
    cidrs: BTreeMap<CidrKey, u32>,
    rules: BTreeMap<RuleKey, Rules>,
    serving: BTreeSet<BackendKey>,
}

fn pools(devices: &BTreeMap<u32, Device>) -> BTreeMap<u32, [Option<Vec<Addr>>; 2]> {
    let of_pool = |pool: &Pool| (pool.is_set != 0).then(|| pool.addresses().to_vec());
    devices.iter().map(|(index, device)| (*index, [of_pool(&device.pool_v4), of_pool(&device.pool_v6)])).collect()
}

impl From<&Fake> for State {
    fn from(fake: &Fake) -> Self {
        let members = |service: u32, MemberSet { set, count }: MemberSet| {
            let key = |index| MemberKey { service, set, index };
            (0..count).map(|index| fake.members.find(&key(index))).collect()
        };
        let balancers = fake.balancers.all().into_iter();
        Self {
            pools: pools(&fake.devices.all()),
            ports: fake.ports.all(),
            addresses: fake.addresses.all(),
            remotes: fake.remotes.all(),
            frontends: fake.frontends.all(),
            balancers: balancers.map(|(id, balancer)| (id, balancer.sets().map(|set| members(id, set)))).collect(),
            identities: fake.identities.all(),
            cidrs: fake.cidrs.all(),
            rules: fake.rules.all(),
            serving: fake.backends.all().into_keys().collect(),
        }
    }
}

impl From<&Desired> for State {
    fn from(desired: &Desired) -> Self {
        let sets = |balancer: &DesiredBalancer| balancer.sets().map(|set| set.iter().copied().map(Some).collect());
        Self {
            pools: pools(&desired.devices),
            ports: desired.ports.clone(),
            addresses: desired.addresses.clone(),
            remotes: desired.remotes.clone(),
            frontends: desired.frontends.clone(),
            balancers: desired.balancers.iter().map(|(id, balancer)| (*id, sets(balancer))).collect(),
            identities: desired.identities.clone(),
            cidrs: desired.cidrs.clone(),
            rules: desired.rules.clone(),
            serving: desired.balancers.iter().flat_map(|(id, balancer)| balancer.names(*id)).collect(),
        }
    }
}

impl State {
    /// The members that clients of a frontend are sent to; none: nothing leads to it.
    fn served(&self, key: &FrontendKey) -> Option<&[Option<Member>]> {
        let Frontend { service, flags } = self.frontends.get(key).filter(|frontend| frontend.service != 0)?;
        let sets = self.balancers.get(service)?;
        Some(&sets[usize::from(flags & FrontendFlags::EXTERNAL != 0)])
    }

    /// Frontends that lead to a number.
    fn leading_to(&self, service: u32) -> BTreeSet<FrontendKey> {
        self.frontends.iter().filter(|(_, frontend)| frontend.service == service).map(|(key, _)| *key).collect()
    }

    fn names(&self, service: u32) -> BTreeSet<BackendKey> {
        self.serving.iter().filter(|name| name.service == service).copied().collect()
    }

    fn identity(&self, address: AddressKey) -> u32 {
        Lookup::new(Layered::new(&self.identities), Layered::new(&self.cidrs)).identity(&address)
    }

    fn remote(&self, address: AddressKey) -> Option<Remote> {
        let numbers: Vec<Remote> = self.remotes.values().copied().collect();
        let by_number = (1..).zip(self.remotes.keys()).map(|(number, key)| (*key, number)).collect();
        let found = Lookup::new(Layered::new(&BTreeMap::new()), Layered::new(&by_number)).identity(&address);
        (found > 0).then(|| numbers[found as usize - 1])
    }

    /// The ports that a policy set allows with a peer, as bits.
    fn allows(&self, policy: u32, peer: AddressKey) -> u32 {
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

    /// Addresses of the host.
    fn hosts(&self) -> BTreeSet<AddressKey> {
        let hosts = self.addresses.iter().filter(|(_, owner)| owner.is_host());
        hosts.map(|(address, _)| *address).collect()
    }

    /// (port, direction) to what it lets in or out.
    fn policies(&self, ifindex: u32) -> Option<[u32; 2]> {
        self.ports.get(&ifindex).map(|port| [port.ingress_policy, port.egress_policy])
    }
}

fn check(now: &State, old: &State, new: &State) {
    for peer in addresses() {
        let identity = now.identity(peer);
        assert!([old.identity(peer), new.identity(peer)].contains(&identity), "{peer:?} is {identity} for a moment");
        assert!([old.remote(peer), new.remote(peer)].contains(&now.remote(peer)), "{peer:?} leads astray for a moment");
    }
    for (key, frontend) in &old.frontends {
        let stays = new.frontends.get(key).is_some_and(|new| new.service == frontend.service);
        assert!(!stays || now.frontends.contains_key(key), "{key:?} is not there for a moment");
    }
    let hosts = now.hosts();
    for address in now.pools.values().flatten().flatten().flatten() {
        assert!(hosts.contains(&AddressKey::of_cluster(*address)), "{address:?} is not the host's for a moment");
    }
    check_what_is_open(now, old, new);
}

/// What must hold also where the kernel refuses something.
fn check_what_is_open(now: &State, old: &State, new: &State) {
    for (key, Frontend { service, .. }) in now.frontends.iter().filter(|(_, frontend)| frontend.service != 0) {
        let Some(served) = now.served(key) else { panic!("{key:?} has no balancer") };
        assert!(served.iter().all(Option::is_some), "a set without its members: {served:?}");
        assert!([old, new].iter().any(|state| state.served(key) == Some(served)), "nobody asked for {served:?}");
        let serves = |member: &Member| now.serving.contains(&BackendKey::new(*service, member.addr, member.port));
        assert!(served.iter().flatten().all(serves), "a backend without a name: {served:?}");
    }
    for (key, rules) in &now.rules {
        let next = RuleKey { chunk: key.chunk + 1, ..*key };
        assert!(rules.more == 0 || now.rules.contains_key(&next), "{key:?} leads to a chunk that is not there");
    }
    for (index, pools) in &now.pools {
        let asked = [old, new].map(|state| state.pools.get(index));
        assert!(asked.contains(&Some(pools)), "device {index}: nobody asked for {pools:?}");
    }
    for owner in now.addresses.values().filter(|owner| owner.is_workload()) {
        assert!(now.ports.contains_key(&owner.ifindex), "{owner:?} leads to a port that is not there");
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
        for peer in addresses() {
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
            for peer in addresses() {
                let (opens, may) = (now.allows(is[direction], peer), planned.allows(will[direction], peer));
                assert_eq!(opens & !may, 0, "port {ifindex}: {peer:?} is let through");
                assert!(refused || opens == may, "port {ifindex}: {peer:?} is kept out");
            }
        }
    }
    for (index, pools) in &now.pools {
        let wanted = planned.pools.get(index);
        assert!(wanted.is_none_or(|wanted| wanted == pools), "device {index} has stale pools: {pools:?}");
    }
    for key in now.frontends.keys() {
        let (served, wanted) = (now.served(key), planned.served(key));
        assert!(served.is_none_or(<[_]>::is_empty) || served == wanted, "a stale backend of {key:?}");
    }
}

/// Applies under the eyes of a reader; at its end the maps are what was desired.
fn apply_watched(applier: &mut Applier, fake: &Rc<Fake>, desired: &Desired) -> Summary {
    watch(fake, desired);
    let summary = applier.apply(&**fake, desired).unwrap();
    let (now, new) = (State::from(&**fake), State::from(desired));
    assert_eq!(format!("{now:?}"), format!("{new:?}"));
    assert_eq!(fake.members.all().len(), members_of(desired), "old sets are left, or one stands twice");
    for (service, balancer) in fake.balancers.all() {
        let published = fake.service_generations.all().get(&service).copied().unwrap_or_default();
        assert_eq!(published, balancer.generation, "not published");
    }
    summary
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

/// A flow that decides again, because the generation of its Service has moved, finds none of those who serve no more: neither new flows nor
/// those that they have.
fn check_published(fake: &Fake, now: &State, old: &State, new: &State) {
    let generations = fake.service_generations.all();
    let serving = |state: &State, number: u32| -> BTreeSet<BackendKey> {
        let frontends = state.leading_to(number);
        let members = frontends.iter().filter_map(|key| state.served(key)).flatten().flatten();
        members.map(|member| BackendKey::new(number, member.addr, member.port)).collect()
    };
    for (number, value) in fake.balancers.all() {
        if generations.get(&number).copied().unwrap_or_default() == value.generation {
            let (is, was) = (serving(now, number), serving(old, number));
            let gone = was.difference(&is).filter(|name| !new.serving.contains(*name));
            let gone: Vec<_> = gone.filter(|name| now.serving.contains(*name)).collect();
            assert!(gone.is_empty(), "{gone:?} serve no more");
        }
    }
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
            old.routes_digest != new.routes_digest || was.pools != is.pools || was.hosts() != is.hosts()
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

fn member(last: u8) -> Member {
    Member { addr: address(last), port: 1, flags: 0 }
}

/// A Service port: its number, frontends, members, and those that terminate.
type Served<'s> = (u32, &'s [u8], &'s [u8], &'s [u8]);

fn plan_of(services: &[Served<'_>]) -> Desired {
    let mut plan = Desired { routes_digest: 1, ..Desired::default() };
    for (service, frontends, members, keeping) in services {
        let [members, keeping] = [members, keeping].map(|set| set.iter().copied().map(member).collect::<Vec<_>>());
        plan.balancers.insert(*service, DesiredBalancer::of(members, keeping));
        plan.frontends.extend(frontends.iter().map(|last| (frontend(*last), Frontend { service: *service, flags: 0 })));
    }
    plan
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
            now.frontends.retain(|key, _| !refused(key));
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
