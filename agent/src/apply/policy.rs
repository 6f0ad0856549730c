// SPDX-License-Identifier: Apache-2.0
//! Policy: at no moment may a flow be allowed that neither the old nor the new state allows.
//!
//! What is allowed hangs on three things that cannot change in one write: the policy set of a port, the identity of a peer,
//! and the rules of (policy set, identity). The order is: close ports that cannot go straight; rules, as far as no peer that
//! leaves or joins their identity is let in by them; identities; the rest of the rules; ports; rules that nobody uses.
//! A closed port refuses new flows for the moment of the pass; decided flows go on, as no generation has moved yet.

use std::collections::{BTreeMap, BTreeSet};

use weft_abi::{Addr, AddressKey, CidrKey, Port, PortRule, RULES_PER_CHUNK, RuleKey, Rules, WORLD_IDENTITY};
use weft_dataplane::Error;

use super::{
    Observed, Pass,
    patch::{Changes, Layered, Patch},
};

/// A policy set without rules: everything is refused.
pub(super) const CLOSED: u32 = u32::MAX;

/// (policy set, identity).
type Pair = (u32, u32);
/// The rules of one pair, by chunk.
type Chunks = BTreeMap<u32, Rules>;

/// What a pass has to do, from old to new.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// Ports to close first.
    closed: BTreeMap<u32, Port>,
    /// Rules to write before identities change.
    before: BTreeMap<Pair, Chunks>,
    /// Rules to write after it.
    after: BTreeMap<Pair, Chunks>,
}

impl Change {
    pub(super) fn plan(observed: &Observed, patch: &Patch) -> Self {
        let (leaving, joining) = moves(observed, patch);
        let ports = observed.ports.0.iter().filter(|(ifindex, _)| !patch.ports.contains_key(ifindex));
        let used: BTreeSet<u32> = policies(ports.map(|(_, port)| port).chain(patch.ports.values().flatten()));
        let pairs: BTreeSet<Pair> = patch.rules.keys().map(|key| (key.policy, key.identity)).collect();
        let mut change = Self::default();
        let mut edited = BTreeSet::new();
        for pair in pairs {
            let old = chunks_of(&observed.rules.0, pair);
            let new = changed_chunks(&old, &patch.rules, pair);
            // Rules of sets that nobody will use go last.
            let unused = new.is_empty() && !used.contains(&pair.0);
            if old != new && !unused {
                edited.insert(pair.0);
                change.plan_pair(pair, &old, new, leaving.contains(&pair.1), joining.contains(&pair.1));
            }
        }
        let identities_move = !leaving.is_empty() || !joining.is_empty();
        change.closed = ports_to_close(observed, patch, |policy| identities_move || edited.contains(&policy));
        change
    }

    fn plan_pair(&mut self, pair: Pair, old: &Chunks, new: Chunks, leaving: bool, joining: bool) {
        match (leaving, joining) {
            (false, _) => drop(self.before.insert(pair, new)),
            (true, false) => drop(self.after.insert(pair, new)),
            (true, true) => {
                self.before.insert(pair, common(old, &new));
                self.after.insert(pair, new);
            }
        }
    }
}

