// SPDX-License-Identifier: Apache-2.0
//! NetworkPolicy, line by line of its contract.

use rstest::rstest;

use super::*;

const HTTP: Packet = (TCP, Some(80));
const PING: Packet = (ICMP, None);

/// Namespaces x (team: red) and y (team: blue); a server of this node, x/web; clients x/a, x/b, y/a elsewhere.
pub(super) fn world() -> (World, u32) {
    let mut world = World::default();
    world.namespace("x", json!({"team": "red"}));
    world.namespace("y", json!({"team": "blue"}));
    let web = world.local(("x", "web"), json!({"app": "web"}), &["10.1.0.1", "fd00:1::1"], json!({}));
    world
        .pod(("x", "a"), json!({"app": "a"}), &["10.2.0.1", "fd00:2::1"], json!({}))
        .pod(("x", "b"), json!({"app": "b"}), &["10.2.0.2"], json!({}))
        .pod(("y", "a"), json!({"app": "a"}), &["10.2.0.3"], json!({}));
    (world, web)
}

/// Who of `10.2.0.1..=3` and the outside (`203.0.113.9`) gets in, as the last digits.
fn admitted(desired: &Desired, ifindex: u32, packet: Packet) -> Vec<u8> {
    let peers = [("10.2.0.1", 1), ("10.2.0.2", 2), ("10.2.0.3", 3), ("203.0.113.9", 9)];
    peers.into_iter().filter(|(peer, _)| lets_in(desired, ifindex, peer, packet)).map(|(_, digit)| digit).collect()
}

#[rstest]
#[case::own_namespace(json!([{"podSelector": {"matchLabels": {"app": "a"}}}]), &[1])]
#[case::all_of_own_namespace(json!([{"podSelector": {}}]), &[1, 2])]
#[case::other_namespace(json!([{"namespaceSelector": {"matchLabels": {"team": "blue"}}}]), &[3])]
#[case::by_the_namespaces_name(json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "y"}}}]), &[3])]
#[case::all_namespaces(json!([{"namespaceSelector": {}}]), &[1, 2, 3])]
#[case::both_is_and(json!([{"namespaceSelector": {"matchLabels": {"team": "red"}}, "podSelector": {"matchLabels": {"app": "a"}}}]), &[1])]
#[case::elements_are_or(json!([{"namespaceSelector": {"matchLabels": {"team": "blue"}}}, {"podSelector": {"matchLabels": {"app": "b"}}}]), &[2, 3])]
#[case::not_in(json!([{"podSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["a"]}]}}]), &[2])]
#[case::not_in_missing_key(json!([{"podSelector": {"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}}]), &[1, 2])]
#[case::block_with_pods(json!([{"ipBlock": {"cidr": "10.2.0.0/16"}}]), &[1, 2, 3])]
#[case::block_but_one(json!([{"ipBlock": {"cidr": "10.2.0.0/16", "except": ["10.2.0.2/32"]}}]), &[1, 3])]
#[case::everything(json!([{"ipBlock": {"cidr": "0.0.0.0/0"}}]), &[1, 2, 3, 9])]
#[case::everything_but(json!([{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}]), &[9])]
#[case::a_hole_is_of_its_block_only(json!([{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}, {"ipBlock": {"cidr": "10.2.0.2/31"}}]), &[2, 3, 9])]
#[case::a_hole_does_not_shut_pods_out(json!([{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.2.0.1/32"]}}, {"podSelector": {"matchLabels": {"app": "a"}}}]), &[1, 2, 3])]
#[case::a_block_within_a_hole(json!([{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.2.0.0/16"]}}, {"ipBlock": {"cidr": "10.2.0.1/32"}}]), &[1])]
#[case::ipv6_everything_is_no_ipv4(json!([{"ipBlock": {"cidr": "::/0"}}]), &[])]
#[case::empty_list_is_anybody(json!([]), &[1, 2, 3, 9])]
#[case::missing_list_is_anybody(json!(null), &[1, 2, 3, 9])]
fn peer_lists(#[case] from: Value, #[case] expected: &[u8]) {
    let (mut world, web) = world();
    world.policy(("x", "p"), json!({"podSelector": {}, "ingress": [{"from": from}]}));
    let desired = world.plan();
    assert_eq!(admitted(&desired, web, HTTP), expected);
    assert_eq!(admitted(&desired, web, PING), expected, "no ports: every protocol");
    assert!(lets_out(&desired, web, "203.0.113.9", HTTP), "egress is free");
    assert_eq!(desired.policy_reports[0].state, "enforced");
    assert_eq!(desired.policy_reports[0].selected, ["x/web"]);
}

