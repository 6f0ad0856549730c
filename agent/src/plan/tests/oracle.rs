// SPDX-License-Identifier: Apache-2.0
//! What the API's text says, evaluated directly on the objects: no lists, no classes, no prefixes of the planner.
//! Shares no code with it.

use k8s_openapi::{
    api::networking::v1::{IPBlock, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::{Packet, Snapshot};
use crate::model::{
    Labels,
    objects::{NetworkPolicy, Pod},
};

/// A cluster, with what its policies ask for: read once, and not for each packet.
pub(super) struct Oracle<'a> {
    snapshot: &'a Snapshot,
    policies: Vec<(&'a NetworkPolicy, NetworkPolicySpec)>,
}

impl<'a> Oracle<'a> {
    pub(super) fn of(snapshot: &'a Snapshot) -> Self {
        let policies = snapshot.policies.values().filter_map(|policy| Some((&**policy, policy.spec()?)));
        Self { snapshot, policies: policies.collect() }
    }
}

/// The other end of a packet: an address, and the pod that has it.
struct Peer<'a> {
    ip: &'a str,
    pod: Option<&'a Pod>,
}

pub(super) fn ingress(oracle: &Oracle<'_>, receiver: &Pod, from: &str, packet: Packet) -> bool {
    let snapshot = oracle.snapshot;
    let peer = Peer { ip: from, pod: owner(snapshot, from) };
    allowed(oracle, receiver, "Ingress", |policy, spec| {
        let rules = spec.ingress.as_ref()?;
        let rule = rules.iter().find(|rule| {
            peers_match(snapshot, policy, rule.from.as_ref(), &peer)
                && ports_match(rule.ports.as_ref(), packet, Some(receiver))
        });
        rule.map(drop)
    })
}

pub(super) fn egress(oracle: &Oracle<'_>, sender: &Pod, to: &str, packet: Packet) -> bool {
    let snapshot = oracle.snapshot;
    let peer = Peer { ip: to, pod: owner(snapshot, to) };
    allowed(oracle, sender, "Egress", |policy, spec| {
        let rules = spec.egress.as_ref()?;
        let rule = rules.iter().find(|rule| match (&rule.to, &rule.ports) {
            // A port by name is of the pod that the peer selects, so that both must be by the same peer.
            (Some(peers), Some(ports)) if !peers.is_empty() && !ports.is_empty() => peers.iter().any(|one| {
                let pod = peer.pod.filter(|_| one.ip_block.is_none());
                peer_matches(snapshot, policy, one, &peer) && ports_match(Some(ports), packet, pod)
            }),
            (to, ports) => {
                peers_match(snapshot, policy, to.as_ref(), &peer) && ports_match(ports.as_ref(), packet, peer.pod)
            }
        });
        rule.map(drop)
    })
}

fn allowed(
    oracle: &Oracle<'_>,
    subject: &Pod,
    direction: &str,
    allows: impl Fn(&NetworkPolicy, &NetworkPolicySpec) -> Option<()>,
) -> bool {
    let mut isolated = false;
    for (policy, spec) in &oracle.policies {
        let types = spec.policy_types.as_deref().unwrap_or_default();
        let applies = if types.is_empty() {
            direction == "Ingress" || spec.egress.as_ref().is_some_and(|rules| !rules.is_empty())
        } else {
            types.iter().any(|name| name == direction)
        };
        let selects = policy.metadata.namespace == subject.metadata.namespace
            && spec.pod_selector.as_ref().is_none_or(|selector| selected(selector, subject.metadata.labels.as_deref()));
        if applies && selects {
            isolated = true;
            if allows(policy, spec).is_some() {
                return true;
            }
        }
    }
    !isolated
}

fn owner<'a>(snapshot: &'a Snapshot, ip: &str) -> Option<&'a Pod> {
    let has = |pod: &Pod| pod.addresses.iter().any(|have| have.to_string() == ip);
    snapshot.pods.values().map(|pod| &**pod).find(|pod| has(pod) && !pod.is_over && !pod.host_network)
}

fn peers_match(
    snapshot: &Snapshot,
    policy: &NetworkPolicy,
    peers: Option<&Vec<NetworkPolicyPeer>>,
    peer: &Peer<'_>,
) -> bool {
    match peers {
        None => true,
        Some(peers) => peers.is_empty() || peers.iter().any(|one| peer_matches(snapshot, policy, one, peer)),
    }
}

