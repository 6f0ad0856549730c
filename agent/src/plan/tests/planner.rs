// SPDX-License-Identifier: Apache-2.0
//! The planner that follows changes is the whole plan: the same maps, numbers, reports and problems, whatever changed and in
//! whatever order.

use proptest::{collection::vec, prelude::*, sample::select};
use rstest::rstest;
use weft_abi::{Balancer, Frontend, FrontendKey, MemberSet, Port, generation};

use super::{
    properties::{Parts, build, parts},
    *,
};
use crate::{
    apply::{Applier, Changes, Patch, Summary, Table as _, tests::fake::Fake},
    model::{Deltas, HashKey, News, RefusedKind, Standing},
    plan::{
        Planner,
        policy::{Held, list::BITS},
    },
};

/// Services with the slices of their endpoints, and nodes: few names, so that they get in each other's way.
#[derive(Clone, Debug)]
struct More {
    services: Vec<(u8, Value)>,
    slices: Vec<(u8, u8, Value)>,
    nodes: Vec<(u8, Vec<&'static str>)>,
    service_cidrs: Vec<(u8, Vec<&'static str>)>,
    configured: bool,
    own_cidr: bool,
    attached: Vec<bool>,
    synced: bool,
    /// Policies with a rule of more ports than a list has room for.
    long: Vec<bool>,
}

/// Of one prefix and of another; of a pod, a node, this node and its router; of nobody.
const VIPS: &[&str] = &[
    "10.96.0.1",
    "10.96.0.2",
    "10.97.0.1",
    "fd00:96::1",
    "192.168.0.1",
    "10.2.0.1",
    "192.0.2.9",
    "10.3.0.1",
    "192.0.2.254",
    "127.0.0.1",
    "nowhere",
];

fn service() -> impl Strategy<Value = (u8, Value)> {
    let port = (select(&["", "a", "b"][..]), select(&[80, 81, 0][..]), select(&["TCP", "UDP"][..]));
    let vips = vec(select(VIPS), 1..3);
    (0..4u8, vips, vec(port, 0..4), any::<bool>()).prop_map(|(number, vips, ports, local)| {
        let ports: Vec<Value> = ports
            .into_iter()
            .map(|(name, port, protocol)| json!({"name": name, "port": port, "protocol": protocol}))
            .collect();
        let policy = if local { "Local" } else { "Cluster" };
        (number, json!({"clusterIP": vips[0], "clusterIPs": vips, "ports": ports, "internalTrafficPolicy": policy}))
    })
}

fn slice() -> impl Strategy<Value = (u8, u8, Value)> {
    let endpoint = (1..6u8, any::<bool>(), any::<bool>()).prop_map(|(last, ready, here)| {
        let node = if here { "here" } else { "there" };
        json!({"addresses": [format!("10.2.0.{last}")], "conditions": {"ready": ready, "serving": true, "terminating": !ready}, "nodeName": node})
    });
    let port = select(&["", "a", "b"][..]).prop_map(|name| json!({"name": name, "port": 8080, "protocol": "TCP"}));
    (0..5u8, 0..4u8, vec(endpoint, 0..4), vec(port, 0..3)).prop_map(|(number, service, endpoints, ports)| {
        (number, service, json!({"endpoints": endpoints, "ports": ports}))
    })
}

fn more() -> impl Strategy<Value = More> {
    let cidrs = vec(select(&["10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/16", "fd00::/8", "none"][..]), 0..3);
    let prefixes =
        ["10.96.0.0/16", "10.96.0.0/12", "192.168.0.0/16", "fd00:96::/112", "192.0.2.0/24", "10.96.0.1/32", "none"];
    let prefixes = vec(select(prefixes.to_vec()), 0..3);
    let attached = vec(prop::bool::weighted(0.8), 9);
    (
        vec(service(), 0..5),
        vec(slice(), 0..5),
        vec((0..3u8, cidrs), 0..3),
        vec((0..3u8, prefixes), 0..3),
        any::<bool>(),
        any::<bool>(),
        attached,
        prop::bool::weighted(0.9),
        vec(prop::bool::weighted(0.1), 6),
    )
        .prop_map(|(services, slices, nodes, service_cidrs, configured, own_cidr, attached, synced, long)| More {
            services,
            slices,
            nodes,
            service_cidrs,
            configured,
            own_cidr,
            attached,
            synced,
            long,
        })
}

fn build_all(world: &mut World, parts: &Parts, more: &More) {
    let mut parts = parts.clone();
    for ((_, spec), _) in parts.2.iter_mut().zip(&more.long).filter(|(_, long)| **long) {
        let ports: Vec<Value> = (0..200).map(|n| json!({"port": 1000 + 2 * n})).collect();
        let rule = json!({"from": [{"podSelector": {"matchLabels": {"app": "a"}}}], "ports": ports});
        match &mut spec["ingress"] {
            Value::Array(rules) => rules.push(rule),
            none => *none = json!([rule]),
        }
    }
    build(world, &parts);
    for (number, spec) in &more.services {
        world.service(&format!("s{number}"), spec.clone());
    }
    for (number, service, slice) in &more.slices {
        world.slice(&format!("e{number}"), &format!("s{service}"), slice.clone());
    }
    for (number, cidrs) in &more.nodes {
        world.node(["there", "elsewhere", "here"][usize::from(*number)], cidrs);
    }
    for (number, cidrs) in &more.service_cidrs {
        world.service_cidr(&format!("c{number}"), cidrs);
    }
    world.facts.service_cidrs = if more.configured { vec!["10.96.0.0/16".parse().unwrap()] } else { vec![] };
    world.facts.reserved = if more.configured { vec!["192.0.2.254".parse().unwrap()] } else { vec![] };
    let mut kept = more.attached.iter();
    world.attachments.retain(|_| *kept.next().unwrap_or(&true));
    world.facts.pod_cidrs = if more.own_cidr { vec!["10.3.0.0/16".parse().unwrap()] } else { vec![] };
    world.facts.host_addresses = if more.own_cidr { vec!["10.3.0.1".parse().unwrap()] } else { vec![] };
    world.snapshot.remembered = (!more.synced).then_some(7);
}

/// One change of one object.
type Step = Box<dyn Fn(&mut Snapshot, &mut Deltas)>;

/// The way from one snapshot to another, one object at a time.
fn way(old: &Snapshot, new: &Snapshot) -> Vec<Step> {
    let mut way: Vec<Step> = Vec::new();
    macro_rules! add {
        ($($(#[$doc:meta])* $field:ident, $Variant:ident: $Type:ty = $Api:ty, $kind:literal, $plural:literal;)*) => {
            $(
                let keys: std::collections::BTreeSet<_> = old.$field.keys().chain(new.$field.keys()).cloned().collect();
                for key in keys {
                    let value = new.$field.get(&key).cloned();
                    if old.$field.get(&key) == value.as_ref() {
                        continue;
                    }
                    way.push(Box::new(move |snapshot, deltas| {
                        deltas.$field.objects.insert(key.clone(), value.clone());
                        match &value {
                            Some(value) => drop(snapshot.$field.insert(key.clone(), value.clone())),
                            None => drop(snapshot.$field.remove(&key)),
                        }
                    }));
                }
            )*
        };
    }
    crate::model::watched_kinds!(add);
    way
}

/// The standing plan with the reports, which are made when they are asked for.
fn with_reports(planner: &Planner, whole: &Desired) -> Desired {
    let mut desired = planner.desired().clone();
    desired.service_reports = planner.service_reports();
    desired.policy_reports = planner.policy_reports();
    desired.problems = planner.problems();
    desired.isolation = whole.isolation.keys().map(|id| (id.clone(), planner.isolated_by(id))).collect();
    desired.names = whole.names.keys().filter_map(|addr| Some((*addr, planner.name(*addr)?))).collect();
    let frontends = whole.service_names.keys();
    desired.service_names = frontends.filter_map(|key| Some((*key, planner.service_name(key)?))).collect();
    desired
}

/// An agent that has planned and applied this world, and its maps.
fn started(world: &mut World) -> ((Planner, Applier), std::rc::Rc<Fake>) {
    let (mut agent, fake) = ((Planner::default(), Applier::default()), Fake::new());
    pass(&mut agent, &fake, &Snapshot::default(), world).unwrap();
    (agent, fake)
}

fn laid_over<K: Ord + Copy, V: Clone>(under: &BTreeMap<K, V>, changes: &Changes<K, V>) -> BTreeMap<K, V> {
    let mut all = under.clone();
    for (key, value) in changes {
        match value {
            Some(value) => drop(all.insert(*key, value.clone())),
            None => drop(all.remove(key)),
        }
    }
    all
}

fn leads(old: &Desired, patch: &Patch, new: &Desired) -> Result<(), TestCaseError> {
    prop_assert_eq!(&laid_over(&old.frontends, &patch.frontends), &new.frontends);
    prop_assert_eq!(&laid_over(&old.balancers, &patch.balancers), &new.balancers);
    prop_assert_eq!(&laid_over(&old.ports, &patch.ports), &new.ports);
    prop_assert_eq!(&laid_over(&old.addresses, &patch.addresses), &new.addresses);
    prop_assert_eq!(&laid_over(&old.remotes, &patch.remotes), &new.remotes);
    prop_assert_eq!(&laid_over(&old.peers, &patch.peers), &new.peers);
    prop_assert_eq!(&laid_over(&old.classes, &patch.classes), &new.classes);
    prop_assert_eq!(&laid_over(&old.lists, &patch.lists), &new.lists);
    prop_assert_eq!(&laid_over(&old.rules, &patch.rules), &new.rules);
    prop_assert_eq!(&laid_over(&old.blocks, &patch.blocks), &new.blocks);
    prop_assert_eq!(&laid_over(&old.workload_digests, &patch.workload_digests), &new.workload_digests);
    prop_assert_eq!(patch.routes_digest.unwrap_or(old.routes_digest), new.routes_digest);
    prop_assert_eq!(patch.config.unwrap_or(old.config), new.config);
    Ok(())
}

/// Both plan; they agree in everything.
fn agree(world: &mut World, planner: &mut Planner) -> Result<Patch, TestCaseError> {
    let old = world.standing.clone();
    planner.observe(&world.facts, world.attachments.clone());
    let (compiled, held) = (planner.compiled(), planner.held());
    let patch = planner.patch(&world.limits.room());
    let held = if planner.compiled() == compiled { held } else { Held::default() };
    let whole = world.plan_with(&held);
    prop_assert_eq!(&with_reports(planner, &whole), &whole);
    leads(&old, &patch, &whole)?;
    prop_assert_eq!(planner.numbers(), &world.numbers);
    Ok(patch)
}

fn limits() -> impl Strategy<Value = Limits> {
    prop_oneof![
        3 => Just(WIDE),
        2 => (1..4_usize).prop_map(|terms| Limits { terms, ..WIDE }),
        1 => (0..60_u64).prop_map(|work| Limits { work, ..WIDE }),
        1 => (1..12_usize, 1..16_usize, 1..30_usize, 1..12_usize, 1..4_usize, 1..20_usize, 1..12_usize).prop_map(
            |(services, members, peers, classes, terms, rules, blocks)| Limits {
                services, members, peers, classes, terms, rules, blocks, work: WIDE.work
            }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(400), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changes_in_any_order_and_in_any_batches_give_the_whole_plan(
        worlds in vec((parts(), more()), 1..4), orders in vec(vec((any::<u32>(), 0..4u8), 64), 4), limits in limits(),
    ) {
        let mut world = World { limits, ..World::default() };
        let (mut planner, fake, mut applier) = (Planner::default(), Fake::new(), Applier::default());
        for ((parts, more), order) in worlds.iter().zip(&orders) {
            let mut next = World::default();
            build_all(&mut next, parts, more);
            let mut way: Vec<(u32, bool, Step)> = Vec::new();
            for (step, (place, ends)) in self::way(&world.snapshot, &next.snapshot).into_iter().zip(order.iter().cycle()) {
                way.push((*place, *ends == 0, step));
            }
            way.sort_by_key(|(place, ..)| *place);
            world.facts = next.facts.clone();
            world.attachments = next.attachments.clone();
            world.snapshot.remembered = next.snapshot.remembered;
            let mut deltas = Deltas::default();
            let last = way.len();
            for (at, (_, ends, step)) in way.into_iter().enumerate() {
                step(&mut world.snapshot, &mut deltas);
                if ends || at + 1 == last {
                    let standing = Standing { synced: true, remembered: world.snapshot.remembered, ..Standing::default() };
                    planner.take(News { deltas: std::mem::take(&mut deltas), standing, since: None });
                    let patch = agree(&mut world, &mut planner)?;
                    let summary = applier.patch(&*fake, planner.desired(), &patch).unwrap();
                    prop_assert_eq!(summary.problems, Vec::<String>::new());
                    prop_assert_eq!(&fake.peers.all(), &world.standing.peers);
                    prop_assert_eq!(&fake.classes.all(), &world.standing.classes);
                    prop_assert_eq!(&fake.lists.all(), &world.standing.lists);
                    prop_assert_eq!(&fake.rules.all(), &world.standing.rules);
                    prop_assert_eq!(&fake.blocks.all(), &world.standing.blocks);
                }
            }
            let nothing = agree(&mut world, &mut planner)?;
            prop_assert!(nothing == Patch::default() || limits.blocks != WIDE.blocks, "{nothing:?}");
        }
    }
    /// Whoever starts anew under the same cluster finds everything as it should be.
    #[test]
    fn a_restart_writes_nothing_and_moves_no_generation(
        worlds in vec((parts(), more(), any::<bool>()), 1..4), limits in limits(),
    ) {
        let fake = Fake::new();
        let mut agent = (Planner::default(), Applier::default());
        let mut standing = World { limits, ..World::default() };
        for (parts, more, goes_on) in &worlds {
            let mut next = World { limits, standing: standing.standing.clone(), ..World::default() };
            build_all(&mut next, parts, more);
            pass(&mut agent, &fake, &standing.snapshot, &mut next)?;
            standing = next;
            let attachments = &standing.attachments;
            let numbers = recovered(&fake, attachments);
            let mut restarted = (Planner::default(), Applier::default());
            restarted.0.resume(numbers);
            let summary = pass(&mut restarted, &fake, &Snapshot::default(), &mut standing)?;
            prop_assert!(summary.is_unchanged(), "{summary:?}");
            prop_assert_eq!(restarted.0.desired(), agent.0.desired());
            if !goes_on {
                agent = restarted;
            }
        }
    }

    /// Numbers that somebody else has written, or half of what was there: the next agent puts everything right, and the one after
    /// it finds nothing to do.
    #[test]
    fn a_restart_over_other_numbers_heals(
        parts in parts(), more in more(),
        services in vec((0..4_u32, number(), 0..3_u32, 0..4_u32), 0..4), ports in vec((10..20_u32, number()), 0..4),
        digests in vec((number(), 0..3_u64), 0..4),
    ) {
        let fake = Fake::new();
        let mut world = World::default();
        build_all(&mut world, &parts, &more);
        pass(&mut (Planner::default(), Applier::default()), &fake, &Snapshot::default(), &mut world)?;
        let known: Vec<FrontendKey> = fake.frontends.all().into_keys().collect();
        for (place, service, generation, flags) in services {
            let new = FrontendKey::of_cluster(addr("10.96.0.9"), 1, TCP);
            let value = Frontend { service, flags };
            fake.frontends.insert(known.get(place as usize).unwrap_or(&new), &value).unwrap();
            let set = MemberSet { set: generation, count: place };
            let value = Balancer { internal: set, external: set, cluster: MemberSet::default(), generation };
            fake.balancers.insert(&service, &value).unwrap();
        }
        for (ifindex, workload) in ports {
            fake.ports.insert(&ifindex, &Port { workload, ..Port::default() }).unwrap();
        }
        for (slot, digest) in digests {
            fake.digests.insert(&slot, &digest).unwrap();
        }
        for is_last in [false, false, true] {
            let attachments = &world.attachments;
            let numbers = recovered(&fake, attachments);
            let mut restarted = (Planner::default(), Applier::default());
            restarted.0.resume(numbers);
            let summary = pass(&mut restarted, &fake, &Snapshot::default(), &mut world)?;
            prop_assert!(!is_last || summary.is_unchanged(), "{summary:?}");
            prop_assert_eq!(&fake.ports.all(), &world.standing.ports);
            prop_assert_eq!(&fake.frontends.all(), &world.standing.frontends);
            let (has, wanted) = (fake.balancers.all(), &world.standing.balancers);
            prop_assert_eq!(has.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
            let Numbers { workloads, services, .. } = restarted.0.numbers();
            let slots: std::collections::BTreeSet<&u32> = workloads.values().collect();
            let numbers: std::collections::BTreeSet<&u32> = services.values().collect();
            prop_assert_eq!((slots.len(), numbers.len()), (workloads.len(), services.len()), "each has its own");
        }
    }
}

/// The edit is given up for a whole compilation, half done: who comes new must not pass for somebody who had room.
#[rstest]
#[case::while_its_own_rules_are_compiled(json!(null))]
#[case::while_the_pods_of_its_peers_are_followed(json!([{"podSelector": {}}]))]
fn an_edit_that_does_not_fit_displaces_nobody(#[case] from: Value) {
    let mut next = World { limits: Limits { rules: 1, ..WIDE }, ..World::default() };
    next.local(("z", "edited"), json!({"app": "a"}), &["10.1.0.1"], json!({}));
    let other = next.local(("z", "other"), json!({}), &["10.1.0.2"], json!({}));
    next.policy(("z", "open"), json!({"podSelector": {}, "ingress": [{}]}));
    let (mut agent, fake) = started(&mut next);
    let before = next.snapshot.clone();
    let spec = json!({"podSelector": {"matchLabels": {"app": "a"}}, "ingress": [{"from": from}]});
    next.policy(("z", "another"), spec);
    pass(&mut agent, &fake, &before, &mut next).unwrap();
    assert!(lets_in(&next.standing, other, "192.0.2.1", (TCP, Some(80))), "{:#?}", next.standing.problems);
    assert_eq!(next.standing.closed.len(), 1);
}

/// An edit that makes a list too long changes nothing else of it, and neither it nor what follows takes a whole compilation.
#[test]
fn a_list_that_grows_too_long_is_closed_and_followed() {
    let mut world = World::default();
    let web = world.local(("x", "web"), json!({}), &["10.1.0.1"], json!({}));
    let other = world.local(("y", "web"), json!({}), &["10.1.0.2"], json!({}));
    world.policy(("y", "p"), json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}));
    let hole =
        |n: u32| json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": [format!("20.{}.{}.0/24", n >> 8, n & 255)]}});
    let rule = |n: u32| json!({"from": [hole(n)], "ports": [{"port": 1 + 2 * n}]});
    let spec = |count: u32| {
        let own = json!({"from": [{"podSelector": {"matchLabels": {"app": "a"}}}]});
        let rules: Vec<Value> = [own].into_iter().chain((0..count).map(rule)).collect();
        json!({"podSelector": {}, "ingress": rules})
    };
    world.policy(("x", "p"), spec(0));
    world.pod(("x", "peer"), json!({"app": "a"}), &["10.2.0.1"], json!({}));
    let (mut agent, fake) = started(&mut world);
    let compiled = agent.0.compiled();
    for step in 0..5 {
        let before = world.snapshot.clone();
        match step {
            0 => drop(world.policy(("x", "p"), spec(2000))),
            1 => drop(world.pod(("y", "friend"), json!({}), &["10.2.0.2"], json!({}))),
            2 => drop(world.policy(("x", "p"), spec(2001))),
            3 => drop(world.policy(("y", "p"), spec(0))),
            _ => drop(world.policy(("x", "p"), spec(1))),
        }
        let mut whole = world.clone();
        pass(&mut agent, &fake, &before, &mut world).unwrap();
        let plan = whole.plan();
        assert_eq!(with_reports(&agent.0, &plan), plan);
        let closed = step < 4;
        assert_eq!(plan.closed.len(), usize::from(closed));
        assert_eq!(lets_in(agent.0.desired(), web, "10.2.0.1", (TCP, Some(80))), !closed);
        assert_eq!(lets_in(agent.0.desired(), other, "10.2.0.2", (TCP, Some(80))), (1..3).contains(&step));
    }
    assert_eq!(agent.0.compiled(), compiled, "no whole compilation");
}

/// Policies that do not fit: whatever else changes is followed, and an edit decides anew who has room.
#[test]
fn while_a_tenants_policies_do_not_fit_others_are_followed() {
    let mut world = World::default();
    world.limits.rules = 8;
    let web = world.local(("x", "web"), json!({}), &["10.1.0.1"], json!({}));
    world.local(("tenant", "web"), json!({}), &["10.1.0.2"], json!({}));
    let from = |app: &str| json!({"from": [{"podSelector": {"matchLabels": {"app": app}}}]});
    world.policy(("x", "p"), json!({"podSelector": {}, "ingress": [from("a")]}));
    let many = |count: u32| json!({"podSelector": {}, "ingress": (0..count).map(|n| from(&n.to_string())).collect::<Vec<_>>()});
    world.policy(("tenant", "p"), many(30));
    let (mut agent, fake) = started(&mut world);
    let mut compiled = agent.0.compiled();
    for step in 0..6 {
        let before = world.snapshot.clone();
        match step {
            0 => drop(world.pod(("x", "friend"), json!({"app": "a"}), &["10.2.0.1"], json!({}))),
            1 => drop(world.pod(("x", "stranger"), json!({}), &["10.2.0.2"], json!({}))),
            2 => world.namespace("tenant", json!({"team": "t"})),
            3 => drop(world.pod(("tenant", "peer"), json!({"app": "1"}), &["10.2.0.3"], json!({}))),
            4 => drop(world.policy(("x", "other"), json!({"podSelector": {"matchLabels": {"is": "not here"}}}))),
            _ => drop(world.policy(("tenant", "p"), many(2))),
        }
        let mut whole = world.clone();
        pass(&mut agent, &fake, &before, &mut world).unwrap();
        let plan = whole.plan();
        assert_eq!(with_reports(&agent.0, &plan), plan);
        let fits = step == 5;
        assert_eq!(plan.closed.len(), usize::from(!fits));
        compiled += usize::from(fits);
        assert_eq!(agent.0.compiled(), compiled, "step {step}");
        assert!(lets_in(agent.0.desired(), web, "10.2.0.1", (TCP, Some(80))));
    }
}

/// A tenant's pods, of more classes than fit, cost nobody a whole compilation at each change; what may fit again is decided when it is asked
/// for.
#[test]
fn while_a_tenants_pods_do_not_fit_others_are_followed() {
    let mut world = World::default();
    world.limits.classes = 4;
    let web = world.local(("x", "web"), json!({}), &["10.1.0.1"], json!({}));
    let everybody =
        json!({"namespaceSelector": {}, "podSelector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]}});
    world.policy(("x", "p"), json!({"podSelector": {}, "ingress": [{"from": [everybody]}]}));
    let many = (1..9_u8).map(|n| (format!("pod-{n}"), format!("10.2.1.{n}")));
    for (name, address) in many {
        world.pod(("tenant", &name), json!({"app": name}), &[&address], json!({}));
    }
    let (mut agent, fake) = started(&mut world);
    let compiled = agent.0.compiled();
    let let_in = |agent: &Planner, address| lets_in(agent.desired(), web, address, (TCP, Some(80)));
    for step in 0..5 {
        let before = world.snapshot.clone();
        match step {
            0 => drop(world.pod(("y", "friend"), json!({"app": "a"}), &["10.2.0.1"], json!({}))),
            1 => drop(world.pod(("tenant", "more"), json!({"app": "a"}), &["10.2.1.100"], json!({}))),
            2 => world.namespace("tenant", json!({"team": "t"})),
            // An address of the tenant's is another's, and the other way round.
            3 => {
                world.pod(("y", "taken-over"), json!({"app": "a"}), &["10.2.1.100"], json!({}));
                world.snapshot.pods.remove(&ObjectKey::new("tenant", "more"));
            }
            _ => world.snapshot.pods.retain(|key, _| &*key.namespace != "tenant" || &*key.name == "pod-1"),
        }
        pass_once(&mut agent, &fake, &before, &mut world).unwrap();
        assert!(let_in(&agent.0, "10.2.0.1") && !let_in(&agent.0, "10.2.1.1"), "step {step}");
        assert_eq!(let_in(&agent.0, "10.2.1.100"), step > 2, "step {step}");
        let refused: Vec<_> = agent.0.desired().refusals.iter().map(|refusal| refusal.key.name.to_string()).collect();
        assert_eq!(refused, ["tenant"], "step {step}");
        assert_eq!(agent.0.compiled(), compiled, "step {step}");
    }
    // They fit by now.
    assert!(agent.0.reconsider());
    let nothing = world.snapshot.clone();
    pass_once(&mut agent, &fake, &nothing, &mut world).unwrap();
    assert!(let_in(&agent.0, "10.2.0.1") && let_in(&agent.0, "10.2.1.1"));
    assert!(agent.0.desired().refusals.is_empty() && !agent.0.reconsider());
    assert_eq!(agent.0.compiled(), compiled + 1);
}

/// Where every list that asks for pods is closed, for rules, pods are no matter, however many classes they would be.
#[test]
fn pods_that_no_standing_list_asks_for_are_not_refused() {
    let mut world = World::default();
    (world.limits.rules, world.limits.classes) = (2, 1);
    world.local(("x", "web"), json!({}), &["10.1.0.1"], json!({}));
    let from = |app: &str| json!({"from": [{"podSelector": {"matchLabels": {"app": app}}}]});
    world.policy(("x", "p"), json!({"podSelector": {}, "ingress": [from("a"), from("b"), from("c")]}));
    let (mut agent, fake) = started(&mut world);
    let compiled = agent.0.compiled();
    for (name, address) in [("one", "10.2.0.1"), ("two", "10.2.0.2")] {
        let before = world.snapshot.clone();
        world.pod(("x", name), json!({"app": name}), &[address], json!({}));
        let mut whole = world.clone();
        pass(&mut agent, &fake, &before, &mut world).expect("apply");
        let plan = whole.plan();
        assert_eq!(with_reports(&agent.0, &plan), plan);
        assert!(plan.refusals.iter().all(|refusal| refusal.kind != RefusedKind::Namespace), "{:?}", plan.refusals);
    }
    assert_eq!(agent.0.compiled(), compiled, "no whole compilation");
}

/// Services that do not fit: pods and workloads are followed, and a change of a Service decides anew who has room.
#[test]
fn while_a_tenants_services_do_not_fit_pods_are_followed() {
    let mut world = World::default();
    world.limits.services = 2;
    world.local(("x", "web"), json!({}), &["10.1.0.1"], json!({}));
    let ports = |count: u16| (0..count).map(|n| json!({"name": n.to_string(), "port": 80 + n})).collect::<Vec<_>>();
    let spec = |count: u16| json!({"clusterIP": "10.96.0.1", "ports": ports(count)});
    world.service("many", spec(5));
    let (mut agent, fake) = started(&mut world);
    let mut planned = agent.0.services_planned();
    for step in 0..4 {
        let before = world.snapshot.clone();
        match step {
            0 => drop(world.pod(("x", "other"), json!({}), &["10.2.0.1"], json!({}))),
            1 => drop(world.local(("x", "new"), json!({}), &["10.1.0.2"], json!({}))),
            2 => drop(world.attachments.remove(0)),
            _ => drop(world.service("many", spec(2))),
        }
        let mut whole = world.clone();
        pass(&mut agent, &fake, &before, &mut world).unwrap();
        let plan = whole.plan();
        let (is, numbers) = (with_reports(&agent.0, &plan), agent.0.numbers());
        assert_eq!((&is.frontends, &is.refusals, &is.problems), (&plan.frontends, &plan.refusals, &plan.problems));
        assert_eq!((is.ports.len(), numbers.workloads.len()), (plan.ports.len(), plan.ports.len()));
        let fits = step == 3;
        assert_eq!(plan.refusals.is_empty(), fits);
        planned += usize::from(fits);
        assert_eq!(agent.0.services_planned(), planned, "step {step}");
    }
}

/// A pod that more policies mean than its class can tell: pods, labels and policies around it are followed all the same.
#[test]
fn a_class_with_too_many_terms_is_followed() {
    let mut world = World::default();
    world.local(("x", "web"), json!({}), &["10.1.0.1"], json!({}));
    let key = |n: u32| format!("k{n}");
    let labels: serde_json::Map<String, Value> = (0..40).map(|n| (key(n), json!("v"))).collect();
    world.pod(("y", "meant"), labels.clone().into(), &["10.2.0.1"], json!({}));
    let peer = |n: u32| json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {key(n): "v"}}});
    let policy =
        |count: u32| json!({"podSelector": {}, "ingress": [{"from": (0..count).map(peer).collect::<Vec<_>>()}]});
    world.policy(("x", "p"), policy(30));
    let (mut agent, fake) = started(&mut world);
    let compiled = agent.0.compiled();
    let mut whole = world.clone();
    for step in 0..5 {
        let before = world.snapshot.clone();
        for world in [&mut world, &mut whole] {
            match step {
                0 => drop(world.pod(("y", "as-well"), labels.clone().into(), &["10.2.0.2"], json!({}))),
                1 => drop(world.policy(("x", "p"), policy(31))),
                2 => drop(world.policy(("x", "p"), policy(24))),
                3 => drop(world.policy(("x", "p"), policy(20))),
                _ => drop(world.policy(("x", "p"), policy(30))),
            }
        }
        pass(&mut agent, &fake, &before, &mut world).unwrap();
        let plan = whole.plan();
        assert_eq!(agent.0.desired().classes, plan.classes);
        assert_eq!((&agent.0.desired().refusals, agent.0.problems()), (&plan.refusals, plan.problems));
        assert_eq!(plan.refusals.len(), usize::from(step != 3), "{:?}", plan.refusals);
    }
    assert_eq!(agent.0.compiled(), compiled, "no whole compilation");
}

/// A term that comes, and a namespace, by their numbers among those that stand.
#[test]
fn terms_that_meet_are_found_whatever_comes_last() {
    BITS.set(0xff_0000);
    let (mut by_policy, mut by_namespace) = (0, 0);
    for n in 0..600_u32 {
        let mut world = World::default();
        world.local(("x", "web"), json!({}), &["10.1.0.1"], json!({}));
        world.local(("y", "web"), json!({}), &["10.1.0.2"], json!({}));
        let from = |app: String| json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}]});
        world.policy(("x", "p"), from("a".into()));
        let (mut agent, fake) = started(&mut world);
        let before = world.snapshot.clone();
        if n % 2 == 0 {
            world.policy(("y", "p"), from(format!("b{n}")));
        } else {
            world.pod((&format!("n{n}"), "pod"), json!({}), &["10.2.0.1"], json!({}));
        }
        let mut whole = world.clone();
        pass(&mut agent, &fake, &before, &mut world).unwrap();
        let plan = whole.plan();
        assert_eq!((&agent.0.desired().closed, &agent.0.desired().lists), (&plan.closed, &plan.lists));
        *(if n % 2 == 0 { &mut by_policy } else { &mut by_namespace }) += plan.closed.len();
    }
    BITS.set(u64::MAX);
    assert!(by_policy > 0 && by_namespace > 0, "some met: {by_policy}, {by_namespace}");
}