#[test]
fn families_are_apart() {
    let (mut world, web) = world();
    let from = json!([{"ipBlock": {"cidr": "::/0", "except": ["fd00:2::/64"]}}, {"ipBlock": {"cidr": "10.2.0.0/30"}}]);
    world.policy(("x", "p"), json!({"podSelector": {}, "ingress": [{"from": from}]}));
    let desired = world.plan();
    assert_eq!(admitted(&desired, web, HTTP), [1, 2, 3]);
    assert!(lets_in(&desired, web, "2001:db8::1", HTTP));
    assert!(!lets_in(&desired, web, "fd00:2::1", HTTP));
}

#[rstest]
#[case::number(json!([{"port": 80}]), &[(TCP, 80)])]
#[case::protocol_defaults_to_tcp(json!([{"port": 53}]), &[(TCP, 53)])]
#[case::udp(json!([{"port": 53, "protocol": "UDP"}]), &[(UDP, 53)])]
#[case::sctp(json!([{"protocol": "SCTP", "port": 80}]), &[(SCTP, 80)])]
#[case::all_of_a_protocol(json!([{"protocol": "UDP"}]), &[(UDP, 53), (UDP, 80), (UDP, 81), (UDP, 8080)])]
#[case::range(json!([{"port": 80, "endPort": 8080}]), &[(TCP, 80), (TCP, 81), (TCP, 8080)])]
#[case::several(json!([{"port": 53}, {"port": 53, "protocol": "UDP"}]), &[(TCP, 53), (UDP, 53)])]
#[case::named(json!([{"port": "http"}]), &[(TCP, 8080)])]
#[case::named_by_a_sidecar(json!([{"port": "probe"}]), &[(TCP, 81)])]
#[case::named_by_an_init_container_that_ends(json!([{"port": "setup"}]), &[])]
#[case::named_of_another_protocol(json!([{"port": "http", "protocol": "UDP"}]), &[])]
#[case::named_nowhere(json!([{"port": "nothing"}]), &[])]
fn port_lists(#[case] ports: Value, #[case] expected: &[(u8, u16)]) {
    let mut world = World::default();
    let spec = json!({"spec": {
        "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}],
        "initContainers": [
            {"name": "s", "restartPolicy": "Always", "ports": [{"name": "probe", "containerPort": 81}]},
            {"name": "i", "ports": [{"name": "setup", "containerPort": 53}]}]}});
    let web = world.local(("x", "web"), json!({}), &["10.1.0.1"], spec);
    world.policy(("x", "p"), json!({"podSelector": {}, "ingress": [{"ports": ports}]}));
    let desired = world.plan();
    let all = [TCP, UDP, SCTP].into_iter().flat_map(|protocol| [53, 80, 81, 8080].map(|port| (protocol, port)));
    let open: Vec<_> =
        all.filter(|(protocol, port)| lets_in(&desired, web, "10.9.9.9", (*protocol, Some(*port)))).collect();
    assert_eq!(open, expected);
    assert!(!lets_in(&desired, web, "10.9.9.9", PING), "only the protocols that were named");
}

#[rstest]
#[case::nothing_said(json!({}), true, false)]
#[case::an_empty_egress_list(json!({"egress": []}), true, false)]
#[case::an_egress_rule(json!({"egress": [{"ports": [{"port": 1}]}]}), true, true)]
#[case::egress_only(json!({"policyTypes": ["Egress"]}), false, true)]
#[case::egress_only_with_a_rule(json!({"policyTypes": ["Egress"], "ingress": [{}]}), false, true)]
#[case::both(json!({"policyTypes": ["Ingress", "Egress"]}), true, true)]
#[case::ingress_only(json!({"policyTypes": ["Ingress"], "egress": [{}]}), true, false)]
fn directions(#[case] spec: Value, #[case] ingress: bool, #[case] egress: bool) {
    let (mut world, web) = world();
    let mut spec = spec;
    merge(&mut spec, json!({"podSelector": {}}));
    world.policy(("x", "p"), spec);
    let desired = world.plan();
    assert_eq!(
        (lets_in(&desired, web, "10.2.0.1", HTTP), lets_out(&desired, web, "10.2.0.1", HTTP)),
        (!ingress, !egress)
    );
    let expected: Vec<&str> =
        [("ingress", ingress), ("egress", egress)].into_iter().filter(|d| d.1).map(|d| d.0).collect();
    assert_eq!(desired.policy_reports[0].directions, expected);
}

