// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Writing down what was decided. The functions are exported, and thereby global to the verifier, as in `far`.

use weft_abi::{ConnectionFlags, DropReason, FlowKey6, WayFlags};
use weft_logic::{flow as life, header::TcpFlags, walk::Walk};

use crate::{
    balance,
    family::{Family, V4, V6},
    maps, share, stop,
    table::{self, Buffer},
};

/// Counts the packet in and writes the entry of its own direction; that of the answers is there, it is what the connection
/// reserved: no answer can come before its entry. 0, or the number of the reason + 1.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weft_insert(len: u32) -> u32 {
    let Some(walk) = maps::walk() else { return stop::code(Err(DropReason::Kernel)) };
    let before = walk.forward.connection.state;
    life::record(&mut walk.forward.connection, len, TcpFlags(walk.question.tcp_flags));
    balance::follow_state(&walk.forward, before);
    stop::code(if walk.question.is_v6 == 0 { insert::<V4>(walk) } else { insert::<V6>(walk) })
}

#[inline(always)]
fn insert<F: Family>(walk: &mut Walk) -> Result<(), DropReason> {
    if walk.question.stands() || walk.question.found != 0 {
        return if F::put(&walk.question.key, &walk.forward) { Ok(()) } else { Err(DropReason::FlowTable) };
    }
    if F::add(&walk.question.key, &walk.forward) {
        share::book(walk);
        return Ok(());
    }
    stop::check(weft_follow_first())
}

/// Another CPU has decided on a packet of the same connection meanwhile: one decision counts, for both directions. 0, or the number
/// of the reason + 1.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_follow_first() -> u32 {
    let (Some(walk), Some(keys)) = (maps::walk(), maps::asked()) else { return stop::code(Err(DropReason::Kernel)) };
    stop::code(if walk.question.is_v6 == 0 {
        follow_first::<V4>(walk, &mut keys[0])
    } else {
        follow_first::<V6>(walk, &mut keys[0])
    })
}

#[inline(always)]
fn follow_first<F: Family>(walk: &mut Walk, answers: &mut FlowKey6) -> Result<(), DropReason> {
    let first = F::find(&walk.question.key, Buffer::One);
    if let Some(first) = first {
        *answers = life::answer_key(first, walk.question.key.protocol);
        walk.forward = *first;
    }
    if table::refusal().is_some() {
        return Err(DropReason::FlowTable);
    }
    if first.is_none() || *answers != walk.reverse_key {
        F::remove(&walk.reverse_key);
    }
    if first.is_some() { Ok(()) } else { Err(DropReason::FlowTable) }
}

/// Lets the entry of the walk's packet, whose connection stands, remember under this epoch that it is refused, and by what:
/// without that each of its packets would be decided on, beyond every rate. `flag`: of [`life::refusal`]; 0: nothing is remembered.
/// Always 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weft_remember_refusal(flag: u32) -> u32 {
    let Some(walk) = maps::walk() else { return 0 };
    if flag == 0 || !walk.question.stands() {
        return 0;
    }
    if walk.question.is_v6 == 0 {
        remember_refusal::<V4>(walk, flag)
    } else {
        remember_refusal::<V6>(walk, flag)
    }
    0
}

#[inline(always)]
fn remember_refusal<F: Family>(walk: &Walk, flag: u32) {
    let Some(found) = F::look_up(&walk.question.key, Buffer::One) else { return };
    let (flow, direction) = (&mut found.flow, life::refused_by(flag as u8));
    flow.connection.rules[direction] = walk.decision.rules[direction];
    flow.way.flags = flow.way.flags & !WayFlags::REFUSED | flag as u8;
    // Of the decision's beginning: where something moved meanwhile the next packet asks again.
    flow.way.epoch = walk.decision.epoch;
    // Whoever has replaced the entry meanwhile has decided on it as well.
    let _is_it_yet = F::put_over(&walk.question.key, flow, found.control);
}

/// A connection that opens again on its five-tuple, or goes on another way, takes the place of what was before, whose answers may
/// have had another key: that entry would be nobody's. Always 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weft_forget_answers() -> u32 {
    if let (Some(walk), Some(keys)) = (maps::walk(), maps::asked()) {
        if walk.question.is_v6 == 0 {
            forget_answers::<V4>(walk, &mut keys[0]);
        } else {
            forget_answers::<V6>(walk, &mut keys[0]);
        }
    }
    0
}

#[inline(always)]
fn forget_answers<F: Family>(walk: &Walk, answers: &mut FlowKey6) {
    let Some(before) = F::find(&walk.question.key, Buffer::One) else { return };
    *answers = life::answer_key(before, walk.question.key.protocol);
    if before.connection.flags & ConnectionFlags::REPLY != 0 || *answers == walk.reverse_key {
        return;
    }
    if F::find(answers, Buffer::One).is_some_and(|found| life::leads_back(found, &walk.question.key)) {
        F::remove(answers);
    }
}
