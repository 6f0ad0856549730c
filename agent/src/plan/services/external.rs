// SPDX-License-Identifier: Apache-2.0
//! Addresses beyond the cluster that lead to a Service: `externalIPs`, and those that a load balancer gave it.

use std::{collections::BTreeSet, net::IpAddr};

use weft_abi::{HAIRPIN_V4, HAIRPIN_V6};

use crate::{
    model::objects::{Service, ServiceSpec},
    plan::{address::parse_ip, backends::Here, routes::special},
};

/// Those that count; `problems` tells of the others. The programs leave out of these what is a pod's, a node's or another Service's.
pub(super) fn addresses(
    service: &Service,
    spec: &ServiceSpec,
    here: Here<'_>,
    problems: &mut Vec<String>,
) -> BTreeSet<IpAddr> {
    let is_limited = spec.load_balancer_source_ranges.as_ref().is_some_and(|ranges| !ranges.is_empty());
    let is_load_balancer = spec.type_.as_deref() == Some("LoadBalancer");
    if is_limited && is_load_balancer {
        // Closed rather than open to all.
        problems.push(
            "spec.loadBalancerSourceRanges: Weft does not limit sources yet; addresses of its load balancer are not served"
                .to_owned(),
        );
    }
    let exposure = &here.facts.exposure;
    let mut found = BTreeSet::new();
    let mut take = |field: &str, text: &str| match parse_ip(text) {
        None => problems.push(format!("{field}: '{text}' is not an IP address")),
        Some(address) if !exposure.allows(address) => problems.push(format!(
            "{field}: {address} is in none of services.allowedCIDRs of the agent's configuration, and is not served"
        )),
        Some(address) if is_special(address) => {
            problems.push(format!("{field}: {address} is no address that a Service can have beyond the cluster"));
        }
        // Whoever has it, now or later, is another Service: it must not lose a port to this one.
        Some(address) if let Some(cidr) = here.service_cidr_of(address) => {
            problems.push(format!("{field}: {address} is in {cidr}, which is for ClusterIPs, and is not served"));
        }
        Some(address) => drop(found.insert(address)),
    };
    let of_load_balancer = service.status.iter().filter(|_| is_load_balancer && !is_limited);
    let ingress =
        of_load_balancer.flat_map(|status| &status.load_balancer).flat_map(|status| &status.ingress).flatten();
    for ingress in ingress {
        match (ingress.ip.as_deref(), ingress.ip_mode.as_deref()) {
            // What goes there has to leave the node: the load balancer may do more than Weft knows (KEP-1860).
            (None | Some(""), _) | (_, Some("Proxy")) => {}
            (Some(text), _) => take("status.loadBalancer.ingress", text),
        }
    }
    let external_ips = spec.external_ips.iter().flatten();
    if exposure.external_ips {
        external_ips.for_each(|text| take("spec.externalIPs", text));
    } else if let Some(first) = external_ips.map(|text| &**text).next() {
        problems.push(format!(
            "spec.externalIPs: {first} is not served: services.externalIPs is off in the agent's configuration"
        ));
    }
    found
}

/// Whether it is nobody's in any network, or means something within this node.
fn is_special(address: IpAddr) -> bool {
    special().any(|special| special.contains(&address)) || [HAIRPIN_V4, HAIRPIN_V6].contains(&address.into())
}
