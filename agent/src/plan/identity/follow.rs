// SPDX-License-Identifier: Apache-2.0
//! Identities that follow their addresses, one by one, and terms of pods that come and go.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::{
    Identities, MAX_MATCHES, MAX_STEPS, Meaning, PeerNames, SetId, Terms, TooMuch,
    blocks::Blocks,
    matcher::{PodGroup, PodMatcher},
};
use crate::{
    model::{HashKey, Snapshot, TextHash},
    plan::{pods::PodEntry, policy::peers::PeerTerm},
};

/// Beside [`Identities`]: what it takes to find the meaning of one address.
#[derive(Debug)]
pub(crate) struct Follower {
    blocks: Blocks,
    matcher: PodMatcher,
    /// How many addresses and prefixes have a set.
    users: HashMap<SetId, usize>,
    /// What each set's number goes by.
    names: HashMap<SetId, TextHash>,
    peers: PeerNames,
}

/// Sets that came into use, or went out of it.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    pub(crate) new: BTreeSet<SetId>,
    pub(crate) gone: BTreeSet<SetId>,
}

impl Follower {
    /// Goes on from what [`super::identify`] found.
    ///
    /// # Errors
    /// [`TooMuch`]: there is no room to go on.
    pub(crate) fn new(identities: &mut Identities, terms: &Terms, key: HashKey) -> Result<Self, TooMuch> {
        let blocks = Blocks::new(terms, &mut identities.sets, &mut BTreeMap::new())?;
        let mut users = HashMap::new();
        for meaning in identities.exact.values().chain(identities.prefixes.values()) {
            *users.entry(meaning.set).or_default() += 1;
        }
        let peers = PeerNames::new(terms, key);
        let names = identities.used.iter().filter(|set| **set != 0);
        let names = names.map(|set| (*set, peers.of_set(identities.sets.get(*set)))).collect();
        Ok(Self { blocks, matcher: PodMatcher::new(terms), users, names, peers })
    }

    /// A term of pods came, at a place behind all others.
    pub(crate) fn add_term(&mut self, place: u32, term: &Arc<PeerTerm>, snapshot: &Snapshot) {
        self.peers.push(term);
        self.matcher.add(place, term, snapshot);
    }

    /// A term of pods went.
    pub(crate) fn remove_term(&mut self, place: u32) {
        self.matcher.remove(place);
    }

    /// A namespace has other labels now.
    pub(crate) fn forget(&mut self, namespace: &str) {
        self.matcher.forget(namespace);
    }

    /// What an address means; none: what its prefix does.
    ///
    /// # Errors
    /// [`TooMuch`]: more work than is sure to be within the bounds of a whole plan.
    pub(crate) fn meaning(
        &mut self,
        snapshot: &Snapshot,
        pod: Option<PodEntry<'_>>,
        address: IpAddr,
        identities: &mut Identities,
    ) -> Result<Option<Meaning>, TooMuch> {
        let Some(pod) = pod else { return Ok(None) };
        let sets = &mut identities.sets;
        let by_pod = self.matcher.matches(snapshot, &PodGroup::of(pod), sets)?;
        let otherwise = self.blocks.lookup(address);
        let set = self.matcher.union(by_pod, otherwise, sets)?;
        // What was counted here is at least what a whole plan would count.
        if sets.steps > MAX_STEPS / 2 || sets.matches > MAX_MATCHES / 2 {
            return Err(TooMuch);
        }
        Ok((by_pod != 0 && set != otherwise).then_some(Meaning { set, otherwise }))
    }

    /// An address goes from one meaning to another.
    pub(crate) fn count(&mut self, before: Option<Meaning>, after: Option<Meaning>, sets: &mut Sets) {
        if let Some(Meaning { set, .. }) = before
            && let Some(users) = self.users.get_mut(&set)
        {
            *users -= 1;
            if *users == 0 {
                self.users.remove(&set);
                if set != 0 && !sets.new.remove(&set) {
                    sets.gone.insert(set);
                }
            }
        }
        if let Some(Meaning { set, .. }) = after {
            let users = self.users.entry(set).or_default();
            *users += 1;
            if *users == 1 && set != 0 && !sets.gone.remove(&set) {
                sets.new.insert(set);
            }
        }
    }

    /// What a set's number goes by.
    pub(crate) fn name(&mut self, set: SetId, identities: &Identities) -> TextHash {
        *self.names.entry(set).or_insert_with(|| self.peers.of_set(identities.sets.get(set)))
    }

    /// A set is out of use.
    pub(crate) fn unname(&mut self, set: SetId) -> Option<TextHash> {
        self.names.remove(&set)
    }
}