#[test]
fn isolation_is_by_namespace_and_selector() {
    let (mut world, web) = world();
    let db = world.local(("x", "db"), json!({"app": "db"}), &["10.1.0.2"], json!({}));
    let other = world.local(("y", "web"), json!({"app": "web"}), &["10.1.0.3"], json!({}));
    let nameless = world.attach(None, &["10.1.0.4"]);
    world.policy(("x", "p"), json!({"podSelector": {"matchLabels": {"app": "web"}}}));
    let desired = world.plan();
    assert_eq!(
        [web, db, other, nameless].map(|port| lets_in(&desired, port, "10.2.0.1", HTTP)),
        [false, true, true, true]
    );
    assert_eq!(desired.isolation[&world.attachments[0].spec.id.to_string()], (vec!["x/p".to_owned()], vec![]));

    world.snapshot.policies.clear();
    let desired = world.plan();
    assert!(lets_in(&desired, web, "10.2.0.1", HTTP), "back to open with the last policy");
    assert!(
        desired.rules.is_empty()
            && desired.lists.is_empty()
            && desired.peers.is_empty()
            && world.numbers.lists.is_empty()
    );
}

#[test]
fn policies_add_up_and_equal_sets_are_one() {
    let (mut world, web) = world();
    let twin = world.local(("x", "twin"), json!({"app": "web"}), &["10.1.0.2"], json!({}));
    for (name, app, port) in [("p", "a", 80), ("q", "b", 81)] {
        let from = json!([{"podSelector": {"matchLabels": {"app": app}}}]);
        let rule = json!({"from": from, "ports": [{"port": port}]});
        world.policy(("x", name), json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [rule]}));
    }
    let desired = world.plan();
    assert_eq!(admitted(&desired, web, (TCP, Some(80))), [1]);
    assert_eq!(admitted(&desired, web, (TCP, Some(81))), [2]);
    assert_eq!(desired.ports[&web].ingress_list, desired.ports[&twin].ingress_list);
    assert_eq!(desired.lists.len(), 1);
}

#[rstest]
#[case::succeeded(json!({"status": {"phase": "Succeeded"}}))]
#[case::failed(json!({"status": {"phase": "Failed"}}))]
#[case::on_the_hosts_network(json!({"spec": {"hostNetwork": true}}))]
fn pods_that_are_no_peers(#[case] more: Value) {
    let (mut world, web) = world();
    world.pod(("x", "gone"), json!({"app": "a"}), &["10.2.0.9"], more);
    world.policy(("x", "p"), json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}));
    let desired = world.plan();
    assert!(!lets_in(&desired, web, "10.2.0.9", HTTP));
    assert!(!desired.names.contains_key(&addr("10.2.0.9")));
}

#[test]
fn an_address_is_of_the_pod_that_has_it_now() {
    let (mut world, web) = world();
    let from = json!([{"podSelector": {"matchLabels": {"app": "a"}}}]);
    world.policy(("x", "p"), json!({"podSelector": {}, "ingress": [{"from": from}]}));
    let leaving = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    world.pod(("x", "z"), json!({"app": "a"}), &["10.2.0.2"], leaving);
    assert!(!lets_in(&world.plan(), web, "10.2.0.2", HTTP), "x/b is not on its way out");
    world.pod(
        ("x", "z"),
        json!({"app": "a"}),
        &["10.2.0.2"],
        json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}}),
    );
    assert!(lets_in(&world.plan(), web, "10.2.0.2", HTTP), "the younger one has it");
    world.attach(Some(("x", "b")), &["10.2.0.2"]);
    assert!(!lets_in(&world.plan(), web, "10.2.0.2", HTTP), "what is attached here is certain");
}

