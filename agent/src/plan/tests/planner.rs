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

mod room;

/// Services with the slices of their endpoints, and nodes: few names, so that they get in each other's way.
#[derive(Clone, Debug)]
struct More {
    services: Vec<ServicePlan>,
    slices: Vec<(u8, u8, Value)>,
    nodes: Vec<(u8, Vec<&'static str>, &'static str)>,
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

/// Free ones, and what is somebody's or nobody's.
const EXTERNAL: &[&str] =
    &["203.0.113.1", "203.0.113.2", "2001:db8:77::1", "10.96.0.2", "10.2.0.1", "127.0.0.1", "nowhere"];

/// Its number, its spec, the addresses of its load balancer, when it was made, and its algorithm.
type ServicePlan = (u8, Value, Vec<&'static str>, (i64, &'static str));

fn service() -> impl Strategy<Value = ServicePlan> {
    let port = (select(&["", "a", "b"][..]), select(&[80, 81, 0][..]), select(&["TCP", "UDP"][..]));
    let vips = vec(select(VIPS), 1..3);
    let port = (port, select(&[0, 0, 30_000, 30_001, 70_000][..]));
    let affinity = select(&[("None", 0), ("ClientIP", 10), ("ClientIP", 0), ("Cookie", 0)][..]);
    let external = vec(select(EXTERNAL), 0..3);
    let locals = (any::<bool>(), any::<bool>());
    let ranges = vec(select(&["192.0.2.0/24", "192.0.2.0/25", "2001:db8::/32", "nowhere"][..]), 0..3);
    let algorithm = select(&["random", "random", "consistent", "least-loaded", "none"][..]);
    let balanced = (vec(select(EXTERNAL), 0..3), ranges, (0..3_i64, algorithm));
    let parts = (0..4u8, vips, vec(port, 0..4), locals, affinity, external, balanced);
    parts.prop_map(|(number, vips, ports, (local, locally), affinity, external, (ingress, ranges, created))| {
        let ports: Vec<Value> = ports
            .into_iter()
            .map(|((name, port, protocol), node_port)| {
                json!({"name": name, "port": port, "protocol": protocol, "nodePort": node_port})
            })
            .collect();
        let of = |local| if local { "Local" } else { "Cluster" };
        let policy = of(local);
        let (affinity, seconds) = affinity;
        let config = json!({"clientIP": {"timeoutSeconds": seconds}});
        let mut spec = json!({"clusterIP": vips[0], "clusterIPs": vips, "ports": ports, "externalIPs": external});
        spec["externalTrafficPolicy"] = json!(of(locally));
        spec["internalTrafficPolicy"] = json!(policy);
        (spec["sessionAffinity"], spec["sessionAffinityConfig"]) = (json!(affinity), config);
        (spec["type"], spec["loadBalancerSourceRanges"]) = (json!("LoadBalancer"), json!(ranges));
        (number, spec, ingress, created)
    })
}

