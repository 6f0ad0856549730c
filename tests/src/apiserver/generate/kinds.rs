// SPDX-License-Identifier: Apache-2.0

//! The objects of each kind.

use serde_json::{Value, json};

use super::{Population, template::Template};
use crate::apiserver::{Generate, Head, Key};

/// What a pod's template wants to know.
const NAMES: [&str; 10] = ["NAME", "NAMESPACE", "APP", "TIER", "UID", "NODE", "HOST", "V4", "V6", "PHASE"];

/// Implements what follows from `key` and `object` for the kinds whose objects are small.
macro_rules! generate {
    ($($kind:ident: $prefix:literal, $count:expr;)+) => {
        $(impl Generate for $kind {
            fn count(&self) -> usize {
                let count: fn(&Population) -> usize = $count;
                count(&self.0)
            }

            fn head(&self, index: usize) -> Head {
                let object = self.object(index);
                let cluster_ip = object["spec"]["clusterIP"].as_str().map(str::to_owned);
                Head { key: self.key(index), labels: labels(&object), node: None, cluster_ip }
            }

            fn text(&self, index: usize) -> String {
                self.object(index).to_string()
            }

            fn find(&self, key: &Key) -> Option<usize> {
                let found = number(&key.name, $prefix).or_else(|| (self.key(0) == *key).then_some(0));
                found.filter(|index| *index < self.count() && self.key(*index) == *key)
            }
        })+
    };
}

generate! {
    Namespaces: "ns-", Population::namespaces;
    Nodes: "worker-", |population| population.nodes;
    Services: "svc-", |population| population.services;
    Slices: "svc-", |population| population.services;
    Policies: "policy-", |population| population.policies + usize::from(population.everyone);
}

fn labels(object: &Value) -> Vec<(String, String)> {
    let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
    labels.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

/// The number that follows `prefix`.
fn number(name: &str, prefix: &str) -> Option<usize> {
    let rest = name.strip_prefix(prefix)?;
    rest.split('-').next()?.parse().ok()
}

fn uid(kind: u16, number: usize) -> String {
    format!("00000000-0000-4000-8{kind:03x}-{number:012x}")
}

pub(super) struct Namespaces(pub(super) Population);

impl Namespaces {
    fn key(&self, index: usize) -> Key {
        Key::new("", &self.0.namespace(index))
    }

    fn object(&self, index: usize) -> Value {
        let name = self.0.namespace(index);
        json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {
                "name": name, "uid": uid(1, index), "resourceVersion": "1",
                "labels": {"kubernetes.io/metadata.name": name, "team": format!("team-{}", index % 10)},
            },
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
        })
    }
}

/// Name of a node that is not this one.
fn worker(node: usize) -> String {
    format!("worker-{node}")
}

pub(super) struct Nodes(pub(super) Population);

impl Nodes {
    fn name(&self, index: usize) -> String {
        if index == 0 { self.0.here.clone() } else { worker(index) }
    }

    fn key(&self, index: usize) -> Key {
        Key::new("", &self.name(index))
    }

    fn object(&self, index: usize) -> Value {
        let (v4, v6) = self.0.cidrs(index);
        let name = self.name(index);
        let address = if index == 0 { "192.168.119.1".to_owned() } else { host(index) };
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": name, "uid": uid(2, index), "resourceVersion": "1",
                "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "topology.kubernetes.io/zone": format!("zone-{}", index % 3)},
                "annotations": {"node.alpha.kubernetes.io/ttl": "300"},
            },
            "spec": {"podCIDR": format!("{v4}/24"), "podCIDRs": [format!("{v4}/24"), format!("{v6}/64")]},
            "status": {
                "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
                "capacity": {"cpu": "16", "memory": "65822456Ki", "pods": "110"},
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status"}],
                "nodeInfo": {"kernelVersion": "6.12.0", "kubeletVersion": "v1.36.0", "osImage": "Linux"},
            },
        })
    }
}

fn host(node: usize) -> String {
    format!("172.16.{}.{}", node / 250, node % 250 + 1)
}

pub(super) struct Services(pub(super) Population);

impl Services {
    fn key(&self, index: usize) -> Key {
        self.0.service(index)
    }

    fn object(&self, index: usize) -> Value {
        let Key { namespace, name } = self.key(index);
        let (vip, app) = (self.0.vip(index).to_string(), format!("app-{}", index % self.0.apps()));
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "namespace": namespace, "name": name, "uid": uid(3, index), "resourceVersion": "1",
                "creationTimestamp": "2026-01-15T09:30:00Z", "labels": {"app": app},
                "managedFields": [{
                    "manager": "helm", "operation": "Update", "apiVersion": "v1", "time": "2026-01-15T09:30:00Z", "fieldsType": "FieldsV1",
                    "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {"f:internalTrafficPolicy": {}, "f:ports": {}, "f:selector": {}, "f:sessionAffinity": {}, "f:type": {}}},
                }],
            },
            "spec": {
                "type": "ClusterIP", "clusterIP": vip, "clusterIPs": [vip], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                "internalTrafficPolicy": "Cluster", "sessionAffinity": "None", "selector": {"app": app},
                "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": "http"}],
            },
            "status": {"loadBalancer": {}},
        })
    }
}

pub(super) struct Slices(pub(super) Population);

impl Slices {
    fn key(&self, index: usize) -> Key {
        self.0.slice(index)
    }

