// SPDX-License-Identifier: Apache-2.0

//! Random worlds, made of few names, labels and numbers, so that objects meet each other.

mod services;

use std::net::IpAddr;

use ipnet::IpNet;

use self::services::{SERVICES, vips};
use super::world::{
    Direction, Expression, HostPort, Labels, Mode, NamedPort, Namespace, Node, Operator, Peer, Pod, Policy, PolicyPort,
    PortKind, PortRef, Protocol, Rule, Selector, World, node_addresses, pod_addresses, pod_cidrs,
};
use crate::{OUTSIDE_V4, OUTSIDE_V6, random::Random};

pub(super) const NAMESPACES: [&str; 3] = ["red", "blue", "green"];
const KEYS: [&str; 3] = ["app", "tier", "env"];
const VALUES: [&str; 3] = ["a", "b", "c"];
const PORT_NAMES: [&str; 3] = ["http", "dns", "peer"];
/// The protocol that mostly goes with each, for pods and for policies: they agree often enough that names decide.
const PORT_PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
/// Numbers that objects name; packets aim at them and beside them.
pub(super) const PORTS: [u16; 8] = [1, 53, 80, 443, 5000, 5010, 8080, 65535];
const TRANSPORTS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
/// Zones that nodes are in.
const ZONES: [&str; 2] = ["east", "west"];

/// How large worlds are.
#[derive(Clone, Debug)]
pub(super) struct Size {
    pub(super) mode: Mode,
    /// Numbers of the nodes that have agents; the first is [`super::site::HERE`].
    pub(super) real: Vec<u8>,
    /// Pods of each of these.
    pub(super) pods: usize,
    /// What these pods are plugged in by.
    pub(super) kinds: Vec<PortKind>,
    /// Nodes of which there is only the object.
    pub(super) others: Vec<u8>,
}

/// Nodes that are only objects, on the path `run`.
pub(super) const ELSEWHERE: [u8; 2] = [2, 3];

/// Name of node `number`.
pub(super) fn node_name(number: u8) -> String {
    format!("node{number}")
}

/// A new world.
pub(super) fn world(random: &mut Random, size: &Size) -> World {
    let mut world = World { mode: size.mode, ..World::default() };
    world.nodes = size.real.iter().map(|number| node(random, *number)).collect();
    for name in NAMESPACES {
        world.namespaces.push(Namespace { name: name.to_owned(), labels: labels(random) });
    }
    for number in &size.real {
        for index in 0..size.pods {
            let kind = size.kinds[index % size.kinds.len()];
            world.pods.push(local_pod(random, *number, 11 + index as u8, kind));
        }
    }
    for number in &size.others {
        if random.chance(85) {
            world.nodes.push(node(random, *number));
        }
        for index in 0..1 + random.below(3) {
            world.pods.push(remote_pod(random, *number, 11 + index as u8));
        }
    }
    for number in 0..1 + random.below(SERVICES) {
        // Some are of one second.
        let created = random.below(4) as u32;
        services::add(random, &mut world, number, created);
    }
    for number in 0..random.below(7) {
        let policy = policy(random, &world, number);
        world.policies.push(policy);
    }
    world
}

/// A world that follows `world`: something comes, goes or changes.
pub(super) fn change(random: &mut Random, world: &World, size: &Size) -> World {
    let mut next = world.clone();
    for _ in 0..1 + random.below(3) {
        change_one(random, &mut next, size);
    }
    services::settle(world, &mut next, size);
    next
}

fn change_one(random: &mut Random, world: &mut World, size: &Size) {
    match random.below(17) {
        0..3 => {
            let number = random.below(7);
            let policy = policy(random, world, number);
            world.policies.retain(|other| other.name != policy.name || other.namespace != policy.namespace);
            world.policies.push(policy);
        }
        3 => remove_one(random, &mut world.policies),
        4 | 5 => services::change(random, world),
        6 | 7 => services::change_endpoint(random, world),
        8 => {
            let at = random.below(world.pods.len());
            world.pods[at].labels = labels(random);
            world.pods[at].ports = named_ports(random);
        }
        9 => {
            let at = random.below(world.namespaces.len());
            world.namespaces[at].labels = labels(random);
        }
        10 => change_pod(random, world, size),
        11 if !world.services.is_empty() => {
            let at = random.below(world.services.len());
            world.services[at].affinity = services::affinity(random);
        }
        12..15 if !world.services.is_empty() => services::change_exposure(random, world),
        15 => {
            let at = random.below(size.real.len());
            world.nodes[at].zone = zone(random);
        }
        _ => change_node(random, world, size),
    }
}

