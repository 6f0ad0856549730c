// SPDX-License-Identifier: Apache-2.0
//! Policy that follows the pods and its own edits: a pod costs its addresses and its class, a namespace its classes, an edit the lists
//! that it changes and the classes that peers mean which come or go.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
    net::IpAddr,
    sync::OnceLock,
};

use weft_abi::{BlockKey, CLOSED_LIST, Class, RuleKey};

use super::{
    Policies,
    fit::{Shortage, Unused},
    isolation::{Forms, Isolation, SetKey},
    list::{self, DecisionList, KnownList},
};
use crate::{
    apply::Patch,
    model::{Desired, Name, Numbers, ObjectKey, Room, Snapshot, address::address_key},
    plan::{
        classes::{Changed as ChangedTerms, Touched},
        planner::set,
        pods::PodEntry,
    },
};

/// Terms that come or go at once, or are asked for by other namespaces, at most: for each of them all classes of its namespaces are
/// looked at.
const MANY: usize = 50;

/// It takes a whole compilation.
#[derive(Debug)]
pub(crate) struct Recompile;

/// What has changed of policy.
#[derive(Debug)]
pub(crate) struct Edited {
    /// Policies that were edited.
    pub(crate) policies: BTreeSet<ObjectKey>,
    /// Namespaces in which somebody may be isolated by something else.
    pub(crate) namespaces: BTreeSet<Name>,
    /// Who is isolated by what in these.
    pub(crate) isolation: Isolation,
}

/// What else has changed.
#[derive(Debug)]
pub(crate) struct Changed<'c> {
    /// Addresses that may be another pod's.
    pub(crate) addresses: &'c BTreeSet<IpAddr>,
    /// Namespaces that may have other labels.
    pub(crate) namespaces: &'c BTreeSet<Name>,
}

/// Where changes are written.
pub(crate) struct Written<'a> {
    pub(crate) numbers: &'a mut Numbers,
    pub(crate) desired: &'a mut Desired,
    pub(crate) patch: &'a mut Patch,
}

