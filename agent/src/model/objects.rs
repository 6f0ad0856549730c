// SPDX-License-Identifier: Apache-2.0
//! The objects of the API with what the plan reads, and nothing else: they are deserialised directly, so that memory follows
//! the cluster's size and not the size of its manifests, and an update of what nobody reads (heartbeats, resource versions) is
//! no change. Fields are named and nested as in the API, but for those of a pod.

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    sync::{Arc, LazyLock},
};

use k8s_openapi::api::networking::v1::NetworkPolicySpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Known, Labels, Name, ObjectKey};

mod api;

/// On the API's copy of a static pod: the uid that the kubelet and the container runtime know it by.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// By which the cluster autoscaler says that it removes a node.
const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// The one copy of these labels: most pods share theirs with others.
fn interned(labels: Labels) -> Arc<Labels> {
    static KNOWN: LazyLock<Known<Arc<Labels>>> = LazyLock::new(Known::default);
    KNOWN.one(&labels.clone(), || Arc::new(labels), |labels| Arc::strong_count(labels) > 1)
}

fn labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Arc<Labels>>, D::Error> {
    Ok(Option::<Labels>::deserialize(deserializer)?.map(interned))
}

fn write_labels<S: Serializer>(labels: &Option<Arc<Labels>>, serializer: S) -> Result<S::Ok, S::Error> {
    labels.as_deref().serialize(serializer)
}

/// On a Service: how new connections get their backends.
pub const ALGORITHM_ANNOTATION: &str = "weft.dev/algorithm";

/// Label of a Pod: its part of new connections in relation to other backends. A label, since agents ask the API server for pods that
/// have it.
pub const WEIGHT_LABEL: &str = "weft.dev/weight";

/// Annotation of a Pod with [`WEIGHT_LABEL`], of a VM that is being migrated: by how much it answers later than another one.
pub const PENALTY_ANNOTATION: &str = "weft.dev/migration-penalty";

/// Of the annotations only those that count.
fn annotations<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<Labels>>, D::Error> {
    let annotations = Option::<BTreeMap<String, String>>::deserialize(deserializer)?.unwrap_or_default();
    const KEPT: [&str; 3] = [MIRROR_ANNOTATION, ALGORITHM_ANNOTATION, PENALTY_ANNOTATION];
    let kept: Labels = annotations.into_iter().filter(|(key, _)| KEPT.contains(&key.as_str())).collect();
    Ok((!kept.is_empty()).then(|| Box::new(kept)))
}

/// Of the taints only the one that says that the node goes: most nodes have none of it, and the others change often.
fn leaving_taint<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<[Taint]>>, D::Error> {
    let taints = Option::<Vec<Taint>>::deserialize(deserializer)?.unwrap_or_default();
    let kept: Box<[Taint]> = taints.into_iter().filter(|taint| &*taint.key == LEAVING_TAINT).take(1).collect();
    Ok((!kept.is_empty()).then_some(kept))
}

/// What tells an object from others of its name, before and after it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Uid {
    /// An RFC 9562 UUID in lower case, as API servers give them out.
    Uuid([u8; 16]),
    /// Any other text.
    Other(Box<str>),
}

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        let digits = || u128::from_str_radix(&text.replace('-', ""), 16).ok();
        let uuid = digits().map(|digits| Self::Uuid(digits.to_be_bytes()));
        uuid.filter(|uuid| uuid.to_string() == text).unwrap_or_else(|| Self::Other(text.into()))
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(bytes) => {
                let digits = format!("{:032x}", u128::from_be_bytes(*bytes));
                let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
                f.write_str(&parts.join("-"))
            }
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl<'de> Deserialize<'de> for Uid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from(&*String::deserialize(deserializer)?))
    }
}

impl Serialize for Uid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `metadata`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    /// Name.
    #[serde(default)]
    pub name: Name,
    /// Namespace; none: cluster-scoped.
    #[serde(default, deserialize_with = "Name::deserialize_shared", skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Name>,
    /// Uid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Uid>,
    /// Labels, shared with other objects that have the same.
    #[serde(
        default,
        deserialize_with = "labels",
        serialize_with = "write_labels",
        skip_serializing_if = "Option::is_none"
    )]
    pub labels: Option<Arc<Labels>>,
    /// The annotations that count: of a static pod's copy, and those of Weft.
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
        let namespace = self.namespace.clone().unwrap_or_else(|| Name::shared(""));
        ObjectKey { namespace, name: self.name.clone() }
    }

    /// The uid that the container runtime knows a static pod by.
    #[must_use]
    pub fn mirrored(&self) -> Option<&str> {
        self.annotation(MIRROR_ANNOTATION)
    }

    /// One of the annotations that count.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key)
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