fn peer_matches(snapshot: &Snapshot, policy: &NetworkPolicy, wanted: &NetworkPolicyPeer, peer: &Peer<'_>) -> bool {
    if let Some(block) = &wanted.ip_block {
        return wanted.pod_selector.is_none() && wanted.namespace_selector.is_none() && in_block(block, peer.ip);
    }
    // Every pod is whoever lies where pods do.
    let is_all = |selector: &LabelSelector| {
        selector.match_labels.iter().flatten().next().is_none()
            && selector.match_expressions.iter().flatten().next().is_none()
    };
    if wanted.namespace_selector.as_ref().is_some_and(is_all) && wanted.pod_selector.as_ref().is_none_or(is_all) {
        let mut cidrs =
            snapshot.nodes.values().flat_map(|node| node.spec.iter().flat_map(|spec| spec.pod_cidrs.iter().flatten()));
        return cidrs.any(|cidr| in_prefix(cidr, peer.ip));
    }
    let Some(pod) = peer.pod else { return false };
    let namespace = match &wanted.namespace_selector {
        None => wanted.pod_selector.is_some() && pod.metadata.namespace == policy.metadata.namespace,
        Some(selector) => snapshot.namespaces.values().any(|namespace| {
            let mut labels = namespace.metadata.labels.as_deref().cloned().unwrap_or_default();
            labels.insert("kubernetes.io/metadata.name", &namespace.metadata.name);
            Some(&namespace.metadata.name) == pod.metadata.namespace.as_ref() && selected(selector, Some(&labels))
        }),
    };
    namespace && wanted.pod_selector.as_ref().is_none_or(|selector| selected(selector, pod.metadata.labels.as_deref()))
}

fn selected(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let get = |key: &str| labels.and_then(|labels| labels.get(key));
    let by_labels = selector.match_labels.iter().flatten().all(|(key, value)| get(key) == Some(value));
    let by_expressions = selector.match_expressions.iter().flatten().all(|expression| {
        let value = get(&expression.key);
        let listed = value.is_some_and(|value| expression.values.iter().flatten().any(|one| one == value));
        match expression.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            // Not valid: such a peer is nobody.
            _ => false,
        }
    });
    by_labels && by_expressions
}

fn in_block(block: &IPBlock, ip: &str) -> bool {
    let holes = block.except.clone().unwrap_or_default();
    // A hole must be strictly inside, or the block is not valid.
    let valid = holes.iter().all(|hole| {
        let (inside, length) = hole.split_once('/').unwrap();
        in_prefix(&block.cidr, inside)
            && length.parse::<u32>().unwrap() > block.cidr.split_once('/').unwrap().1.parse().unwrap()
    });
    valid && in_prefix(&block.cidr, ip) && !holes.iter().any(|hole| in_prefix(hole, ip))
}

fn in_prefix(prefix: &str, ip: &str) -> bool {
    let (net, length) = prefix.split_once('/').unwrap();
    let length: u32 = length.parse().unwrap();
    if net.contains(':') != ip.contains(':') {
        return false;
    }
    let bits = |text: &str| match text.parse().unwrap() {
        std::net::IpAddr::V4(v4) => u128::from(u32::from(v4)) << 96,
        std::net::IpAddr::V6(v6) => u128::from(v6),
    };
    length == 0 || (bits(net) ^ bits(ip)) >> (128 - length) == 0
}

fn ports_match(ports: Option<&Vec<NetworkPolicyPort>>, packet: Packet, pod: Option<&Pod>) -> bool {
    match ports {
        None => true,
        Some(ports) => ports.is_empty() || ports.iter().any(|port| port_matches(port, packet, pod)),
    }
}

fn port_matches(wanted: &NetworkPolicyPort, (protocol, port): Packet, pod: Option<&Pod>) -> bool {
    let number = |name: Option<&str>| match name.unwrap_or("TCP") {
        "TCP" => 6,
        "UDP" => 17,
        "SCTP" => 132,
        _ => 255,
    };
    let Some(port) = port else { return false };
    let same = |number: i32| number == i32::from(port);
    if number(wanted.protocol.as_deref()) != protocol {
        return false;
    }
    match (&wanted.port, wanted.end_port) {
        (None, None) => true,
        (Some(IntOrString::Int(first)), None) => same(*first),
        (Some(IntOrString::Int(first)), Some(last)) => (*first..=last).contains(&i32::from(port)),
        (Some(IntOrString::String(name)), None) => pod.is_some_and(|pod| {
            pod.ports.iter().any(|have| have.name == *name && have.protocol == protocol && have.number == port)
        }),
        _ => false,
    }
}
