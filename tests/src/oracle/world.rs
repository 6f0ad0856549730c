// SPDX-License-Identifier: Apache-2.0

//! The objects of a cluster and packets in it, as the oracle sees them: what the API's text names, and no more. They are
//! written to files that replay.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Labels of an object.
pub(super) type Labels = BTreeMap<String, String>;

/// One state of a cluster.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct World {
    /// How nodes reach each other's pods.
    pub(super) mode: Mode,
    pub(super) nodes: Vec<Node>,
    pub(super) namespaces: Vec<Namespace>,
    pub(super) pods: Vec<Pod>,
    pub(super) services: Vec<Service>,
    pub(super) slices: Vec<Slice>,
    pub(super) policies: Vec<Policy>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) enum Mode {
    #[default]
    Vxlan,
    Native,
}

/// A node and the prefixes of its pods.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) pod_cidrs: Vec<IpNet>,
    /// Its label `topology.kubernetes.io/zone`.
    #[serde(default)]
    pub(super) zone: Option<String>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Namespace {
    pub(super) name: String,
    pub(super) labels: Labels,
}

/// A pod, or a virtual machine in one.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Pod {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) node: String,
    pub(super) labels: Labels,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ports: Vec<NamedPort>,
    pub(super) kind: PortKind,
    /// On its node's network: its addresses are the node's.
    pub(super) host_network: bool,
    /// Its phase is Succeeded.
    pub(super) finished: bool,
    /// `hostPort` of its containers: `portMappings` of CNI.
    #[serde(default)]
    pub(super) host_ports: Vec<HostPort>,
}

