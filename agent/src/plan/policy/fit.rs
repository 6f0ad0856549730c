// SPDX-License-Identifier: Apache-2.0
//! Which policy sets fit into the maps. The others are closed: everything is denied to their workloads, and to nobody else's.
//!
//! What one set takes depends on the others, since identities are a product of what all of them tell apart. So the sets are
//! put in an order, and as many of the first ones are taken as fit together: the order is that of [`share::order`], by the part
//! of a map, or of the work, that each takes alone. So no namespace displaces another one's policies by what it takes beyond its
//! share, what fitted stays, and who comes new where no room is left is closed.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use crate::{
    model::{Room, Snapshot, address::address_key},
    plan::{
        address::cidr_key,
        identity::{self, Identities, MAX_STEPS, PodGroups, Terms, TooMuch},
        policy::{
            compile::{self, Allowed, Compiled},
            isolation::SetKey,
        },
        share::{self, Wish},
    },
};

/// Looks at a choice of sets at most, beyond one for each set. Where that is not enough the sets not looked at are closed.
const MAX_TRIES: usize = 200;
/// Work of all looks at a choice, beyond one for each set and those for reasons: some 20 seconds. As with [`MAX_TRIES`].
const MAX_WORK: usize = 16 * MAX_STEPS;
/// Sets whose reason is looked for at most.
const MAX_REASONS: usize = 50;
/// Work of looks for reasons.
const MAX_REASONS_WORK: usize = 4 * MAX_STEPS;
/// A whole map, for shares.
const WHOLE: u64 = 1_000_000;

/// Every set that may be chosen: what it allows, and whether it was there at the last plan.
pub(super) type Candidates<'c> = BTreeMap<&'c SetKey, Candidate<'c>>;

/// See [`Candidates`].
#[derive(Debug)]
pub(super) struct Candidate<'c> {
    pub(super) allowed: &'c Allowed,
    pub(super) stood: bool,
}

/// Sets that fit together, compiled.
#[derive(Debug, Default)]
pub(crate) struct Choice {
    pub(crate) identities: Identities,
    pub(crate) compiled: BTreeMap<SetKey, Compiled>,
    /// The others, and why.
    pub(crate) closed: BTreeMap<SetKey, Shortage>,
    /// Some of them fit once what goes with this plan is gone.
    pub(crate) crowded: bool,
}

/// What there is not enough of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Shortage {
    /// Entries of a map.
    Map {
        /// What an entry is.
        what: &'static str,
        /// The map's key of the configuration.
        field: &'static str,
        /// Entries needed; none: more than there are.
        needed: Option<usize>,
        /// Entries there are.
        most: usize,
    },
    /// Work or memory of the plan itself.
    Work,
    /// The set was not looked at any more.
    Tries,
    /// It fits as soon as what goes with this plan is out of the maps: after this pass.
    Standing,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map { what, field, needed, most } => {
                match needed {
                    Some(needed) => write!(f, "{needed} {what} would be needed")?,
                    None => write!(f, "more than {most} {what} would be needed")?,
                }
                write!(f, ", {most} fit: make the policy smaller or raise mapSizes.{field}")
            }
            Self::Work => f.write_str(
                "its peers and ports tell more groups of addresses apart than an agent works through: make the policy smaller",
            ),
            Self::Standing => f.write_str("it waits for one pass, until others have left the maps"),
            Self::Tries => f.write_str("too many policies of this node do not fit: make those that are named smaller"),
        }
    }
}

/// Which part of each map a choice takes.
#[derive(Clone, Copy, Debug, Default)]
struct Use {
    cidrs: usize,
    identities: usize,
    rules: usize,
}

/// A choice under way.
struct Looking<'l, 'c> {
    candidates: &'l Candidates<'c>,
    beside: Beside,
    admitted: &'l [&'c SetKey],
    waiting: &'l [&'c SetKey],
}

/// All that a choice is looked at with.
pub(super) struct Fitting<'a> {
    snapshot: &'a Snapshot,
    groups: &'a PodGroups<'a>,
    room: &'a Room<'a>,
    /// Work of the looks since it was last set to 0: each kind of look has a bound of its own.
    work: Cell<usize>,
}

/// Whether what stands in the maps counts as well: it goes at the end of a pass only.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Beside {
    Nothing,
    WhatStands,
}

impl<'a> Fitting<'a> {
    pub(super) const fn new(snapshot: &'a Snapshot, groups: &'a PodGroups<'a>, room: &'a Room<'a>) -> Self {
        Self { snapshot, groups, room, work: Cell::new(0) }
    }

