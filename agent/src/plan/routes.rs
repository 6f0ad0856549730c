// SPDX-License-Identifier: Apache-2.0
//! Where prefixes lead: this node's pods, other nodes' pods, Services.
//!
//! Who takes an address away from whom: pods and the addresses by which nodes are reached stand above ServiceCIDR objects, and
//! these above what nodes say of themselves beside. A ServiceCIDR that does not fit is refused by itself; its Services are routed
//! one by one (`frontends`), as those are that no ServiceCIDR has.

mod frontends;
mod nodes;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
};

use ipnet::IpNet;
use weft_abi::{Addr, CidrKey, HAIRPIN_V4, HAIRPIN_V6, Remote, RemoteFlags, RemoteKind};
use weft_api::RouteReport;

pub(super) use self::frontends::Routes;
pub(crate) use self::nodes::pod_cidrs;
use crate::{
    model::{HostRoute, NodeFacts, Snapshot, objects::ServiceCidr},
    plan::address::{cidr_key, covers_mapped, parse_cidr},
};

/// What prefixes lead to, but for the addresses of Services that are in none of them.
#[derive(Debug, Default)]
struct Base {
    remotes: BTreeMap<CidrKey, Remote>,
    host_routes: Vec<HostRoute>,
    reports: Vec<RouteReport>,
    problems: Vec<String>,
    /// Who claimed a prefix first.
    claims: BTreeMap<CidrKey, String>,
    prefixes: Prefixes,
    /// Single addresses that no Service may have, and whose they are.
    reserved: BTreeMap<IpAddr, String>,
}

/// Prefixes of pods, and of Services.
#[derive(Debug, Default)]
struct Prefixes {
    all: BTreeMap<IpNet, Use>,
    /// The lengths that there are: IPv4 or not, length.
    lengths: BTreeSet<(bool, u8)>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Use {
    Pods,
    Services,
}

/// The shortest prefix that a ServiceCIDR may have, of IPv4 and IPv6: a slip of the pen must not cut the node off.
const WIDEST_SERVICES: [u8; 2] = [8, 32];
/// What no Service has an address of: this host, loopback, link-local, multicast (RFC 6890).
const SPECIAL: [&str; 8] =
    ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "::/127", "fe80::/10", "ff00::/8", "::ffff:0:0/96"];

/// [`SPECIAL`] as prefixes.
pub(super) fn special() -> impl Iterator<Item = IpNet> {
    SPECIAL.iter().filter_map(|text| text.parse().ok())
}

impl Prefixes {
    fn insert(&mut self, net: IpNet, of: Use) {
        self.all.insert(net.trunc(), of);
        self.lengths.insert((net.addr().is_ipv4(), net.prefix_len()));
    }

    /// The longest one that has an address.
    fn find(&self, address: IpAddr) -> Option<(IpNet, Use)> {
        let lengths = self.lengths.iter().rev().filter(|(v4, _)| *v4 == address.is_ipv4());
        lengths.into_iter().find_map(|(_, length)| {
            let net = IpNet::new(address, *length).ok()?.trunc();
            self.all.get(&net).map(|of| (net, *of))
        })
    }

    /// One of pods that has addresses of `net`.
    fn pods_in(&self, net: IpNet) -> Option<IpNet> {
        let lengths =
            self.lengths.iter().filter(|(v4, length)| *v4 == net.addr().is_ipv4() && *length <= net.prefix_len());
        let wider = lengths.filter_map(|(_, length)| Some(IpNet::new(net.network(), *length).ok()?.trunc()));
        let within = self.all.range(net.trunc()..).map(|(other, _)| *other).take_while(|other| net.contains(other));
        wider.chain(within).find(|other| self.all.get(other) == Some(&Use::Pods))
    }
}

impl Base {
    fn new(snapshot: &Snapshot, facts: &NodeFacts) -> Self {
        let mut base = Self::default();
        base.reserve(facts);
        for net in &facts.pod_cidrs {
            base.add(*net, Remote::new(Addr::UNSPECIFIED, RemoteKind::OwnPods), "this node", Some(Use::Pods));
        }
        for net in &facts.service_cidrs {
            base.add_services(*net, "the Service CIDRs");
        }
        for (key, node) in &snapshot.nodes {
            if key.name != facts.name {
                base.add_node(&key.name, node, facts);
            }
        }
        for (key, cidr) in &snapshot.service_cidrs {
            base.add_service_cidr(&key.name, cidr);
        }
        base.add_node_addresses(snapshot, facts);
        base.add_plain(facts);
        // Pages go on after any of them.
        base.reports.sort_by(|a, b| (&a.node, a.pod_cidr).cmp(&(&b.node, b.pod_cidr)));
        base
    }