impl Pass<'_> {
    /// Old rules and new ones stand beside each other for the time of a pass. A plan takes half of the map, so that this is
    /// no question; where more stands there all the same (a map that was planned otherwise), what goes is taken out first:
    /// new flows that only it allows are refused for that moment.
    pub(super) fn make_room_for_rules(&mut self) {
        let (table, known) = (self.tables.rules(), &self.observed.rules);
        let new = self.patch.rules.iter().filter(|(_, rules)| rules.is_some());
        let added = new.filter(|(key, _)| !known.0.contains_key(key)).count();
        if known.0.len() + added > table.capacity() {
            self.remove_unused_rules();
        }
    }

    /// Everything but the new ports themselves, which come after.
    pub(super) fn put_policy(&mut self, change: &Change) -> Result<(), Error> {
        for (ifindex, port) in &change.closed {
            self.observed.ports.put(self.tables.ports(), *ifindex, *port, &mut self.summary)?;
        }
        self.put_rules_of(&change.before)?;
        let wrong = self.put_identities();
        if !wrong.is_empty() {
            let rules = self.observed.rules.0.keys().chain(self.patch.rules.keys());
            let sets: Vec<u32> = rules.filter(|key| wrong.contains(&key.identity)).map(|key| key.policy).collect();
            self.close_sets(sets)?;
        }
        self.put_rules_of(&change.after)
    }

    /// Where rules cannot be written their set is closed before anything else changes.
    fn put_rules_of(&mut self, rules: &BTreeMap<Pair, Chunks>) -> Result<(), Error> {
        let (mut sets, mut first) = (BTreeSet::new(), None);
        for (pair, chunks) in rules {
            if let Err(error) = self.put_rules(*pair, chunks) {
                sets.insert(pair.0);
                first.get_or_insert(error);
            }
        }
        if let Some(error) = first {
            let why = format!("rules of {} policy sets: {error}; the workloads that have them are closed", sets.len());
            self.summary.problems.push(why);
        }
        self.close_sets(sets)
    }

    /// Closes every port that has one of these sets, now and at the end of the pass.
    fn close_sets(&mut self, sets: impl IntoIterator<Item = u32>) -> Result<(), Error> {
        let before = self.unsure.len();
        self.unsure.extend(sets);
        if self.unsure.len() == before {
            return Ok(());
        }
        let ports: Vec<(u32, Port)> = self.observed.ports.0.iter().map(|(ifindex, port)| (*ifindex, *port)).collect();
        for (ifindex, port) in ports {
            let closed = self.closed(port);
            if closed != port && !self.patch.ports.contains_key(&ifindex) {
                self.unsettled.insert(port.workload);
            }
            self.observed.ports.put(self.tables.ports(), ifindex, closed, &mut self.summary)?;
        }
        Ok(())
    }

    /// The port, closed in the directions whose set is not as it should be.
    pub(super) fn closed(&self, port: Port) -> Port {
        let close = |set: u32| if self.unsure.contains(&set) { CLOSED } else { set };
        Port { ingress_policy: close(port.ingress_policy), egress_policy: close(port.egress_policy), ..port }
    }

    /// An exact address stands above every prefix, so it is written first and removed last. Returns the identities that some
    /// address has wrongly, because it could not be written or removed. After a refusal no prefix is written around what is
    /// not there, and nothing is removed: an address would get an answer that is neither its old one nor its new one.
    fn put_identities(&mut self) -> BTreeSet<u32> {
        let patch = self.patch;
        let Observed { identities, cidrs, .. } = &mut *self.observed;
        let (exact, tries, summary) = (self.tables.identities(), self.tables.cidrs(), &mut self.summary);
        let mut addresses = identities.put_all(exact, &patch.identities, summary);
        let is_held_up = |prefix: &CidrKey, failed: &[CidrKey]| {
            let inner = failed.iter().copied();
            let inner = inner.chain(addresses.keys.iter().map(|address| whole(*address)));
            // Beyond that many it is not worth looking.
            failed.len() + addresses.keys.len() > 64 || inner.into_iter().any(|inner| is_within(&inner, prefix))
        };
        let mut prefixes = cidrs.put_unless(tries, &patch.cidrs, summary, is_held_up);
        if addresses.is_empty() && prefixes.is_empty() {
            prefixes = cidrs.take_in_order(tries, &patch.cidrs, summary);
        }
        if addresses.is_empty() && prefixes.is_empty() {
            addresses = identities.take_gone(exact, &patch.identities, summary);
        }
        let closed = "the workloads whose policies know them are closed";
        addresses.tell("addresses that policies know", closed, summary);
        prefixes.tell("prefixes that policies know", closed, summary);
        if addresses.is_empty() && prefixes.is_empty() {
            return BTreeSet::new();
        }
        let stale_addresses = identities.gone(&patch.identities);
        let stale_prefixes = cidrs.gone(&patch.cidrs);
        let now = Lookup::new(Layered::new(&identities.0), Layered::new(&cidrs.0));
        let addresses = addresses.keys.iter().chain(&stale_addresses).map(|address| now.identity(address));
        addresses.chain(prefixes.keys.iter().chain(&stale_prefixes).map(|prefix| now.covering(prefix))).collect()
    }

    /// The last chunk first, so that none says that more comes where nothing is; removals after the chunk before says so.
    fn put_rules(&mut self, (policy, identity): Pair, chunks: &Chunks) -> Result<(), Error> {
        let (table, known) = (self.tables.rules(), &mut self.observed.rules);
        let key = |chunk| RuleKey { policy, identity, chunk };
        for (chunk, rules) in chunks.iter().rev() {
            known.put(table, key(*chunk), *rules, &mut self.summary)?;
        }
        let all = known.0.range(key(0)..=key(u32::MAX)).map(|(key, _)| key.chunk);
        let old: Vec<u32> = all.filter(|chunk| !chunks.contains_key(chunk)).collect();
        old.into_iter().try_for_each(|chunk| known.take(table, key(chunk), &mut self.summary))
    }

    /// In the order of chunks, so that none says that more comes where nothing is: where one stays, those after it do.
    pub(super) fn remove_unused_rules(&mut self) {
        let (mut stuck, mut first) = (None, None);
        for key in self.observed.rules.gone(&self.patch.rules) {
            // Of a set that could not be written old chunks may still lead to others; it is closed.
            if stuck == Some((key.policy, key.identity)) || self.unsure.contains(&key.policy) {
                continue;
            }
            if let Err(error) = self.observed.rules.take(self.tables.rules(), key, &mut self.summary) {
                stuck = Some((key.policy, key.identity));
                first.get_or_insert(error);
            }
        }
        self.summary
            .problems
            .extend(first.map(|error| format!("old rules of policies: {error}; they are still there")));
    }
}

