// SPDX-License-Identifier: Apache-2.0
//! Classes of pods: how many there are, and which terms each of them matches.

use super::{
    capacity::{from, keys, two_tenants},
    *,
};
use crate::{model::RefusedKind, plan::policy::list::BITS};

const HTTP: Packet = (TCP, Some(80));

/// Whoever means a pod of somebody else by many selectors takes nobody's place, and closes nobody.
#[test]
fn of_a_pod_that_is_meant_too_often_the_surplus_is_left_out_for_who_means_it() {
    let (mut world, small, large) = two_tenants();
    let more = world.pod(("other", "web"), json!({"app": "a"}), &["10.2.0.1"], json!({}));
    more.pod(("large", "friend"), json!({"app": "b"}), &["10.2.0.2"], json!({}));
    // Each at a port of its own.
    let means = |n: u32| {
        let selector = json!({"matchExpressions": [{"key": format!("x{n}"), "operator": "DoesNotExist"}, {"key": "app", "operator": "In", "values": ["a"]}]});
        json!({"from": [{"namespaceSelector": {}, "podSelector": selector}], "ports": [{"port": n + 1}]})
    };
    let many = |first: u32, count: u32| {
        let own = json!({"from": [{"podSelector": {"matchLabels": {"app": "b"}}}]});
        json!({"podSelector": {}, "ingress": (first..first + count).map(means).chain([own]).collect::<Vec<_>>()})
    };
    world.policy(("small", "q"), many(1000, 2));
    world.policy(("large", "p"), many(0, 20));
    let ports = |desired: &Desired, port: u32, first: u16, count: u16| -> Vec<u16> {
        (first + 1..=first + count).filter(|n| lets_in(desired, port, "10.2.0.1", (TCP, Some(*n)))).collect()
    };
    let desired = world.plan();
    assert!(desired.problems.is_empty() && desired.refusals.is_empty(), "{:?}", desired.problems);
    assert_eq!((ports(&desired, large, 0, 20).len(), ports(&desired, small, 1000, 2).len()), (20, 2));
    let stood = ports(&desired, large, 0, 20);
    world.policy(("large", "p"), many(0, 40));
    for _ in 0..2 {
        let desired = world.plan();
        assert_eq!(ports(&desired, large, 0, 40), stood, "what stood stays");
        assert_eq!(ports(&desired, small, 1000, 2), [1001, 1002], "another's share");
        assert!(lets_in(&desired, large, "10.2.0.2", HTTP), "a pod that is not meant too often");
        assert!(desired.closed.is_empty(), "{:?}", desired.closed);
        assert_eq!(keys(&desired, RefusedKind::Namespace), ["other"]);
        let problem = "Namespace other: some of its pods are meant by more different selectors than fit";
        let text = format!("{:?}", desired.problems);
        assert!(text.contains(problem) && text.contains("(web)"), "{text}");
    }
    // Somebody else comes with as many: half of it is theirs.
    world.policy(("small", "q"), many(1000, 30));
    let desired = world.plan();
    assert_eq!((ports(&desired, large, 0, 40).len(), ports(&desired, small, 1000, 30).len()), (11, 11));
    assert_eq!(world.plan(), desired, "a second choice is the first one");
}

/// However many others mean a namespace's pods, its own policies come first.
#[test]
fn others_push_none_of_a_namespaces_own_terms_out() {
    let mut world = World::default();
    let web = world.local(("own", "web"), json!({}), &["10.1.0.1"], json!({}));
    world.pod(("own", "friend"), json!({"app": "a"}), &["10.2.0.1"], json!({}));
    let means = |n: u32, at: u32| {
        let selector = json!({"matchExpressions": [{"key": format!("x{n}"), "operator": "DoesNotExist"}, {"key": "app", "operator": "In", "values": ["a"]}]});
        json!({"from": [{"namespaceSelector": {}, "podSelector": selector}], "ports": [{"port": at}]})
    };
    let rules = |first: u32, count: u32| (first..first + count).map(|n| means(n, n + 1)).collect::<Value>();
    for n in 0..30_u32 {
        let other = format!("n{n:02}");
        world.local((&other, "web"), json!({}), &[&format!("10.1.1.{n}")], json!({}));
        world.policy((&other, "p"), json!({"podSelector": {}, "ingress": rules(1000 + 10 * n, 5)}));
    }
    world.plan();
    world.policy(("own", "p"), json!({"podSelector": {}, "ingress": rules(0, 20)}));
    let desired = world.plan();
    let open = (1..21).filter(|port| lets_in(&desired, web, "10.2.0.1", (TCP, Some(*port))));
    assert_eq!(open.count(), 20, "{:?}", desired.problems);
    assert_eq!(world.plan(), desired, "a second choice is the first one");
}

