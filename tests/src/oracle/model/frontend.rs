// SPDX-License-Identifier: Apache-2.0

//! What a packet asks for: a Service by one of its frontends, or a port of the node that is a pod's, and who has one that several
//! want.

use std::{
    cmp::Ordering,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    super::world::{From, HostPort, IpMode, Packet, Pod, Protocol, Service, ServiceKind, ServicePort, World},
    route,
};

/// By what right somebody asks for a frontend: the strongest first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Claim {
    ClusterIp,
    NodePort,
    LoadBalancer,
    HostPort,
    ExternalIp,
}

/// Who answers at a frontend.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owner<'w> {
    Service(&'w Service, &'w ServicePort),
    Pod(&'w Pod, &'w HostPort),
}

/// What somebody has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frontend<'w> {
    pub(super) claim: Claim,
    pub(super) owner: Owner<'w>,
}

/// Where a frontend is: at one address, or at whichever addresses of the node serve NodePorts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place {
    At(IpAddr),
    AnyOfNode { ipv4: bool },
}

/// Place, port and protocol.
pub(super) type Key = (Place, u16, Protocol);

/// What a process of the node asks for its NodePorts at, whichever address of the node it named: its sockets are led there.
const OF_SOCKETS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 119, 101)), IpAddr::V6(Ipv6Addr::new(0xfd77, 0x6566, 0x7400, 0, 0, 0, 0, 1))];

/// The address, of the family, that the node's own sockets are led to, and that stands for clients that a backend must not see as
/// they are.
pub(in crate::oracle) const fn hairpin(ipv4: bool) -> IpAddr {
    if ipv4 { OF_SOCKETS[0] } else { OF_SOCKETS[1] }
}

/// The frontend that a packet at node `here` is for.
pub(super) fn find<'w>(world: &'w World, here: &str, packet: &Packet) -> Option<Frontend<'w>> {
    let Packet { destination, dport, protocol, .. } = *packet;
    let ipv4 = destination.is_ipv4();
    if protocol == Protocol::Echo {
        return None;
    }
    let of_node = || holder(world, here, (Place::AnyOfNode { ipv4 }, dport, protocol));
    if destination == hairpin(ipv4) {
        return of_node().filter(|_| packet.from == From::Host);
    }
    let exact = holder(world, here, (Place::At(destination), dport, protocol));
    // What is the node's is for its ports, whatever else a Service says: hostPorts at all of its addresses, NodePorts at those that others
    // know it by.
    if let Some(node) = world.node(here).filter(|node| route::is_of_node(node, destination)) {
        let is_known = node.addresses.contains(&destination);
        let of_node = of_node().filter(|of_node| is_known || of_node.claim == Claim::HostPort);
        let host_port = exact.filter(|exact| exact.claim == Claim::HostPort);
        // Of equal claims the one to just this address.
        return host_port.into_iter().chain(of_node).min_by_key(|frontend| frontend.claim);
    }
    exact.filter(|exact| exact.claim == Claim::ClusterIp || !is_somebodys(world, here, destination))
}

/// Whether an address is a pod's, another node's, or a Service's own: nobody else serves it.
fn is_somebodys(world: &World, here: &str, address: IpAddr) -> bool {
    let of_pods = world.nodes.iter().any(|node| node.pod_cidrs.iter().any(|cidr| cidr.contains(&address)));
    let mut others = world.nodes.iter().filter(|node| node.name != here);
    of_pods || others.any(|node| node.addresses.contains(&address)) || route::is_service(address)
}

/// Who has a frontend: the strongest claim, then the oldest object, then the first by name.
pub(super) fn holder<'w>(world: &'w World, here: &str, key: Key) -> Option<Frontend<'w>> {
    let wanting = asked(world, here).into_iter().filter(|(asked, _)| *asked == key);
    wanting.map(|(_, frontend)| frontend).min_by(|a, b| a.before(b))
}

impl<'w> Frontend<'w> {
    /// Namespace and name of whose it is.
    fn name(&self) -> (&'w str, &'w str) {
        match self.owner {
            Owner::Service(service, _) => (&service.namespace, &service.name),
            Owner::Pod(pod, _) => (&pod.namespace, &pod.name),
        }
    }

    fn before(&self, other: &Self) -> Ordering {
        let rank = |frontend: &Self| {
            let created = if let Owner::Service(service, _) = frontend.owner { service.created } else { 0 };
            (frontend.claim, created, frontend.name())
        };
        rank(self).cmp(&rank(other))
    }
}

/// All that anybody asks for at node `here`.
pub(super) fn asked<'w>(world: &'w World, here: &str) -> Vec<(Key, Frontend<'w>)> {
    let served = world.services.iter().filter(|service| service.is_served());
    let of_services = served.flat_map(|service| service.ports.iter().flat_map(move |port| of_port(service, port)));
    let pods = world.pods.iter().filter(|pod| pod.node == here && !pod.host_network);
    let of_pods = pods.flat_map(|pod| pod.host_ports.iter().flat_map(move |port| of_host_port(pod, port)));
    of_services.chain(of_pods).collect()
}

