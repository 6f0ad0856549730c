// SPDX-License-Identifier: Apache-2.0
//! The objects of the API with what the plan reads, and nothing else: they are deserialised directly, so that memory follows
//! the cluster's size and not the size of its manifests, and an update of what nobody reads (heartbeats, resource versions) is
//! no change. Fields are named and nested as in the API.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

pub use k8s_openapi::api::networking::v1::NetworkPolicySpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ObjectKey;

/// On the API's copy of a static pod: the uid that the kubelet and the container runtime know it by.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Sets of labels, each once: most pods share theirs with others.
static KNOWN: LazyLock<Mutex<HashSet<Arc<Labels>>>> = LazyLock::new(Mutex::default);

/// The one copy of these labels.
fn interned(labels: Labels) -> Arc<Labels> {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(labels) = known.get(&labels) {
        return labels.clone();
    }
    if known.len() == known.capacity() {
        known.retain(|labels| Arc::strong_count(labels) > 1);
    }
    let labels = Arc::new(labels);
    known.insert(labels.clone());
    labels
}

fn labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Arc<Labels>>, D::Error> {
    Ok(Option::<Labels>::deserialize(deserializer)?.map(interned))
}

fn write_labels<S: Serializer>(labels: &Option<Arc<Labels>>, serializer: S) -> Result<S::Ok, S::Error> {
    labels.as_deref().serialize(serializer)
}

/// Of the annotations only the one that counts.
fn annotations<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<Labels>>, D::Error> {
    let mut annotations = Option::<Labels>::deserialize(deserializer)?.unwrap_or_default();
    annotations.retain(|key, _| key == MIRROR_ANNOTATION);
    Ok((!annotations.is_empty()).then(|| Box::new(annotations)))
}

/// `metadata`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    /// Name.
    #[serde(default)]
    pub name: String,
    /// Namespace; none: cluster-scoped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Uid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Box<str>>,
    /// Labels, shared with other objects that have the same.
    #[serde(
        default,
        deserialize_with = "labels",
        serialize_with = "write_labels",
        skip_serializing_if = "Option::is_none"
    )]
    pub labels: Option<Arc<Labels>>,
    /// The annotation of a static pod's copy.
    #[serde(default, deserialize_with = "annotations", skip_serializing_if = "Option::is_none")]
    pub annotations: Option<Box<Labels>>,
    /// Which state of it this is; the watcher takes it out.
    #[serde(default, skip_serializing)]
    pub resource_version: Option<String>,
    /// When it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<Time>,
    /// When it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_timestamp: Option<Time>,
}

impl Meta {
    /// The object's key.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(self.namespace.as_deref().unwrap_or_default(), &self.name)
    }

    /// The uid that the container runtime knows a static pod by.
    #[must_use]
    pub fn mirrored(&self) -> Option<&str> {
        self.annotations.as_ref()?.get(MIRROR_ANNOTATION).map(String::as_str)
    }
}

