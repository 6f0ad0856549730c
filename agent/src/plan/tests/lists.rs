// SPDX-License-Identifier: Apache-2.0
//! How long a decision list may be.

use super::{policy::world, *};

const HTTP: Packet = (TCP, Some(80));

/// Every second port, so that none can be merged.
fn many_ports(count: u16) -> Value {
    json!((0..count).map(|n| json!({"port": 1000 + 2 * n})).collect::<Vec<_>>())
}

#[test]
fn long_lists_go_on_and_too_long_ones_are_closed() {
    let (mut world, web) = world();
    let rule = |count| json!({"from": [{"podSelector": {}}], "ports": many_ports(count)});
    world.policy(("x", "p"), json!({"podSelector": {}, "ingress": [rule(160)]}));
    let desired = world.plan();
    assert!(desired.problems.is_empty(), "{:?}", desired.problems);
    let open = |desired: &Desired, port| lets_in(desired, web, "10.2.0.1", (TCP, Some(port)));
    assert!((0..160).all(|n| open(&desired, 1000 + 2 * n) && !open(&desired, 1001 + 2 * n)));

    world.policy(("x", "p"), json!({"podSelector": {}, "ingress": [rule(161)]}));
    let desired = world.plan();
    assert!(!open(&desired, 1000) && lets_out(&desired, web, "10.2.0.1", HTTP));
    let problem = "NetworkPolicy x/p: does not fit: its workloads are closed: 161 port ranges";
    assert!(desired.problems[0].starts_with(problem), "{:?}", desired.problems);
    assert!(desired.policy_reports[0].state.contains("161 port ranges"), "{:?}", desired.policy_reports);
    assert!(desired.rules.is_empty());
}

/// What one peer may be meant by counts, and not what stands for all of them.
#[test]
fn many_peers_at_some_ports_each_are_no_long_list() {
    let (mut world, web) = world();
    let rules: Vec<Value> = (0..81)
        .map(|n: u32| json!({"from": [{"podSelector": {"matchLabels": {"app": format!("a{n}")}}}], "ports": many_ports(5)}))
        .collect();
    world.policy(("x", "p"), json!({"podSelector": {}, "ingress": rules}));
    world.pod(("x", "last"), json!({"app": "a80"}), &["10.2.0.9"], json!({}));
    let desired = world.plan();
    assert!(desired.problems.is_empty() && desired.rules.len() == 81 * 2, "{:?}", desired.problems);
    assert!(
        lets_in(&desired, web, "10.2.0.9", (TCP, Some(1008))) && !lets_in(&desired, web, "10.2.0.9", (TCP, Some(1010)))
    );
}

/// Everybody, any pod, the namespace, a block and 22 selectors: a peer that all of them mean takes as many looks as one may.
#[test]
fn a_list_is_as_long_as_the_longest_walk_and_no_longer() {
    let (mut world, web) = world();
    // Ports of each part: none another's, so that nothing is left out as said already.
    let ports = |part: u32, count: u32| {
        json!((0..count).map(|n| json!({"port": 1000 + 400 * part + 2 * n})).collect::<Vec<_>>())
    };
    let policy = |last: u32| {
        let mut rules = vec![
            json!({"ports": ports(0, 20)}),
            json!({"from": [{"namespaceSelector": {}}], "ports": ports(1, 20)}),
            json!({"from": [{"podSelector": {}}], "ports": ports(2, 20)}),
            json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": ports(3, 20)}),
        ];
        // 4 times 4 beyond the first, 21 times 2, and those of the last; more of them that are shorter count no more.
        let counts = [12_u32; 21].into_iter().chain([last]).chain([4 * 2; 20]);
        for (n, count) in counts.enumerate() {
            let selector = json!({"matchExpressions": [{"key": format!("no{n}"), "operator": "DoesNotExist"}]});
            let label = json!({"matchLabels": {"app": format!("many{n}")}});
            let peer = if n < 22 { selector } else { label };
            let key = u32::try_from(n).unwrap() + 4;
            rules.push(json!({"from": [{"podSelector": peer}], "ports": ports(key, count)}));
        }
        json!({"podSelector": {}, "ingress": rules})
    };
    // 16 and 42 and 6 are 64.
    world.policy(("x", "p"), policy(4 * 7));
    let desired = world.plan();
    assert!(desired.closed.is_empty(), "{:?}", desired.problems);
    let open = |port: u32| lets_in(&desired, web, "10.2.0.1", (TCP, Some(u16::try_from(port).unwrap())));
    for (part, count) in [(0, 20), (1, 20), (2, 20), (3, 20), (4, 12), (24, 12), (25, 28)] {
        let last = 1000 + 400 * part + 2 * (count - 1);
        assert!(open(last) && !open(last + 1), "{part}");
    }
    world.policy(("x", "p"), policy(4 * 7 + 1));
    let desired = world.plan();
    assert!(desired.problems[0].contains("65 entries beyond the first of each"), "{:?}", desired.problems);
    assert_eq!(desired.closed.len(), 1);
}

#[test]
fn blocks_of_more_lengths_than_a_list_has_room_for_close_it() {
    let (mut world, web) = world();
    let blocks = |count: u32| -> Value {
        (0..count).map(|n| json!({"ipBlock": {"cidr": format!("2001:db8:{n:x}::/{}", 48 + n)}})).collect()
    };
    let policy = |blocks| json!({"podSelector": {}, "ingress": [{"from": blocks}]});
    world.policy(("x", "p"), policy(blocks(33)));
    let desired = world.plan();
    assert!(desired.problems.is_empty() && lets_in(&desired, web, "2001:db8:20::", HTTP), "{:?}", desired.problems);
    world.policy(("x", "p"), policy(blocks(34)));
    let desired = world.plan();
    assert!(!lets_in(&desired, web, "2001:db8:1::", HTTP));
    assert!(desired.problems[0].contains("34 different prefix lengths"), "{:?}", desired.problems);
    // All that there are of IPv4 are no question.
    let all: Value = (0..=32).map(|length| json!({"ipBlock": {"cidr": format!("198.51.100.7/{length}")}})).collect();
    world.policy(("x", "p"), policy(all));
    assert!(world.plan().problems.is_empty());
}