fn of_port<'w>(service: &'w Service, port: &'w ServicePort) -> Vec<(Key, Frontend<'w>)> {
    let mut asked = Vec::new();
    let mut ask = |claim, place, number| {
        asked.push(((place, number, port.protocol), Frontend { claim, owner: Owner::Service(service, port) }));
    };
    for vip in &service.addresses {
        ask(Claim::ClusterIp, Place::At(*vip), port.port);
        if let Some(number) = port.node_port {
            ask(Claim::NodePort, Place::AnyOfNode { ipv4: vip.is_ipv4() }, number);
        }
    }
    for (claim, address) in external(service) {
        ask(claim, Place::At(address), port.port);
    }
    asked
}

/// Addresses beyond the cluster, of families that the Service has: one of a prefix of ClusterIPs is none, and the load balancer's are
/// those that it does not serve itself.
fn external(service: &Service) -> Vec<(Claim, IpAddr)> {
    let exposure = &service.exposure;
    let balanced = exposure.ingress.iter().filter(|ingress| ingress.mode != Some(IpMode::Proxy));
    let balanced = balanced.filter(|_| exposure.kind == ServiceKind::LoadBalancer);
    let balanced: Vec<IpAddr> = balanced.filter_map(|ingress| ingress.address).collect();
    let others = exposure.external_ips.iter().filter(|address| !balanced.contains(address));
    let others = others.map(|address| (Claim::ExternalIp, *address));
    let all = balanced.iter().map(|address| (Claim::LoadBalancer, *address)).chain(others);
    let is_of_family = |address: &IpAddr| service.addresses.iter().any(|vip| vip.is_ipv4() == address.is_ipv4());
    all.filter(|(_, address)| is_of_family(address) && !route::is_service(*address)).collect()
}

/// Of each family that the pod has, unless the port is at an address of the other one.
fn of_host_port<'w>(pod: &'w Pod, port: &'w HostPort) -> Vec<(Key, Frontend<'w>)> {
    let families = [true, false].into_iter().filter(|ipv4| pod.address(*ipv4).is_some());
    let asked = families.filter_map(|ipv4| match port.address {
        None => Some(Place::AnyOfNode { ipv4 }),
        Some(address) => (address.is_ipv4() == ipv4).then_some(Place::At(address)),
    });
    let frontend = Frontend { claim: Claim::HostPort, owner: Owner::Pod(pod, port) };
    asked.map(|place| ((place, port.port, port.protocol), frontend)).collect()
}

/// Who asks for what another one has by an equal claim.
pub(in crate::oracle) struct Taken {
    pub(in crate::oracle) namespace: String,
    pub(in crate::oracle) name: String,
    /// None: any of the node's.
    pub(in crate::oracle) address: Option<IpAddr>,
    pub(in crate::oracle) port: u16,
}

/// Who takes, by its age alone, what another one holds that asks for it still: it is nobody's promise that a holder keeps it, or does not.
pub(in crate::oracle) fn taken_from_holder(before: &World, next: &World, here: &str) -> Option<Taken> {
    let wanting = asked(next, here);
    let takes = |key: Key| {
        let (old, new) = (holder(before, here, key)?, holder(next, here, key)?);
        let is_old = |(asked, frontend): &(Key, Frontend<'_>)| *asked == key && frontend.name() == old.name();
        let asks_still =
            wanting.iter().find(|wanting| is_old(wanting)).is_some_and(|(_, still)| still.claim == new.claim);
        (asks_still && old.claim == new.claim && old.name() != new.name()).then_some(new)
    };
    wanting.iter().find_map(|(key, _)| {
        let (namespace, name) = takes(*key)?.name();
        let address = if let Place::At(address) = key.0 { Some(address) } else { None };
        Some(Taken { namespace: namespace.to_owned(), name: name.to_owned(), address, port: key.1 })
    })
}

/// Whether several ask for one frontend by equal claims.
pub(in crate::oracle) fn is_contested(world: &World, here: &str) -> bool {
    let all = asked(world, here);
    let same = |(at, frontend): &(Key, Frontend<'_>)| {
        let others = all.iter().filter(|(other, _)| other == at);
        others.filter(|(_, other)| other.claim == frontend.claim).any(|(_, other)| other.name() != frontend.name())
    };
    all.iter().any(same)
}

/// What several ask for at node `here`, by whatever claims: the address, none for any of the node's, of this family, port and protocol.
pub(in crate::oracle) fn wanted_by_several(
    world: &World,
    here: &str,
    ipv4: bool,
) -> Vec<(Option<IpAddr>, Protocol, u16)> {
    let all = asked(world, here);
    let is_wanted = |(at, frontend): &&(Key, Frontend<'_>)| {
        all.iter().any(|(other, another)| other == at && another.name() != frontend.name())
    };
    let of_family = |((place, port, protocol), _): &(Key, Frontend<'_>)| match place {
        Place::At(address) => (address.is_ipv4() == ipv4).then_some((Some(*address), *protocol, *port)),
        Place::AnyOfNode { ipv4: family } => (*family == ipv4).then_some((None, *protocol, *port)),
    };
    all.iter().filter(is_wanted).filter_map(of_family).collect()
}
