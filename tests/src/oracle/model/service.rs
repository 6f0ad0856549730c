// SPDX-License-Identifier: Apache-2.0

//! Which endpoints a Service's port has, and which of them are used.

use std::{collections::BTreeSet, net::IpAddr};

use super::super::world::{Endpoint, Protocol, Service, ServicePort, Slice, World};

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

/// Whether some Service has this ClusterIP, and a port.
pub(super) fn is_cluster_ip(world: &World, address: IpAddr) -> bool {
    let mut served = world.services.iter().filter(|service| !service.foreign && !service.ports.is_empty());
    served.any(|service| service.addresses.contains(&address))
}

/// The endpoints that new connections from node `here` go to: the ready ones; if there is none, those that serve while they
/// end. With `internalTrafficPolicy: Local` only the node's own count.
pub(super) fn backends(world: &World, here: &str, frontend: &Frontend<'_>, ipv4: bool) -> Vec<(IpAddr, u16)> {
    let usable: Vec<(&Endpoint, (IpAddr, u16))> = endpoints(world, frontend, ipv4)
        .filter(|(endpoint, _)| !frontend.service.local || endpoint.node.as_deref() == Some(here))
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