fn slice() -> impl Strategy<Value = (u8, u8, Value)> {
    let hint = select(&["a", "a", "b", ""][..]);
    let endpoint = (1..6u8, any::<bool>(), any::<bool>(), hint, 0..8u8).prop_map(|(last, ready, here, zone, pod)| {
        let node = if here { "here" } else { "there" };
        let zones = (!zone.is_empty()).then(|| json!([{"name": zone}]));
        let pod = json!({"kind": "Pod", "name": format!("p{pod}")});
        json!({"targetRef": pod, "hints": {"forZones": zones}, "addresses": [format!("10.2.0.{last}")], "conditions": {"ready": ready, "serving": true, "terminating": !ready}, "nodeName": node})
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
        vec((0..3u8, cidrs, select(&["", "a", "b"][..])), 0..4),
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
    for (number, spec, ingress, (created, algorithm)) in &more.services {
        let ingress: Vec<Value> = ingress.iter().map(|address| json!({"ip": address})).collect();
        let name = format!("s{number}");
        world
            .service(&name, spec.clone())
            .load_balancer(&name, json!(ingress))
            .created(&name, *created)
            .algorithm(&name, algorithm);
    }
    for (number, service, slice) in &more.slices {
        world.slice(&format!("e{number}"), &format!("s{service}"), slice.clone());
    }
    for (number, cidrs, zone) in &more.nodes {
        let name = ["there", "elsewhere", "here"][usize::from(*number)];
        world.node(name, cidrs).zone(name, zone);
    }
    for (number, cidrs) in &more.service_cidrs {
        world.service_cidr(&format!("c{number}"), cidrs);
    }
    world.facts.service_cidrs = if more.configured { vec!["10.96.0.0/16".parse().unwrap()] } else { vec![] };
    let router = |is_there: bool, address: &str| is_there.then(|| address.parse::<IpAddr>().unwrap());
    world.facts.reserved =
        router(more.configured, "192.0.2.254").into_iter().chain(router(more.attached[8], "203.0.113.2")).collect();
    world.facts.api_servers = more.attached[7].then(Vec::new);
    let mut kept = more.attached.iter();
    world.attachments.retain(|_| *kept.next().unwrap_or(&true));
    // Each has one of few host ports, some a NodePort.
    for (number, attachment) in world.attachments.iter_mut().enumerate() {
        let (port, protocol) = (30_000 + u16::try_from(number % 3).unwrap(), weft_api::HostPortProtocol::Tcp);
        let host_port = weft_api::HostPort { address: None, port, target: 80, protocol };
        Arc::make_mut(attachment).spec.host_ports = vec![host_port];
    }
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
    for key in planner.services_with_problems() {
        let (all, prefix) = (planner.problems_of(key, usize::MAX), format!("Service {key}: "));
        let problems: Vec<&str> = desired.problems.iter().filter_map(|problem| problem.strip_prefix(&prefix)).collect();
        assert!(!problems.is_empty() && !all.is_empty(), "{key}: {all}");
        // What has no room is named among problems alone, and of its addresses nothing else is.
        if whole.refusals.is_empty() {
            let told = |why: &str| problems.iter().any(|problem| problem.contains(why));
            assert!(problems.iter().all(|problem| all.contains(problem)), "{problems:?}, {all}");
            assert!(all.split("; ").all(told), "{problems:?}, {all}");
        }
    }
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
    prop_assert_eq!(&laid_over(&old.sources, &patch.sources), &new.sources);
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
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(200), failure_persistence: None, ..ProptestConfig::default() })]

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
            let set = MemberSet::even(generation, place);
            let value = Balancer { internal: set, external: set, generation, ..Balancer::default() };
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

fn recovered(fake: &Fake, attachments: &[Arc<crate::model::Attachment>]) -> Numbers {
    Numbers::recovered(
        HashKey::default(),
        &fake.frontends.all(),
        (&fake.backends.all(), &fake.sources.all()),
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

/// Whoever may write Services may let all of them ask for one address: each is planned once, and those that lose it once more.
#[test]
fn many_that_ask_for_one_address_are_planned_in_proportion() {
    const MANY: usize = 60;
    let mut world = World::default();
    for number in 0..MANY {
        // The name that comes first is the newest one's.
        let (name, second) = (format!("s{number:03}"), i64::try_from(MANY - 1 - number).unwrap());
        let vip = format!("10.96.0.{}", number + 1);
        let spec = json!({"clusterIP": vip, "externalIPs": ["203.0.113.1"], "ports": [{"port": 80}]});
        world.service(&name, spec).created(&name, second);
    }
    let mut planner = Planner::default();
    let standing = Standing { synced: true, ..Standing::default() };
    planner.take(News { deltas: Deltas::whole(&world.snapshot), standing, since: None });
    agree(&mut world, &mut planner).unwrap();
    assert_eq!(planner.single_services_planned(), MANY);
    let holders = planner.desired().frontends.keys().filter(|key| key.addr == addr("203.0.113.1"));
    assert_eq!(holders.count(), 1);
    let named = planner.services_with_problems();
    assert_eq!(named.len(), 20, "of one namespace not all: {MANY}");
    let why = planner.problems_of(named[0], 60);
    assert_eq!(why, "203.0.113.1 port 80/TCP is taken by Service x/s059; give one");
    // The oldest one lets it go.
    let name = ObjectKey::new("x", &format!("s{:03}", MANY - 1));
    world.snapshot.services.remove(&name);
    let mut deltas = Deltas::default();
    deltas.services.objects.insert(name, None);
    planner.take(News { deltas, standing: Standing { synced: true, ..Standing::default() }, since: None });
    agree(&mut world, &mut planner).unwrap();
    assert!(planner.single_services_planned() <= 2 * MANY, "{}", planner.single_services_planned());
}
