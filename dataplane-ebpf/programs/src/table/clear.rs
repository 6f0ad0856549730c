// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Connections that make room for others where a set of the table is full, and so is the hash.

use weft_abi::{ConnectionFlags, Counter, Flow, FlowKey6, Line as _};
use weft_logic::{
    Tables as _,
    flow::{self as life, Lifetime},
    hash::FlowKey as _,
    set::WAYS,
};

use super::Buffer;
use crate::{
    family::Family,
    helpers,
    maps::{self, Kernel},
    report, share,
};

/// Makes room in a key's set: removes a connection that nobody has answered yet, which is the least that is lost, or another one that
/// [`may_leave`]. Whether there was one.
#[inline(always)]
pub(super) fn clear_in<F: Family>(key: &F::Key, clear_line: extern "C" fn(u32, u32) -> u32) -> Option<()> {
    let slot = key.slot(F::seeds()?);
    let mut turn = 0;
    while turn < 2 * WAYS {
        let which = if turn < WAYS { UNANSWERED } else { ANY };
        if clear_line(slot.line(turn & (WAYS - 1)), which) != 0 {
            return Some(());
        }
        turn += 1;
    }
    None
}

/// Which connections are asked to leave: those whose line alone tells that they were not answered, or all.
const UNANSWERED: u32 = 0;
const ANY: u32 = 1;

/// Removes the connection of a line if it is one of those. That of an entry whose other direction is not there stays: it may be a
/// reservation whose connection is about to be written, or what masqueraded TCP leaves to rest.
#[inline(always)]
pub(super) fn clear_line<F: Family>(index: u32, which: u32) -> Option<()> {
    let [key, answer] = maps::leaving()?;
    // SAFETY: a map value.
    let line = unsafe { &*F::line(index)? };
    if which == UNANSWERED && !line.is_unanswered() {
        return None;
    }
    // One that is torn has no entry.
    *key = F::widen(line.key());
    let flow = F::find(key, Buffer::Leaving)?;
    *answer = life::answer_key(flow, key.protocol);
    let other = F::find(answer, Buffer::LeavingToo).filter(|other| life::leads_back(other, key))?;
    let is_answer = flow.connection.flags & ConnectionFlags::REPLY != 0;
    let (opener, opened_by) = if is_answer { (other, &*answer) } else { (flow, &*key) };
    if !may_leave(key, flow, other, opener, opened_by)? {
        return None;
    }
    share::unbook(opener, opened_by);
    // The opener's first: it must not go on under a tuple that is free.
    F::remove(opened_by);
    F::remove(if is_answer { key } else { answer });
    report::count(Counter::FlowsGivenUp);
    Some(())
}

/// Whether a connection makes room for anybody's: it is over, nobody has answered it, or it is closed and its tuple need not rest; or
/// it is on no port's account, and not translated, so that its next packet is decided on as this one was.
#[inline(always)]
fn may_leave(key: &FlowKey6, flow: &Flow, other: &Flow, opener: &Flow, opened_by: &FlowKey6) -> Option<bool> {
    const TRANSLATED: u16 = ConnectionFlags::REWRITE_SRC | ConnectionFlags::REWRITE_DST;
    let (config, now) = (Kernel.config()?, helpers::coarse_ticks());
    let lifetime = Lifetime::of(key.dport, key.protocol, flow, Some(other), &config.timeouts);
    let is_masqueraded = opener.connection.flags & ConnectionFlags::REWRITE_SRC != 0;
    let is_nobodys = share::account_of(opener, opened_by, config).is_none();
    Some(
        lifetime.is_over(now)
            || !lifetime.is_answered()
            || lifetime.makes_room(now) && !is_masqueraded
            || is_nobodys && opener.connection.flags & TRANSLATED == 0,
    )
}
