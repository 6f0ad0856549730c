// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Entries of the flow table in a form that no layout changes, for the version that takes over: it need not know anything of this
//! one's maps. It runs this program, which is pinned beside them, on what it reads there.

use aya_ebpf::bindings::__sk_buff;
use weft_abi::{ConnectionRecord, ExportRequest, Flow, FlowKey6};
use weft_logic::Frame as _;

use crate::{
    family::{Family, V4, V6},
    helpers, hook, maps,
    skb::Skb,
    table::FlowTable,
};

/// The answer to a request for a version that is not known here, or for too much.
const REFUSED: i32 = hook::DROP;
/// The entries are records now.
const DONE: i32 = 0;

/// Answers the request that `skb` holds.
#[inline(always)]
pub fn run(skb: Skb) -> i32 {
    let Some(request) = skb.load::<ExportRequest>(0) else { return REFUSED };
    if request.version != u32::from(ConnectionRecord::VERSION) || request.count > ExportRequest::MOST {
        return REFUSED;
    }
    let mut state = State { skb: skb.raw(), v6: request.v6, stride: request.stride, failed: 0 };
    helpers::repeat(request.count, export, &mut state);
    if state.failed == 0 { DONE } else { REFUSED }
}

/// State of an export.
struct State {
    skb: *mut __sk_buff,
    v6: u32,
    stride: u32,
    failed: u32,
}

/// `bpf_loop` body: 0 goes on, 1 ends.
unsafe extern "C" fn export(index: u32, state: *mut State) -> i64 {
    // SAFETY: `repeat` hands over the state it was given.
    let state = unsafe { &mut *state };
    let at = size_of::<ExportRequest>() as u32 + index * state.stride;
    let failed = weft_export(state.skb, at, state.v6);
    state.failed |= failed;
    helpers::ends(&state.failed)
}

/// Puts the record of the entry at `at` in its place; 1: it cannot be. Exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_export(skb: *mut __sk_buff, at: u32, v6: u32) -> u32 {
    let skb = Skb::of(skb);
    u32::from(if v6 == 0 { export_of::<V4>(&skb, at) } else { export_of::<V6>(&skb, at) }.is_none())
}

#[inline(always)]
fn export_of<F: Family>(skb: &Skb, at: u32) -> Option<()> {
    let walk = maps::walk()?;
    let key: FlowKey6 = F::widen(&skb.load::<<F as FlowTable>::Key>(at as usize)?);
    walk.forward = skb.load::<Flow>(at as usize + size_of::<F::Key>())?;
    let record = ConnectionRecord::of(&key, &walk.forward);
    helpers::store(skb.raw(), at as usize, &record).then_some(())
}
