// SPDX-License-Identifier: Apache-2.0
//! Identities: numbers for the sets of peers that addresses match.

mod blocks;
mod follow;
mod matcher;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use weft_abi::WORLD_IDENTITY;

use self::{blocks::Blocks, matcher::PodMatcher};
pub(crate) use self::{
    follow::{Follower, Sets},
    matcher::PodGroups,
};
use crate::{
    model::{HashKey, Numbers, Snapshot, TextHash},
    plan::policy::{compile::Allowed, peers::PeerTerm, region::Region},
};

/// A term that an address matches, by its place among [`Terms`], and the port that the address's pod numbers so where the
/// term is about a named port (else 0).
pub(crate) type Match = (u32, u16);

/// Number of a set within one plan; 0 is the empty set.
pub(crate) type SetId = usize;

/// Matches of all sets together at most: about 16 MiB.
const MAX_MATCHES: usize = 1 << 20;
/// Looks at a match, a selector or a prefix at most: a second or two of work.
pub(crate) const MAX_STEPS: usize = 1 << 25;

/// A term at its place.
#[derive(Debug)]
struct Placed {
    term: Arc<PeerTerm>,
    /// The addresses of one of blocks.
    region: Option<Arc<Region>>,
    /// How many policy sets have it.
    uses: usize,
}

/// A term's place is taken, or empty now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Moved {
    /// At this place, behind all others.
    Came(u32),
    /// From this one.
    Went(u32),
}

/// The terms that the identities tell apart, in order.
#[derive(Debug, Default)]
pub(crate) struct Terms {
    /// By place; one that went leaves its own empty.
    all: Vec<Option<Placed>>,
    places: BTreeMap<Arc<PeerTerm>, u32>,
}

impl Terms {
    /// All terms of some policy sets.
    pub(crate) fn of<'a>(sets: impl Iterator<Item = &'a Allowed>) -> Self {
        let mut found: BTreeMap<&Arc<PeerTerm>, (Option<&Arc<Region>>, usize)> = BTreeMap::new();
        for allowed in sets {
            for term in allowed.peers.keys() {
                let (region, uses) = found.entry(term).or_default();
                *region = allowed.regions.get(term);
                *uses += 1;
            }
        }
        let places = (0..).zip(found.keys()).map(|(place, term)| ((*term).clone(), place)).collect();
        let placed = |(term, (region, uses)): (&Arc<PeerTerm>, (Option<&Arc<Region>>, usize))| {
            Some(Placed { term: term.clone(), region: region.cloned(), uses })
        };
        Self { all: found.into_iter().map(placed).collect(), places }
    }

    /// How many places there are.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// How many policy sets have a term.
    pub(crate) fn uses(&self, term: &PeerTerm) -> usize {
        let place = self.place(term).and_then(|place| self.all.get(place as usize)?.as_ref());
        place.map_or(0, |placed| placed.uses)
    }

    /// So many more policy sets have a term of pods, or fewer. One that nobody has any more leaves its place empty.
    pub(crate) fn change_uses(&mut self, term: &Arc<PeerTerm>, more: isize) -> Option<Moved> {
        let Some(place) = self.place(term) else {
            let uses = usize::try_from(more).ok().filter(|uses| *uses > 0)?;
            let place = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
            self.places.insert(term.clone(), place);
            self.all.push(Some(Placed { term: term.clone(), region: None, uses }));
            return Some(Moved::Came(place));
        };
        let standing = self.all.get_mut(place as usize)?;
        let placed = standing.as_mut()?;
        placed.uses = placed.uses.saturating_add_signed(more);
        if placed.uses > 0 {
            return None;
        }
        *standing = None;
        self.places.remove(term);
        Some(Moved::Went(place))
    }

    /// Whether most places are empty.
    pub(crate) fn is_worn(&self) -> bool {
        self.all.len() > 2 * self.places.len() + 1000
    }

    /// The place of a term.
    pub(crate) fn place(&self, term: &PeerTerm) -> Option<u32> {
        self.places.get(term).copied()
    }

    /// The term at a place.
    pub(crate) fn at(&self, place: u32) -> Option<&PeerTerm> {
        self.all.get(place as usize)?.as_ref().map(|placed| &*placed.term)
    }

    fn iter(&self) -> impl Iterator<Item = (u32, &Arc<PeerTerm>, Option<&Region>)> + '_ {
        let places = (0..).zip(&self.all).filter_map(|(place, term)| Some((place, term.as_ref()?)));
        places.map(|(place, Placed { term, region, .. })| (place, term, region.as_deref()))
    }
}

/// The policies tell more apart than one plan works through.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TooMuch;

/// The sets of matches that occur, each once, and how much work it was to find them.
#[derive(Debug)]
pub(crate) struct MatchSets {
    all: Vec<Arc<[Match]>>,
    // Looked up only, never iterated.
    ids: HashMap<Arc<[Match]>, SetId>,
    matches: usize,
    steps: usize,
}

