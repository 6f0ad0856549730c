// SPDX-License-Identifier: Apache-2.0

//! Services and their endpoints.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    super::{
        model::{self, Taken},
        site::HERE,
        world::{
            Affinity, Endpoint, Exposure, Hints, Ingress, IpMode, Protocol, Service, ServiceKind, ServicePort, Slice,
            SlicePort, World, node_addresses, pod_addresses,
        },
    },
    NAMESPACES, PORTS, Size, TRANSPORTS, ZONES, interesting, node_name, outside, remove_one,
};
use crate::random::Random;

/// Services of a world at most.
pub(super) const SERVICES: usize = 6;
/// Addresses beyond the cluster, of each family: few, so that several Services ask for one.
const EXTERNAL: u8 = 2;
/// Ports that many Services have, so that they ask for the same ones there.
const COMMON: [(Protocol, u16); 2] = [(Protocol::Tcp, 80), (Protocol::Udp, 53)];
/// The first NodePort, and how many a Service may have.
const FIRST_NODE_PORT: u16 = 30_000;
const NODE_PORTS: u16 = 3;

pub(super) fn vips(number: usize) -> Vec<IpAddr> {
    let last = 10 + number as u8;
    vec![Ipv4Addr::new(10, 96, 0, last).into(), Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, last.into()).into()]
}

fn service_name(number: usize) -> String {
    format!("service-{number}")
}

fn number_of(service: &Service) -> usize {
    service.name.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

/// A Service goes, comes, or is written anew.
pub(super) fn change(random: &mut Random, world: &mut World) {
    let number = random.below(SERVICES);
    let name = service_name(number);
    // What comes is younger than everything that is there; what is written anew is what it was.
    let before = world.services.iter().find(|service| service.name == name).map(|service| service.created);
    let youngest = world.services.iter().map(|service| service.created).max().unwrap_or_default();
    world.services.retain(|service| service.name != name);
    world.slices.retain(|slice| slice.service != name);
    if random.chance(80) {
        add(random, world, number, before.unwrap_or(youngest + 1));
    }
}

pub(super) fn add(random: &mut Random, world: &mut World, number: usize, created: u32) {
    let namespace = NAMESPACES[number % NAMESPACES.len()].to_owned();
    let name = service_name(number);
    let mut addresses = vips(number);
    match random.below(12) {
        0 => drop(addresses.remove(1)),
        1 => drop(addresses.remove(0)),
        2 => addresses.clear(),
        _ => {}
    }
    let mut ports: Vec<ServicePort> = Vec::new();
    for at in 0..1 + random.below(3) {
        let any = (*random.pick(&TRANSPORTS), *random.pick(&PORTS));
        let (protocol, port) = if random.chance(40) { *random.pick(&COMMON) } else { any };
        if !ports.iter().any(|other| (other.protocol, other.port) == (protocol, port)) {
            ports.push(ServicePort { name: format!("p{at}"), protocol, port, node_port: None });
        }
    }
    if ports.len() == 1 && random.chance(50) {
        ports[0].name = String::new();
    }
    let mut slices = Vec::new();
    for ipv4 in [true, false] {
        for at in 0..[0, 1, 1, 1, 2][random.below(5)] {
            slices.push(Slice {
                namespace: namespace.clone(),
                name: format!("{name}-{}-{at}", if ipv4 { "v4" } else { "v6" }),
                service: name.clone(),
                ipv4,
                ports: ports.iter().filter_map(|port| slice_port(random, port)).collect(),
                endpoints: (0..random.below(6)).map(|_| endpoint(random, world, ipv4)).collect(),
            });
        }
    }
    hint(random, &mut slices);
    world.slices.extend(slices);
    let (local, foreign) = (random.chance(12), random.chance(6));
    let (affinity, exposure) = (affinity(random), Exposure::default());
    let mut service = Service { namespace, name, addresses, ports, local, affinity, foreign, created, exposure };
    expose(random, world, &mut service);
    world.services.push(service);
}

/// Another exposure of a Service, or a part of it.
pub(super) fn change_exposure(random: &mut Random, world: &mut World) {
    let at = random.below(world.services.len());
    let mut service = world.services[at].clone();
    match random.below(8) {
        0 => service.foreign = !service.foreign,
        1 => service.exposure.kind = ServiceKind::ExternalName,
        2 | 3 if service.exposure.kind != ServiceKind::ExternalName => service.exposure.local = !service.exposure.local,
        4 | 5 if service.exposure.kind == ServiceKind::LoadBalancer => service.exposure.ranges = ranges(random, world),
        _ => expose(random, world, &mut service),
    }
    world.services[at] = service;
}

/// How a Service is reached beside its ClusterIPs; one without them is not.
fn expose(random: &mut Random, world: &World, service: &mut Service) {
    service.exposure = Exposure::default();
    service.ports.iter_mut().for_each(|port| port.node_port = None);
    if service.addresses.is_empty() {
        return;
    }
    let kind =
        [ServiceKind::ClusterIp, ServiceKind::NodePort, ServiceKind::LoadBalancer][[0, 1, 2, 2][random.below(4)]];
    // `allocateLoadBalancerNodePorts`.
    let has_node_ports = kind == ServiceKind::NodePort || kind == ServiceKind::LoadBalancer && !random.chance(20);
    if has_node_ports {
        number_node_ports(random, service);
    }
    let is_balanced = kind == ServiceKind::LoadBalancer;
    let mut exposure = Exposure { kind, local: random.chance(40), ..Exposure::default() };
    if is_balanced {
        exposure.ingress = (0..1 + random.below(3)).map(|_| ingress(random)).collect();
        exposure.ranges = ranges(random, world);
        exposure.class = random.chance(20).then(|| "example.com/balancer".to_owned());
    }
    if random.chance(35) {
        exposure.external_ips = (0..1 + random.below(2)).map(|_| external_ip(random, world)).collect();
    }
    exposure.distribution =
        random.chance(20).then(|| (*random.pick(&["PreferClose", "PreferSameZone", "PreferSameNode"])).to_owned());
    service.exposure = exposure;
}

/// The API server gives each number to one Service, for each protocol; now and then another one has it all the same.
fn number_node_ports(random: &mut Random, service: &mut Service) {
    let first = FIRST_NODE_PORT + number_of(service) as u16 * NODE_PORTS;
    let mut taken = Vec::new();
    for (at, port) in service.ports.iter_mut().enumerate() {
        let own = first + if random.chance(30) { 0 } else { at as u16 };
        let number = if random.chance(10) { FIRST_NODE_PORT } else { own };
        if !taken.contains(&(number, port.protocol)) {
            taken.push((number, port.protocol));
            port.node_port = Some(number);
        }
    }
}

fn external(number: u8, ipv4: bool) -> IpAddr {
    if ipv4 {
        return Ipv4Addr::new(203, 0, 113, 20 + number).into();
    }
    Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, u16::from(0x20 + number)).into()
}

