// SPDX-License-Identifier: Apache-2.0
//! Compiled policy: decision lists, which never change, and the classes of addresses that they tell apart.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Addr;

/// In a port: no list, nobody is held back that way.
pub const NO_LIST: u64 = 0;

/// In a port: a list that nobody ever writes, everything is refused.
pub const CLOSED_LIST: u64 = u64::MAX;

/// In an [`Interval`]: every protocol, and every port of it.
pub const PROTOCOL_ANY: u8 = 0;

/// Terms of one class at most, beside that of its namespace.
pub const TERMS_PER_CLASS: usize = 22;

/// Intervals in one map value.
pub const INTERVALS_PER_RUN: usize = 4;

/// Map values of one part of a list at most.
pub const MAX_RUNS: u64 = 40;

/// Map values beyond the first of each part, of all parts that one verdict looks at, at most.
pub const MAX_MORE_RUNS: usize = 64;

/// Prefix lengths of one family that the blocks of one list have, at most: all that there are of IPv4.
pub const MAX_LENGTHS: usize = 33;

/// Looks at a list for one verdict at most; whatever asks for more is closed. No list does: each part's first map value (those for
/// anybody, any pod, the namespace, a block, and of every term), the values beyond, and all lengths.
pub const MAX_STEPS: u32 = 192;

/// Parts of a list in [`RuleKey::part`], beside terms: each leaves room for [`MAX_RUNS`] numbers.
pub mod part {
    /// Holds whoever the peer is.
    pub const ANY: u64 = 0x100;
    /// Holds for every pod of the cluster.
    pub const ANY_POD: u64 = 0x200;
    /// Holds for addresses in blocks: the first number of many.
    pub const BLOCKS: u64 = 0x1000;
    /// From one of the parts of blocks to the next.
    pub const STEP: u64 = 0x100;
    /// Set in terms alone.
    pub const TERM: u64 = 1 << 63;
    /// Bits of a term that are a port's number, and of a part the place of a map value.
    pub const LOW: u64 = 0xffff;
}

/// Who decided, where it is no rule of a policy; see [`Interval::rule`]. Numbers of rules begin beyond.
pub mod rule {
    /// Nobody: no policy selects the workload.
    pub const NONE: u32 = 0;
    /// The list is closed: its pod is not known (yet), or it does not fit.
    pub const CLOSED: u32 = 1;
    /// The list took more looks than [`super::MAX_STEPS`], or lacks a part.
    pub const BROKEN: u32 = 2;
    /// The first number of a rule.
    pub const FIRST: u32 = 16;
    /// Set in the number of who would have refused, and only tells of it: see [`super::Interval::AUDIT`]. No rule's number has it.
    pub const AUDITED: u32 = 1 << 31;
}

crate::layout! {
    /// What addresses have in common that policies tell apart: pods of one namespace with the same labels and named ports.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Class {
        /// A hash of all that follows: another content has another version.
        pub version: u64,
        /// The term of its namespace.
        pub namespace: u64,
        /// Other terms that it matches, in order; 0: there are no more. One of a named port has that port's number in its lowest bits and
        /// counts for this port alone.
        pub terms: [u64; TERMS_PER_CLASS],
    }
}

/// Bits of [`List::flags`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ListFlags;

impl ListFlags {
    /// It has a part [`part::ANY`].
    pub const ANY: u32 = 1;
    /// It has a part [`part::ANY_POD`].
    pub const ANY_POD: u32 = 2;
    /// It has blocks.
    pub const BLOCKS: u32 = 4;
    /// It has parts for terms.
    pub const TERMS: u32 = 8;
    /// NetworkPolicies isolate: whatever none of their rules allows is refused, [`List::isolated_by`] them.
    pub const ISOLATES: u32 = 16;
    /// That is told of and not done.
    pub const AUDITS: u32 = 32;
    /// What nobody decides is allowed.
    pub const OPEN: u32 = 64;
}