/// A port of the node that leads to a pod.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct HostPort {
    /// `hostIP`; none: any address of the node.
    pub(super) address: Option<IpAddr>,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    /// The pod's own port.
    pub(super) target: u16,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) enum PortKind {
    Veth,
    Tap,
    Vhost,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct NamedPort {
    pub(super) name: String,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub(super) enum Protocol {
    Tcp,
    Udp,
    Sctp,
    /// An echo request; the port is its identifier.
    Echo,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Service {
    pub(super) namespace: String,
    pub(super) name: String,
    /// `clusterIPs`; empty: headless.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ports: Vec<ServicePort>,
    /// `internalTrafficPolicy: Local`.
    pub(super) local: bool,
    #[serde(default)]
    pub(super) affinity: Affinity,
    /// Another proxy serves it: it has the label `service.kubernetes.io/service-proxy-name`.
    pub(super) foreign: bool,
    /// `creationTimestamp`, in seconds of a day.
    #[serde(default)]
    pub(super) created: u32,
    #[serde(default)]
    pub(super) exposure: Exposure,
}

/// How a Service is reached beside its ClusterIPs. NodePorts are its ports'.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct Exposure {
    pub(super) kind: ServiceKind,
    /// `externalTrafficPolicy: Local`.
    pub(super) local: bool,
    pub(super) external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress`.
    pub(super) ingress: Vec<Ingress>,
    /// `loadBalancerSourceRanges`, which need not be any.
    pub(super) ranges: Vec<String>,
    /// `trafficDistribution`, which proxies do not read.
    pub(super) distribution: Option<String>,
    /// `loadBalancerClass`, likewise.
    #[serde(default)]
    pub(super) class: Option<String>,
}

/// `type`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) enum ServiceKind {
    #[default]
    ClusterIp,
    NodePort,
    LoadBalancer,
    /// Its addresses and ports are none meanwhile.
    ExternalName,
}

/// What a load balancer gave a Service.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Ingress {
    /// None: a host name.
    pub(super) address: Option<IpAddr>,
    pub(super) mode: Option<IpMode>,
}

/// `ipMode`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) enum IpMode {
    Vip,
    Proxy,
}

/// `sessionAffinity`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) enum Affinity {
    #[default]
    None,
    /// `ClientIP`, without a timeout of its own.
    ClientIp,
    /// `ClientIP` with this `timeoutSeconds`.
    ClientIpFor(u32),
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct ServicePort {
    pub(super) name: String,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    #[serde(default)]
    pub(super) node_port: Option<u16>,
}

/// An EndpointSlice.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Slice {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) service: String,
    pub(super) ipv4: bool,
    pub(super) ports: Vec<SlicePort>,
    pub(super) endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct SlicePort {
    pub(super) name: Option<String>,
    pub(super) protocol: Option<Protocol>,
    pub(super) port: Option<u16>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Endpoint {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) node: Option<String>,
    pub(super) ready: Option<bool>,
    pub(super) serving: Option<bool>,
    pub(super) terminating: Option<bool>,
    #[serde(default)]
    pub(super) hints: Hints,
}

/// Whose clients an endpoint is for; empty: nothing is said.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Hints {
    /// Names of `forZones`.
    pub(super) zones: Vec<String>,
    /// Names of `forNodes`.
    pub(super) nodes: Vec<String>,
}

/// A NetworkPolicy.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Policy {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) selector: Selector,
    pub(super) types: Option<Vec<Direction>>,
    pub(super) ingress: Option<Vec<Rule>>,
    pub(super) egress: Option<Vec<Rule>>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct Rule {
    pub(super) peers: Option<Vec<Peer>>,
    pub(super) ports: Option<Vec<PolicyPort>>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) enum Peer {
    Pods { pods: Option<Selector>, namespaces: Option<Selector> },
    Block { cidr: IpNet, except: Vec<IpNet> },
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct PolicyPort {
    pub(super) protocol: Option<Protocol>,
    pub(super) port: Option<PortRef>,
    pub(super) end: Option<u16>,
}

impl PolicyPort {
    /// The port, or the first of a range; none: any, or one by name.
    pub(super) fn number(&self) -> Option<u16> {
        match self.port {
            Some(PortRef::Number(number)) => Some(number),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) enum PortRef {
    Number(u16),
    Name(String),
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct Selector {
    pub(super) labels: Labels,
    pub(super) expressions: Vec<Expression>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Expression {
    pub(super) key: String,
    pub(super) operator: Operator,
    pub(super) values: Vec<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

/// One packet as its sender makes it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Packet {
    pub(super) from: From,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: Protocol,
    pub(super) sport: u16,
    pub(super) dport: u16,
    /// With an Ethernet address that is not the sender's.
    pub(super) wrong_mac: bool,
}

/// Who sends a packet, on the node that is asked.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(super) enum From {
    /// A pod of the node, `namespace/name`.
    Pod(String),
    /// A process of the node.
    Host,
    /// Whoever is on the node's own network.
    Wire,
}

impl Pod {
    /// `namespace/name`.
    pub(super) fn id(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Its address of a family.
    pub(super) fn address(&self, ipv4: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv4() == ipv4)
    }
}

impl Service {
    /// Whether nodes serve it, as far as it has addresses.
    pub(super) fn is_served(&self) -> bool {
        !self.foreign && self.exposure.kind != ServiceKind::ExternalName
    }
}

impl Protocol {
    /// Number in the IP header.
    pub(super) const fn number(self, ipv4: bool) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
            Self::Echo if ipv4 => 1,
            Self::Echo => 58,
        }
    }
}

impl World {
    /// The node called `name`.
    pub(super) fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The pod `namespace/name`.
    pub(super) fn pod(&self, id: &str) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.id() == id)
    }
}

/// Pods' prefixes of node `number`.
pub(super) fn pod_cidrs(number: u8) -> Vec<IpNet> {
    let v6 = Ipv6Addr::new(0xfd00, 0x244, 0, number.into(), 0, 0, 0, 0);
    [IpNet::new(Ipv4Addr::new(10, 244, number, 0).into(), 24), IpNet::new(v6.into(), 64)]
        .into_iter()
        .filter_map(Result::ok)
        .collect()
}

/// Addresses of node `number`.
pub(super) fn node_addresses(number: u8) -> Vec<IpAddr> {
    let v6 = Ipv6Addr::new(0xfd00, 0x119, 0, 0, 0, 0, 0, number.into());
    vec![Ipv4Addr::new(192, 168, 119, number).into(), v6.into()]
}

/// Addresses of pod `number` of node `node`.
pub(super) fn pod_addresses(node: u8, number: u8) -> Vec<IpAddr> {
    let v6 = Ipv6Addr::new(0xfd00, 0x244, 0, node.into(), 0, 0, 0, number.into());
    vec![Ipv4Addr::new(10, 244, node, number).into(), v6.into()]
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, source, destination, protocol, sport, dport, wrong_mac } = self;
        let lie = if *wrong_mac { ", wrong MAC" } else { "" };
        write!(f, "{from:?}: {protocol:?} {source} port {sport} to {destination} port {dport}{lie}")
    }
}
