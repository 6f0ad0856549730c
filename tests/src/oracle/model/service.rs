// SPDX-License-Identifier: Apache-2.0

//! Which endpoints a Service's port has, and which of them are used.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use ipnet::IpNet;

use super::{
    super::world::{Affinity, Endpoint, From, Hints, Packet, Protocol, Service, ServicePort, Slice, World},
    Backend, Client, Reason,
    frontend::{Claim, Frontend, Owner},
};

/// `timeoutSeconds` by default: three hours.
const AFFINITY: Duration = Duration::from_secs(3 * 60 * 60);

/// Who a client of the frontend is to the Service, and for how long it keeps its backend; none: it does not. Each port keeps clients
/// for itself, and each node.
pub(super) fn client(frontend: &Frontend<'_>, here: &str, address: IpAddr) -> Option<(Client, Duration)> {
    let Owner::Service(service, port) = frontend.owner else { return None };
    let time = time(service)?;
    let client = Client {
        node: here.to_owned(),
        service: (service.namespace.clone(), service.name.clone()),
        port: (port.name.clone(), port.protocol),
        address,
    };
    Some((client, time))
}

/// Whether the client's Service is there and keeps clients.
pub(super) fn keeps(world: &World, client: &Client) -> bool {
    let is_its = |service: &&Service| (&service.namespace, &service.name) == (&client.service.0, &client.service.1);
    let services = world.services.iter().filter(is_its);
    let mut keeping = services.filter(|service| service.is_served() && time(service).is_some());
    keeping.any(|service| {
        let serves = service.addresses.iter().any(|vip| vip.is_ipv4() == client.address.is_ipv4());
        serves && service.ports.iter().any(|port| (&port.name, port.protocol) == (&client.port.0, client.port.1))
    })
}

const fn time(service: &Service) -> Option<Duration> {
    match service.affinity {
        Affinity::None => None,
        Affinity::ClientIp => Some(AFFINITY),
        Affinity::ClientIpFor(seconds) => Some(Duration::from_secs(seconds as u64)),
    }
}

/// Whether some Service has this ClusterIP, and a port.
pub(super) fn is_cluster_ip(world: &World, address: IpAddr) -> bool {
    let mut served = world.services.iter().filter(|service| service.is_served() && !service.ports.is_empty());
    served.any(|service| service.addresses.contains(&address))
}

/// Where a new connection may go that asks for the frontend: to endpoints of node `here` alone where the policy of its kind says so, to
/// those that are meant for it otherwise.
pub(super) fn backends(world: &World, here: &str, frontend: &Frontend<'_>, packet: &Packet) -> Vec<Backend> {
    let ipv4 = packet.destination.is_ipv4();
    match frontend.owner {
        Owner::Pod(pod, port) => pod.address(ipv4).map(|address| (address, port.target)).into_iter().collect(),
        Owner::Service(service, port) if is_local(service, frontend.claim, &packet.from) => {
            let local = |endpoint: &Endpoint| endpoint.node.as_deref() == Some(here);
            used(&endpoints(world, (service, port), ipv4).filter(|(endpoint, _)| local(endpoint)).collect::<Vec<_>>())
        }
        Owner::Service(service, port) => of_cluster(world, here, (service, port), ipv4),
    }
}

/// `internalTrafficPolicy` is about ClusterIPs, `externalTrafficPolicy` about everything else, and about clients from elsewhere: pods of
/// the node, and the node, get what the cluster has.
fn is_local(service: &Service, claim: Claim, from: &From) -> bool {
    match claim {
        Claim::ClusterIp => service.local,
        _ => service.exposure.local && *from == From::Wire,
    }
}

/// Why there is none: a refusal that clients hear of only where nobody serves at all.
pub(super) fn without_backend(world: &World, here: &str, frontend: &Frontend<'_>, ipv4: bool) -> Reason {
    match frontend.owner {
        Owner::Service(service, port) if !of_cluster(world, here, (service, port), ipv4).is_empty() => {
            Reason::NoLocalBackend
        }
        _ => Reason::NoBackend,
    }
}

