// SPDX-License-Identifier: Apache-2.0

//! A world as the agents read it: Kubernetes objects, all in one file, so that no agent ever sees half of a change.

use std::net::IpAddr;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::world::{
    Affinity, Direction, Endpoint, Exposure, Expression, Hints, Ingress, IpMode, Node, Peer, Pod, Policy, PolicyPort,
    PortRef, Protocol, Rule, Selector, Service, ServiceKind, ServicePort, Slice, World,
};

/// The documents of `world` for agents on the nodes `real`, and a last one that says which state this is.
pub(super) fn documents(world: &World, real: &[&str], generation: u32) -> Result<String> {
    let mut objects = Vec::new();
    objects.extend(world.nodes.iter().map(|node| self::node(node, real.contains(&node.name.as_str()))));
    for namespace in &world.namespaces {
        let metadata = json!({"name": namespace.name, "labels": namespace.labels});
        objects.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}));
    }
    objects.extend(world.pods.iter().map(pod));
    objects.extend(world.services.iter().map(service));
    objects.extend(world.slices.iter().map(slice));
    objects.extend(world.policies.iter().map(policy));
    objects.push(marker(generation));
    let texts = objects.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    Ok(texts.join("\n---\n"))
}

/// Name of the Service that marks a state: who reports it has read the whole file.
pub(super) fn marker_name(generation: u32) -> String {
    format!("generation-{generation}")
}

fn marker(generation: u32) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "oracle", "name": marker_name(generation)},
        "spec": {"clusterIP": "10.96.255.254", "ports": [{"port": 1}]},
    })
}

/// What agents tell of themselves is left to them.
fn node(node: &Node, is_real: bool) -> Value {
    let mut object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name}});
    if let Some(zone) = &node.zone {
        object["metadata"]["labels"] = json!({"topology.kubernetes.io/zone": zone});
    }
    if !is_real {
        let addresses = node.addresses.iter().map(|address| json!({"type": "InternalIP", "address": address}));
        object["spec"] = json!({"podCIDRs": node.pod_cidrs});
        object["status"] = json!({"addresses": addresses.collect::<Vec<_>>()});
    }
    object
}

fn pod(pod: &Pod) -> Value {
    let ports: Vec<Value> = pod
        .ports
        .iter()
        .map(|port| json!({"name": port.name, "protocol": protocol(port.protocol), "containerPort": port.port}))
        .collect();
    // Its containers have them in turn.
    let container = |name: &str, number: usize| -> Value {
        let own: Vec<&Value> = ports.iter().skip(number).step_by(3).collect();
        json!({"name": name, "image": name, "ports": own})
    };
    let mut sidecar = container("sidecar", 2);
    sidecar["restartPolicy"] = json!("Always");
    let mut object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": pod.namespace, "name": pod.name, "labels": pod.labels},
        "spec": {"nodeName": pod.node, "containers": [container("main", 0), container("other", 1)], "initContainers": [sidecar]},
    });
    if pod.host_network {
        object["spec"]["hostNetwork"] = json!(true);
    }
    let ips: Vec<Value> = pod.addresses.iter().map(|ip| json!({"ip": ip})).collect();
    object["status"] = json!({"podIPs": ips, "phase": if pod.finished { "Succeeded" } else { "Running" }});
    object
}

fn service(service: &Service) -> Value {
    let metadata =
        json!({"namespace": service.namespace, "name": service.name, "creationTimestamp": time(service.created)});
    if service.exposure.kind == ServiceKind::ExternalName {
        let spec = json!({"type": "ExternalName", "externalName": "service.example"});
        return json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec});
    }
    let ports: Vec<Value> = service.ports.iter().map(service_port).collect();
    let none = json!("None");
    let first = service.addresses.first().map_or(none, |address| json!(address));
    let mut object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": metadata,
        "spec": {"type": "ClusterIP", "clusterIP": first, "ports": ports},
    });
    if !service.addresses.is_empty() {
        object["spec"]["clusterIPs"] = json!(service.addresses);
    }
    if service.local {
        object["spec"]["internalTrafficPolicy"] = json!("Local");
    }
    if service.affinity != Affinity::None {
        object["spec"]["sessionAffinity"] = json!("ClientIP");
    }
    if let Affinity::ClientIpFor(seconds) = service.affinity {
        object["spec"]["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
    }
    if service.foreign {
        object["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "another"});
    }
    expose(service, &mut object);
    object
}

fn service_port(port: &ServicePort) -> Value {
    object([
        ("name", Some(json!(port.name))),
        ("protocol", Some(json!(protocol(port.protocol)))),
        ("port", Some(json!(port.port))),
        ("nodePort", port.node_port.map(|number| json!(number))),
    ])
}

fn expose(service: &Service, object: &mut Value) {
    let Exposure { kind, local, external_ips, ingress, ranges, distribution, class } = &service.exposure;
    let spec = &mut object["spec"];
    spec["type"] = json!(match kind {
        ServiceKind::ClusterIp => "ClusterIP",
        ServiceKind::NodePort => "NodePort",
        ServiceKind::LoadBalancer => "LoadBalancer",
        ServiceKind::ExternalName => "ExternalName",
    });
    if *local {
        spec["externalTrafficPolicy"] = json!("Local");
    }
    if !external_ips.is_empty() {
        spec["externalIPs"] = json!(external_ips);
    }
    if !ranges.is_empty() {
        spec["loadBalancerSourceRanges"] = json!(ranges);
    }
    if let Some(distribution) = distribution {
        spec["trafficDistribution"] = json!(distribution);
    }
    if let Some(class) = class {
        spec["loadBalancerClass"] = json!(class);
    }
    if *kind == ServiceKind::LoadBalancer {
        if service.ports.iter().all(|port| port.node_port.is_none()) {
            spec["allocateLoadBalancerNodePorts"] = json!(false);
        }
        let ingress: Vec<Value> = ingress.iter().map(self::ingress).collect();
        object["status"] = json!({"loadBalancer": {"ingress": ingress}});
    }
}

fn ingress(ingress: &Ingress) -> Value {
    let mode = ingress.mode.map(|mode| if mode == IpMode::Vip { "VIP" } else { "Proxy" });
    match ingress.address {
        Some(address) => object([("ip", Some(json!(address))), ("ipMode", mode.map(|mode| json!(mode)))]),
        None => json!({"hostname": "balancer.example"}),
    }
}

/// That second of some day.
fn time(second: u32) -> String {
    format!("2026-01-02T{:02}:{:02}:{:02}Z", second / 3600 % 24, second / 60 % 60, second % 60)
}

fn slice(slice: &Slice) -> Value {
    let ports: Vec<Value> = slice
        .ports
        .iter()
        .map(|port| {
            let name = port.name.as_ref().map(|name| json!(name));
            let number = port.port.map(|number| json!(number));
            object([("name", name), ("protocol", port.protocol.map(|p| json!(protocol(p)))), ("port", number)])
        })
        .collect();
    let endpoints: Vec<Value> = slice.endpoints.iter().map(endpoint).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": slice.namespace, "name": slice.name,
            "labels": {"kubernetes.io/service-name": slice.service},
        },
        "addressType": if slice.ipv4 { "IPv4" } else { "IPv6" },
        "ports": ports, "endpoints": endpoints,
    })
}