    /// Chooses.
    pub(super) fn choose(&self, candidates: &Candidates<'_>) -> Choice {
        let all: Vec<&SetKey> = candidates.keys().copied().collect();
        let mut closed = BTreeMap::new();
        let mut shares = BTreeMap::new();
        let fitting = match self.look_at(&all, candidates, Beside::Nothing) {
            Ok(_) => all,
            Err(_) => {
                let order = self.order(candidates, &mut shares, &mut closed);
                let (admitted, refused) = self.admit(order, candidates, Beside::Nothing);
                closed.extend(self.reasons(&admitted, refused, candidates));
                admitted
            }
        };
        if let Ok(choice) = self.look_at(&fitting, candidates, Beside::WhatStands) {
            return Choice { closed, ..choice };
        }
        // For this once, until what goes is gone: who stood needs little.
        let mut order = fitting;
        order.sort_by_key(|key| (!candidates[*key].stood, shares.get(key).copied().unwrap_or_default(), *key));
        let (admitted, late) = self.admit(order, candidates, Beside::WhatStands);
        closed.extend(late.into_iter().map(|key| (key.clone(), Shortage::Standing)));
        // It was looked at before, or it is empty.
        let choice = self.look_at(&admitted, candidates, Beside::WhatStands).unwrap_or_default();
        Choice { closed, crowded: true, ..choice }
    }

