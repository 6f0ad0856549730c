// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! The slow path: ask, let the logic decide, insert what it decided.

use aya_ebpf::bindings::__sk_buff;
use weft_abi::{Addr, CLUSTER_NET, ConnectionFlags, DropReason, Flow, FlowState, Hook, Owner, PortKind};
use weft_logic::{
    Frame as _, Tables as _, admit, decide,
    flow::{self as life, Lifetime},
    frontend,
    header::{Ethernet, TcpFlags},
    plan, protocol,
    walk::{Origin, Sender, Standing, Walk},
};

use crate::{
    balance,
    family::{Family, V4, V6},
    helpers, hook, insert,
    maps::{self, Kernel},
    pool, report, route,
    share::{self, Tokens},
    skb::Skb,
    stop::{self, Stop},
    table::{self, Buffer, FlowTable as _},
    tunnel, tuple,
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
    walk.question.sender_mac = skb.read::<Ethernet>(0).ok_or(DropReason::Truncated)?.src;
    walk.question.related = 0;
    table::begin();
    let may_be_the_hosts = hook::is_shared(hook)
        && !is_workload_of_cluster(&walk.question.key.dst)
        && (!skb.is_for_host() || weft_addresses_service() == 0);
    if is_held(skb, walk, may_be_the_hosts) {
        return Err(DropReason::Takeover.into());
    }
    if may_be_the_hosts && walk.question.found == 0 {
        return Err(for_host());
    }
    ask(skb, walk, hook)?;
    if is_guest_configuration(walk) {
        return Err(guest_configuration(skb, walk));
    }
    if walk.question.found != 0 {
        weft_recall();
    }
    // The function has written to it.
    let walk = maps::walk().ok_or(DropReason::Kernel)?;
    if let Some(reason) = table::refusal() {
        return Err(reason.into());
    }
    if may_be_the_hosts && !walk.question.answers() && !goes_on(walk) {
        return Err(for_host());
    }
    if let Err(reason) = answer(skb) {
        insert::weft_remember_refusal(u32::from(life::refusal(reason)));
        return Err(table::refusal().unwrap_or(reason).into());
    }
    stop::check(insert::weft_insert(skb.len())).map_err(|reason| table::refusal().unwrap_or(reason))?;
    let walk = maps::walk().ok_or(DropReason::Kernel)?;
    if !walk.question.stands() {
        report::decided(skb, hook);
    }
    Ok(())
}

/// Whether a connection that a Service took from the host goes on without it: TCP does.
#[inline(always)]
fn goes_on(walk: &Walk) -> bool {
    walk.question.stands()
        && walk.question.key.protocol == u32::from(protocol::TCP)
        && walk.forward.connection.flags & ConnectionFlags::REWRITE_DST != 0
}

/// 1: the packet in the walk, from outside, addresses a Service. Exported, and thereby global to the verifier.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weft_addresses_service() -> u32 {
    maps::walk().map_or(0, |walk| u32::from(frontend::find(&Kernel, CLUSTER_NET, &walk.question.key).is_some()))
}

/// Whether a packet without an entry waits to be sent again: connections of another version are being taken over, and it may be of
/// one that has not come yet.
#[inline(always)]
fn is_held(skb: &Skb, walk: &Walk, may_be_the_hosts: bool) -> bool {
    walk.question.found == 0 && maps::is_taking_over() && (!may_be_the_hosts || weft_may_be_an_answer(skb.raw()) != 0)
}

/// 1: the packet in the walk may answer one that was masqueraded: it is to an address of the node, and the host has no socket for it.
/// Exported, and thereby global to the verifier.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weft_may_be_an_answer(skb: *mut __sk_buff) -> u32 {
    let Some(walk) = maps::walk() else { return 1 };
    let is_to_node = Kernel.owner(CLUSTER_NET, &walk.question.key.dst).is_some_and(Owner::is_host);
    u32::from(is_to_node && !tuple::is_the_hosts(skb, &walk.question.key))
}

/// How a packet from the uplink that is the host stack's business goes on.
#[inline(always)]
fn for_host() -> Stop {
    match stop::check(weft_admit_for_host()) {
        Ok(()) => Stop::Return(hook::NEXT),
        Err(reason) => Stop::Drop(reason),
    }
}

