// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Unique tuples: no two connections look alike once they are translated. The entry of a connection's answers is its
//! reservation; where another one has it, this one leaves under another source port.

use aya_ebpf::bindings::{__sk_buff, BPF_ANY};
use weft_abi::{Config, Deliver, DropReason, Flow, FlowKey6};
use weft_logic::{
    Tables as _,
    flow::{self as life, Lifetime},
    masquerade, plan, protocol,
    walk::Walk,
};

use crate::{
    family::{Family, V4, V6},
    helpers,
    maps::{self, FULL, Kernel},
    pool, share, stop,
    table::{self, Buffer},
};

/// How long a destination is remembered that had no port free: a search costs some microseconds of softirq.
const FULL_FOR_NS: u64 = 1_000_000_000;

/// What stands against a reservation; from [`REUSABLE`] on the idle time is added.
const FREE: u32 = 0;
/// The connection that has it is over.
const OVER: u32 = 1;
/// The same connection has it.
const OURS: u32 = 2;
/// Another workload's connection has it, or one that goes on.
const TAKEN: u32 = 3;
/// Another connection of the workload has it and may give it up.
const REUSABLE: u32 = 4;

/// Reserves what the connection in the walk leaves under, and inserts the entry of its answers: 0, or the number of the reason
/// + 1.
///
/// The functions here are exported, and thereby global to the verifier, as in `far`: it would walk the search for every state
/// of it. Each has what it needs of the stack to itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weft_reserve_tuple(skb: *mut __sk_buff) -> u32 {
    stop::code(reserve(skb))
}

#[inline(always)]
fn reserve(skb: *mut __sk_buff) -> Result<(), DropReason> {
    let walk = maps::walk().ok_or(DropReason::Kernel)?;
    if walk.decision.masquerade == masquerade::BY_ADDRESS {
        return if claim_addresses() || pool::claim_other() { Ok(()) } else { Err(DropReason::MasqueradeTaken) };
    }
    if walk.decision.masquerade != masquerade::BY_PORT {
        if claim_tuple(walk) {
            return Ok(());
        }
        // Not another port because of what is not known, or because there is no room.
        if let Some(reason) = table::refusal() {
            return Err(reason);
        }
        if !masquerade::has_ports(walk.question.key.protocol) {
            return Err(DropReason::TupleTaken);
        }
    }
    find_port(skb)
}

/// Reserves the tuple as it is; `false`: another connection has it.
#[inline(always)]
fn claim_tuple(walk: &Walk) -> bool {
    // One that stands most likely has it already.
    if !walk.question.stands() && weft_reserve(FREE) != 0 {
        return true;
    }
    let found = weft_look_at_reservation();
    found <= OURS && weft_reserve(found) != 0
}

#[inline(always)]
fn find_port(skb: *mut __sk_buff) -> Result<(), DropReason> {
    let (Some(walk), Some(config)) = (maps::walk(), Kernel.config()) else { return Err(DropReason::Kernel) };
    if weft_is_full(0) != 0 {
        return Err(DropReason::MasqueradeFull);
    }
    if keeps_port(walk, config) && claim(skb, weft_look_at_reservation()) {
        count_kept(walk, config);
        return Ok(());
    }
    let mut search = Search { skb, reserved: 0, reusable: 0, idle: 0 };
    helpers::repeat(masquerade::ATTEMPTS, try_port, &mut search);
    if search.reserved != 0 || reuse(&search) {
        return Ok(());
    }
    if let Some(reason) = table::refusal() {
        return Err(reason);
    }
    let _full = weft_is_full(1);
    Err(DropReason::MasqueradeFull)
}

/// State of the search for a port.
struct Search {
    skb: *mut __sk_buff,
    /// A port was reserved.
    reserved: u32,
    /// A port that another flow of the workload may give up, network byte order; 0: none.
    reusable: u32,
    /// [`REUSABLE`] and how long that flow has been idle.
    idle: u32,
}

