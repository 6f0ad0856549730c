// SPDX-License-Identifier: Apache-2.0
//! Judging a flow by decision lists.
//!
//! A list has parts: for anybody, for any pod, for terms (a namespace, a selector), and for blocks of addresses. Those that hold for
//! the peer are looked at one after the other, in steps that are small and bounded, so that the kernel can loop over them; in each tier
//! the least order counts. Whatever is not as it should be refuses.

use weft_abi::{
    Addr, AddressKey, BlockKey, CLOSED_LIST, Class, Interval, KnownVerdict, List, ListFlags, MAX_STEPS, NO_LIST,
    PROTOCOL_ANY, RuleKey, Run, TERMS_PER_CLASS, Tier, Verdict, VerdictKey, part, rule,
};

use crate::{Tables, protocol};

/// Nobody has spoken in a tier.
const SILENT: u64 = u64::MAX;

/// What is looked at next.
mod phase {
    pub(super) const BLOCKS: u32 = 0;
    pub(super) const KNOWN: u32 = 1;
    pub(super) const ANY: u32 = 2;
    pub(super) const ANY_POD: u32 = 3;
    pub(super) const NAMESPACE: u32 = 4;
    pub(super) const BLOCK: u32 = 5;
    pub(super) const TERMS: u32 = 6;
    pub(super) const DONE: u32 = 7;
}

/// A verdict.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Judged {
    /// Number of the rule that decided; see [`weft_abi::rule`].
    pub rule: u32,
    /// It is let through.
    pub allowed: u32,
}

impl Judged {
    /// What is not as it should be refuses.
    pub const BROKEN: Self = Self { rule: rule::BROKEN, allowed: 0 };
}

/// A verdict under way.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Judging {
    /// The list's head.
    head: List,
    /// The peer's class.
    class: Class,
    /// Number of the peer's class; its version tells whether it has one.
    class_number: u64,
    /// The question.
    key: VerdictKey,
    /// The peer.
    pub peer: AddressKey,
    /// Which look is next.
    phase: u32,
    /// In [`phase::BLOCKS`] and [`phase::TERMS`]: which of them.
    index: u32,
    /// Reserved.
    pad: u32,
    /// The map value of a part that is looked at; part 0: none. Keys lie here: the programs have no stack for them.
    rule: RuleKey,
    /// The block that is looked for.
    block: BlockKey,
    /// What was found for each tier: order, bits and rule in one number.
    best: [u64; 4],
    /// The answer, in [`phase::DONE`].
    answer: Judged,
}

impl Default for Judging {
    fn default() -> Self {
        Self {
            head: List::EMPTY,
            class: Class::default(),
            class_number: 0,
            key: VerdictKey::default(),
            peer: AddressKey::default(),
            phase: phase::DONE,
            index: 0,
            pad: 0,
            rule: RuleKey::default(),
            block: BlockKey::default(),
            best: [SILENT; 4],
            answer: Judged::default(),
        }
    }
}

/// Whether list `list` allows `protocol` and `port` (host byte order) with the peer at `peer`, and which `rule` says so.
#[inline(always)]
pub fn allows<T: Tables>(
    tables: &T,
    list: u64,
    peer: &AddressKey,
    protocol: u8,
    port: u16,
    rule_number: &mut u32,
) -> bool {
    if list == NO_LIST {
        *rule_number = rule::NONE;
        return true;
    }
    if list == CLOSED_LIST {
        *rule_number = rule::CLOSED;
        return false;
    }
    let Judged { rule, allowed } = tables.judge(list, peer, protocol, port);
    *rule_number = rule;
    allowed != 0
}

/// Begins on a verdict about `judging.peer`, whatever the other fields are.
#[inline(always)]
pub fn begin<T: Tables>(tables: &T, judging: &mut Judging, list: u64, protocol_number: u8, port: u16) {
    judging.phase = phase::DONE;
    judging.answer = Judged::BROKEN;
    judging.key.list = list;
    if !tables.copy_list(&judging.key.list, &mut judging.head) {
        return;
    }
    let flags = judging.head.flags;
    judging.best = [SILENT; 4];
    judging.index = 0;
    (judging.rule.part, judging.block.blocks, judging.block.pad) = (0, judging.head.blocks, 0);
    judging.rule.list = list;
    (judging.key.block, judging.key.pad) = (0, 0);
    judging.key.port = if protocol::names_ports(protocol_number) { port } else { 0 };
    judging.key.protocol = protocol_number;
    judging.key.is_pod = u8::from(flags & ListFlags::ANY_POD != 0 && is_pod(tables, &judging.peer));
    (judging.class.version, judging.class.namespace, judging.class.terms[0]) = (0, 0, 0);
    if flags & ListFlags::TERMS != 0
        && let Some(number) = tables.class_of(judging.peer.net, &judging.peer.addr)
    {
        judging.class_number = number;
        // An address whose class is not there is nobody's that could be told.
        if !tables.copy_class(&judging.class_number, &mut judging.class) {
            return;
        }
    }
    judging.key.class = judging.class.version;
    judging.phase = if flags & ListFlags::BLOCKS != 0 { phase::BLOCKS } else { phase::KNOWN };
}

