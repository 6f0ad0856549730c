// SPDX-License-Identifier: Apache-2.0
//! Policy that follows the pods: an address that changes costs what the peers of this node's policy sets ask of it, and the rules of a set of matches that nobody had before.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use weft_abi::{RuleKey, WORLD_IDENTITY};

use super::{CLOSED, JudgedWorkloads, Policies, SetDigests, compile::Places};
use crate::{
    apply::Patch,
    model::{Desired, HashKey, Numbers, Room, Snapshot, TextHash, address::address_key},
    plan::{
        identity::{Follower, Meaning, SetId, Sets, Terms},
        numbers::{Given, Turnover},
        planner::set,
        pods::PodEntry,
    },
};

/// See the module.
#[derive(Debug)]
pub(crate) struct Followed {
    pub(crate) policies: Policies,
    pub(super) terms: Terms,
    pub(super) follower: Follower,
    pub(super) places: Places,
    pub(super) digests: SetDigests,
}

/// It takes a whole compilation.
#[derive(Debug)]
pub(crate) struct Recompile;

/// Where changes are written.
pub(crate) struct Written<'a> {
    pub(crate) numbers: &'a mut Numbers,
    pub(crate) given: &'a mut Given,
    pub(crate) desired: &'a mut Desired,
    pub(crate) patch: &'a mut Patch,
}

impl Followed {
    /// Goes on from a compilation; none: it is too large, or something did not fit, so that the next change needs another one.
    pub(crate) fn new(mut policies: Policies, key: HashKey) -> Result<Self, Box<Policies>> {
        let choice = &policies.choice;
        let is_cut = choice.compiled.values().any(|compiled| compiled.overflow.is_some());
        if is_cut || choice.crowded || !choice.closed.is_empty() {
            return Err(Box::new(policies));
        }
        let terms = Terms::of(policies.choice.compiled.keys().map(|key| &policies.allowed[key]));
        let Ok(follower) = Follower::new(&mut policies.choice.identities, &terms, key) else {
            return Err(Box::new(policies));
        };
        let places = Places::of(&policies.choice.identities);
        let digests = policies.digests(&places);
        Ok(Self { policies, terms, follower, places, digests })
    }

    /// What judges each workload.
    pub(crate) fn judged(&self) -> JudgedWorkloads {
        self.policies.judged(&self.digests)
    }

    /// A namespace has other labels now.
    pub(crate) fn forget(&mut self, namespace: &str) {
        self.follower.forget(namespace);
    }

