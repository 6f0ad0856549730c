// SPDX-License-Identifier: Apache-2.0
//! What the API server would do to an object before it keeps it: fill in what Weft needs, and refuse what is not valid
//! (`pkg/apis/*/validation` of Kubernetes, as far as it concerns what Weft reads).

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::{
    api::{
        core::v1::{Node, Pod, Service, ServicePort, ServiceSpec},
        discovery::v1::EndpointSlice,
        networking::v1::{NetworkPolicy, ServiceCIDR},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use crate::{model::address::parse_ip, plan::check_policy, watch::dir::object::Object};

/// A field that is not valid.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Invalid {
    pub(crate) field: String,
    pub(crate) why: String,
}

type Check = Result<(), Invalid>;

fn invalid(field: impl Into<String>, why: impl Into<String>) -> Check {
    Err(Invalid { field: field.into(), why: why.into() })
}

/// Whether objects of the kind live in namespaces.
pub(crate) fn is_namespaced(kind: &str) -> bool {
    !matches!(kind, "Namespace" | "Node" | "ServiceCIDR")
}

/// Fills in defaults and checks.
pub(crate) fn complete(object: &mut Object) -> Check {
    match object {
        Object::Pod(pod) => {
            metadata(&mut pod.metadata, true, is_subdomain)?;
            self::pod(pod)
        }
        Object::Namespace(namespace) => metadata(&mut namespace.metadata, false, is_label),
        Object::Node(node) => {
            metadata(&mut node.metadata, false, is_subdomain)?;
            self::node(node)
        }
        Object::Service(service) => {
            // RFC 1123 labels since Kubernetes 1.37 (KEP-5311).
            metadata(&mut service.metadata, true, is_label)?;
            self::service(service)
        }
        Object::Slice(slice) => {
            metadata(&mut slice.metadata, true, is_subdomain)?;
            self::slice(slice)
        }
        Object::Policy(policy) => {
            metadata(&mut policy.metadata, true, is_subdomain)?;
            self::policy(policy)
        }
        Object::ServiceCidr(cidr) => {
            metadata(&mut cidr.metadata, false, is_subdomain)?;
            self::service_cidr(cidr)
        }
    }
}

fn metadata(metadata: &mut ObjectMeta, namespaced: bool, name_rule: fn(&str) -> bool) -> Check {
    let name = metadata.name.as_deref().unwrap_or_default();
    if !name_rule(name) {
        return invalid("metadata.name", format!("'{name}' is not a DNS name: lower case letters, digits and '-'"));
    }
    if namespaced {
        let namespace = metadata.namespace.get_or_insert_with(|| "default".to_owned());
        if !is_label(namespace) {
            return invalid(
                "metadata.namespace",
                format!("'{namespace}' is not a DNS label: lower case letters, digits and '-'"),
            );
        }
    } else if metadata.namespace.is_some() {
        return invalid("metadata.namespace", "this kind has no namespace; remove it");
    }
    for (key, value) in metadata.labels.iter().flatten() {
        if !is_qualified(key) {
            return invalid("metadata.labels", format!("'{key}' is not a label key such as app or example.org/app"));
        }
        if !is_label_value(value) {
            return invalid(
                "metadata.labels",
                format!("'{value}' of '{key}' is not a label value: 63 letters, digits, '-', '_', '.'"),
            );
        }
    }
    Ok(())
}

fn is_label(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    let inner = bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
    bytes.len() <= 63 && inner && edge(bytes.first()) && edge(bytes.last())
}

fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

fn is_label_value(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    let inner = bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b));
    bytes.len() <= 63 && inner && edge(bytes.first()) && edge(bytes.last())
}

fn is_qualified(text: &str) -> bool {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(is_subdomain) && !name.is_empty() && is_label_value(name)
}

/// `IANA_SVC_NAME`: 15 characters, a letter among them.
fn is_port_name(text: &str) -> bool {
    text.len() <= 15 && is_label(text) && !text.contains("--") && text.bytes().any(|b| b.is_ascii_lowercase())
}

fn protocol(text: Option<&str>, field: &str) -> Check {
    match text {
        None | Some("TCP" | "UDP" | "SCTP") => Ok(()),
        Some(other) => invalid(format!("{field}.protocol"), format!("'{other}' is not TCP, UDP or SCTP")),
    }
}

fn port_number(number: i32, field: impl Into<String>) -> Check {
    if (1..=65535).contains(&number) { Ok(()) } else { invalid(field, format!("{number} is not between 1 and 65535")) }
}

fn address(text: &str, field: impl Into<String>) -> Result<IpAddr, Invalid> {
    parse_ip(text).ok_or_else(|| Invalid { field: field.into(), why: format!("'{text}' is not an IP address") })
}