    fn object(&self, index: usize) -> Value {
        let (key, service) = (self.key(index), self.0.service(index).name);
        let endpoints: Vec<Value> = self.0.backends(index).map(|pod| self.endpoint(pod)).collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "namespace": key.namespace, "name": key.name, "uid": uid(4, index), "resourceVersion": "1", "generation": 7,
                "labels": {"kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": service, "uid": uid(3, index), "controller": true, "blockOwnerDeletion": true}],
            },
            "endpoints": endpoints,
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        })
    }

    fn endpoint(&self, pod: usize) -> Value {
        let key = self.0.remote_pod(pod);
        json!({
            "addresses": [self.0.remote_addresses(pod).0.to_string()],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": worker(pod % (self.0.nodes - 1) + 1), "zone": "zone-1",
            "targetRef": {"kind": "Pod", "namespace": key.namespace, "name": key.name, "uid": uid(5, pod)},
        })
    }
}

pub(super) struct Policies(pub(super) Population);

impl Policies {
    fn key(&self, index: usize) -> Key {
        self.0.policy(index)
    }

    fn object(&self, index: usize) -> Value {
        let Key { namespace, name } = self.key(index);
        let local = index % self.0.pods_per_node;
        let (app, port) = self.0.admitted(index);
        let namespaces = json!({"matchLabels": {"team": format!("team-{}", app % self.0.namespaces() % 10)}});
        let pods = json!({"matchLabels": {"app": format!("app-{app}")}});
        let from = match index {
            index if index >= self.0.policies => json!([{"namespaceSelector": {}}]),
            index if index % 50 == 49 => {
                json!([{"namespaceSelector": {"matchLabels": {"team": format!("team-{}", index / 50 % 3)}}}])
            }
            _ => json!([{"namespaceSelector": namespaces, "podSelector": pods}]),
        };
        let mut spec = json!({
            "podSelector": {"matchLabels": {"app": format!("local-{local}")}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": from, "ports": [{"protocol": "TCP", "port": port}]}],
        });
        if index % 4 == 3 {
            spec["policyTypes"] = json!(["Ingress", "Egress"]);
            spec["egress"] = json!([
                {"to": [{"namespaceSelector": namespaces, "podSelector": pods}], "ports": [{"protocol": "TCP", "port": 8080}]},
                {"ports": [{"protocol": "UDP", "port": 53}]},
            ]);
        }
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": namespace, "name": name, "uid": uid(6, index), "resourceVersion": "1", "generation": 1},
            "spec": spec,
        })
    }
}

/// Pods of other nodes first, then those of this one.
pub(super) struct Pods {
    population: Population,
    remote: Template,
    local: Template,
}

impl Pods {
    pub(super) fn new(population: &Population) -> Self {
        let mut object: Value = serde_json::from_str(include_str!("pod.json")).unwrap_or_default();
        let remote = Template::new(&object.to_string(), &NAMES);
        // Of this node's only the agent knows addresses, until the kubelet tells them.
        if let Some(status) = object["status"].as_object_mut() {
            status.remove("podIP");
            status.remove("podIPs");
        }
        Self { population: population.clone(), remote, local: Template::new(&object.to_string(), &NAMES) }
    }

    /// The number of a local pod.
    fn local(&self, index: usize) -> Option<usize> {
        index.checked_sub(self.population.remote_pods())
    }

    fn key(&self, index: usize) -> Key {
        match self.local(index) {
            Some(number) => self.population.local_pod(number),
            None => self.population.remote_pod(index),
        }
    }

    fn app(&self, index: usize) -> String {
        self.local(index)
            .map_or_else(|| format!("app-{}", self.population.app(index)), |number| format!("local-{number}"))
    }
}

impl Generate for Pods {
    fn count(&self) -> usize {
        self.population.pods()
    }

    fn head(&self, index: usize) -> Head {
        let node = match self.local(index) {
            Some(_) => self.population.here.clone(),
            None => worker(index % (self.population.nodes - 1) + 1),
        };
        let labels = [("app", self.app(index)), ("tier", format!("t{}", index % 5))];
        let fixed = [("pod-template-hash", "6d5f8c7b9"), ("app.kubernetes.io/part-of", "scale")];
        let labels = labels.into_iter().chain(fixed.map(|(key, value)| (key, value.to_owned())));
        Head {
            key: self.key(index),
            labels: labels.map(|(key, value)| (key.to_owned(), value)).collect(),
            node: Some(node),
            cluster_ip: None,
        }
    }

    fn text(&self, index: usize) -> String {
        let Head { key, node, .. } = self.head(index);
        let (app, tier, node, uid) =
            (self.app(index), format!("t{}", index % 5), node.unwrap_or_default(), uid(5, index));
        let number = index % (self.population.nodes - 1) + 1;
        if self.local(index).is_some() {
            let values = [&key.name, &key.namespace, &app, &tier, &uid, &node, "192.168.119.1", "", "", "Pending"];
            return self.local.fill(&values);
        }
        let (v4, v6) = self.population.remote_addresses(index);
        let (v4, v6, host) = (v4.to_string(), v6.to_string(), host(number));
        self.remote.fill(&[&key.name, &key.namespace, &app, &tier, &uid, &node, &host, &v4, &v6, "Running"])
    }

    fn find(&self, key: &Key) -> Option<usize> {
        let local = number(&key.name, "local-").map(|number| number + self.population.remote_pods());
        let index = local.or_else(|| number(&key.name, "pod-"))?;
        Some(index).filter(|index| *index < self.count() && self.key(*index) == *key)
    }
}
