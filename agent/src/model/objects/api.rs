// SPDX-License-Identifier: Apache-2.0
//! A pod as the API has it, as far as the plan reads it: what it is deserialised from, and written down as.

use std::{collections::BTreeSet, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::{Meta, PodPort};
use crate::model::{Name, address::parse_ip, protocol};

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Pod {
    metadata: Meta,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
    #[serde(deserialize_with = "Name::deserialize_shared")]
    node_name: Option<Name>,
    host_network: Option<bool>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    ports: Option<Vec<Port>>,
    restart_policy: Option<String>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Port {
    #[serde(deserialize_with = "Name::deserialize_shared")]
    name: Option<Name>,
    container_port: i32,
    protocol: Option<String>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<Address>>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct Address {
    ip: String,
}

impl From<Pod> for super::Pod {
    fn from(Pod { metadata, spec, status }: Pod) -> Self {
        let (spec, status) = (spec.unwrap_or_default(), status.unwrap_or_default());
        let sidecars = spec
            .init_containers
            .iter()
            .flatten()
            .filter(|container| container.restart_policy.as_deref() == Some("Always"));
        let containers = spec.containers.iter().flatten().chain(sidecars);
        let ports: BTreeSet<PodPort> =
            containers.flat_map(|container| container.ports.iter().flatten()).filter_map(named).collect();
        let all = status.pod_ips.iter().flatten().map(|address| &address.ip).chain(&status.pod_ip);
        let addresses: BTreeSet<IpAddr> = all.filter_map(|text| parse_ip(text)).collect();
        Self {
            metadata,
            node: spec.node_name,
            host_network: spec.host_network.unwrap_or(false),
            is_over: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            addresses: addresses.into_iter().collect(),
            ports: ports.into_iter().collect(),
        }
    }
}

fn named(port: &Port) -> Option<PodPort> {
    let protocol = protocol::number(port.protocol.as_deref().unwrap_or("TCP"))?;
    Some(PodPort { name: port.name.clone()?, protocol, number: u16::try_from(port.container_port).ok()? })
}

impl From<super::Pod> for Pod {
    fn from(super::Pod { metadata, node, host_network, is_over, addresses, ports }: super::Pod) -> Self {
        let port = |PodPort { name, protocol, number }: &PodPort| Port {
            name: Some(name.clone()),
            container_port: (*number).into(),
            protocol: Some(protocol::name(*protocol).to_owned()),
        };
        let container = Container { ports: Some(ports.iter().map(port).collect()), restart_policy: None };
        Self {
            metadata,
            spec: Some(Spec {
                containers: (!ports.is_empty()).then(|| vec![container]),
                init_containers: None,
                node_name: node,
                host_network: host_network.then_some(true),
            }),
            status: Some(Status {
                phase: is_over.then(|| "Succeeded".to_owned()),
                pod_ip: None,
                pod_ips: Some(addresses.iter().map(|address| Address { ip: address.to_string() }).collect()),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json, to_value};

    use super::super::Pod;

    #[test]
    fn a_pod_that_was_written_down_is_the_same() {
        let pod = json!({
            "metadata": {"namespace": "x", "name": "a", "uid": "0a1b2c3d-0000-4000-8000-00000000000f", "labels": {"app": "a"}},
            "spec": {
                "nodeName": "n", "hostNetwork": true,
                "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 80}, {"containerPort": 81}]}],
                "initContainers": [
                    {"restartPolicy": "Always", "ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"}]},
                    {"ports": [{"name": "never", "containerPort": 1}]},
                ],
            },
            "status": {"phase": "Failed", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}, {"ip": "what"}]},
        });
        let pod: Pod = from_value(pod).unwrap();
        let ports: Vec<_> = pod.ports.iter().map(|port| (port.name.as_str(), port.protocol, port.number)).collect();
        assert_eq!(ports, [("dns", 17, 53), ("web", 6, 80)]);
        assert_eq!((pod.addresses.len(), pod.host_network, pod.is_over), (2, true, true));
        assert_eq!(pod.node.as_deref(), Some("n"));
        assert_eq!(pod.metadata.uid.as_ref().unwrap().to_string(), "0a1b2c3d-0000-4000-8000-00000000000f");
        assert_eq!(from_value::<Pod>(to_value(&pod).unwrap()).unwrap(), pod);
        let empty: Pod =
            from_value(json!({"metadata": {"name": "b", "uid": "0A1B"}, "spec": null, "status": null})).unwrap();
        assert_eq!((empty.node.clone(), empty.metadata.uid.clone().unwrap().to_string()), (None, "0A1B".to_owned()));
    }
}
