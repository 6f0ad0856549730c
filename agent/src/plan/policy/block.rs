// SPDX-License-Identifier: Apache-2.0
//! Blocks of addresses of one list: at which prefixes it says what.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use weft_abi::Interval;

use crate::plan::policy::{list::MAX_SAID, peers::Block, ports::condense};

/// What a list says of blocks: rules, each with its blocks and what it says of them.
pub(super) type Rules<'f> = Vec<(Vec<&'f Block>, Vec<Interval>)>;

/// There is too much of it.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct TooMuch;

/// The prefixes at which a list says something else than around them, in order, and all that holds for addresses in them and in none
/// of the narrower ones.
///
/// Counts, from the widest prefix to the narrowest, the blocks of each rule that an address is in: work in proportion to the prefixes
/// and to what holds there, whatever the blocks have in common.
///
/// # Errors
/// More work than is done for one list.
pub(super) fn flatten(rules: &Rules<'_>, general: &[Interval]) -> Result<Vec<(IpNet, Vec<Interval>)>, TooMuch> {
    let mut changes: BTreeMap<IpNet, BTreeMap<usize, i64>> = BTreeMap::new();
    for (number, (blocks, _)) in rules.iter().enumerate() {
        let mut add = |net: IpNet, more: i64| *changes.entry(net).or_default().entry(number).or_default() += more;
        for Block { cidr, except } in blocks {
            add(*cidr, 1);
            let mut widest: Option<IpNet> = None;
            for hole in except {
                // A hole within a hole of the same block takes nothing away any more.
                if !widest.is_some_and(|widest| widest.contains(hole)) {
                    add(*hole, -1);
                    widest = Some(*hole);
                }
            }
        }
    }
    let mut flat = Flat { rules, general, counts: vec![0; rules.len()], holding: BTreeSet::new(), looks: 0 };
    let mut around: Vec<(IpNet, &BTreeMap<usize, i64>)> = Vec::new();
    let mut borders = Vec::new();
    for (net, changed) in &changes {
        while let Some((wide, leaving)) = around.pop_if(|(wide, _)| !wide.contains(net)) {
            debug_assert!(!wide.contains(net));
            flat.change(leaving, -1);
        }
        if flat.change(changed, 1) {
            borders.push((*net, flat.intervals()?));
        }
        around.push((*net, changed));
    }
    Ok(borders)
}

struct Flat<'r> {
    rules: &'r Rules<'r>,
    general: &'r [Interval],
    /// Blocks of each rule that the address is in.
    counts: Vec<i64>,
    /// Rules that hold.
    holding: BTreeSet<usize>,
    /// What was said so far, before anything was left out of it.
    looks: usize,
}

impl Flat<'_> {
    /// Whether other rules hold now.
    fn change(&mut self, changes: &BTreeMap<usize, i64>, times: i64) -> bool {
        let mut differs = false;
        for (rule, more) in changes {
            self.counts[*rule] += more * times;
            differs |= if self.counts[*rule] > 0 { self.holding.insert(*rule) } else { self.holding.remove(rule) };
        }
        differs
    }

    fn intervals(&mut self) -> Result<Vec<Interval>, TooMuch> {
        let holding = self.holding.iter().map(|rule| &self.rules[*rule].1);
        self.looks += 1 + holding.clone().map(Vec::len).sum::<usize>();
        if self.looks > MAX_SAID {
            return Err(TooMuch);
        }
        Ok(condense(holding.flatten().copied().collect(), self.general))
    }
}

#[cfg(test)]
mod tests {
    use weft_abi::{Tier, Verdict};

    use super::*;

    fn block(cidr: &str, except: &[&str]) -> Block {
        Block { cidr: cidr.parse().unwrap(), except: except.iter().map(|hole| hole.parse().unwrap()).collect() }
    }

    /// One rule at one port for each list of blocks: the ports that are allowed, by prefix.
    fn borders(rules: &[&[Block]]) -> Vec<(String, Vec<u16>)> {
        let bits = Interval::bits(Verdict::Accept, Tier::Network);
        let rules: Rules<'_> = (1..)
            .zip(rules)
            .map(|(port, blocks)| {
                let said = Interval { first: port, last: port, protocol: 6, bits, ..Interval::default() };
                (blocks.iter().collect(), vec![said])
            })
            .collect();
        let flat = flatten(&rules, &[]).unwrap();
        flat.into_iter().map(|(net, said)| (net.to_string(), said.iter().map(|one| one.first).collect())).collect()
    }

    fn expected(list: &[(&str, &[u16])]) -> Vec<(String, Vec<u16>)> {
        list.iter().map(|(net, ports)| ((*net).to_owned(), ports.to_vec())).collect()
    }

    #[test]
    fn holes_are_of_their_own_block_only() {
        let one = [block("0.0.0.0/0", &["10.0.0.0/8"]), block("0.0.0.0/0", &["11.0.0.0/8"])];
        assert_eq!(borders(&[&one]), expected(&[("0.0.0.0/0", &[1])]));
        let one = [block("0.0.0.0/0", &["10.0.0.0/8"]), block("10.1.0.0/16", &[])];
        let all = expected(&[("0.0.0.0/0", &[1]), ("10.0.0.0/8", &[]), ("10.1.0.0/16", &[1])]);
        assert_eq!(borders(&[&one]), all);
    }

    #[test]
    fn a_hole_within_a_hole_counts_once() {
        let one = [block("10.0.0.0/8", &["10.1.0.0/16", "10.1.2.0/24"]), block("10.1.2.0/24", &[])];
        let all = expected(&[("10.0.0.0/8", &[1]), ("10.1.0.0/16", &[]), ("10.1.2.0/24", &[1])]);
        assert_eq!(borders(&[&one]), all);
    }

    #[test]
    fn at_each_prefix_stands_all_that_holds_there() {
        let (wide, hole, narrow) =
            ([block("10.0.0.0/8", &[])], [block("0.0.0.0/0", &["10.1.0.0/16"])], [block("10.1.2.0/24", &[])]);
        let all =
            expected(&[("0.0.0.0/0", &[2]), ("10.0.0.0/8", &[1, 2]), ("10.1.0.0/16", &[1]), ("10.1.2.0/24", &[1, 3])]);
        assert_eq!(borders(&[&wide, &hole, &narrow]), all);
        let beside = [block("10.1.2.0/24", &[]), block("10.1.3.0/24", &[]), block("::/0", &[])];
        let all = expected(&[("10.1.2.0/24", &[1]), ("10.1.3.0/24", &[1]), ("::/0", &[1])]);
        assert_eq!(borders(&[&beside]), all);
    }

    #[test]
    fn many_blocks_with_a_hole_each_are_everything_and_many_rules_are_too_much() {
        let holes = |n: u32| [block("0.0.0.0/0", &[&format!("10.{}.{}.0/24", n >> 8, n & 255)])];
        let many: Vec<Block> = (0..20_000).flat_map(holes).collect();
        assert_eq!(borders(&[&many]).len(), 1);
        let said = Interval { first: 1, last: 1, protocol: 6, bits: 1, ..Interval::default() };
        let rules: Rules<'_> = many[..4000].iter().map(|block| (vec![block], vec![said])).collect();
        assert_eq!(flatten(&rules, &[]).unwrap_err(), TooMuch);
    }
}