    /// Follows some addresses; whether any means something else now.
    ///
    /// # Errors
    /// [`Recompile`]: what fits has to be asked anew. What is written by then is no harm: it is what a compilation writes, or
    /// it is written over.
    pub(crate) fn follow<'s>(
        &mut self,
        snapshot: &'s Snapshot,
        owner: impl Fn(IpAddr) -> Option<PodEntry<'s>>,
        dirty: &BTreeSet<IpAddr>,
        room: &Room<'_>,
        written: &mut Written<'_>,
    ) -> Result<bool, Recompile> {
        let (mut sets, mut moved) = (Sets::default(), BTreeMap::new());
        for address in dirty {
            let identities = &mut self.policies.choice.identities;
            let pod = owner(*address);
            let after = self.follower.meaning(snapshot, pod, *address, identities).map_err(|_| Recompile)?;
            let before = identities.exact.get(address).copied();
            if before == after {
                continue;
            }
            match after {
                Some(after) => drop(identities.exact.insert(*address, after)),
                None => drop(identities.exact.remove(address)),
            }
            self.follower.count(before, after, &mut sets);
            let net = IpNet::from(*address);
            before.into_iter().for_each(|before| self.places.remove(before, net));
            after.into_iter().for_each(|after| self.places.add(after, net));
            moved.insert(*address, (before, after));
        }
        if moved.is_empty() {
            return Ok(false);
        }
        let added = moved.iter().filter(|(address, (_, after))| {
            after.is_some() && !room.standing_identities.contains_key(&address_key(**address))
        });
        let added = added.count();
        if added > 0 && room.standing_identities.len() + added > room.identities {
            return Err(Recompile);
        }
        self.add_sets(&sets, room)?;
        self.digest(&moved);
        self.number(&sets, written);
        self.write(&sets, &moved, written);
        Ok(true)
    }

    /// Compiles what came into use.
    fn add_sets(&mut self, sets: &Sets, room: &Room<'_>) -> Result<(), Recompile> {
        let Policies { choice, allowed, .. } = &mut self.policies;
        for set in &sets.new {
            choice.identities.used.insert(*set);
            for (key, compiled) in &mut choice.compiled {
                let matches = choice.identities.sets.get(*set);
                if !compiled.add(*set, matches, &allowed[key], &self.terms) {
                    return Err(Recompile);
                }
            }
        }
        let chunks: usize = choice.compiled.values().map(|compiled| compiled.chunks).sum();
        if !sets.new.is_empty() && chunks > room.rules { Err(Recompile) } else { Ok(()) }
    }

    /// Digests of the policy sets that tell the old or the new meaning of an address from what is around it.
    fn digest(&mut self, moved: &BTreeMap<IpAddr, (Option<Meaning>, Option<Meaning>)>) {
        let meanings: BTreeSet<Meaning> =
            moved.values().flat_map(|(before, after)| [before, after]).flatten().copied().collect();
        for (key, compiled) in &self.policies.choice.compiled {
            if meanings.iter().any(|meaning| compiled.tells_apart(meaning)) {
                self.digests.insert(key.clone(), compiled.digest(&self.places));
            }
        }
    }

    /// Numbers of the sets of matches.
    fn number(&mut self, sets: &Sets, written: &mut Written<'_>) {
        let identities = &self.policies.choice.identities;
        let gone = sets.gone.iter().filter_map(|set| self.follower.unname(*set)).collect();
        let named: BTreeMap<SetId, TextHash> =
            sets.new.iter().map(|set| (*set, self.follower.name(*set, identities))).collect();
        let turnover = Turnover { gone, new: named.values().copied().collect() };
        if !turnover.is_empty() {
            written.given.change_identities(written.numbers, &turnover);
        }
        let number = |set: &SetId| named.get(set).and_then(|name| written.numbers.identities.get(name)).copied();
        let new: Vec<(SetId, u32)> = sets.new.iter().map(|set| (*set, number(set).unwrap_or(WORLD_IDENTITY))).collect();
        self.policies.choice.identities.numbers.extend(new);
    }

    fn write(
        &mut self,
        sets: &Sets,
        moved: &BTreeMap<IpAddr, (Option<Meaning>, Option<Meaning>)>,
        written: &mut Written<'_>,
    ) {
        let Policies { choice, numbers, .. } = &mut self.policies;
        for (key, compiled) in &mut choice.compiled {
            let policy = numbers[key];
            for set in sets.gone.iter().filter(|_| policy != CLOSED) {
                let Some(identity) = choice.identities.numbers.get(set).copied() else { continue };
                for key in compiled.rules_of(*set, policy, identity).into_keys() {
                    set_rule(written, key, None);
                }
            }
            for set in sets.new.iter().filter(|_| policy != CLOSED) {
                let Some(identity) = choice.identities.numbers.get(set).copied() else { continue };
                for (key, rules) in compiled.rules_of(*set, policy, identity) {
                    set_rule(written, key, Some(rules));
                }
            }
            sets.gone.iter().for_each(|set| compiled.remove(*set));
        }
        for set in &sets.gone {
            choice.identities.used.remove(set);
            choice.identities.numbers.remove(set);
        }
        for (address, (_, after)) in moved {
            let number = after.map(|after| choice.identities.numbers.get(&after.set).copied().unwrap_or_default());
            let Written { desired, patch, .. } = written;
            set(&mut desired.identities, &mut patch.identities, address_key(*address), number);
        }
    }
}

pub(super) fn set_rule(written: &mut Written<'_>, key: RuleKey, rules: Option<weft_abi::Rules>) {
    set(&mut written.desired.rules, &mut written.patch.rules, key, rules);
}
