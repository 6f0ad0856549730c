// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! The slow path: fill in the walk, let the logic decide, insert both entries.

use aya_ebpf::bindings::{__sk_buff, BPF_ANY};
use weft_abi::{Addr, DropReason, Flow, FlowFlags, FlowKey6, Hook, LocalKind, PortKind};
use weft_logic::{
    Frame as _, Tables as _, admit,
    decide::{self, Origin, Sender, Walk},
    flow::{self as life, Connection},
    header::{Ethernet, TcpFlags},
    masquerade, plan, protocol,
};

use crate::{
    family::{Family, V4, V6},
    helpers, hook,
    maps::{self, Kernel},
    masquerade::weft_masquerade,
    report,
    share::{self, Tokens},
    skb::Skb,
    stop::{self, Stop},
    tunnel,
};

/// DHCP (RFC 2131) and DHCPv6 (RFC 8415) ports, network byte order.
const DHCP_SERVER: u16 = 67_u16.to_be();
const DHCP_CLIENT: u16 = 68_u16.to_be();
const DHCPV6_CLIENT: u16 = 546_u16.to_be();
const DHCPV6_SERVER: u16 = 547_u16.to_be();

/// [`weft_decide`]: the packet is for the host's stack.
pub const PASS: u32 = 0x100;

/// Decides on the packet in the walk's `key`, which has no usable flow entry, and inserts what it decided: 0, and the entry
/// to act on is the walk's `forward`; [`PASS`]; or the number of the reason + 1.
///
/// Exported, and thereby a global function to the verifier: it walks it once for the object, not once for every way that
/// leads here (kernel 5.6).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weft_decide(skb: *mut __sk_buff, hook: u32) -> u32 {
    match slow(&Skb::of(skb), hook as u8) {
        Ok(()) => 0,
        Err(Stop::Return(_)) => PASS,
        Err(Stop::Drop(reason)) => stop::code(Err(reason)),
    }
}

#[inline(always)]
fn slow(skb: &Skb, hook: u8) -> Result<(), Stop> {
    let walk = maps::walk().ok_or(DropReason::Kernel)?;
    walk.sender_mac = skb.read::<Ethernet>(0).ok_or(DropReason::Truncated)?.src;
    let may_be_the_hosts = hook::is_shared(hook) && !is_local_workload(&walk.key.dst);
    if may_be_the_hosts && walk.found == 0 {
        return Err(for_host());
    }
    begin(skb, walk, hook)?;
    if is_guest_configuration(walk) {
        return Err(guest_configuration(skb, walk));
    }
    let answers = walk.found != 0 && weft_recall() != 0;
    if may_be_the_hosts && !answers {
        return Err(for_host());
    }
    if answers {
        stop::check(weft_judge_reply())?;
    } else {
        open(skb)?;
    }
    stop::check(weft_insert(skb.len(), u32::from(answers)))?;
    if !answers {
        report::decided(skb, hook);
    }
    Ok(())
}

/// How a packet from the uplink that is the host stack's business goes on.
#[inline(always)]
fn for_host() -> Stop {
    match stop::check(weft_admit_for_host()) {
        Ok(()) => Stop::Return(hook::NEXT),
        Err(reason) => Stop::Drop(reason),
    }
}

/// Decides on a flow that answers no other one, within its port's share, and reserves what it leaves under.
#[inline(always)]
fn open(skb: &Skb) -> Result<(), DropReason> {
    let walk = maps::walk().ok_or(DropReason::Kernel)?;
    // One that is decided again goes on, whatever its port does beside it.
    let (new, counts) = (walk.old == 0, walk.old == 0 && walk.found == 0);
    if new && walk.sender == Sender::Workload as u32 {
        share::take(walk.key.ifindex, Tokens::Flows)?;
    }
    stop::check(weft_judge())?;
    stop::check(weft_plan())?;
    if counts {
        stop::check(share::weft_make_room())?;
    }
    // The functions above have written to it.
    let walk = maps::walk().ok_or(DropReason::Kernel)?;
    if walk.masquerade == masquerade::KEPT && weft_has_lost_port() != 0 {
        walk.masquerade = masquerade::BY_PORT;
    }
    if needs_reservation(walk) {
        stop::check(weft_masquerade(skb.raw()))?;
    }
    if new && !counts {
        let _done = weft_forget_answers();
    }
    Ok(())
}

/// 1: the entry that reserved the port of the walk's flow was lost, and the port is another flow's now.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_has_lost_port() -> u32 {
    let (Some(walk), Some(keys)) = (maps::walk(), maps::asked()) else { return 0 };
    let found = if walk.is_v6 == 0 { V4::find(&walk.reverse_key) } else { V6::find(&walk.reverse_key) };
    let Some(found) = found else { return 0 };
    // SAFETY: the entry lives under RCU for as long as the program runs.
    keys[0] = life::answer_key(unsafe { &*found }, walk.key.protocol);
    u32::from(keys[0] != walk.key)
}

