// SPDX-License-Identifier: Apache-2.0
//! Which decision lists there is room for. The others are closed: everything is denied to their workloads, and to nobody else's.
//!
//! A list takes its rules, its blocks, and the work of asking every class for its terms; what several lists share is taken once, by
//! the first that comes, and shares count it for each. The lists are put in the order of [`share::order`], by the part of a map, or of
//! the work, that each takes, and one after the other is taken that fits beside those before it: no namespace displaces another one's
//! policies by what it takes beyond its share, what fitted stays, and who comes new where no room is left is closed. Maps come first,
//! which do not depend on pods; work is shared among those that they have room for.
//!
//! A class has room for few terms; of which it is left out where lists ask for more, [`Classes`] tell.

use std::{collections::BTreeMap, fmt, sync::Arc};

use weft_abi::CLOSED_LIST;

use crate::{
    model::{Name, Room},
    plan::{
        classes::Classes,
        policy::{
            isolation::SetKey,
            list::{KnownList, TooLong},
            peers::PeerTerm,
        },
        share::{self, Wish},
    },
};

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

impl Shortage {
    /// Whether pods that come or go may end it.
    pub(super) const fn depends_on_pods(&self) -> bool {
        matches!(self, Self::Work | Self::Keys | Self::Meeting)
    }
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
    prefixes: usize,
    /// At each class, in parts of [`FOUND_BY_VALUE`].
    looks: u64,
}

impl Use {
    /// Selectors looked at, to find what all of `classes` match: at most or nearly so.
    const fn work(self, classes: usize) -> u64 {
        self.looks.saturating_mul(classes as u64) / FOUND_BY_VALUE
    }

    /// The first map that has not enough of it.
    fn shortage(self, room: &Room) -> Option<Shortage> {
        full("rules", "rules", self.rules, room.rules)
            .or_else(|| full("prefixes", "blocks", self.prefixes, room.blocks))
    }
}

/// What several lists take together, and how many have what: a list, a set of blocks or a term that some of them share is taken once.
#[derive(Debug, Default)]
pub(super) struct Taken {
    all: Use,
    /// By their numbers.
    lists: BTreeMap<u64, usize>,
    blocks: BTreeMap<u64, usize>,
    terms: BTreeMap<Arc<PeerTerm>, usize>,
}

/// What nobody has any more: numbers of a list, and of a set of blocks.
#[derive(Debug)]
pub(super) struct Unused {
    pub(super) list: Option<u64>,
    pub(super) blocks: Option<u64>,
}

impl Taken {
    /// What they take with one more.
    fn with(&self, list: &KnownList) -> Use {
        let mut all = self.all;
        if !self.lists.contains_key(&list.number) {
            all.rules += list.rules;
        }
        if !self.blocks.contains_key(&list.blocks.number) {
            all.rules += list.blocks.rules;
            all.prefixes += list.blocks.prefixes;
        }
        let terms = list.terms.iter().filter(|term| !self.terms.contains_key(*term));
        all.looks = terms.map(|term| looks_of(term)).fold(all.looks, u64::saturating_add);
        all
    }

    pub(super) fn add(&mut self, list: &KnownList) {
        self.all = self.with(list);
        *self.lists.entry(list.number).or_default() += 1;
        *self.blocks.entry(list.blocks.number).or_default() += 1;
        list.terms.iter().for_each(|term| *self.terms.entry(term.clone()).or_default() += 1);
    }

    pub(super) fn remove(&mut self, list: &KnownList) -> Unused {
        let Self { all, lists, blocks, terms } = self;
        let is_last = [release(lists, &list.number), release(blocks, &list.blocks.number)];
        if is_last[0] {
            all.rules -= list.rules;
        }
        if is_last[1] {
            all.rules -= list.blocks.rules;
            all.prefixes -= list.blocks.prefixes;
        }
        let unused = list.terms.iter().filter(|term| release(terms, *term));
        all.looks = unused.map(|term| looks_of(term)).fold(all.looks, u64::saturating_sub);
        let written = |is_last: bool, number: u64| (is_last && ![0, CLOSED_LIST].contains(&number)).then_some(number);
        Unused { list: written(is_last[0], list.number), blocks: written(is_last[1], list.blocks.number) }
    }

    /// Whether all of them fit.
    pub(super) fn fits(&self, classes: usize, room: &Room) -> bool {
        self.all.shortage(room).is_none() && self.all.work(classes) <= room.work
    }
}

/// One user less; whether it was the last.
fn release<K: Ord>(users: &mut BTreeMap<K, usize>, key: &K) -> bool {
    let Some(count) = users.get_mut(key) else { return false };
    *count -= 1;
    let is_last = *count == 0;
    if is_last {
        users.remove(key);
    }
    is_last
}

/// How much work it is to ask a class for a term, at most or nearly so.
fn looks_of(term: &PeerTerm) -> u64 {
    let looks = 1 + term.peer.pods.cost() as u64;
    if term.peer.pods.asked_values().is_some() { looks } else { looks.saturating_mul(FOUND_BY_VALUE) }
}

fn part(count: u64, most: u64) -> u64 {
    WHOLE.saturating_mul(count) / most.max(1)
}