/// Whether the client is none of those that a load balancer's address is for (`loadBalancerSourceRanges`): other frontends are for
/// everybody. Ranges of one family say nothing about the other; one that nobody understands is meant for somebody, and so closes both.
pub(super) fn refuses_source(frontend: &Frontend<'_>, client: IpAddr) -> bool {
    let Owner::Service(service, _) = frontend.owner else { return false };
    let ranges: Vec<Option<IpNet>> =
        service.exposure.ranges.iter().map(|text| text.trim().parse::<IpNet>().ok()).collect();
    let of_family = |range: &IpNet| range.addr().is_ipv4() == client.is_ipv4();
    let known: Vec<IpNet> = ranges.iter().flatten().copied().filter(of_family).collect();
    let is_limited = ranges.contains(&None) || !known.is_empty();
    frontend.claim == Claim::LoadBalancer && is_limited && !known.iter().any(|range| range.contains(&client))
}

/// The ready ones; if there is none, those that serve while they end.
fn used(usable: &[(&Endpoint, Backend)]) -> Vec<Backend> {
    let chosen = |condition: fn(&Endpoint) -> bool| -> BTreeSet<Backend> {
        usable.iter().filter(|(endpoint, _)| condition(endpoint)).map(|(_, backend)| *backend).collect()
    };
    let ready = chosen(is_ready);
    let used =
        if ready.is_empty() { chosen(|endpoint| is_serving(endpoint) && is_terminating(endpoint)) } else { ready };
    used.into_iter().collect()
}

/// Of the whole cluster: of the ready ones those that hints give to this node, or else to its zone. Hints count where all of them have
/// some, and some name it (KEP-2433, KEP-3015); for those that end they do not count.
fn of_cluster(world: &World, here: &str, of: (&Service, &ServicePort), ipv4: bool) -> Vec<Backend> {
    let all: Vec<_> = endpoints(world, of, ipv4).collect();
    let ready: Vec<_> = all.iter().filter(|(endpoint, _)| is_ready(endpoint)).copied().collect();
    let zone = world.node(here).and_then(|node| node.zone.clone());
    let meant = |names: fn(&Hints) -> &Vec<String>, own: Option<String>| {
        let own = own.filter(|_| ready.iter().all(|(endpoint, _)| !names(&endpoint.hints).is_empty()))?;
        let is_meant = |(endpoint, _): &&(&Endpoint, Backend)| names(&endpoint.hints).contains(&own);
        let meant: Vec<_> = ready.iter().filter(is_meant).copied().collect();
        (!meant.is_empty()).then_some(meant)
    };
    let hinted = meant(|hints| &hints.nodes, Some(here.to_owned())).or_else(|| meant(|hints| &hints.zones, zone));
    used(&hinted.unwrap_or(all))
}

/// Whether an endpoint still serves, whoever else does.
pub(super) fn serves(world: &World, frontend: &Frontend<'_>, backend: Backend, ipv4: bool) -> bool {
    match frontend.owner {
        Owner::Pod(pod, port) => pod.address(ipv4) == Some(backend.0) && port.target == backend.1,
        Owner::Service(service, port) => {
            endpoints(world, (service, port), ipv4).any(|(endpoint, found)| found == backend && is_serving(endpoint))
        }
    }
}

/// Every endpoint of the port: the slices' ports are told apart by name and protocol, and a slice's own number counts.
fn endpoints<'w>(
    world: &'w World,
    (service, port): (&'w Service, &'w ServicePort),
    ipv4: bool,
) -> impl Iterator<Item = (&'w Endpoint, Backend)> {
    let of_service = move |slice: &&Slice| {
        slice.namespace == service.namespace && slice.service == service.name && slice.ipv4 == ipv4
    };
    world.slices.iter().filter(of_service).flat_map(move |slice| {
        let numbers = slice.ports.iter().filter(move |found| {
            found.name.as_deref().unwrap_or_default() == port.name
                && found.protocol.unwrap_or(Protocol::Tcp) == port.protocol
        });
        let numbers = numbers.filter_map(|found| found.port.filter(|number| *number != 0));
        numbers.flat_map(|number| {
            let first = move |endpoint: &'w Endpoint| Some((endpoint, (*endpoint.addresses.first()?, number)));
            slice.endpoints.iter().filter_map(first)
        })
    })
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.ready.unwrap_or(true)
}

fn is_serving(endpoint: &Endpoint) -> bool {
    endpoint.serving.unwrap_or_else(|| is_ready(endpoint))
}

fn is_terminating(endpoint: &Endpoint) -> bool {
    endpoint.terminating.unwrap_or(false)
}