/// Decides on the question, within its port's share where it opens a connection, and reserves what it leaves under.
#[inline(always)]
fn answer(skb: &Skb) -> Result<(), DropReason> {
    let walk = maps::walk().ok_or(DropReason::Kernel)?;
    // One that is decided again goes on, whatever its port does beside it.
    let (opens, found, answers) = (!walk.question.stands(), walk.question.found != 0, walk.question.answers());
    if opens && walk.question.is_from(Sender::Workload) {
        share::take(walk.question.key.ifindex, Tokens::Flows)?;
    }
    stop::check(weft_judge())?;
    stop::check(route::weft_route(skb.raw()))?;
    stop::check(pool::weft_choose_source())?;
    stop::check(weft_plan())?;
    if answers {
        return Ok(());
    }
    if opens && !found {
        stop::check(share::weft_make_room())?;
    }
    stop::check(tuple::weft_reserve_tuple(skb.raw()))?;
    if found {
        insert::weft_forget_answers();
    }
    // The functions have written to it.
    if maps::walk().is_some_and(|walk| walk.decision.keeps_client | walk.decision.counts_load != 0) {
        balance::weft_remember_backend();
    }
    Ok(())
}

/// Decides once more on a connection that an ICMP error is about, whose answer's key is the question's: where it goes now is the
/// walk's `forward`, and no entry is written. 0, or the number of the reason + 1. Exported, and thereby global to the verifier.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weft_ask_related(skb: *mut __sk_buff, hook: u32) -> u32 {
    let Some(walk) = maps::walk() else { return stop::code(Err(DropReason::Kernel)) };
    let skb = Skb::of(skb);
    let asked = ask(&skb, walk, hook as u8);
    // What it is about came as an answer of that side.
    (walk.question.related, walk.question.answered) = (1, 1);
    walk.question.standing = Standing::of(&walk.forward) as u8;
    match asked {
        Err(Stop::Drop(reason)) => return stop::code(Err(reason)),
        Err(Stop::Return(_)) => return stop::code(Err(DropReason::IcmpUnrelated)),
        Ok(()) => {}
    }
    let judged = weft_judge();
    if judged != 0 {
        return judged;
    }
    let routed = route::weft_route(skb.raw());
    if routed != 0 {
        return routed;
    }
    let chosen = pool::weft_choose_source();
    if chosen != 0 { chosen } else { weft_plan() }
}

/// Takes the older decision on this connection along, unless the connection is over or begins anew; sets the question's
/// `standing`. Exported, and thereby global to the verifier.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_recall() -> u32 {
    if let Some(walk) = maps::walk() {
        if walk.question.is_v6 == 0 { recall::<V4>(walk) } else { recall::<V6>(walk) }
    }
    0
}

/// 1: the attempt to connect whose entry `flow` is was refused: what its sender tries next is a new one. Only the answer's entry
/// tells, and only who opens is asked.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weft_was_refused(flow: *const Flow, protocol_number: u32) -> u32 {
    let Some(keys) = maps::asked() else { return 0 };
    if flow.is_null() {
        return 0;
    }
    table::begin();
    // SAFETY: the caller's reference; the verifier checked its size.
    keys[0] = life::answer_key(unsafe { &*flow }, protocol_number);
    let found = if keys[0].src.is_v4() { V4::find(&keys[0], Buffer::One) } else { V6::find(&keys[0], Buffer::One) };
    found.map_or(0, |answers| u32::from(answers.connection.state == FlowState::Closing as u8))
}

/// [`admit::admit_for_host`] on the walk; 0, or the number of the reason + 1.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weft_admit_for_host() -> u32 {
    let Some(walk) = maps::walk() else { return stop::code(Err(DropReason::Kernel)) };
    stop::code(admit::admit_for_host(&Kernel, &walk.question, &mut walk.decision.client))
}

/// [`decide::decide`] on the walk; 0, or the number of the reason + 1.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_judge() -> u32 {
    let Some(walk) = maps::walk() else { return stop::code(Err(DropReason::Kernel)) };
    stop::code(decide::decide(&Kernel, &walk.question, &walk.forward, &mut walk.decision))
}