#[test]
fn an_address_counts_only_within_the_pod_cidrs_of_the_pods_node() {
    let (mut world, web) = world();
    let from = json!([{"podSelector": {"matchLabels": {"app": "a"}}}]);
    world.policy(("x", "p"), json!({"podSelector": {}, "ingress": [{"from": from}]}));
    world.node("evil", &["10.66.0.0/24", "fd00:66::/64"]).node("narrow", &["10.2.66.0/24"]);
    // Who has taken over the node "evil" writes the status of its own pod.
    let on = |node: &str| json!({"spec": {"nodeName": node}});
    let claimed = ["10.66.0.1", "fd00:66::1", "10.2.0.77", "203.0.113.9", "10.2.66.1", "10.1.0.1", "192.0.2.9"];
    world.pod(("x", "forged"), json!({"app": "a"}), &claimed, on("evil"));
    world.pod(("x", "homeless"), json!({"app": "a"}), &["10.2.0.78"], json!({"spec": {"nodeName": "gone"}}));
    // Packets for a narrower prefix go to another node than those for the wide one around it.
    world.pod(("x", "astray"), json!({"app": "a"}), &["10.2.66.7"], on("there"));
    let desired = world.plan();
    let counted: Vec<&str> = ["10.2.0.78", "10.2.66.7"]
        .iter()
        .chain(&claimed)
        .copied()
        .filter(|address| lets_in(&desired, web, address, HTTP))
        .collect();
    assert_eq!(counted, ["10.66.0.1", "fd00:66::1"]);
    assert!(lets_in(&desired, web, "10.2.0.1", HTTP), "others stay who they are");
    assert!(!desired.names.contains_key(&addr("10.2.0.77")));
    let named = |text: &str| desired.problems.iter().any(|problem| problem.contains(text));
    assert!(
        named("Pod x/forged: status.podIPs 10.2.0.77 is in no pod CIDR of its node evil"),
        "{:?}",
        desired.problems
    );
    assert!(named("Pod x/homeless: status.podIPs 10.2.0.78") && named("Pod x/astray"), "{:?}", desired.problems);
    // On the host's network a pod has no address of its own.
    world.pod(
        ("x", "forged"),
        json!({"app": "a"}),
        &["10.66.0.1"],
        json!({"spec": {"nodeName": "evil", "hostNetwork": true}}),
    );
    assert!(!lets_in(&world.plan(), web, "10.66.0.1", HTTP));
}

