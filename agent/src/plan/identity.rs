// SPDX-License-Identifier: Apache-2.0
//! Identities: numbers for the sets of peers that addresses match.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::{IpNet, Ipv4Net};
use weft_abi::WORLD_IDENTITY;

use crate::{
    model::{Numbers, Snapshot},
    plan::{
        address::covers_mapped,
        pods::{Owners, PodEntry, PodPort},
        policy::{
            isolation::resolve,
            peers::{Block, Peer, PeerTerm},
            selector::Labels,
        },
    },
};

/// A peer that an address matches: the peer's number, and the port that the address's pod numbers so where the peer is
/// about a named port (else 0).
pub(crate) type Match = (u32, u16);

/// Number of a set within one plan; 0 is the empty set.
pub(crate) type SetId = usize;

/// The sets of matches that occur, each once.
#[derive(Debug)]
pub(crate) struct MatchSets {
    all: Vec<Vec<Match>>,
    ids: BTreeMap<Vec<Match>, SetId>,
}

impl Default for MatchSets {
    fn default() -> Self {
        Self { all: vec![Vec::new()], ids: BTreeMap::from([(Vec::new(), 0)]) }
    }
}

impl MatchSets {
    fn intern(&mut self, set: BTreeSet<Match>) -> SetId {
        let set: Vec<Match> = set.into_iter().collect();
        if let Some(id) = self.ids.get(&set) {
            return *id;
        }
        self.ids.insert(set.clone(), self.all.len());
        self.all.push(set);
        self.all.len() - 1
    }

    /// The matches of a set.
    pub(crate) fn get(&self, id: SetId) -> &[Match] {
        &self.all[id]
    }
}

/// What an entry says, and what would hold for its addresses without it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Meaning {
    pub(crate) set: SetId,
    pub(crate) otherwise: SetId,
}

/// Every address and prefix that policies tell apart.
#[derive(Debug, Default)]
pub(crate) struct Identities {
    pub(crate) sets: MatchSets,
    /// Single addresses whose set is not that of their prefix.
    pub(crate) exact: BTreeMap<IpAddr, Meaning>,
    /// Prefixes.
    pub(crate) prefixes: BTreeMap<IpNet, Meaning>,
    /// The number of each set that occurs above.
    pub(crate) numbers: BTreeMap<SetId, u32>,
}

/// Finds the set of every address, and numbers the sets.
pub(crate) fn identify(
    snapshot: &Snapshot,
    owners: &Owners<'_>,
    terms: &BTreeMap<PeerTerm, u32>,
    numbers: &mut Numbers,
) -> Identities {
    let mut identities = Identities::default();
    let blocks = Blocks::new(terms, &mut identities);
    let mut matcher = PodMatcher::new(snapshot, terms);
    for (address, owner) in owners {
        let Some(owner) = owner else { continue };
        let by_pod = matcher.matches(*owner, &mut identities.sets);
        let otherwise = blocks.lookup(*address);
        let set = matcher.union(by_pod, otherwise, &mut identities.sets);
        if set != otherwise {
            identities.exact.insert(*address, Meaning { set, otherwise });
        }
    }
    identities.assign(numbers);
    identities
}

impl Identities {
    fn assign(&mut self, numbers: &mut Numbers) {
        let used: BTreeSet<SetId> = self.exact.values().chain(self.prefixes.values()).map(|m| m.set).collect();
        let texts: BTreeMap<SetId, String> =
            used.into_iter().filter(|id| *id != 0).map(|id| (id, text_of(self.sets.get(id)))).collect();
        numbers.assign_identities(&texts.values().cloned().collect());
        self.numbers.insert(0, WORLD_IDENTITY);
        for (id, text) in texts {
            // Without a number left the address is as good as unknown: nothing is allowed for its sake.
            self.numbers.insert(id, numbers.identities.get(&text).copied().unwrap_or(WORLD_IDENTITY));
        }
    }
}

fn text_of(set: &[Match]) -> String {
    let parts = set.iter().map(|(peer, port)| if *port == 0 { peer.to_string() } else { format!("{peer}:{port}") });
    parts.collect::<Vec<_>>().join(",")
}

/// The peers that each pod matches.
struct PodMatcher<'a> {
    snapshot: &'a Snapshot,
    terms: &'a BTreeMap<PeerTerm, u32>,
    by_namespace: BTreeMap<&'a str, Vec<(&'a PeerTerm, u32)>>,
    // Looked up only, never iterated: the order of a HashMap does not matter. Most pods share labels and ports with others.
    known: HashMap<(&'a str, &'a Labels, BTreeSet<PodPort<'a>>), SetId>,
    unions: HashMap<(SetId, SetId), SetId>,
}

impl<'a> PodMatcher<'a> {
    fn new(snapshot: &'a Snapshot, terms: &'a BTreeMap<PeerTerm, u32>) -> Self {
        Self { snapshot, terms, by_namespace: BTreeMap::new(), known: HashMap::new(), unions: HashMap::new() }
    }