fn recovered(fake: &Fake, attachments: &[Arc<crate::model::Attachment>]) -> Numbers {
    let (frontends, balancers) = (fake.frontends.all(), fake.balancers.all());
    Numbers::recovered(
        HashKey::default(),
        (&frontends, &balancers),
        &fake.classes.all(),
        &fake.ports.all(),
        attachments,
    )
}

/// A number that may be somebody's, nobody's or none.
fn number() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0..12_u32, 1 => select(&[generation::SLOTS - 1, generation::SLOTS, u32::MAX][..])]
}

/// As [`pass_once`], and nothing is held any more: whoever starts now would decide it anew.
fn pass(
    agent: &mut (Planner, Applier),
    fake: &Fake,
    before: &Snapshot,
    world: &mut World,
) -> Result<Summary, TestCaseError> {
    let mut all = pass_once(agent, fake, before, world)?;
    if agent.0.reconsider() {
        let nothing = world.snapshot.clone();
        let summary = pass_once(agent, fake, &nothing, world)?;
        all.written += summary.written;
        all.removed += summary.removed;
        all.generations += summary.generations;
    }
    prop_assert!(!agent.0.reconsider());
    Ok(all)
}

/// One pass of an agent that knows `before` and hears of what is different in `world`.
fn pass_once(
    (planner, applier): &mut (Planner, Applier),
    fake: &Fake,
    before: &Snapshot,
    world: &mut World,
) -> Result<Summary, TestCaseError> {
    let (mut snapshot, mut deltas) = (before.clone(), Deltas::default());
    way(before, &world.snapshot).iter().for_each(|step| step(&mut snapshot, &mut deltas));
    let standing = Standing { synced: true, remembered: world.snapshot.remembered, ..Standing::default() };
    planner.take(News { deltas, standing, since: None });
    planner.observe(&world.facts, world.attachments.clone());
    let patch = planner.patch(&world.limits.room());
    let summary = applier.patch(fake, planner.desired(), &patch).unwrap();
    world.standing = planner.desired().clone();
    prop_assert_eq!(&summary.problems, &Vec::<String>::new());
    Ok(summary)
}
