// SPDX-License-Identifier: Apache-2.0
//! What does not fit, or is closed: what is followed then, and what takes a whole compilation.

use super::*;

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
