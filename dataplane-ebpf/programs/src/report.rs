// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Counters and events.

use aya_ebpf::bindings::{__sk_buff, BPF_ANY, BPF_RB_NO_WAKEUP};
use weft_abi::{Addr, Counter, DropReason, EventKind};
use weft_logic::{Frame as _, share as limit, walk::Decision};

use crate::{
    helpers, hook,
    maps::{self, EVENTS, EVENTS_WANTED, TOLD},
    skb::Skb,
};

/// Adds one to a counter.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = maps::count(counter as u32) {
        // SAFETY: the value is this CPU's own.
        unsafe { *value += 1 };
    }
}

/// Counts and reports a dropped packet; the program's return value.
#[inline(always)]
pub fn dropped(skb: &Skb, hook: u8, reason: DropReason) -> i32 {
    if let Some(tally) = maps::drop_tally(reason as u32) {
        // SAFETY: the value is this CPU's own.
        unsafe {
            (*tally).packets += 1;
            (*tally).bytes += u64::from(skb.len());
        }
    }
    // Link chatter of every guest (router solicitations, MLD) would drown the events that matter, and so would what a
    // workload sends beyond its rate: to tell of it costs more than to drop it.
    let quiet = matches!(
        reason,
        DropReason::Multicast | DropReason::FlowRate | DropReason::AnswerRate | DropReason::FragmentShare
    );
    if !quiet && weft_may_tell(skb.ifindex(), reason as u32) != 0 {
        weft_emit(skb.raw(), u32::from(hook), EventKind::Drop as u32, reason as u32, WAKE);
    }
    hook::DROP
}

/// Lets the ring wake its reader, where that has read everything else.
const WAKE: u32 = 0;

/// Reports a flow that was decided and let through, where somebody wants to know.
#[inline(always)]
pub fn decided(skb: &Skb, hook: u8) {
    let (Some(wanted), Some(walk)) = (EVENTS_WANTED.get_ptr(0), maps::walk()) else { return };
    // SAFETY: aligned words that user space writes.
    let (until, one_in) = unsafe { ((*wanted).until, (*wanted).one_in) };
    let followed = walk.question.now <= until;
    if followed || (one_in != 0 && helpers::random().is_multiple_of(one_in)) {
        let wake = if followed { BPF_RB_NO_WAKEUP } else { WAKE };
        weft_emit(skb.raw(), u32::from(hook), EventKind::Flow as u32, u32::from(walk.forward.way.deliver), wake);
    }
}

/// Events of drops a second for each port and reason, on average; twice as many at once.
const DROP_EVENTS: u32 = 100;

/// 1: a drop of this device for this reason is told; else it is counted as held back. One port's drops for one reason crowd out
/// nobody else's. Exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_may_tell(ifindex: u32, reason: u32) -> u32 {
    let (key, now) = ([ifindex, reason], helpers::coarse_ns());
    let told = match TOLD.get_ptr_mut(key) {
        // SAFETY: the entry lives under RCU for as long as the program runs; other CPUs that write to it at once give an event too much.
        Some(full_at) => limit::take_token(unsafe { &mut *full_at }, DROP_EVENTS, now),
        None => {
            let _forgotten_at_worst = TOLD.insert(key, now, u64::from(BPF_ANY));
            true
        }
    };
    if !told {
        count(Counter::EventsHeld);
    }
    u32::from(told)
}

/// Sends an event about the packet in the walk, or counts it as lost; `wake` as `bpf_ringbuf_submit` takes it. Exported, and
/// thereby global to the verifier, as in `far`; always 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_emit(skb: *mut __sk_buff, hook: u32, kind: u32, reason: u32, wake: u32) -> u32 {
    let Some(walk) = maps::walk() else { return 0 };
    let Some(mut slot) = EVENTS.reserve(0) else {
        count(Counter::EventsLost);
        return 0;
    };
    let skb = Skb::of(skb);
    let event = slot.as_mut_ptr();
    // SAFETY: the reserved record has room for an Event; every field is written.
    unsafe {
        (*event).time_ns = helpers::coarse_ns();
        (*event).ifindex = skb.ifindex();
        (*event).len = skb.len();
        (*event).src = walk.question.key.src;
        (*event).dst = walk.question.key.dst;
        (*event).backend = if walk.decision.translated == 0 { Addr::UNSPECIFIED } else { walk.decision.target };
        (*event).sport = walk.question.key.sport;
        (*event).dport = walk.question.key.dport;
        (*event).backend_port = walk.decision.target_port;
        (*event).protocol = walk.question.key.protocol as u8;
        (*event).kind = kind as u8;
        (*event).reason = reason as u8;
        (*event).hook = hook as u8;
        (*event).pad = 0;
        (*event).egress_rule = walk.decision.rules[Decision::EGRESS];
        (*event).ingress_rule = walk.decision.rules[Decision::INGRESS];
        (*event).pad2 = 0;
    }
    slot.submit(u64::from(wake));
    0
}

/// Forgets the packet before, so that a report does not name it.
#[inline(always)]
pub fn forget() {
    if let Some(walk) = maps::walk() {
        walk.question.key.src = Addr::UNSPECIFIED;
        walk.question.key.dst = Addr::UNSPECIFIED;
        (walk.question.key.sport, walk.question.key.dport, walk.question.key.protocol) = (0, 0, 0);
        (walk.decision.translated, walk.decision.rules) = (0, [0; 2]);
    }
}
