// SPDX-License-Identifier: Apache-2.0
//! The sets of prefixes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::{IpNet, Ipv4Net};

use super::{Match, MatchSets, Meaning, SetId, Terms, TooMuch};
use crate::plan::address::covers_mapped;

/// The sets of all prefixes at which the addresses of any term begin or end.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    sets: BTreeMap<IpNet, SetId>,
    /// Prefix lengths that occur, longest first, of IPv4 and of IPv6.
    lengths: [Vec<u8>; 2],
}

impl Blocks {
    /// Walks the prefixes from the widest to the narrowest: each has the set of its parent, with the terms that begin at it
    /// and without those that end. Prefixes that change nothing get no entry.
    pub(super) fn new(
        terms: &Terms,
        sets: &mut MatchSets,
        prefixes: &mut BTreeMap<IpNet, Meaning>,
    ) -> Result<Self, TooMuch> {
        let mut blocks = Self::default();
        let borders = borders(terms, sets)?;
        let wide = borders.keys().any(|net| covers_mapped(*net));
        let mut parents: Vec<(IpNet, SetId)> = Vec::new();
        for (net, changes) in &borders {
            while parents.last().is_some_and(|(parent, _)| !parent.contains(net)) {
                parents.pop();
            }
            let otherwise = parents.last().map_or(0, |(_, set)| *set);
            let set = if changes.is_empty() { otherwise } else { sets.intern(changed(sets.get(otherwise), changes))? };
            // The trie is one for both families: without this entry an IPv6 prefix such as ::/0 would mean IPv4 as well.
            let shields = wide && *net == IpNet::V4(Ipv4Net::default());
            if set != otherwise || shields {
                prefixes.insert(*net, Meaning { set, otherwise });
            }
            parents.push((*net, set));
            blocks.sets.insert(*net, set);
        }
        blocks.lengths = [true, false].map(|ipv4| {
            let of_family = blocks.sets.keys().filter(|net| net.addr().is_ipv4() == ipv4);
            let lengths: BTreeSet<u8> = of_family.map(IpNet::prefix_len).collect();
            lengths.into_iter().rev().collect()
        });
        Ok(blocks)
    }

    pub(super) fn lookup(&self, address: IpAddr) -> SetId {
        let lengths = &self.lengths[usize::from(address.is_ipv6())];
        let candidates = lengths.iter().filter_map(|length| IpNet::new(address, *length).ok());
        candidates.into_iter().find_map(|net| self.sets.get(&net.trunc())).copied().unwrap_or(0)
    }
}

/// By prefix: which terms begin (true) or end there, by their places in order.
type Borders = BTreeMap<IpNet, Vec<(u32, bool)>>;

fn borders(terms: &Terms, sets: &mut MatchSets) -> Result<Borders, TooMuch> {
    let mut borders = Borders::new();
    for (place, _, region) in terms.iter() {
        let Some(region) = region else { continue };
        sets.step(region.borders().len())?;
        for (net, begins) in region.borders() {
            borders.entry(*net).or_default().push((place, *begins));
        }
    }
    if borders.keys().any(|net| covers_mapped(*net)) {
        borders.entry(IpNet::V4(Ipv4Net::default())).or_default();
    }
    Ok(borders)
}

/// The matches of `set` after some changes; both are in the order of terms.
fn changed(set: &[Match], changes: &[(u32, bool)]) -> Vec<Match> {
    let mut changes = changes.iter().peekable();
    let mut all = Vec::with_capacity(set.len() + changes.len());
    for known in set {
        while let Some((term, begins)) = changes.next_if(|(term, _)| *term < known.0) {
            all.extend(begins.then_some((*term, 0)));
        }
        match changes.next_if(|(term, _)| *term == known.0) {
            Some((_, false)) => {}
            _ => all.push(*known),
        }
    }
    all.extend(changes.filter(|(_, begins)| *begins).map(|(term, _)| (*term, 0)));
    all
}