impl Policies {
    /// Takes changes in; whether anybody is judged otherwise.
    ///
    /// # Errors
    /// [`Recompile`]: something may not fit. What is written by then is no harm: it is what a compilation writes, or it is written
    /// over.
    pub(crate) fn follow<'s>(
        &mut self,
        snapshot: &'s Snapshot,
        owner: impl Fn(IpAddr) -> Option<PodEntry<'s>>,
        changed: &Changed<'_>,
        edited: Option<(&Forms, Edited)>,
        room: &Room,
        written: &mut Written<'_>,
    ) -> Result<bool, Recompile> {
        let (mut touched, is_edited) = (Touched::default(), edited.is_some());
        if let Some((forms, edited)) = edited {
            self.edit(snapshot, forms, edited, room, written, &mut touched)?;
        }
        if !self.asks_for_pods() {
            return Ok(is_edited);
        }
        for namespace in changed.namespaces {
            self.classes.relabel(namespace, snapshot, &mut touched);
        }
        for address in changed.addresses {
            let key = address_key(*address);
            let pod = owner(*address).filter(|pod| !self.unknown.contains_key(&pod.key.namespace));
            let after = pod.map(|pod| self.classes.number(pod));
            let before = written.desired.peers.get(&key).copied();
            if before == after {
                continue;
            }
            before.into_iter().for_each(|class| self.classes.leave(class, &key, &mut touched));
            if let (Some(class), Some(pod)) = (after, pod) {
                self.classes.join(class, &key, pod, snapshot, &mut touched);
            }
            set(&mut written.desired.peers, &mut written.patch.peers, key, after);
        }
        if !self.meanings.note(iter::empty(), touched.namespaces.iter(), written.numbers.key).is_empty() {
            return Err(Recompile);
        }
        let grown =
            self.classes.len() > 2 * self.classes_then + 1000 || self.meanings.len() > 2 * self.meanings_then + 1000;
        let fits = self.taken.fits(self.classes.len(), room);
        if grown || !fits || written.desired.peers.len() > room.peers || self.classes.len() > room.classes {
            return Err(Recompile);
        }
        let stood = |class| written.desired.classes.get(&class).map_or(&[][..], |class: &Class| &class.terms);
        self.classes.settle(snapshot, stood, &mut touched);
        self.write_classes(&touched.classes, written);
        Ok(self.digest_parts(&touched.parts) || is_edited)
    }

    fn write_classes(&self, touched: &BTreeSet<u64>, written: &mut Written<'_>) {
        for class in touched {
            let value = self.classes.get(*class).map(|group| group.class(written.numbers.key));
            set(&mut written.desired.classes, &mut written.patch.classes, *class, value);
        }
    }

    /// Digests of the lists that have some of these parts; whether there are any.
    fn digest_parts(&mut self, parts: &BTreeSet<u64>) -> bool {
        let Self { lists, digests, classes, .. } = self;
        let knows = |list: &[u64]| {
            if list.len() < parts.len() {
                list.iter().any(|part| parts.contains(part))
            } else {
                parts.iter().any(|part| list.binary_search(part).is_ok())
            }
        };
        let mut any = false;
        for (key, list) in lists.iter().filter(|(_, list)| !parts.is_empty() && knows(&list.parts)) {
            any = true;
            digests.insert(key.clone(), list.digest(classes));
        }
        any
    }

    fn edit(
        &mut self,
        snapshot: &Snapshot,
        forms: &Forms,
        edited: Edited,
        room: &Room,
        written: &mut Written<'_>,
        touched: &mut Touched,
    ) -> Result<(), Recompile> {
        let (gone, changed) = self.compare(forms, &edited, written);
        self.isolation.replace(&edited.namespaces, edited.isolation);
        self.names.forget(edited.namespaces.iter(), |name| self.isolation.has(name));
        self.asked = OnceLock::new();
        if gone.is_empty() && changed.is_empty() {
            return Ok(());
        }
        // Who has room is decided among all.
        if self.waits_for_room() {
            return Err(Recompile);
        }
        if !self.meanings.note(changed.values(), iter::empty(), written.numbers.key).is_empty() {
            return Err(Recompile);
        }
        self.change_terms(&gone, &changed, snapshot, touched)?;
        let asked_before = self.asks_for_pods();
        let (unused, new) = self.replace(&gone, changed);
        written.numbers.assign_lists(self.lists.keys());
        // The first list that tells pods apart needs all addresses.
        if asked_before != self.asks_for_pods() || !self.taken.fits(self.classes.len(), room) {
            return Err(Recompile);
        }
        for key in &new {
            let Some(set) = self.isolation.set(key) else { continue };
            put_list(&list::compile(key, set, forms, written.numbers.key), written);
        }
        unused.iter().for_each(|unused| remove_unused(unused, written));
        self.digests_of_all_are_there();
        Ok(())
    }

    /// Puts changed lists in the place of what they were; what nobody has any more, and the keys of those to be written. One that is too
    /// long is closed, whatever the others are.
    fn replace(&mut self, gone: &BTreeSet<SetKey>, changed: BTreeMap<SetKey, KnownList>) -> (Vec<Unused>, Vec<SetKey>) {
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for key in gone.iter().chain(changed.keys()) {
            self.digests.remove(key);
            self.closed.remove(key);
            old.extend(self.lists.remove(key));
        }
        for (key, list) in changed {
            if let Some(why) = list.too_long {
                self.closed.insert(key, Shortage::TooLong(why));
                continue;
            }
            self.digests.insert(key.clone(), list.digest(&self.classes));
            self.taken.add(&list);
            self.lists.insert(key.clone(), list);
            new.push(key);
        }
        (old.iter().map(|list| self.taken.remove(list)).collect(), new)
    }

    fn digests_of_all_are_there(&self) {
        debug_assert!(self.lists.keys().eq(self.digests.keys()));
    }

    /// The lists that go, and those that are new or say something else.
    fn compare(
        &self,
        forms: &Forms,
        edited: &Edited,
        written: &Written<'_>,
    ) -> (BTreeSet<SetKey>, BTreeMap<SetKey, KnownList>) {
        let Edited { policies, namespaces, isolation } = edited;
        let mut changed = BTreeMap::new();
        for (key, set) in isolation.sets() {
            let is_edited = set.policies.iter().any(|policy| policies.contains(policy));
            if !is_edited && self.isolation.set(key) == Some(set) {
                continue;
            }
            let list = list::compile(key, set, forms, written.numbers.key).known;
            if list.too_long.is_some() || self.lists.get(key).is_none_or(|before| before.number != list.number) {
                changed.insert(key.clone(), list);
            }
        }
        let gone = self.isolation.sets_of(namespaces).filter(|key| isolation.set(key).is_none());
        (gone.cloned().collect(), changed)
    }

    /// The terms that come and go.
    fn change_terms(
        &mut self,
        gone: &BTreeSet<SetKey>,
        changed: &BTreeMap<SetKey, KnownList>,
        snapshot: &Snapshot,
        touched: &mut Touched,
    ) -> Result<(), Recompile> {
        let mut uses = ChangedTerms::new();
        let mut count = |key: &SetKey, list: &KnownList, more: isize| {
            for term in &list.terms {
                *uses.entry(term.clone()).or_default().entry(key.namespace.clone()).or_default() += more;
            }
        };
        for key in gone.iter().chain(changed.keys()) {
            self.lists.get(key).into_iter().for_each(|list| count(key, list, -1));
        }
        changed.iter().for_each(|(key, list)| count(key, list, 1));
        uses.values_mut().for_each(|by| by.retain(|_, more| *more != 0));
        uses.retain(|_, by| !by.is_empty());
        let is_done = self.classes.change_terms(&uses, MANY, snapshot, touched) && self.classes.tell_enough();
        if is_done { Ok(()) } else { Err(Recompile) }
    }
}

/// Removes what no combination of policies says any more.
fn remove_unused(unused: &Unused, written: &mut Written<'_>) {
    let Written { desired, patch, .. } = written;
    for number in [unused.list, unused.blocks].into_iter().flatten() {
        let all = RuleKey { list: number, part: 0 }..=RuleKey { list: number, part: u64::MAX };
        let rules: Vec<RuleKey> = desired.rules.range(all).map(|(key, _)| *key).collect();
        rules.into_iter().for_each(|key| set(&mut desired.rules, &mut patch.rules, key, None));
    }
    if let Some(number) = unused.list {
        set(&mut desired.lists, &mut patch.lists, number, None);
    }
    if let Some(number) = unused.blocks {
        let first = BlockKey { blocks: number, ..BlockKey::default() };
        let blocks = desired.blocks.range(first..).map(|(key, _)| *key).take_while(|key| key.blocks == number);
        let blocks: Vec<BlockKey> = blocks.collect();
        blocks.into_iter().for_each(|key| set(&mut desired.blocks, &mut patch.blocks, key, None));
    }
}

fn put_list(list: &DecisionList, written: &mut Written<'_>) {
    if list.known.number == CLOSED_LIST {
        return;
    }
    let Written { desired, patch, .. } = written;
    set(&mut desired.lists, &mut patch.lists, list.known.number, Some(list.head));
    list.rules().for_each(|(key, run)| set(&mut desired.rules, &mut patch.rules, key, Some(run)));
    list.block_keys().for_each(|(key, part)| set(&mut desired.blocks, &mut patch.blocks, key, Some(part)));
}