/// The lists that the maps have no room for, and those that are too long, whatever pods there are. `stood`: it had room at the last plan.
pub(super) fn without_room(
    lists: &BTreeMap<&SetKey, &KnownList>,
    room: &Room,
    stood: impl Fn(&SetKey) -> bool,
) -> BTreeMap<SetKey, Shortage> {
    let too_long = |list: &KnownList| list.too_long.clone().map(Shortage::TooLong);
    let mut closed: BTreeMap<SetKey, Shortage> =
        lists.iter().filter_map(|(key, list)| Some(((*key).clone(), too_long(list)?))).collect();
    let others = lists.iter().filter(|(_, list)| list.too_long.is_none()).map(|(key, list)| (*key, *list));
    let share = |all: Use| part(all.rules as u64, room.rules as u64).max(part(all.prefixes as u64, room.blocks as u64));
    closed.extend(left_out(others, stood, share, |all| all.shortage(room)));
    closed
}

/// The lists that are too much work beside the others.
pub(super) fn beyond_work(
    lists: &BTreeMap<&SetKey, &KnownList>,
    (classes, room): (usize, &Room),
    stood: impl Fn(&SetKey) -> bool,
) -> BTreeMap<SetKey, Shortage> {
    let shortage = |all: Use| (all.work(classes) > room.work).then_some(Shortage::Work);
    let all = lists.iter().map(|(key, list)| (*key, *list));
    left_out(all, stood, |all| part(all.work(classes), room.work), shortage)
}

/// The lists that do not fit, and why, where `shortage` tells what there is not enough of.
fn left_out<'l>(
    lists: impl Iterator<Item = (&'l SetKey, &'l KnownList)>,
    stood: impl Fn(&SetKey) -> bool,
    share: impl Fn(Use) -> u64,
    shortage: impl Fn(Use) -> Option<Shortage>,
) -> BTreeMap<SetKey, Shortage> {
    let mut closed = BTreeMap::new();
    let (mut waiting, mut wishes) = (Vec::new(), Vec::new());
    for (key, list) in lists {
        let alone = Taken::default().with(list);
        if let Some(why) = shortage(alone) {
            closed.insert(key.clone(), why);
            continue;
        }
        waiting.push((key, list));
        wishes.push(Wish { namespace: &key.namespace, cost: share(alone), stood: stood(key) });
    }
    let mut taken = Taken::default();
    let mut left: Vec<_> = share::order(WHOLE, &wishes).into_iter().map(|place| waiting[place]).collect();
    loop {
        let before = left.len();
        left.retain(|(_, list)| {
            let fits = shortage(taken.with(list)).is_none();
            if fits {
                taken.add(list);
            }
            !fits
        });
        // Who comes later may bring what another one shares.
        if left.len() == before {
            break;
        }
    }
    closed.extend(left.into_iter().filter_map(|(key, list)| Some((key.clone(), shortage(taken.with(list))?))));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::policy::{
        parts::KnownBlocks,
        peers::{Namespaces, PodPeer},
        rules::Direction,
        selector::Selector,
    };

    const CLASSES: usize = 1000;
    /// Four terms are all the work there may be.
    const ROOM: Room =
        Room { services: 0, members: 0, peers: 0, classes: 0, terms: 0, rules: 0, blocks: 0, work: 8 * CLASSES as u64 };

    /// All pods of a namespace: two looks at each class.
    fn term(namespace: u64) -> Arc<PeerTerm> {
        let namespaces = Namespaces::Named(namespace.to_string());
        Arc::new(PeerTerm { peer: PodPeer { namespaces, pods: Selector::everything() }, named: None })
    }

    fn list(number: u64, term_of: u64) -> KnownList {
        let blocks = KnownBlocks { number: 7, rules: 2, prefixes: 3 };
        KnownList { number, rules: 1, blocks, terms: vec![term(term_of)], ..KnownList::default() }
    }

    fn closed_of(lists: &[KnownList]) -> BTreeMap<SetKey, Shortage> {
        let key = |list: &KnownList| SetKey {
            namespace: Name::from(list.number.to_string().as_str()),
            direction: Direction::Ingress,
            text: Arc::default(),
        };
        let keys: Vec<SetKey> = lists.iter().map(key).collect();
        beyond_work(&keys.iter().zip(lists).collect(), (CLASSES, &ROOM), |_| false)
    }

    #[test]
    fn a_term_that_many_lists_ask_for_is_asked_once() {
        let shared: Vec<KnownList> = (1..100).map(|number| list(number, 1)).collect();
        assert!(closed_of(&shared).is_empty());
        let own: Vec<KnownList> = (1..100).map(|number| list(number, number)).collect();
        let closed = closed_of(&own);
        assert_eq!(closed.len(), 99 - 4);
        assert!(closed.values().all(|why| *why == Shortage::Work));
    }

    #[test]
    fn what_is_added_can_be_removed() {
        let mut taken = Taken::default();
        let lists = [list(1, 1), list(2, 1), list(2, 1)];
        lists.iter().for_each(|list| taken.add(list));
        let Use { rules, prefixes, looks } = taken.all;
        assert_eq!((rules, prefixes, looks), (4, 3, 2 * FOUND_BY_VALUE));
        let unused = lists.each_ref().map(|list| taken.remove(list)).map(|Unused { list, blocks }| (list, blocks));
        assert_eq!(unused, [(Some(1), None), (None, None), (Some(2), Some(7))]);
        let Use { rules, prefixes, looks } = taken.all;
        assert_eq!((rules, prefixes, looks), (0, 0, 0));
        assert!(taken.terms.is_empty());
    }
}
