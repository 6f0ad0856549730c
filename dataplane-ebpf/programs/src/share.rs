// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Shares of ports: tokens by time, room in the flow table by count; see `weft_logic::share`.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use weft_abi::{ACCOUNTS, ALL_PORTS, Config, ConnectionFlags, DropReason, Flow, FlowAccount, FlowKey6, OPENED, Share};
use weft_logic::{
    Tables as _,
    flow::{self as life, Lifetime},
    share::{self, Room},
    walk::Walk,
};

use crate::{
    family::{Family, V4, V6},
    helpers,
    maps::{self, Kernel, NO_SHARE, OPENERS, OpenedKey, REMEMBERED, SHARES},
    stop,
    table::Buffer,
};

/// Connections of a port that are looked at for one that makes room.
const ROOM_ATTEMPTS: u32 = 16;

/// As many times a port's tokens are those of a device that many send by.
const SHARED_RATE: u32 = 10;

/// What tokens are for.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Tokens {
    /// Flows that are decided.
    Flows = 0,
    /// What the node answers, or hands to the agent.
    Answers = 1,
    /// Datagrams in pieces.
    Fragments = 2,
}

/// A port's share; made where there is none yet. None: the map is full.
#[inline(always)]
pub fn of(ifindex: u32) -> Option<&'static mut Share> {
    let found = match SHARES.get_ptr_mut(ifindex) {
        Some(found) => found,
        None => {
            // Another CPU may have been first: look again either way.
            let _made = SHARES.insert(ifindex, NO_SHARE.get(0)?, u64::from(BPF_NOEXIST));
            SHARES.get_ptr_mut(ifindex)?
        }
    };
    // SAFETY: the entry lives under RCU for as long as the program runs; its fields are words that are written whole.
    Some(unsafe { &mut *found })
}

/// Takes a token of a port, or says why there is none.
#[inline(always)]
pub fn take(ifindex: u32, tokens: Tokens) -> Result<(), DropReason> {
    stop::check(weft_take_token(ifindex, tokens as u32))
}

/// [`take`]: 0, or the number of the reason + 1. Exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_take_token(ifindex: u32, tokens: u32) -> u32 {
    stop::code(try_take(ifindex, tokens))
}

#[inline(always)]
fn try_take(ifindex: u32, tokens: u32) -> Result<(), DropReason> {
    let config = Kernel.config().ok_or(DropReason::Kernel)?;
    let (rate, reason) = match tokens {
        0 => (config.flow_rate, DropReason::FlowRate),
        1 => (config.answer_rate, DropReason::AnswerRate),
        _ => (config.fragment_rate, DropReason::FragmentShare),
    };
    // The host is not held to the rate of one workload, and what all of the wire asks for is held to that of some.
    if rate == 0 || ifindex == config.host_ifindex || life::is_from_outside(ifindex) {
        return Ok(());
    }
    let rate = if Kernel.port(ifindex).is_some() { rate } else { rate.saturating_mul(SHARED_RATE) };
    let share = of(ifindex).ok_or(reason)?;
    let full_at = match tokens {
        0 => &mut share.flows_full_at,
        1 => &mut share.answers_full_at,
        _ => &mut share.fragments_full_at,
    };
    if share::take_token(full_at, rate, helpers::coarse_ns()) {
        return Ok(());
    }
    share.refused += 1;
    Err(reason)
}

/// Finds room for the new connection in the walk: 0, or the number of the reason + 1.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weft_make_room() -> u32 {
    let Some(walk) = maps::walk() else { return stop::code(Err(DropReason::Kernel)) };
    stop::code(find_room(walk))
}

#[inline(always)]
fn find_room(walk: &Walk) -> Result<(), DropReason> {
    let config = Kernel.config().ok_or(DropReason::Kernel)?;
    let v6 = walk.question.is_v6 != 0;
    let booked = booked_on(walk, config);
    let (true, Some((ifindex, index))) = (config.flow_share[usize::from(v6)] != 0, booked) else { return Ok(()) };
    let all = account(ALL_PORTS, OPENED + usize::from(v6)).ok_or(DropReason::FlowShare)?.count;
    let ports = of(ALL_PORTS).map_or(0, |share| share.ports);
    let own = account(ifindex, index).ok_or(DropReason::FlowShare)?;
    if share::room(config, v6, own.count, all, ports) == Room::Free {
        return Ok(());
    }
    let mut search = Search { ifindex, index: index as u32, found: 0, done: 0 };
    helpers::repeat(ROOM_ATTEMPTS, try_oldest, &mut search);
    if search.found != 0 {
        return Ok(());
    }
    if let Some(share) = of(ifindex) {
        share.refused += 1;
    }
    Err(DropReason::FlowShare)
}

/// State of the search for a connection that makes room.
struct Search {
    ifindex: u32,
    index: u32,
    found: u32,
    done: u32,
}

/// [`weft_give_up_oldest`]: it made room.
const MADE_ROOM: u32 = 1;
/// [`weft_give_up_oldest`]: there is none that is remembered.
const NONE_LEFT: u32 = 2;

