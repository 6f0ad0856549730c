// SPDX-License-Identifier: Apache-2.0
//! How Services are reached from beyond the cluster.

use std::{collections::BTreeMap, net::IpAddr, num::NonZeroU16};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use weft_abi::Algorithm;

use super::{ObjectKey, algorithm, objects::Uid};

/// What stands for the addresses that other nodes know the node by.
const PRIMARY: &str = "primary";

/// The addresses of Services beyond the cluster.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ServiceExposure {
    /// Where NodePorts are served: `primary`, and prefixes that addresses of the node are in.
    pub node_port_addresses: Vec<NodePortAddress>,
    /// Whether `externalIPs` of Services count. Who may write a Service may ask for any address with them (CVE-2020-8554).
    #[serde(rename = "externalIPs")]
    pub external_ips: bool,
    /// Prefixes that `externalIPs` and addresses of load balancers have to be in; none: they may be anything but a pod's, a node's or
    /// another Service's.
    #[serde(rename = "allowedCIDRs")]
    pub allowed_cidrs: Vec<IpNet>,
    /// Whether processes of the node itself that ask for external addresses of Services are led to their backends.
    pub external_from_node: bool,
    /// How Services that do not say give new connections to their backends.
    #[serde(with = "algorithm")]
    pub algorithm: Algorithm,
    /// TCP port, on every address of the node, at which load balancers ask whether the node takes new connections; 0: it is
    /// switched off. None: kube-proxy's where there is an API server, else 0.
    pub healthz_port: Option<u16>,
    /// TCP port of 127.0.0.1 and ::1 of kube-proxy's metrics and mode; 0: it is switched off.
    /// None: kube-proxy's where there is an API server, else 0.
    pub metrics_port: Option<u16>,
    /// Whether load balancers are answered at the `healthCheckNodePort` of Services.
    pub health_check_node_ports: bool,
}

impl Default for ServiceExposure {
    fn default() -> Self {
        Self {
            node_port_addresses: vec![NodePortAddress::Primary],
            external_ips: true,
            allowed_cidrs: Vec::new(),
            external_from_node: true,
            algorithm: Algorithm::Random,
            healthz_port: None,
            metrics_port: None,
            health_check_node_ports: true,
        }
    }
}

/// The answer to load balancers that ask for a Service at this node: one that has its clients served by the backends of the node that
/// they come to (`externalTrafficPolicy: Local`) has a port for that.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HealthCheck {
    /// `healthCheckNodePort`, a TCP port of every address of the node.
    pub port: NonZeroU16,
    /// Addresses of endpoints of this node that are ready, each once, of IPv4 and of IPv6; none: the Service is not of that family.
    pub ready: [Option<u32>; 2],
    /// The Service's, for its Events.
    pub uid: Option<Uid>,
}

/// Services whose [`HealthCheck`] has changed; none: it has gone.
pub type HealthChecks = BTreeMap<ObjectKey, Option<HealthCheck>>;

/// Addresses of the node that NodePorts are served at.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum NodePortAddress {
    /// Those that other nodes know it by, one of each family.
    Primary,
    /// Those in this prefix.
    In(IpNet),
}

impl TryFrom<String> for NodePortAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == PRIMARY {
            return Ok(Self::Primary);
        }
        text.parse().map(Self::In).map_err(|_| {
            format!("services.nodePortAddresses: '{text}' is neither 'primary' nor a prefix, such as 192.0.2.0/24")
        })
    }
}

impl From<NodePortAddress> for String {
    fn from(address: NodePortAddress) -> Self {
        match address {
            NodePortAddress::Primary => PRIMARY.to_owned(),
            NodePortAddress::In(net) => net.to_string(),
        }
    }
}

impl ServiceExposure {
    /// The prefixes of `node_port_addresses`.
    pub(crate) fn node_port_cidrs(&self) -> impl Iterator<Item = IpNet> {
        self.node_port_addresses.iter().filter_map(|address| match address {
            NodePortAddress::Primary => None,
            NodePortAddress::In(net) => Some(*net),
        })
    }

    /// Whether a Service may have an address beyond the cluster.
    pub(crate) fn allows(&self, address: IpAddr) -> bool {
        self.allowed_cidrs.is_empty() || self.allowed_cidrs.iter().any(|cidr| cidr.contains(&address))
    }
}