/// Goes a step on; false: there is an answer.
#[inline(always)]
pub fn step<T: Tables>(tables: &T, judging: &mut Judging) -> bool {
    if judging.rule.part != 0 {
        return look(tables, judging);
    }
    match judging.phase {
        phase::BLOCKS => seek_block(tables, judging),
        phase::KNOWN => {
            if let Some(known) = tables.verdict(&judging.key)
                && let Some(allowed) = known.allows(&judging.key)
            {
                judging.phase = phase::DONE;
                if is_settled(tables, judging) {
                    judging.answer = Judged { rule: known.rule, allowed: u32::from(allowed) };
                }
                return false;
            }
            judging.phase = phase::ANY;
        }
        phase::ANY => {
            judging.phase = phase::ANY_POD;
            judging.rule.part = if judging.head.flags & ListFlags::ANY != 0 { part::ANY } else { 0 };
        }
        phase::ANY_POD => {
            judging.phase = phase::NAMESPACE;
            judging.rule.part = if judging.key.is_pod != 0 { part::ANY_POD } else { 0 };
        }
        phase::NAMESPACE => {
            judging.phase = phase::BLOCK;
            judging.rule.part = may_have(&judging.head, judging.class.namespace);
        }
        phase::BLOCK => {
            (judging.phase, judging.index) = (phase::TERMS, 0);
            (judging.rule.list, judging.rule.part) = (judging.head.blocks, judging.key.block);
        }
        phase::TERMS => {
            let index = judging.index as usize;
            let term = if index < TERMS_PER_CLASS { judging.class.terms[index] } else { 0 };
            if term == 0 {
                finish(tables, judging);
                return false;
            }
            judging.index += 1;
            judging.rule.list = judging.key.list;
            let port = term & part::LOW;
            if port == 0 || port == u64::from(judging.key.port) {
                judging.rule.part = may_have(&judging.head, term & !part::LOW);
            }
        }
        _ => return false,
    }
    true
}

/// The answer; one that was not reached within [`MAX_STEPS`] refuses.
#[inline(always)]
#[must_use]
pub fn answer(judging: &Judging) -> Judged {
    if judging.phase == phase::DONE { judging.answer } else { Judged::BROKEN }
}

/// All steps, where a loop may be any loop.
#[inline(always)]
pub fn judge<T: Tables>(tables: &T, list: u64, peer: &AddressKey, protocol: u8, port: u16) -> Judged {
    let mut judging = Judging { peer: *peer, ..Judging::default() };
    begin(tables, &mut judging, list, protocol, port);
    for _ in 0..MAX_STEPS {
        if !step(tables, &mut judging) {
            break;
        }
    }
    answer(&judging)
}

/// Whether the address is a pod's, from where it lies: behind a port of this node, or in the pod CIDR of another one. The first
/// addresses there are that node's own.
#[inline(always)]
fn is_pod<T: Tables>(tables: &T, peer: &AddressKey) -> bool {
    if let Some(owner) = tables.owner(peer.net, &peer.addr) {
        return owner.is_workload();
    }
    tables
        .remote(peer.net, &peer.addr)
        .is_some_and(|remote| remote.is_pods() && !is_nodes_own(&peer.addr, remote.prefix_len))
}

/// Whether it is the first address of a pod CIDR, which leads nowhere, or the one after it, which the node has. Of a prefix whose
/// length is not known all are.
#[inline(always)]
fn is_nodes_own(addr: &Addr, prefix_len: u8) -> bool {
    let Addr([a, b, c, d]) = truncated(addr, u32::from(prefix_len));
    let Addr([e, f, g, h]) = *addr;
    prefix_len == 0 || (a, b, c) == (e, f, g) && u32::from_be(d ^ h) <= 1
}

/// The term, if the list may have a part for it; else 0.
#[inline(always)]
fn may_have(head: &List, term: u64) -> u64 {
    let [(first, one), (second, other)] = List::bits_of(term);
    let has = head.filter[first & 3] & one != 0 && head.filter[second & 3] & other != 0;
    if has && term != 0 { term } else { 0 }
}

