// SPDX-License-Identifier: Apache-2.0

//! Weft's testbed: simulated nodes, containers, virtual machines, and a real Kubernetes to test it on.
//!
//! [`Bed`] is the small one: nodes that are namespaces of this machine, agents in standalone mode, containers plugged in by
//! the real CNI plugin, guests of QEMU on a tap. Nothing of it has a name on the machine, and all of it ends with the
//! process that made it, however that ends.

pub mod apiserver;
pub mod cluster;
pub mod load;

mod bed;
mod binaries;
mod churn;
mod cni;
mod container;
mod conversation;
mod equivalence;
mod hostile;
mod initramfs;
mod manifest;
mod namespace;
mod network;
mod node;
mod oracle;
mod process;
mod random;
mod serial;
mod services;
mod shell;
mod tables;
mod tun;
mod vm;
mod wait;

pub use bed::{Bed, OUTSIDE_V4, OUTSIDE_V6, Options, Outside};
pub use binaries::Binaries;
pub use churn::churn;
pub use cni::{Attachment, CniFailure, Plug};
pub use container::Container;
pub use conversation::{TcpConnection, UdpFlow};
pub use equivalence::equivalence;
pub use hostile::{Place, Selection, Tally, hostile, hostile_names};
pub use manifest::{ingress_policy, namespace, pod, service, service_cidr, set_node_port};
pub use namespace::{Namespace, in_network};
pub use network::Network;
pub use node::{Mode, Node, detach_programs};
pub use oracle::{OracleOptions, OraclePath, OracleReport, oracle, oracle_replay, oracle_wire};
pub use process::{Outcome, Process};
pub use random::Random;
pub use services::{
    LOAD_BALANCER, NODE_PORT, SERVICE_PORT, VIPS, balanced, exposed, hairpin, is_refused, meets, node_ports,
};
pub use shell::{Answer, Job, Protocol, Shell};
pub use tables::{Frontend, Tables};
pub use tun::PointToPoint;
pub use vm::{Guest, Nic, Vm};
pub use wait::{until, until_ok};
