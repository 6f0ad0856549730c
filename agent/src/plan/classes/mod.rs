// SPDX-License-Identifier: Apache-2.0
//! Classes of addresses: pods of one namespace with the same labels and named ports. Policies tell no finer apart, and a pod's class
//! does not depend on them: an edit of policy changes what some classes match, and no address. Labels that controllers give each
//! pod by itself ([`keys`]) count where some selector asks for them alone: the edit that brings the first one makes all classes anew.

mod crowd;
mod keys;
mod matcher;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_abi::{AddressKey, Class, part};

pub(crate) use self::{
    keys::Asked,
    matcher::{Changed, Terms},
};
use crate::{
    model::{HashKey, Labels, Name, Snapshot, objects::PodPort},
    plan::{
        Digest,
        pods::PodEntry,
        policy::{list::namespace_term, peers::PeerTerm},
    },
};

/// Pods that nobody can tell apart.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) namespace: Name,
    /// Those of one of its pods: of others, labels that tell no class apart may have other values.
    pub(super) labels: Option<Arc<Labels>>,
    pub(super) ports: Box<[PodPort]>,
    /// The term of the namespace.
    whole: u64,
    /// How many addresses it has, and their digests added up.
    pub(crate) addresses: usize,
    sum: u64,
    /// The terms that it matches, in order, with the numbers of named ports; those that it has room for.
    pub(crate) terms: Vec<u64>,
}

/// All classes that have addresses, and what lists may ask of them.
#[derive(Debug, Default)]
pub(crate) struct Classes {
    hash: HashKey,
    asked: Asked,
    /// Terms that one of them holds.
    most: usize,
    groups: BTreeMap<u64, Group>,
    /// Those that match more, and how many are left out.
    crowded: BTreeMap<u64, usize>,
    by_namespace: BTreeMap<Name, BTreeSet<u64>>,
    /// By term: the digests of all addresses that match it, added up.
    sums: BTreeMap<u64, u64>,
    terms: Terms,
}

/// What is different after a change.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    /// Classes whose entry may be another one.
    pub(crate) classes: BTreeSet<u64>,
    /// Parts of lists that know other addresses.
    pub(crate) parts: BTreeSet<u64>,
    /// Namespaces that had no class before.
    pub(crate) namespaces: BTreeSet<Name>,
    /// Classes that match more terms than they hold, or did: which of them stay is still to be told, by [`Classes::settle`].
    unsettled: BTreeSet<u64>,
}

fn spread(address: &AddressKey) -> u64 {
    Digest::spread(address.addr.0.map(u32::to_ne_bytes).as_flattened())
}

impl Group {
    fn labels(&self) -> &Labels {
        static NONE: Labels = Labels::new();
        self.labels.as_deref().unwrap_or(&NONE)
    }

    /// As the maps have it.
    pub(crate) fn class(&self, hash: HashKey) -> Class {
        let mut class = Class { version: 0, namespace: self.whole, ..Class::default() };
        class.terms.iter_mut().zip(&self.terms).for_each(|(slot, term)| *slot = *term);
        let content =
            class.terms.iter().fold(hash.of("version").number(class.namespace), |all, term| all.number(*term));
        class.version = content.finish().max(1);
        class
    }

    /// The term of its namespace.
    pub(crate) const fn namespace_term(&self) -> u64 {
        self.whole
    }
}

impl Classes {
    /// The keys that they were made by.
    #[cfg(test)]
    pub(crate) const fn asked(&self) -> Asked {
        self.asked
    }

    /// `asked`: keys that controllers give each pod by itself and terms ask for; `most`: terms that one class holds.
    pub(crate) fn new(hash: HashKey, asked: Asked, most: usize) -> Self {
        Self { hash, asked, most, ..Self::default() }
    }

    /// The same without pods.
    pub(crate) fn emptied(&self) -> Self {
        Self::new(self.hash, self.asked, self.most)
    }

    /// The number of a pod's class.
    pub(crate) fn number(&self, pod: PodEntry<'_>) -> u64 {
        let mut content = self.hash.of("class").text(&pod.key.namespace);
        for (key, value) in pod.labels().iter().filter(|(key, _)| self.asked.tells(key)) {
            content = content.text(key).text(value);
        }
        content = content.number(pod.pod.ports.len() as u64);
        for PodPort { name, protocol, number } in &pod.pod.ports {
            content = content.text(name).number(u64::from(*protocol) << 16 | u64::from(*number));
        }
        content.finish()
    }

    /// Whether classes are told apart by all keys that terms ask for, and by no others that controllers give.
    pub(crate) fn tell_enough(&self) -> bool {
        self.terms.asked_keys() == self.asked
    }

