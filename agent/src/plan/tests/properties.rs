// SPDX-License-Identifier: Apache-2.0
//! What must hold for every cluster.

use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::Map;

use super::*;

const NAMESPACES: [&str; 3] = ["x", "y", "z"];
/// One of them counts where some selector asks for it alone.
const KEYS: &[&str] = &["app", "app", "tier", "tier", "pod-template-hash"];
const BLOCKS: [&str; 12] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/14",
    "10.1.0.0/16",
    "10.1.0.0/30",
    "10.1.0.2/32",
    "::/0",
    "::/80",
    "fd00::/8",
    "fd00::/64",
    "fd00::4/126",
    "8.8.8.0/24",
];
const OUTSIDE: [&str; 8] =
    ["8.8.8.8", "10.200.0.1", "10.1.0.3", "10.2.9.9", "203.0.113.9", "2001:db8::1", "fd00::7", "::2"];
const PACKETS: [Packet; 10] = [
    (TCP, Some(82)),
    (TCP, Some(80)),
    (TCP, Some(81)),
    (TCP, Some(90)),
    (TCP, Some(8080)),
    (UDP, Some(53)),
    (UDP, Some(80)),
    (SCTP, Some(80)),
    (ICMP, None),
    (TCP, Some(65535)),
];

fn label() -> impl Strategy<Value = (String, Value)> {
    (select(KEYS), select(&["a", "b", "c"][..])).prop_map(|(key, value)| (key.to_owned(), json!(value)))
}

fn labels() -> impl Strategy<Value = Value> {
    vec(label(), 0..3).prop_map(|labels| Value::Object(labels.into_iter().collect()))
}

fn selector() -> impl Strategy<Value = Value> {
    let expression =
        (select(KEYS), 0..5usize, vec(select(&["a", "b", "c"][..]), 1..3)).prop_map(|(key, operator, values)| {
            match operator {
                0 => json!({"key": key, "operator": "In", "values": values}),
                1 => json!({"key": key, "operator": "NotIn", "values": values}),
                2 => json!({"key": key, "operator": "Exists"}),
                3 => json!({"key": key, "operator": "DoesNotExist"}),
                _ => json!({"key": key, "operator": "In", "values": ["a"]}),
            }
        });
    (labels(), vec(expression, 0..2))
        .prop_map(|(labels, expressions)| json!({"matchLabels": labels, "matchExpressions": expressions}))
}

/// Now and then not valid.
fn block() -> impl Strategy<Value = Value> {
    (select(&BLOCKS[..]), vec(select(&BLOCKS[..]), 0..3), any::<bool>()).prop_map(|(cidr, holes, strict)| {
        let net: ipnet::IpNet = cidr.parse().unwrap();
        let inside = |hole: &&str| {
            let hole: ipnet::IpNet = hole.parse().unwrap();
            !strict || (hole != net && net.contains(&hole))
        };
        let holes: Vec<&str> = holes.into_iter().filter(inside).collect();
        json!({"ipBlock": {"cidr": cidr, "except": holes}})
    })
}

fn peer() -> impl Strategy<Value = Value> {
    let namespaces = vec(select(&NAMESPACES[..]), 1..3).prop_map(|names| {
        json!({"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": names}]})
    });
    prop_oneof![
        3 => selector().prop_map(|pods| json!({"podSelector": pods})),
        2 => selector().prop_map(|namespaces| json!({"namespaceSelector": namespaces})),
        2 => (namespaces, selector()).prop_map(|(namespaces, pods)| json!({"namespaceSelector": namespaces, "podSelector": pods})),
        4 => block(),
        1 => Just(json!({})),
        1 => Just(json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "Near"}]}})),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    let number = select(&[53, 80, 81, 83, 90, 8080, 65535][..]);
    let protocol = prop_oneof![Just(json!(null)), Just(json!("TCP")), Just(json!("UDP")), Just(json!("SCTP"))];
    (protocol, number, select(&["http", "dns"][..]), 0..6usize, 0..2000i32).prop_map(
        |(protocol, number, name, form, more)| match form {
            0 => json!({"protocol": protocol}),
            1 => json!({"protocol": protocol, "port": name}),
            // Past the last port: not valid, and allows nothing.
            2 => json!({"protocol": protocol, "port": number, "endPort": (number + more).min(65535)}),
            3 => json!({"protocol": protocol, "port": number, "endPort": number - 1}),
            _ => json!({"protocol": protocol, "port": number}),
        },
    )
}

