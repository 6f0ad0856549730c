// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! One packet's walk: parse, look the flow up, on a miss decide, rewrite, deliver.
//!
//! What most packets do is one function of each hook, the *pass*: with all that it holds it takes half of the stack that a program has.
//! Where no decision stands it ends, the decision has the stack to itself, and the packet passes again.

use aya_ebpf::bindings::__sk_buff;
use weft_abi::{Counter, DropReason, Flow, Hook, OVERLAY, UPLINK, WayFlags, generation};
use weft_logic::{
    Frame as _, Tables as _,
    checksum::Summed,
    flow as life,
    header::{Ethernet, Kind, Transport, ethertype},
};

use crate::{
    arp, balance, decide, deliver,
    family::{Family, V4, V6},
    far::{self, Far},
    helpers, hook, hop_limit, icmp_answer,
    icmp_error::{self, Inner},
    maps::{self, Kernel},
    mss, neighbour, offload, refuse, report,
    rewrite::Rewrite,
    skb::Skb,
    stop::{self, Stop, check},
    too_big, tunnel,
};

/// What a pass returns where no decision stands: no action of the kernel's.
const ASK: i32 = 0x7f;
/// The same of the flow that an ICMP error goes by.
pub const ASK_AGAIN: i32 = 0x7e;

/// A pass looks the packet's flow up.
const LOOK_UP: u32 = 0;
/// It has been decided on: what to go by is the walk's `forward`.
const DECIDED: u32 = 1;

/// The whole of a hook's program.
#[inline(always)]
pub fn run<const HOOK: u8>(skb: Skb) -> i32 {
    let passed = match stop::resume(pass::<HOOK>(&skb, LOOK_UP)) {
        Ok(ASK) => ask::<HOOK>(&skb),
        Ok(ASK_AGAIN) => ask_again::<HOOK>(&skb),
        passed => passed,
    };
    let action = match passed {
        Ok(action) | Err(Stop::Return(action)) => action,
        Err(Stop::Drop(reason)) if reason.is_told() => refuse::refuse(&skb, HOOK, reason),
        Err(Stop::Drop(reason)) => report::dropped(&skb, HOOK, reason),
    };
    if action == icmp_answer::BACK { icmp_answer::back(&skb) } else { action }
}

/// Lets the packet in the walk be decided on.
#[inline(always)]
fn ask<const HOOK: u8>(skb: &Skb) -> Result<i32, Stop> {
    match decide::weft_decide(skb.raw(), u32::from(HOOK)) {
        decide::PASS => Err(Stop::Return(hook::NEXT)),
        code => {
            check(code)?;
            stop::resume(pass::<HOOK>(skb, DECIDED))
        }
    }
}

/// Lets the flow that an ICMP error goes by be decided on.
#[inline(always)]
fn ask_again<const HOOK: u8>(skb: &Skb) -> Result<i32, Stop> {
    let is_v6 = u32::from(skb.protocol() == ethertype::IPV6.to_be());
    check(icmp_error::weft_decide_again(skb.raw(), is_v6, u32::from(HOOK))).map_err(icmp_error::failed::<HOOK>)?;
    stop::resume(pass::<HOOK>(skb, DECIDED))
}

/// The hook's pass: [`stop::suspend`] of its result, or of [`ASK`].
#[inline(always)]
fn pass<const HOOK: u8>(skb: &Skb, step: u32) -> u32 {
    if HOOK == Hook::FromWorkload as u8 {
        weft_pass_from_workload(skb.raw(), step)
    } else if HOOK == Hook::FromHost as u8 {
        weft_pass_from_host(skb.raw(), step)
    } else if HOOK == Hook::FromOverlay as u8 {
        weft_pass_from_overlay(skb.raw(), step)
    } else {
        weft_pass_from_uplink(skb.raw(), step)
    }
}

/// [`pass`] of a workload's packet. These are exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_pass_from_workload(skb: *mut __sk_buff, step: u32) -> u32 {
    stop::suspend(process::<{ Hook::FromWorkload as u8 }>(&Skb::of(skb), step == DECIDED))
}

/// [`pass`] of what the host sends.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_pass_from_host(skb: *mut __sk_buff, step: u32) -> u32 {
    stop::suspend(process::<{ Hook::FromHost as u8 }>(&Skb::of(skb), step == DECIDED))
}

/// [`pass`] of what other nodes send.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_pass_from_overlay(skb: *mut __sk_buff, step: u32) -> u32 {
    stop::suspend(process::<{ Hook::FromOverlay as u8 }>(&Skb::of(skb), step == DECIDED))
}

/// [`pass`] of what comes in from outside.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_pass_from_uplink(skb: *mut __sk_buff, step: u32) -> u32 {
    stop::suspend(process::<{ Hook::FromUplink as u8 }>(&Skb::of(skb), step == DECIDED))
}

