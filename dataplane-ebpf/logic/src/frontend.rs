// SPDX-License-Identifier: Apache-2.0
//! Which Service is addressed.

use weft_abi::{Addr, CLUSTER_NET, FlowKey6, Frontend, FrontendFlags, FrontendKey, Owner, RemoteKind};

use crate::{Tables, admit, protocol};

/// The frontend that a packet in the network `net` addresses: that of its destination, else, where the host has that, a NodePort.
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
    // No Service has this one, so that the host's own traffic asks for its NodePorts alone.
    if key.dst != *admit::known_address(config, !key.dst.is_v4()) {
        let exact = tables.frontend(&FrontendKey::new(net, key.dst, key.dport, protocol));
        match exact {
            Some(frontend) if frontend.flags & FrontendFlags::EXTERNAL == 0 => return exact,
            Some(_) if !is_somebodys(tables, net, &key.dst) => return exact,
            _ => {}
        }
    }
    if net != CLUSTER_NET || !tables.owner(net, &key.dst).is_some_and(Owner::serves_node_ports) {
        return None;
    }
    tables.frontend(&FrontendKey::of_node_port(&key.dst, key.dport, protocol))
}

/// Whether an address is a pod's or another node's, or may be a ClusterIP.
#[inline(always)]
fn is_somebodys<T: Tables>(tables: &T, net: u32, addr: &Addr) -> bool {
    tables.owner(net, addr).is_some_and(Owner::is_workload)
        || tables.remote(net, addr).is_some_and(|remote| remote.kind != RemoteKind::Plain as u32)
}
