// SPDX-License-Identifier: Apache-2.0

//! Packets at values where the answer changes: borders of port ranges, named ports, Services without endpoints, undefined ports,
//! pods of other nodes, one's own Service, addresses of nobody.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    generate::{PORTS, outside},
    model::{self, Quirks, Source, Verdict},
    world::{
        From, Mode, NamedPort, Packet, Pod, Policy, PortRef, Protocol, Service, ServicePort, World, node_addresses,
        pod_addresses,
    },
};
use crate::random::Random;

/// First source port that packets have; below are ports that objects name, and those that masquerade prefers.
const FIRST_PORT: u16 = 40_000;
/// Of a hundred packets to Services, so many have one after them that looks like them once they are translated.
const LOOKALIKES: usize = 4;
/// Of a hundred packets, so many are to a Service that keeps clients and has more than one backend for them: one of the last of this many.
const AGAIN: usize = 20;
const CLIENTS: usize = 12;

/// Source ports that no packet of a chain has had, whoever sent it: two connections that look alike once they are translated are
/// what few cases are about, see [`lookalike`].
#[derive(Debug, Default)]
pub(super) struct FreshPorts {
    next: BTreeMap<(Protocol, bool), u16>,
    /// The last packet of a pod to a Service, and the pod's node.
    last: Option<(String, Packet)>,
    /// Packets to Services that keep clients, and the nodes of their senders.
    clients: VecDeque<(String, Packet)>,
}

impl FreshPorts {
    fn take(&mut self, protocol: Protocol, ipv4: bool) -> u16 {
        let next = self.next.entry((protocol, ipv4)).or_insert(FIRST_PORT);
        let port = *next;
        *next = next.checked_add(1).unwrap_or(FIRST_PORT);
        port
    }
}

/// A packet that somebody on node `here` sends, or that comes to it.
pub(super) fn packet(random: &mut Random, world: &World, here: &str, ports: &mut FreshPorts) -> Packet {
    if let Some((here, last)) = ports.last.take().filter(|_| random.chance(LOOKALIKES))
        && let Some(packet) = lookalike(world, &here, last)
    {
        return packet;
    }
    if let Some(packet) = again(random, world, here, ports) {
        return packet;
    }
    let packet = fresh(random, world, here, ports);
    if model::client(world, here, &packet).is_some() && model::may_be_chosen(world, here, &packet).len() > 1 {
        ports.clients.push_front((here.to_owned(), packet.clone()));
        ports.clients.truncate(CLIENTS);
    }
    if matches!(packet.from, From::Pod(_)) && model::is_served(world, here, &packet) {
        ports.last = Some((here.to_owned(), packet.clone()));
    }
    packet
}

/// Another connection of somebody who is there still, or of another pod of the node to the same Service.
fn again(random: &mut Random, world: &World, here: &str, ports: &mut FreshPorts) -> Option<Packet> {
    let is_here = |id: &String| world.pod(id).is_some_and(|pod| pod.node == here);
    let is_there = |from: &From| match from {
        From::Pod(id) => is_here(id),
        From::Host | From::Wire => true,
    };
    let clients = ports.clients.iter().filter(|(node, packet)| node == here && is_there(&packet.from));
    let clients: Vec<&Packet> = clients.map(|(_, packet)| packet).collect();
    if clients.is_empty() || !random.chance(AGAIN) {
        return None;
    }
    let mut packet = (*random.pick(&clients)).clone();
    let ipv4 = packet.destination.is_ipv4();
    let others = world.pods.iter().filter(|pod| pod.node == here && !pod.host_network);
    let others: Vec<(String, IpAddr)> = others.filter_map(|pod| Some((pod.id(), pod.address(ipv4)?))).collect();
    // What sockets of the node are led to is nobody else's.
    if !others.is_empty() && packet.destination != model::hairpin(ipv4) && random.chance(40) {
        let (id, source) = random.pick(&others).clone();
        (packet.from, packet.source) = (From::Pod(id), source);
    }
    packet.sport = ports.take(packet.protocol, ipv4);
    Some(packet)
}

/// From the same port to a backend of the Service itself.
fn lookalike(world: &World, here: &str, packet: Packet) -> Option<Packet> {
    let verdicts = model::answer(world, here, &packet, None, Quirks::default());
    let (destination, dport) = verdicts.into_iter().find_map(|verdict| match verdict {
        Verdict::Delivered { address, port, source: Source::Kept, .. } => Some((address, port)),
        _ => None,
    })?;
    Some(Packet { destination, dport, ..packet })
}