/// `bpf_loop` body: 0 goes on, 1 ends.
unsafe extern "C" fn try_port(attempt: u32, search: *mut Search) -> i64 {
    // SAFETY: `repeat` hands over the state it was given.
    let search = unsafe { &mut *search };
    let (Some(walk), Some(config)) = (maps::walk(), Kernel.config()) else { return 1 };
    let port = masquerade::port(config, walk.question.key.ifindex, walk.question.random, attempt).to_be();
    plan::leave_under(walk, port);
    let found = weft_look_at_reservation();
    search.reserved = u32::from(claim(search.skb, found));
    if found >= REUSABLE && found > search.idle {
        (search.reusable, search.idle) = (u32::from(port), found);
    }
    helpers::ends(&search.reserved)
}

/// Reserves the port in the walk, where nothing but what was `found` stands against it.
#[inline(always)]
fn claim(skb: *mut __sk_buff, found: u32) -> bool {
    found <= OURS && weft_is_the_hosts(skb) == 0 && weft_reserve(found) != 0
}

/// A protocol without ports can be spoken by one workload to one destination with one address: answers tell no more than that.
#[inline(always)]
pub fn claim_addresses() -> bool {
    let found = weft_look_at_reservation();
    found != TAKEN && weft_reserve(if found >= REUSABLE { OVER } else { found }) != 0
}

/// Takes the port that another flow of the workload gives up, if there is one.
#[inline(always)]
fn reuse(search: &Search) -> bool {
    let Some(walk) = maps::walk() else { return false };
    plan::leave_under(walk, search.reusable as u16);
    search.reusable != 0 && weft_reserve(OVER) != 0
}

/// What stands against the reservation in the walk.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_look_at_reservation() -> u32 {
    let Some(walk) = maps::walk() else { return TAKEN };
    if walk.question.is_v6 == 0 { look::<V4>(walk) } else { look::<V6>(walk) }
}

#[inline(always)]
fn look<F: Family>(walk: &Walk) -> u32 {
    let Some(config) = Kernel.config() else { return TAKEN };
    let Some(taken) = F::find(&walk.reverse_key, Buffer::One) else { return FREE };
    let Some([key, _]) = maps::asked() else { return TAKEN };
    *key = life::answer_key(taken, walk.question.key.protocol);
    // Under another device it is the same connection only where that device is gone: who comes in another way with these addresses is
    // somebody else.
    let same = life::is_same_tuple(key, &walk.question.key);
    if same && (key.ifindex == walk.question.key.ifindex || !life::stands(&Kernel, &taken.way)) {
        return OURS;
    }
    let opener = F::find(key, Buffer::Other).filter(|opener| life::leads_back(opener, &walk.reverse_key));
    let (port, protocol_number) = (walk.reverse_key.dport, walk.question.key.protocol);
    let lifetime = Lifetime::of(port, protocol_number, taken, opener, &config.timeouts);
    let own = is_own(walk, taken);
    if lifetime.is_over(walk.question.now) {
        OVER
    } else if own && (walk.decision.masquerade == masquerade::BY_ADDRESS || lifetime.makes_room(walk.question.now)) {
        REUSABLE + lifetime.idle(walk.question.now)
    } else {
        TAKEN
    }
}

/// Whether an entry of answers leads to the workload that sent the walk's packet.
#[inline(always)]
fn is_own(walk: &Walk, answers: &Flow) -> bool {
    let local = answers.way.deliver == Deliver::Peer as u8 || answers.way.deliver == Deliver::Port as u8;
    local && answers.way.ifindex == walk.question.key.ifindex
}

/// Makes the reservation in the walk, in the place of what [`weft_look_at_reservation`] `found`. 1 if it stands.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_reserve(found: u32) -> u32 {
    let Some(walk) = maps::walk() else { return 0 };
    u32::from(if walk.question.is_v6 == 0 { put::<V4>(walk, found) } else { put::<V6>(walk, found) })
}

#[inline(always)]
fn put<F: Family>(walk: &mut Walk, found: u32) -> bool {
    match found {
        FREE => F::add(&walk.reverse_key, &walk.reverse),
        OURS => {
            remember::<F>(walk);
            F::put(&walk.reverse_key, &walk.reverse)
        }
        _ => replace::<F>(walk),
    }
}

