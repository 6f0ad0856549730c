// SPDX-License-Identifier: Apache-2.0
//! Addresses beyond the cluster that lead to a Service: `externalIPs`, and those that a load balancer gave it.

use std::{collections::BTreeMap, net::IpAddr};

use weft_abi::{HAIRPIN_V4, HAIRPIN_V6};

use crate::{
    model::objects::{Service, ServiceSpec},
    plan::{address::parse_ip, backends::Here, routes::special},
};

use super::{claim::Claim, sources::is_load_balancer};

/// Those that count; `problems` tells of the others. The programs leave out of these what is a pod's, a node's or another Service's.
pub(super) fn addresses(
    service: &Service,
    spec: &ServiceSpec,
    here: Here<'_>,
    problems: &mut Vec<String>,
) -> BTreeMap<IpAddr, Claim> {
    let ingress = ingress(service, spec).map(|text| (Claim::LoadBalancer, "status.loadBalancer.ingress", text));
    let external_ips = external_ips(spec, here, problems).map(|text| (Claim::ExternalIp, EXTERNAL_IPS, text));
    let mut found = BTreeMap::new();
    for (claim, field, text) in ingress.chain(external_ips) {
        match allowed(text, here) {
            // What is both is the load balancer's.
            Ok(address) => drop(found.entry(address).or_insert(claim)),
            Err(why) => problems.push(format!("{field}: {why}")),
        }
    }
    found
}

const EXTERNAL_IPS: &str = "spec.externalIPs";

/// The addresses of a Service's load balancer that are served by nodes.
pub(super) fn ingress<'s>(service: &'s Service, spec: &ServiceSpec) -> impl Iterator<Item = &'s str> {
    let status = service.status.as_ref().filter(|_| is_load_balancer(spec));
    let ingress = status.and_then(|status| status.load_balancer.as_ref()).and_then(|status| status.ingress.as_ref());
    // What goes to others has to leave the node: the load balancer may do more than Weft knows (KEP-1860).
    let ingress = ingress.into_iter().flatten().filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
    ingress.filter_map(|ingress| ingress.ip.as_deref()).filter(|text| !text.is_empty())
}

fn external_ips<'s>(
    spec: &'s ServiceSpec,
    here: Here<'_>,
    problems: &mut Vec<String>,
) -> impl Iterator<Item = &'s str> + use<'s> {
    let is_on = here.facts.exposure.external_ips;
    let mut all = spec.external_ips.iter().flatten().map(|text| &**text);
    if !is_on && let Some(first) = all.next() {
        problems.push(format!(
            "{EXTERNAL_IPS}: {first} is not served: services.externalIPs is off in the agent's configuration"
        ));
    }
    all.filter(move |_| is_on)
}

/// An address that a Service may have beyond the cluster.
///
/// # Errors
/// Why it may not.
fn allowed(text: &str, here: Here<'_>) -> Result<IpAddr, String> {
    let address = parse_ip(text).ok_or_else(|| format!("'{text}' is not an IP address"))?;
    if !here.facts.exposure.allows(address) {
        return Err(format!(
            "{address} is in none of services.allowedCIDRs of the agent's configuration, and is not served"
        ));
    }
    if is_special(address) {
        return Err(format!("{address} is no address that a Service can have beyond the cluster"));
    }
    // Whoever has it, now or later, is another Service: it must not lose a port to this one.
    match here.service_cidr_of(address) {
        Some(cidr) => Err(format!("{address} is in {cidr}, which is for ClusterIPs, and is not served")),
        None => Ok(address),
    }
}

/// Whether it is nobody's in any network, or means something within this node.
fn is_special(address: IpAddr) -> bool {
    special().any(|special| special.contains(&address)) || [HAIRPIN_V4, HAIRPIN_V6].contains(&address.into())
}