fn fresh(random: &mut Random, world: &World, here: &str, ports: &mut FreshPorts) -> Packet {
    let local: Vec<_> = world.pods.iter().filter(|pod| pod.node == here && !pod.host_network).collect();
    let ipv4 = random.chance(50);
    let from = match random.below(20) {
        0..3 => From::Host,
        3..8 => From::Wire,
        _ if local.is_empty() => From::Host,
        _ => From::Pod(random.pick(&local).id()),
    };
    let (destination, protocol, dport) = target(random, world, here, &from, ipv4);
    let source = source(random, world, here, &from, ipv4);
    let dport = if protocol == Protocol::Echo { 0 } else { dport };
    let sport = ports.take(protocol, ipv4);
    let wrong_mac = matches!(from, From::Pod(_)) && random.chance(1);
    Packet { from, source, destination, protocol, sport, dport, wrong_mac }
}

/// Nearly always an honest one.
fn source(random: &mut Random, world: &World, here: &str, from: &From, ipv4: bool) -> IpAddr {
    let family = usize::from(!ipv4);
    let mut others: Vec<IpAddr> = world.pods.iter().filter_map(|pod| pod.address(ipv4)).collect();
    others.push(pod_addresses(1, 200)[family]);
    // Another node itself, as it speaks to pods.
    others.push(pod_addresses(2, 1)[family]);
    match from {
        From::Host => world.node(here).map_or_else(|| outside(ipv4), |node| node.addresses[family]),
        From::Pod(id) => {
            let lie = [outside(ipv4), node_addresses(1)[family], node_addresses(2)[family]];
            match random.below(40) {
                0 => *random.pick(&lie),
                1 => *random.pick(&others),
                _ => world.pod(id).and_then(|pod| pod.address(ipv4)).unwrap_or_else(|| outside(ipv4)),
            }
        }
        From::Wire => match random.below(10) {
            0 => node_addresses(1)[family],
            1 => node_addresses(2)[family],
            2 => *random.pick(&others),
            3 if world.mode == Mode::Vxlan => pod_addresses(2, *random.pick(&[0, 1, 200]))[family],
            3..7 if world.mode == Mode::Native => *random.pick(&others),
            7 => further(ipv4),
            _ => outside(ipv4),
        },
    }
}

/// Another client beyond the cluster.
fn further(ipv4: bool) -> IpAddr {
    if ipv4 {
        Ipv4Addr::new(203, 0, 113, 77).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 0x77).into()
    }
}

fn target(random: &mut Random, world: &World, here: &str, from: &From, ipv4: bool) -> Target {
    let family = usize::from(!ipv4);
    let protocol =
        *random.pick(&[Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Udp, Protocol::Sctp, Protocol::Echo]);
    let (to_services, choice) = match from {
        From::Wire => (45, 60 + random.below(35)),
        // The host's own stack reaches everything but pods and Services by itself.
        From::Host => (60, 50 + random.below(30)),
        From::Pod(_) => (50, 50 + random.below(50)),
    };
    if random.below(100) < to_services {
        let Some((address, of_port, port)) = frontend(random, world, here, from, ipv4) else {
            return (pod_addresses(1, 11)[family], protocol, near(random));
        };
        return match random.below(10) {
            0 => (address, protocol, near(random)),
            1 if random.chance(30) => (address, of_port, port.saturating_add(1)),
            _ => (address, of_port, port),
        };
    }
    let local: Vec<_> = world.pods.iter().filter(|pod| pod.node == here || *from != From::Wire).collect();
    match choice {
        50..80 | 84..92 if !local.is_empty() => {
            let pod = random.pick(&local);
            let address_of = |pod: &Pod| match pod.address(ipv4) {
                Some(address) if !pod.host_network => address,
                _ => pod_addresses(1, 200)[family],
            };
            let address = address_of(pod);
            if let Some((pod, named)) = asked_for_by_name(random, world, &local).filter(|_| random.chance(25)) {
                return (address_of(pod), named.protocol, named.port);
            }
            let (protocol, port) = policy_target(random, world, protocol);
            let named: Vec<_> = pod.ports.iter().collect();
            match random.below(4) {
                0 | 1 if !named.is_empty() => {
                    let named = random.pick(&named);
                    (address, named.protocol, named.port)
                }
                _ => (address, protocol, port),
            }
        }
        _ => {
            let address = match random.below(6) {
                0 => pod_addresses(1, 200)[family],
                1 if *from == From::Wire => node_addresses(1)[family],
                1 => pod_addresses(2, *random.pick(&[0, 1, 200]))[family],
                2 | 3 if *from != From::Wire => outside(ipv4),
                4 if *from != From::Wire => node_addresses(2)[family],
                _ => node_addresses(1)[family],
            };
            (address, protocol, near(random))
        }
    }
}

type Target = (IpAddr, Protocol, u16);

