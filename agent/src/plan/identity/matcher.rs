// SPDX-License-Identifier: Apache-2.0
//! The terms that pods match.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use super::{Match, MatchSets, SetId, Terms, TooMuch};
use crate::{
    model::{ObjectKey, Snapshot},
    plan::{
        pods::{Owners, PodPort},
        policy::{
            isolation::resolve,
            peers::{NamedPort, PeerTerm, PodPeer},
            selector::Labels,
        },
    },
};

/// Pods that no term can tell apart.
#[derive(Debug)]
pub(crate) struct PodGroup<'a> {
    namespace: &'a str,
    labels: &'a Labels,
    ports: BTreeSet<PodPort<'a>>,
    pub(super) addresses: Vec<IpAddr>,
}

/// All pods that have an address, by what terms may ask of them.
#[derive(Debug, Default)]
pub(crate) struct PodGroups<'a>(Vec<PodGroup<'a>>);

impl<'a> PodGroups<'a> {
    /// Sorts the pods; none where no term of `terms` is about pods.
    pub(crate) fn new(owners: &Owners<'a>, terms: &Terms<'_>) -> Self {
        let of_pods = |named: bool| {
            let mut terms = terms.iter().map(|(_, term, _)| term);
            terms.any(|term| matches!(term, PeerTerm::Pods { named: port, .. } if !named || port.is_some()))
        };
        if !of_pods(false) {
            return Self::default();
        }
        let named = of_pods(true);
        let mut groups = Vec::new();
        // Looked up only, never iterated.
        let mut places: HashMap<(&str, &Labels, BTreeSet<PodPort<'_>>), usize> = HashMap::new();
        for (address, owner) in owners {
            let Some(pod) = owner else { continue };
            let (namespace, labels) = (pod.key.namespace.as_str(), pod.labels());
            let ports = if named { pod.named_ports() } else { BTreeSet::new() };
            let place = *places.entry((namespace, labels, ports)).or_insert_with_key(|(_, _, ports)| {
                groups.push(PodGroup { namespace, labels, ports: ports.clone(), addresses: Vec::new() });
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

/// A term about pods, with its place.
type PodTerm<'a> = (u32, &'a PodPeer, Option<&'a NamedPort>);

/// The terms that each pod matches.
pub(super) struct PodMatcher<'a> {
    snapshot: &'a Snapshot,
    terms: Vec<PodTerm<'a>>,
    /// The terms that can mean a pod of a namespace, and how much work it is to ask them all.
    by_namespace: BTreeMap<&'a str, (Vec<PodTerm<'a>>, usize)>,
    // Looked up only, never iterated.
    unions: HashMap<(SetId, SetId), SetId>,
}

impl<'a> PodMatcher<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, terms: &Terms<'a>) -> Self {
        let of_pods = terms.iter().filter_map(|(place, term, _)| match term {
            PeerTerm::Pods { peer, named } => Some((place, peer, named.as_ref())),
            PeerTerm::Blocks { .. } => None,
        });
        Self { snapshot, terms: of_pods.collect(), by_namespace: BTreeMap::new(), unions: HashMap::new() }
    }

    /// The set of a group's terms.
    pub(super) fn matches(&mut self, group: &PodGroup<'a>, sets: &mut MatchSets) -> Result<SetId, TooMuch> {
        if !self.by_namespace.contains_key(group.namespace) {
            sets.step(self.terms.iter().map(|(_, peer, _)| peer.namespaces.cost()).sum())?;
            let found = self.terms_of(group.namespace);
            let cost = found.iter().map(|(_, peer, _)| peer.pods.cost()).sum();
            self.by_namespace.insert(group.namespace, (found, cost));
        }
        let (terms, cost) = self.by_namespace.get(group.namespace).map_or((&[][..], 0), |(terms, cost)| (terms, *cost));
        sets.step(cost)?;
        let mut set: Vec<Match> = Vec::new();
        for (place, _, named) in terms.iter().filter(|(_, peer, _)| peer.pods.matches(group.labels)) {
            match named {
                None => set.push((*place, 0)),
                Some(named) => set.extend(resolve(named, &group.ports).into_iter().map(|port| (*place, port))),
            }
        }
        sets.intern(set)
    }

    /// The terms that can mean a pod of this namespace.
    fn terms_of(&self, namespace: &str) -> Vec<PodTerm<'a>> {
        let labels = namespace_labels(self.snapshot, namespace);
        let meant = |(_, peer, _): &&PodTerm<'a>| peer.namespaces.matches(namespace, labels.as_ref());
        self.terms.iter().filter(meant).copied().collect()
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

/// A namespace's labels; `kubernetes.io/metadata.name` is always among them (KEP-2161). None: it is not known.
fn namespace_labels(snapshot: &Snapshot, name: &str) -> Option<Labels> {
    let namespace = snapshot.namespaces.get(&ObjectKey::new("", name))?;
    let mut labels = namespace.metadata.labels.clone().unwrap_or_default();
    labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
    Some(labels)
}