    /// Prefixes that workloads reach with their own addresses. What of them is a pod's, a Service's or a node's is reached as that.
    fn add_plain(&mut self, facts: &NodeFacts) {
        let keys: BTreeMap<CidrKey, IpNet> = facts.plain_cidrs.iter().map(|net| (cidr_key(*net), *net)).collect();
        if keys.is_empty() {
            return;
        }
        for (key, remote) in self.remotes.iter_mut().filter(|(_, remote)| remote.kind == RemoteKind::Node as u32) {
            let address = IpAddr::from(key.addr);
            if facts.plain_cidrs.iter().any(|net| net.contains(&address)) {
                remote.flags |= RemoteFlags::PLAIN;
            }
        }
        for (key, net) in keys {
            let is_ours = self.prefixes.all.keys().any(|own| own.contains(&net));
            if !is_ours && !self.claims.contains_key(&key) {
                self.remotes.insert(key, Remote::new(Addr::UNSPECIFIED, RemoteKind::Plain));
            }
        }
    }

    fn reserve(&mut self, facts: &NodeFacts) {
        let own = facts.reserved.iter().map(|address| (*address, "this node or its router".to_owned()));
        let hairpins = [HAIRPIN_V4, HAIRPIN_V6].map(|addr| (IpAddr::from(addr), "Weft itself".to_owned()));
        self.reserved = own.chain(hairpins).collect();
    }

    /// A prefix of Services; others may have said the same.
    fn add_services(&mut self, net: IpNet, owner: &str) {
        if self.prefixes.all.get(&net.trunc()) == Some(&Use::Services) {
            return;
        }
        if self.add(net, Remote::new(Addr::UNSPECIFIED, RemoteKind::Services), owner, Some(Use::Services)) {
            self.host_routes.push(HostRoute { dst: net.trunc(), via: None });
        }
    }

    fn add_service_cidr(&mut self, name: &str, cidr: &ServiceCidr) {
        for text in cidr.cidrs() {
            match parse_cidr(text).and_then(|net| self.check_services(net).map(|()| net)) {
                Ok(net) => self.add_services(net, &format!("ServiceCIDR {name}")),
                Err(why) => self.problems.push(format!(
                    "ServiceCIDR {name}: spec.cidrs: {why}; it does not count here, and its Services are routed one by one"
                )),
            }
        }
    }

    /// Whether Services may have a prefix.
    fn check_services(&self, net: IpNet) -> Result<(), String> {
        let widest = WIDEST_SERVICES[usize::from(net.addr().is_ipv6())];
        if net.prefix_len() < widest {
            return Err(format!("{net} is wider than /{widest}; use a prefix of the cluster's own"));
        }
        if let Some(pods) = self.prefixes.pods_in(net) {
            let owner = self.claims.get(&cidr_key(pods)).map_or("pods", String::as_str);
            return Err(format!("{net} overlaps the pod CIDR {pods} of {owner}; use prefixes apart from each other"));
        }
        if let Some((address, whose)) = self.reserved.range(net.network()..=net.broadcast()).next() {
            return Err(format!("{net} has {address} in it, an address of {whose}; use a prefix without it"));
        }
        match special().find(|special| special.contains(&net) || net.contains(special)) {
            Some(special) => Err(format!("{net} overlaps {special}, which is for no Service; use another prefix")),
            None => Ok(()),
        }
    }

    /// Adds a prefix unless somebody has it already; `of`: none for a node's own address.
    fn add(&mut self, net: IpNet, mut remote: Remote, owner: &str, of: Option<Use>) -> bool {
        let key = cidr_key(net);
        if of == Some(Use::Pods) {
            remote.prefix_len = u8::try_from(key.address_bits()).unwrap_or_default();
        }
        if covers_mapped(net) {
            self.problems.push(format!("{owner}: prefix {net} would cover all of IPv4; use a narrower one"));
            return false;
        }
        match self.claims.entry(key) {
            Entry::Vacant(vacant) => {
                vacant.insert(owner.to_owned());
                if let Some(of) = of {
                    self.prefixes.insert(net, of);
                }
                self.remotes.insert(key, remote);
                true
            }
            Entry::Occupied(first) => {
                self.problems.push(format!("{owner}: prefix {net} already belongs to {}", first.get()));
                false
            }
        }
    }
}