/// A pod of labels that everybody's policies ask for closes nobody's policies: it is itself who is not let in.
#[test]
fn a_pod_that_takes_all_labels_closes_itself_alone() {
    let mut world = World::default();
    let (mut all, mut ports) = (serde_json::Map::new(), Vec::new());
    for n in 0..23_u32 {
        let (namespace, key) = (format!("n{n:02}"), format!("k{n}"));
        ports.push(world.local((&namespace, "web"), json!({}), &[&format!("10.1.0.{n}")], json!({})));
        world.pod((&namespace, "friend"), json!({&key: "v"}), &[&format!("10.2.0.{n}")], json!({}));
        world.policy(
            (&namespace, "p"),
            from(json!([{"namespaceSelector": {}, "podSelector": {"matchLabels": {&key: "v"}}}])),
        );
        all.insert(key, json!("v"));
    }
    world.pod(("greedy", "pod"), all.into(), &["10.3.0.1"], json!({}));
    let desired = world.plan();
    assert!((0..23).all(|n| lets_in(&desired, ports[n], &format!("10.2.0.{n}"), HTTP)), "{:?}", desired.problems);
    assert_eq!(ports.iter().filter(|port| lets_in(&desired, **port, "10.3.0.1", HTTP)).count(), 22);
    assert_eq!(keys(&desired, RefusedKind::Namespace), ["greedy"]);
    assert_eq!(world.plan(), desired);
}

/// Containers of one pod may each have a port of the same name.
#[test]
fn a_pod_that_numbers_one_name_23_times_is_reached_at_22_of_them() {
    let (mut world, small, large) = two_tenants();
    world.snapshot.policies.clear();
    let ports: Vec<Value> =
        (1..24).map(|n| json!({"name": "many", "containerPort": 8000 + n, "protocol": "TCP"})).collect();
    let container = json!({"spec": {"containers": [{"name": "c", "ports": ports}]}});
    world.pod(("small", "numbers"), json!({}), &["10.2.0.1"], container);
    let one = json!({"spec": {"containers": [{"name": "c", "ports": [{"name": "many", "containerPort": 8001, "protocol": "TCP"}]}]}});
    world.pod(("large", "one"), json!({}), &["10.2.0.2"], one);
    let to = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": "many"}]}]});
    world.policy(("large", "p"), to.clone());
    world.policy(("small", "p"), to);
    let desired = world.plan();
    for port in [small, large] {
        let open = |peer, number| lets_out(&desired, port, peer, (TCP, Some(number)));
        assert_eq!((8001..8024).filter(|number| open("10.2.0.1", *number)).count(), 22);
        assert!(open("10.2.0.2", 8001) && !open("10.2.0.2", 8002) && !open("10.2.0.1", 8024));
    }
    assert_eq!((keys(&desired, RefusedKind::Namespace), desired.closed.len()), (vec!["small".to_owned()], 0));
    assert_eq!(world.plan(), desired);
}

/// Of hashes, as many bits as make terms meet now and then.
struct FewBits;

impl FewBits {
    fn new() -> Self {
        BITS.set(0xff_0000);
        Self
    }
}

impl Drop for FewBits {
    fn drop(&mut self) {
        BITS.set(u64::MAX);
    }
}

