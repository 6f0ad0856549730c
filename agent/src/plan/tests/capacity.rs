// SPDX-License-Identifier: Apache-2.0
//! What does not fit is closed, alone and aloud.

use proptest::prelude::*;

use super::{
    properties::{build, parts, verdicts_of},
    *,
};
use crate::{
    apply::{Applier, tests::fake::Fake},
    model::{Refusal, RefusedKind},
};

const HTTP: Packet = (TCP, Some(80));

/// `count` blocks of 24 bits, none beside another.
pub(super) fn blocks(first: u32, count: u32) -> Value {
    let block = |n: u32| json!({"ipBlock": {"cidr": format!("{}.{}.{}.0/24", first + (n >> 15), n >> 7 & 255, (n & 127) << 1)}});
    (0..count).map(block).collect()
}

pub(super) fn from(peers: Value) -> Value {
    json!({"podSelector": {}, "ingress": [{"from": peers}]})
}

/// A small tenant with a policy of its own, and a large one.
pub(super) fn two_tenants() -> (World, u32, u32) {
    let mut world = World::default();
    world.limits.blocks = 64;
    let small = world.local(("small", "web"), json!({}), &["10.1.0.1"], json!({}));
    let large = world.local(("large", "web"), json!({}), &["10.1.0.2"], json!({}));
    world.policy(("small", "p"), from(json!([{"ipBlock": {"cidr": "192.0.2.0/24"}}, {"podSelector": {}}])));
    (world, small, large)
}

pub(super) fn keys(desired: &Desired, kind: RefusedKind) -> Vec<String> {
    let of_kind = |refusal: &&Refusal| refusal.kind == kind;
    desired.refusals.iter().filter(of_kind).map(|refusal| refusal.key.to_string()).collect()
}

#[test]
fn a_tenant_whose_policies_do_not_fit_is_closed_alone_and_named() {
    let (mut world, small, large) = two_tenants();
    for n in 0..3 {
        world.policy(("large", &format!("p{n}")), from(blocks(20 + n, 28)));
    }
    for _ in 0..2 {
        let desired = world.plan();
        assert!(desired.blocks.len() <= 64);
        assert!(lets_in(&desired, small, "192.0.2.7", HTTP) && !lets_in(&desired, small, "192.0.3.7", HTTP));
        assert!(!lets_in(&desired, large, "20.0.0.1", HTTP), "closed");
        assert!(lets_out(&desired, large, "20.0.0.1", HTTP), "the way that no policy is about");
        let text = format!("{:#?}", desired.problems);
        assert!(text.contains("workload large/web: its policies do not fit (large/p0, large/p1, large/p2)"), "{text}");
        assert!(text.contains("84 prefixes would be needed, 64 fit") && text.contains("mapSizes.blocks"), "{text}");
        assert_eq!(keys(&desired, RefusedKind::Policy), ["large/p0", "large/p1", "large/p2"]);
        assert_eq!(keys(&desired, RefusedKind::Pod), ["large/web"]);
        let states: Vec<bool> = desired.policy_reports.iter().map(|r| r.state.starts_with("does not fit")).collect();
        assert_eq!(states, [true, true, true, false]);
    }
    world.snapshot.policies.remove(&ObjectKey::new("large", "p2"));
    let desired = world.plan();
    assert!(lets_in(&desired, large, "20.0.0.1", HTTP) && desired.refusals.is_empty(), "{:#?}", desired.problems);
}

/// Who stood comes first at the next plan, so that what does not fit is tried beside others then.
#[test]
fn the_reason_why_something_does_not_fit_is_told_alike_by_the_next_plan() {
    let mut world = World::default();
    world.limits.blocks = 2;
    world.local(("y", "web"), json!({}), &["10.1.0.1"], json!({}));
    world.local(("x", "web"), json!({}), &["10.1.0.2"], json!({}));
    let to = |cidr: &str| json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{"ipBlock": {"cidr": cidr}}]}]});
    world.policy(("x", "out"), to("0.0.0.0/0"));
    world.policy(
        ("x", "in"),
        json!({"podSelector": {}, "ingress": [
            {"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
            {"from": [{"ipBlock": {"cidr": "10.0.0.0/14"}}], "ports": [{"port": 53}]},
        ]}),
    );
    world.policy(("y", "out"), to("::/0"));
    let first = world.plan();
    assert_eq!(keys(&first, RefusedKind::Policy), ["x/in"]);
    assert!(first.problems[0].contains("4 prefixes would be needed, 2 fit"), "{:#?}", first.problems);
    assert_eq!(world.plan(), first);
}