/// core/v1 `Pod`, flat: of all objects there are the most.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(from = "api::Pod", into = "api::Pod")]
pub struct Pod {
    /// See [`Meta`].
    pub metadata: Meta,
    /// The node's name.
    pub node: Option<Name>,
    /// Whether it has the node's addresses.
    pub host_network: bool,
    /// Its containers have ended for good (phase `Succeeded` or `Failed`).
    pub is_over: bool,
    /// The addresses that its status tells, each once, in order.
    pub addresses: Box<[IpAddr]>,
    /// Every named port of its containers, those init containers included that keep running (sidecars, KEP-753), each once, in
    /// order.
    pub ports: Box<[PodPort]>,
}

/// A port that a pod gives a name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PodPort {
    /// The name.
    pub name: Name,
    /// IP protocol number.
    pub protocol: u8,
    /// Its number.
    pub number: u16,
}

object! {
    /// core/v1 `Namespace`.
    Namespace {
        /// See [`Meta`].
        metadata: Meta,
    }
}

impl Namespace {
    /// The labels that selectors see: `kubernetes.io/metadata.name` is always among them (KEP-2161).
    #[must_use]
    pub fn selected_labels(&self) -> Labels {
        let mut labels = self.metadata.labels.as_deref().cloned().unwrap_or_default();
        labels.insert("kubernetes.io/metadata.name", &self.metadata.name);
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
        /// Of its taints only the one that counts, see [`Node::is_leaving`].
        #[serde(deserialize_with = "leaving_taint", skip_serializing_if = "Option::is_none")]
        taints: Option<Box<[Taint]>>,
    }
}
object! {
    /// A taint of a node.
    Taint {
        /// What it is called.
        key: Box<str>,
    }
}

impl Node {
    /// Whether it is about to go, so that load balancers should send new connections elsewhere (KEP-3836).
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        let mut taints = self.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        self.metadata.deletion_timestamp.is_some() || taints.any(|taint| &*taint.key == LEAVING_TAINT)
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
        /// What a load balancer gave it.
        #[serde(skip_serializing_if = "Option::is_none")]
        status: Option<ServiceStatus>,
    }
}
object! {
    /// Of a Service's status.
    ServiceStatus {
        /// Of type `LoadBalancer`.
        load_balancer: Option<LoadBalancerStatus>,
    }
}
object! {
    /// What a load balancer does for a Service.
    LoadBalancerStatus {
        /// Where clients find it.
        ingress: Option<Box<[LoadBalancerIngress]>>,
    }
}
object! {
    /// Where clients of a load balancer find a Service.
    LoadBalancerIngress {
        /// By this address; none: by a name.
        ip: Option<Box<str>>,
        /// `VIP` where it is none. `Proxy`: the load balancer sends to the nodes' own addresses (KEP-1860).
        ip_mode: Option<Box<str>>,
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
        /// `Cluster` where it is none.
        external_traffic_policy: Option<Box<str>>,
        /// Addresses beyond the cluster that lead to it where they are routed to a node.
        #[serde(rename = "externalIPs")]
        external_ips: Option<Box<[Box<str>]>>,
        /// Prefixes that clients of a load balancer's addresses have to be in; none: they may be anybody.
        load_balancer_source_ranges: Option<Box<[Box<str>]>>,
        /// Where load balancers ask whether a node has endpoints of it; none or 0: nowhere.
        health_check_node_port: Option<i32>,
        /// `None` where it is none.
        session_affinity: Option<Box<str>>,
        /// Of `ClientIP`.
        session_affinity_config: Option<SessionAffinityConfig>,
    }
}
object! {
    /// How clients keep their backend.
    SessionAffinityConfig {
        /// By their address.
        #[serde(rename = "clientIP")]
        client_ip: Option<ClientIpConfig>,
    }
}
object! {
    /// Of clients that keep their backend by their address.
    ClientIpConfig {
        /// For how long, after the last new connection; three hours where it is none.
        timeout_seconds: Option<i32>,
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
        /// Its number at addresses of nodes; none or 0: it has none there.
        node_port: Option<i32>,
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
        endpoints: Option<Box<[Endpoint]>>,
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

/// An endpoint, flat: next to pods there are the most of them.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(from = "api::Endpoint", into = "api::Endpoint")]
pub struct Endpoint {
    /// Its first address; the API promises that all of them are interchangeable, and kube-proxy uses no other. None: it is no
    /// IP address.
    pub address: Option<IpAddr>,
    /// None: nobody is sent there, and who was is no more.
    pub readiness: Option<Readiness>,
    /// The name of its node.
    pub node: Option<Name>,
    /// The name of its Pod, which is in the namespace of its slice.
    pub pod: Option<Name>,
    /// For whom it is meant; none: for everybody.
    pub hints: Option<Box<Hints>>,
}

/// Whose clients an endpoint is meant for (KEP-2433, KEP-3015).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Hints {
    /// Nodes.
    pub nodes: Box<[Name]>,
    /// Zones.
    pub zones: Box<[Name]>,
}

/// Whether an endpoint takes new connections by right, for want of a better one, or not at all.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Readiness {
    /// By right.
    Ready,
    /// `serving` and `terminating`: used only where nothing is ready (KEP-1669).
    Terminating,
    /// `serving`, neither `ready` nor `terminating`: it keeps the connections that it has.
    Serving,
}