fn rules(peers: &'static str) -> impl Strategy<Value = Value> {
    let optional = |list: Option<Vec<Value>>| list.map_or(Value::Null, Value::Array);
    let rule = (prop::option::weighted(0.8, vec(peer(), 0..4)), prop::option::of(vec(port(), 0..3)));
    vec(rule, 0..4).prop_map(move |rules| {
        let rule = |(list, ports)| {
            let mut rule = Map::new();
            rule.insert(peers.to_owned(), optional(list));
            rule.insert("ports".to_owned(), optional(ports));
            Value::Object(rule)
        };
        Value::Array(rules.into_iter().map(rule).collect())
    })
}

fn policy() -> impl Strategy<Value = (&'static str, Value)> {
    let types = prop_oneof![
        Just(json!(null)),
        Just(json!(["Ingress"])),
        Just(json!(["Egress"])),
        Just(json!(["Ingress", "Egress"]))
    ];
    (select(&NAMESPACES[..]), selector(), types, rules("from"), rules("to")).prop_map(
        |(namespace, pods, types, ingress, egress)| {
            (namespace, json!({"podSelector": pods, "policyTypes": types, "ingress": ingress, "egress": egress}))
        },
    )
}

#[derive(Clone, Debug)]
pub(super) struct PodPlan {
    namespace: &'static str,
    labels: Value,
    local: bool,
    over: bool,
    on_host: bool,
    ports: Vec<(&'static str, u16)>,
    /// Its part of new connections; empty: it says nothing.
    weight: &'static str,
}

fn pod() -> impl Strategy<Value = PodPlan> {
    let port = (select(&["http", "dns"][..]), select(&[53u16, 80, 8080][..]));
    let weight = select(&["", "", "0", "250", "much"][..]);
    (select(&NAMESPACES[..]), labels(), any::<bool>(), 0..12u8, vec(port, 0..3), weight).prop_map(
        |(namespace, labels, local, fate, ports, weight)| {
            let (over, on_host) = (fate == 0 && !local, fate == 1 && !local);
            PodPlan { namespace, labels, local, over, on_host, ports, weight }
        },
    )
}

pub(super) type Parts = (Vec<PodPlan>, Vec<Value>, Vec<(&'static str, Value)>);

pub(super) fn parts() -> impl Strategy<Value = Parts> {
    (vec(pod(), 1..9), vec(labels(), 3), vec(policy(), 0..6))
}

/// Pods keep name and address from one world to the next, by their place in the list.
pub(super) fn build(world: &mut World, (pods, namespaces, policies): &Parts) {
    world.snapshot = Snapshot { synced: true, ..Snapshot::default() };
    world.attachments.clear();
    for (name, labels) in NAMESPACES.iter().zip(namespaces) {
        world.namespace(name, labels.clone());
    }
    for (index, pod) in pods.iter().enumerate() {
        // The first two addresses of a pod CIDR are no pod's.
        let last = index + 10;
        let ips = [format!("10.{}.0.{last}", index % 4), format!("fd00::{last}")];
        let ips = ips.each_ref().map(String::as_str);
        let ports: Vec<Value> = pod.ports.iter().map(|(name, port)| json!({"name": name, "containerPort": port, "protocol": if *name == "dns" { "UDP" } else { "TCP" }})).collect();
        let phase = if pod.over { "Succeeded" } else { "Running" };
        let more = json!({"spec": {"containers": [{"name": "c", "ports": ports}], "hostNetwork": pod.on_host}, "status": {"phase": phase}});
        let more = match pod.weight {
            "" => more,
            weight => {
                let mut more = more;
                more["metadata"] = json!({"labels": {"weft.dev/weight": weight}});
                more
            }
        };
        let name = format!("p{index}");
        world.pod((pod.namespace, &name), pod.labels.clone(), &ips, more);
        if pod.local {
            world
                .attachments
                .push(attachment(u32::try_from(index).unwrap() + 10, Some((pod.namespace, &name)), &ips).into());
        }
    }
    for (index, (namespace, spec)) in policies.iter().enumerate() {
        world.policy((namespace, &format!("n{index}")), spec.clone());
    }
}

fn probes(world: &World) -> Vec<String> {
    let pods = world.snapshot.pods.values().flat_map(|pod| &pod.addresses);
    pods.map(IpAddr::to_string).chain(OUTSIDE.map(str::to_owned)).collect()
}

/// Every verdict of one port, in both directions.
fn verdicts(desired: &Desired, ifindex: u32, probes: &[String]) -> Vec<(bool, bool)> {
    let one = |(peer, packet): (&String, Packet)| {
        (lets_in(desired, ifindex, peer, packet), lets_out(desired, ifindex, peer, packet))
    };
    probes.iter().flat_map(|peer| PACKETS.map(|packet| (peer, packet))).map(one).collect()
}

/// Every verdict of one port about everybody that is worth asking about.
pub(super) fn verdicts_of(world: &World, desired: &Desired, ifindex: u32) -> Vec<(bool, bool)> {
    verdicts(desired, ifindex, &probes(world))
}

fn agrees(world: &World, desired: &Desired) -> Result<(), TestCaseError> {
    let oracle = oracle::Oracle::of(&world.snapshot);
    for attachment in &world.attachments {
        let reference = attachment.spec.pod.as_ref().unwrap();
        let pod = &world.snapshot.pods[&ObjectKey::new(&reference.namespace, &reference.name)];
        let ifindex = attachment.link.as_ref().unwrap().ifindex;
        for peer in probes(world) {
            for packet in PACKETS {
                let said = (lets_in(desired, ifindex, &peer, packet), lets_out(desired, ifindex, &peer, packet));
                let expected =
                    (oracle::ingress(&oracle, pod, &peer, packet), oracle::egress(&oracle, pod, &peer, packet));
                prop_assert_eq!(said, expected, "(in, out) of {} and {} at {:?}", reference.name, peer, packet);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_plan_agrees_with_the_text_of_the_api(before in parts(), after in parts()) {
        let mut world = World::default();
        build(&mut world, &before);
        let desired = world.plan();
        agrees(&world, &desired)?;
        // Numbers that were in use for something else do no harm.
        build(&mut world, &after);
        let desired = world.plan();
        agrees(&world, &desired)?;
    }

    #[test]
    fn a_second_plan_changes_nothing_and_order_does_not_matter(parts in parts()) {
        let mut world = World::default();
        build(&mut world, &parts);
        let first = world.plan();
        let numbers = world.numbers.clone();
        prop_assert_eq!(&world.plan(), &first);
        prop_assert_eq!(&world.numbers, &numbers);
        let mut reversed = World::default();
        build(&mut reversed, &parts);
        reversed.attachments.reverse();
        prop_assert_eq!(&reversed.plan(), &first);
        prop_assert_eq!(&reversed.numbers, &numbers);
    }

    #[test]
    fn whoever_is_judged_otherwise_decides_again(before in parts(), change in parts(), keep in 0..3usize) {
        let mut world = World::default();
        build(&mut world, &before);
        let (old, old_probes) = (world.plan(), probes(&world));
        // One kind of object changes, the others stay.
        let mut after = before.clone();
        match keep {
            0 => after.0 = change.0,
            1 => after.1 = change.1,
            _ => after.2 = change.2,
        }
        build(&mut world, &after);
        let new = world.plan();
        let both: Vec<String> = probes(&world).into_iter().chain(old_probes).collect();
        for (ifindex, port) in &new.ports {
            let Some(before) = old.ports.get(ifindex) else { continue };
            let same = verdicts(&old, *ifindex, &both) == verdicts(&new, *ifindex, &both);
            let digests = (old.workload_digests[&before.workload], new.workload_digests[&port.workload]);
            prop_assert!(same || digests.0 != digests.1, "port {}", ifindex);
        }
    }

    #[test]
    fn numbers_are_kept_and_never_shared(before in parts(), after in parts()) {
        let mut world = World::default();
        build(&mut world, &before);
        let _ = world.plan();
        let old = world.numbers.clone();
        build(&mut world, &after);
        let _ = world.plan();
        let new = &world.numbers;
        kept_and_never_shared(&old.workloads, &new.workloads)?;
    }
}

fn kept_and_never_shared<K: std::fmt::Debug + Ord>(
    old: &BTreeMap<K, u32>,
    new: &BTreeMap<K, u32>,
) -> Result<(), TestCaseError> {
    for (key, number) in new {
        prop_assert!(old.get(key).is_none_or(|old| old == number), "{key:?} has another number");
        let reused = old.iter().any(|(other, old)| old == number && other != key);
        prop_assert!(!reused, "{key:?} has the number of something that has just gone");
    }
    let distinct: std::collections::BTreeSet<_> = new.values().collect();
    prop_assert_eq!(distinct.len(), new.len());
    Ok(())
}