/// [`plan::plan`] on the walk; 0, or the number of the reason + 1.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_plan() -> u32 {
    let (Some(walk), Some(config)) = (maps::walk(), Kernel.config()) else {
        return stop::code(Err(DropReason::Kernel));
    };
    plan::plan(walk, config);
    if decide::moved(&Kernel, &walk.decision) {
        plan::poison(walk);
    }
    0
}

/// Fills in what the question knows beside its key.
#[inline(always)]
fn ask(skb: &Skb, walk: &mut Walk, hook: u8) -> Result<(), Stop> {
    let question = &mut walk.question;
    // A mapped IPv4 address in an IPv6 header would be taken for IPv4 by the tables (RFC 4038, 4.2: never on the wire).
    if question.is_v6 != 0 && (question.key.src.is_v4() || question.key.dst.is_v4()) {
        return Err(DropReason::BadHeader.into());
    }
    question.sender = sender(hook) as u32;
    question.now = helpers::coarse_ticks();
    question.random = helpers::random();
    question.standing = Standing::New as u8;
    (question.related, question.answered) = (0, 0);
    question.tunnel_peer = Addr::UNSPECIFIED;
    question.origin = origin(skb) as u8;
    (walk.decision.translated, walk.decision.rules) = (0, [0; 2]);
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

#[inline(always)]
fn recall<F: Family>(walk: &mut Walk) {
    let (Some(config), Some([answer, _])) = (Kernel.config(), maps::asked()) else { return };
    let Some(flow) = F::find(&walk.question.key, Buffer::One) else { return };
    *answer = life::answer_key(flow, walk.question.key.protocol);
    let other = F::find(answer, Buffer::Other);
    let other = other.filter(|other| life::leads_back(other, &walk.question.key));
    let (port, protocol_number) = (walk.question.key.dport, walk.question.key.protocol);
    let lifetime = Lifetime::of(port, protocol_number, flow, other, &config.timeouts);
    if lifetime.is_over(walk.question.now) || lifetime.begins_anew(TcpFlags(walk.question.tcp_flags)) {
        return;
    }
    walk.question.answered = u8::from(lifetime.is_answered());
    walk.forward = *flow;
    walk.question.standing = Standing::of(flow) as u8;
}

#[inline(always)]
pub fn is_workload_of_cluster(addr: &Addr) -> bool {
    Kernel.owner(CLUSTER_NET, addr).is_some_and(Owner::is_workload)
}

#[inline(always)]
fn is_guest_configuration(walk: &Walk) -> bool {
    let ports = (walk.question.key.sport, walk.question.key.dport);
    walk.question.is_from(Sender::Workload)
        && walk.question.key.protocol == u32::from(protocol::UDP)
        && (ports == (DHCP_CLIENT, DHCP_SERVER) || ports == (DHCPV6_CLIENT, DHCPV6_SERVER))
        && Kernel
            .port(walk.question.key.ifindex)
            .is_none_or(|port| decide::is_configuration_server(&Kernel, port.net, &walk.question.key.dst))
}

/// DHCP of a VM goes up to the agent's packet socket on this tap, and to nobody else: as a packet for another host it ends
/// before the host's IP stack. Containers are configured by the CNI plugin.
#[inline(always)]
pub fn guest_configuration(skb: &Skb, walk: &Walk) -> Stop {
    let Some(port) = Kernel.port(walk.question.key.ifindex) else { return Stop::Drop(DropReason::UnknownPort) };
    if port.mac != walk.question.sender_mac {
        return Stop::Drop(DropReason::SourceMac);
    }
    if port.kind != PortKind::Tap as u8 {
        return Stop::Drop(DropReason::Multicast);
    }
    if let Err(reason) = share::take(walk.question.key.ifindex, Tokens::Answers) {
        return Stop::Drop(reason);
    }
    if helpers::set_packet_type(skb.raw(), helpers::PACKET_OTHERHOST) {
        Stop::Return(hook::NEXT)
    } else {
        Stop::Drop(DropReason::Kernel)
    }
}