fn remove_one<T>(random: &mut Random, list: &mut Vec<T>) {
    if !list.is_empty() {
        list.remove(random.below(list.len()));
    }
}

/// A pod comes, goes, or is made anew.
fn change_pod(random: &mut Random, world: &mut World, size: &Size) {
    let node = *random.pick(&[size.real.clone(), size.others.clone()].concat());
    let index = 11 + random.below(size.pods + 1) as u8;
    let address = pod_addresses(node, index);
    let before = world.pods.len();
    // By its name too: one that is on its node's network has other addresses.
    let name = pod_name(node, index);
    world.pods.retain(|pod| pod.name != name && !pod.addresses.iter().any(|own| address.contains(own)));
    if before == world.pods.len() || random.chance(40) {
        world.pods.push(if size.real.contains(&node) {
            let kind = *random.pick(&size.kinds);
            local_pod(random, node, index, kind)
        } else {
            remote_pod(random, node, index)
        });
    }
}

fn change_node(random: &mut Random, world: &mut World, size: &Size) {
    let Some(number) = size.others.get(random.below(size.others.len().max(1))) else { return };
    let name = node_name(*number);
    let before = world.nodes.len();
    world.nodes.retain(|node| node.name != name);
    if before == world.nodes.len() {
        world.nodes.push(node(random, *number));
    }
}

fn node(random: &mut Random, number: u8) -> Node {
    let (name, addresses, pod_cidrs) = (node_name(number), node_addresses(number), pod_cidrs(number));
    Node { name, addresses, pod_cidrs, zone: zone(random) }
}

fn zone(random: &mut Random) -> Option<String> {
    random.chance(80).then(|| (*random.pick(&ZONES)).to_owned())
}

fn labels(random: &mut Random) -> Labels {
    let mut labels = Labels::new();
    for key in KEYS {
        if random.chance(55) {
            labels.insert(key.to_owned(), (*random.pick(&VALUES)).to_owned());
        }
    }
    labels
}

fn named_ports(random: &mut Random) -> Vec<NamedPort> {
    let mut ports = Vec::new();
    for (at, name) in PORT_NAMES.into_iter().enumerate() {
        if random.chance(60) {
            let (protocol, port) = (protocol_of_name(random, at), *random.pick(&PORTS));
            ports.push(NamedPort { name: name.to_owned(), protocol, port });
        }
    }
    ports
}

fn protocol_of_name(random: &mut Random, at: usize) -> Protocol {
    if random.chance(70) { PORT_PROTOCOLS[at] } else { *random.pick(&TRANSPORTS) }
}

fn local_pod(random: &mut Random, node: u8, number: u8, kind: PortKind) -> Pod {
    Pod {
        namespace: (*random.pick(&NAMESPACES)).to_owned(),
        name: pod_name(node, number),
        node: node_name(node),
        labels: labels(random),
        addresses: pod_addresses(node, number),
        ports: named_ports(random),
        kind,
        host_network: false,
        finished: false,
        host_ports: if random.chance(25) { host_ports(random, node) } else { Vec::new() },
    }
}

/// Beside NodePorts, and some that are NodePorts.
fn host_ports(random: &mut Random, node: u8) -> Vec<HostPort> {
    let mut ports: Vec<HostPort> = Vec::new();
    for _ in 0..1 + random.below(3) {
        let address = random.chance(40).then(|| node_addresses(node)[random.below(2)]);
        let (protocol, port) = (*random.pick(&TRANSPORTS), *random.pick(&[8088, 8089, 30_000, 30_003, 30_006]));
        if !ports.iter().any(|other| (other.protocol, other.port) == (protocol, port)) {
            ports.push(HostPort { address, protocol, port, target: *random.pick(&PORTS) });
        }
    }
    ports
}

fn pod_name(node: u8, number: u8) -> String {
    format!("pod-{node}-{number}")
}

fn remote_pod(random: &mut Random, node: u8, number: u8) -> Pod {
    let mut pod = local_pod(random, node, number, PortKind::Veth);
    pod.host_ports.clear();
    match random.below(10) {
        0 => drop(pod.addresses.remove(1)),
        1 => drop(pod.addresses.remove(0)),
        2 => {
            pod.host_network = true;
            pod.addresses = node_addresses(node);
        }
        3 => pod.finished = true,
        _ => {}
    }
    pod
}

