// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! The flow table as user space writes to it: removes what is over, and puts in what it takes over.

use core::mem::offset_of;

use aya_ebpf::bindings::__sk_buff;
use weft_abi::{EditKind, EditRequest, FlowEdit};
use weft_logic::{Frame as _, set::Written};

use crate::{
    family::{Family, V4, V6},
    helpers, hook, maps,
    skb::Skb,
    table::{self, Buffer},
};

/// Does what the request in `skb` says.
#[inline(always)]
pub fn run(skb: Skb) -> i32 {
    let Some(request) = skb.load::<EditRequest>(0) else { return hook::DROP };
    if request.count as usize > EditRequest::MOST {
        return hook::DROP;
    }
    let mut state = State { skb: skb.raw(), kind: request.kind, v6: request.v6 };
    helpers::repeat(request.count, edit, &mut state);
    0
}

/// State of a request.
struct State {
    skb: *mut __sk_buff,
    kind: u32,
    v6: u32,
}

/// `bpf_loop` body: 0 goes on, 1 ends.
unsafe extern "C" fn edit(index: u32, state: *mut State) -> i64 {
    // SAFETY: `repeat` hands over the state it was given.
    let state = unsafe { &mut *state };
    let at = size_of::<EditRequest>() + index as usize * size_of::<FlowEdit>();
    weft_edit(state.skb, at as u32, state.kind, state.v6);
    0
}

/// The edit at `at`. Exported, and thereby global to the verifier, as in `far`. Always 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_edit(skb: *mut __sk_buff, at: u32, kind: u32, v6: u32) -> u32 {
    let at = at as usize;
    let answer = if v6 == 0 { answer::<V4>(skb, at, kind) } else { answer::<V6>(skb, at, kind) };
    // What is not answered counts as busy.
    let _told = helpers::store(skb, at + offset_of!(FlowEdit, answer), &answer.unwrap_or(Written::Busy as u32));
    0
}

#[inline(always)]
fn answer<F: Family>(skb: *mut __sk_buff, at: usize, kind: u32) -> Option<u32> {
    let walk = maps::walk()?;
    let read = helpers::load_into(skb, at + offset_of!(FlowEdit, key), &mut walk.question.key)
        && helpers::load_into(skb, at + offset_of!(FlowEdit, flow), &mut walk.forward);
    if !read {
        return None;
    }
    table::begin();
    let (key, flow) = (&walk.question.key, &walk.forward);
    Some(match kind {
        kind if kind == EditKind::Add as u32 => F::write(key, flow, table::ADD),
        kind if kind == EditKind::Put as u32 => F::write(key, flow, table::PUT),
        kind if kind == EditKind::RemoveUnseen as u32 => match F::look_up(key, Buffer::One) {
            Some(now) if now.flow.way.last_seen == flow.way.last_seen => {
                F::remove_common(key, table::over(now.control))
            }
            Some(_) => Written::Other as u32,
            None if table::refusal().is_some() => Written::Busy as u32,
            None => Written::Other as u32,
        },
        _ => F::remove_common(key, table::WHICHEVER),
    })
}
