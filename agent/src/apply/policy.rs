// SPDX-License-Identifier: Apache-2.0
//! Policy: at no moment may a port let something in, or out, that neither the old nor the new state lets.
//!
//! Lists never change: new ones are written whole, ports go from one to the other by one word, and old ones go last. What classes
//! match may change beside that. A list that stays finds each address in its old class or its new one; where a list goes whose own
//! terms change hands at the same time, its port is closed for the moment of the pass, and so is one whose list is not what its
//! number says (somebody has written to the maps). Decided flows go on, as no generation has moved yet.

use std::collections::{BTreeMap, BTreeSet};

use weft_abi::{AddressKey, CLOSED_LIST, Class, List, NO_LIST, Port, RuleKey, part};
use weft_dataplane::Error;

use super::{Observed, Pass, patch::Patch};

/// What a pass has to do beside what the patch says.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// Ports to close first.
    closed: BTreeMap<u32, Port>,
    /// Addresses that leave their class before it changes, and join the other one after that has.
    moving: BTreeSet<AddressKey>,
    /// Workloads of which a list was not what its number says, or was not known to be: what was decided by it does not stand.
    disturbed: BTreeSet<u32>,
    /// What programs found before may be no verdict.
    was_damaged: bool,
}

impl Change {
    pub(super) fn plan(observed: &Observed, patch: &Patch) -> Self {
        let changing = changing_classes(observed, patch);
        let mut touched = BTreeSet::new();
        for class in &changing {
            differing(observed.classes.0.get(class), patch.classes[class].as_ref(), &mut touched);
        }
        let (mut moving, mut compared) = (BTreeSet::new(), BTreeSet::new());
        for (address, after) in &patch.peers {
            let before = observed.peers.0.get(address);
            if before == after.as_ref() {
                continue;
            }
            let changes = |class: Option<&u64>| class.is_some_and(|class| changing.contains(class));
            if after.is_some() && (changes(before) || changes(after.as_ref())) {
                moving.insert(*address);
            }
            if compared.insert((before, after)) {
                let old = before.and_then(|class| observed.classes.0.get(class));
                let new = after.and_then(|class| class_after(observed, patch, class));
                differing(old, new, &mut touched);
            }
        }
        // Lists that know any pod tell a pod by where its address lies.
        if patch.remotes.iter().any(|(key, new)| observed.remotes.0.get(key) != new.as_ref()) {
            touched.insert(part::ANY_POD);
        }
        let damaged = damaged(observed, patch);
        let was_damaged =
            observed.fresh || !damaged.is_empty() || changing.iter().any(|class| is_damaged(*class, observed, patch));
        let has_damaged =
            |port: &&Port| [port.ingress_list, port.egress_list].iter().any(|list| damaged.contains(list));
        let disturbed = observed.ports.0.values().filter(has_damaged).map(|port| port.workload).collect();
        let knows =
            |list: u64| touched.iter().any(|part| observed.rules.0.contains_key(&RuleKey { list, part: *part }));
        let unsettled = |old: u64, new: u64| damaged.contains(&old) || old != new && new != NO_LIST && knows(old);
        Self { closed: ports_to_close(observed, patch, unsettled), moving, disturbed, was_damaged }
    }
}

/// Classes that stand and go on with another content.
fn changing_classes(observed: &Observed, patch: &Patch) -> BTreeSet<u64> {
    let differs = |class: &u64, new: &Class| observed.classes.0.get(class).is_some_and(|old| old != new);
    let changed = patch.classes.iter().filter(|(class, new)| new.as_ref().is_some_and(|new| differs(class, new)));
    changed.map(|(class, _)| *class).collect()
}

/// Whether a class stands under the version of another content.
fn is_damaged(class: u64, observed: &Observed, patch: &Patch) -> bool {
    let (old, new) = (observed.classes.0.get(&class), class_after(observed, patch, class));
    old.zip(new).is_some_and(|(old, new)| old.version == new.version && old != new)
}

/// A class as it will be.
fn class_after<'a>(observed: &'a Observed, patch: &'a Patch, class: u64) -> Option<&'a Class> {
    match patch.classes.get(&class) {
        Some(changed) => changed.as_ref(),
        None => observed.classes.0.get(&class),
    }
}

fn terms(class: Option<&Class>) -> impl Iterator<Item = u64> {
    let terms = class.into_iter().flat_map(|class| class.terms.iter().chain([&class.namespace]));
    terms.copied().filter(|term| *term != 0)
}

/// Parts of lists that hold for one of two classes and not for the other.
fn differing(old: Option<&Class>, new: Option<&Class>, parts: &mut BTreeSet<u64>) {
    let [old, new] = [old, new].map(|class| terms(class).collect::<BTreeSet<u64>>());
    parts.extend(old.symmetric_difference(&new).map(|term| term & !part::LOW));
}

