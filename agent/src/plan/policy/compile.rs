// SPDX-License-Identifier: Apache-2.0
//! Policy sets and identities to rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::Hasher,
    sync::Arc,
};

use ipnet::IpNet;
use weft_abi::{ANY_IDENTITY, Addr, CidrKey, PortRule, RULES_PER_CHUNK, RuleKey, Rules, WORLD_IDENTITY};

use crate::plan::{
    address::cidr_key,
    digest::Digest,
    identity::{Identities, Match, Meaning, SetId, Terms},
    policy::{
        isolation::{Forms, PolicySet, SetKey},
        peers::{Block, NamedPort, Peer, PeerTerm, PodPeer},
        ports,
        region::{Region, Regions},
        rules::{Direction, Rule},
    },
};

/// Rules of one (policy set, identity) at most.
pub(crate) const MAX_RULES: usize = RuleKey::MAX_CHUNKS as usize * RULES_PER_CHUNK;

/// What one policy set allows.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Allowed {
    /// To any peer.
    pub(crate) any: Vec<PortRule>,
    /// By peer. For a peer at a named port the list is empty: the port is part of the match.
    pub(crate) peers: BTreeMap<Arc<PeerTerm>, Vec<PortRule>>,
    /// The addresses of the terms of blocks.
    pub(crate) regions: BTreeMap<Arc<PeerTerm>, Arc<Region>>,
    /// The longest list of ports that was cut: more than [`MAX_RULES`] for one peer fit nowhere.
    pub(crate) overflow: Option<usize>,
}

/// Blocks by the ports that they are allowed at.
type BlocksByPorts<'f> = BTreeMap<Vec<PortRule>, BTreeSet<&'f Block>>;

impl Allowed {
    /// Unites the rules of all policies of a set.
    pub(crate) fn by(set: &PolicySet, key: &SetKey, forms: &Forms, regions: &mut Regions) -> Self {
        let direction = key.direction;
        let mut allowed = Self::default();
        let mut blocks = BlocksByPorts::new();
        for rule in set.policies.iter().filter_map(|key| forms.get(key)?.rules_of(direction)).flatten() {
            match direction {
                Direction::Ingress => allowed.add(rule, ingress_ports(rule, set), &mut blocks),
                Direction::Egress => {
                    allowed.add(rule, rule.numeric.clone(), &mut blocks);
                    allowed.add_egress_names(rule);
                }
            }
        }
        allowed.any = ports::merge(allowed.any);
        for (ports, blocks) in blocks {
            let term = Arc::new(PeerTerm::Blocks { set: key.to_string(), ports: ports.clone() });
            allowed.regions.insert(term.clone(), regions.of(&blocks));
            allowed.peers.insert(term, ports);
        }
        let Self { any, peers, overflow, .. } = &mut allowed;
        for list in peers.values_mut() {
            *list = ports::beyond(ports::merge(std::mem::take(list)), any);
            if list.len() > MAX_RULES {
                *overflow = (*overflow).max(Some(list.len()));
                list.truncate(MAX_RULES);
            }
        }
        allowed
    }

    fn add<'f>(&mut self, rule: &'f Rule, ports: Vec<PortRule>, blocks: &mut BlocksByPorts<'f>) {
        if ports.is_empty() {
            return;
        }
        let ports = ports::merge(ports);
        let Some(peers) = &rule.peers else {
            self.any.extend(ports);
            return;
        };
        for peer in peers {
            if let Peer::Pods(peer) = peer {
                let term = PeerTerm::Pods { peer: peer.clone(), named: None };
                self.peers.entry(Arc::new(term)).or_default().extend(&ports);
            }
        }
        let mut of_rule =
            peers.iter().filter_map(|peer| if let Peer::Block(block) = peer { Some(block) } else { None });
        if let Some(first) = of_rule.next() {
            let known = blocks.entry(ports).or_default();
            known.insert(first);
            known.extend(of_rule);
        }
    }

    /// The port is each peer pod's own: the name becomes part of whom the rule means. An address block has no pod that
    /// could tell, so that a name allows nothing there.
    fn add_egress_names(&mut self, rule: &Rule) {
        let any = [Peer::Pods(PodPeer::all())];
        let peers = rule.peers.as_deref().unwrap_or(&any);
        for peer in peers {
            let Peer::Pods(peer) = peer else { continue };
            for named in &rule.named {
                let term = PeerTerm::Pods { peer: peer.clone(), named: Some(named.clone()) };
                self.peers.entry(Arc::new(term)).or_default();
            }
        }
    }
}

fn ingress_ports(rule: &Rule, set: &PolicySet) -> Vec<PortRule> {
    let resolved = rule.named.iter().flat_map(|name| {
        let numbers = set.named.get(name).into_iter().flatten();
        numbers.map(|number| single(name, *number))
    });
    rule.numeric.iter().copied().chain(resolved).collect()
}

fn single(name: &NamedPort, number: u16) -> PortRule {
    PortRule { first: number, last: number, protocol: name.protocol, pad: 0 }
}

