// SPDX-License-Identifier: Apache-2.0

//! Which endpoints a Service's port has, and which of them are used.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use super::{
    super::world::{Affinity, Endpoint, Protocol, Service, ServicePort, Slice, World},
    Client, Reason,
};

/// `timeoutSeconds` by default: three hours.
const AFFINITY: Duration = Duration::from_secs(3 * 60 * 60);

/// One port of a Service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frontend<'w> {
    service: &'w Service,
    port: &'w ServicePort,
}

/// The Service port at an address.
pub(super) fn frontend(world: &World, address: IpAddr, port: u16, protocol: Protocol) -> Option<Frontend<'_>> {
    let served = world.services.iter().filter(|service| !service.foreign && service.addresses.contains(&address));
    let mut ports = served.flat_map(|service| service.ports.iter().map(move |port| Frontend { service, port }));
    ports.find(|frontend| frontend.port.port == port && frontend.port.protocol == protocol)
}

/// Who a client of the frontend is to the Service, and for how long it keeps its backend; none: it does not. Each port keeps clients
/// for itself, and each node.
pub(super) fn client(frontend: &Frontend<'_>, here: &str, address: IpAddr) -> Option<(Client, Duration)> {
    let Frontend { service, port } = frontend;
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
    let mut keeping = services.filter(|service| !service.foreign && time(service).is_some());
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
    let mut served = world.services.iter().filter(|service| !service.foreign && !service.ports.is_empty());
    served.any(|service| service.addresses.contains(&address))
}

/// The endpoints that new connections from node `here` go to: the ready ones; if there is none, those that serve while they
/// end. With `internalTrafficPolicy: Local` only the node's own count.
pub(super) fn backends(world: &World, here: &str, frontend: &Frontend<'_>, ipv4: bool) -> Vec<(IpAddr, u16)> {
    used(world, frontend.service.local.then_some(here), frontend, ipv4)
}

/// Why there is none: a refusal that clients hear of only where nobody serves at all.
pub(super) fn without_backend(world: &World, frontend: &Frontend<'_>, ipv4: bool) -> Reason {
    if used(world, None, frontend, ipv4).is_empty() { Reason::NoBackend } else { Reason::NoLocalBackend }
}

/// Those that are used, of all or of one node's alone.
fn used(world: &World, node: Option<&str>, frontend: &Frontend<'_>, ipv4: bool) -> Vec<(IpAddr, u16)> {
    let usable: Vec<(&Endpoint, (IpAddr, u16))> = endpoints(world, frontend, ipv4)
        .filter(|(endpoint, _)| node.is_none() || endpoint.node.as_deref() == node)
        .collect();
    let chosen = |condition: fn(&Endpoint) -> bool| -> BTreeSet<(IpAddr, u16)> {
        usable.iter().filter(|(endpoint, _)| condition(endpoint)).map(|(_, backend)| *backend).collect()
    };
    let ready = chosen(is_ready);
    let used =
        if ready.is_empty() { chosen(|endpoint| is_serving(endpoint) && is_terminating(endpoint)) } else { ready };
    used.into_iter().collect()
}

/// Whether an endpoint still serves, whoever else does.
pub(super) fn serves(world: &World, frontend: &Frontend<'_>, backend: (IpAddr, u16), ipv4: bool) -> bool {
    endpoints(world, frontend, ipv4).any(|(endpoint, found)| found == backend && is_serving(endpoint))
}

/// Every endpoint of the port: the slices' ports are told apart by name and protocol, and a slice's own number counts.
fn endpoints<'w>(
    world: &'w World,
    frontend: &Frontend<'w>,
    ipv4: bool,
) -> impl Iterator<Item = (&'w Endpoint, (IpAddr, u16))> {
    let Frontend { service, port } = *frontend;
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