/// Lists that stand and are not what the plan has under their numbers.
fn damaged(observed: &Observed, patch: &Patch) -> BTreeSet<u64> {
    let stands = |list: &u64| observed.lists.0.contains_key(list) && patch.lists.get(list) != Some(&None);
    let rules = patch.rules.iter().filter(|(key, new)| observed.rules.0.get(key) != new.as_ref());
    let blocks = patch.blocks.iter().filter(|(key, new)| observed.blocks.0.get(key) != new.as_ref());
    let heads = patch.lists.iter().filter(|(list, new)| observed.lists.0.get(list) != new.as_ref());
    let parts = rules.map(|(key, _)| key.list).chain(blocks.map(|(key, _)| key.blocks));
    lists_of(&parts.collect(), &observed.lists.0).chain(heads.map(|(list, _)| *list)).filter(stands).collect()
}

/// Of lists, those that have one of these numbers, or whose blocks have.
fn lists_of(numbers: &BTreeSet<u64>, lists: &BTreeMap<u64, List>) -> impl Iterator<Item = u64> {
    let has = |list: &u64, head: &List| numbers.contains(list) || numbers.contains(&head.blocks);
    lists.iter().filter(move |(list, head)| has(list, head)).map(|(list, _)| *list)
}

/// Ports with a list that is `unsettled`: a predicate of a list and the one that follows it.
fn ports_to_close(observed: &Observed, patch: &Patch, unsettled: impl Fn(u64, u64) -> bool) -> BTreeMap<u32, Port> {
    let close = |old: u64, new: u64| if old != NO_LIST && unsettled(old, new) { CLOSED_LIST } else { old };
    let closed = observed.ports.0.iter().filter_map(|(ifindex, old)| {
        let new = match patch.ports.get(ifindex) {
            Some(new) => new.as_ref()?,
            None => old,
        };
        let ingress_list = close(old.ingress_list, new.ingress_list);
        let egress_list = close(old.egress_list, new.egress_list);
        let closed = Port { ingress_list, egress_list, ..*old };
        (closed != *old).then_some((*ifindex, closed))
    });
    closed.collect()
}

