// SPDX-License-Identifier: Apache-2.0
//! The addresses that a list of blocks means together.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;

use crate::plan::policy::peers::Block;

/// The union of some blocks: prefixes at which it begins (true) or ends (false), each different from what its nearest
/// prefix around it says, in the order of prefixes. As many as there are different prefixes in the blocks, at most.
#[derive(Clone, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Region(Vec<(IpNet, bool)>);

/// Equal regions, each once: workloads of many policy sets may share one long list.
#[derive(Debug, Default)]
pub(crate) struct Regions(BTreeSet<Arc<Region>>);

impl Regions {
    /// The union of `blocks`.
    pub(crate) fn of(&mut self, blocks: &BTreeSet<&Block>) -> Arc<Region> {
        let region = Region::of(blocks);
        if let Some(known) = self.0.get(&region) {
            return known.clone();
        }
        let region = Arc::new(region);
        self.0.insert(region.clone());
        region
    }
}

impl Region {
    /// Counts, from the widest prefix to the narrowest, the blocks that an address is in: work in proportion to the prefixes,
    /// whatever the blocks have in common.
    fn of(blocks: &BTreeSet<&Block>) -> Self {
        let mut changes: BTreeMap<IpNet, i64> = BTreeMap::new();
        for Block { cidr, except } in blocks {
            *changes.entry(*cidr).or_default() += 1;
            let mut widest: Option<IpNet> = None;
            for hole in except {
                // A hole within a hole of the same block takes nothing away any more.
                if !widest.is_some_and(|widest| widest.contains(hole)) {
                    *changes.entry(*hole).or_default() -= 1;
                    widest = Some(*hole);
                }
            }
        }
        let mut around: Vec<(IpNet, i64)> = Vec::new();
        let mut borders = Vec::new();
        for (net, change) in changes {
            while around.last().is_some_and(|(wide, _)| !wide.contains(&net)) {
                around.pop();
            }
            let outside = around.last().map_or(0, |(_, count)| *count);
            let inside = outside + change;
            if (inside > 0) != (outside > 0) {
                borders.push((net, inside > 0));
            }
            around.push((net, inside));
        }
        Self(borders)
    }

    /// Where it begins and ends.
    pub(crate) fn borders(&self) -> &[(IpNet, bool)] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(cidr: &str, except: &[&str]) -> Block {
        Block { cidr: cidr.parse().unwrap(), except: except.iter().map(|hole| hole.parse().unwrap()).collect() }
    }

    fn borders(blocks: &[Block]) -> Vec<(String, bool)> {
        let region = Region::of(&blocks.iter().collect());
        region.borders().iter().map(|(net, inside)| (net.to_string(), *inside)).collect()
    }

    #[test]
    fn holes_are_of_their_own_block_only() {
        assert_eq!(
            borders(&[block("0.0.0.0/0", &["10.0.0.0/8"]), block("0.0.0.0/0", &["11.0.0.0/8"])]),
            [("0.0.0.0/0".to_owned(), true)]
        );
        assert_eq!(
            borders(&[block("0.0.0.0/0", &["10.0.0.0/8"]), block("10.1.0.0/16", &[])]),
            [("0.0.0.0/0".to_owned(), true), ("10.0.0.0/8".to_owned(), false), ("10.1.0.0/16".to_owned(), true)]
        );
    }

    #[test]
    fn a_hole_within_a_hole_counts_once() {
        let twice = block("10.0.0.0/8", &["10.1.0.0/16", "10.1.2.0/24"]);
        let inner = block("10.1.2.0/24", &[]);
        assert_eq!(
            borders(&[twice, inner]),
            [("10.0.0.0/8".to_owned(), true), ("10.1.0.0/16".to_owned(), false), ("10.1.2.0/24".to_owned(), true)]
        );
    }

    #[test]
    fn many_blocks_with_a_hole_each_are_everything() {
        let many: Vec<Block> =
            (0..20_000_u32).map(|n| block("0.0.0.0/0", &[&format!("10.{}.{}.0/24", n >> 8, n & 255)])).collect();
        assert_eq!(borders(&many).len(), 1);
    }
}