/// Looks for the peer's block at the next of the list's prefix lengths.
#[inline(always)]
fn seek_block<T: Tables>(tables: &T, judging: &mut Judging) {
    let family = usize::from(!judging.peer.addr.is_v4());
    let lengths = &judging.head.lengths[family & 1];
    let index = judging.index as usize;
    let length = if index < lengths.len() { lengths[index] } else { List::NO_LENGTH };
    judging.index += 1;
    if length == List::NO_LENGTH {
        judging.phase = phase::KNOWN;
        return;
    }
    judging.block.addr = truncated(&judging.peer.addr, u32::from(length));
    judging.block.prefix_len = u32::from(length);
    if let Some(part) = tables.block(&judging.block) {
        judging.key.block = part;
        judging.phase = phase::KNOWN;
    }
}

/// The first `length` bits of an address.
#[inline(always)]
#[must_use]
pub fn truncated(addr: &Addr, length: u32) -> Addr {
    let word = |at: u32| {
        let bits = length.saturating_sub(at * 32);
        if bits >= 32 { u32::MAX } else { !(u32::MAX >> bits) }.to_be()
    };
    let Addr([a, b, c, d]) = *addr;
    Addr([a & word(0), b & word(1), c & word(2), d & word(3)])
}

/// Looks at one map value of a part.
#[inline(always)]
fn look<T: Tables>(tables: &T, judging: &mut Judging) -> bool {
    let part = judging.rule.part;
    let Some(run) = tables.run(&judging.rule) else {
        judging.rule.part = 0;
        // The filter lets a few terms pass that the list does not have. What it says to have must be there.
        if part & part::TERM != 0 && part & part::LOW == 0 {
            return true;
        }
        judging.answer = Judged::BROKEN;
        judging.phase = phase::DONE;
        return false;
    };
    let Run { intervals: [first, second, third, last] } = run;
    note(judging, first);
    note(judging, second);
    note(judging, third);
    note(judging, last);
    judging.rule.part = if last.bits & Interval::MORE != 0 { part + 1 } else { 0 };
    true
}

/// Takes an interval in, if it is about this port.
#[inline(always)]
fn note(judging: &mut Judging, interval: &Interval) {
    let of_protocol = interval.protocol == judging.key.protocol
        && interval.first <= judging.key.port
        && judging.key.port <= interval.last;
    let none = Interval::verdict(interval.bits) == Verdict::None as u8;
    if none || !(interval.protocol == PROTOCOL_ANY || of_protocol) {
        return;
    }
    let bits = interval.bits & !Interval::MORE;
    let found = u64::from(interval.order) << 48 | u64::from(bits) << 32 | u64::from(interval.rule);
    let best = &mut judging.best[interval.tier() & 3];
    if found < *best {
        *best = found;
    }
}

/// Whether what was read is there still. The kernel may give the memory of an entry that is removed to another one while somebody
/// reads it: a list's parts go after the list, and an entry only after it was replaced. Else the packet is refused, and the next
/// one finds what is new.
#[inline(always)]
fn is_settled<T: Tables>(tables: &T, judging: &Judging) -> bool {
    if tables.list(&judging.key.list).is_none() {
        return false;
    }
    let version = judging.class.version;
    version == 0
        || tables.class_of(judging.peer.net, &judging.peer.addr) == Some(judging.class_number)
            && tables.class(&judging.class_number).is_some_and(|class| class.version == version)
}

/// Tier after tier; remembers the answer.
#[inline(always)]
fn finish<T: Tables>(tables: &T, judging: &mut Judging) {
    judging.phase = phase::DONE;
    if !is_settled(tables, judging) {
        return;
    }
    judging.answer = decided(judging);
    let Judged { rule, allowed } = judging.answer;
    tables.remember(&judging.key, &KnownVerdict::new(&judging.key, allowed != 0, rule));
}

#[inline(always)]
fn decided(judging: &Judging) -> Judged {
    let (flags, isolated_by) = (judging.head.flags, judging.head.isolated_by);
    let mut audited = rule::NONE;
    for tier in [Tier::Admin, Tier::Network, Tier::Baseline] {
        let best = judging.best[tier as usize];
        let (bits, found) = ((best >> 32) as u8, best as u32);
        let verdict = if best == SILENT { Verdict::None as u8 } else { Interval::verdict(bits) };
        if verdict == Verdict::Accept as u8 {
            return Judged { rule: found, allowed: 1 };
        }
        if verdict == Verdict::Deny as u8 {
            if bits & Interval::AUDIT == 0 {
                return Judged { rule: found, allowed: 0 };
            }
            audited = found | rule::AUDITED;
        }
        if tier as u8 == Tier::Network as u8 && verdict == Verdict::None as u8 && flags & ListFlags::ISOLATES != 0 {
            if flags & ListFlags::AUDITS == 0 {
                return Judged { rule: isolated_by, allowed: 0 };
            }
            audited = isolated_by | rule::AUDITED;
        }
    }
    Judged { rule: audited, allowed: u32::from(flags & ListFlags::OPEN != 0) }
}

#[cfg(test)]
mod tests;