impl Default for MatchSets {
    fn default() -> Self {
        let empty: Arc<[Match]> = Arc::new([]);
        Self { all: vec![empty.clone()], ids: HashMap::from([(empty, 0)]), matches: 0, steps: 0 }
    }
}

impl MatchSets {
    /// The set of these matches, which are in order.
    fn intern(&mut self, set: Vec<Match>) -> Result<SetId, TooMuch> {
        self.step(set.len())?;
        if let Some(id) = self.ids.get(set.as_slice()) {
            return Ok(*id);
        }
        self.matches += set.len();
        if self.matches > MAX_MATCHES {
            return Err(TooMuch);
        }
        let set: Arc<[Match]> = set.into();
        self.ids.insert(set.clone(), self.all.len());
        self.all.push(set);
        Ok(self.all.len() - 1)
    }

    /// Counts work.
    fn step(&mut self, steps: usize) -> Result<(), TooMuch> {
        self.steps += steps;
        if self.steps > MAX_STEPS { Err(TooMuch) } else { Ok(()) }
    }

    /// The matches of a set.
    pub(crate) fn get(&self, id: SetId) -> &[Match] {
        &self.all[id]
    }

    /// How much work it was.
    pub(crate) const fn steps(&self) -> usize {
        self.steps
    }

    /// How many matches are kept, for tests of the bound.
    #[cfg(test)]
    pub(crate) fn work(&self) -> (usize, usize) {
        (self.matches, self.steps)
    }
}

/// What an entry says, and what would hold for its addresses without it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Meaning {
    pub(crate) set: SetId,
    pub(crate) otherwise: SetId,
}

/// Every address and prefix that policies tell apart.
#[derive(Debug, Default)]
pub(crate) struct Identities {
    pub(crate) sets: MatchSets,
    /// Single addresses whose set is not that of their prefix.
    pub(crate) exact: BTreeMap<IpAddr, Meaning>,
    /// Prefixes.
    pub(crate) prefixes: BTreeMap<IpNet, Meaning>,
    /// The sets that occur above, and the empty one.
    pub(crate) used: BTreeSet<SetId>,
    /// The number of each of them, once [`Identities::assign`] gave one.
    pub(crate) numbers: BTreeMap<SetId, u32>,
}

/// Finds the set of every address.
///
/// # Errors
/// [`TooMuch`]: work and memory have a bound, whatever the policies are.
pub(crate) fn identify(snapshot: &Snapshot, groups: &PodGroups<'_>, terms: &Terms) -> Result<Identities, TooMuch> {
    let mut sets = MatchSets::default();
    let mut identities = Identities::default();
    let blocks = Blocks::new(terms, &mut sets, &mut identities.prefixes)?;
    let mut matcher = PodMatcher::new(terms);
    for group in groups.iter() {
        let by_pod = matcher.matches(snapshot, group, &mut sets)?;
        if by_pod == 0 {
            continue;
        }
        for address in &group.addresses {
            let otherwise = blocks.lookup(*address);
            let set = matcher.union(by_pod, otherwise, &mut sets)?;
            if set != otherwise {
                identities.exact.insert(*address, Meaning { set, otherwise });
            }
        }
    }
    let meanings = identities.exact.values().chain(identities.prefixes.values());
    identities.used = meanings.map(|meaning| meaning.set).chain([0]).collect();
    identities.sets = sets;
    Ok(identities)
}

impl Identities {
    /// See [`crate::heap::pack`].
    pub(crate) fn pack(&mut self) {
        crate::heap::pack(&mut self.exact);
    }

    /// Numbers the sets.
    pub(crate) fn assign(&mut self, terms: &Terms, numbers: &mut Numbers) {
        let peers = PeerNames::new(terms, numbers.key);
        let used = self.used.iter().filter(|id| **id != 0);
        let names: BTreeMap<SetId, TextHash> = used.map(|id| (*id, peers.of_set(self.sets.get(*id)))).collect();
        numbers.assign_identities(&names.values().copied().collect());
        // The empty set is the world.
        let number =
            |id| names.get(id).and_then(|name| numbers.identities.get(name)).copied().unwrap_or(WORLD_IDENTITY);
        self.numbers = self.used.iter().map(|id| (*id, number(id))).collect();
    }
}

/// What peers are called, by their places among [`Terms`].
#[derive(Debug)]
pub(crate) struct PeerNames {
    key: HashKey,
    all: Vec<TextHash>,
}

impl PeerNames {
    /// The names of these.
    pub(crate) fn new(terms: &Terms, key: HashKey) -> Self {
        Self { key, all: terms.iter().map(|(_, term, _)| key.of_text(&term.to_string())).collect() }
    }

    /// One more, at the next place.
    fn push(&mut self, term: &PeerTerm) {
        self.all.push(self.key.of_text(&term.to_string()));
    }

    /// The name of a set, wherever its terms have their places.
    fn of_set(&self, set: &[Match]) -> TextHash {
        let mut named: Vec<(TextHash, u16)> =
            set.iter().map(|(term, port)| (self.all[*term as usize], *port)).collect();
        named.sort_unstable();
        self.key.of_peers(&named)
    }
}