#[inline(always)]
fn process<const HOOK: u8>(skb: &Skb, decided: bool) -> Result<i32, Stop> {
    const IPV4: u16 = ethertype::IPV4.to_be();
    const IPV6: u16 = ethertype::IPV6.to_be();
    const ARP: u16 = ethertype::ARP.to_be();
    if skb.has_vlan_tag() {
        return Err(tagged::<HOOK>());
    }
    match skb.protocol() {
        IPV4 => ip::<V4, HOOK>(skb, decided),
        IPV6 => ip::<V6, HOOK>(skb, decided),
        ARP if HOOK == Hook::FromWorkload as u8 => arp::answer(skb),
        _ if hook::is_shared(HOOK) || HOOK == Hook::FromHost as u8 => Err(Stop::Return(hook::NEXT)),
        // Other nodes send nothing but IP: ARP from the overlay would fill the host's neighbour table.
        _ => Err(drop_unread(DropReason::UnknownEtherType)),
    }
}

/// Ports and the overlay are no trunks. On the uplink it is a frame for one of the host's VLAN devices.
#[inline(always)]
fn tagged<const HOOK: u8>() -> Stop {
    if hook::is_shared(HOOK) {
        return Stop::Return(hook::NEXT);
    }
    drop_unread(DropReason::Vlan)
}

/// Drops a packet that is not in the walk: its report must not name the one before.
#[inline(always)]
fn drop_unread(reason: DropReason) -> Stop {
    report::forget();
    reason.into()
}

#[inline(always)]
fn ip<F: Far + Inner, const HOOK: u8>(skb: &Skb, decided: bool) -> Result<i32, Stop> {
    if F::IS_V6 {
        skb.pull_headers::<{ V6::HEADERS }>();
    } else {
        skb.pull_headers::<{ V4::HEADERS }>();
    }
    let ifindex = key_ifindex::<HOOK>(skb);
    let (ip, mut transport) = match parse::<F>(skb, ifindex, decided) {
        Ok(parsed) => parsed,
        Err(_) if hook::is_shared(HOOK) => return Err(Stop::Return(hook::NEXT)),
        Err(reason) => return Err(drop_unread(reason)),
    };
    let mut summed = Summed::UNKNOWN;
    if HOOK == Hook::FromWorkload as u8 {
        offload::check(skb, &transport, &mut summed).map_err(drop_unread)?;
    }
    let flow = match transport.kind {
        Kind::FLOW if decided => &maps::walk().ok_or(DropReason::Kernel)?.forward,
        Kind::FLOW => flow::<F, HOOK>(skb, ifindex, &ip, &transport)?,
        Kind::ICMP_ERROR => icmp_error::translate::<F, HOOK>(skb, ifindex, &transport, decided)?,
        Kind(kind) => return neighbour::handle::<HOOK>(skb, kind),
    };
    if transport.flags.syn() {
        mss::clamp::<F, HOOK>(skb, flow, &transport)?;
    }
    let mut hop = hop_limit::counts::<HOOK>(flow);
    if hop && F::hops(&ip) <= 1 {
        return hop_limit::exceeded::<F>(skb, &transport);
    }
    let mut by_stack = false;
    if hop {
        let mtu = too_big::exceeded(skb, flow, &transport);
        if mtu != 0 && !F::may_be_cut(&ip) {
            return too_big::refuse::<F>(skb, &transport, mtu);
        }
        // What is cut into segments anyway the kernel cuts into pieces as well, where that may be.
        if mtu != 0 && skb.gso_size() == 0 || !F::IS_V6 && too_big::follows(&transport, flow) {
            by_stack = too_big::cut(skb, flow, &mut transport)?;
            // The host's stack counts itself.
            hop = !by_stack;
        }
    }
    F::rewrite(skb, &ip, &transport, Rewrite { flow, hop, summed })?;
    if by_stack {
        return too_big::hand_over(skb);
    }
    Ok(deliver::deliver(skb, flow)?)
}

#[inline(always)]
fn parse<F: Far>(skb: &Skb, ifindex: u32, decided: bool) -> Result<(F::Header, Transport), DropReason> {
    let (ip, near) = F::parse(skb)?;
    if let Some(transport) = near {
        return Ok((ip, transport));
    }
    // A datagram in pieces is counted once.
    Ok((ip, if decided { far::again()? } else { far::find::<F>(skb, ifindex)? }))
}

/// Leaves the packet in the walk, to be decided on.
#[inline(always)]
fn leave<F: Family>(key: &F::Key, transport: &Transport, found: bool) -> Stop {
    let Some(walk) = maps::walk() else { return DropReason::Kernel.into() };
    walk.question.key = F::widen(key);
    walk.question.is_v6 = u8::from(F::IS_V6);
    walk.question.found = u8::from(found);
    walk.question.tcp_flags = transport.flags.0;
    Stop::Return(ASK)
}

