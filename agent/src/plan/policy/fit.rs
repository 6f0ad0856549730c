// SPDX-License-Identifier: Apache-2.0
//! Which decision lists there is room for. The others are closed: everything is denied to their workloads, and to nobody else's.
//!
//! What a list takes does not depend on the others: its rules, its blocks, and the work of asking every class for its terms; blocks
//! that several lists share are taken once, by the first that comes, and shares count them for each. So the lists are put in the order of [`share::order`], by the part of a map, or of the work, that each takes, and one after the other is
//! taken that fits beside those before it: no namespace displaces another one's policies by what it takes beyond its share, what
//! fitted stays, and who comes new where no room is left is closed.
//!
//! A class has room for few terms; of which it is left out where lists ask for more, [`Classes`] tell.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use crate::{
    model::{Name, Room},
    plan::{
        classes::Classes,
        policy::{
            isolation::SetKey,
            list::{KnownList, TooLong},
            parts::KnownBlocks,
            peers::PeerTerm,
        },
        share::{self, Wish},
    },
};

/// Looks at a selector at most, to find what all classes match: a second or two of work.
pub(super) const MAX_WORK: u64 = 1 << 27;
/// A look at a term that asks for a value of a key, beside one that must be made for every class.
const FOUND_BY_VALUE: u64 = 64;
/// A whole map, for shares.
const WHOLE: u64 = 1_000_000;

/// Why a list is closed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Shortage {
    /// Entries of a map.
    Map {
        /// What an entry is.
        what: &'static str,
        /// The map's key of the configuration.
        field: &'static str,
        /// Entries needed.
        needed: usize,
        /// Entries there are.
        most: usize,
    },
    /// Work of the plan itself.
    Work,
    /// It asks for labels that controllers give each pod.
    Keys,
    /// Its terms meet others.
    Meeting,
    /// It is too long for a list.
    TooLong(TooLong),
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map { what, field, needed, most } => write!(
                f,
                "{needed} {what} would be needed, {most} fit: make the policy smaller or raise mapSizes.{field}"
            ),
            Self::Work => f.write_str("its peers are more selectors than an agent works through: use fewer of them"),
            Self::Keys => f.write_str(
                "its selectors ask for labels that controllers give each pod, which makes more classes of pods than fit: use other labels or \
                 raise mapSizes.classes and mapSizes.peers",
            ),
            Self::Meeting => f.write_str(
                "one of its peers has the number of another policy's by a rare chance: write it otherwise, for instance with one more \
                 requirement that holds anyway",
            ),
            Self::TooLong(why) => why.fmt(f),
        }
    }
}

fn full(what: &'static str, field: &'static str, needed: usize, most: usize) -> Option<Shortage> {
    (needed > most).then_some(Shortage::Map { what, field, needed, most })
}

/// What lists take.
#[derive(Clone, Copy, Debug, Default)]
struct Use {
    rules: usize,
    blocks: usize,
    work: u64,
}

impl Use {
    /// Beside its blocks.
    fn of(list: &KnownList, classes: usize) -> Self {
        let work = list.terms.iter().map(|term| work_of(term, classes)).fold(0, u64::saturating_add);
        Self { rules: list.rules, blocks: 0, work }
    }

    fn of_blocks(KnownBlocks { rules, prefixes, .. }: &KnownBlocks) -> Self {
        Self { rules: *rules, blocks: *prefixes, work: 0 }
    }

    fn plus(self, other: Self) -> Self {
        let Self { rules, blocks, work } = other;
        Self { rules: self.rules + rules, blocks: self.blocks + blocks, work: self.work.saturating_add(work) }
    }

    /// The first that there is not enough of.
    fn shortage(self, room: &Room) -> Option<Shortage> {
        full("rules", "rules", self.rules, room.rules)
            .or_else(|| full("prefixes", "blocks", self.blocks, room.blocks))
            .or_else(|| (self.work > MAX_WORK).then_some(Shortage::Work))
    }

    /// The largest part of anything.
    fn share(self, room: &Room) -> u64 {
        let part = |count: u64, most: u64| WHOLE.saturating_mul(count) / most.max(1);
        part(self.rules as u64, room.rules as u64)
            .max(part(self.blocks as u64, room.blocks as u64))
            .max(part(self.work, MAX_WORK))
    }
}