crate::layout! {
    /// The head of a list: which parts there are to look at.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct List {
        /// Terms that it may have a part for: two bits of 256 for each, see [`List::bits_of`].
        pub filter: [u64; 4],
        /// Number of its set of blocks, see [`BlockKey::blocks`]; 0: it has none.
        pub blocks: u64,
        /// [`ListFlags`].
        pub flags: u32,
        /// With [`ListFlags::ISOLATES`]: the number that these policies together have in the place of a rule's.
        pub isolated_by: u32,
        /// Prefix lengths that its blocks have in the 128-bit form of addresses, longest first: of IPv4, then of IPv6. What is left is
        /// [`List::NO_LENGTH`].
        pub lengths: [[u8; MAX_LENGTHS + 3]; 2],
    }
}

impl List {
    /// No prefix has this length.
    pub const NO_LENGTH: u8 = u8::MAX;

    /// Of nothing.
    pub const EMPTY: Self =
        Self { filter: [0; 4], blocks: 0, flags: 0, isolated_by: 0, lengths: [[Self::NO_LENGTH; MAX_LENGTHS + 3]; 2] };

    /// It has this part, whose bits come to [`List::flags`] and [`List::filter`].
    pub fn add_part(&mut self, part: u64) {
        self.flags |= match part {
            part::ANY => ListFlags::ANY,
            part::ANY_POD => ListFlags::ANY_POD,
            term if term & part::TERM != 0 => ListFlags::TERMS,
            _ => ListFlags::BLOCKS,
        };
        if part & part::TERM != 0 {
            Self::bits_of(part).into_iter().for_each(|(word, bit)| self.filter[word] |= bit);
        }
    }

    /// The bits of a term in [`List::filter`]: each a word's place and the word. A term's number is a hash, whose low bits are a port.
    #[inline(always)]
    #[must_use]
    pub fn bits_of(term: u64) -> [(usize, u64); 2] {
        let bit = |hash: u64| ((hash >> 6 & 3) as usize, 1 << (hash & 63));
        [bit(term >> 16), bit(term >> 24)]
    }
}

crate::layout! {
    /// A part of a list.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd)]
    pub struct RuleKey {
        /// Number of the list: a hash of all its content. Of a part for blocks, number of the set of these: lists share it.
        pub list: u64,
        /// What the part is for, see [`part`]: a term's number without a port, or one of those there. Plus the place of the map value
        /// among those of the part, from 0.
        pub part: u64,
    }
}

/// What an [`Interval`] says. Of one tier and order the least counts.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum Verdict {
    /// Nothing: it is none.
    None = 0,
    /// Refuse it.
    Deny = 1,
    /// Ask the next tier.
    Pass = 2,
    /// Let it pass.
    Accept = 3,
}

/// Who speaks first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum Tier {
    /// The cluster's administrator.
    Admin = 0,
    /// NetworkPolicies of namespaces.
    Network = 1,
    /// The cluster's administrator again, where nobody else has spoken.
    Baseline = 2,
}

crate::layout! {
    /// What a rule says of some ports of a protocol; the destination port counts.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd)]
    pub struct Interval {
        /// First port, host byte order.
        pub first: u16,
        /// Last port, host byte order.
        pub last: u16,
        /// Of one tier the least counts.
        pub order: u16,
        /// IP protocol number, or [`PROTOCOL_ANY`]. For ICMP and others without ports the range must be 0..=65535 to match.
        pub protocol: u8,
        /// [`Verdict`], [`Tier`], [`Interval::AUDIT`] and [`Interval::MORE`].
        pub bits: u8,
        /// Number of the rule, for people; see [`rule`].
        pub rule: u32,
    }
}

impl Interval {
    /// What it refuses is told of and let through.
    pub const AUDIT: u8 = 0x10;
    /// In the last interval of a map value: the next one goes on.
    pub const MORE: u8 = 0x80;

    /// What lets ports `first` to `last` of a protocol pass in the tier of NetworkPolicies.
    #[must_use]
    pub const fn accept(protocol: u8, first: u16, last: u16, rule: u32) -> Self {
        Self { first, last, order: 0, protocol, bits: Self::bits(Verdict::Accept, Tier::Network), rule }
    }

    /// The bits of a verdict in a tier.
    #[must_use]
    pub const fn bits(verdict: Verdict, tier: Tier) -> u8 {
        verdict as u8 | (tier as u8) << 2
    }

    /// Its verdict's number.
    #[inline(always)]
    #[must_use]
    pub const fn verdict(bits: u8) -> u8 {
        bits & 3
    }