object! {
    /// networking/v1 `NetworkPolicy`.
    NetworkPolicy {
        /// See [`Meta`].
        metadata: Meta,
        /// What was asked, as text.
        spec: Option<PolicyText>,
    }
}

impl NetworkPolicy {
    /// What was asked.
    #[must_use]
    pub fn spec(&self) -> Option<NetworkPolicySpec> {
        self.spec.as_ref().map(PolicyText::read)
    }
}

/// The spec of a policy as JSON, in one form for one meaning. As values it takes ten times as much memory, and it is read but once
/// for each change: everybody keeps what it understands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PolicyText(Box<str>);

impl PolicyText {
    fn read(&self) -> NetworkPolicySpec {
        // It was written here. What selects everybody and allows nothing is closed.
        serde_json::from_str(&self.0).unwrap_or_default()
    }
}

impl<'de> Deserialize<'de> for PolicyText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spec = NetworkPolicySpec::deserialize(deserializer)?;
        let text = serde_json::to_string(&spec).map_err(serde::de::Error::custom)?;
        Ok(Self(text.into()))
    }
}

impl Serialize for PolicyText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.read().serialize(serializer)
    }
}
object! {
    /// networking/v1 `ServiceCIDR`.
    ServiceCidr {
        /// See [`Meta`].
        metadata: Meta,
        /// What was asked.
        spec: Option<ServiceCidrSpec>,
    }
}
object! {
    /// Of a ServiceCIDR's spec.
    ServiceCidrSpec {
        /// Prefixes that addresses of Services are taken from, one per family at most.
        cidrs: Option<Vec<String>>,
    }
}

impl ServiceCidr {
    /// Its prefixes, as they are written.
    pub(crate) fn cidrs(&self) -> &[String] {
        self.spec.as_ref().and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, from_value, json, to_value};

    use super::Node;

    #[rstest]
    #[case::not_ready(json!({"spec": {"taints": [{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]}}), false)]
    #[case::cordoned(json!({"spec": {"unschedulable": true}}), false)]
    #[case::no_taints(json!({"spec": {"taints": null}}), false)]
    #[case::to_be_deleted(
        json!({"spec": {"taints": [{"key": "a"}, {"key": "ToBeDeletedByClusterAutoscaler", "value": "1"}]}}), true
    )]
    #[case::deleted(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), true)]
    fn a_node_that_is_about_to_go_says_so(#[case] node: Value, #[case] leaving: bool) {
        let node: Node = from_value(node).unwrap();
        assert_eq!(node.is_leaving(), leaving);
        assert_eq!(from_value::<Node>(to_value(&node).unwrap()).unwrap(), node);
        // What nobody reads is no change, and what is read is one.
        let staying = from_value(json!({"spec": {}})).unwrap();
        assert_eq!(Node { spec: Some(node.spec.clone().unwrap_or_default()), ..node.clone() } != staying, leaving);
    }
}
