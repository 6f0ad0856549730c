// SPDX-License-Identifier: Apache-2.0
//! An edit of policy: what it costs is the rules of the sets that it changes, and the pods of the peers that come and go.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_abi::RuleKey;

use super::{
    CLOSED,
    compile::{self, Allowed, Compiled},
    follow::{Followed, Recompile, Written, set_rule},
    isolation::{Forms, Isolation, SetKey},
    peers::{PeerTerm, PodPeer},
    region::Regions,
};
use crate::{
    model::{Name, ObjectKey, Room, Snapshot},
    plan::identity::Moved,
};

/// Terms that come or go at once, at most: for each of them all pods of its namespaces are looked at.
const MANY: usize = 50;

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

/// What becomes of the sets.
#[derive(Default)]
struct Edit {
    gone: BTreeSet<SetKey>,
    /// New ones, and those that allow something else now.
    changed: BTreeMap<SetKey, Allowed>,
}

impl Followed {
    /// Takes an edit in. Peers that came or went: the pods that they mean have to be followed.
    ///
    /// # Errors
    /// [`Recompile`]: blocks of addresses change, or something may not fit.
    pub(crate) fn edit(
        &mut self,
        snapshot: &Snapshot,
        forms: &Forms,
        edited: Edited,
        room: &Room<'_>,
        written: &mut Written<'_>,
    ) -> Result<Vec<PodPeer>, Recompile> {
        let edit = self.compare(forms, &edited)?;
        self.policies.isolation.replace(&edited.namespaces, edited.isolation);
        if edit.gone.is_empty() && edit.changed.is_empty() {
            return Ok(Vec::new());
        }
        let peers = self.change_terms(&edit, snapshot)?;
        self.remove_sets(&edit.gone, written);
        let compiled = self.compile(&edit.changed, room)?;
        self.policies.allowed.extend(edit.changed);
        let names = self.policies.allowed.keys().map(|key| written.numbers.key.of_text(&key.to_string())).collect();
        written.numbers.assign_policies(&names);
        for (key, compiled) in compiled {
            self.put_set(key, compiled, written);
        }
        Ok(peers)
    }

    fn compare(&self, forms: &Forms, edited: &Edited) -> Result<Edit, Recompile> {
        let Edited { policies, namespaces, isolation } = edited;
        let standing = &self.policies;
        let mut edit = Edit::default();
        let mut regions = Regions::default();
        for (key, set) in isolation.sets() {
            let is_edited = set.policies.iter().any(|policy| policies.contains(policy));
            if !is_edited && standing.isolation.set(key) == Some(set) {
                continue;
            }
            let allowed = Allowed::by(set, key, forms, &mut regions);
            let before = standing.allowed.get(key);
            let same_blocks = before.map_or(allowed.regions.is_empty(), |before| before.regions == allowed.regions);
            if !same_blocks || allowed.overflow.is_some() {
                return Err(Recompile);
            }
            if before != Some(&allowed) {
                edit.changed.insert(key.clone(), allowed);
            }
        }
        for key in standing.isolation.sets_of(namespaces).filter(|key| isolation.set(key).is_none()) {
            if standing.allowed.get(key).is_some_and(|allowed| !allowed.regions.is_empty()) {
                return Err(Recompile);
            }
            edit.gone.insert(key.clone());
        }
        Ok(edit)
    }

    /// The terms that came and went, and whom they mean.
    fn change_terms(&mut self, edit: &Edit, snapshot: &Snapshot) -> Result<Vec<PodPeer>, Recompile> {
        let before = edit.gone.iter().chain(edit.changed.keys()).filter_map(|key| self.policies.allowed.get(key));
        let before = before.flat_map(|allowed| allowed.peers.keys());
        let after = edit.changed.values().flat_map(|allowed| allowed.peers.keys());
        // By how many more sets, or fewer, each is used.
        let mut uses: BTreeMap<Arc<PeerTerm>, isize> = BTreeMap::new();
        before.for_each(|term| *uses.entry(term.clone()).or_default() -= 1);
        after.for_each(|term| *uses.entry(term.clone()).or_default() += 1);
        let comes_or_goes = |(term, more): &(&Arc<PeerTerm>, &isize)| match self.terms.uses(term) {
            0 => true,
            used => used.checked_add_signed(**more) == Some(0),
        };
        if uses.iter().filter(comes_or_goes).count() > MANY || self.terms.is_worn() {
            return Err(Recompile);
        }
        let mut peers = Vec::new();
        for (term, more) in uses {
            match self.terms.change_uses(&term, more) {
                Some(Moved::Came(place)) => self.follower.add_term(place, &term, snapshot),
                Some(Moved::Went(place)) => self.follower.remove_term(place),
                None => continue,
            }
            peers.extend(term.peer().cloned());
        }
        Ok(peers)
    }

    /// The changed sets, if they fit beside the others.
    fn compile(
        &self,
        changed: &BTreeMap<SetKey, Allowed>,
        room: &Room<'_>,
    ) -> Result<BTreeMap<SetKey, Compiled>, Recompile> {
        let choice = &self.policies.choice;
        let others = choice.compiled.iter().filter(|(key, _)| !changed.contains_key(*key));
        let others: usize = others.map(|(_, compiled)| compiled.chunks).sum();
        let left = room.rules.checked_sub(others).ok_or(Recompile)?;
        let compiled = compile::compile(changed.iter(), &choice.identities, &self.terms, left).ok_or(Recompile)?;
        if compiled.values().any(|set| set.overflow.is_some()) { Err(Recompile) } else { Ok(compiled) }
    }

    fn remove_sets(&mut self, gone: &BTreeSet<SetKey>, written: &mut Written<'_>) {
        for key in gone {
            self.policies.allowed.remove(key);
            self.digests.remove(key);
            let number = self.policies.numbers.remove(key).unwrap_or(CLOSED);
            if let Some(compiled) = self.policies.choice.compiled.remove(key) {
                for rule in self.rules(&compiled, number).into_keys() {
                    set_rule(written, rule, None);
                }
            }
        }
    }

    /// Puts a set in the place of what it was.
    fn put_set(&mut self, key: SetKey, compiled: Compiled, written: &mut Written<'_>) {
        let name = written.numbers.key.of_text(&key.to_string());
        let number = written.numbers.policies.get(&name).copied().unwrap_or(CLOSED);
        let after = self.rules(&compiled, number);
        if let Some(before) = self.policies.choice.compiled.get(&key) {
            let before = self.rules(before, self.policies.numbers.get(&key).copied().unwrap_or(CLOSED));
            for rule in before.into_keys().filter(|rule| !after.contains_key(rule)) {
                set_rule(written, rule, None);
            }
        }
        for (rule, value) in after {
            set_rule(written, rule, Some(value));
        }
        self.digests.insert(key.clone(), compiled.digest(&self.places));
        self.policies.numbers.insert(key.clone(), number);
        self.policies.choice.compiled.insert(key, compiled);
    }

    fn rules(&self, compiled: &Compiled, number: u32) -> BTreeMap<RuleKey, weft_abi::Rules> {
        let mut rules = BTreeMap::new();
        if number != CLOSED {
            compiled.describe(number, &self.policies.choice.identities, &mut rules);
        }
        rules
    }
}
