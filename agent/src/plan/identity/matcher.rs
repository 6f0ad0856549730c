// SPDX-License-Identifier: Apache-2.0
//! The terms that pods match.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::{Match, MatchSets, SetId, Terms, TooMuch};
use crate::{
    model::{ObjectKey, Snapshot, objects::PodPort},
    plan::{
        pods::{Owners, PodEntry},
        policy::{
            isolation::resolve,
            peers::{NamedPort, PeerTerm, PodPeer},
            selector::{Labels, Selector},
        },
    },
};

/// Pods that no term can tell apart.
#[derive(Debug)]
pub(crate) struct PodGroup<'a> {
    namespace: &'a str,
    labels: &'a Labels,
    ports: &'a [PodPort],
    pub(super) addresses: Vec<IpAddr>,
}

impl<'a> PodGroup<'a> {
    /// One pod for itself.
    pub(super) fn of(pod: PodEntry<'a>) -> Self {
        let (namespace, labels, ports) = (pod.key.namespace.as_str(), pod.labels(), &*pod.pod.ports);
        Self { namespace, labels, ports, addresses: Vec::new() }
    }
}

/// All pods that have an address, by what terms may ask of them.
#[derive(Debug, Default)]
pub(crate) struct PodGroups<'a>(Vec<PodGroup<'a>>);

impl<'a> PodGroups<'a> {
    /// Sorts the pods; none where no term of `terms` is about pods.
    pub(crate) fn new(owners: &Owners<'a>, terms: &Terms) -> Self {
        let of_pods = |named: bool| {
            let mut terms = terms.iter().map(|(_, term, _)| term);
            terms.any(|term| matches!(&**term, PeerTerm::Pods { named: port, .. } if !named || port.is_some()))
        };
        if !of_pods(false) {
            return Self::default();
        }
        let named = of_pods(true);
        let mut groups = Vec::new();
        // Looked up only, never iterated.
        let mut places: HashMap<(&str, &Labels, &[PodPort]), usize> = HashMap::new();
        for (address, owner) in owners {
            let Some(pod) = owner else { continue };
            let (namespace, labels) = (pod.key.namespace.as_str(), pod.labels());
            let ports: &[PodPort] = if named { &pod.pod.ports } else { &[] };
            let place = *places.entry((namespace, labels, ports)).or_insert_with_key(|(_, _, ports)| {
                groups.push(PodGroup { namespace, labels, ports, addresses: Vec::new() });
                groups.len() - 1
            });
            groups[place].addresses.push(*address);
        }
        Self(groups)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &PodGroup<'a>> {
        self.0.iter()
    }
}

/// The terms that each pod matches.
#[derive(Debug, Default)]
pub(super) struct PodMatcher {
    /// Those about pods, by their places.
    terms: BTreeMap<u32, Arc<PeerTerm>>,
    by_namespace: BTreeMap<String, OfNamespace>,
    // Looked up only, never iterated.
    unions: HashMap<(SetId, SetId), SetId>,
}

/// The terms that can mean a pod of a namespace, by their places.
#[derive(Debug, Default)]
struct OfNamespace {
    /// Those that ask for one of some values of a key, by key and value: of most policies a pod has to be asked for few.
    by_value: BTreeMap<String, HashMap<String, Vec<u32>>>,
    others: Vec<u32>,
    /// How much work it is to ask all others.
    cost: usize,
}

impl OfNamespace {
    fn add(&mut self, place: u32, pods: &Selector) {
        let Some((key, values)) = pods.asked_values() else {
            self.others.push(place);
            self.cost += pods.cost();
            return;
        };
        let of_key = self.by_value.entry(key.to_owned()).or_default();
        for value in values.iter() {
            of_key.entry(value.to_owned()).or_default().push(place);
        }
    }

    fn remove(&mut self, place: u32, pods: &Selector) {
        let Some((key, values)) = pods.asked_values() else {
            let before = self.others.len();
            self.others.retain(|known| *known != place);
            self.cost -= if self.others.len() < before { pods.cost() } else { 0 };
            return;
        };
        let Some(of_key) = self.by_value.get_mut(key) else { return };
        for value in values.iter() {
            if let Some(places) = of_key.get_mut(value) {
                places.retain(|known| *known != place);
                if places.is_empty() {
                    of_key.remove(value);
                }
            }
        }
        if of_key.is_empty() {
            self.by_value.remove(key);
        }
    }

