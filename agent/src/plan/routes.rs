// SPDX-License-Identifier: Apache-2.0
//! Where prefixes lead: this node's pods, other nodes' pods, Services.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    hash::Hasher,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use weft_abi::{Addr, CidrKey, Remote, RemoteKind};
use weft_api::{Mac, RouteReport};

use crate::{
    model::{Desired, HostRoute, Mode, NextHop, NodeFacts, Snapshot, objects::Node},
    plan::{
        address::{cidr_key, covers_mapped, parse_ip},
        digest::Digest,
        policy::peers::parse_cidr,
    },
};

/// Prefixes and who claimed them first.
struct Table<'a> {
    desired: &'a mut Desired,
    claims: BTreeMap<CidrKey, String>,
    prefixes: BTreeSet<IpNet>,
}

/// A node that says that an address is its own, and the address that it encapsulates from.
struct Claim<'a> {
    node: &'a str,
    via: IpAddr,
}

/// Plans `REMOTES` and the host's routes.
pub(crate) fn describe(snapshot: &Snapshot, facts: &NodeFacts, desired: &mut Desired) {
    let mut table = Table { desired, claims: BTreeMap::new(), prefixes: BTreeSet::new() };
    for net in &facts.pod_cidrs {
        table.add(*net, Remote::new(Addr::UNSPECIFIED, RemoteKind::OwnPods), "this node");
    }
    for net in &facts.service_cidrs {
        if table.add(*net, Remote::new(Addr::UNSPECIFIED, RemoteKind::Services), "the Service CIDRs") {
            Arc::make_mut(&mut table.desired.host_routes).push(HostRoute { dst: net.trunc(), via: None });
        }
    }
    for (key, node) in &snapshot.nodes {
        if key.name != facts.name {
            table.add_node(&key.name, node, facts);
        }
    }
    if facts.mode == Mode::Vxlan {
        table.add_node_addresses(snapshot, facts);
    }
    Arc::make_mut(&mut desired.host_routes).sort();
    // Pages go on after any of them.
    desired.route_reports.sort_by(|a, b| (&a.node, a.pod_cidr).cmp(&(&b.node, b.pod_cidr)));
    desired.routes_digest = digest(&desired.remotes);
}

impl Table<'_> {
    fn add_node(&mut self, name: &str, node: &Node, facts: &NodeFacts) {
        let addresses = internal_addresses(node);
        for text in pod_cidrs(node) {
            let net = match parse_cidr(text) {
                Ok(net) => net,
                Err(why) => {
                    self.desired.problems.push(format!("Node {name}: spec.podCIDRs: {why}"));
                    continue;
                }
            };
            let Some((via, remote)) = next_hop(net, &addresses, facts) else {
                self.desired.problems.push(format!(
                    "Node {name}: status.addresses has no InternalIP that leads to its pod CIDR {net}; its pods are unreachable"
                ));
                self.add(net, Remote::new(Addr::UNSPECIFIED, RemoteKind::Unreachable), &format!("Node {name}"));
                continue;
            };
            let route = (facts.mode == Mode::Native).then_some(via);
            if self.add(net, remote, &format!("Node {name}")) {
                Arc::make_mut(&mut self.desired.host_routes).push(HostRoute { dst: net, via: route });
                self.desired.route_reports.push(RouteReport { node: name.to_owned(), pod_cidr: net, via });
            }
        }
    }

    /// The other nodes' own addresses: what may come from them by the tunnel beside their pods, and where nobody else may
    /// encapsulate to. Nodes say themselves which they have (kubelets write them): none is a pod's or a Service's.
    fn add_node_addresses(&mut self, snapshot: &Snapshot, facts: &NodeFacts) {
        let mut claims: BTreeMap<IpAddr, Vec<Claim<'_>>> = BTreeMap::new();
        for (key, node) in snapshot.nodes.iter().filter(|(key, _)| key.name != facts.name) {
            let Some(via) = tunnel_peer(&internal_addresses(node)) else { continue };
            for address in addresses(node, |kind| matches!(kind, "InternalIP" | "ExternalIP")) {
                claims.entry(address).or_default().push(Claim { node: &key.name, via });
            }
        }
        let lengths: BTreeSet<(bool, u8)> =
            self.prefixes.iter().map(|net| (net.addr().is_ipv4(), net.prefix_len())).collect();
        for (address, claims) in claims {
            let mut lengths = lengths.iter().filter(|(v4, _)| *v4 == address.is_ipv4());
            let covering = lengths.find_map(|(_, length)| {
                Some(IpNet::new(address, *length).ok()?.trunc()).filter(|net| self.prefixes.contains(net))
            });
            match covering {
                Some(net) => self.desired.problems.extend(claims.iter().map(|Claim { node, .. }| {
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
            self.desired.problems.push(format!(
                "Nodes {}: status.addresses of each has {address}; it is taken for that of {whose}",
                names.join(", ")
            ));
        }
        let via = owner.map_or(Addr::UNSPECIFIED, |claim| Addr::from(claim.via));
        self.add(address.into(), Remote::new(via, RemoteKind::Node), &format!("Node {}", owner.unwrap_or(first).node));
    }

    /// Adds a prefix unless somebody has it already.
    fn add(&mut self, net: IpNet, remote: Remote, owner: &str) -> bool {
        let key = cidr_key(net);
        if covers_mapped(net) {
            self.desired.problems.push(format!("{owner}: prefix {net} would cover all of IPv4; use a narrower one"));
            return false;
        }
        match self.claims.entry(key) {
            Entry::Vacant(vacant) => {
                vacant.insert(owner.to_owned());
                self.prefixes.insert(net.trunc());
                self.desired.remotes.insert(key, remote);
                true
            }
            Entry::Occupied(first) => {
                self.desired.problems.push(format!("{owner}: prefix {net} already belongs to {}", first.get()));
                false
            }
        }
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

/// The address that a node encapsulates from and hears encapsulated packets at.
fn tunnel_peer(internal: &[IpAddr]) -> Option<IpAddr> {
    internal.iter().find(|address| address.is_ipv4()).or(internal.first()).copied()
}

/// A tunnel may carry both families over either, IPv4 by preference; a routed next hop is of the prefix's own family.
fn next_hop(net: IpNet, addresses: &[IpAddr], facts: &NodeFacts) -> Option<(IpAddr, Remote)> {
    if facts.mode == Mode::Vxlan {
        let peer = tunnel_peer(addresses)?;
        return Some((peer, Remote::new(Addr::from(peer), RemoteKind::Tunnel)));
    }
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

/// Of all but the Ethernet addresses: a flow that remembers another one is decided again by itself.
fn digest(remotes: &BTreeMap<CidrKey, Remote>) -> u64 {
    let mut digest = Digest::default();
    for (CidrKey { prefix_len, addr }, Remote { via, kind, .. }) in remotes {
        digest.write_u32(prefix_len.to_le());
        digest.write_u32(kind.to_le());
        for word in addr.0.iter().chain(&via.0) {
            digest.write(&word.to_ne_bytes());
        }
    }
    digest.finish()
}