impl Pass<'_> {
    /// Old lists and new ones stand beside each other for the time of a pass. A plan takes half of each map, so that this is no
    /// question; where more stands there all the same (a map that was planned otherwise), what goes is taken out first: new flows
    /// that ask it are refused for that moment.
    pub(super) fn make_room_for_lists(&mut self) {
        let Observed { rules, blocks, lists, classes, .. } = &*self.observed;
        let patch = self.patch;
        if rules.grows_beyond(self.tables.rules(), &patch.rules)
            || blocks.grows_beyond(self.tables.blocks(), &patch.blocks)
            || lists.grows_beyond(self.tables.lists(), &patch.lists)
            || classes.grows_beyond(self.tables.classes(), &patch.classes)
        {
            self.remove_old_lists();
        }
    }

    /// Before anything that their lists may know otherwise meanwhile.
    pub(super) fn close_ports(&mut self, change: &Change) -> Result<(), Error> {
        change.disturbed.iter().for_each(|slot| self.disturb(*slot));
        for (ifindex, closed) in &change.closed {
            if let Some(before) = self.observed.ports.0.get(ifindex).filter(|_| !self.patch.ports.contains_key(ifindex))
            {
                self.reopened.insert(*ifindex, *before);
            }
            self.observed.ports.put(self.tables.ports(), *ifindex, *closed, &mut self.summary)?;
        }
        Ok(())
    }

    /// Everything but the new ports themselves, which come after.
    pub(super) fn put_policy(&mut self, change: &Change) -> Result<(), Error> {
        self.put_lists()?;
        self.put_classes(change)?;
        if change.was_damaged { self.tables.forget_verdicts() } else { Ok(()) }
    }

    /// The head of a list last.
    fn put_lists(&mut self) -> Result<(), Error> {
        let (patch, tables) = (self.patch, self.tables);
        let Observed { rules, blocks, lists, .. } = &mut *self.observed;
        let summary = &mut self.summary;
        let closed = "the workloads that have their lists are closed";
        let rules = rules.put_all(tables.rules(), &patch.rules, summary);
        rules.tell("rules of policies", closed, summary);
        let blocks = blocks.put_all(tables.blocks(), &patch.blocks, summary);
        blocks.tell("blocks of policies", closed, summary);
        let heads = lists.put_all(tables.lists(), &patch.lists, summary);
        heads.tell("decision lists", closed, summary);
        let parts = rules.keys.iter().map(|key| key.list).chain(blocks.keys.iter().map(|key| key.blocks)).collect();
        let failed: Vec<u64> = lists_of(&parts, &lists.0).chain(heads.keys.iter().copied()).collect();
        self.close_lists(failed)
    }

    /// An address leaves a class before that changes; a class stands before anybody joins it. Where one cannot leave, lists that know its
    /// class as it is, or as it will be, are closed before it changes; where a class cannot, before anybody joins it.
    fn put_classes(&mut self, change: &Change) -> Result<(), Error> {
        const CLOSED: &str = "the workloads whose policies know them are closed";
        let (patch, tables) = (self.patch, self.tables);
        let leaving = change.moving.iter().map(|address| (*address, None)).collect();
        let mut stayed = BTreeSet::new();
        for changes in [&leaving, &patch.peers] {
            let peers = &mut self.observed.peers;
            let gone = peers.take_gone(tables.peers(), changes, &mut self.summary);
            gone.tell("old addresses of pods", CLOSED, &mut self.summary);
            stayed.extend(gone.keys.iter().filter_map(|address| peers.0.get(address).copied()));
        }
        self.close_lists_of(&self.terms_of(&stayed))?;
        let stale = changed_classes(&self.observed.classes.0, patch);
        let wrong = self.observed.classes.put_all(tables.classes(), &patch.classes, &mut self.summary);
        wrong.tell("classes of pods", CLOSED, &mut self.summary);
        // Whoever is in one, or joins it, may be let in by lists that know what it should have lost.
        let mut lost = BTreeSet::new();
        for (class, old) in stale.iter().filter(|(class, _)| wrong.keys.contains(class)) {
            differing(Some(old), patch.classes[class].as_ref(), &mut lost);
        }
        self.close_lists_of(&lost)?;
        let peers = &mut self.observed.peers;
        let put = peers.put_all(tables.peers(), &patch.peers, &mut self.summary);
        put.tell("addresses of pods", CLOSED, &mut self.summary);
        let stayed = put.keys.iter().filter_map(|address| peers.0.get(address).copied()).collect();
        self.close_lists_of(&self.terms_of(&stayed))
    }

    /// The terms of these classes, as they are and as they will be.
    fn terms_of(&self, numbers: &BTreeSet<u64>) -> BTreeSet<u64> {
        let (now, patch) = (&self.observed.classes.0, &self.patch.classes);
        let of = |class: &u64| [now.get(class), patch.get(class).and_then(Option::as_ref)];
        numbers.iter().flat_map(of).flat_map(terms).map(|term| term & !part::LOW).collect()
    }

    /// Closes what has lists with one of these parts, now or once they are written.
    pub(super) fn close_lists_of(&mut self, parts: &BTreeSet<u64>) -> Result<(), Error> {
        if parts.is_empty() {
            return Ok(());
        }
        let (standing, coming) = (&self.observed.rules.0, &self.patch.rules);
        let has = |key: &RuleKey| standing.contains_key(key) || coming.get(key).is_some_and(Option::is_some);
        let knows = |list: &u64| parts.iter().any(|part| has(&RuleKey { list: *list, part: *part }));
        let lists = self.observed.lists.0.keys().chain(self.patch.lists.keys()).copied();
        let lists: BTreeSet<u64> = lists.filter(knows).collect();
        self.close_lists(lists)
    }

    /// Closes every port that has one of these lists, now and at the end of the pass.
    fn close_lists(&mut self, lists: impl IntoIterator<Item = u64>) -> Result<(), Error> {
        let before = self.unsure.len();
        self.unsure.extend(lists);
        if self.unsure.len() == before {
            return Ok(());
        }
        let ports: Vec<(u32, Port)> = self.observed.ports.0.iter().map(|(ifindex, port)| (*ifindex, *port)).collect();
        for (ifindex, port) in ports {
            let closed = self.closed(port);
            if closed != port && !self.patch.ports.contains_key(&ifindex) {
                self.unsettle(port.workload);
            }
            self.observed.ports.put(self.tables.ports(), ifindex, closed, &mut self.summary)?;
        }
        Ok(())
    }

    /// The port, closed in the directions whose list is not as it should be.
    pub(super) fn closed(&self, port: Port) -> Port {
        let close = |list: u64| if self.unsure.contains(&list) { CLOSED_LIST } else { list };
        Port { ingress_list: close(port.ingress_list), egress_list: close(port.egress_list), ..port }
    }

    /// Lists that no port has any more, their heads first, and classes without addresses.
    pub(super) fn remove_old_lists(&mut self) {
        let (patch, tables) = (self.patch, self.tables);
        let Observed { rules, blocks, lists, classes, .. } = &mut *self.observed;
        let summary = &mut self.summary;
        let stay = "they are still there";
        lists.take_gone(tables.lists(), &patch.lists, summary).tell("old decision lists", stay, summary);
        blocks.take_gone(tables.blocks(), &patch.blocks, summary).tell("old blocks of policies", stay, summary);
        rules.take_gone(tables.rules(), &patch.rules, summary).tell("old rules of policies", stay, summary);
        classes.take_gone(tables.classes(), &patch.classes, summary).tell("old classes of pods", stay, summary);
    }
}

/// Classes that stand and change, as they are.
fn changed_classes(classes: &BTreeMap<u64, Class>, patch: &Patch) -> Vec<(u64, Class)> {
    patch.classes.keys().filter_map(|class| Some((*class, *classes.get(class)?))).collect()
}