#[test]
fn a_local_pod_is_a_peer_before_its_status_says_so() {
    let (mut world, web) = world();
    world.local(("x", "new"), json!({"app": "a"}), &[], json!({}));
    Arc::make_mut(world.attachments.last_mut().unwrap()).allocation = attachment(11, None, &["10.1.0.9"]).allocation;
    let from = json!([{"podSelector": {"matchLabels": {"app": "a"}}}]);
    world.policy(("x", "p"), json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": from}]}));
    assert!(lets_in(&world.plan(), web, "10.1.0.9", HTTP));
}

#[test]
fn egress_is_by_the_receivers_identity_and_named_ports_are_the_receivers() {
    let (mut world, web) = world();
    let named = |port: u16| json!({"spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]}});
    world
        .pod(("y", "one"), json!({"app": "s"}), &["10.2.1.1"], named(8080))
        .pod(("y", "two"), json!({"app": "s"}), &["10.2.1.2"], named(9090))
        .pod(("y", "three"), json!({"app": "s"}), &["10.2.1.3"], json!({}));
    let to = json!([{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "s"}}}, {"ipBlock": {"cidr": "10.2.2.0/24"}}]);
    let rule = json!({"to": to, "ports": [{"port": "http"}, {"port": 53, "protocol": "UDP"}]});
    world.policy(("x", "p"), json!({"podSelector": {}, "egress": [rule], "policyTypes": ["Egress"]}));
    let desired = world.plan();
    let out = |peer, protocol, port| lets_out(&desired, web, peer, (protocol, Some(port)));
    assert_eq!([8080, 9090].map(|port| out("10.2.1.1", TCP, port)), [true, false]);
    assert_eq!([8080, 9090].map(|port| out("10.2.1.2", TCP, port)), [false, true]);
    assert_eq!([8080, 9090].map(|port| out("10.2.1.3", TCP, port)), [false, false]);
    assert_eq!([out("10.2.2.1", TCP, 8080), out("10.2.2.1", UDP, 53), out("10.2.1.3", UDP, 53)], [false, true, true]);
}

#[test]
fn a_named_port_to_anybody_is_of_the_pods_that_have_it() {
    let (mut world, web) = world();
    let more = json!({"spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]}});
    world.pod(("y", "s"), json!({}), &["10.2.1.1"], more);
    let rule = json!({"ports": [{"port": "http"}]});
    world.policy(("x", "p"), json!({"podSelector": {}, "egress": [rule], "policyTypes": ["Egress"]}));
    let desired = world.plan();
    assert!(lets_out(&desired, web, "10.2.1.1", (TCP, Some(8080))));
    assert!(
        !lets_out(&desired, web, "10.2.0.1", (TCP, Some(8080)))
            && !lets_out(&desired, web, "8.8.8.8", (TCP, Some(8080)))
    );
}

#[test]
fn pods_that_number_a_named_port_differently_have_sets_of_their_own() {
    let mut world = World::default();
    let ports = [8080, 9090].map(|port| {
        let more = json!({"spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]}});
        (port, world.local(("x", &format!("p{port}")), json!({}), &[&format!("10.1.{}.1", port / 1000)], more))
    });
    world.policy(("x", "p"), json!({"podSelector": {}, "ingress": [{"ports": [{"port": "http"}]}]}));
    let desired = world.plan();
    for (port, ifindex) in ports {
        let open = [8080, 9090].map(|port| lets_in(&desired, ifindex, "8.8.8.8", (TCP, Some(port))));
        assert_eq!(open, [port == 8080, port == 9090]);
    }
}

#[test]
fn an_unknown_pod_is_closed_where_any_policy_is() {
    let (mut world, _) = world();
    let unknown = world.attach(Some(("x", "new")), &["10.1.0.7"]);
    let open = |world: &mut World| {
        let desired = world.plan();
        (lets_in(&desired, unknown, "10.2.0.1", HTTP), lets_out(&desired, unknown, "10.2.0.1", PING))
    };
    assert_eq!(open(&mut world), (true, true), "no policy in its namespace");
    world.policy(("y", "p"), json!({"podSelector": {}}));
    assert_eq!(open(&mut world), (true, true), "nor by that of another");
    world.policy(("x", "p"), json!({"podSelector": {"matchLabels": {"app": "web"}}}));
    assert_eq!(open(&mut world), (false, false));
    world.pod(("x", "new"), json!({}), &[], json!({"metadata": {"uid": "1"}}));
    assert_eq!(open(&mut world), (true, true), "known, and not selected");
    Arc::make_mut(&mut world.attachments[1]).spec.pod.as_mut().unwrap().uid = Some("2".into());
    assert_eq!(open(&mut world), (false, false), "another one of that name");
    world.pod(
        ("x", "new"),
        json!({}),
        &[],
        json!({"metadata": {"uid": "1", "annotations": {"kubernetes.io/config.mirror": "2"}}}),
    );
    assert_eq!(open(&mut world), (true, true), "a static pod");
    world.snapshot.synced = false;
    world.snapshot.policies.clear();
    world.snapshot.pods.clear();
    assert_eq!(open(&mut world), (false, false), "nothing is known yet");
}

#[rstest]
#[case::peer(json!([{"ipBlock": {"cidr": "10.0.0.0/33"}}]), json!(null), "from[0].ipBlock.cidr: '10.0.0.0/33'")]
#[case::except(json!([{"ipBlock": {"cidr": "10.2.0.0/16", "except": ["11.0.0.0/16"]}}]), json!(null), "is not strictly inside")]
#[case::operator(json!([{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}}]), json!(null), "operator 'Near'")]
#[case::no_peer(json!([{}]), json!(null), "podSelector: missing")]
#[case::port(json!(null), json!([{"port": 0}]), "ports[0].port: 0")]
#[case::end_port(json!(null), json!([{"port": 90, "endPort": 80}]), "endPort: 80 is less than port 90")]
#[case::protocol(json!(null), json!([{"protocol": "GRE"}]), "'GRE' is not TCP, UDP or SCTP")]
fn what_is_invalid_allows_nothing_and_isolates_all_the_same(
    #[case] from: Value,
    #[case] ports: Value,
    #[case] expected: &str,
) {
    let (mut world, web) = world();
    world.policy(("x", "p"), json!({"podSelector": {}, "ingress": [{"from": from, "ports": ports}]}));
    let desired = world.plan();
    assert_eq!(admitted(&desired, web, HTTP), [0u8; 0]);
    assert_eq!(desired.problems.len(), 1);
    assert!(desired.problems[0].starts_with("NetworkPolicy x/p: spec.ingress[0]."), "{:?}", desired.problems);
    assert!(desired.problems[0].contains(expected), "{:?}", desired.problems);
    assert!(
        desired.policy_reports[0].state.starts_with("enforced closed: spec.ingress[0]"),
        "{:?}",
        desired.policy_reports
    );
}

#[test]
fn the_valid_parts_of_an_invalid_policy_stand() {
    let (mut world, web) = world();
    let from = json!([{"ipBlock": {"cidr": "nonsense"}}, {"podSelector": {"matchLabels": {"app": "b"}}}]);
    world.policy(("x", "p"), json!({"podSelector": {}, "ingress": [{"from": from}]}));
    assert_eq!(admitted(&world.plan(), web, HTTP), [2]);
}

#[test]
fn an_invalid_subject_closes_the_namespace() {
    let (mut world, web) = world();
    let other = world.local(("y", "web"), json!({}), &["10.1.0.3"], json!({}));
    let selector = json!({"matchExpressions": [{"key": "app", "operator": "In"}]});
    world.policy(("x", "p"), json!({"podSelector": selector, "ingress": [{}]}));
    let desired = world.plan();
    assert_eq!(admitted(&desired, web, HTTP), [0u8; 0]);
    assert!(lets_in(&desired, other, "10.2.0.1", HTTP));
    assert!(
        desired.problems[0].contains("spec.podSelector.matchExpressions 'app': In needs values"),
        "{:?}",
        desired.problems
    );
}

#[test]
fn a_namespace_that_is_not_known_matches_no_selector() {
    let (mut world, web) = world();
    world.snapshot.namespaces.remove(&ObjectKey::new("", "y"));
    let not_red = json!({"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["red"]}]});
    world.policy(("x", "p"), json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": not_red}]}]}));
    assert_eq!(admitted(&world.plan(), web, HTTP), [0u8; 0]);
}

/// Who names namespaces means them whole: no class holds a term more for it.
#[test]
fn namespaces_by_their_names_are_no_selectors_of_pods() {
    let (mut world, web) = world();
    let named = |names: &[&str]| json!({"namespaceSelector": {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": names}]}});
    let peer = |n: u32| json!({"namespaceSelector": {}, "podSelector": {"matchExpressions": [{"key": format!("k{n}"), "operator": "DoesNotExist"}]}});
    let rules: Vec<Value> = (0..22).map(|n| json!({"from": [peer(n)], "ports": [{"port": 1000 + n}]})).collect();
    let more = json!([{"from": [named(&["y", "z"])], "ports": [{"port": 80}]}, {"from": [{"podSelector": {}}], "ports": [{"port": 81}]}]);
    let all: Vec<Value> = rules.into_iter().chain(more.as_array().unwrap().clone()).collect();
    world.policy(("x", "p"), json!({"podSelector": {}, "ingress": all}));
    let desired = world.plan();
    assert!(desired.problems.is_empty(), "{:?}", desired.problems);
    assert_eq!((admitted(&desired, web, HTTP), admitted(&desired, web, (TCP, Some(81)))), (vec![3], vec![1, 2]));
    assert_eq!(admitted(&desired, web, (TCP, Some(1021))), [1, 2, 3]);
}

/// Digest of the workload at this port.
fn digest(desired: &Desired, ifindex: u32) -> u64 {
    desired.workload_digests[&desired.ports[&ifindex].workload]
}

#[test]
fn only_workloads_that_are_judged_otherwise_decide_again() {
    let (mut world, web) = world();
    let db = world.local(("y", "db"), json!({"app": "db"}), &["10.1.0.2"], json!({}));
    let from = |app| json!([{"podSelector": {"matchLabels": {"app": app}}}]);
    world.policy(
        ("x", "p"),
        json!({"podSelector": {}, "ingress": [{"from": from("a")}, {"from": [{"ipBlock": {"cidr": "10.8.0.0/16"}}]}]}),
    );
    world.policy(("y", "q"), json!({"podSelector": {}, "ingress": [{"from": from("a")}]}));
    let mut last = world.plan();
    let mut step = |world: &mut World, expected: &[u32]| {
        let next = world.plan();
        let changed: Vec<u32> =
            [web, db].into_iter().filter(|port| digest(&last, *port) != digest(&next, *port)).collect();
        assert_eq!(changed, expected);
        last = next;
    };
    step(&mut world, &[]);
    world.pod(("x", "c"), json!({"app": "a"}), &["10.2.0.7"], json!({}));
    step(&mut world, &[web]);
    world.pod(("x", "d"), json!({"app": "d"}), &["10.2.0.8"], json!({}));
    step(&mut world, &[]);
    world.pod(("y", "e"), json!({"app": "a"}), &["10.8.0.1"], json!({}));
    step(&mut world, &[db]);
    world.pod(("x", "c"), json!({"app": "a", "more": "labels"}), &["10.2.0.7"], json!({}));
    step(&mut world, &[]);
    world.policy(
        ("y", "q"),
        json!({"podSelector": {}, "ingress": [{"from": from("a")}, {"from": [{"ipBlock": {"cidr": "10.8.0.0/24"}}]}]}),
    );
    step(&mut world, &[db]);
    world.policy(
        ("x", "p"),
        json!({"podSelector": {}, "ingress": [{"from": from("a")}, {"from": [{"ipBlock": {"cidr": "10.8.0.0/15"}}]}]}),
    );
    step(&mut world, &[web]);
    Arc::make_mut(&mut world.attachments[0]).allocation.mac = Mac([2, 2, 2, 2, 2, 2]);
    step(&mut world, &[web]);
    world.attach(Some(("x", "a")), &["10.2.0.1"]);
    step(&mut world, &[]);
}

#[test]
fn who_means_blocks_or_every_pod_needs_no_address() {
    let (mut world, web) = world();
    let block = json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.3.0.0/16"]}});
    world.policy(("x", "p"), json!({"podSelector": {}, "ingress": [{"from": [block, {"namespaceSelector": {}}]}]}));
    let desired = world.plan();
    assert!(desired.peers.is_empty() && desired.classes.is_empty());
    assert_eq!(desired.blocks.len(), 2, "the block, and its hole");
    assert_eq!(admitted(&desired, web, HTTP), [1, 2, 3]);
}

#[test]
fn an_edit_of_policy_writes_no_address() {
    let (mut world, web) = world();
    let from =
        |app| json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}]});
    world.policy(("x", "p"), from("a"));
    let before = world.plan();
    assert_eq!(admitted(&before, web, HTTP), [1]);
    world.policy(("x", "p"), from("b"));
    let after = world.plan();
    assert_eq!(admitted(&after, web, HTTP), [2]);
    assert_eq!((&before.peers, before.peers.len()), (&after.peers, 6));
    assert_ne!(before.ports[&web].ingress_list, after.ports[&web].ingress_list);
    let still = |list: &u64| after.lists.contains_key(list);
    assert!(!before.lists.keys().any(still), "a list never says something else");
}

#[test]
fn every_verdict_names_who_decided() {
    let (mut world, web) = world();
    let rule = |from: Value, port: u16| json!({"from": from, "ports": [{"port": port}]});
    let app = |app: &str| json!([{"podSelector": {"matchLabels": {"app": app}}}]);
    let block = json!([{"ipBlock": {"cidr": "203.0.113.0/24"}}]);
    world.policy(("x", "p"), json!({"podSelector": {}, "ingress": [rule(app("a"), 80), rule(block, 81)]}));
    world.policy(("x", "q"), json!({"podSelector": {}, "ingress": [rule(json!([{"namespaceSelector": {}}]), 82)]}));
    let desired = world.plan();
    let mut planner = crate::plan::Planner::default();
    planner.take(crate::model::News {
        deltas: crate::model::Deltas::whole(&world.snapshot),
        standing: world.snapshot.standing(),
        since: None,
    });
    planner.observe(&world.facts, world.attachments.clone());
    let _ = planner.patch(&world.limits.room());
    let told = |peer, port| {
        let (allowed, rule) = verdict(&desired, desired.ports[&web].ingress_list, peer, (TCP, Some(port)));
        (allowed, planner.rule_name(rule).unwrap())
    };
    assert_eq!(told("10.2.0.1", 80), (true, "NetworkPolicy x/p: ingress[0]".into()));
    assert_eq!(told("203.0.113.9", 81), (true, "NetworkPolicy x/p: ingress[1]".into()));
    assert_eq!(told("10.2.0.3", 82), (true, "NetworkPolicy x/q: ingress[0]".into()));
    assert_eq!(told("10.2.0.3", 80), (false, "no ingress rule of NetworkPolicy x/p, x/q".into()));
    assert_eq!(planner.rule_name(0), None);
    assert_eq!(planner.rule_name(17), Some("unknown rule 17".into()));
}