pub(super) fn outside(ipv4: bool) -> IpAddr {
    if ipv4 { OUTSIDE_V4.into() } else { OUTSIDE_V6.into() }
}

fn selector(random: &mut Random) -> Selector {
    let mut selector = Selector::default();
    for key in KEYS {
        match random.below(10) {
            0..2 => drop(selector.labels.insert(key.to_owned(), (*random.pick(&VALUES)).to_owned())),
            2 => selector.expressions.push(expression(random, key)),
            _ => {}
        }
    }
    selector
}

fn expression(random: &mut Random, key: &str) -> Expression {
    let operator = *random.pick(&[Operator::In, Operator::NotIn, Operator::Exists, Operator::DoesNotExist]);
    let values = match operator {
        Operator::In | Operator::NotIn => VALUES[..1 + random.below(2)].iter().map(|v| (*v).to_owned()).collect(),
        Operator::Exists | Operator::DoesNotExist => Vec::new(),
    };
    Expression { key: key.to_owned(), operator, values }
}

fn policy(random: &mut Random, world: &World, number: usize) -> Policy {
    let types = match random.below(6) {
        0 => None,
        1 | 2 => Some(vec![Direction::Ingress]),
        3 | 4 => Some(vec![Direction::Egress]),
        _ => Some(vec![Direction::Ingress, Direction::Egress]),
    };
    let mut rules = |percent| -> Option<Vec<Rule>> {
        random.chance(percent).then(|| {
            let mut rules: Vec<Rule> = (0..random.below(4)).map(|_| rule(random, world)).collect();
            if random.chance(30) {
                nearly_alike(random, &mut rules);
            }
            rules
        })
    };
    let (ingress, egress) = (rules(80), rules(60));
    Policy {
        namespace: NAMESPACES[number % NAMESPACES.len()].to_owned(),
        name: format!("policy-{number}"),
        selector: selector(random),
        types,
        ingress,
        egress,
    }
}

fn rule(random: &mut Random, world: &World) -> Rule {
    let peers = random.chance(80).then(|| {
        let mut peers: Vec<Peer> = (0..random.below(4)).map(|_| peer(random, world)).collect();
        if random.chance(50) {
            peers.extend(over_a_hole(random, &peers));
        }
        peers
    });
    let ports = random.chance(65).then(|| match random.below(10) {
        0 => many_ports(*random.pick(&TRANSPORTS)),
        _ => (0..random.below(4)).map(|_| policy_port(random)).collect(),
    });
    Rule { peers, ports }
}

fn peer(random: &mut Random, world: &World) -> Peer {
    match random.below(10) {
        0..3 => Peer::Pods { pods: Some(selector(random)), namespaces: None },
        3..5 => Peer::Pods { pods: None, namespaces: Some(namespace_selector(random)) },
        5..7 => Peer::Pods { pods: Some(selector(random)), namespaces: Some(namespace_selector(random)) },
        _ => block(random, world),
    }
}

fn namespace_selector(random: &mut Random) -> Selector {
    let mut selector = selector(random);
    if random.chance(30) {
        selector.labels.insert("kubernetes.io/metadata.name".to_owned(), (*random.pick(&NAMESPACES)).to_owned());
    }
    selector
}

/// A block around an address that packets have, and holes around others.
fn block(random: &mut Random, world: &World) -> Peer {
    let ipv4 = random.chance(50);
    let lengths: &[u8] = if ipv4 { &[0, 8, 16, 24, 28, 31, 32] } else { &[0, 16, 48, 64, 120, 127, 128] };
    let at = random.below(lengths.len());
    let cidr = around(interesting(random, world, ipv4), lengths[at]);
    let mut except = Vec::new();
    for _ in 0..random.below(3) {
        if at + 1 < lengths.len() {
            let length = lengths[at + 1 + random.below(lengths.len() - at - 1)];
            let hole = around(interesting(random, world, ipv4), length);
            if cidr.contains(&hole) && !except.contains(&hole) {
                except.push(hole);
            }
        }
    }
    Peer::Block { cidr, except }
}

/// A block over an exception of another: the rule lets in what one of its blocks does, whatever the others leave out.
fn over_a_hole(random: &mut Random, peers: &[Peer]) -> Option<Peer> {
    let mut holes = peers.iter().filter_map(|peer| match peer {
        Peer::Block { except, .. } => except.first().copied(),
        Peer::Pods { .. } => None,
    });
    let hole = holes.next()?;
    let cidr = if random.chance(50) { hole } else { hole.supernet()? };
    Some(Peer::Block { cidr, except: Vec::new() })
}

