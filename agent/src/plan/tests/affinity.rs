// SPDX-License-Identifier: Apache-2.0
//! `sessionAffinity` of Services.

use std::collections::BTreeSet;

use rstest::rstest;
use weft_abi::{FrontendKey, ticks};

use super::*;
use crate::model::DesiredAffinity;

const WHERE: &str = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";

fn ports() -> Value {
    json!([{"name": "a", "port": 80}, {"name": "b", "port": 81}])
}

fn spec(affinity: &Value, config: &Value) -> Value {
    let vips = json!(["10.96.0.1", "fd00:96::1"]);
    json!({"clusterIP": "10.96.0.1", "clusterIPs": vips, "ports": ports(), "sessionAffinity": affinity, "sessionAffinityConfig": config})
}

fn affinity_of(desired: &Desired, vip: &str, port: u16) -> DesiredAffinity {
    let key = FrontendKey::of_cluster(addr(vip), port.to_be(), TCP);
    desired.balancers[&desired.frontends[&key].service].affinity
}

#[rstest]
#[case::nothing_said(Value::Null, Value::Null, None, None)]
#[case::none(json!("None"), json!({"clientIP": {"timeoutSeconds": 5}}), None, None)]
#[case::by_default(json!("ClientIP"), Value::Null, Some(10_800), None)]
#[case::an_empty_config(json!("ClientIP"), json!({"clientIP": {}}), Some(10_800), None)]
#[case::the_least(json!("ClientIP"), json!({"clientIP": {"timeoutSeconds": 1}}), Some(1), None)]
#[case::the_most(json!("ClientIP"), json!({"clientIP": {"timeoutSeconds": 86_400}}), Some(86_400), None)]
#[case::too_short(json!("ClientIP"), json!({"clientIP": {"timeoutSeconds": 0}}), Some(10_800), Some(format!("{WHERE}: 0 is not between 1 and 86400; 10800 is used")))]
#[case::too_long(json!("ClientIP"), json!({"clientIP": {"timeoutSeconds": 86_401}}), Some(10_800), Some(format!("{WHERE}: 86401 is not between 1 and 86400; 10800 is used")))]
#[case::negative(json!("ClientIP"), json!({"clientIP": {"timeoutSeconds": -1}}), Some(10_800), Some(format!("{WHERE}: -1 is not between 1 and 86400; 10800 is used")))]
#[case::unknown(json!("Cookie"), Value::Null, None, Some("spec.sessionAffinity: 'Cookie' is neither None nor ClientIP; clients keep no backend".to_owned()))]
fn values(
    #[case] affinity: Value,
    #[case] config: Value,
    #[case] seconds: Option<u32>,
    #[case] problem: Option<String>,
) {
    let mut world = World::default();
    world.service("web", spec(&affinity, &config));
    let desired = world.plan();
    assert_eq!(affinity_of(&desired, "10.96.0.1", 80).ticks, seconds.map_or(0, ticks));
    let problems: Vec<String> = problem.into_iter().map(|why| format!("Service x/web: {why}")).collect();
    assert_eq!(desired.problems, problems);
    assert_eq!(desired.service_reports[0].affinity_seconds, seconds);
}

/// Programs of other layouts, and those after a restart of the node's agent, know clients by the same names.
#[test]
fn ports_and_families_have_names_of_their_own_whatever_their_numbers_are() {
    let mut world = World::default();
    let sticky = json!("ClientIP");
    world.service("web", spec(&sticky, &Value::Null));
    let all = |desired: &Desired| -> Vec<u64> {
        let frontends = [("10.96.0.1", 80), ("10.96.0.1", 81), ("fd00:96::1", 80), ("fd00:96::1", 81)];
        frontends.map(|(vip, port)| affinity_of(desired, vip, port).name).to_vec()
    };
    let names = all(&world.plan());
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 4, "{names:?}");
    let mut other = World::default();
    other.service("a-first", json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ports": ports()}));
    other.service("web", spec(&sticky, &json!({"clientIP": {"timeoutSeconds": 7}})));
    let desired = other.plan();
    assert_eq!(all(&desired), names);
    assert_eq!(affinity_of(&desired, "10.96.0.9", 80), DesiredAffinity::default(), "it keeps nobody");
}
