// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! One packet's walk: parse, look the flow up, on a miss decide, rewrite, deliver.

use weft_abi::{Counter, DropReason, Flow, Hook, OVERLAY, UPLINK, WayFlags, generation};
use weft_logic::{
    Frame as _, Tables as _,
    checksum::Summed,
    flow as life,
    header::{Ethernet, Kind, Transport, ethertype},
};

use crate::{
    arp, decide, deliver,
    family::{Family, V4, V6},
    far::{self, Far},
    helpers, hook, hop_limit,
    icmp_error::{self, Inner},
    maps::{self, Kernel},
    mss, neighbour, offload, refuse, report,
    rewrite::Rewrite,
    skb::Skb,
    stop::{Stop, check},
    too_big, tunnel,
};

/// The whole of a hook's program.
#[inline(always)]
pub fn run<const HOOK: u8>(skb: Skb) -> i32 {
    match process::<HOOK>(&skb) {
        Ok(action) | Err(Stop::Return(action)) => action,
        Err(Stop::Drop(reason)) if refuse::is_told(HOOK, reason) => refuse::refuse(&skb, HOOK, reason),
        Err(Stop::Drop(reason)) => report::dropped(&skb, HOOK, reason),
    }
}

#[inline(always)]
fn process<const HOOK: u8>(skb: &Skb) -> Result<i32, Stop> {
    const IPV4: u16 = ethertype::IPV4.to_be();
    const IPV6: u16 = ethertype::IPV6.to_be();
    const ARP: u16 = ethertype::ARP.to_be();
    if skb.has_vlan_tag() {
        return Err(tagged::<HOOK>());
    }
    match skb.protocol() {
        IPV4 => ip::<V4, HOOK>(skb),
        IPV6 => ip::<V6, HOOK>(skb),
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
fn ip<F: Far + Inner, const HOOK: u8>(skb: &Skb) -> Result<i32, Stop> {
    if F::IS_V6 {
        skb.pull_headers::<{ V6::HEADERS }>();
    } else {
        skb.pull_headers::<{ V4::HEADERS }>();
    }
    let ifindex = key_ifindex::<HOOK>(skb);
    let (ip, mut transport) = match parse::<F>(skb, ifindex) {
        Ok(parsed) => parsed,
        Err(_) if hook::is_shared(HOOK) => return Err(Stop::Return(hook::NEXT)),
        Err(reason) => return Err(drop_unread(reason)),
    };
    let mut summed = Summed::UNKNOWN;
    if HOOK == Hook::FromWorkload as u8 {
        offload::check(skb, &transport, &mut summed).map_err(drop_unread)?;
    }
    let flow = match transport.kind {
        Kind::FLOW => flow::<F, HOOK>(skb, ifindex, &ip, &transport)?,
        Kind::ICMP_ERROR => icmp_error::translate::<F, HOOK>(skb, ifindex, &transport)?,
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
fn parse<F: Far>(skb: &Skb, ifindex: u32) -> Result<(F::Header, Transport), DropReason> {
    let (ip, near) = F::parse(skb)?;
    if let Some(transport) = near {
        return Ok((ip, transport));
    }
    Ok((ip, far::find::<F>(skb, ifindex)?))
}

/// The slow path, by a function of its own: what it decided is in the walk's `forward`.
#[inline(always)]
fn slow<F: Family, const HOOK: u8>(
    skb: &Skb,
    key: &F::Key,
    transport: &Transport,
    found: bool,
) -> Result<&'static Flow, Stop> {
    let walk = maps::walk().ok_or(DropReason::Kernel)?;
    walk.question.key = F::widen(key);
    walk.question.is_v6 = u8::from(F::IS_V6);
    walk.question.found = u8::from(found);
    walk.question.tcp_flags = transport.flags.0;
    match decide::weft_decide(skb.raw(), u32::from(HOOK)) {
        decide::PASS => Err(Stop::Return(hook::NEXT)),
        code => {
            check(code)?;
            Ok(&walk.forward)
        }
    }
}

/// The decision on a packet: the one that stands, else a new one.
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
        missing => slow::<F, HOOK>(skb, &key, transport, matches!(missing, Entry::Void)),
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
}

/// The established path: one look-up, the epoch, the idle time.
#[inline(always)]
fn established<F: Family, const HOOK: u8>(skb: &Skb, key: &F::Key, transport: &Transport) -> Entry {
    let Some(flow) = F::established(key) else {
        report::count(Counter::FlowMisses);
        return Entry::Missing;
    };
    let now = helpers::coarse_ticks();
    if !usable::<HOOK>(skb, flow, transport, now) {
        report::count(Counter::FlowsRedecided);
        return Entry::Void;
    }
    if flow.way.flags & WayFlags::REFUSED != 0 {
        return Entry::Refused(flow);
    }
    if flow.way.last_seen != now {
        flow.way.last_seen = now;
    }
    // Other CPUs may write to it, too: two packets at once lose a count at most.
    life::record(&mut flow.connection, skb.len(), transport.flags);
    report::count(Counter::FlowHits);
    Entry::Stands(flow)
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