fn ingress(random: &mut Random) -> Ingress {
    let mode = *random.pick(&[None, None, Some(IpMode::Vip), Some(IpMode::Vip), Some(IpMode::Proxy)]);
    let number = random.below(EXTERNAL.into()) as u8;
    let address = external(number, random.chance(50));
    match random.below(20) {
        0 => Ingress { address: None, mode: None },
        1 => Ingress { address: Some(node_addresses(1)[random.below(2)]), mode },
        _ => Ingress { address: Some(address), mode },
    }
}

/// Mostly one that is nobody's.
fn external_ip(random: &mut Random, world: &World) -> IpAddr {
    let ipv4 = random.chance(50);
    match random.below(10) {
        0 => pod_addresses(1, 11 + random.below(4) as u8)[usize::from(!ipv4)],
        1 => interesting(random, world, ipv4),
        2 => node_addresses(1 + random.below(3) as u8)[usize::from(!ipv4)],
        _ => external(random.below(EXTERNAL.into()) as u8, ipv4),
    }
}

/// Around whoever may ask; now and then one that is none.
fn ranges(random: &mut Random, world: &World) -> Vec<String> {
    if random.chance(35) {
        return Vec::new();
    }
    let mut ranges = Vec::new();
    for _ in 0..1 + random.below(3) {
        let ipv4 = random.chance(50);
        let lengths: [u8; 4] = if ipv4 { [8, 24, 31, 32] } else { [32, 64, 127, 128] };
        let range = super::around(interesting(random, world, ipv4), *random.pick(&lengths));
        ranges.push(match random.below(30) {
            0 => "somewhere".to_owned(),
            1 => format!(" {range} "),
            _ => range.to_string(),
        });
    }
    ranges
}

/// Leaves out what is asked for anew, by an equal claim, where another one has it: a holder keeps what it has, and who is the older one is
/// no matter then.
pub(super) fn settle(before: &World, next: &mut World, size: &Size) {
    for number in &size.real {
        let here = node_name(*number);
        while let Some(Taken { namespace, name, address, port }) = model::taken_from_holder(before, next, &here) {
            let is_it = |other: (&String, &String)| other == (&namespace, &name);
            let services = next.services.iter_mut();
            for Service { exposure, ports, .. } in services.filter(|service| is_it((&service.namespace, &service.name)))
            {
                exposure.external_ips.retain(|external| Some(*external) != address);
                exposure.ingress.retain(|ingress| ingress.address.is_none() || ingress.address != address);
                let ports = ports.iter_mut().filter(|own| own.node_port == Some(port) && address.is_none());
                ports.for_each(|own| own.node_port = None);
            }
            let pods = next.pods.iter_mut().filter(|pod| is_it((&pod.namespace, &pod.name)));
            pods.for_each(|pod| pod.host_ports.retain(|own| own.port != port));
        }
    }
}