    /// These are the terms that lists ask for. `stood`: those that a class had at the last plan.
    pub(crate) fn set_terms<'s>(&mut self, terms: Terms, snapshot: &Snapshot, stood: impl Fn(u64) -> &'s [u64]) {
        let Self { most, groups, crowded, sums, terms: known, .. } = self;
        *known = terms;
        sums.clear();
        crowded.clear();
        let mut parts = BTreeSet::new();
        for (class, group) in groups {
            let matched = known.matched(group, snapshot);
            let left_out;
            (group.terms, left_out) = crowd::choose(matched, *most, known, &group.namespace, stood(*class));
            if left_out > 0 {
                crowded.insert(*class, left_out);
            }
            for term in group.terms.iter().chain([&group.whole]) {
                add(sums, *term, group.sum, &mut parts);
            }
        }
    }

    /// Pods of these namespaces are in no class.
    pub(crate) fn drop_namespaces(&mut self, namespaces: &BTreeSet<Name>) {
        self.groups.retain(|_, group| !namespaces.contains(&group.namespace));
        self.by_namespace.retain(|name, _| !namespaces.contains(name));
    }

    /// How many addresses and classes each namespace has.
    pub(crate) fn by_namespace(&self) -> impl Iterator<Item = (&Name, usize, usize)> {
        self.by_namespace.iter().map(|(name, classes)| {
            let addresses = classes.iter().filter_map(|class| self.groups.get(class)).map(|group| group.addresses);
            (name, addresses.sum(), classes.len())
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Group)> {
        self.groups.iter().map(|(class, group)| (*class, group))
    }

    pub(crate) fn get(&self, class: u64) -> Option<&Group> {
        self.groups.get(&class)
    }

    pub(crate) fn len(&self) -> usize {
        self.groups.len()
    }

    /// An address comes to a class.
    pub(crate) fn join(
        &mut self,
        class: u64,
        address: &AddressKey,
        pod: PodEntry<'_>,
        snapshot: &Snapshot,
        touched: &mut Touched,
    ) {
        let Self { hash, most, groups, by_namespace, terms, sums, .. } = self;
        let group = groups.entry(class).or_insert_with(|| {
            let namespace = pod.key.namespace.clone();
            let known = by_namespace.entry(namespace.clone()).or_insert_with(|| {
                touched.namespaces.insert(namespace.clone());
                BTreeSet::new()
            });
            known.insert(class);
            touched.classes.insert(class);
            let mut group = Group {
                whole: namespace_term(*hash, &namespace),
                namespace,
                labels: pod.pod.metadata.labels.clone(),
                ports: pod.pod.ports.clone(),
                addresses: 0,
                sum: 0,
                terms: Vec::new(),
            };
            group.terms = terms.matched(&group, snapshot);
            if group.terms.len() > *most {
                group.terms.clear();
                touched.unsettled.insert(class);
            }
            group
        });
        let more = spread(address);
        group.addresses += 1;
        group.sum = group.sum.wrapping_add(more);
        for term in group.terms.iter().chain([&group.whole]) {
            add(sums, *term, more, &mut touched.parts);
        }
    }

    /// An address leaves its class.
    pub(crate) fn leave(&mut self, class: u64, address: &AddressKey, touched: &mut Touched) {
        let Self { groups, crowded, by_namespace, sums, .. } = self;
        let Some(group) = groups.get_mut(&class) else { return };
        let less = spread(address).wrapping_neg();
        group.addresses -= 1;
        group.sum = group.sum.wrapping_add(less);
        for term in group.terms.iter().chain([&group.whole]) {
            add(sums, *term, less, &mut touched.parts);
        }
        if group.addresses == 0 {
            touched.classes.insert(class);
            if let Some(classes) = by_namespace.get_mut(&group.namespace) {
                classes.remove(&class);
                if classes.is_empty() {
                    by_namespace.remove(&group.namespace);
                }
            }
            groups.remove(&class);
            crowded.remove(&class);
        }
    }

    /// A namespace has other labels now.
    pub(crate) fn relabel(&mut self, namespace: &str, snapshot: &Snapshot, touched: &mut Touched) {
        self.terms.forget(namespace);
        let Self { most, groups, crowded, by_namespace, terms, sums, .. } = self;
        let classes = by_namespace.get(namespace);
        for class in classes.into_iter().flatten() {
            let Some(group) = groups.get_mut(class) else { continue };
            let after = terms.matched(group, snapshot);
            if after.len() > *most || crowded.contains_key(class) {
                touched.unsettled.insert(*class);
            } else if after != group.terms {
                group.set_terms(after, sums, &mut touched.parts);
                touched.classes.insert(*class);
            }
        }
    }

    /// Terms that more lists ask for now, or fewer; whether those that classes must be asked for are `many` at most, or some of them
    /// still have to be.
    pub(crate) fn change_terms(
        &mut self,
        changed: &Changed,
        many: usize,
        snapshot: &Snapshot,
        touched: &mut Touched,
    ) -> bool {
        let mut asked = 0;
        for (term, by) in changed {
            let number = term.number(self.hash);
            if !self.terms.change(number, term, by, snapshot) {
                continue;
            }
            asked += 1;
            if asked > many {
                return false;
            }
            self.rematch(number, term, snapshot, touched);
        }
        true
    }

    fn rematch(&mut self, number: u64, term: &PeerTerm, snapshot: &Snapshot, touched: &mut Touched) {
        let Self { most, groups, crowded, by_namespace, terms, sums, .. } = self;
        for (namespace, classes) in by_namespace {
            let labels = matcher::namespace_labels(snapshot, namespace);
            if !term.peer.namespaces.matches(namespace, labels.as_ref()) {
                continue;
            }
            for class in &*classes {
                let Some(group) = groups.get_mut(class) else { continue };
                let matches = term.peer.pods.matches(group.labels());
                if crowded.contains_key(class) {
                    if matches {
                        touched.unsettled.insert(*class);
                    }
                    continue;
                }
                let is_of_term = |known: &u64| known & !part::LOW == number;
                if !matches && !group.terms.iter().any(is_of_term) {
                    continue;
                }
                let mut after = group.terms.clone();
                after.retain(|known| !is_of_term(known));
                if let Some(term) = terms.get(number) {
                    matcher::add_matches(number, term, group, &mut after);
                    after.sort_unstable();
                }
                if after.len() > *most {
                    touched.unsettled.insert(*class);
                } else if after != group.terms {
                    group.set_terms(after, sums, &mut touched.parts);
                    touched.classes.insert(*class);
                }
            }
        }
    }

    /// Tells of classes that match too much which terms stay, once all else is known. `stood`: those that a class had at the last
    /// plan.
    pub(crate) fn settle<'s>(&mut self, snapshot: &Snapshot, stood: impl Fn(u64) -> &'s [u64], touched: &mut Touched) {
        let Self { most, groups, crowded, terms, sums, .. } = self;
        for class in std::mem::take(&mut touched.unsettled) {
            let Some(group) = groups.get_mut(&class) else { continue };
            let matched = terms.matched(group, snapshot);
            let (after, left_out) = crowd::choose(matched, *most, terms, &group.namespace, stood(class));
            if left_out > 0 {
                crowded.insert(class, left_out)
            } else {
                crowded.remove(&class)
            };
            if after != group.terms {
                group.set_terms(after, sums, &mut touched.parts);
                touched.classes.insert(class);
            }
        }
    }

    /// Namespaces that have pods of classes which match more terms than they hold.
    pub(crate) fn crowded_namespaces(&self) -> BTreeSet<&Name> {
        self.crowded.keys().filter_map(|class| self.groups.get(class)).map(|group| &group.namespace).collect()
    }

    /// Whether a pod is of such a class.
    pub(crate) fn is_crowded(&self, pod: PodEntry<'_>) -> bool {
        !self.crowded.is_empty() && self.crowded.contains_key(&self.number(pod))
    }

    /// A digest of the addresses that a list's parts know.
    pub(crate) fn digest_of(&self, parts: &[u64], digest: &mut Digest) {
        use std::hash::Hasher as _;
        for part in parts {
            for (term, sum) in self.sums.range(*part..=*part | part::LOW) {
                digest.write_u64(term.to_le());
                digest.write_u64(sum.to_le());
            }
        }
    }
}

impl Group {
    fn set_terms(&mut self, after: Vec<u64>, sums: &mut BTreeMap<u64, u64>, parts: &mut BTreeSet<u64>) {
        for term in self.terms.iter().filter(|term| after.binary_search(term).is_err()) {
            add(sums, *term, self.sum.wrapping_neg(), parts);
        }
        for term in after.iter().filter(|term| self.terms.binary_search(term).is_err()) {
            add(sums, *term, self.sum, parts);
        }
        self.terms = after;
    }
}

fn add(sums: &mut BTreeMap<u64, u64>, term: u64, more: u64, parts: &mut BTreeSet<u64>) {
    let sum = sums.entry(term).or_default();
    *sum = sum.wrapping_add(more);
    // Digests of addresses do not add up to nothing.
    if *sum == 0 {
        sums.remove(&term);
    }
    parts.insert(term & !part::LOW);
}
