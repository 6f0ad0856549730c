// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Of several addresses of the node, which one a workload leaves with.

use weft_abi::{Addr, CLUSTER_NET, ConnectionFlags, DropReason, Owner, POOL_ADDRESSES, Pool};
use weft_logic::{
    Tables as _,
    masquerade::{self, Choice},
    plan,
    walk::{Place, Walk},
};

use crate::{
    helpers,
    maps::{self, Kernel},
    stop, tuple,
};

/// Lets what the walk decides on leave with an address of its device's pool, where it is masqueraded and there is one: 0, or the number
/// of the reason + 1. Whatever the address is, it is the host's.
///
/// Exported, and thereby global to the verifier, as in `far`; what it needs is in the walk, for want of stack.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weft_choose_source() -> u32 {
    stop::code(choose_source())
}

#[inline(always)]
fn choose_source() -> Result<(), DropReason> {
    let walk = maps::walk().ok_or(DropReason::Kernel)?;
    let leaves = !walk.question.answers() && walk.decision.server.is_at(Place::Outside);
    if !leaves || walk.decision.masquerade == masquerade::NONE {
        return Ok(());
    }
    let before = before(walk);
    // By the same device, or begun with the address that the host takes there.
    let goes_on = walk.forward.way.ifindex == walk.decision.server.ifindex || before == walk.decision.source;
    if goes_on && !before.is_unspecified() {
        walk.decision.source = before;
        return Ok(());
    }
    let Some(pool) = pool_of(walk).filter(|pool| pool.is_set != 0) else { return Ok(()) };
    walk.choice = Choice { before, ..Choice::default() };
    let times = if pool.count < POOL_ADDRESSES { pool.count } else { POOL_ADDRESSES };
    helpers::repeat(times, consider, &mut Candidates { pool, claimed: 0 });
    let walk = maps::walk().ok_or(DropReason::Kernel)?;
    if !is_hosts(&walk.choice.address) {
        return Err(DropReason::NoMasqueradeAddress);
    }
    walk.decision.source = walk.choice.address;
    Ok(())
}

/// The address that the walk's connection leaves with already, which it keeps for as long as it is the host's: another one would cut it.
/// What was never answered may as well begin anew.
#[inline(always)]
fn before(walk: &Walk) -> Addr {
    let stands = walk.question.stands() && walk.question.answered != 0;
    if stands
        && walk.forward.connection.flags & ConnectionFlags::REWRITE_SRC != 0
        && is_hosts(&walk.forward.connection.src)
    {
        walk.forward.connection.src
    } else {
        Addr::UNSPECIFIED
    }
}

#[inline(always)]
fn is_hosts(address: &Addr) -> bool {
    Kernel.owner(CLUSTER_NET, address).is_some_and(Owner::is_host)
}

/// The pool of the device that the walk's packet leaves by.
#[inline(always)]
fn pool_of(walk: &Walk) -> Option<&'static Pool> {
    let device = maps::device(walk.decision.server.ifindex)?;
    Some(device.pool(walk.question.is_v6 != 0))
}

/// A walk through a pool.
struct Candidates {
    pool: &'static Pool,
    /// One was reserved.
    claimed: u32,
}

/// `bpf_loop` body: 0 goes on, 1 ends.
unsafe extern "C" fn consider(index: u32, candidates: *mut Candidates) -> i64 {
    // SAFETY: `repeat` hands over the state it was given.
    let pool = unsafe { (*candidates).pool };
    let (Some(walk), Some(address)) = (maps::walk(), pool.addresses.get(index as usize)) else { return 0 };
    walk.choice.consider(&walk.question.key.src, address);
    helpers::ends(&walk.choice.kept)
}

/// Reserves the tuple of a protocol without ports with another address of the pool than its own, which another workload has: each
/// serves one of them.
#[inline(always)]
pub fn claim_other() -> bool {
    let Some(walk) = maps::walk() else { return false };
    let Some(pool) = pool_of(walk).filter(|pool| pool.is_set != 0) else { return false };
    let times = if pool.count < POOL_ADDRESSES { pool.count } else { POOL_ADDRESSES };
    let mut candidates = Candidates { pool, claimed: 0 };
    helpers::repeat(times, try_address, &mut candidates);
    candidates.claimed != 0
}

/// `bpf_loop` body: 0 goes on, 1 ends.
unsafe extern "C" fn try_address(index: u32, candidates: *mut Candidates) -> i64 {
    // SAFETY: `repeat` hands over the state it was given.
    let candidates = unsafe { &mut *candidates };
    let (Some(walk), Some(address)) = (maps::walk(), candidates.pool.addresses.get(index as usize)) else { return 0 };
    let is_v6 = walk.question.is_v6 != 0;
    if address.is_v4() == is_v6 || !is_hosts(address) {
        return 0;
    }
    plan::leave_with(walk, *address);
    candidates.claimed = u32::from(tuple::claim_addresses());
    helpers::ends(&candidates.claimed)
}
