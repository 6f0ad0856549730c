// SPDX-License-Identifier: Apache-2.0
//! What load balancers are told of Services.

use rstest::rstest;

use super::*;
use crate::{
    model::{Deltas, HealthCheck, HealthChecks, News, Standing},
    plan::Planner,
};

const PORT: u16 = 32_000;

fn balanced() -> Value {
    json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": PORT,
        "clusterIP": "10.96.0.1", "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}],
    })
}

fn endpoint(ip: &str, node: &str, conditions: Value) -> Value {
    json!({"addresses": [ip], "nodeName": node, "conditions": conditions})
}

fn slice(endpoints: &[Value]) -> Value {
    json!({"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}], "endpoints": endpoints})
}

fn ready() -> Value {
    json!({"ready": true})
}

fn terminating() -> Value {
    json!({"ready": false, "serving": true, "terminating": true})
}

/// What changes by what stands in the world now.
fn follow(planner: &mut Planner, world: &World) -> HealthChecks {
    let standing = Standing { synced: true, ..Standing::default() };
    planner.take(News { deltas: Deltas::whole(&world.snapshot), standing, since: None });
    planner.observe(&world.facts, Vec::new());
    planner.patch(&world.limits.room());
    planner.take_health_checks()
}

fn check(ready: [Option<u32>; 2]) -> Option<HealthCheck> {
    Some(HealthCheck { port: PORT.try_into().unwrap(), ready, uid: None })
}

fn of_web(check: Option<HealthCheck>) -> HealthChecks {
    [(ObjectKey::new("x", "web"), check)].into()
}

#[test]
fn ready_endpoints_of_this_node_count_each_once() {
    let (mut world, mut planner) = (World::default(), Planner::default());
    world.service("web", balanced());
    assert_eq!(follow(&mut planner, &world), of_web(check([Some(0), None])));
    let others = [
        endpoint("10.1.0.2", "there", ready()),
        endpoint("10.1.0.3", "here", json!({"ready": false})),
        endpoint("10.1.0.4", "here", json!({"ready": false, "serving": true})),
        endpoint("10.1.0.5", "here", terminating()),
    ];
    world.slice("s1", "web", slice(&others));
    assert_eq!(follow(&mut planner, &world), HealthChecks::new());
    // Two ports, two slices, one address.
    world.slice("s2", "web", slice(&[endpoint("10.1.0.1", "here", ready()), endpoint("10.1.0.6", "here", ready())]));
    world.slice("s3", "web", slice(&[endpoint("10.1.0.1", "here", ready())]));
    assert_eq!(follow(&mut planner, &world), of_web(check([Some(2), None])));
    assert_eq!(follow(&mut planner, &world), HealthChecks::new(), "nothing has changed");
}

#[test]
fn an_endpoint_that_terminates_is_told_of_no_more() {
    let (mut world, mut planner) = (World::default(), Planner::default());
    world.service("web", balanced()).slice("s", "web", slice(&[endpoint("10.1.0.1", "here", ready())]));
    assert_eq!(follow(&mut planner, &world), of_web(check([Some(1), None])));
    world.slice("s", "web", slice(&[endpoint("10.1.0.1", "here", terminating())]));
    assert_eq!(follow(&mut planner, &world), of_web(check([Some(0), None])));
}

#[test]
fn families_are_told_of_apart() {
    let (mut world, mut planner) = (World::default(), Planner::default());
    let mut spec = balanced();
    merge(&mut spec, json!({"clusterIPs": ["10.96.0.1", "fd00:96::1"]}));
    world.service("web", spec).slice("s", "web", slice(&[endpoint("10.1.0.1", "here", ready())]));
    assert_eq!(follow(&mut planner, &world), of_web(check([Some(1), Some(0)])));
    let mut v6 = slice(&[endpoint("fd00:1::1", "here", ready()), endpoint("fd00:1::2", "here", ready())]);
    merge(&mut v6, json!({"addressType": "IPv6"}));
    world.slice("s6", "web", v6);
    assert_eq!(follow(&mut planner, &world), of_web(check([Some(1), Some(2)])));
}

#[rstest]
#[case::cluster(json!({"externalTrafficPolicy": "Cluster"}))]
#[case::node_port(json!({"type": "NodePort"}))]
#[case::no_port(json!({"healthCheckNodePort": 0}))]
#[case::headless(json!({"clusterIP": "None"}))]
#[case::no_number(json!({"healthCheckNodePort": 70_000}))]
fn a_service_that_is_not_asked_for_any_more_closes_its_port(#[case] edit: Value) {
    let (mut world, mut planner) = (World::default(), Planner::default());
    let mut edited = balanced();
    merge(&mut edited, edit);
    world.service("web", balanced());
    assert_eq!(follow(&mut planner, &world), of_web(check([Some(0), None])));
    world.service("web", edited);
    assert_eq!(follow(&mut planner, &world), of_web(None));
    world.service("web", balanced());
    assert_eq!(follow(&mut planner, &world), of_web(check([Some(0), None])));
    world.snapshot.services.clear();
    assert_eq!(follow(&mut planner, &world), of_web(None));
}

#[test]
fn it_can_be_switched_off_and_is_told_where_services_do_not_fit() {
    let (mut world, mut planner) = (World::default(), Planner::default());
    world.service("web", balanced());
    world.limits.services = 1;
    assert_eq!(follow(&mut planner, &world), of_web(check([Some(0), None])));
    world.facts.exposure.health_check_node_ports = false;
    assert_eq!(follow(&mut Planner::default(), &world), HealthChecks::new());
}
