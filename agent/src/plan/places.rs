// SPDX-License-Identifier: Apache-2.0
//! Which node's pods may have an address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use crate::{
    model::{NodeFacts, Snapshot},
    plan::{address::parse_cidr, routes},
};

/// The pod CIDRs of all nodes. A node speaks for the pods on it, and a kubelet writes their status: only what lies within the
/// node's own pod CIDRs is believed, or whoever has taken over one node could have its packets judged as anybody's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    nodes: BTreeMap<IpNet, String>,
    /// Prefix lengths that occur, longest first, of IPv4 and of IPv6.
    lengths: [Vec<u8>; 2],
}

impl Places {
    /// Of two nodes with one prefix the first one has it, as with the routes to it; this one before all.
    pub(crate) fn new(snapshot: &Snapshot, facts: &NodeFacts) -> Self {
        let own = facts.pod_cidrs.iter().map(|net| (net.trunc(), facts.name.as_str()));
        let others = snapshot.nodes.iter().filter(|(key, _)| key.name != facts.name);
        let others = others.flat_map(|(key, node)| {
            let nets = routes::pod_cidrs(node).into_iter().filter_map(|text| parse_cidr(text).ok());
            nets.map(|net| (net, key.name.as_str())).collect::<Vec<_>>()
        });
        let mut places = Self::default();
        for (net, node) in own.chain(others) {
            places.nodes.entry(net).or_insert_with(|| node.to_owned());
        }
        places.lengths = [true, false].map(|ipv4| {
            let of_family = places.nodes.keys().filter(|net| net.addr().is_ipv4() == ipv4);
            of_family.map(IpNet::prefix_len).collect::<BTreeSet<u8>>().into_iter().rev().collect()
        });
        places
    }

    /// The node to which packets for this address go.
    pub(crate) fn node_of(&self, address: IpAddr) -> Option<&str> {
        let lengths = &self.lengths[usize::from(address.is_ipv6())];
        let nets = lengths.iter().filter_map(|length| IpNet::new(address, *length).ok());
        nets.into_iter().find_map(|net| self.nodes.get(&net.trunc())).map(String::as_str)
    }

    /// Prefixes that lead to different nodes here and there.
    pub(crate) fn differing<'p>(&'p self, other: &'p Self) -> impl Iterator<Item = IpNet> + 'p {
        let all = self.nodes.keys().chain(other.nodes.keys().filter(|net| !self.nodes.contains_key(net)));
        all.filter(|net| self.nodes.get(net) != other.nodes.get(net)).copied()
    }
}