#[test]
fn lists_that_ask_for_terms_of_one_number_are_closed() {
    let _few = FewBits::new();
    let (mut world, small, large) = two_tenants();
    let blocks = world.local(("blocks", "web"), json!({}), &["10.1.0.3"], json!({}));
    world.policy(("blocks", "p"), from(json!([{"ipBlock": {"cidr": "192.0.2.0/24"}}])));
    let asking = |n: u32| from(json!([{"podSelector": {"matchLabels": {"app": format!("a{n}")}}}]));
    world.policy(("small", "p"), asking(0));
    world.pod(("small", "meant"), json!({"app": "a0"}), &["10.2.0.1"], json!({}));
    assert!(lets_in(&world.plan(), small, "10.2.0.1", HTTP));
    // Each one alone stands, until it meets that of the other tenant, or a namespace.
    let meeting = (1..10_000).find(|n| {
        world.policy(("large", "p"), asking(*n));
        world.plan().closed.len() == 2
    });
    let desired = world.plan();
    assert!(meeting.is_some() && !lets_in(&desired, small, "10.2.0.1", HTTP), "closed");
    assert!(lets_in(&desired, blocks, "192.0.2.1", HTTP) && !lets_in(&desired, large, "192.0.2.1", HTTP));
    assert_eq!(keys(&desired, RefusedKind::Policy), ["large/p", "small/p"]);
    assert!(format!("{:?}", desired.problems).contains("has the number of another policy's"), "{:?}", desired.problems);
    // The number of a namespace that has pods.
    world.snapshot.policies.remove(&ObjectKey::new("large", "p"));
    assert!(world.plan().closed.is_empty());
    let meeting = (1..10_000).find(|n| {
        world.pod((&format!("n{n}"), "pod"), json!({}), &["10.2.0.2"], json!({}));
        let closed = world.plan().closed.len();
        world.snapshot.pods.remove(&ObjectKey::new(&format!("n{n}"), "pod"));
        closed == 1
    });
    assert!(meeting.is_some());
}

/// A class for each is made where a selector asks for what only one of them has.
#[test]
fn a_stateful_set_of_a_thousand_pods_is_one_class() {
    let (mut world, small, large) = two_tenants();
    world.limits.classes = 3;
    for n in 0..1000_u32 {
        let name = format!("db-{n}");
        let labels = json!({
            "app": "db", "statefulset.kubernetes.io/pod-name": name, "apps.kubernetes.io/pod-index": n.to_string(),
            "controller-revision-hash": format!("db-{}", n % 3),
        });
        world.pod(("small", &name), labels, &[&format!("10.2.{}.{}", n >> 8, n & 255)], json!({}));
    }
    let desired = world.plan();
    assert!(desired.refusals.is_empty(), "{:?}", desired.problems);
    assert_eq!((desired.classes.len(), desired.peers.len()), (3, 1002), "those of the set, and each web");
    assert!(lets_in(&desired, small, "10.2.3.231", HTTP));
    world.limits.classes = 2000;
    let one = json!({"matchLabels": {"statefulset.kubernetes.io/pod-name": "db-7"}});
    world.policy(("large", "p"), from(json!([{"namespaceSelector": {}, "podSelector": one}])));
    let desired = world.plan();
    assert_eq!(desired.classes.len(), 1002);
    assert!(lets_in(&desired, large, "10.2.0.7", HTTP) && !lets_in(&desired, large, "10.2.0.8", HTTP));
    assert!(lets_in(&desired, small, "10.2.0.8", HTTP));
    world.snapshot.policies.remove(&ObjectKey::new("large", "p"));
    assert_eq!(world.plan().classes.len(), 3);
}

/// What one tenant asks of others' pods leaves none of them unknown.
#[test]
fn who_asks_for_more_classes_than_fit_is_closed_and_nobody_elses_pods_are_unknown() {
    let (mut world, small, large) = two_tenants();
    world.limits.classes = 20;
    for n in 0..50_u32 {
        let name = format!("db-{n}");
        let labels = json!({"app": "db", "statefulset.kubernetes.io/pod-name": name});
        world.pod(("small", &name), labels, &[&format!("10.2.0.{}", n + 10)], json!({}));
    }
    let any = json!({"matchExpressions": [{"key": "statefulset.kubernetes.io/pod-name", "operator": "Exists"}]});
    world.policy(("large", "greedy"), from(json!([{"namespaceSelector": {}, "podSelector": any}])));
    let desired = world.plan();
    assert!(lets_in(&desired, small, "10.2.0.20", HTTP), "{:?}", desired.problems);
    assert!(!lets_in(&desired, large, "10.2.0.20", HTTP));
    let closed: Vec<_> = desired.closed.values().collect();
    assert!(closed.len() == 1 && closed[0].contains("labels that controllers give each pod"), "{closed:?}");
    assert_eq!((desired.classes.len(), desired.peers.len()), (3, 52));
    assert!(desired.refusals.iter().all(|refusal| &*refusal.key.namespace == "large"), "{:?}", desired.refusals);
    world.limits.classes = 100;
    assert!(lets_in(&world.plan(), large, "10.2.0.20", HTTP));
}