fn endpoint(endpoint: &Endpoint) -> Value {
    let conditions = object([
        ("ready", endpoint.ready.map(|value| json!(value))),
        ("serving", endpoint.serving.map(|value| json!(value))),
        ("terminating", endpoint.terminating.map(|value| json!(value))),
    ]);
    let addresses: &[IpAddr] = &endpoint.addresses;
    object([
        ("addresses", Some(json!(addresses))),
        ("nodeName", endpoint.node.as_ref().map(|node| json!(node))),
        ("conditions", Some(conditions)),
        ("hints", (endpoint.hints != Hints::default()).then(|| hints(&endpoint.hints))),
    ])
}

fn hints(hints: &Hints) -> Value {
    let named = |names: &[String]| -> Option<Value> {
        (!names.is_empty()).then(|| names.iter().map(|name| json!({"name": name})).collect())
    };
    object([("forZones", named(&hints.zones)), ("forNodes", named(&hints.nodes))])
}

fn policy(policy: &Policy) -> Value {
    let types = policy.types.as_ref().map(|types| {
        let name = |direction: &Direction| json!(if *direction == Direction::Ingress { "Ingress" } else { "Egress" });
        Value::Array(types.iter().map(name).collect())
    });
    let rules = |rules: &Option<Vec<Rule>>, peers: &str| {
        rules.as_ref().map(|rules| Value::Array(rules.iter().map(|rule| self::rule(rule, peers)).collect()))
    };
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": policy.namespace, "name": policy.name},
        "spec": object([
            ("podSelector", Some(selector(&policy.selector))),
            ("policyTypes", types),
            ("ingress", rules(&policy.ingress, "from")),
            ("egress", rules(&policy.egress, "to")),
        ]),
    })
}

fn rule(rule: &Rule, peers: &str) -> Value {
    let list = rule.peers.as_ref().map(|peers| Value::Array(peers.iter().map(peer).collect()));
    let ports = rule.ports.as_ref().map(|ports| Value::Array(ports.iter().map(policy_port).collect()));
    object([(peers, list), ("ports", ports)])
}

fn peer(peer: &Peer) -> Value {
    match peer {
        Peer::Block { cidr, except } => json!({"ipBlock": {"cidr": cidr, "except": except}}),
        Peer::Pods { pods, namespaces } => object([
            ("podSelector", pods.as_ref().map(selector)),
            ("namespaceSelector", namespaces.as_ref().map(selector)),
        ]),
    }
}

fn policy_port(port: &PolicyPort) -> Value {
    let number = port.port.as_ref().map(|port| match port {
        PortRef::Number(number) => json!(number),
        PortRef::Name(name) => json!(name),
    });
    let protocol = port.protocol.map(|p| json!(protocol(p)));
    object([("protocol", protocol), ("port", number), ("endPort", port.end.map(|end| json!(end)))])
}

fn selector(selector: &Selector) -> Value {
    let expressions: Vec<Value> = selector
        .expressions
        .iter()
        .map(|Expression { key, operator, values }| {
            let values = (!values.is_empty()).then(|| json!(values));
            object([("key", Some(json!(key))), ("operator", Some(json!(format!("{operator:?}")))), ("values", values)])
        })
        .collect();
    json!({"matchLabels": selector.labels, "matchExpressions": expressions})
}

/// Its name.
pub(super) fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
        // Nobody writes it in an object.
        Protocol::Echo => "ICMP",
    }
}

/// What is not there is not written.
fn object<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let fields = fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    Value::Object(fields.collect::<Map<_, _>>())
}
