// SPDX-License-Identifier: Apache-2.0
//! Decision lists: what one combination of policies says one way, as the programs read it.

use std::{collections::BTreeMap, fmt, sync::Arc};

use weft_abi::{
    Addr, BlockKey, CLOSED_LIST, INTERVALS_PER_RUN, Interval, List, ListFlags, MAX_LENGTHS, MAX_MORE_RUNS, MAX_RUNS,
    PROTOCOL_ANY, RuleKey, Run, part,
};

use crate::{
    model::{Desired, HashKey, Name},
    plan::policy::{
        block,
        isolation::{Forms, PolicySet, SetKey},
        names,
        parts::{BlockSet, Building, KnownBlocks, Part, number_of},
        peers::{NamedPort, Peer, PeerTerm, PodPeer},
        ports::{self, PortRange},
        rules::{Direction, Rule},
    },
};

/// Intervals of one part at most.
const MAX_INTERVALS: usize = MAX_RUNS as usize * INTERVALS_PER_RUN;
/// What all parts of one list may say together, in intervals and prefixes: as much as the maps hold by their default sizes for all
/// lists, so that whoever asks for more would be closed anyway, and a list costs 10 MB while it is made.
pub(super) const MAX_SAID: usize = 1 << 18;

/// One list, whole.
#[derive(Debug)]
pub(crate) struct DecisionList {
    pub(crate) head: List,
    /// By part and place; those of blocks are with these.
    pub(crate) runs: BTreeMap<u64, Run>,
    pub(crate) blocks: BlockSet,
    pub(crate) known: KnownList,
}

/// What is kept of a list that stands in the plan.
#[derive(Debug, Default)]
pub(crate) struct KnownList {
    pub(crate) number: u64,
    /// How many rules it takes beside those of its blocks.
    pub(crate) rules: usize,
    pub(crate) blocks: KnownBlocks,
    /// The terms that it has parts for, in order.
    pub(crate) parts: Vec<u64>,
    /// Those of them that are namespaces.
    pub(crate) namespaces: Vec<Name>,
    /// Those of them that classes have to be asked for.
    pub(crate) terms: Vec<Arc<PeerTerm>>,
    /// Why it is none: then nothing else is kept of it, and its number stands for why.
    pub(crate) too_long: Option<TooLong>,
}

/// Why a list is none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum TooLong {
    /// Intervals for one peer.
    Ports(usize),
    /// Runs beyond the first of each part that one peer may have.
    Runs(usize),
    /// Prefix lengths of one family.
    Lengths(usize),
    /// Rules of blocks that lie within each other.
    Blocks,
    /// More in all than any list may say.
    All,
}

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ports(count) => write!(
                f,
                "{count} port ranges towards one peer, of all policies that select the same pods: {MAX_INTERVALS} fit; merge \
                 ports into ranges with endPort"
            ),
            Self::Runs(count) => write!(
                f,
                "port ranges towards one peer may take {count} entries beyond the first of each selector that means it, of all \
                 policies that select the same pods: {MAX_MORE_RUNS} fit; merge ports into ranges with endPort"
            ),
            Self::Lengths(count) => write!(
                f,
                "ipBlocks of {count} different prefix lengths of one family, of all policies that select the same pods: \
                 {MAX_LENGTHS} fit; use fewer"
            ),
            Self::Blocks => f.write_str("too many rules with ipBlocks that lie within each other: use fewer"),
            Self::All => write!(
                f,
                "peers times port ranges are more than {MAX_SAID}, of all policies that select the same pods: use fewer"
            ),
        }
    }
}

/// What a list says, by part.
#[derive(Debug, Default)]
struct Draft<'f> {
    /// What it says of everybody.
    any: Vec<Interval>,
    any_pod: Vec<Interval>,
    namespaces: BTreeMap<&'f str, Vec<Interval>>,
    peers: BTreeMap<Arc<PeerTerm>, Vec<Interval>>,
    blocks: block::Rules<'f>,
    /// Intervals of all parts.
    said: usize,
}

