// SPDX-License-Identifier: Apache-2.0
//! What load balancers are told of a Service.

use std::{collections::BTreeSet, net::IpAddr, num::NonZeroU16};

use super::{cluster_ips, programmed_spec};
use crate::{
    model::{
        HealthCheck, NodeFacts,
        objects::{EndpointSlice, Readiness, Service, ServiceSpec},
    },
    plan::address::parse_ip,
};

/// None: nobody asks for this Service.
pub(crate) fn health_check(service: &Service, slices: &[&EndpointSlice], facts: &NodeFacts) -> Option<HealthCheck> {
    let spec = programmed_spec(service).filter(|_| facts.exposure.health_check_node_ports)?;
    let port = port_of(spec)?;
    let vips: Vec<IpAddr> = cluster_ips(spec).into_iter().filter_map(parse_ip).collect();
    let ready = [true, false].map(|ipv4| {
        let is_of_family = vips.iter().any(|vip| vip.is_ipv4() == ipv4);
        is_of_family.then(|| u32::try_from(ready(slices, &facts.name, ipv4)).unwrap_or(u32::MAX))
    });
    Some(HealthCheck { port, ready, uid: service.metadata.uid.clone() })
}

fn port_of(spec: &ServiceSpec) -> Option<NonZeroU16> {
    let is_asked =
        spec.type_.as_deref() == Some("LoadBalancer") && spec.external_traffic_policy.as_deref() == Some("Local");
    let port = spec.health_check_node_port.filter(|_| is_asked)?;
    u16::try_from(port).ok().and_then(NonZeroU16::new)
}

/// Those that terminate do not count, although they serve where nobody else does: who asks is to send elsewhere.
fn ready(slices: &[&EndpointSlice], node: &str, ipv4: bool) -> usize {
    let address_type = if ipv4 { "IPv4" } else { "IPv6" };
    let of_family = slices.iter().filter(|slice| &*slice.address_type == address_type);
    let with_ports = of_family.filter(|slice| slice.ports.as_ref().is_some_and(|ports| !ports.is_empty()));
    let endpoints = with_ports.flat_map(|slice| slice.endpoints.iter().flatten());
    let here = endpoints
        .filter(|endpoint| endpoint.readiness == Some(Readiness::Ready) && endpoint.node.as_deref() == Some(node));
    here.filter_map(|endpoint| endpoint.address).collect::<BTreeSet<_>>().len()
}