fn pod(pod: &Pod) -> Check {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers).enumerate();
    for (index, container) in containers {
        for (at, port) in container.ports.iter().flatten().enumerate() {
            let field = format!("spec.containers[{index}].ports[{at}]");
            protocol(port.protocol.as_deref(), &field)?;
            port_number(port.container_port, format!("{field}.containerPort"))?;
            if let Some(name) = port.name.as_deref().filter(|name| !is_port_name(name)) {
                return invalid(
                    format!("{field}.name"),
                    format!("'{name}' is not a port name: 15 lower case letters, digits and '-'"),
                );
            }
        }
    }
    let ips = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
    ips.enumerate().try_for_each(|(index, ip)| address(&ip.ip, format!("status.podIPs[{index}].ip")).map(drop))
}

fn node(node: &Node) -> Check {
    let cidrs = node.spec.iter().flat_map(|spec| spec.pod_cidrs.iter().flatten());
    cidrs.enumerate().try_for_each(|(index, text)| match text.parse::<IpNet>() {
        Ok(net) if net == net.trunc() => Ok(()),
        _ => invalid(format!("spec.podCIDRs[{index}]"), format!("'{text}' is not a prefix such as 10.0.0.0/24")),
    })
}

fn service(service: &mut Service) -> Check {
    let Some(spec) = &mut service.spec else { return invalid("spec", "missing") };
    if spec.type_.as_deref() == Some("ExternalName") {
        return match spec.external_name.as_deref() {
            None | Some("") => invalid("spec.externalName", "required where type is ExternalName"),
            Some(_) => Ok(()),
        };
    }
    service_type(spec)?;
    cluster_ips(spec)?;
    let headless = spec.cluster_ip.as_deref() == Some("None");
    if spec.ports.iter().flatten().next().is_none() && !headless {
        return invalid("spec.ports", "at least one port is required");
    }
    service_ports(spec.ports.as_deref().unwrap_or_default())
}

fn service_type(spec: &ServiceSpec) -> Check {
    match spec.type_.as_deref() {
        None | Some("ClusterIP" | "NodePort" | "LoadBalancer") => {}
        Some(other) => {
            return invalid("spec.type", format!("'{other}' is not ClusterIP, NodePort, LoadBalancer or ExternalName"));
        }
    }
    for (field, policy) in [
        ("spec.internalTrafficPolicy", &spec.internal_traffic_policy),
        ("spec.externalTrafficPolicy", &spec.external_traffic_policy),
    ] {
        if let Some(other) = policy.as_deref().filter(|policy| !matches!(*policy, "Cluster" | "Local")) {
            return invalid(field, format!("'{other}' is not Cluster or Local"));
        }
    }
    for (index, text) in spec.external_ips.iter().flatten().enumerate() {
        address(text, format!("spec.externalIPs[{index}]"))?;
    }
    Ok(())
}

/// In a cluster the API server gives NodePorts out, and takes none beyond its range; nobody else is to have one of the host's.
fn node_port(port: &ServicePort, field: &str) -> Check {
    match port.node_port {
        None | Some(0 | 1024..=65_535) => Ok(()),
        Some(other) => invalid(format!("{field}.nodePort"), format!("{other} is not between 1024 and 65535")),
    }
}

/// In a cluster the API server gives addresses out; nobody does so in a folder.
fn cluster_ips(spec: &mut ServiceSpec) -> Check {
    let mut all = spec.cluster_ips.clone().unwrap_or_default();
    match (spec.cluster_ip.clone().filter(|ip| !ip.is_empty()), all.first()) {
        (None, None) => {
            return invalid(
                "spec.clusterIPs",
                "required: no API server gives out addresses here; choose one of the service CIDR, or None",
            );
        }
        (Some(first), None) => all.push(first),
        (Some(ip), Some(first)) if ip != *first => {
            return invalid("spec.clusterIP", format!("'{ip}' is not the first of spec.clusterIPs"));
        }
        _ => {}
    }
    if all.len() > 2 {
        return invalid("spec.clusterIPs", "more than one address per family");
    }
    let mut families = BTreeSet::new();
    for (index, text) in all.iter().enumerate().filter(|(_, text)| *text != "None") {
        let ip = address(text, format!("spec.clusterIPs[{index}]"))?;
        if !families.insert(ip.is_ipv4()) {
            return invalid(format!("spec.clusterIPs[{index}]"), "a second address of the same family");
        }
    }
    if all.len() > 1 && families.len() < 2 {
        return invalid("spec.clusterIPs", "None may not stand beside an address");
    }
    spec.cluster_ip = all.first().cloned();
    spec.cluster_ips = Some(all);
    Ok(())
}