#[test]
fn a_large_tenant_that_came_first_makes_room_for_a_small_one_and_not_for_another_large_one() {
    let (mut world, small, large) = two_tenants();
    world.snapshot.policies.clear();
    world.policy(("large", "p"), from(blocks(20, 60)));
    assert!(lets_in(&world.plan(), large, "20.0.0.1", HTTP));
    world.local(("later", "web"), json!({}), &["10.1.0.3"], json!({}));
    world.policy(("later", "p"), from(blocks(30, 60)));
    let desired = world.plan();
    assert!(lets_in(&desired, large, "20.0.0.1", HTTP), "what stood stays");
    assert!(!lets_in(&desired, 12, "30.0.0.1", HTTP), "who came later is closed");
    assert_eq!(keys(&desired, RefusedKind::Pod), ["later/web"]);
    // 6 beside 60: the large one takes more than its share.
    world.policy(("small", "p"), from(blocks(40, 6)));
    let desired = world.plan();
    assert!(lets_in(&desired, small, "40.0.0.1", HTTP) && !lets_in(&desired, large, "20.0.0.1", HTTP));
    assert_eq!(keys(&desired, RefusedKind::Pod), ["large/web", "later/web"]);
}

#[test]
fn pods_beyond_their_map_are_nobodys_peers_and_others_are() {
    let (mut world, small, large) = two_tenants();
    world.limits.peers = 10;
    for n in 0..20 {
        world.pod(("other", &format!("p{n}")), json!({}), &[&format!("10.2.0.{n}")], json!({}));
    }
    world.pod(("small", "friend"), json!({}), &["10.3.0.1"], json!({}));
    world.policy(("large", "p"), from(json!([{"namespaceSelector": {}, "podSelector": {"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]}}])));
    let desired = world.plan();
    assert!(lets_in(&desired, small, "10.3.0.1", HTTP) && lets_in(&desired, large, "10.3.0.1", HTTP));
    assert!(!lets_in(&desired, large, "10.2.0.1", HTTP) && lets_in(&desired, small, "192.0.2.7", HTTP));
    assert!(desired.peers.len() <= 10);
    assert_eq!(keys(&desired, RefusedKind::Namespace), ["other"]);
    let told = "Namespace other: its pods do not fit: no policy of this node knows them: 23 addresses of pods would be needed, 10 fit";
    assert!(format!("{:?}", desired.problems).contains(told), "{:?}", desired.problems);
    assert!(desired.closed.is_empty());
}

#[test]
fn rules_beyond_their_map_close_who_needs_them() {
    let (mut world, small, large) = two_tenants();
    world.limits.rules = 8;
    let ports = |n: u16| json!((0..100).map(|port| json!({"port": 1000 + 2 * port + n})).collect::<Vec<_>>());
    let rule = |n| json!({"from": [{"ipBlock": {"cidr": format!("20.0.{n}.0/24")}}], "ports": ports(n)});
    world.policy(("large", "p"), json!({"podSelector": {}, "ingress": [rule(0), rule(1)]}));
    let desired = world.plan();
    assert!(!lets_in(&desired, large, "20.0.0.1", (TCP, Some(1000))) && lets_in(&desired, small, "192.0.2.7", HTTP));
    assert!(desired.rules.len() <= 8);
    assert!(format!("{:?}", desired.problems).contains("mapSizes.rules"), "{:?}", desired.problems);
}

#[test]
fn a_service_without_room_has_no_backend_and_the_others_have_theirs() {
    let mut world = World::default();
    (world.limits.members, world.limits.services) = (10, 3);
    for (n, count) in [(1, 2), (2, 20), (3, 3)] {
        let name = format!("s{n}");
        world.service(&name, json!({"clusterIP": format!("10.96.0.{n}"), "ports": [{"port": 80}]}));
        let endpoints: Vec<Value> = (0..count).map(|e| json!({"addresses": [format!("10.2.{n}.{e}")]})).collect();
        world.slice(&name, &name, json!({"ports": [{"port": 80}], "endpoints": endpoints}));
    }
    let counts = |desired: &Desired| -> Vec<usize> {
        let numbers = desired.frontends.values().map(|frontend| frontend.service).filter(|number| *number != 0);
        numbers.map(|number| desired.balancers[&number].internal.len()).collect()
    };
    let desired = world.plan();
    assert_eq!(counts(&desired), [2, 0, 3]);
    assert_eq!(keys(&desired, RefusedKind::Service), ["x/s2"]);
    assert!(format!("{:?}", desired.problems).contains("raise mapSizes.members"), "{:?}", desired.problems);
    world.service("s0", json!({"clusterIP": "10.96.0.100", "ports": [{"port": 80}]}));
    // Who is refused aloud for its backends has an entry for that, and keeps it.
    let desired = world.plan();
    assert_eq!(counts(&desired).len(), 3);
    assert_eq!(keys(&desired, RefusedKind::Service), ["x/s0", "x/s2"]);
    assert!(format!("{:?}", desired.problems).contains("raise mapSizes.services"), "{:?}", desired.problems);
    assert_eq!(world.plan(), desired);
}

#[test]
fn a_service_with_more_source_ranges_than_there_is_room_for_serves_nobody() {
    let mut world = World::default();
    world.limits.members = 10;
    for (n, count) in [(1, 4), (2, 20)] {
        let name = format!("s{n}");
        let ranges: Vec<String> = (0..count).map(|range| format!("20.0.{range}.0/24")).collect();
        let spec = json!({"type": "LoadBalancer", "clusterIP": format!("10.96.0.{n}"), "ports": [{"port": 80}],
            "loadBalancerSourceRanges": ranges});
        world.service(&name, spec).load_balancer(&name, json!([{"ip": format!("203.0.113.{n}")}]));
        world.slice(&name, &name, json!({"ports": [{"port": 80}], "endpoints": [{"addresses": ["10.2.0.1"]}]}));
    }
    let desired = world.plan();
    assert_eq!((desired.sources.len(), keys(&desired, RefusedKind::Service)), (4, vec!["x/s2".into()]));
    assert!(format!("{:?}", desired.problems).contains("raise mapSizes.members"), "{:?}", desired.problems);
}

#[test]
fn more_service_ports_than_generations_of_workloads_fit_where_the_maps_are_large_enough() {
    let mut world = World::default();
    (world.limits.services, world.limits.members) = (200_000, 1 << 20);
    for n in 0..70 {
        let ports: Vec<Value> = (1..1001).map(|port| json!({"name": format!("p{port}"), "port": port})).collect();
        world.service(&format!("s{n}"), json!({"clusterIP": format!("172.30.0.{n}"), "ports": ports}));
    }
    world.local(("x", "web"), json!({}), &["10.1.0.1"], json!({}));
    let desired = world.plan();
    assert!(desired.problems.is_empty() && desired.refusals.is_empty(), "{:?}", desired.problems);
    assert_eq!((desired.frontends.len(), desired.balancers.len()), (70_070, 70_000), "and 70 addresses");
    let numbers: std::collections::BTreeSet<u32> = world.numbers.services.values().copied().collect();
    assert_eq!((numbers.len(), numbers.last()), (70_000, Some(&70_000)), "each has its own");
    assert!(!desired.ports.is_empty());
}

/// A namespace of 50 pods, all of one policy with 40 blocks, and each of one more of its own.
fn combinations() -> (World, Vec<u32>) {
    let mut world = World::default();
    let mut ports = Vec::new();
    for n in 0..50 {
        let (name, label) = (format!("p{n}"), json!({"n": n.to_string()}));
        ports.push(world.local(("x", &name), label.clone(), &[&format!("10.1.0.{n}")], json!({})));
        let own = json!({"from": [{"podSelector": {"matchLabels": {"m": n.to_string()}}}], "ports": [{"port": 81}]});
        let any = json!({"ports": [{"port": 1000 + n}]});
        world.policy(("x", &name), json!({"podSelector": {"matchLabels": label}, "ingress": [own, any]}));
    }
    world.policy(("x", "all"), from(blocks(20, 40)));
    (world, ports)
}

#[test]
fn blocks_stand_once_however_many_combinations_of_policies_have_them() {
    let (mut world, ports) = combinations();
    // One part of the blocks, and of each combination what it says of everybody and of its own peers.
    (world.limits.blocks, world.limits.rules) = (40, 1 + 50 * 2);
    let desired = world.plan();
    assert!(desired.closed.is_empty(), "{:?}", desired.problems);
    assert_eq!((desired.lists.len(), desired.blocks.len(), desired.rules.len()), (50, 40, 101));
    for (port, n) in ports.iter().zip(0..) {
        assert!(lets_in(&desired, *port, "20.0.78.1", HTTP) && !lets_in(&desired, *port, "20.0.79.1", HTTP));
        assert!(lets_in(&desired, *port, "20.0.79.1", (TCP, Some(1000 + n))));
        assert!(!lets_in(&desired, *port, "20.0.79.1", (TCP, Some(1001 + n))));
    }
    world.limits.blocks = 39;
    assert_eq!(world.plan().closed.len(), 50, "without room for them all are closed");
}

/// What is told apart, for a policy of `count` blocks of everything with one hole each, all at one port or each at its own.
fn holes(count: u32, own_ports: bool) -> (World, u32) {
    let mut world = World::default();
    let web = world.local(("x", "web"), json!({}), &["10.1.0.1"], json!({}));
    let hole =
        |n: u32| json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": [format!("20.{}.{}.0/24", n >> 8, n & 255)]}});
    let spec = if own_ports {
        let rule = |n| json!({"from": [hole(n)], "ports": [{"port": 1 + 2 * n}]});
        json!({"podSelector": {}, "ingress": (0..count).map(rule).collect::<Vec<_>>()})
    } else {
        from((0..count).map(hole).collect())
    };
    world.policy(("x", "p"), spec);
    (world, web)
}

#[test]
fn many_blocks_with_holes_are_little_work() {
    let (mut world, web) = holes(20_000, false);
    let desired = world.plan();
    assert!(lets_in(&desired, web, "20.0.0.1", HTTP) && desired.refusals.is_empty());
    assert_eq!((desired.blocks.len(), desired.rules.len(), desired.lists.len()), (1, 1, 1));
}

#[test]
fn blocks_beyond_the_bound_of_work_close_their_own_workloads() {
    let (mut world, web) = holes(4_000, true);
    let other = world.local(("y", "web"), json!({}), &["10.1.0.2"], json!({}));
    world.policy(("y", "p"), from(json!([{"ipBlock": {"cidr": "192.0.2.0/24"}}])));
    let desired = world.plan();
    assert!(!lets_in(&desired, web, "30.0.0.1", (TCP, Some(1))) && lets_in(&desired, other, "192.0.2.1", HTTP));
    let told = "too many rules with ipBlocks that lie within each other";
    assert!(format!("{:?}", desired.problems).contains(told), "{:?}", desired.problems);
}

/// What is refused is not made first: neither copies of too many ports for each peer, nor all that holds at each of many prefixes.
#[test]
fn a_list_that_is_too_long_is_given_up_before_it_is_whole() {
    let mut world = World::default();
    let web = world.local(("x", "web"), json!({}), &["10.1.0.1"], json!({}));
    let other = world.local(("y", "web"), json!({}), &["10.1.0.2"], json!({}));
    world.policy(("y", "p"), from(json!([{"ipBlock": {"cidr": "192.0.2.0/24"}}])));
    let ports = |count: u32| (0..count).map(|n| json!({"port": 1 + 2 * n})).collect::<Value>();
    let app = |n: u32| json!({"podSelector": {"matchLabels": {"app": format!("a{n}")}}});
    let peers = |count: u32| (0..count).map(app).collect::<Value>();
    let mut closes = |ingress: Value, told: &str| {
        world.policy(("x", "p"), json!({"podSelector": {}, "ingress": ingress}));
        let desired = world.plan();
        assert!(lets_in(&desired, other, "192.0.2.1", HTTP) && !lets_in(&desired, web, "192.0.2.1", (TCP, Some(1))));
        assert!(format!("{:?}", desired.problems).contains(told), "{:?}", desired.problems);
    };
    closes(json!([{"from": peers(15_000), "ports": ports(15_000)}]), "15000 port ranges towards one peer");
    closes(json!([{"from": peers(3000), "ports": ports(100)}]), "peers times port ranges are more than 262144");
    let narrow = |n: u32| json!({"from": [{"ipBlock": {"cidr": format!("20.0.{}.{}/32", n >> 8, n & 255)}}], "ports": [{"port": 9}, {"port": 2 + 2 * n}]});
    let wide = json!({"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": ports(150)});
    let rules: Vec<Value> = [wide].into_iter().chain((1000..7800).map(narrow)).collect();
    closes(json!(rules), "too many rules with ipBlocks that lie within each other");
}

/// Who lets everybody in at all ports lets in whomever other rules mean.
#[test]
fn ports_that_everybody_may_besides_make_no_list_too_long() {
    let mut world = World::default();
    let web = world.local(("x", "web"), json!({}), &["10.1.0.1"], json!({}));
    let ports: Vec<Value> = (0..1000).map(|n| json!({"port": 1 + 2 * n})).collect();
    let from = json!([{"podSelector": {"matchLabels": {"app": "a"}}}, {"ipBlock": {"cidr": "10.0.0.0/8"}}]);
    world.policy(("x", "p"), json!({"podSelector": {}, "ingress": [{"from": from, "ports": ports}, {}]}));
    let desired = world.plan();
    assert!(desired.refusals.is_empty() && lets_in(&desired, web, "192.0.2.1", HTTP), "{:?}", desired.problems);
}

#[test]
fn upstreams_limits_fit() {
    let mut world = World::default();
    // The agent's own limits, by the default sizes of its maps.
    let sizes = weft_dataplane::MapSizes::default();
    world.limits = Limits {
        services: sizes.services as usize,
        members: sizes.members as usize,
        peers: sizes.peers as usize,
        classes: sizes.classes as usize / 2,
        terms: weft_abi::TERMS_PER_CLASS,
        rules: sizes.rules as usize / 2,
        blocks: sizes.blocks as usize / 2,
        work: Room::WORK,
    };
    for n in 0..150_000_u32 {
        let ips =
            [format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255), format!("fd00::{:x}:{:x}", n >> 16, n & 0xffff)];
        let pod = format!("p{n}");
        world.pod(("x", &pod), json!({"app": "a"}), &[&ips[0], &ips[1]], json!({}));
    }
    let web = world.local(("x", "web"), json!({}), &["10.100.0.1"], json!({}));
    world.policy(("x", "p"), from(json!([{"namespaceSelector": {}}])));
    let desired = world.plan();
    assert!(desired.refusals.is_empty(), "{:?}", desired.problems);
    assert!(lets_in(&desired, web, "10.1.0.1", HTTP) && lets_in(&desired, web, "fd00::1:1", HTTP));
}

fn limits() -> impl Strategy<Value = Limits> {
    let terms = prop_oneof![1 => 1..3_usize, 2 => Just(22)];
    (prop_oneof![1 => 1..12_usize, 1 => Just(99)], terms, 1..12_usize, 1..12_usize)
        .prop_map(|(peers, terms, rules, blocks)| Limits { peers, classes: peers, terms, rules, blocks, ..WIDE })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Each port is judged exactly, or closed and named; the maps are never full, whatever stood in them before.
    #[test]
    fn everybody_is_exact_or_closed_and_no_map_is_ever_full(worlds in prop::collection::vec(parts(), 1..4), limits in limits()) {
        let fake = Fake::new();
        fake.peers.limit(limits.peers);
        fake.classes.limit(limits.classes * 2);
        fake.rules.limit(limits.rules * 2);
        fake.blocks.limit(limits.blocks * 2);
        let (mut world, mut free) = (World { limits, ..World::default() }, World::default());
        let mut applier = Applier::default();
        for parts in &worlds {
            build(&mut world, parts);
            build(&mut free, parts);
            let exact = free.plan();
            let desired = world.plan();
            is_exact_or_closed(&world, &desired, &exact)?;
            let summary = applier.apply(&*fake, &desired).unwrap();
            prop_assert_eq!((summary.problems, fake.was_full()), (vec![], 0));
            prop_assert_eq!(&world.plan(), &desired, "what fitted stays");
        }
    }
}

fn is_exact_or_closed(world: &World, desired: &Desired, exact: &Desired) -> Result<(), TestCaseError> {
    for attachment in &world.attachments {
        let (id, ifindex) = (attachment.spec.id.to_string(), attachment.link.as_ref().unwrap().ifindex);
        let (is, wanted) = (verdicts_of(world, desired, ifindex), verdicts_of(world, exact, ifindex));
        let port = desired.ports[&ifindex];
        // Of pods that do not fit nothing is known: they are let through where everybody is.
        let all_known = keys(desired, RefusedKind::Namespace).is_empty();
        for (is, wanted) in is.into_iter().zip(wanted) {
            let closed = [port.ingress_list, port.egress_list].map(|list| list == weft_abi::CLOSED_LIST);
            prop_assert!(is.0 <= (wanted.0 && !closed[0]) && is.1 <= (wanted.1 && !closed[1]), "open");
            prop_assert!(!all_known || is == (wanted.0 && !closed[0], wanted.1 && !closed[1]), "closed");
            prop_assert!(closed == [false; 2] || desired.closed.contains_key(&id), "closed, and not told");
        }
    }
    Ok(())
}