    /// Those that may mean a pod with these labels.
    fn candidates(&self, labels: &Labels) -> impl Iterator<Item = u32> {
        let of_values = self.by_value.iter().filter_map(|(key, values)| values.get(labels.get(key)?));
        of_values.flatten().chain(&self.others).copied()
    }
}

fn parts(term: &PeerTerm) -> Option<(&PodPeer, Option<&NamedPort>)> {
    match term {
        PeerTerm::Pods { peer, named } => Some((peer, named.as_ref())),
        PeerTerm::Blocks { .. } => None,
    }
}

impl PodMatcher {
    pub(super) fn new(terms: &Terms) -> Self {
        let of_pods = terms.iter().filter(|(_, term, _)| parts(term).is_some());
        let terms = of_pods.map(|(place, term, _)| (place, term.clone())).collect();
        Self { terms, by_namespace: BTreeMap::new(), unions: HashMap::new() }
    }

    /// One term more, behind all others.
    pub(super) fn add(&mut self, place: u32, term: &Arc<PeerTerm>, snapshot: &Snapshot) {
        let Some((peer, _)) = parts(term) else { return };
        for (namespace, known) in &mut self.by_namespace {
            let labels = namespace_labels(snapshot, namespace);
            if peer.namespaces.matches(namespace, labels.as_ref()) {
                known.add(place, &peer.pods);
            }
        }
        self.terms.insert(place, term.clone());
    }

    /// One less.
    pub(super) fn remove(&mut self, place: u32) {
        let Some(term) = self.terms.remove(&place) else { return };
        let Some((peer, _)) = parts(&term) else { return };
        self.by_namespace.values_mut().for_each(|known| known.remove(place, &peer.pods));
    }

    /// A namespace has other labels now.
    pub(super) fn forget(&mut self, namespace: &str) {
        self.by_namespace.remove(namespace);
    }

    /// The set of a group's terms.
    pub(super) fn matches(
        &mut self,
        snapshot: &Snapshot,
        group: &PodGroup<'_>,
        sets: &mut MatchSets,
    ) -> Result<SetId, TooMuch> {
        if !self.by_namespace.contains_key(group.namespace) {
            let peers = || self.terms.iter().filter_map(|(place, term)| Some((*place, parts(term)?.0)));
            sets.step(peers().map(|(_, peer)| peer.namespaces.cost()).sum())?;
            let labels = namespace_labels(snapshot, group.namespace);
            let mut found = OfNamespace::default();
            for (place, peer) in peers().filter(|(_, peer)| peer.namespaces.matches(group.namespace, labels.as_ref())) {
                found.add(place, &peer.pods);
            }
            self.by_namespace.insert(group.namespace.to_owned(), found);
        }
        let Some(found) = self.by_namespace.get(group.namespace) else { return Ok(0) };
        sets.step(found.by_value.len() + found.cost)?;
        let mut set: Vec<Match> = Vec::new();
        let candidates = found.candidates(group.labels).filter_map(|place| Some((place, self.terms.get(&place)?)));
        for (place, term) in candidates {
            let Some((peer, named)) = parts(term) else { continue };
            // The others are counted above.
            sets.step(peer.pods.asked_values().map_or(0, |_| peer.pods.cost()))?;
            match named {
                _ if !peer.pods.matches(group.labels) => {}
                None => set.push((place, 0)),
                Some(named) => set.extend(resolve(named, group.ports).into_iter().map(|port| (place, port))),
            }
        }
        set.sort_unstable();
        sets.intern(set)
    }

    pub(super) fn union(&mut self, a: SetId, b: SetId, sets: &mut MatchSets) -> Result<SetId, TooMuch> {
        if a == 0 || b == 0 {
            return Ok(a.max(b));
        }
        if let Some(union) = self.unions.get(&(a, b)) {
            return Ok(*union);
        }
        let union: BTreeSet<Match> = sets.get(a).iter().chain(sets.get(b)).copied().collect();
        let union = sets.intern(union.into_iter().collect())?;
        self.unions.insert((a, b), union);
        Ok(union)
    }
}

/// A namespace's labels. None: it is not known.
fn namespace_labels(snapshot: &Snapshot, name: &str) -> Option<Labels> {
    Some(snapshot.namespaces.get(&ObjectKey::new("", name))?.selected_labels())
}