    /// Its tier's number.
    #[inline(always)]
    #[must_use]
    pub const fn tier(&self) -> usize {
        (self.bits >> 2 & 3) as usize
    }
}

crate::layout! {
    /// Intervals of a part, or some of them.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Run {
        /// Those that are none say nothing.
        pub intervals: [Interval; INTERVALS_PER_RUN],
    }
}

impl Run {
    /// The first of these intervals, as many as it holds.
    #[must_use]
    pub fn of(intervals: &[Interval]) -> Self {
        let mut run = Self::default();
        run.intervals.iter_mut().zip(intervals).for_each(|(slot, interval)| *slot = *interval);
        run
    }

    /// The map values of a part that says this, each with its place; one of nothing for a part that says nothing.
    pub fn of_part(said: &[Interval]) -> impl Iterator<Item = (u64, Self)> {
        let count = said.len().div_ceil(INTERVALS_PER_RUN).max(1);
        (0..count).map(move |place| {
            let mut run = Self::of(said.get(place * INTERVALS_PER_RUN..).unwrap_or_default());
            if place + 1 < count {
                run.intervals[INTERVALS_PER_RUN - 1].bits |= Interval::MORE;
            }
            (place as u64, run)
        })
    }
}

crate::layout! {
    /// A prefix at which a set of blocks says something else than around it; the value is the part that counts there.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd)]
    pub struct BlockKey {
        /// Number of the set: a hash of all its content, that of its parts included.
        pub blocks: u64,
        /// The prefix's address.
        pub addr: Addr,
        /// Bits of it that count.
        pub prefix_len: u32,
        /// Reserved, zero.
        pub pad: u32,
    }
}

crate::layout! {
    /// A question to a list that was asked before. Nothing in it ever means something else.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd)]
    pub struct VerdictKey {
        /// Number of the list.
        pub list: u64,
        /// Version of the peer's class; 0: it has none.
        pub class: u64,
        /// The part of the peer's block; 0: it is in none.
        pub block: u64,
        /// Destination port, host byte order; 0 of protocols without ports.
        pub port: u16,
        /// IP protocol number.
        pub protocol: u8,
        /// The peer is a pod.
        pub is_pod: u8,
        /// Reserved, zero.
        pub pad: u32,
    }
}

crate::layout! {
    /// The answer to a [`VerdictKey`].
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct KnownVerdict {
        /// [`VerdictKey::tag`], and in the lowest bit whether it is let through. One word: an LRU map gives an entry that somebody reads to
        /// another key.
        pub word: u64,
        /// Number of the rule that decided; for people, as it may be another question's in that moment.
        pub rule: u32,
        /// Reserved, zero.
        pub pad: u32,
    }
}

impl VerdictKey {
    /// Tells questions apart but for their lowest bit, which is 0.
    #[inline(always)]
    #[must_use]
    pub const fn tag(&self) -> u64 {
        let small = self.port as u64 | (self.protocol as u64) << 16 | (self.is_pod as u64) << 24;
        let all = self.list ^ self.class.rotate_left(21) ^ self.block.rotate_left(42) ^ small;
        let mixed = all.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ mixed >> 32) << 1
    }
}

impl KnownVerdict {
    /// The answer to `key`.
    #[inline(always)]
    #[must_use]
    pub const fn new(key: &VerdictKey, allowed: bool, rule: u32) -> Self {
        Self { word: key.tag() | allowed as u64, rule, pad: 0 }
    }

    /// Whether `key` is let through; none: this is the answer to another question.
    #[inline(always)]
    #[must_use]
    pub const fn allows(&self, key: &VerdictKey) -> Option<bool> {
        if self.word & !1 == key.tag() { Some(self.word & 1 != 0) } else { None }
    }
}

crate::pod!(Class, List, RuleKey, Interval, Run, BlockKey, VerdictKey, KnownVerdict);

const _: () = assert!(size_of::<Class>() == 192);
const _: () = assert!(size_of::<List>() == 120);
const _: () = assert!(size_of::<Interval>() == 12);
const _: () = assert!(size_of::<Run>() == 48);
const _: () = assert!(size_of::<BlockKey>() == 32);
const _: () = assert!(size_of::<VerdictKey>() == 32);
