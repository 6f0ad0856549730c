// SPDX-License-Identifier: Apache-2.0
//! Other nodes: their pods, their own addresses, and by which of these they are reached.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use weft_abi::{Addr, Config, Remote, RemoteKind};
use weft_api::{Mac, RouteReport};

use super::{Base, Use};
use crate::{
    model::{HostRoute, Mode, NextHop, NodeFacts, Snapshot, objects::Node},
    plan::address::{parse_cidr, parse_ip},
};

/// A node that says that an address is its own, and the address that it encapsulates from.
struct Claim<'a> {
    node: &'a str,
    via: IpAddr,
}

impl Base {
    pub(super) fn add_node(&mut self, name: &str, node: &Node, facts: &NodeFacts) {
        if facts.mode == Mode::Vxlan
            && let Some(peer) = tunnel_peer(node, &facts.config)
        {
            self.reserved.entry(peer).or_insert_with(|| format!("Node {name}"));
        }
        for text in pod_cidrs(node) {
            let net = match parse_cidr(text) {
                Ok(net) => net,
                Err(why) => {
                    self.problems.push(format!("Node {name}: spec.podCIDRs: {why}"));
                    continue;
                }
            };
            let Some((via, remote)) = next_hop(net, node, facts) else {
                self.problems.push(format!(
                    "Node {name}: status.addresses has no InternalIP that leads to its pod CIDR {net} from here; its pods are unreachable"
                ));
                let remote = Remote::new(Addr::UNSPECIFIED, RemoteKind::Unreachable);
                self.add(net, remote, &format!("Node {name}"), Some(Use::Pods));
                continue;
            };
            self.reserved.entry(via).or_insert_with(|| format!("Node {name}"));
            let route = (facts.mode == Mode::Native).then_some(via);
            if self.add(net, remote, &format!("Node {name}"), Some(Use::Pods)) {
                self.host_routes.push(HostRoute { dst: net, via: route });
                self.reports.push(RouteReport { node: name.to_owned(), pod_cidr: net, via });
            }
        }
    }

    /// The other nodes' own addresses: what may come from them by the tunnel beside their pods, where nobody else may encapsulate to,
    /// and what no Service may take from them. Nodes say themselves which they have (kubelets write them): none is a pod's or a Service's.
    pub(super) fn add_node_addresses(&mut self, snapshot: &Snapshot, facts: &NodeFacts) {
        let mut claims: BTreeMap<IpAddr, Vec<Claim<'_>>> = BTreeMap::new();
        for (key, node) in snapshot.nodes.iter().filter(|(key, _)| key.name != facts.name) {
            let via = match facts.mode {
                Mode::Vxlan => tunnel_peer(node, &facts.config),
                Mode::Native => Some(IpAddr::from(Addr::UNSPECIFIED)),
            };
            let Some(via) = via else { continue };
            for address in addresses(node, |kind| matches!(kind, "InternalIP" | "ExternalIP")) {
                claims.entry(address).or_default().push(Claim { node: &key.name, via });
            }
        }
        for (address, claims) in claims {
            match self.prefixes.find(address) {
                Some((net, _)) => self.problems.extend(claims.iter().map(|Claim { node, .. }| {
                    format!("Node {node}: its address {address} lies in {net}, which is for pods or Services; give it another")
                })),
                None => self.add_node_address(address, &claims),
            }
        }
    }

    /// Of several nodes that claim an address it belongs to the one that is reached by it, else to none.
    fn add_node_address(&mut self, address: IpAddr, claims: &[Claim<'_>]) {
        let [first, others @ ..] = claims else { return };
        let mut reached = claims.iter().filter(|claim| claim.via == address);
        let owner = if others.is_empty() { Some(first) } else { reached.next().filter(|_| reached.next().is_none()) };
        if !others.is_empty() {
            let names: Vec<&str> = claims.iter().map(|claim| claim.node).collect();
            let whose = owner.map_or("nobody", |claim| claim.node);
            self.problems.push(format!(
                "Nodes {}: status.addresses of each has {address}; it is taken for that of {whose}",
                names.join(", ")
            ));
        }
        let via = owner.map_or(Addr::UNSPECIFIED, |claim| Addr::from(claim.via));
        let remote = Remote::new(via, RemoteKind::Node);
        self.add(address.into(), remote, &format!("Node {}", owner.unwrap_or(first).node), None);
    }
}

/// The pod CIDRs of a node as its object says.
pub(crate) fn pod_cidrs(node: &Node) -> Vec<&str> {
    let Some(spec) = &node.spec else { return Vec::new() };
    match spec.pod_cidrs.as_deref() {
        Some(all) if !all.is_empty() => all.iter().map(String::as_str).collect(),
        _ => spec.pod_cidr.iter().map(String::as_str).collect(),
    }
}

fn internal_addresses(node: &Node) -> Vec<IpAddr> {
    addresses(node, |kind| kind == "InternalIP")
}

/// Addresses of these types, each once.
fn addresses(node: &Node, of_type: fn(&str) -> bool) -> Vec<IpAddr> {
    let all = node.status.as_ref().and_then(|status| status.addresses.as_ref());
    let mut found = Vec::new();
    for address in all.into_iter().flatten().filter(|address| of_type(&address.type_)) {
        found.extend(parse_ip(&address.address).filter(|address| !found.contains(address)));
    }
    found
}

/// The address that this node encapsulates to for a node, which stands for every address that the other may encapsulate from: one
/// of a family that this node has too, IPv4 by preference. A node without an internal address is reached by an external one.
fn tunnel_peer(node: &Node, config: &Config) -> Option<IpAddr> {
    let own = [config.node_v4, config.node_v6].map(|address| !address.is_unspecified());
    // Of a node without a known address nothing is known.
    let is_spoken = |address: &&IpAddr| own == [false; 2] || own[usize::from(address.is_ipv6())];
    let best = |all: &[IpAddr]| {
        let mut spoken = all.iter().filter(is_spoken);
        let first = spoken.next()?;
        Some(if first.is_ipv4() { *first } else { *spoken.find(|address| address.is_ipv4()).unwrap_or(first) })
    };
    best(&internal_addresses(node)).or_else(|| best(&addresses(node, |kind| kind == "ExternalIP")))
}

/// A tunnel may carry both families over either, IPv4 by preference; a routed next hop is of the prefix's own family.
fn next_hop(net: IpNet, node: &Node, facts: &NodeFacts) -> Option<(IpAddr, Remote)> {
    if facts.mode == Mode::Vxlan {
        let peer = tunnel_peer(node, &facts.config)?;
        return Some((peer, Remote::new(Addr::from(peer), RemoteKind::Tunnel)));
    }
    let addresses = internal_addresses(node);
    let node = *addresses.iter().find(|address| address.is_ipv4() == net.addr().is_ipv4())?;
    Some(match facts.next_hops.get(&node) {
        Some(NextHop::Router(router)) => (*router, Remote::new(Addr::from(*router), RemoteKind::Routed)),
        _ if !facts.checks_neighbours => (node, Remote::new(Addr::from(node), RemoteKind::Routed)),
        Some(NextHop::Neighbour(Some(Mac(mac)))) => {
            (node, Remote { mac: *mac, ..Remote::new(Addr::from(node), RemoteKind::Native) })
        }
        Some(NextHop::Neighbour(None)) | None => (node, Remote::new(Addr::from(node), RemoteKind::Native)),
    })
}