/// One of what Services, and pods with ports of the node, are to be reached at.
fn frontend(random: &mut Random, world: &World, here: &str, from: &From, ipv4: bool) -> Option<Target> {
    let beside = match from {
        From::Wire => 80,
        From::Host => 30,
        From::Pod(_) => 45,
    };
    let wanted = if *from == From::Host { Vec::new() } else { model::wanted_by_several(world, here, ipv4) };
    if !wanted.is_empty() && random.chance(25) {
        let own = world.node(here).and_then(|node| node.addresses.iter().find(|own| own.is_ipv4() == ipv4));
        let (address, protocol, port) = *random.pick(&wanted);
        return Some((address.or(own.copied())?, protocol, port));
    }
    let (cluster, external) = (cluster_ips(world, ipv4), external(random, world, here, from, ipv4));
    let is_external = cluster.is_empty() || random.chance(beside) && !external.is_empty();
    let targets = if is_external { external } else { cluster };
    (!targets.is_empty()).then(|| *random.pick(&targets))
}

fn cluster_ips(world: &World, ipv4: bool) -> Vec<Target> {
    let ports = world.services.iter().flat_map(|service| service.ports.iter().map(move |port| (service, port)));
    let at = |(service, port): (&Service, &ServicePort)| {
        let vip = service.addresses.iter().copied().find(|vip| vip.is_ipv4() == ipv4)?;
        Some((vip, port.protocol, port.port))
    };
    ports.filter_map(at).collect()
}

/// Whether they are served or not.
fn external(random: &mut Random, world: &World, here: &str, from: &From, ipv4: bool) -> Vec<Target> {
    let family = usize::from(!ipv4);
    let own = world.node(here).map_or_else(|| outside(ipv4), |node| node.addresses[family]);
    // Now and then at an address that is not for them.
    let node = match random.below(20) {
        _ if *from == From::Host => model::hairpin(ipv4),
        0 => pod_addresses(1, 1)[family],
        1 if *from != From::Wire => node_addresses(2)[family],
        _ => own,
    };
    let mut targets = Vec::new();
    for service in &world.services {
        let ingress = service.exposure.ingress.iter().filter_map(|ingress| ingress.address);
        let addresses: Vec<IpAddr> = ingress.chain(service.exposure.external_ips.iter().copied()).collect();
        for port in &service.ports {
            targets.extend(port.node_port.map(|number| (node, port.protocol, number)));
            let addresses = addresses.iter().filter(|address| address.is_ipv4() == ipv4 && *from != From::Host);
            targets.extend(addresses.map(|address| (*address, port.protocol, port.port)));
        }
    }
    let ports = world.pods.iter().filter(|pod| pod.node == here).flat_map(|pod| &pod.host_ports);
    // Sockets of the node are led to the pod itself.
    targets.extend(ports.filter(|_| *from != From::Host).map(|port| (node, port.protocol, port.port)));
    targets
}

/// A port of a pod that a policy of its namespace asks for by its name.
fn asked_for_by_name<'w>(random: &mut Random, world: &'w World, pods: &[&'w Pod]) -> Option<(&'w Pod, &'w NamedPort)> {
    let asks = |policy: &Policy, named: &NamedPort| {
        policy.ingress.iter().flatten().flat_map(|rule| rule.ports.iter().flatten()).any(|port| {
            matches!(&port.port, Some(PortRef::Name(name)) if *name == named.name)
                && port.protocol.unwrap_or(Protocol::Tcp) == named.protocol
        })
    };
    let is_asked_for = |pod: &Pod, named: &NamedPort| {
        world.policies.iter().any(|policy| policy.namespace == pod.namespace && asks(policy, named))
    };
    let all = pods.iter().flat_map(|pod| pod.ports.iter().map(|named| (*pod, named)));
    let asked_for: Vec<_> = all.filter(|(pod, named)| is_asked_for(pod, named)).collect();
    (!asked_for.is_empty()).then(|| *random.pick(&asked_for))
}

/// A port at which some policy changes its mind, or beside it.
fn policy_target(random: &mut Random, world: &World, protocol: Protocol) -> (Protocol, u16) {
    let rules = world.policies.iter().flat_map(|policy| policy.ingress.iter().chain(&policy.egress)).flatten();
    let borders: Vec<(Protocol, u16)> = rules
        .flat_map(|rule| rule.ports.iter().flatten())
        .flat_map(|port| {
            let protocol = port.protocol.unwrap_or(Protocol::Tcp);
            let ends = [port.number(), port.end].into_iter().flatten();
            ends.flat_map(move |end| [end.saturating_sub(1).max(1), end, end.saturating_add(1)])
                .map(move |port| (protocol, port))
        })
        .collect();
    if borders.is_empty() || random.chance(40) { (protocol, near(random)) } else { *random.pick(&borders) }
}

fn near(random: &mut Random) -> u16 {
    let port = *random.pick(&PORTS);
    match random.below(4) {
        0 => port.saturating_add(1),
        1 => port.saturating_sub(1).max(1),
        _ => port,
    }
}
