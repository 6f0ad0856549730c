// SPDX-License-Identifier: Apache-2.0

//! Kubernetes objects as the tests need them.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

fn labels_of(labels: &[(&str, &str)]) -> Value {
    json!(labels.iter().copied().collect::<BTreeMap<_, _>>())
}

fn split(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or(("default", name))
}

/// A Namespace.
#[must_use]
pub fn namespace(name: &str, labels: &[(&str, &str)]) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels_of(labels)}})
}

/// A Pod `namespace/name` on `node`.
#[must_use]
pub fn pod(name: &str, node: &str, labels: &[(&str, &str)]) -> Value {
    let (namespace, name) = split(name);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": labels_of(labels)},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "main"}]},
    })
}

/// A dual-stack Service `namespace/name` with two cluster addresses, for the pods that `selector` matches; port and
/// protocols are one number for TCP and UDP.
#[must_use]
pub fn service(name: &str, addresses: [&str; 2], port: u16, target: u16, selector: &[(&str, &str)]) -> Value {
    let (namespace, name) = split(name);
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "type": "ClusterIP", "clusterIP": addresses[0], "clusterIPs": addresses,
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
            "selector": labels_of(selector),
            "ports": [
                {"name": "tcp", "protocol": "TCP", "port": port, "targetPort": target},
                {"name": "udp", "protocol": "UDP", "port": port, "targetPort": target},
            ],
        },
    })
}

/// Gives all ports of a Service this NodePort.
pub fn set_node_port(service: &mut Value, number: u16) {
    for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
        port["nodePort"] = json!(number);
    }
}

/// A ServiceCIDR of these prefixes.
#[must_use]
pub fn service_cidr(name: &str, cidrs: &[&str]) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": name}, "spec": {"cidrs": cidrs},
    })
}

/// A NetworkPolicy `namespace/name` that lets only pods of the same namespace that `from` matches in to those that `to`
/// matches.
#[must_use]
pub fn ingress_policy(name: &str, to: &[(&str, &str)], from: &[(&str, &str)]) -> Value {
    let (namespace, name) = split(name);
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "podSelector": {"matchLabels": labels_of(to)},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": labels_of(from)}}]}],
        },
    })
}

/// The file of an object in the manifests' folder.
pub(crate) fn file_name(object: &Value) -> Result<String> {
    let kind = object["kind"].as_str().context("the object has no kind")?.to_lowercase();
    let name = object["metadata"]["name"].as_str().context("the object has no name")?;
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("cluster");
    Ok(format!("{kind}-{namespace}-{name}.yaml"))
}