/// The list of a set of policies.
pub(crate) fn compile(key: &SetKey, set: &PolicySet, forms: &Forms, hash: HashKey) -> DecisionList {
    if set.policies.is_empty() {
        return DecisionList::closed(KnownList { number: CLOSED_LIST, ..KnownList::default() });
    }
    let written = draft(key, set, forms, hash).and_then(|draft| draft.finish(key, hash));
    written.unwrap_or_else(|why| {
        // Nothing of it is kept: it is its owner's alone how much there was.
        let number = number_of(hash.of("too long").text(&key.to_string()).text(&why.to_string()));
        DecisionList::closed(KnownList { number, too_long: Some(why), ..KnownList::default() })
    })
}

/// What all rules say. Those about everybody come first: what others say beside them is left out before it is copied to their peers.
fn draft<'f>(key: &SetKey, set: &PolicySet, forms: &'f Forms, hash: HashKey) -> Result<Draft<'f>, TooLong> {
    let mut draft = Draft::default();
    for about_everybody in [true, false] {
        for policy in &set.policies {
            let rules = forms.get(policy).and_then(|form| form.rules_of(key.direction)).unwrap_or_default();
            let numbered = names::of_rules(hash, policy, key.direction).zip(rules);
            for (number, rule) in numbered.filter(|(_, rule)| rule.peers.is_none() == about_everybody) {
                draft.add(rule, set, key, number)?;
            }
        }
        if about_everybody {
            draft.any = ports::condense(draft.any, &[]);
            check_part(&draft.any)?;
        }
    }
    Ok(draft)
}

/// A part has room for so many.
pub(super) const fn check_part(said: &[Interval]) -> Result<(), TooLong> {
    if said.len() > MAX_INTERVALS { Err(TooLong::Ports(said.len())) } else { Ok(()) }
}

/// Adds to a part, and to what all of them say. What adds nothing goes as soon as a part seems to be too long for its room.
fn extend(part: &mut Vec<Interval>, more: &[Interval], said: &mut usize) -> Result<(), TooLong> {
    *said += more.len();
    if *said > MAX_SAID {
        return Err(TooLong::All);
    }
    part.extend(more);
    if part.len() > MAX_INTERVALS {
        *part = ports::condense(std::mem::take(part), &[]);
        check_part(part)?;
    }
    Ok(())
}

/// What a rule says of some ports.
fn accept(ports: &[PortRange], rule: u32) -> Vec<Interval> {
    let interval = |PortRange { protocol, first, last }: &PortRange| Interval::accept(*protocol, *first, *last, rule);
    ports.iter().map(interval).collect()
}

impl<'f> Draft<'f> {
    fn add(&mut self, rule: &'f Rule, set: &PolicySet, key: &SetKey, number: u32) -> Result<(), TooLong> {
        let ports = match key.direction {
            Direction::Ingress => ingress_ports(rule, set),
            Direction::Egress => {
                self.add_egress_names(rule, number)?;
                rule.numeric.clone()
            }
        };
        if ports.is_empty() {
            return Ok(());
        }
        let all = accept(&ports::merge(ports), number);
        let Some(peers) = &rule.peers else {
            return extend(&mut self.any, &all, &mut self.said);
        };
        let said = ports::condense(all.clone(), &self.any);
        if !said.is_empty() && !peers.is_empty() {
            check_part(&said)?;
        }
        let mut blocks = Vec::new();
        for peer in peers {
            match peer {
                Peer::Block(block) => blocks.push(block),
                Peer::Pods(_) if said.is_empty() => {}
                Peer::Pods(peer) if peer.is_everybody() => extend(&mut self.any_pod, &said, &mut self.said)?,
                Peer::Pods(peer) => match peer.whole_namespaces() {
                    Some(names) => {
                        for name in names {
                            extend(self.namespaces.entry(name).or_default(), &said, &mut self.said)?;
                        }
                    }
                    None => {
                        let term = Arc::new(PeerTerm { peer: peer.clone(), named: None });
                        extend(self.peers.entry(term).or_default(), &said, &mut self.said)?;
                    }
                },
            }
        }
        if !blocks.is_empty() && !self.lets_everybody() {
            check_part(&all)?;
            self.said += blocks.len() + all.len();
            self.blocks.push((blocks, all));
        }
        if self.said > MAX_SAID { Err(TooLong::All) } else { Ok(()) }
    }

    /// Whether everybody may everything.
    fn lets_everybody(&self) -> bool {
        self.any.iter().any(|interval| interval.protocol == PROTOCOL_ANY)
    }

