// SPDX-License-Identifier: Apache-2.0
//! The terms that classes match.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{Group, keys};
use crate::{
    model::{HashKey, Name, ObjectKey, Snapshot},
    plan::policy::{isolation::resolve, peers::PeerTerm, selector::Labels},
};

/// The terms that lists of this node ask for, by their numbers without ports.
#[derive(Debug, Default)]
pub(crate) struct Terms {
    all: BTreeMap<u64, Asked>,
    by_namespace: BTreeMap<String, OfNamespace>,
}

/// A term, and how many lists of which namespaces ask for it.
#[derive(Debug)]
struct Asked {
    term: Arc<PeerTerm>,
    by: BTreeMap<Name, usize>,
}

/// By how many lists more, or fewer, terms are asked for, by namespace.
pub(crate) type Changed = BTreeMap<Arc<PeerTerm>, BTreeMap<Name, isize>>;

/// The terms that can mean a pod of a namespace.
#[derive(Debug, Default)]
struct OfNamespace {
    /// Those that ask for one of some values of a key, by key and value: of most policies a pod has to be asked for few.
    by_value: HashMap<String, HashMap<String, Vec<u64>>>,
    others: Vec<u64>,
}

impl Terms {
    /// `asking`: each list's namespace and terms.
    pub(crate) fn of<'t>(asking: impl Iterator<Item = (&'t Name, &'t [Arc<PeerTerm>])>, hash: HashKey) -> Self {
        let mut terms = Self::default();
        for (namespace, asked) in asking {
            for term in asked {
                let new = || Asked { term: term.clone(), by: BTreeMap::new() };
                let asked = terms.all.entry(term.number(hash)).or_insert_with(new);
                *asked.by.entry(namespace.clone()).or_default() += 1;
            }
        }
        terms
    }

    pub(super) fn get(&self, number: u64) -> Option<&PeerTerm> {
        self.all.get(&number).map(|asked| &*asked.term)
    }

    /// The keys of controllers that they ask for.
    pub(super) fn asked_keys(&self) -> keys::Asked {
        keys::Asked::of(self.all.values().map(|asked| &*asked.term))
    }

    /// The namespaces whose policies ask for a term.
    pub(super) fn askers(&self, number: u64) -> impl Iterator<Item = &Name> + Clone {
        self.all.get(&number).into_iter().flat_map(|asked| asked.by.keys())
    }

    /// More lists ask for a term, or fewer; whether it comes or goes, or other namespaces ask for it.
    pub(super) fn change(
        &mut self,
        number: u64,
        term: &Arc<PeerTerm>,
        by: &BTreeMap<Name, isize>,
        snapshot: &Snapshot,
    ) -> bool {
        let stood = self.all.contains_key(&number);
        let asked = self.all.entry(number).or_insert_with(|| Asked { term: term.clone(), by: BTreeMap::new() });
        let mut differs = false;
        for (namespace, more) in by {
            let count = asked.by.entry(namespace.clone()).or_default();
            let after = count.saturating_add_signed(*more);
            differs |= (*count == 0) != (after == 0);
            *count = after;
        }
        asked.by.retain(|_, count| *count > 0);
        let stands = !asked.by.is_empty();
        if stands && !stood {
            self.add(number, term, snapshot);
        } else if !stands {
            self.remove(number);
        }
        differs
    }

    fn add(&mut self, number: u64, term: &PeerTerm, snapshot: &Snapshot) {
        for (namespace, known) in &mut self.by_namespace {
            let labels = namespace_labels(snapshot, namespace);
            if term.peer.namespaces.matches(namespace, labels.as_ref()) {
                known.add(number, term);
            }
        }
    }

    fn remove(&mut self, number: u64) {
        let Some(Asked { term, .. }) = self.all.remove(&number) else { return };
        self.by_namespace.values_mut().for_each(|known| known.remove(number, &term));
    }

    /// A namespace has other labels now.
    pub(super) fn forget(&mut self, namespace: &str) {
        self.by_namespace.remove(namespace);
    }

    /// The terms that a class matches, in order.
    pub(super) fn matched(&mut self, group: &Group, snapshot: &Snapshot) -> Vec<u64> {
        let Self { all, by_namespace } = self;
        if all.is_empty() {
            return Vec::new();
        }
        if !by_namespace.contains_key(group.namespace.as_str()) {
            let labels = namespace_labels(snapshot, &group.namespace);
            let mut found = OfNamespace::default();
            for (number, Asked { term, .. }) in &*all {
                if term.peer.namespaces.matches(&group.namespace, labels.as_ref()) {
                    found.add(*number, term);
                }
            }
            by_namespace.insert(group.namespace.to_string(), found);
        }
        let Some(found) = by_namespace.get(group.namespace.as_str()) else { return Vec::new() };
        let mut matched = Vec::new();
        let of_values = group.labels().iter().filter_map(|(key, value)| found.by_value.get(key)?.get(value));
        for number in of_values.flatten().chain(&found.others) {
            if let Some(asked) = all.get(number) {
                add_matches(*number, &asked.term, group, &mut matched);
            }
        }
        matched.sort_unstable();
        matched.dedup();
        matched.shrink_to_fit();
        matched
    }
}

/// Adds a term, with each port that the pods give its name, if its selector means them. Of their namespace it is known already.
pub(super) fn add_matches(number: u64, term: &PeerTerm, group: &Group, matched: &mut Vec<u64>) {
    let PeerTerm { peer, named } = term;
    if !peer.pods.matches(group.labels()) {
        return;
    }
    match named {
        None => matched.push(number),
        // A term without a port counts for all of them: no pod has a port 0.
        Some(named) => {
            let ports = resolve(named, &group.ports).into_iter().filter(|port| *port != 0);
            matched.extend(ports.map(|port| number | u64::from(port)));
        }
    }
}

impl OfNamespace {
    fn add(&mut self, number: u64, term: &PeerTerm) {
        let Some((key, values)) = term.peer.pods.asked_values() else {
            self.others.push(number);
            return;
        };
        let of_key = self.by_value.entry(key.to_owned()).or_default();
        for value in values.iter() {
            of_key.entry(value.to_owned()).or_default().push(number);
        }
    }

    fn remove(&mut self, number: u64, term: &PeerTerm) {
        let Some((key, values)) = term.peer.pods.asked_values() else {
            self.others.retain(|known| *known != number);
            return;
        };
        let Some(of_key) = self.by_value.get_mut(key) else { return };
        for value in values.iter() {
            if let Some(numbers) = of_key.get_mut(value) {
                numbers.retain(|known| *known != number);
                if numbers.is_empty() {
                    of_key.remove(value);
                }
            }
        }
        if of_key.is_empty() {
            self.by_value.remove(key);
        }
    }
}

/// A namespace's labels. None: it is not known.
pub(super) fn namespace_labels(snapshot: &Snapshot, name: &str) -> Option<Labels> {
    Some(snapshot.namespaces.get(&ObjectKey::new("", name))?.selected_labels())
}
