// SPDX-License-Identifier: Apache-2.0
//! EndpointSlices from Service selectors: what the EndpointSlice controller does in a cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Pod, Service, ServicePort, ServiceSpec},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use crate::{
    model::{ObjectKey, address::parse_ip},
    watch::dir::object::Written,
};

type Pods<'a> = BTreeMap<&'a str, Vec<&'a Pod>>;

/// Slices of every Service that has a selector and an address of its own.
pub(crate) fn slices(snapshot: &Written) -> Vec<EndpointSlice> {
    let mut pods = Pods::new();
    for (key, pod) in &snapshot.pods {
        pods.entry(&key.namespace).or_default().push(pod);
    }
    snapshot.services.iter().flat_map(|(key, service)| of_service(key, service, &pods)).collect()
}

fn of_service(key: &ObjectKey, service: &Arc<Service>, pods: &Pods<'_>) -> Vec<EndpointSlice> {
    let Some(spec) = service.spec.as_ref().filter(|spec| has_slices(spec)) else { return Vec::new() };
    let Some(selector) = spec.selector.as_ref().filter(|selector| !selector.is_empty()) else { return Vec::new() };
    let selected = |pod: &&&Pod| {
        let labels = pod.metadata.labels.as_ref();
        selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    };
    let pods: Vec<&Pod> =
        pods.get(&*key.namespace).into_iter().flatten().filter(selected).filter(|pod| is_alive(pod)).copied().collect();
    let vips = spec.cluster_ips.iter().flatten().filter_map(|text| parse_ip(text));
    let families: BTreeSet<bool> = vips.map(|vip| vip.is_ipv4()).collect();
    families.into_iter().flat_map(|ipv4| of_family(key, spec, &pods, ipv4)).collect()
}

fn has_slices(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() != Some("ExternalName") && spec.cluster_ip.as_deref() != Some("None")
}

fn is_alive(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

/// One slice for all pods that resolve the Service's ports to the same numbers.
fn of_family(key: &ObjectKey, spec: &ServiceSpec, pods: &[&Pod], ipv4: bool) -> Vec<EndpointSlice> {
    let publish_all = spec.publish_not_ready_addresses.unwrap_or(false);
    let ports = spec.ports.as_deref().unwrap_or_default();
    let mut groups: BTreeMap<Vec<Option<i32>>, Vec<Endpoint>> = BTreeMap::new();
    for pod in pods {
        let Some(ip) = address(pod, ipv4) else { continue };
        let numbers: Vec<Option<i32>> = ports.iter().map(|port| target(port, pod)).collect();
        let endpoint = Endpoint {
            addresses: vec![ip.to_string()],
            conditions: Some(conditions(publish_all || is_ready(pod))),
            node_name: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            target_ref: Some(ObjectReference {
                kind: Some("Pod".to_owned()),
                namespace: pod.metadata.namespace.clone(),
                name: pod.metadata.name.clone(),
                ..ObjectReference::default()
            }),
            ..Endpoint::default()
        };
        groups.entry(numbers).or_default().push(endpoint);
    }
    let family = if ipv4 { "IPv4" } else { "IPv6" };
    let slice = |(index, (numbers, endpoints)): (usize, (Vec<Option<i32>>, Vec<Endpoint>))| EndpointSlice {
        address_type: family.to_owned(),
        endpoints: Some(endpoints),
        metadata: ObjectMeta {
            name: Some(format!("{}-{}-{index}", key.name, family.to_lowercase())),
            namespace: Some(key.namespace.to_string()),
            labels: Some(BTreeMap::from([
                ("kubernetes.io/service-name".to_owned(), key.name.to_string()),
                ("endpointslice.kubernetes.io/managed-by".to_owned(), "weft".to_owned()),
            ])),
            ..ObjectMeta::default()
        },
        ports: Some(ports.iter().zip(numbers).filter_map(|(port, number)| slice_port(port, number)).collect()),
    };
    groups.into_iter().enumerate().map(slice).collect()
}

fn slice_port(port: &ServicePort, number: Option<i32>) -> Option<EndpointPort> {
    Some(EndpointPort {
        name: port.name.clone(),
        port: Some(number?),
        protocol: port.protocol.clone(),
        ..EndpointPort::default()
    })
}

fn conditions(ready: bool) -> EndpointConditions {
    EndpointConditions { ready: Some(ready), serving: Some(ready), terminating: Some(false) }
}

/// A pod without conditions is ready once it has an address.
fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().all(|condition| condition.type_ != "Ready" || condition.status == "True")
}

fn address(pod: &Pod, ipv4: bool) -> Option<IpAddr> {
    let ips = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
    ips.filter_map(|ip| parse_ip(&ip.ip)).find(|ip| ip.is_ipv4() == ipv4)
}

/// The port on this pod; none where it has no port of that name and protocol.
fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let name = match &port.target_port {
        None => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports
        .find(|port| port.name.as_ref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol)
        .map(|port| port.container_port)
}
