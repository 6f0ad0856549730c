// SPDX-License-Identifier: Apache-2.0
//! What terms' numbers stand for. A number is a hash of 47 bits: where two terms meet in one, lists that ask for either of them
//! would let in whom the other one means, and are closed.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
};

use crate::{
    model::{HashKey, Name},
    plan::policy::{
        list::{KnownList, namespace_term},
        peers::PeerTerm,
    },
};

/// All terms that lists have asked for, and namespaces that pods are of, since the last compilation.
#[derive(Debug, Default)]
pub(super) struct Meanings(BTreeMap<u64, Meaning>);

#[derive(Clone, Debug, Eq, PartialEq)]
enum Meaning {
    Namespace(Name),
    Pods(Arc<PeerTerm>),
}

impl Meanings {
    /// Takes in what lists ask for, and namespaces; the numbers that stand for something else as well.
    pub(super) fn note<'t>(
        &mut self,
        lists: impl Iterator<Item = &'t KnownList>,
        namespaces: impl Iterator<Item = &'t Name>,
        hash: HashKey,
    ) -> BTreeSet<u64> {
        let mut meeting = BTreeSet::new();
        let of_lists = lists.flat_map(|list| meanings(list, hash));
        let of_pods = namespaces.map(|name| (namespace_term(hash, name), Meaning::Namespace(name.clone())));
        for (number, meaning) in of_lists.chain(of_pods) {
            match self.0.entry(number) {
                Entry::Vacant(vacant) => drop(vacant.insert(meaning)),
                Entry::Occupied(known) if *known.get() == meaning => {}
                Entry::Occupied(_) => drop(meeting.insert(number)),
            }
        }
        meeting
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

fn meanings(list: &KnownList, hash: HashKey) -> impl Iterator<Item = (u64, Meaning)> {
    let namespaces =
        list.namespaces.iter().map(move |name| (namespace_term(hash, name), Meaning::Namespace(name.clone())));
    namespaces.chain(list.terms.iter().map(move |term| (term.number(hash), Meaning::Pods(term.clone()))))
}

/// Whether a list asks for one of these numbers.
pub(super) fn asks(list: &KnownList, numbers: &BTreeSet<u64>, hash: HashKey) -> bool {
    !numbers.is_empty() && meanings(list, hash).any(|(number, _)| numbers.contains(&number))
}