/// What one policy set says of each set of matches; absent: nothing beyond what it allows to any peer.
#[derive(Debug, Default)]
pub(crate) struct Compiled {
    pub(crate) any: Vec<PortRule>,
    pub(crate) by_set: BTreeMap<SetId, Vec<PortRule>>,
    /// The longest list that did not fit.
    pub(crate) overflow: Option<usize>,
    /// How many chunks of rules it takes.
    pub(crate) chunks: usize,
}

/// Which sets of matches contain a term, and with which port.
struct Containing {
    /// By the term's place among [`Terms`]: where it stands in `found`.
    index: Vec<Option<usize>>,
    found: Vec<Vec<(SetId, u16)>>,
}

impl Containing {
    /// Turns the identities around, as far as these policy sets ask.
    fn new<'a>(sets: impl Iterator<Item = &'a Allowed>, identities: &Identities, terms: &Terms) -> Self {
        let (mut index, mut count) = (vec![None; terms.len()], 0);
        for place in sets.flat_map(|allowed| allowed.peers.keys()).filter_map(|term| terms.place(term)) {
            index[place as usize].get_or_insert_with(|| {
                count += 1;
                count - 1
            });
        }
        let mut found = vec![Vec::new(); count];
        for set in &identities.used {
            for (term, port) in identities.sets.get(*set) {
                if let Some(index) = index[*term as usize] {
                    found[index].push((*set, *port));
                }
            }
        }
        Self { index, found }
    }

    fn of(&self, place: u32) -> &[(SetId, u16)] {
        self.index[place as usize].map_or(&[], |index| &self.found[index])
    }
}

/// Compiles policy sets; none: together they have more than `most` chunks.
pub(super) fn compile<'a>(
    sets: impl Iterator<Item = (&'a SetKey, &'a Allowed)> + Clone,
    identities: &Identities,
    terms: &Terms,
    most: usize,
) -> Option<BTreeMap<SetKey, Compiled>> {
    let containing = Containing::new(sets.clone().map(|(_, allowed)| allowed), identities, terms);
    let (mut compiled, mut left) = (BTreeMap::new(), most);
    for (key, allowed) in sets {
        let set = compile_one(allowed, terms, &containing, left)?;
        left = left.checked_sub(set.chunks)?;
        compiled.insert(key.clone(), set);
    }
    Some(compiled)
}

/// Compiles one policy set; none: it has more than `most` chunks.
fn compile_one(allowed: &Allowed, terms: &Terms, containing: &Containing, most: usize) -> Option<Compiled> {
    let mut found: Vec<(SetId, &PeerTerm, &[PortRule], u16)> = Vec::new();
    for (term, ports) in &allowed.peers {
        let sets = terms.place(term).map_or(&[][..], |place| containing.of(place));
        found.extend(sets.iter().map(|(set, port)| (*set, &**term, ports.as_slice(), *port)));
    }
    found.sort_unstable_by_key(|(set, ..)| *set);
    let mut compiled = Compiled { overflow: allowed.overflow, ..Compiled::default() };
    compiled.any = compiled.fit(allowed.any.clone());
    let mut chunks = compiled.any.len().div_ceil(RULES_PER_CHUNK);
    for of_set in found.chunk_by(|one, other| one.0 == other.0) {
        let found = of_set.iter().map(|(_, term, ports, port)| (*term, *ports, *port));
        let list = compiled.fit(list_of(found, allowed));
        chunks += list.len().div_ceil(RULES_PER_CHUNK);
        if chunks > most {
            return None;
        }
        if !list.is_empty() {
            compiled.by_set.insert(of_set[0].0, list);
        }
    }
    compiled.chunks = chunks;
    Some(compiled)
}

/// The ports that some terms allow together, each with its ports and the one that the peer's pod gives to its name.
fn list_of<'a>(terms: impl Iterator<Item = (&'a PeerTerm, &'a [PortRule], u16)>, allowed: &Allowed) -> Vec<PortRule> {
    let mut list = Vec::new();
    for (term, ports, port) in terms {
        match term {
            PeerTerm::Pods { named: Some(name), .. } => list.push(single(name, port)),
            _ => list.extend_from_slice(ports),
        }
    }
    ports::beyond(ports::merge(list), &allowed.any)
}

impl Compiled {
    /// Adds a set of matches that came into use. False: what it allows does not fit whole.
    pub(crate) fn add(&mut self, set: SetId, matches: &[Match], allowed: &Allowed, terms: &Terms) -> bool {
        let found = matches.iter().filter_map(|(place, port)| {
            let (term, ports) = allowed.peers.get_key_value(terms.at(*place)?)?;
            Some((&**term, ports.as_slice(), *port))
        });
        let list = list_of(found, allowed);
        let fits = list.len() <= MAX_RULES;
        if fits && !list.is_empty() {
            self.chunks += list.len().div_ceil(RULES_PER_CHUNK);
            self.by_set.insert(set, list);
        }
        fits
    }