macro_rules! object {
    ($(#[$doc:meta])* $Name:ident { $($(#[$field_doc:meta])* $field:ident: $Type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $Name {
            $($(#[$field_doc])* pub $field: $Type,)*
        }
    };
}

object! {
    /// core/v1 `Pod`.
    Pod {
        /// See [`Meta`].
        metadata: Meta,
        /// What was asked.
        spec: Option<PodSpec>,
        /// What is.
        status: Option<PodStatus>,
    }
}
object! {
    /// Of a pod's spec.
    PodSpec {
        /// Containers with named ports.
        #[serde(deserialize_with = "containers")]
        containers: Vec<Container>,
        /// Init containers with named ports.
        #[serde(deserialize_with = "containers")]
        init_containers: Vec<Container>,
        /// The node's name.
        node_name: Option<Box<str>>,
        /// Whether it has the node's addresses.
        host_network: Option<bool>,
    }
}
object! {
    /// A container.
    Container {
        /// Named ports.
        ports: Option<Vec<ContainerPort>>,
        /// `Always`: an init container that keeps running.
        restart_policy: Option<Box<str>>,
    }
}
object! {
    /// A port of a container.
    ContainerPort {
        /// Its name.
        name: Option<Box<str>>,
        /// Its number.
        container_port: i32,
        /// TCP where it is none.
        protocol: Option<Box<str>>,
    }
}
object! {
    /// Of a pod's status.
    PodStatus {
        /// Phase.
        phase: Option<Box<str>>,
        /// First address.
        #[serde(rename = "podIP")]
        pod_ip: Option<Box<str>>,
        /// All addresses.
        #[serde(rename = "podIPs")]
        pod_ips: Option<Vec<PodIp>>,
    }
}
object! {
    /// An address of a pod.
    PodIp {
        /// It.
        ip: Box<str>,
    }
}

/// Only those with named ports, and of these only the names.
fn containers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Container>, D::Error> {
    let mut containers = Option::<Vec<Container>>::deserialize(deserializer)?.unwrap_or_default();
    for ports in containers.iter_mut().filter_map(|container| container.ports.as_mut()) {
        ports.retain(|port| port.name.is_some());
        ports.shrink_to_fit();
    }
    containers.retain(|container| container.ports.as_ref().is_some_and(|ports| !ports.is_empty()));
    containers.shrink_to_fit();
    Ok(containers)
}

object! {
    /// core/v1 `Namespace`.
    Namespace {
        /// See [`Meta`].
        metadata: Meta,
    }
}

impl Pod {
    /// The node that it is on.
    #[must_use]
    pub fn node_name(&self) -> Option<&str> {
        self.spec.as_ref()?.node_name.as_deref()
    }
}

impl Namespace {
    /// The labels that selectors see: `kubernetes.io/metadata.name` is always among them (KEP-2161).
    #[must_use]
    pub fn selected_labels(&self) -> Labels {
        let mut labels = self.metadata.labels.as_deref().cloned().unwrap_or_default();
        labels.insert("kubernetes.io/metadata.name".to_owned(), self.metadata.name.clone());
        labels
    }
}

object! {
    /// core/v1 `Node`.
    Node {
        /// See [`Meta`].
        metadata: Meta,
        /// What was asked.
        spec: Option<NodeSpec>,
        /// What is.
        status: Option<NodeStatus>,
    }
}
object! {
    /// Of a node's spec.
    NodeSpec {
        /// First pod CIDR.
        #[serde(rename = "podCIDR")]
        pod_cidr: Option<String>,
        /// All pod CIDRs.
        #[serde(rename = "podCIDRs")]
        pod_cidrs: Option<Vec<String>>,
    }
}
object! {
    /// Of a node's status.
    NodeStatus {
        /// Addresses.
        addresses: Option<Vec<NodeAddress>>,
    }
}
object! {
    /// An address of a node.
    NodeAddress {
        /// It.
        address: String,
        /// Of which type.
        #[serde(rename = "type")]
        type_: String,
    }
}
object! {
    /// core/v1 `Service`.
    Service {
        /// See [`Meta`].
        metadata: Meta,
        /// What was asked.
        spec: Option<ServiceSpec>,
    }
}
object! {
    /// Of a Service's spec.
    ServiceSpec {
        /// `ClusterIP` where it is none.
        #[serde(rename = "type")]
        type_: Option<String>,
        /// First address.
        #[serde(rename = "clusterIP")]
        cluster_ip: Option<String>,
        /// All addresses.
        #[serde(rename = "clusterIPs")]
        cluster_ips: Option<Vec<String>>,
        /// Ports.
        ports: Option<Vec<ServicePort>>,
        /// `Cluster` where it is none.
        internal_traffic_policy: Option<String>,
    }
}
object! {
    /// A port of a Service.
    ServicePort {
        /// Its name.
        name: Option<String>,
        /// Its number.
        port: i32,
        /// TCP where it is none.
        protocol: Option<String>,
    }
}
object! {
    /// discovery/v1 `EndpointSlice`.
    EndpointSlice {
        /// See [`Meta`].
        metadata: Meta,
        /// `IPv4`, `IPv6` or `FQDN`.
        address_type: Box<str>,
        /// Ports of all its endpoints.
        ports: Option<Vec<EndpointPort>>,
        /// Endpoints.
        endpoints: Option<Vec<Endpoint>>,
    }
}
object! {
    /// A port of a slice.
    EndpointPort {
        /// Its name.
        name: Option<Box<str>>,
        /// Its number.
        port: Option<i32>,
        /// TCP where it is none.
        protocol: Option<Box<str>>,
    }
}
object! {
    /// An endpoint.
    Endpoint {
        /// Its addresses.
        addresses: Vec<Box<str>>,
        /// Whether it is ready.
        conditions: Option<EndpointConditions>,
        /// The name of its node.
        node_name: Option<Box<str>>,
    }
}
object! {
    /// Conditions of an endpoint.
    EndpointConditions {
        /// True where it is none.
        ready: Option<bool>,
        /// As `ready` where it is none.
        serving: Option<bool>,
        /// False where it is none.
        terminating: Option<bool>,
    }
}
object! {
    /// networking/v1 `NetworkPolicy`.
    NetworkPolicy {
        /// See [`Meta`].
        metadata: Meta,
        /// What was asked.
        spec: Option<NetworkPolicySpec>,
    }
}
