// SPDX-License-Identifier: Apache-2.0
//! Algorithms of Services and weights of Pods.

use rstest::rstest;
use weft_abi::{Algorithm, FrontendKey};

use super::*;
use crate::model::{Deltas, DesiredBalancer, DesiredChoice, News, Standing};
use crate::plan::Planner;

const VIP: &str = "172.30.0.1";

/// A Service with an endpoint for each Pod that has these metadata.
fn world(pods: &[Value]) -> World {
    let mut world = World::default();
    world.service("web", json!({"clusterIP": VIP, "clusterIPs": [VIP], "ports": [{"port": 80}]}));
    let mut endpoints = Vec::new();
    for (number, metadata) in pods.iter().enumerate() {
        let (name, address) = (format!("p{number}"), format!("10.2.0.{number}"));
        let more = json!({"metadata": metadata});
        world.pod(("x", &name), json!({}), &[&address], more);
        endpoints.push(json!({"addresses": [address], "targetRef": {"kind": "Pod", "name": name}}));
    }
    world.slice("e", "web", json!({"endpoints": endpoints, "ports": [{"port": 8080}]}));
    world
}

fn balancer(desired: &Desired) -> &DesiredBalancer {
    let key = FrontendKey::of_cluster(addr(VIP), 80_u16.to_be(), TCP);
    &desired.balancers[&desired.frontends[&key].service]
}

/// Last part of the address, and weight.
fn members(members: &[weft_abi::Member]) -> Vec<(u8, u16)> {
    members.iter().map(|member| (member.addr.v4_word().to_ne_bytes()[3], member.weight)).collect()
}

#[test]
fn weights_are_of_pods_and_migration_lessens_them() {
    let annotations = [
        json!({}),
        json!({"labels": {"weft.dev/weight": "300"}}),
        json!({"labels": {"weft.dev/weight": "100"}, "annotations": {"weft.dev/migration-penalty": "1"}}),
        json!({"labels": {"weft.dev/weight": "x"}}),
    ];
    let desired = world(&annotations).plan();
    assert_eq!(members(&balancer(&desired).internal), [(0, 100), (1, 300), (2, 50), (3, 100)]);
    let shown: Vec<_> = desired.service_reports[0].ports[0]
        .backends
        .iter()
        .map(|backend| (backend.state.as_str(), backend.weight))
        .collect();
    assert_eq!(shown, [("ready", 100), ("ready", 300), ("migrating", 50), ("ready", 100)]);
    let problem = "Pod x/p3: metadata.labels[weft.dev/weight]: 'x' is no number between 0 and 1000; 100 is used";
    assert_eq!(desired.problems, [problem]);
}

#[rstest]
#[case::of_some(&["0", "100", "7"], &[(1, 100), (2, 7)], &[(0, 100)])]
#[case::of_all(&["0", "0"], &[(0, 100), (1, 100)], &[])]
fn who_has_no_part_keeps_what_it_has(
    #[case] weights: &[&str],
    #[case] chosen: &[(u8, u16)],
    #[case] keeping: &[(u8, u16)],
) {
    let annotations: Vec<Value> = weights.iter().map(|weight| json!({"labels": {"weft.dev/weight": weight}})).collect();
    let desired = world(&annotations).plan();
    let balancer = balancer(&desired);
    assert_eq!(balancer.sets().map(|set| members(set)), [chosen, chosen, chosen]);
    assert_eq!(members(&balancer.keeping), keeping);
}

#[test]
fn a_service_chooses_as_it_says_else_as_the_node_does() {
    let mut world = world(&[json!({}), json!({})]);
    let choice = |world: &mut World| balancer(&world.plan()).choice;
    assert_eq!(choice(&mut world), DesiredChoice::default());
    world.algorithm("web", "least-loaded");
    assert_eq!(choice(&mut world), DesiredChoice { algorithm: Algorithm::LeastLoaded, seed: 0 });
    world.algorithm("web", "consistent");
    let consistent = choice(&mut world);
    assert_eq!(consistent.algorithm, Algorithm::Consistent);
    assert_ne!(consistent.seed, 0);
    assert_eq!(world.plan().service_reports[0].algorithm, "consistent");
    world.facts.exposure.algorithm = Algorithm::Consistent;
    world.algorithm("web", "random");
    assert_eq!(choice(&mut world), DesiredChoice::default());
    world.algorithm("web", "round-robin");
    assert_eq!(choice(&mut world), consistent, "as the node does");
    let why = "'round-robin' is none of random, consistent, least-loaded; consistent is used";
    assert_eq!(world.plan().problems, [format!("Service x/web: metadata.annotations[weft.dev/algorithm]: {why}")]);
}

#[test]
fn a_weight_that_changes_plans_its_services_alone() {
    let mut world = world(&[json!({}), json!({})]);
    for number in 0..20 {
        let vip = format!("172.30.1.{number}");
        let name = format!("other{number}");
        world.service(&name, json!({"clusterIP": vip, "clusterIPs": [vip], "ports": [{"port": 80}]}));
        world.slice(&name, &name, json!({"endpoints": [{"addresses": ["10.3.0.1"]}], "ports": [{"port": 80}]}));
    }
    let mut planner = Planner::default();
    let mut deltas = Deltas::default();
    let Snapshot { pods, services, slices, nodes, .. } = &world.snapshot;
    deltas.pods.objects = pods.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
    deltas.services.objects = services.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
    deltas.slices.objects = slices.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
    deltas.nodes.objects = nodes.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
    let standing = || Standing { synced: true, ..Standing::default() };
    planner.observe(&world.facts, Vec::new());
    planner.take(News { deltas, standing: standing(), since: None });
    planner.patch(&world.limits.room());
    planner.take(News { deltas: Deltas::default(), standing: standing(), since: None });
    planner.patch(&world.limits.room());
    let before = planner.single_services_planned();
    let mut change = |labels: Value| {
        let more = json!({"metadata": {"labels": labels}});
        world.pod(("x", "p1"), json!({}), &["10.2.0.1"], more);
        let key = ObjectKey::new("x", "p1");
        let mut deltas = Deltas::default();
        deltas.pods.objects.insert(key.clone(), world.snapshot.pods.get(&key).cloned());
        planner.take(News { deltas, standing: standing(), since: None });
        planner.patch(&world.limits.room());
        (members(&balancer(planner.desired()).internal), planner.single_services_planned() - before)
    };
    assert_eq!(change(json!({"weft.dev/weight": "9"})), (vec![(0, 100), (1, 9)], 1));
    assert_eq!(change(json!({"weft.dev/weight": "9", "other": "x"})), (vec![(0, 100), (1, 9)], 1), "nothing else");
    assert_eq!(change(json!({})), (vec![(0, 100), (1, 100)], 2));
}
