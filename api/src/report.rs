// SPDX-License-Identifier: Apache-2.0
//! What the agent tells the operator.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{AttachmentId, Mac, PodRef, PortKind};

/// `weft status`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct StatusReport {
    /// Version of the agent.
    pub version: String,
    /// [`crate::API_VERSION`] of the agent.
    pub api_version: u32,
    /// The node's name.
    pub node: String,
    /// `vxlan` or `native`.
    pub mode: String,
    /// Where objects come from, and whether that source answers.
    pub source: SourceState,
    /// The node's pod CIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// Addresses given out and addresses in all, per pod CIDR in the same order.
    pub addresses_used: Vec<(u64, u64)>,
    /// The device that leads to the other nodes.
    pub uplink: String,
    /// Every device by which packets from outside of the node are met, the uplink first.
    #[serde(default)]
    pub devices: Vec<String>,
    /// Devices that the programs do not read (their packets begin with neither an Ethernet nor an IP header): what is behind them is
    /// reached by the host's own IP stack alone.
    #[serde(default)]
    pub stack_devices: Vec<String>,
    /// Why the agent cannot serve ADD now; none: it can.
    #[serde(default)]
    pub not_ready: Option<String>,
    /// The maps hold what the objects ask for that the source has told so far.
    #[serde(default)]
    pub applied: bool,
    /// Seconds since the agent started.
    pub uptime_seconds: u64,
    /// Pinned maps with their sizes.
    pub maps: Vec<MapReport>,
    /// Other nodes whose pods this node reaches, in the order of their names.
    #[serde(default)]
    pub routes: Vec<RouteReport>,
    /// Errors that want the operator's eye: objects refused, and why.
    pub problems: Vec<String>,
    /// Flow events that the ring buffer could not take.
    pub events_lost: u64,
}

/// State of the object source.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SourceState {
    /// `kubernetes` or `dir:PATH`.
    pub name: String,
    /// All kinds were listed at least once.
    pub synced: bool,
    /// Why the source does not answer now, if so.
    pub error: Option<String>,
    /// The agent runs on what an earlier run has left, because the source has not told anything since it started: as of when
    /// (Unix time in seconds).
    #[serde(default)]
    pub remembered_since: Option<u64>,
}

/// The way to one pod CIDR of another node.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct RouteReport {
    /// The node's name.
    pub node: String,
    /// Its pods' addresses.
    pub pod_cidr: IpNet,
    /// The tunnel's other end (`vxlan`) or the next hop (`native`).
    pub via: IpAddr,
}

/// One pinned map.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct MapReport {
    /// Name.
    pub name: String,
    /// Entries it can hold.
    pub max_entries: u64,
    /// Bytes of kernel memory (`memlock` of its fdinfo).
    pub bytes: u64,
}

/// `weft endpoints`: one port of this node.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct EndpointReport {
    /// CNI's key.
    pub id: AttachmentId,
    /// Whose it is.
    pub pod: Option<PodRef>,
    /// How it is plugged in.
    pub port: PortKind,
    /// The host's end or the tap.
    pub ifname: String,
    /// Its index.
    pub ifindex: u32,
    /// The workload's Ethernet address.
    pub mac: Mac,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Policies that isolate it for ingress (`namespace/name`).
    pub ingress_policies: Vec<String>,
    /// Policies that isolate it for egress.
    pub egress_policies: Vec<String>,
    /// `ready`, or what is missing.
    pub state: String,
}

/// `weft services`: one Service.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ServiceReport {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Cluster addresses.
    pub cluster_ips: Vec<IpAddr>,
    /// Addresses beyond the cluster: of `externalIPs` and of a load balancer.
    #[serde(default)]
    pub external_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePortReport>,
    /// For how many seconds after its last new connection a client keeps its backend; none: it does not.
    #[serde(default)]
    pub affinity_seconds: Option<u32>,
    /// How new connections get their backends: `random`, `consistent` or `least-loaded`; empty: the agent does not tell.
    #[serde(default)]
    pub algorithm: String,
}

/// One port of a Service.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ServicePortReport {
    /// Port name; empty for an unnamed port.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The Service's port.
    pub port: u16,
    /// Its number at addresses of nodes.
    #[serde(default)]
    pub node_port: Option<u16>,
    /// Where it leads.
    pub backends: Vec<BackendReport>,
}

/// One backend of a Service port.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct BackendReport {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// The node it is on, if told.
    pub node: Option<String>,
    /// `ready`, `migrating` (a VM that moves to another node), or `terminating`.
    pub state: String,
    /// Its part of new connections in relation to others.
    #[serde(default = "usual_weight")]
    pub weight: u16,
}

/// [`BackendReport::weight`] of a backend of which nobody says anything else.
pub const USUAL_WEIGHT: u16 = 100;

const fn usual_weight() -> u16 {
    USUAL_WEIGHT
}

/// `weft policies`: one NetworkPolicy as it is enforced here.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct PolicyReport {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Directions it isolates: `ingress`, `egress`.
    pub directions: Vec<String>,
    /// Pods of this node that it selects (`namespace/name`).
    pub selected: Vec<String>,
    /// Rules that it compiled to.
    pub rules: usize,
    /// `enforced`, or why not.
    pub state: String,
}

/// The outcome of a flow event.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowVerdict {
    /// Let through.
    Forwarded,
    /// Dropped.
    Dropped,
}

/// One event: a flow was decided, or a packet was dropped.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct FlowEvent {
    /// Unix time in nanoseconds.
    pub time_ns: u64,
    /// The outcome.
    pub verdict: FlowVerdict,
    /// Why: a drop reason such as `policy-ingress`, or how it was delivered such as `local`, `tunnel`, `masquerade`.
    pub reason: String,
    /// `TCP`, `UDP`, `SCTP`, `ICMP`, `ICMPv6`, or a number.
    pub protocol: String,
    /// Sender as the packet said.
    pub source: IpAddr,
    /// Its port; for ICMP echo the identifier.
    pub source_port: u16,
    /// Receiver as the packet said (a VIP where a Service was addressed).
    pub destination: IpAddr,
    /// Its port.
    pub destination_port: u16,
    /// Where load balancing sent it.
    pub backend: Option<(IpAddr, u16)>,
    /// Who sent it, if known here: `namespace/name`.
    pub source_name: Option<String>,
    /// Who received it, if known here.
    pub destination_name: Option<String>,
    /// The Service that was addressed: `namespace/name`.
    pub service: Option<String>,
    /// The interface it was seen on.
    pub ifname: String,
    /// The rules of policies that decided: the sender's, then the receiver's, as far as any did.
    #[serde(default)]
    pub rules: Vec<String>,
}

/// `weft drops`: one counter.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct DropReport {
    /// The reason's name.
    pub reason: String,
    /// What it means, and what to do.
    pub help: String,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// `weft vm`: one vhost-user port and its device.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct VmReport {
    /// CNI's key.
    pub id: AttachmentId,
    /// Whose it is.
    pub pod: Option<PodRef>,
    /// The tap.
    pub ifname: String,
    /// The socket for the VMM.
    pub socket_path: String,
    /// The device's control socket.
    pub control_path: String,
    /// The file that the device logs to.
    pub log_path: String,
    /// `ready`, or what is missing.
    pub state: String,
    /// The device's process.
    pub pid: Option<u32>,
    /// How often this agent has started the device anew.
    pub restarts: u64,
    /// What the device says of itself (`metrics` of its control socket); none: it does not answer.
    pub metrics: Option<serde_json::Value>,
}