    fn matches(&mut self, pod: PodEntry<'a>, sets: &mut MatchSets) -> SetId {
        let namespace = pod.key.namespace.as_str();
        let (snapshot, terms) = (self.snapshot, self.terms);
        let terms = self.by_namespace.entry(namespace).or_insert_with(|| terms_of(snapshot, terms, namespace));
        if terms.is_empty() {
            return 0;
        }
        let labels = pod.labels();
        let ports =
            if terms.iter().any(|(term, _)| term.named.is_some()) { pod.named_ports() } else { BTreeSet::new() };
        let key = (namespace, labels, ports);
        if let Some(id) = self.known.get(&key) {
            return *id;
        }
        let mut set = BTreeSet::new();
        for (term, number) in terms.iter() {
            let Peer::Pods { pods, .. } = &term.peer else { continue };
            if pods.matches(labels) {
                match &term.named {
                    None => set.extend([(*number, 0)]),
                    Some(named) => set.extend(resolve(named, &key.2).into_iter().map(|port| (*number, port))),
                }
            }
        }
        let id = sets.intern(set);
        self.known.insert(key, id);
        id
    }

    fn union(&mut self, a: SetId, b: SetId, sets: &mut MatchSets) -> SetId {
        if a == 0 || b == 0 {
            return a.max(b);
        }
        *self.unions.entry((a, b)).or_insert_with(|| {
            let union = sets.get(a).iter().chain(sets.get(b)).copied().collect();
            sets.intern(union)
        })
    }
}

/// The peers that can mean a pod of this namespace.
fn terms_of<'a>(snapshot: &Snapshot, terms: &'a BTreeMap<PeerTerm, u32>, namespace: &str) -> Vec<(&'a PeerTerm, u32)> {
    let labels = namespace_labels(snapshot, namespace);
    let meant = |term: &PeerTerm| match &term.peer {
        Peer::Pods { namespaces, .. } => namespaces.matches(namespace, labels.as_ref()),
        Peer::Block(_) => false,
    };
    terms.iter().filter(|(term, _)| meant(term)).map(|(term, number)| (term, *number)).collect()
}

/// A namespace's labels; `kubernetes.io/metadata.name` is always among them (KEP-2161). None: it is not known.
fn namespace_labels(snapshot: &Snapshot, name: &str) -> Option<Labels> {
    let namespace = snapshot.namespaces.get(&crate::model::ObjectKey::new("", name))?;
    let mut labels = namespace.metadata.labels.clone().unwrap_or_default();
    labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
    Some(labels)
}

/// The sets of all prefixes that any block or hole begins or ends at.
#[derive(Default)]
struct Blocks {
    sets: BTreeMap<IpNet, SetId>,
    /// Prefix lengths that occur, longest first, of IPv4 and of IPv6.
    lengths: [Vec<u8>; 2],
}

/// What changes on the way into a prefix.
#[derive(Default)]
struct Border {
    begin: Vec<Match>,
    end: Vec<Match>,
}

impl Blocks {
    /// Walks the prefixes from the widest to the narrowest: each has the set of its parent, and the blocks that begin at
    /// it, without those of which it is a hole. Prefixes that change nothing get no entry.
    fn new(terms: &BTreeMap<PeerTerm, u32>, identities: &mut Identities) -> Self {
        let mut blocks = Self::default();
        let borders = borders(terms);
        let wide = borders.keys().any(|net| covers_mapped(*net));
        let mut parents: Vec<(IpNet, SetId)> = Vec::new();
        for (net, border) in &borders {
            while parents.last().is_some_and(|(parent, _)| !parent.contains(net)) {
                parents.pop();
            }
            let otherwise = parents.last().map_or(0, |(_, set)| *set);
            let mut matches: BTreeSet<Match> = identities.sets.get(otherwise).iter().copied().collect();
            matches.extend(&border.begin);
            for gone in &border.end {
                matches.remove(gone);
            }
            let set = identities.sets.intern(matches);
            // The trie is one for both families: without this entry an IPv6 prefix such as ::/0 would mean IPv4 as well.
            let shields = wide && *net == IpNet::V4(Ipv4Net::default());
            if set != otherwise || shields {
                identities.prefixes.insert(*net, Meaning { set, otherwise });
            }
            parents.push((*net, set));
            blocks.sets.insert(*net, set);
        }
        blocks.lengths = [true, false].map(|ipv4| {
            let of_family = blocks.sets.keys().filter(|net| net.addr().is_ipv4() == ipv4);
            let lengths: BTreeSet<u8> = of_family.map(IpNet::prefix_len).collect();
            lengths.into_iter().rev().collect()
        });
        blocks
    }

    fn lookup(&self, address: IpAddr) -> SetId {
        let lengths = &self.lengths[usize::from(address.is_ipv6())];
        let candidates = lengths.iter().filter_map(|length| IpNet::new(address, *length).ok());
        candidates.into_iter().find_map(|net| self.sets.get(&net.trunc())).copied().unwrap_or(0)
    }
}

fn borders(terms: &BTreeMap<PeerTerm, u32>) -> BTreeMap<IpNet, Border> {
    let mut borders: BTreeMap<IpNet, Border> = BTreeMap::new();
    for (term, number) in terms {
        let Peer::Block(Block { cidr, except }) = &term.peer else { continue };
        borders.entry(*cidr).or_default().begin.push((*number, 0));
        for hole in except {
            borders.entry(*hole).or_default().end.push((*number, 0));
        }
    }
    if borders.keys().any(|net| covers_mapped(*net)) {
        borders.entry(IpNet::V4(Ipv4Net::default())).or_default();
    }
    borders
}