/// Of a connection that stands, the counters and the TCP state of its answers go on.
#[inline(always)]
fn remember<F: Family>(walk: &mut Walk) {
    if !walk.question.stands() {
        return;
    }
    let Some(flow) = F::find(&walk.reverse_key, Buffer::One) else { return };
    (walk.reverse.connection.packets, walk.reverse.connection.bytes) = (flow.connection.packets, flow.connection.bytes);
    (walk.reverse.connection.state, walk.reverse.way.last_seen) = (flow.connection.state, flow.way.last_seen);
}

/// Puts the walk's flow in the place of one that is over; not if another CPU did so just now, and not of another workload if it had a
/// packet within the least of the timeouts.
///
/// The other flow's own entry goes as well: it would go on sending under a port that leads back to somebody else.
#[inline(always)]
fn replace<F: Family>(walk: &Walk) -> bool {
    let Some(config) = Kernel.config() else { return false };
    let Some(taken) = F::look_up(&walk.reverse_key, Buffer::One) else {
        return F::add(&walk.reverse_key, &walk.reverse);
    };
    let fresh = walk.question.now.wrapping_sub(taken.flow.way.last_seen) as i32 <= config.timeouts.brief as i32;
    let Some([key, _]) = maps::asked() else { return false };
    *key = life::answer_key(&taken.flow, walk.question.key.protocol);
    if fresh && !is_own(walk, &taken.flow) {
        return false;
    }
    // First: it must not go on under what is another connection's.
    F::remove(key);
    F::put_over(&walk.reverse_key, &walk.reverse, taken.control)
}

/// Sets the source port that the workload chose, where it may keep it.
#[inline(always)]
fn keeps_port(walk: &mut Walk, config: &Config) -> bool {
    let sport = walk.question.key.sport;
    let port = u16::from_be(sport);
    let keeps = masquerade::in_range(config, port)
        && (masquerade::is_own(config, walk.question.key.ifindex, port)
            || !life::is_from_outside(walk.question.key.ifindex)
                && share::of(walk.question.key.ifindex).is_some_and(|share| masquerade::may_keep(config, share.kept)));
    if keeps {
        plan::leave_under(walk, sport);
    }
    keeps
}

#[inline(always)]
fn count_kept(walk: &Walk, config: &Config) {
    if masquerade::is_own(config, walk.question.key.ifindex, u16::from_be(walk.question.key.sport)) {
        return;
    }
    if let Some(share) = share::of(walk.question.key.ifindex) {
        helpers::fetch_add(&raw mut share.kept, 1);
    }
}

/// 1: the host has a socket that the answers would be for, or listens on the port, and keeps it. Of ICMP and protocols without
/// ports the kernel does not tell.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_is_the_hosts(skb: *mut __sk_buff) -> u32 {
    maps::walk().map_or(1, |walk| u32::from(is_the_hosts(skb, &walk.reverse_key)))
}

/// Whether the host has a socket that packets of this key are for.
#[inline(always)]
pub fn is_the_hosts(skb: *mut __sk_buff, key: &FlowKey6) -> bool {
    let tcp = key.protocol == u32::from(protocol::TCP);
    let has_sockets = tcp || key.protocol == u32::from(protocol::UDP);
    has_sockets && helpers::has_socket(skb, key, tcp)
}

/// 1: no port was free towards the walk's destination just now; `note`: from now on. For the workload alone: no other one is
/// refused for what it has taken.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_is_full(note: u32) -> u32 {
    let Some(walk) = maps::walk() else { return 1 };
    let key = FlowKey6 { ifindex: walk.question.key.ifindex, dport: 0, ..walk.reverse_key };
    let now = helpers::coarse_ns();
    if note != 0 {
        let _forgotten_at_worst = FULL.insert(key, now, u64::from(BPF_ANY));
        return 1;
    }
    // SAFETY: values are words, written whole.
    let since = unsafe { FULL.get(key) };
    u32::from(since.is_some_and(|since| now.wrapping_sub(*since) < FULL_FOR_NS))
}
