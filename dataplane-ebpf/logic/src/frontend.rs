// SPDX-License-Identifier: Apache-2.0
//! Which Service is addressed.

use weft_abi::{Addr, CLUSTER_NET, Config, FlowKey6, Frontend, FrontendKey, HAIRPIN_V4, HAIRPIN_V6, Owner, RemoteKind};

use crate::{Tables, admit, protocol};

/// The frontend that a packet in the network `net` addresses: that of its destination, else, where the host has that, a port of the host
/// or a NodePort. At an address of the host either comes before `externalIPs`, and a NodePort before a port of the host.
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
    let served = exact.filter(|frontend| is_served(tables, config, (net, key), frontend));
    if net != CLUSTER_NET || served.is_some_and(|frontend| !frontend.is_external()) {
        return served;
    }
    // What nobody has is not the host's. A value in either case: of an `Option`, the compiler may copy what `None` left unset, which the
    // verifier refuses.
    let owner = tables.owner(net, &key.dst).map_or(Owner::workload(0), |owner| *owner);
    // What the host's sockets ask of the host itself comes by there (`crate::socket`).
    let is_by_socket = key.ifindex == config.host_ifindex && (key.dst == HAIRPIN_V4 || key.dst == HAIRPIN_V6);
    if !is_by_socket && !owner.is_host() {
        return served;
    }
    let of_any = tables.frontend(&FrontendKey::of_node_port(&key.dst, key.dport, protocol));
    let of_any = of_any.filter(|of_any| is_by_socket || of_any.is_served_at(&owner));
    match (served, of_any) {
        (Some(exact), Some(of_any)) if !of_any.comes_before(exact) => served,
        (_, Some(_)) => of_any,
        (_, None) => served,
    }
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