fn around(address: IpAddr, length: u8) -> IpNet {
    IpNet::new(address, length).unwrap_or_else(|_| address.into()).trunc()
}

/// An address that something has.
fn interesting(random: &mut Random, world: &World, ipv4: bool) -> IpAddr {
    let pods: Vec<IpAddr> = world.pods.iter().filter_map(|pod| pod.address(ipv4)).collect();
    match random.below(8) {
        0 => outside(ipv4),
        1 => node_addresses(1)[usize::from(!ipv4)],
        2 => node_addresses(2)[usize::from(!ipv4)],
        3 => vips(random.below(SERVICES))[usize::from(!ipv4)],
        _ if pods.is_empty() => outside(ipv4),
        _ => *random.pick(&pods),
    }
}

/// More than one entry of the map of rules holds (10), with gaps.
fn many_ports(protocol: Protocol) -> Vec<PolicyPort> {
    let number =
        |at: u16| PolicyPort { protocol: Some(protocol), port: Some(PortRef::Number(7000 + at * 3)), end: None };
    (0..15).map(number).collect()
}

/// Ports that must not be taken for each other where rules are merged: one beyond the next one in the same rule, and the same one
/// of another protocol in another rule. Also where the one holds for everybody.
fn nearly_alike(random: &mut Random, rules: &mut [Rule]) {
    let numbered = |rule: &Rule| rule.ports.iter().flatten().find(|port| port.number().is_some()).cloned();
    let Some((at, port)) = rules.iter().enumerate().find_map(|(at, rule)| Some((at, numbered(rule)?))) else {
        return;
    };
    let last = port.end.or(port.number());
    if let (Some(ports), Some(beyond)) = (&mut rules[at].ports, last.and_then(|last| last.checked_add(2))) {
        ports.push(PolicyPort { port: Some(PortRef::Number(beyond)), end: None, ..port.clone() });
    }
    let others = TRANSPORTS.into_iter().filter(|protocol| *protocol != port.protocol.unwrap_or(Protocol::Tcp));
    let others: Vec<Protocol> = others.collect();
    if let Some(other) = rules.get_mut(at + 1) {
        other.ports = Some(vec![PolicyPort { protocol: Some(*random.pick(&others)), ..port }]);
        if random.chance(50) {
            rules[at].peers = None;
        }
    }
}

fn policy_port(random: &mut Random) -> PolicyPort {
    let mut protocol = if random.chance(20) { None } else { Some(*random.pick(&TRANSPORTS)) };
    let (port, end) = match random.below(8) {
        0 => (None, None),
        1 | 2 => {
            let at = random.below(PORT_NAMES.len());
            protocol =
                Some(protocol_of_name(random, at)).filter(|protocol| *protocol != Protocol::Tcp || random.chance(50));
            (Some(PortRef::Name(PORT_NAMES[at].to_owned())), None)
        }
        3 | 4 => {
            let first = *random.pick(&PORTS);
            let last = first.saturating_add([0, 1, 10, 500, u16::MAX][random.below(5)]);
            (Some(PortRef::Number(first)), Some(last))
        }
        _ => (Some(PortRef::Number(*random.pick(&PORTS))), None),
    };
    PolicyPort { protocol, port, end }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::{model, site::HERE};

    /// A rule that no world is about would be checked by nothing.
    #[test]
    fn worlds_are_about_who_has_what_several_ask_for() {
        let size =
            Size { mode: Mode::Vxlan, real: vec![1], pods: 4, kinds: vec![PortKind::Veth], others: ELSEWHERE.into() };
        let (mut contested, mut taken) = (0, 0);
        for seed in 0..100 {
            let mut random = Random::new(seed);
            let mut world = world(&mut random, &size);
            for _ in 0..10 {
                let mut of_one_age = world.clone();
                of_one_age.services.iter_mut().for_each(|service| service.created = 0);
                contested += usize::from(model::is_contested(&world, HERE));
                taken += usize::from(model::taken_from_holder(&world, &of_one_age, HERE).is_some());
                let next = change(&mut random, &world, &size);
                assert!(model::taken_from_holder(&world, &next, HERE).is_none(), "by an equal claim");
                world = next;
            }
        }
        assert!(contested > 100 && taken > 30, "{contested} of 1000 contested, {taken} decided by age");
    }
}
