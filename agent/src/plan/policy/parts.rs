// SPDX-License-Identifier: Apache-2.0
//! The parts of a decision list, as they are written: values of the maps, their numbers, and how long a walk through them is.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use ipnet::IpNet;
use weft_abi::{Addr, CLOSED_LIST, Interval, List, MAX_LENGTHS, MAX_MORE_RUNS, Run, TERMS_PER_CLASS, part};

use crate::{
    model::{HashKey, KeyedHash},
    plan::{
        address::cidr_key,
        policy::{
            list::{DecisionList, KnownList, TooLong, check_part},
            ports,
        },
    },
};

/// What a list says of blocks of addresses. Lists that say the same share it: how many combinations of policies a namespace has is
/// no question for how much its blocks take.
#[derive(Debug, Default)]
pub(crate) struct BlockSet {
    /// By part and place.
    pub(super) runs: BTreeMap<u64, Run>,
    /// Parts by prefix: address, and bits that count.
    pub(super) prefixes: BTreeMap<(Addr, u32), u64>,
}

/// What is kept of the blocks of a list.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct KnownBlocks {
    /// 0: there are none.
    pub(crate) number: u64,
    /// How many rules and prefixes they take.
    pub(crate) rules: usize,
    pub(crate) prefixes: usize,
}

/// Runs beyond the first of the parts that one walk looks at, at most: those for anybody and for any pod, one namespace's, one block's
/// and as many terms' as a class has.
#[derive(Debug, Default)]
struct Longest {
    general: usize,
    namespace: usize,
    block: usize,
    terms: Vec<usize>,
}

/// Whom a part is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    General,
    Namespace,
    Block,
    Term,
}

impl Longest {
    fn note(&mut self, part: Part, more: usize) {
        match part {
            Part::General => self.general += more,
            Part::Namespace => self.namespace = self.namespace.max(more),
            Part::Block => self.block = self.block.max(more),
            Part::Term => self.terms.push(more),
        }
    }

    fn all(mut self) -> usize {
        self.terms.sort_unstable_by_key(|more| Reverse(*more));
        self.general + self.namespace + self.block + self.terms.iter().take(TERMS_PER_CLASS).sum::<usize>()
    }
}

/// A list that is being written.
pub(super) struct Building<'l> {
    general: &'l [Interval],
    hash: HashKey,
    pub(super) head: List,
    runs: BTreeMap<u64, Run>,
    longest: Longest,
    blocks: BlockSet,
    pub(super) known: KnownList,
}

impl<'l> Building<'l> {
    /// A list of nothing yet; `general`: what it says of everybody.
    pub(super) fn new(general: &'l [Interval], hash: HashKey) -> Self {
        Self {
            general,
            hash,
            head: List::EMPTY,
            runs: BTreeMap::new(),
            longest: Longest::default(),
            blocks: BlockSet::default(),
            known: KnownList::default(),
        }
    }

    /// Writes a part; one that is empty has a run all the same.
    pub(super) fn put(&mut self, part: u64, is: Part, said: &[Interval]) -> Result<(), TooLong> {
        check_part(said)?;
        self.head.add_part(part);
        self.longest.note(is, Run::of_part(said).count() - 1);
        let runs = if matches!(is, Part::Block) { &mut self.blocks.runs } else { &mut self.runs };
        runs.extend(Run::of_part(said).map(|(place, run)| (part + place, run)));
        Ok(())
    }

    /// Writes the part of a term, unless everybody may all of it.
    pub(super) fn put_term(&mut self, term: u64, is: Part, said: Vec<Interval>) -> Result<bool, TooLong> {
        let said = ports::condense(said, self.general);
        if said.is_empty() {
            return Ok(false);
        }
        self.put(term, is, &said)?;
        self.known.parts.push(term);
        Ok(true)
    }

    /// Equal parts are one.
    pub(super) fn put_blocks(&mut self, borders: Vec<(IpNet, Vec<Interval>)>) -> Result<(), TooLong> {
        let mut parts: BTreeMap<Vec<Interval>, u64> = BTreeMap::new();
        let mut lengths: [BTreeSet<u8>; 2] = Default::default();
        for (net, said) in borders {
            let next = part::BLOCKS + parts.len() as u64 * part::STEP;
            let number = match parts.get(&said) {
                Some(known) => *known,
                None => {
                    self.put(next, Part::Block, &said)?;
                    parts.insert(said, next);
                    next
                }
            };
            let key = cidr_key(net);
            self.blocks.prefixes.insert((key.addr, key.address_bits()), number);
            lengths[usize::from(!key.addr.is_v4())].insert(u8::try_from(key.address_bits()).unwrap_or(u8::MAX));
        }
        for (all, slots) in lengths.iter().zip(&mut self.head.lengths) {
            if all.len() > MAX_LENGTHS {
                return Err(TooLong::Lengths(all.len()));
            }
            slots.iter_mut().zip(all.iter().rev()).for_each(|(slot, length)| *slot = *length);
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<DecisionList, TooLong> {
        let Self { mut head, runs, longest, blocks, mut known, hash, .. } = self;
        let more = longest.all();
        if more > MAX_MORE_RUNS {
            return Err(TooLong::Runs(more));
        }
        known.blocks = blocks.known(hash);
        head.blocks = known.blocks.number;
        let List { filter, blocks: set, flags, isolated_by, lengths } = &head;
        let mut content = filter.iter().fold(hash.of("list").number(*set), |all, word| all.number(*word));
        content = content.number((*flags).into()).number((*isolated_by).into()).bytes(lengths.as_flattened());
        let number = number_of(write_runs(content, &runs));
        known.parts.sort_unstable();
        known = KnownList { number, rules: runs.len(), ..known };
        Ok(DecisionList { head, runs, blocks, known })
    }
}

/// A number by content; two mean something else.
pub(super) fn number_of(content: KeyedHash) -> u64 {
    content.finish().clamp(1, CLOSED_LIST - 1)
}

fn write_runs(mut content: KeyedHash, runs: &BTreeMap<u64, Run>) -> KeyedHash {
    for (part, run) in runs {
        content = run.intervals.iter().fold(content.number(*part), write_interval);
    }
    content
}

fn write_interval(content: KeyedHash, interval: &Interval) -> KeyedHash {
    let Interval { first, last, order, protocol, bits, rule } = *interval;
    let ports = u64::from(first) << 32 | u64::from(last) << 16 | u64::from(order);
    content.number(ports).number(u64::from(rule) << 32 | u64::from(protocol) << 8 | u64::from(bits))
}

impl BlockSet {
    fn known(&self, hash: HashKey) -> KnownBlocks {
        let Self { runs, prefixes } = self;
        if prefixes.is_empty() {
            return KnownBlocks::default();
        }
        let mut content = write_runs(hash.of("blocks"), runs);
        for ((Addr(words), length), part) in prefixes {
            let words = words.map(u32::to_ne_bytes);
            content = content.bytes(words.as_flattened()).number((*length).into()).number(*part);
        }
        KnownBlocks { number: number_of(content), rules: runs.len(), prefixes: prefixes.len() }
    }
}