fn service_ports(ports: &[ServicePort]) -> Check {
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        protocol(port.protocol.as_deref(), &field)?;
        port_number(port.port, format!("{field}.port"))?;
        node_port(port, &field)?;
        match &port.target_port {
            Some(IntOrString::Int(number)) => port_number(*number, format!("{field}.targetPort"))?,
            Some(IntOrString::String(name)) if !is_port_name(name) => {
                return invalid(
                    format!("{field}.targetPort"),
                    format!("'{name}' is not a port name: 15 lower case letters, digits and '-'"),
                );
            }
            _ => {}
        }
        let name = port.name.as_deref().unwrap_or_default();
        if ports.len() > 1 && name.is_empty() {
            return invalid(format!("{field}.name"), "required where there are several ports");
        }
        if !name.is_empty() && !is_label(name) {
            return invalid(
                format!("{field}.name"),
                format!("'{name}' is not a DNS label: lower case letters, digits and '-'"),
            );
        }
        if !names.insert(name) {
            return invalid(format!("{field}.name"), format!("'{name}' stands twice"));
        }
        if !numbers.insert((port.port, port.protocol.as_deref().unwrap_or("TCP"))) {
            return invalid(format!("{field}.port"), format!("{} stands twice with the same protocol", port.port));
        }
    }
    Ok(())
}

fn slice(slice: &EndpointSlice) -> Check {
    if !matches!(slice.address_type.as_str(), "IPv4" | "IPv6" | "FQDN") {
        return invalid("addressType", format!("'{}' is not IPv4, IPv6 or FQDN", slice.address_type));
    }
    let mut names = BTreeSet::new();
    for (index, port) in slice.ports.iter().flatten().enumerate() {
        let field = format!("ports[{index}]");
        protocol(port.protocol.as_deref(), &field)?;
        port.port.map_or(Ok(()), |number| port_number(number, format!("{field}.port")))?;
        if !names.insert(port.name.as_deref().unwrap_or_default()) {
            return invalid(format!("{field}.name"), "stands twice");
        }
    }
    for (index, endpoint) in slice.endpoints.iter().flatten().enumerate() {
        if endpoint.addresses.is_empty() {
            return invalid(format!("endpoints[{index}].addresses"), "at least one address is required");
        }
        for text in endpoint.addresses.iter().filter(|_| slice.address_type != "FQDN") {
            endpoint_address(text, &slice.address_type, &format!("endpoints[{index}].addresses"))?;
        }
    }
    Ok(())
}

fn endpoint_address(text: &str, address_type: &str, field: &str) -> Check {
    let ip = address(text, field)?;
    if ip.is_ipv4() != (address_type == "IPv4") {
        return invalid(field, format!("'{text}' is not an {address_type} address"));
    }
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || link_local {
        return invalid(field, format!("'{text}' may not be unspecified, loopback, link-local or multicast"));
    }
    Ok(())
}

fn policy(policy: &NetworkPolicy) -> Check {
    let Some(spec) = &policy.spec else { return invalid("spec", "missing") };
    let froms = spec.ingress.iter().flatten().map(|rule| ("ingress", "from", rule.from.as_ref()));
    let tos = spec.egress.iter().flatten().map(|rule| ("egress", "to", rule.to.as_ref()));
    for (index, (direction, list, peers)) in froms.enumerate().chain(tos.enumerate()) {
        for (at, peer) in peers.into_iter().flatten().enumerate() {
            let Some(block) = &peer.ip_block else { continue };
            for text in std::iter::once(&block.cidr).chain(block.except.iter().flatten()) {
                // New objects may not have host bits (KEP-4858).
                if let Some(net) = text.parse::<IpNet>().ok().filter(|net| *net != net.trunc()) {
                    let field = format!("spec.{direction}[{index}].{list}[{at}].ipBlock");
                    return invalid(field, format!("'{text}' has host bits; did you mean {}?", net.trunc()));
                }
            }
        }
    }
    let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
    match check_policy(policy.spec.as_ref(), namespace).first() {
        None => Ok(()),
        Some(problem) => {
            let (field, why) = problem.split_once(": ").unwrap_or(("spec", problem));
            invalid(field, why)
        }
    }
}

fn service_cidr(object: &ServiceCIDR) -> Check {
    let cidrs = object.spec.as_ref().and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default();
    if cidrs.is_empty() {
        return invalid("spec.cidrs", "required: one prefix per family, such as 10.96.0.0/16");
    }
    let mut families = BTreeSet::new();
    for (index, text) in cidrs.iter().enumerate() {
        let field = format!("spec.cidrs[{index}]");
        match text.parse::<IpNet>() {
            Ok(net) if net == net.trunc() => {
                if !families.insert(net.addr().is_ipv4()) {
                    return invalid(field, "a second prefix of the same family; make another ServiceCIDR for it");
                }
            }
            Ok(net) => return invalid(field, format!("'{text}' has host bits; did you mean {}?", net.trunc())),
            Err(_) => return invalid(field, format!("'{text}' is not a prefix such as 10.96.0.0/16")),
        }
    }
    Ok(())
}
