// SPDX-License-Identifier: Apache-2.0
//! Pods and endpoints as the API has them, as far as the plan reads them: what they are deserialised from, and written down as.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};

use super::{Meta, PodPort, Readiness};
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

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Endpoint {
    addresses: FirstAddress,
    conditions: Option<Conditions>,
    #[serde(deserialize_with = "Name::deserialize_shared")]
    node_name: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_ref: Option<TargetRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hints: Option<Hints>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct TargetRef {
    kind: String,
    #[serde(deserialize_with = "Name::deserialize_shared")]
    name: Option<Name>,
}

impl TargetRef {
    const POD: &str = "Pod";
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Hints {
    #[serde(skip_serializing_if = "Option::is_none")]
    for_nodes: Option<Vec<Hint>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    for_zones: Option<Vec<Hint>>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct Hint {
    #[serde(deserialize_with = "Name::deserialize_shared")]
    name: Option<Name>,
}

impl Hints {
    fn of(super::Hints { nodes, zones }: &super::Hints) -> Self {
        let hints = |names: &[Name]| {
            let hints = names.iter().map(|name| Hint { name: Some(name.clone()) });
            (!names.is_empty()).then(|| hints.collect())
        };
        Self { for_nodes: hints(nodes), for_zones: hints(zones) }
    }
}

/// None: nobody is named.
impl From<Hints> for Option<Box<super::Hints>> {
    fn from(Hints { for_nodes, for_zones }: Hints) -> Self {
        let names = |hints: Option<Vec<Hint>>| hints.into_iter().flatten().filter_map(|hint| hint.name).collect();
        let hints = super::Hints { nodes: names(for_nodes), zones: names(for_zones) };
        (hints != super::Hints::default()).then(|| Box::new(hints))
    }
}

#[derive(Clone, Copy, Default, Deserialize, Serialize)]
#[serde(default)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

/// Of a list of addresses the first, where it is one.
#[derive(Default)]
struct FirstAddress(Option<IpAddr>);

/// Text that may be an address; it is not copied.
#[derive(Default)]
struct Parsed(Option<IpAddr>);

impl<'de> Deserialize<'de> for FirstAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Self::default())
    }
}

impl<'de> Visitor<'de> for FirstAddress {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of addresses")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self, A::Error> {
        let Parsed(first) = list.next_element()?.unwrap_or_default();
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Self(first))
    }
}

impl Serialize for FirstAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0)
    }
}

impl<'de> Deserialize<'de> for Parsed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Self::default())
    }
}

impl Visitor<'_> for Parsed {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self, E> {
        Ok(Self(parse_ip(text)))
    }
}

impl From<Endpoint> for super::Endpoint {
    fn from(endpoint: Endpoint) -> Self {
        let Endpoint { addresses: FirstAddress(address), conditions, node_name, target_ref, hints } = endpoint;
        let readiness = readiness_of(conditions.unwrap_or_default());
        let pod = target_ref.filter(|target| target.kind == TargetRef::POD).and_then(|target| target.name);
        Self { address, readiness, node: node_name, pod, hints: hints.and_then(Into::into) }
    }
}

/// Absent conditions: `ready` is true, `serving` is as `ready`, `terminating` is false (discovery/v1 types).
fn readiness_of(Conditions { ready, serving, terminating }: Conditions) -> Option<Readiness> {
    let ready = ready.unwrap_or(true);
    let serving = serving.unwrap_or(ready);
    match (ready, serving, terminating.unwrap_or(false)) {
        (true, ..) => Some(Readiness::Ready),
        (false, true, true) => Some(Readiness::Terminating),
        (false, true, false) => Some(Readiness::Serving),
        (false, false, _) => None,
    }
}

impl From<super::Endpoint> for Endpoint {
    fn from(super::Endpoint { address, readiness, node, pod, hints }: super::Endpoint) -> Self {
        let is_terminating = readiness == Some(Readiness::Terminating);
        let conditions = Conditions {
            ready: Some(readiness == Some(Readiness::Ready)),
            serving: Some(readiness.is_some()),
            terminating: Some(is_terminating),
        };
        let hints = hints.as_deref().map(Hints::of);
        let target_ref = pod.map(|name| TargetRef { kind: TargetRef::POD.to_owned(), name: Some(name) });
        Self { addresses: FirstAddress(address), conditions: Some(conditions), node_name: node, target_ref, hints }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, from_value, json, to_value};

    use super::super::{Endpoint, Pod, Readiness};

    #[rstest]
    #[case::ready(json!({}), Some(Readiness::Ready))]
    #[case::no_conditions(Value::Null, Some(Readiness::Ready))]
    #[case::not_ready(json!({"ready": false}), None)]
    #[case::terminating(json!({"ready": false, "serving": true, "terminating": true}), Some(Readiness::Terminating))]
    #[case::serving_alone(json!({"ready": false, "serving": true}), Some(Readiness::Serving))]
    fn an_endpoint_that_was_written_down_is_the_same(#[case] conditions: Value, #[case] readiness: Option<Readiness>) {
        for (addresses, first) in
            [(json!(["10.0.0.1", "what"]), Some("10.0.0.1")), (json!(["what", "10.0.0.1"]), None), (json!([]), None)]
        {
            let hints = json!({"forZones": [{"name": "a"}, {"name": "b"}], "forNodes": []});
            let endpoint = json!({"addresses": addresses, "conditions": conditions, "nodeName": "n", "zone": "z",
                "targetRef": {"kind": "Pod", "name": "p", "uid": "u"}, "hints": hints});
            let endpoint: Endpoint = from_value(endpoint).unwrap();
            assert_eq!(endpoint.address, first.map(|text| text.parse().unwrap()));
            assert_eq!((endpoint.readiness, endpoint.node.as_deref()), (readiness, Some("n")));
            assert_eq!(endpoint.pod.as_deref(), Some("p"));
            assert_eq!(endpoint.hints.as_ref().map(|hints| (hints.nodes.len(), hints.zones.len())), Some((0, 2)));
            assert_eq!(from_value::<Endpoint>(to_value(&endpoint).unwrap()).unwrap(), endpoint);
        }
    }

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