/// Whether the entry of a masqueraded flow's answers is put in where it reserves what the flow leaves under.
#[inline(always)]
const fn needs_reservation(walk: &Walk) -> bool {
    walk.masquerade == masquerade::BY_PORT || walk.masquerade == masquerade::BY_ADDRESS
}

/// [`recall`]: 1 where the flow answers another one.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_recall() -> u32 {
    let Some(walk) = maps::walk() else { return 0 };
    u32::from(if walk.is_v6 == 0 { recall::<V4>(walk) } else { recall::<V6>(walk) })
}

/// [`admit::admit_for_host`] on the walk; 0, or the number of the reason + 1.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_admit_for_host() -> u32 {
    let Some(walk) = maps::walk() else { return stop::code(Err(DropReason::Kernel)) };
    stop::code(admit::admit_for_host(&Kernel, walk))
}

/// Counts the packet in and inserts the decision; `answers`: into the one entry that was looked at. 0, or the number of the
/// reason + 1.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_insert(len: u32, answers: u32) -> u32 {
    let Some(walk) = maps::walk() else { return stop::code(Err(DropReason::Kernel)) };
    life::record(&mut walk.forward, len, TcpFlags(walk.tcp_flags));
    stop::code(match (walk.is_v6 == 0, answers != 0) {
        (true, true) => update::<V4>(walk),
        (true, false) => insert::<V4>(walk),
        (false, true) => update::<V6>(walk),
        (false, false) => insert::<V6>(walk),
    })
}

/// [`decide::decide`] on the walk; 0, or the number of the reason + 1.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_judge() -> u32 {
    let Some(walk) = maps::walk() else { return stop::code(Err(DropReason::Kernel)) };
    stop::code(decide::decide(&Kernel, walk))
}

/// [`plan::plan`] on the walk; 0, or the number of the reason + 1.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_plan() -> u32 {
    let (Some(walk), Some(config)) = (maps::walk(), Kernel.config()) else {
        return stop::code(Err(DropReason::Kernel));
    };
    plan::plan(walk, config);
    if decide::moved(&Kernel, walk) {
        plan::poison(walk);
    }
    0
}

/// [`decide::decide_reply`] on the walk; 0, or the number of the reason + 1.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_judge_reply() -> u32 {
    let Some(walk) = maps::walk() else { return stop::code(Err(DropReason::Kernel)) };
    stop::code(decide::decide_reply(&Kernel, walk))
}

#[inline(always)]
fn begin(skb: &Skb, walk: &mut Walk, hook: u8) -> Result<(), Stop> {
    // A mapped IPv4 address in an IPv6 header would be taken for IPv4 by the tables (RFC 4038, 4.2: never on the wire).
    if walk.is_v6 != 0 && (walk.key.src.is_v4() || walk.key.dst.is_v4()) {
        return Err(DropReason::BadHeader.into());
    }
    walk.sender = sender(hook) as u32;
    walk.now = helpers::coarse_ticks();
    walk.random = helpers::random();
    (walk.old, walk.translated, walk.masquerade, walk.denied_by) = (0, 0, 0, 0);
    walk.tunnel_peer = Addr::UNSPECIFIED;
    walk.origin = origin(skb) as u8;
    if hook == Hook::FromOverlay as u8 {
        tunnel::find_peer(skb)?;
    }
    Ok(())
}

/// Of a packet that the host sends through `weft0`.
#[inline(always)]
fn origin(skb: &Skb) -> Origin {
    match skb.received_by() {
        0 => Origin::Own,
        ifindex if ifindex == skb.ifindex() => Origin::Dataplane,
        _ => Origin::Elsewhere,
    }
}

#[inline(always)]
const fn sender(hook: u8) -> Sender {
    if hook == Hook::FromWorkload as u8 {
        Sender::Workload
    } else if hook == Hook::FromHost as u8 {
        Sender::Host
    } else if hook == Hook::FromOverlay as u8 {
        Sender::Overlay
    } else {
        Sender::Uplink
    }
}

/// Takes the older decision on this flow along; whether it is an answer to another flow. Void entries are not recalled.
#[inline(always)]
fn recall<F: Family>(walk: &mut Walk) -> bool {
    let Some(found) = F::flow(&F::narrow(&walk.key)) else { return false };
    // SAFETY: the entry lives under RCU for as long as the program runs.
    let flow = unsafe { &*found };
    if life::is_reopened(flow, TcpFlags(walk.tcp_flags)) || is_over::<F>(flow, walk) {
        return false;
    }
    walk.forward = *flow;
    walk.old = 1;
    flow.flags & FlowFlags::REPLY != 0
}