fn chunks_of(rules: &BTreeMap<RuleKey, Rules>, (policy, identity): Pair) -> Chunks {
    let key = |chunk| RuleKey { policy, identity, chunk };
    rules.range(key(0)..=key(u32::MAX)).map(|(key, rules)| (key.chunk, *rules)).collect()
}

/// `old` after the changes of its pair.
fn changed_chunks(old: &Chunks, changes: &Changes<RuleKey, Rules>, (policy, identity): Pair) -> Chunks {
    let key = |chunk| RuleKey { policy, identity, chunk };
    let mut chunks = old.clone();
    for (key, rules) in changes.range(key(0)..=key(u32::MAX)) {
        match rules {
            Some(rules) => drop(chunks.insert(key.chunk, *rules)),
            None => drop(chunks.remove(&key.chunk)),
        }
    }
    chunks
}

fn policies<'a>(ports: impl Iterator<Item = &'a Port>) -> BTreeSet<u32> {
    ports.flat_map(|port| [port.ingress_policy, port.egress_policy]).collect()
}

/// Ports that go from one policy set to another while `unsettled` says that what the old one allows changes as well.
fn ports_to_close(observed: &Observed, patch: &Patch, unsettled: impl Fn(u32) -> bool) -> BTreeMap<u32, Port> {
    let close = |old: u32, new: u32| if old != 0 && new != 0 && old != new && unsettled(old) { CLOSED } else { old };
    let new = patch.ports.iter().filter_map(|(ifindex, new)| Some((*ifindex, new.as_ref()?)));
    let pairs = new.filter_map(|(ifindex, new)| Some((ifindex, observed.ports.0.get(&ifindex)?, new)));
    pairs
        .map(|(ifindex, old, new)| {
            let ingress_policy = close(old.ingress_policy, new.ingress_policy);
            let egress_policy = close(old.egress_policy, new.egress_policy);
            (ifindex, old, Port { ingress_policy, egress_policy, ..*old })
        })
        .filter(|(_, old, closed)| *old != closed)
        .map(|(ifindex, _, closed)| (ifindex, closed))
        .collect()
}

/// Rules that both have.
fn common(old: &Chunks, new: &Chunks) -> Chunks {
    let old: BTreeSet<PortRule> = all_rules(old).collect();
    let both: BTreeSet<PortRule> = all_rules(new).filter(|rule| old.contains(rule)).collect();
    let both: Vec<PortRule> = both.into_iter().collect();
    let pieces: Vec<&[PortRule]> = both.chunks(RULES_PER_CHUNK).collect();
    (0..).zip(&pieces).map(|(chunk, piece)| (chunk, chunk_of(piece, chunk as usize + 1 < pieces.len()))).collect()
}