/// What several lists take together.
#[derive(Debug, Default)]
struct Taken {
    all: Use,
    /// Sets of blocks, each once.
    sets: BTreeSet<u64>,
}

impl Taken {
    /// What they take with one more.
    fn with(&self, own: Use, blocks: &KnownBlocks) -> Use {
        let all = self.all.plus(own);
        if self.sets.contains(&blocks.number) { all } else { all.plus(Use::of_blocks(blocks)) }
    }

    fn take(&mut self, own: Use, blocks: &KnownBlocks) {
        self.all = self.with(own, blocks);
        self.sets.insert(blocks.number);
    }
}

/// How much work it is to ask all classes for a term, at most or nearly so.
fn work_of(term: &PeerTerm, classes: usize) -> u64 {
    let looks = (1 + term.peer.pods.cost() as u64).saturating_mul(classes as u64);
    if term.peer.pods.asked_values().is_some() { looks / FOUND_BY_VALUE } else { looks }
}

/// Whether all of these lists fit, and how much work they are.
pub(super) fn fits<'l>(lists: impl Iterator<Item = &'l KnownList>, classes: usize, room: &Room) -> Option<u64> {
    let mut taken = Taken::default();
    lists.for_each(|list| taken.take(Use::of(list, classes), &list.blocks));
    taken.all.shortage(room).is_none().then_some(taken.all.work)
}

/// The lists that do not fit, and why. `stood`: it had room at the last plan.
pub(super) fn closed(
    lists: &BTreeMap<&SetKey, &KnownList>,
    classes: usize,
    room: &Room,
    stood: impl Fn(&SetKey) -> bool,
) -> BTreeMap<SetKey, Shortage> {
    let mut closed = BTreeMap::new();
    let (mut waiting, mut wishes) = (Vec::new(), Vec::new());
    for (key, list) in lists {
        let own = Use::of(list, classes);
        let needed = own.plus(Use::of_blocks(&list.blocks));
        let why = list.too_long.clone().map(Shortage::TooLong).or_else(|| needed.shortage(room));
        if let Some(why) = why {
            closed.insert((*key).clone(), why);
            continue;
        }
        waiting.push((*key, own, &list.blocks));
        wishes.push(Wish { namespace: &key.namespace, cost: needed.share(room), stood: stood(key) });
    }
    let mut taken = Taken::default();
    let mut left: Vec<_> = share::order(WHOLE, &wishes).into_iter().map(|place| waiting[place]).collect();
    loop {
        let before = left.len();
        left.retain(|(_, own, blocks)| {
            let fits = taken.with(*own, blocks).shortage(room).is_none();
            if fits {
                taken.take(*own, blocks);
            }
            !fits
        });
        // Who comes later may bring the blocks that another one asks for.
        if left.len() == before {
            break;
        }
    }
    let why = |own, blocks| taken.with(own, blocks).shortage(room);
    closed.extend(left.into_iter().filter_map(|(key, own, blocks)| Some((key.clone(), why(own, blocks)?))));
    closed
}

/// The namespaces of whose pods there is no room for all, and why.
pub(super) fn unknown(classes: &Classes, room: &Room) -> BTreeMap<Name, Shortage> {
    let all: Vec<(&Name, usize, usize)> = classes.by_namespace().collect();
    let total = all.iter().fold((0, 0), |total, (_, peers, classes)| (total.0 + peers, total.1 + classes));
    if total.0 <= room.peers && total.1 <= room.classes {
        return BTreeMap::new();
    }
    let part = |count: usize, most: usize| WHOLE.saturating_mul(count as u64).div_ceil(most.max(1) as u64);
    let cost = |peers, classes| part(peers, room.peers).max(part(classes, room.classes));
    let wishes: Vec<Wish<'_>> = all
        .iter()
        .map(|(name, peers, classes)| Wish { namespace: name, cost: cost(*peers, *classes), stood: true })
        .collect();
    let (mut taken, mut unknown) = ((0, 0), BTreeMap::new());
    for (name, peers, classes) in share::order(WHOLE, &wishes).into_iter().map(|place| all[place]) {
        let now = (taken.0 + peers, taken.1 + classes);
        let why = full("addresses of pods", "peers", now.0, room.peers)
            .or_else(|| full("classes of pods", "classes", now.1, room.classes));
        match why {
            None => taken = now,
            Some(why) => drop(unknown.insert(name.clone(), why)),
        }
    }
    unknown
}