/// Whether the connection of `flow`, the entry for the walk's key, is over.
#[inline(always)]
fn is_over<F: Family>(flow: &Flow, walk: &Walk) -> bool {
    let other = F::flow(&F::narrow(&life::answer_key(flow, walk.key.protocol)));
    // SAFETY: the entry lives under RCU for as long as the program runs.
    let other = other.map(|other| unsafe { &*other });
    Connection::of(walk.key.dport, walk.key.protocol, flow, other).is_over(walk.now)
}

/// Writes the entry of the packet's own direction.
#[inline(always)]
fn update<F: Family>(walk: &Walk) -> Result<(), DropReason> {
    if F::insert(&F::narrow(&walk.key), &walk.forward, u64::from(BPF_ANY)) {
        Ok(())
    } else {
        Err(DropReason::FlowTable)
    }
}

/// Inserts the reverse entry, then the forward one: no answer can come before its entry is there.
#[inline(always)]
fn insert<F: Family>(walk: &mut Walk) -> Result<(), DropReason> {
    if !needs_reservation(walk) {
        let answer = F::narrow(&walk.reverse_key);
        if walk.old != 0 {
            remember::<F>(walk, &answer);
        }
        if !F::insert(&answer, &walk.reverse, u64::from(BPF_ANY)) {
            return Err(DropReason::FlowTable);
        }
    }
    update::<F>(walk)?;
    if walk.old == 0 && walk.found == 0 {
        share::book(walk);
    }
    Ok(())
}

/// A connection that opens again on its five-tuple takes the place of the one before, whose answers may have had another key:
/// that entry would be nobody's. Always 0. Exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_forget_answers() -> u32 {
    let (Some(walk), Some(keys)) = (maps::walk(), maps::asked()) else { return 0 };
    if walk.is_v6 == 0 {
        forget_answers::<V4>(walk, &mut keys[0])
    } else {
        forget_answers::<V6>(walk, &mut keys[0])
    }
    0
}

#[inline(always)]
fn forget_answers<F: Family>(walk: &Walk, answers: &mut FlowKey6) {
    let Some(before) = F::find(&walk.key) else { return };
    // SAFETY: the entry lives under RCU for as long as the program runs.
    let before = unsafe { &*before };
    *answers = life::answer_key(before, walk.key.protocol);
    if before.flags & FlowFlags::REPLY == 0 && *answers != walk.reverse_key {
        F::remove(answers);
    }
}

/// Of an entry that is only decided again, the counters and the TCP state go on.
#[inline(always)]
fn remember<F: Family>(walk: &mut Walk, answer: &F::Key) {
    let Some(found) = F::flow(answer) else { return };
    // SAFETY: the entry lives under RCU for as long as the program runs.
    let flow = unsafe { &*found };
    (walk.reverse.packets, walk.reverse.bytes) = (flow.packets, flow.bytes);
    (walk.reverse.state, walk.reverse.last_seen) = (flow.state, flow.last_seen);
}

#[inline(always)]
fn is_local_workload(addr: &Addr) -> bool {
    Kernel.local(addr).is_some_and(|local| local.kind == LocalKind::Workload as u32)
}

#[inline(always)]
fn is_guest_configuration(walk: &Walk) -> bool {
    let ports = (walk.key.sport, walk.key.dport);
    walk.sender == Sender::Workload as u32
        && walk.key.protocol == u32::from(protocol::UDP)
        && (ports == (DHCP_CLIENT, DHCP_SERVER) || ports == (DHCPV6_CLIENT, DHCPV6_SERVER))
        && decide::is_configuration_server(&Kernel, &walk.key.dst)
}

/// DHCP of a VM goes up to the agent's packet socket on this tap, and to nobody else: as a packet for another host it ends
/// before the host's IP stack. Containers are configured by the CNI plugin.
#[inline(always)]
pub fn guest_configuration(skb: &Skb, walk: &Walk) -> Stop {
    let Some(port) = Kernel.port(walk.key.ifindex) else { return Stop::Drop(DropReason::UnknownPort) };
    if port.mac != walk.sender_mac {
        return Stop::Drop(DropReason::SourceMac);
    }
    if port.kind != PortKind::Tap as u8 {
        return Stop::Drop(DropReason::Multicast);
    }
    if let Err(reason) = share::take(walk.key.ifindex, Tokens::Answers) {
        return Stop::Drop(reason);
    }
    if helpers::set_packet_type(skb.raw(), helpers::PACKET_OTHERHOST) {
        Stop::Return(hook::NEXT)
    } else {
        Stop::Drop(DropReason::Kernel)
    }
}
