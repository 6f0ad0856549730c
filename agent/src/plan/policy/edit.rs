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
    set_text,
};
use crate::model::{ObjectKey, Room, Snapshot};

/// Terms that come or go at once, at most: for each of them all pods of its namespaces are looked at.
const MANY: usize = 50;

/// What becomes of the sets.
#[derive(Default)]
struct Edit {
    gone: BTreeSet<SetKey>,
    /// New ones, and those that allow something else now.
    changed: BTreeMap<SetKey, Allowed>,
}

impl Followed {
    /// Takes in who is isolated by what now, where some `policies` were edited. Peers that came or went: the pods that they mean
    /// have to be followed.
    ///
    /// # Errors
    /// [`Recompile`]: blocks of addresses change, or something may not fit.
    pub(crate) fn edit(
        &mut self,
        snapshot: &Snapshot,
        forms: &Forms,
        isolation: Isolation,
        policies: &BTreeSet<ObjectKey>,
        room: &Room<'_>,
        written: &mut Written<'_>,
    ) -> Result<Vec<PodPeer>, Recompile> {
        let edit = self.compare(forms, &isolation, policies)?;
        self.policies.isolation = isolation;
        if edit.gone.is_empty() && edit.changed.is_empty() {
            return Ok(Vec::new());
        }
        let peers = self.change_terms(&edit, snapshot)?;
        self.remove_sets(&edit.gone, written);
        let compiled = self.compile(&edit.changed, room)?;
        self.policies.allowed.extend(edit.changed);
        let names = self.policies.allowed.keys().map(|key| written.numbers.key.of_text(&set_text(key))).collect();
        written.numbers.assign_policies(&names);
        for (key, compiled) in compiled {
            self.put_set(key, compiled, written);
        }
        Ok(peers)
    }

    fn compare(&self, forms: &Forms, isolation: &Isolation, edited: &BTreeSet<ObjectKey>) -> Result<Edit, Recompile> {
        let standing = &self.policies;
        let mut edit = Edit::default();
        let mut regions = Regions::default();
        for (key, set) in &isolation.sets {
            let is_edited = set.policies.iter().any(|policy| edited.contains(policy));
            if !is_edited && standing.isolation.sets.get(key) == Some(set) {
                continue;
            }
            let allowed = Allowed::by(set, &set_text(key), key.0, forms, &mut regions);
            let before = standing.allowed.get(key);
            let same_blocks = before.map_or(allowed.regions.is_empty(), |before| before.regions == allowed.regions);
            if !same_blocks || allowed.overflow.is_some() {
                return Err(Recompile);
            }
            if before != Some(&allowed) {
                edit.changed.insert(key.clone(), allowed);
            }
        }
        for (key, allowed) in standing.allowed.iter().filter(|(key, _)| !isolation.sets.contains_key(*key)) {
            if !allowed.regions.is_empty() {
                return Err(Recompile);
            }
            edit.gone.insert(key.clone());
        }
        Ok(edit)
    }

    /// The terms that came and went, and whom they mean.
    fn change_terms(&mut self, edit: &Edit, snapshot: &Snapshot) -> Result<Vec<PodPeer>, Recompile> {
        let standing = &self.policies.allowed;
        let is_other = |key: &SetKey| !edit.gone.contains(key) && !edit.changed.contains_key(key);
        let is_kept = |term: &PeerTerm| {
            let mut others = standing.iter().filter(|(key, _)| is_other(key)).map(|(_, allowed)| allowed);
            others.any(|allowed| allowed.peers.contains_key(term))
                || edit.changed.values().any(|allowed| allowed.peers.contains_key(term))
        };
        let before = edit.gone.iter().chain(edit.changed.keys()).filter_map(|key| standing.get(key));
        let before = before.flat_map(|allowed| allowed.peers.keys());
        let gone: BTreeSet<Arc<PeerTerm>> = before.filter(|term| !is_kept(term)).cloned().collect();
        let after = edit.changed.values().flat_map(|allowed| allowed.peers.keys());
        let new: BTreeSet<Arc<PeerTerm>> = after.filter(|term| self.terms.place(term).is_none()).cloned().collect();
        if gone.len() + new.len() > MANY || self.terms.is_worn() {
            return Err(Recompile);
        }
        for term in &gone {
            if let Some(place) = self.terms.remove(term) {
                self.follower.remove_term(place);
            }
        }
        for term in &new {
            let place = self.terms.add(term.clone());
            self.follower.add_term(place, term, snapshot);
        }
        Ok(gone.iter().chain(&new).filter_map(|term| term.peer()).cloned().collect())
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
        let compiled = compile::compile(changed, &choice.identities, &self.terms, left).ok_or(Recompile)?;
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
        let name = written.numbers.key.of_text(&set_text(&key));
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