    /// The port is each peer pod's own: the name becomes part of whom the rule means. An address block has no pod that
    /// could tell, so that a name allows nothing there.
    fn add_egress_names(&mut self, rule: &Rule, number: u32) -> Result<(), TooLong> {
        let any = [Peer::Pods(PodPeer::all())];
        let peers = rule.peers.as_deref().unwrap_or(&any);
        for peer in peers.iter().filter_map(Peer::as_pods) {
            for named in &rule.named {
                let term = Arc::new(PeerTerm { peer: peer.clone(), named: Some(named.clone()) });
                // Which port it is the term of the class says.
                let every = PortRange { protocol: named.protocol, first: 0, last: u16::MAX };
                extend(self.peers.entry(term).or_default(), &accept(&[every], number), &mut self.said)?;
            }
        }
        Ok(())
    }

    fn finish(self, key: &SetKey, hash: HashKey) -> Result<DecisionList, TooLong> {
        let everybody = self.lets_everybody();
        let any = self.any;
        let mut list = Building::new(&any, hash);
        list.head.flags |= ListFlags::ISOLATES;
        list.head.isolated_by = names::of_set(hash, key);
        if !any.is_empty() {
            list.put(part::ANY, Part::General, &any)?;
        }
        let any_pod = ports::condense(self.any_pod, &any);
        if !any_pod.is_empty() {
            list.put(part::ANY_POD, Part::General, &any_pod)?;
        }
        for (name, said) in self.namespaces {
            if list.put_term(namespace_term(hash, name), Part::Namespace, said)? {
                list.known.namespaces.push(Name::shared(name));
            }
        }
        for (peer, said) in self.peers {
            let term = peer.number(hash);
            if list.put_term(term, Part::Term, said)? {
                list.known.terms.push(peer);
            }
        }
        // What everybody may besides is said again: the set is the same beside other policies.
        if !everybody {
            list.put_blocks(block::flatten(&self.blocks, &[]).map_err(|block::TooMuch| TooLong::Blocks)?)?;
        }
        list.finish()
    }
}

fn ingress_ports(rule: &Rule, set: &PolicySet) -> Vec<PortRange> {
    let resolved = rule.named.iter().flat_map(|name| {
        let numbers = set.named.get(name).into_iter().flatten();
        numbers.map(|number| single(name, *number))
    });
    rule.numeric.iter().copied().chain(resolved).collect()
}

const fn single(name: &NamedPort, number: u16) -> PortRange {
    PortRange { protocol: name.protocol, first: number, last: number }
}

/// The term of all pods of a namespace.
pub(crate) fn namespace_term(hash: HashKey, name: &str) -> u64 {
    term_of(hash.of("namespace").text(name).finish())
}

/// A term's number: a hash, and room for a port.
pub(crate) fn term_of(hash: u64) -> u64 {
    #[cfg(test)]
    let hash = hash & BITS.get();
    part::TERM | hash & !part::LOW
}

#[cfg(test)]
thread_local! {
    /// The bits of hashes that terms' numbers have: with few of them, terms meet.
    pub(crate) static BITS: std::cell::Cell<u64> = const { std::cell::Cell::new(u64::MAX) };
}

impl DecisionList {
    /// One of which nothing is written.
    fn closed(known: KnownList) -> Self {
        Self { head: List::EMPTY, runs: BTreeMap::new(), blocks: BlockSet::default(), known }
    }

    /// Writes the list down.
    pub(crate) fn describe(&self, desired: &mut Desired) {
        if self.known.number == CLOSED_LIST {
            return;
        }
        desired.lists.insert(self.known.number, self.head);
        desired.rules.extend(self.rules());
        desired.blocks.extend(self.block_keys());
    }

    pub(crate) fn rules(&self) -> impl Iterator<Item = (RuleKey, Run)> {
        let KnownList { number, blocks, .. } = &self.known;
        let all = |list, runs| BTreeMap::iter(runs).map(move |(part, run)| (RuleKey { list, part: *part }, *run));
        all(*number, &self.runs).chain(all(blocks.number, &self.blocks.runs))
    }

    pub(crate) fn block_keys(&self) -> impl Iterator<Item = (BlockKey, u64)> {
        let blocks = self.known.blocks.number;
        let key = move |addr: &Addr, length: &u32| BlockKey { blocks, addr: *addr, prefix_len: *length, pad: 0 };
        self.blocks.prefixes.iter().map(move |((addr, length), part)| (key(addr, length), *part))
    }
}