/// `bpf_loop` body: 0 goes on, 1 ends.
unsafe extern "C" fn try_oldest(_: u32, search: *mut Search) -> i64 {
    // SAFETY: `repeat` hands over the state it was given.
    let search = unsafe { &mut *search };
    let found = weft_give_up_oldest(search.ifindex, search.index);
    search.found = u32::from(found == MADE_ROOM);
    search.done = u32::from(found == MADE_ROOM || found == NONE_LEFT);
    helpers::ends(&search.done)
}

/// Removes the oldest connection of an account of the walk's family if it makes room, else puts it to the end of the line.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_give_up_oldest(ifindex: u32, index: u32) -> u32 {
    let (Some(walk), Some(own)) = (maps::walk(), account(ifindex, index as usize)) else { return NONE_LEFT };
    if own.oldest == own.next {
        return NONE_LEFT;
    }
    let slot = OpenedKey { ifindex, account: index, slot: own.oldest % REMEMBERED };
    own.oldest = own.oldest.wrapping_add(1);
    // SAFETY: values are replaced whole.
    let (Some(keys), Some(key)) = (maps::asked(), unsafe { OPENERS.get(slot) }) else { return 0 };
    keys[0] = *key;
    let asked = if walk.question.is_v6 == 0 {
        give_up::<V4>(keys, walk.question.now)
    } else {
        give_up::<V6>(keys, walk.question.now)
    };
    match asked {
        None => 0,
        Some(false) => {
            remember(own, ifindex, index, &keys[0]);
            0
        }
        Some(true) => {
            helpers::fetch_add(&raw mut own.count, u32::MAX);
            if let Some(all) = account(ALL_PORTS, OPENED + usize::from(walk.question.is_v6 != 0)) {
                helpers::fetch_add(&raw mut all.count, u32::MAX);
            }
            MADE_ROOM
        }
    }
}

/// Removes both entries of the connection of the first key if it makes room; none: it is gone already.
#[inline(always)]
fn give_up<F: Family>([key, answer]: &mut [FlowKey6; 2], now: u32) -> Option<bool> {
    let opener = F::find(key, Buffer::One)?;
    *answer = life::answer_key(opener, key.protocol);
    let other = F::find(answer, Buffer::Other).filter(|other| life::leads_back(other, key));
    let answered = other.is_some();
    let config = Kernel.config()?;
    if !Lifetime::of(key.dport, key.protocol, opener, other, &config.timeouts).makes_room(now) {
        return Some(false);
    }
    F::remove(key);
    if answered {
        F::remove(answer);
    }
    Some(true)
}

/// The account of the walk's connection.
#[inline(always)]
fn booked_on(walk: &Walk, config: &Config) -> Option<(u32, usize)> {
    let forwarded = walk.forward.connection.flags & ConnectionFlags::FORWARDED != 0;
    let (from, way) = (walk.question.key.ifindex, &walk.forward.way);
    share::account(from, way, walk.question.is_v6 != 0, config.host_ifindex, forwarded)
}

/// The account of a connection, by its opener's entry and key.
#[inline(always)]
pub fn account_of(opener: &Flow, key: &FlowKey6, config: &Config) -> Option<(u32, usize)> {
    let forwarded = opener.connection.flags & ConnectionFlags::FORWARDED != 0;
    share::account(key.ifindex, &opener.way, !key.src.is_v4(), config.host_ifindex, forwarded)
}

/// Takes a connection that has made room off its account.
#[inline(always)]
pub fn unbook(opener: &Flow, key: &FlowKey6) {
    let Some(config) = Kernel.config() else { return };
    let v6 = !key.src.is_v4();
    let (true, Some((ifindex, index))) = (config.flow_share[usize::from(v6)] != 0, account_of(opener, key, config))
    else {
        return;
    };
    for account in [account(ifindex, index), account(ALL_PORTS, OPENED + usize::from(v6))].into_iter().flatten() {
        // The agent counts anew meanwhile, and may have counted without it.
        if account.count != 0 {
            helpers::fetch_add(&raw mut account.count, u32::MAX);
        }
    }
}

/// Books the new connection in the walk.
#[inline(always)]
pub fn book(walk: &Walk) {
    let Some(config) = Kernel.config() else { return };
    let v6 = walk.question.is_v6 != 0;
    let booked = booked_on(walk, config);
    let (true, Some((ifindex, index))) = (config.flow_share[usize::from(v6)] != 0, booked) else { return };
    let (Some(all), Some(own)) = (account(ALL_PORTS, OPENED + usize::from(v6)), account(ifindex, index)) else {
        return;
    };
    let all = helpers::fetch_add(&raw mut all.count, 1);
    let count = helpers::fetch_add(&raw mut own.count, 1);
    if share::is_remembered(config, v6, count, all) {
        remember(own, ifindex, index as u32, &walk.question.key);
    }
}

/// Puts a connection to the end of the line of its account.
#[inline(always)]
fn remember(own: &mut FlowAccount, ifindex: u32, account: u32, key: &FlowKey6) {
    let number = helpers::fetch_add(&raw mut own.next, 1);
    let slot = OpenedKey { ifindex, account, slot: number % REMEMBERED };
    let _forgotten_at_worst = OPENERS.insert(slot, key, u64::from(BPF_ANY));
    share::bound(own, REMEMBERED);
}

/// An account of a port.
#[inline(always)]
fn account(ifindex: u32, index: usize) -> Option<&'static mut FlowAccount> {
    of(ifindex)?.flows.get_mut(index & (ACCOUNTS - 1))
}
