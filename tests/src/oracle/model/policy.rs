// SPDX-License-Identifier: Apache-2.0

//! NetworkPolicy: who is isolated, and what the union of the policies allows.

use std::net::IpAddr;

use super::{
    super::world::{
        Direction, Expression, From, Labels, Operator, Packet, Peer, Pod, Policy, PolicyPort, PortRef, Protocol, Rule,
        Selector, World,
    },
    Quirks, Reason, route,
};

/// One end of a packet's way, as a peer of the other.
struct Party<'w> {
    address: IpAddr,
    pod: Option<&'w Pod>,
    /// It counts as some pod, nobody knows which.
    is_any: bool,
}

/// Why the packet may not go to `address` and `port`, the receiver's own: the sender's policies speak first. Policies of pods
/// of other nodes are these nodes' business.
pub(super) fn refuses(
    world: &World,
    here: &str,
    packet: &Packet,
    (address, port): (IpAddr, u16),
    quirks: Quirks,
) -> Option<Reason> {
    let sender = match &packet.from {
        From::Pod(id) => world.pod(id),
        From::Host | From::Wire => owner(world, packet.source),
    };
    let party =
        |address: IpAddr, pod| Party { address, pod, is_any: quirks.pods_by_prefix && is_unused(world, address) };
    let (source, receiver) = (party(packet.source, sender), party(address, owner(world, address)));
    if let (From::Pod(_), Some(pod)) = (&packet.from, sender)
        && !allows(world, pod, Direction::Egress, &receiver, &receiver, packet.protocol, port)
    {
        return Some(Reason::Egress);
    }
    let pod = receiver.pod.filter(|pod| pod.node == here && packet.from != From::Host)?;
    let allowed = allows(world, pod, Direction::Ingress, &source, &receiver, packet.protocol, port);
    (!allowed).then_some(Reason::Ingress)
}

/// The pod that policies know at an address: one that is on its node's network has none of its own, one that has finished has
/// none any more, and an address counts only inside the prefixes of the pod's node.
fn owner(world: &World, address: IpAddr) -> Option<&Pod> {
    world.pods.iter().find(|pod| {
        let cidrs = world.node(&pod.node).map(|node| &node.pod_cidrs);
        let own = cidrs.into_iter().flatten().any(|cidr| cidr.contains(&address));
        own && !pod.host_network && !pod.finished && pod.addresses.contains(&address)
    })
}

fn allows(
    world: &World,
    pod: &Pod,
    direction: Direction,
    peer: &Party<'_>,
    receiver: &Party<'_>,
    protocol: Protocol,
    port: u16,
) -> bool {
    let mut isolating = world
        .policies
        .iter()
        .filter(|policy| policy.namespace == pod.namespace && matches(&policy.selector, &pod.labels))
        .filter(|policy| isolates(policy, direction))
        .peekable();
    isolating.peek().is_none()
        || isolating.any(|policy| {
            let rules = if direction == Direction::Ingress { &policy.ingress } else { &policy.egress };
            rules.iter().flatten().any(|rule| {
                let ports = |names| ports_match(rule, receiver, protocol, port, names);
                rule_matches(world, policy, rule, direction, peer, ports)
            })
        })
}

/// Without `policyTypes`: ingress always, egress where there is a rule for it.
fn isolates(policy: &Policy, direction: Direction) -> bool {
    match &policy.types {
        Some(types) if !types.is_empty() => types.contains(&direction),
        _ => direction == Direction::Ingress || policy.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
    }
}

/// A name is a port's of each peer pod: towards a block it is nobody's.
fn rule_matches(
    world: &World,
    policy: &Policy,
    rule: &Rule,
    direction: Direction,
    party: &Party<'_>,
    ports_match: impl Fn(bool) -> bool,
) -> bool {
    let peers = rule.peers.as_deref().unwrap_or_default();
    let names = |peer: &Peer| direction == Direction::Ingress || matches!(peer, Peer::Pods { .. });
    if peers.is_empty() {
        return ports_match(true);
    }
    peers.iter().any(|peer| peer_matches(world, policy, peer, party) && ports_match(names(peer)))
}

fn peer_matches(world: &World, policy: &Policy, peer: &Peer, party: &Party<'_>) -> bool {
    match peer {
        Peer::Block { cidr, except } => {
            cidr.contains(&party.address) && !except.iter().any(|hole| hole.contains(&party.address))
        }
        Peer::Pods { pods, namespaces: Some(namespaces) }
            if party.is_any && is_everything(namespaces) && pods.as_ref().is_none_or(is_everything) =>
        {
            true
        }
        Peer::Pods { pods, namespaces } => party.pod.is_some_and(|pod| {
            let in_namespace = match namespaces {
                None => pod.namespace == policy.namespace,
                Some(selector) => matches(selector, &namespace_labels(world, &pod.namespace)),
            };
            in_namespace && pods.as_ref().is_none_or(|selector| matches(selector, &pod.labels))
        }),
    }
}

/// Whether an address is in a pod CIDR and neither a pod's nor the node's own.
fn is_unused(world: &World, address: IpAddr) -> bool {
    let mut cidrs = world.nodes.iter().flat_map(|node| &node.pod_cidrs);
    owner(world, address).is_none() && cidrs.any(|cidr| route::offset(cidr, address).is_some_and(|place| place > 1))
}

fn is_everything(selector: &Selector) -> bool {
    selector.labels.is_empty() && selector.expressions.is_empty()
}

fn namespace_labels(world: &World, name: &str) -> Labels {
    let found = world.namespaces.iter().find(|namespace| namespace.name == name);
    let mut labels = found.map(|namespace| namespace.labels.clone()).unwrap_or_default();
    labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
    labels
}

fn ports_match(rule: &Rule, receiver: &Party<'_>, protocol: Protocol, port: u16, names: bool) -> bool {
    let ports = rule.ports.as_deref().unwrap_or_default();
    let counts = |wanted: &&PolicyPort| names || !matches!(wanted.port, Some(PortRef::Name(_)));
    ports.is_empty() || ports.iter().filter(counts).any(|wanted| port_matches(wanted, receiver, protocol, port))
}

/// A name means the receiver's own port of this name and protocol.
fn port_matches(wanted: &PolicyPort, receiver: &Party<'_>, protocol: Protocol, port: u16) -> bool {
    if wanted.protocol.unwrap_or(Protocol::Tcp) != protocol {
        return false;
    }
    match (&wanted.port, wanted.end) {
        (None, _) => true,
        (Some(PortRef::Number(first)), None) => port == *first,
        (Some(PortRef::Number(first)), Some(last)) => (*first..=last).contains(&port),
        (Some(PortRef::Name(name)), _) => receiver.pod.is_some_and(|pod| {
            pod.ports.iter().any(|own| own.name == *name && own.protocol == protocol && own.port == port)
        }),
    }
}

/// All requirements together; a missing key is in no set.
fn matches(selector: &Selector, labels: &Labels) -> bool {
    selector.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
        && selector.expressions.iter().all(|expression| holds(expression, labels))
}

fn holds(Expression { key, operator, values }: &Expression, labels: &Labels) -> bool {
    let value = labels.get(key);
    match operator {
        Operator::In => value.is_some_and(|value| values.contains(value)),
        Operator::NotIn => value.is_none_or(|value| !values.contains(value)),
        Operator::Exists => value.is_some(),
        Operator::DoesNotExist => value.is_none(),
    }
}
