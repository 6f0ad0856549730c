// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Which backend a new flow gets, as far as it is found by functions of their own. They are exported, and thereby global to the
//! verifier, as in `far`.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use weft_abi::{BackendKey, ConnectionFlags, Flow, FlowState, MemberSet};
use weft_logic::{affinity, ring, walk::Walk};

use crate::{
    helpers,
    maps::{self, AFFINITIES, Kernel, LOADS},
};

/// [`weft_find_on_ring`]: the ring is not there any more.
pub const NOBODY: u32 = u32::MAX;

/// The index of the member that has this position on the ring of a Service port's set, or [`NOBODY`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weft_find_on_ring(service: u32, set: u32, levels: u32, position: u32) -> u32 {
    let set = MemberSet { set, count: 0, levels };
    ring::find(&Kernel, service, &set, position).unwrap_or(NOBODY)
}

/// Remembers what a new connection's backend tells of it: for the walk's client, where the Service keeps it there, and one connection
/// more, where they are counted. What is refused comes before this: it binds nobody. Always 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weft_remember_backend() -> u32 {
    let Some(walk) = maps::walk() else { return 0 };
    if walk.decision.keeps_client != 0 {
        let (client, last) = (&walk.decision.affinity, &affinity::remembered(&walk.question, &walk.decision));
        let _chosen_anew_at_worst = AFFINITIES.insert(client, last, u64::from(BPF_ANY));
    }
    if walk.decision.counts_load != 0 {
        count(walk);
    }
    0
}

/// Counts one connection less of its backend where the opener's entry `flow` closes by this packet; `before`: the state that it had. What
/// ends in another way the agent's sweep finds.
#[inline(always)]
pub fn follow_state(flow: &Flow, before: u8) {
    let state = flow.connection.state;
    if state != before && state == FlowState::Closing as u8 && flow.connection.flags & ConnectionFlags::COUNTED != 0 {
        weft_count_closed(&raw const *flow);
    }
}

/// One connection less of the backend of the opener's entry `flow`. Always 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_count_closed(flow: *const Flow) -> u32 {
    if flow.is_null() {
        return 0;
    }
    // SAFETY: the caller's reference; the verifier checked its size.
    let Flow { connection, way } = unsafe { &*flow };
    add(&BackendKey::new(way.service, connection.dst, connection.dport), -1);
    0
}

#[inline(always)]
fn count(walk: &Walk) {
    let backend = BackendKey::new(walk.decision.service.slot, walk.decision.target, walk.decision.target_port);
    if add(&backend, 1) || LOADS.insert(backend, 1, u64::from(BPF_NOEXIST)).is_ok() {
        return;
    }
    // Another CPU was first.
    add(&backend, 1);
}

/// `false`: the backend has no entry.
#[inline(always)]
fn add(backend: &BackendKey, connections: i32) -> bool {
    let Some(load) = LOADS.get_ptr_mut(backend) else { return false };
    // An entry that goes meanwhile is counted anew by the agent's sweep.
    helpers::fetch_add(load, connections as u32);
    true
}