/// The decision on a packet that stands.
#[inline(always)]
fn flow<F: Family, const HOOK: u8>(
    skb: &Skb,
    ifindex: u32,
    ip: &F::Header,
    transport: &Transport,
) -> Result<&'static Flow, Stop> {
    let key = F::key(ifindex, ip, transport);
    match established::<F, HOOK>(skb, &key, transport) {
        Entry::Stands(flow) => Ok(flow),
        Entry::Refused(flow) => Err(refused::<F>(&key, flow)),
        Entry::Unknown(reason) => Err(drop_unread(reason)),
        missing => Err(leave::<F>(&key, transport, matches!(missing, Entry::Void))),
    }
}

/// Drops a packet as decided before; tells of it by its own addresses.
#[inline(always)]
fn refused<F: Family>(key: &F::Key, flow: &Flow) -> Stop {
    let direction = life::refused_by(flow.way.flags);
    if let Some(walk) = maps::walk() {
        walk.question.key = F::widen(key);
        walk.decision.translated = 0;
        walk.decision.rules = [0; 2];
        walk.decision.rules[direction] = flow.connection.rules[direction];
    }
    life::refused_for(flow.way.flags).into()
}

/// The port that flow keys name, or the class of devices: what comes from other nodes and outside has no port.
#[inline(always)]
pub fn key_ifindex<const HOOK: u8>(skb: &Skb) -> u32 {
    if HOOK == Hook::FromOverlay as u8 {
        OVERLAY
    } else if HOOK == Hook::FromUplink as u8 {
        UPLINK
    } else {
        skb.ifindex()
    }
}

/// What the flow table has on a packet.
enum Entry {
    /// A decision to go by.
    Stands(&'static Flow),
    /// One that refuses the packet.
    Refused(&'static Flow),
    /// One that must be made again.
    Void,
    /// Nothing.
    Missing,
    /// It is not known.
    Unknown(DropReason),
}

/// The established path: one look-up, the epoch, the idle time.
#[inline(always)]
fn established<F: Family, const HOOK: u8>(skb: &Skb, key: &F::Key, transport: &Transport) -> Entry {
    let found = match F::established(key) {
        Ok(Some(found)) => found,
        Ok(None) => {
            report::count(Counter::FlowMisses);
            return Entry::Missing;
        }
        Err(reason) => return Entry::Unknown(reason),
    };
    let now = helpers::coarse_ticks();
    if !usable::<HOOK>(skb, &mut found.flow, transport, now) {
        report::count(Counter::FlowsRedecided);
        return Entry::Void;
    }
    if found.flow.way.flags & WayFlags::REFUSED != 0 {
        return Entry::Refused(&found.flow);
    }
    let before = found.flow.connection.state;
    found.flow.connection.state = life::next_state(before, transport.flags);
    balance::follow_state(&found.flow, before);
    F::touch(key, found, skb.len(), now);
    report::count(Counter::FlowHits);
    Entry::Stands(&found.flow)
}

/// Asked once a tick for an entry: what it had a packet in just now is not idle.
#[inline(always)]
fn is_idle(flow: &Flow, protocol_number: u8, now: u32) -> bool {
    Kernel.config().is_none_or(|config| life::is_idle(flow, protocol_number, now, &config.timeouts))
}

/// Whether a SYN opens a new connection: on the five-tuple of one that was established, or was refused.
#[inline(always)]
fn begins_anew(flow: &Flow, transport: &Transport) -> bool {
    life::is_reopened(flow, transport.flags)
        || decide::weft_was_refused(&raw const *flow, u32::from(transport.protocol)) != 0
}

#[inline(always)]
fn usable<const HOOK: u8>(skb: &Skb, flow: &mut Flow, transport: &Transport, now: u32) -> bool {
    let epoch = Kernel.generation(generation::EPOCH);
    if flow.way.epoch != epoch {
        if flow.way.flags & WayFlags::REFUSED != 0 || !life::stands(&Kernel, &flow.way) {
            return false;
        }
        flow.way.epoch = epoch;
    }
    if flow.way.last_seen != now && is_idle(flow, transport.protocol, now)
        || transport.flags.opens() && begins_anew(flow, transport)
    {
        return false;
    }
    if HOOK == Hook::FromOverlay as u8 {
        return tunnel::is_from(skb, &flow.way.remote);
    }
    HOOK == Hook::FromHost as u8
        || flow.way.flags & WayFlags::CHECK_MAC == 0
        || skb.read::<Ethernet>(0).is_some_and(|ethernet| ethernet.src == flow.way.sender_mac)
}