fn all_rules(chunks: &Chunks) -> impl Iterator<Item = PortRule> + '_ {
    chunks.values().flat_map(|chunk| chunk.rules.iter().take(usize::from(chunk.count)).copied())
}

fn chunk_of(rules: &[PortRule], more: bool) -> Rules {
    let mut chunk = Rules { count: 0, more: u16::from(more), ..Rules::default() };
    for (slot, rule) in chunk.rules.iter_mut().zip(rules) {
        *slot = *rule;
        chunk.count += 1;
    }
    chunk
}

/// Identities that some address leaves, and those that some address joins.
fn moves(observed: &Observed, patch: &Patch) -> (BTreeSet<u32>, BTreeSet<u32>) {
    let Observed { identities, cidrs, .. } = observed;
    let new_identities = Layered::changed(&identities.0, &patch.identities);
    let new_cidrs = Layered::changed(&cidrs.0, &patch.cidrs);
    let old = Lookup::new(Layered::new(&identities.0), Layered::new(&cidrs.0));
    let new = Lookup::new(new_identities, new_cidrs);
    let addresses = changed(&identities.0, new_identities);
    let singly = addresses.map(|address| (old.identity(address), new.identity(address)));
    let prefixes = changed(&cidrs.0, new_cidrs);
    let widely = prefixes.map(|prefix| (old.covering(prefix), new.covering(prefix)));
    singly.chain(widely).filter(|(from, to)| from != to).unzip()
}

/// Keys whose value differs.
fn changed<'a, K: Ord, V: PartialEq>(old: &'a BTreeMap<K, V>, new: Layered<'a, K, V>) -> impl Iterator<Item = &'a K> {
    new.changed_keys().filter(move |key| old.get(key) != new.get(key))
}

/// What the programs would find.
pub(super) struct Lookup<'a> {
    identities: Layered<'a, AddressKey, u32>,
    cidrs: Layered<'a, CidrKey, u32>,
    /// The prefix lengths there are, longest first.
    lengths: Vec<u32>,
}

impl<'a> Lookup<'a> {
    pub(super) fn new(identities: Layered<'a, AddressKey, u32>, cidrs: Layered<'a, CidrKey, u32>) -> Self {
        let mut lengths: BTreeSet<u32> = cidrs.changed_keys().map(|key| key.prefix_len).collect();
        // Keys are in the order of lengths: one step for each length.
        let mut from = 0;
        while let Some((key, _)) =
            cidrs.under().range(CidrKey { prefix_len: from, net: 0, addr: Addr::UNSPECIFIED }..).next()
        {
            lengths.insert(key.prefix_len);
            from = key.prefix_len + 1;
        }
        Self { identities, cidrs, lengths: lengths.into_iter().rev().collect() }
    }

    pub(super) fn identity(&self, address: &AddressKey) -> u32 {
        self.identities.get(address).copied().unwrap_or_else(|| self.covering(&whole(*address)))
    }

    /// The identity of addresses of `prefix` that no longer prefix covers.
    fn covering(&self, prefix: &CidrKey) -> u32 {
        let lengths = self.lengths.iter().filter(|length| **length <= prefix.prefix_len);
        let mut found = lengths.filter_map(|length| self.cidrs.get(&shortened(prefix, *length)));
        found.next().copied().unwrap_or(WORLD_IDENTITY)
    }
}

/// An address as the longest prefix that there is.
const fn whole(AddressKey { net, addr }: AddressKey) -> CidrKey {
    CidrKey::new(net, addr, 128)
}

fn is_within(inner: &CidrKey, prefix: &CidrKey) -> bool {
    inner.prefix_len >= prefix.prefix_len && shortened(inner, prefix.prefix_len) == *prefix
}

/// The prefix of this length that covers `prefix`.
fn shortened(prefix: &CidrKey, prefix_len: u32) -> CidrKey {
    let addr = truncated(prefix.addr, prefix_len.saturating_sub(CidrKey::NET_BITS));
    CidrKey { prefix_len, addr, ..*prefix }
}

/// The first `length` bits.
fn truncated(Addr(words): Addr, length: u32) -> Addr {
    let mut left = length;
    Addr(words.map(|word| {
        let bits = left.min(32);
        left -= bits;
        let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
        word & mask.to_be()
    }))
}