    /// As many of the first of `waiting` as fit together, and the others; where one does not, those of other namespaces go on.
    fn admit<'c>(
        &self,
        mut waiting: Vec<&'c SetKey>,
        candidates: &Candidates<'c>,
        beside: Beside,
    ) -> (Vec<&'c SetKey>, Vec<&'c SetKey>) {
        let (mut admitted, mut refused, mut tries) = (Vec::new(), Vec::new(), 0);
        self.work.set(0);
        while !waiting.is_empty() {
            let looked = Looking { candidates, beside, admitted: &admitted, waiting: &waiting };
            let count = self.longest(&looked, &mut tries);
            admitted.extend(waiting.drain(..count));
            let Some(first) = waiting.first() else { break };
            // The namespace's own larger sets are no more likely to fit.
            let namespace = &first.namespace;
            let is_over = tries >= MAX_TRIES || self.work.get() >= MAX_WORK;
            refused.extend(waiting.extract_if(.., |key| is_over || key.namespace == *namespace));
        }
        (admitted, refused)
    }

    /// How many of the first that wait fit beside those that are admitted.
    fn longest(&self, looking: &Looking<'_, '_>, tries: &mut usize) -> usize {
        let Looking { candidates, beside, admitted, waiting } = looking;
        let mut fits = |count: usize| {
            *tries += 1;
            if self.work.get() >= MAX_WORK {
                return false;
            }
            let chosen: Vec<&SetKey> = admitted.iter().chain(&waiting[..count]).copied().collect();
            self.look_at(&chosen, candidates, *beside).is_ok()
        };
        if fits(waiting.len()) {
            return waiting.len();
        }
        let (mut fitting, mut not) = (0, waiting.len());
        while fitting + 1 < not {
            let middle = fitting.midpoint(not);
            if fits(middle) {
                fitting = middle;
            } else {
                not = middle;
            }
        }
        fitting
    }

    /// Why sets are closed: the first of a namespace that does not fit beside all that are admitted tells it for the others. So
    /// it is the same whatever stood before, and in whatever order they were tried.
    fn reasons(
        &self,
        admitted: &[&SetKey],
        refused: Vec<&SetKey>,
        candidates: &Candidates<'_>,
    ) -> BTreeMap<SetKey, Shortage> {
        let mut by_namespace: BTreeMap<&str, BTreeSet<&SetKey>> = BTreeMap::new();
        for key in refused {
            by_namespace.entry(&key.namespace).or_default().insert(key);
        }
        let (mut reasons, mut tries) = (BTreeMap::new(), 0);
        self.work.set(0);
        for keys in by_namespace.values() {
            let looks = keys.iter().take(MAX_REASONS - tries);
            let mut why = looks.take_while(|_| self.work.get() < MAX_REASONS_WORK).filter_map(|key| {
                tries += 1;
                self.look_at(&[admitted, &[*key]].concat(), candidates, Beside::Nothing).err()
            });
            let why = why.next().unwrap_or(Shortage::Tries);
            reasons.extend(keys.iter().map(|key| ((*key).clone(), why)));
        }
        reasons
    }

    /// See the module. Sets that do not fit even alone are closed at once; so are those of a namespace that has taken all the work
    /// of one choice for its own.
    fn order<'c>(
        &self,
        candidates: &Candidates<'c>,
        shares: &mut BTreeMap<&'c SetKey, u64>,
        closed: &mut BTreeMap<SetKey, Shortage>,
    ) -> Vec<&'c SetKey> {
        let (mut keys, mut wishes) = (Vec::new(), Vec::new());
        let mut spent: BTreeMap<&str, usize> = BTreeMap::new();
        for (key, candidate) in candidates {
            let spent = spent.entry(&key.namespace).or_default();
            let alone = if *spent < MAX_STEPS {
                self.work.set(0);
                self.look_at(&[*key], candidates, Beside::Nothing)
            } else {
                Err(Shortage::Work)
            };
            let work = self.work.take();
            *spent += work;
            match alone {
                Ok(choice) => {
                    let cost = self.share(&choice).max(part(work, MAX_STEPS));
                    shares.insert(*key, cost);
                    keys.push(*key);
                    wishes.push(Wish { namespace: &key.namespace, cost, stood: candidate.stood });
                }
                Err(shortage) => drop(closed.insert((*key).clone(), shortage)),
            }
        }
        share::order(WHOLE, &wishes).into_iter().map(|place| keys[place]).collect()
    }

    /// The largest part of any map.
    fn share(&self, choice: &Choice) -> u64 {
        let Use { cidrs, identities, rules } = usage(choice);
        part(cidrs, self.room.cidrs).max(part(identities, self.room.identities)).max(part(rules, self.room.rules))
    }

    /// Compiles some sets together, if they fit.
    fn look_at(&self, chosen: &[&SetKey], candidates: &Candidates<'_>, beside: Beside) -> Result<Choice, Shortage> {
        let allowed = |key: &&SetKey| candidates[*key].allowed;
        let terms = Terms::of(chosen.iter().map(allowed));
        let identities = identity::identify(self.snapshot, self.groups, &terms);
        let steps = identities.as_ref().map_or(MAX_STEPS, |identities| identities.sets.steps());
        self.work.set(self.work.get() + steps);
        let identities = identities.map_err(|TooMuch| Shortage::Work)?;
        self.has_room(&identities, beside)?;
        let most = self.room.rules;
        let full = Shortage::Map { what: "chunks of rules", field: "rules", needed: None, most };
        let sets = chosen.iter().map(|key| (*key, allowed(key)));
        let compiled = compile::compile(sets, &identities, &terms, most).ok_or(full)?;
        Ok(Choice { identities, compiled, ..Choice::default() })
    }

    fn has_room(&self, identities: &Identities, beside: Beside) -> Result<(), Shortage> {
        let Room { cidrs, standing_cidrs, identities: most, standing_identities, .. } = self.room;
        let stands = beside == Beside::WhatStands;
        let prefixes = identities.prefixes.keys().map(|net| cidr_key(*net));
        room_beside(prefixes, stands.then_some(*standing_cidrs), "prefixes", "cidrs", *cidrs)?;
        let addresses = identities.exact.keys().map(|address| address_key(*address));
        room_beside(addresses, stands.then_some(*standing_identities), "addresses", "identities", *most)
    }
}

fn part(count: usize, most: usize) -> u64 {
    WHOLE.saturating_mul(count as u64) / (most.max(1) as u64)
}

/// Whether new entries fit beside those that stand. What stands already needs no room.
fn room_beside<K: Ord>(
    wanted: impl ExactSizeIterator<Item = K>,
    standing: Option<&BTreeMap<K, u32>>,
    what: &'static str,
    field: &'static str,
    most: usize,
) -> Result<(), Shortage> {
    let stand = standing.map_or(0, BTreeMap::len);
    let all = wanted.len() + stand;
    if all <= most {
        return Ok(());
    }
    let added = wanted.filter(|key| !standing.is_some_and(|standing| standing.contains_key(key))).count();
    let needed = added + stand;
    if added == 0 || needed <= most { Ok(()) } else { Err(Shortage::Map { what, field, needed: Some(needed), most }) }
}

fn usage(choice: &Choice) -> Use {
    let Choice { identities, compiled, .. } = choice;
    Use {
        cidrs: identities.prefixes.len(),
        identities: identities.exact.len(),
        rules: compiled.values().map(|set| set.chunks).sum(),
    }
}
