// SPDX-License-Identifier: Apache-2.0
//! Which Service is addressed.

use weft_abi::{Addr, CLUSTER_NET, Config, FlowKey6, Frontend, FrontendKey, HAIRPIN_V4, HAIRPIN_V6, Owner, RemoteKind};

use crate::{Tables, admit, protocol};

/// The frontend that a packet in the network `net` addresses: that of its destination, else, where the host has that, a port of the host
/// or a NodePort.
///
/// A frontend at an address that somebody has is none, at the one that others know the node by not even a ClusterIP's: who may write a
/// Service must not be able to take the traffic of a pod, a node or another Service (CVE-2020-8554).
#[inline(always)]
#[must_use]
pub fn find<'t, T: Tables>(tables: &'t T, net: u32, key: &FlowKey6) -> Option<&'t Frontend> {
    let (protocol, config) = (key.protocol as u8, tables.config()?);
    // What nodes encapsulate is most of what some of them hear.
    if !protocol::names_ports(protocol) || admit::is_encapsulation(config, key.protocol, key.dport) {
        return None;
    }
    let exact = tables.frontend(&FrontendKey::new(net, key.dst, key.dport, protocol));
    if let Some(frontend) = exact
        && is_served(tables, config, (net, key), frontend)
    {
        return exact;
    }
    if net != CLUSTER_NET {
        return None;
    }
    // What nobody has is not the host's. A value in either case: of an `Option`, the compiler may copy what `None` left unset, which the
    // verifier refuses.
    let owner = tables.owner(net, &key.dst).map_or(Owner::workload(0), |owner| *owner);
    // What the host's sockets ask of the host itself comes by there (`crate::socket`).
    let is_by_socket = key.ifindex == config.host_ifindex && (key.dst == HAIRPIN_V4 || key.dst == HAIRPIN_V6);
    if !is_by_socket && !owner.is_host() {
        return None;
    }
    let of_any = tables.frontend(&FrontendKey::of_node_port(&key.dst, key.dport, protocol))?;
    (is_by_socket || of_any.is_served_at(&owner)).then_some(of_any)
}

/// Whether a frontend at just this address counts.
#[inline(always)]
fn is_served<T: Tables>(tables: &T, config: &Config, (net, key): (u32, &FlowKey6), frontend: &Frontend) -> bool {
    if frontend.is_host_port() {
        return tables.owner(net, &key.dst).is_some_and(Owner::is_host);
    }
    key.dst != *admit::known_address(config, !key.dst.is_v4())
        && (!frontend.is_external() || !is_somebodys(tables, net, &key.dst))
}

/// Whether an address is a pod's or another node's, or may be a ClusterIP.
#[inline(always)]
fn is_somebodys<T: Tables>(tables: &T, net: u32, addr: &Addr) -> bool {
    tables.owner(net, addr).is_some_and(Owner::is_workload)
        || tables.remote(net, addr).is_some_and(|remote| remote.kind != RemoteKind::Plain as u32)
}