/// An endpoint comes, goes, or has other conditions.
pub(super) fn change_endpoint(random: &mut Random, world: &mut World) {
    if world.slices.is_empty() {
        return;
    }
    let at = random.below(world.slices.len());
    let ipv4 = world.slices[at].ipv4;
    let mut new = endpoint(random, world, ipv4);
    // One that stands twice says the same of its clients.
    let known = world.slices.iter().filter(|slice| slice.service == world.slices[at].service);
    let mut known = known.flat_map(|slice| &slice.endpoints);
    let hints = known.find(|known| known.addresses == new.addresses).map(|known| known.hints.clone());
    let with_nodes = random.chance(50);
    new.hints = hints.unwrap_or_else(|| hints_of(random, 50, with_nodes));
    let slice = &mut world.slices[at];
    match random.below(4) {
        0 => slice.endpoints.push(new),
        1 => remove_one(random, &mut slice.endpoints),
        _ if slice.endpoints.is_empty() => {}
        _ => {
            let at = random.below(slice.endpoints.len());
            let old = slice.endpoints[at].clone();
            // Often it is on its way out, and keeps whom it has.
            let Endpoint { ready, serving, terminating, .. } = match random.below(2) {
                0 => new,
                _ => Endpoint { ready: Some(false), serving: Some(true), terminating: Some(random.chance(50)), ..new },
            };
            slice.endpoints[at] = Endpoint { ready, serving, terminating, ..old };
        }
    }
}

/// Hints for the endpoints of a Service: for none of them, for all, or for some. One that stands twice has the same ones.
fn hint(random: &mut Random, slices: &mut [Slice]) {
    let percent = *random.pick(&[0, 0, 60, 100, 100, 100]);
    let with_nodes = random.chance(50);
    let mut known = BTreeMap::<Vec<IpAddr>, Hints>::new();
    for endpoint in slices.iter_mut().flat_map(|slice| &mut slice.endpoints) {
        let hints = known.entry(endpoint.addresses.clone()).or_insert_with(|| hints_of(random, percent, with_nodes));
        endpoint.hints = hints.clone();
    }
}

fn hints_of(random: &mut Random, percent: usize, with_nodes: bool) -> Hints {
    let mut hints = Hints::default();
    if random.chance(percent) {
        let zones: &[&str] = [&ZONES[..1], &ZONES[1..], &ZONES[..]][random.below(3)];
        hints.zones = zones.iter().map(|zone| (*zone).to_owned()).collect();
        if with_nodes {
            hints.nodes = (0..1 + random.below(2)).map(|_| node_name(1 + random.below(2) as u8)).collect();
            hints.nodes.dedup();
        }
    }
    hints
}

/// For a moment, for as long as a chain of states, or not at all.
pub(super) fn affinity(random: &mut Random) -> Affinity {
    match random.below(10) {
        0..4 => Affinity::None,
        4 | 5 => Affinity::ClientIp,
        6 => Affinity::ClientIpFor(86_400),
        _ => Affinity::ClientIpFor(1 + random.below(5) as u32),
    }
}

/// Most slices have the port, with a number of their own.
fn slice_port(random: &mut Random, port: &ServicePort) -> Option<SlicePort> {
    if random.chance(8) {
        return None;
    }
    let name = (!port.name.is_empty() || random.chance(50)).then(|| port.name.clone());
    let protocol = if port.protocol == Protocol::Tcp && random.chance(30) { None } else { Some(port.protocol) };
    let number = *random.pick(&PORTS);
    Some(SlicePort { name, protocol, port: (!random.chance(4)).then_some(number) })
}

fn endpoint(random: &mut Random, world: &World, ipv4: bool) -> Endpoint {
    let pods: Vec<(IpAddr, &str)> =
        world.pods.iter().filter_map(|pod| Some((pod.address(ipv4)?, pod.node.as_str()))).collect();
    let (address, node) = match random.below(16) {
        0 => (outside(ipv4), None),
        1 => (node_addresses(1)[usize::from(!ipv4)], Some(HERE)),
        _ if pods.is_empty() => (outside(ipv4), None),
        _ => {
            let (address, node) = *random.pick(&pods);
            (address, Some(node))
        }
    };
    let (ready, serving, terminating) = match random.below(11) {
        10 => (Some(false), None, Some(true)),
        0 => (Some(false), Some(true), Some(true)),
        1 => (Some(false), Some(false), Some(true)),
        2 => (Some(false), Some(true), Some(false)),
        3 => (Some(false), None, None),
        4 => (None, None, None),
        _ => (Some(true), Some(true), Some(false)),
    };
    Endpoint {
        addresses: vec![address],
        node: node.map(str::to_owned),
        ready,
        serving,
        terminating,
        hints: Hints::default(),
    }
}
