// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Entries of the flow table in a form that no layout changes, for the version that takes over: it need not know anything of this
//! one's maps. It runs this program, which is pinned beside them, on what it reads there.

use aya_ebpf::bindings::__sk_buff;
use weft_abi::{ConnectionRecord, ExportRequest, Line as _};
use weft_logic::{Frame as _, set::Control};

use crate::{
    family::{Family, V4, V6},
    helpers, hook, maps,
    skb::Skb,
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
    let mut state = State { skb: skb.raw(), of: request.of, stride: request.stride, failed: 0 };
    helpers::repeat(request.count, export, &mut state);
    if state.failed == 0 { DONE } else { REFUSED }
}

/// State of an export.
struct State {
    skb: *mut __sk_buff,
    of: u32,
    stride: u32,
    failed: u32,
}

/// `bpf_loop` body: 0 goes on, 1 ends.
unsafe extern "C" fn export(index: u32, state: *mut State) -> i64 {
    // SAFETY: `repeat` hands over the state it was given.
    let state = unsafe { &mut *state };
    let at = size_of::<ExportRequest>() as u32 + index * state.stride;
    let failed = weft_export(state.skb, at, state.of);
    state.failed |= failed;
    helpers::ends(&state.failed)
}

/// Puts the record of the entry at `at` in its place; 1: it cannot be. Exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_export(skb: *mut __sk_buff, at: u32, of: u32) -> u32 {
    let skb = Skb::of(skb);
    let (v6, spilled) = (of & ExportRequest::V6, of & ExportRequest::SPILLED);
    u32::from(if v6 == 0 { export_of::<V4>(&skb, at, spilled) } else { export_of::<V6>(&skb, at, spilled) }.is_none())
}

#[inline(always)]
fn export_of<F: Family>(skb: &Skb, at: u32, spilled: u32) -> Option<()> {
    let (walk, line) = (maps::walk()?, F::scratch()?);
    // Keys of the map are indices or, in the hash, those of the lines.
    let key_size = if spilled == 0 { size_of::<u32>() } else { size_of::<F::Key>() };
    if !helpers::load_into(skb.raw(), at as usize + key_size, line) {
        return None;
    }
    // SAFETY: this CPU's own map value.
    let line = unsafe { &*line };
    let control = Control(line.control());
    if control.protocol() == 0 || control.is_written() {
        const NONE: u16 = 0;
        return helpers::store(skb.raw(), at as usize, &NONE).then_some(());
    }
    line.read(&mut walk.forward);
    walk.forward.connection.state = control.state();
    let record = ConnectionRecord::of(&F::widen(line.key()), &walk.forward);
    helpers::store(skb.raw(), at as usize, &record).then_some(())
}