    /// Takes a set of matches out that is out of use.
    pub(crate) fn remove(&mut self, set: SetId) {
        if let Some(list) = self.by_set.remove(&set) {
            self.chunks -= list.len().div_ceil(RULES_PER_CHUNK);
        }
    }

    /// The rules of one set of matches under the numbers of both.
    pub(crate) fn rules_of(&self, set: SetId, policy: u32, identity: u32) -> BTreeMap<RuleKey, Rules> {
        let mut rules = BTreeMap::new();
        if identity != WORLD_IDENTITY {
            write_chunks(policy, identity, self.of(set), &mut rules);
        }
        rules
    }

    /// Whether a meaning counts for its digest.
    pub(crate) fn tells_apart(&self, meaning: &Meaning) -> bool {
        self.of(meaning.set) != self.of(meaning.otherwise)
    }

    /// What is too much for the programs is left out: closed, not open.
    fn fit(&mut self, mut list: Vec<PortRule>) -> Vec<PortRule> {
        if list.len() > MAX_RULES {
            self.overflow = self.overflow.max(Some(list.len()));
            list.truncate(MAX_RULES);
        }
        list
    }

    /// Writes the rules down under the set's number.
    pub(crate) fn describe(&self, policy: u32, identities: &Identities, rules: &mut BTreeMap<RuleKey, Rules>) {
        write_chunks(policy, ANY_IDENTITY, &self.any, rules);
        for (set, list) in &self.by_set {
            match identities.numbers.get(set) {
                // Whatever had no number left must not open the world.
                Some(&identity) if identity != WORLD_IDENTITY => write_chunks(policy, identity, list, rules),
                _ => {}
            }
        }
    }

    fn of(&self, set: SetId) -> &[PortRule] {
        self.by_set.get(&set).map_or(&[], Vec::as_slice)
    }

    /// A digest of what is allowed to whom by address, whatever the numbers: addresses and prefixes are added up by the
    /// list of ports that holds for them, where it differs from what holds around them.
    pub(crate) fn digest(&self, places: &Places) -> u64 {
        let mut sums: BTreeMap<&[PortRule], u64> = BTreeMap::new();
        for (meaning, (sum, _)) in &places.0 {
            let (inside, outside) = (self.of(meaning.set), self.of(meaning.otherwise));
            if inside != outside {
                let total = sums.entry(inside).or_default();
                *total = total.wrapping_add(*sum);
            }
        }
        let mut digest = Digest::default();
        write_list(&mut digest, &self.any);
        for (list, sum) in sums {
            write_list(&mut digest, list);
            digest.write_u64(sum.to_le());
        }
        digest.finish()
    }
}

/// Digests of all addresses and prefixes of one meaning, added up, and how many they are.
#[derive(Debug, Default)]
pub(crate) struct Places(BTreeMap<Meaning, (u64, usize)>);

impl Places {
    pub(crate) fn of(identities: &Identities) -> Self {
        let mut places = Self::default();
        for (address, meaning) in &identities.exact {
            places.add(*meaning, IpNet::from(*address));
        }
        for (net, meaning) in &identities.prefixes {
            places.add(*meaning, *net);
        }
        places
    }

    pub(crate) fn add(&mut self, meaning: Meaning, net: IpNet) {
        let (sum, count) = self.0.entry(meaning).or_default();
        *sum = sum.wrapping_add(spread(net));
        *count += 1;
    }

    pub(crate) fn remove(&mut self, meaning: Meaning, net: IpNet) {
        let Some((sum, count)) = self.0.get_mut(&meaning) else { return };
        *sum = sum.wrapping_sub(spread(net));
        *count -= 1;
        if *count == 0 {
            self.0.remove(&meaning);
        }
    }
}

fn spread(net: IpNet) -> u64 {
    let CidrKey { prefix_len, addr: Addr([a, b, c, d]), .. } = cidr_key(net);
    let words = [prefix_len.to_le(), a, b, c, d].map(u32::to_ne_bytes);
    Digest::spread(words.as_flattened())
}

fn write_list(digest: &mut Digest, list: &[PortRule]) {
    digest.write_u64((list.len() as u64).to_le());
    for PortRule { first, last, protocol, pad: _ } in list {
        digest.write_u16(first.to_le());
        digest.write_u16(last.to_le());
        digest.write_u8(*protocol);
    }
}

fn write_chunks(policy: u32, identity: u32, list: &[PortRule], rules: &mut BTreeMap<RuleKey, Rules>) {
    let mut chunks = list.chunks(RULES_PER_CHUNK).zip(0..).peekable();
    while let Some((part, chunk)) = chunks.next() {
        let mut value = Rules { more: u16::from(chunks.peek().is_some()), ..Rules::default() };
        for (slot, rule) in value.rules.iter_mut().zip(part) {
            *slot = *rule;
            value.count += 1;
        }
        rules.insert(RuleKey { policy, identity, chunk }, value);
    }
}
