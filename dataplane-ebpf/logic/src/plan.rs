// SPDX-License-Identifier: Apache-2.0
//! From a decision to the entries of both directions. No look-ups: everything is in the walk.

use weft_abi::{
    Addr, Config, ConnectionFlags, Deliver, Flow, FlowKey6, FlowState, GATEWAY_MAC, HAIRPIN_V4, HAIRPIN_V6, PortKind,
    Way, WayFlags, generation,
};

use crate::{
    flow, masquerade,
    walk::{Decision, End, GenerationRef, Origin, Place, Question, Sender, Walk},
};

/// Makes `forward`, `reverse` and `reverse_key`, complete but for the port of a new masqueraded flow (0, see
/// [`masquerade::BY_PORT`]). Of a question that answers, `forward` alone: what it is rewritten to stays.
#[inline(always)]
pub fn plan(walk: &mut Walk, config: &Config) {
    let Walk { question, decision, forward, reverse, reverse_key, .. } = walk;
    if question.answers() {
        forward.connection.flags &= ConnectionFlags::REWRITE_SRC | ConnectionFlags::REWRITE_DST;
        plan_answers(question, decision, config, forward);
        return;
    }
    plan_opener(question, decision, config, forward);
    *reverse_key = flow::answer_key(forward, question.key.protocol);
    reverse.connection.flags = swapped(forward.connection.flags);
    begin(reverse);
    (reverse.connection.src, reverse.connection.sport) = (question.key.dst, question.key.dport);
    (reverse.connection.dst, reverse.connection.dport) = (question.key.src, question.key.sport);
    plan_answers(question, decision, config, reverse);
}

/// Lets both entries be void from the next packet on, see [`crate::decide::moved`].
#[inline(always)]
pub fn poison(walk: &mut Walk) {
    flow::void(&mut walk.forward.way);
    flow::void(&mut walk.reverse.way);
}

/// Lets the flow leave under this source port (network byte order): in both entries.
#[inline(always)]
pub const fn leave_under(walk: &mut Walk, port: u16) {
    walk.forward.connection.flags |= ConnectionFlags::REWRITE_SRC;
    walk.forward.connection.sport = port;
    walk.reverse.connection.flags |= ConnectionFlags::REWRITE_DST;
    walk.reverse_key.dport = port;
}

/// Lets the flow leave with this address: in both entries.
#[inline(always)]
pub const fn leave_with(walk: &mut Walk, address: Addr) {
    walk.forward.connection.flags |= ConnectionFlags::REWRITE_SRC;
    walk.forward.connection.src = address;
    walk.reverse.connection.flags |= ConnectionFlags::REWRITE_DST;
    walk.reverse_key.dst = address;
}

/// What answers rewrite, the other way round.
#[inline(always)]
const fn swapped(forward: u16) -> u16 {
    let source = if forward & ConnectionFlags::REWRITE_DST != 0 { ConnectionFlags::REWRITE_SRC } else { 0 };
    let destination = if forward & ConnectionFlags::REWRITE_SRC != 0 { ConnectionFlags::REWRITE_DST } else { 0 };
    source | destination
}

/// Where packets lead, whom they must be from, and what that was decided on; `service`: of the opener's packets.
#[inline(always)]
fn lead(way: &mut Way, decision: &Decision, [from, to]: [&End; 2], service: GenerationRef, config: &Config) {
    way.epoch = decision.epoch;
    way.ifindex = to.ifindex;
    way.net = decision.net;
    way.dst_mac = GATEWAY_MAC;
    way.deliver = match to.place {
        place if place == Place::Workload as u8 => {
            way.dst_mac = to.mac;
            deliver_to(to.kind, from.is_at(Place::Host)) as u8
        }
        place if place == Place::Host as u8 => {
            way.dst_mac = config.host_mac;
            Deliver::Host as u8
        }
        place if place == Place::Tunnel as u8 => Deliver::Tunnel as u8,
        place if place == Place::Neighbour as u8 => Deliver::Neighbour as u8,
        _ => Deliver::Route as u8,
    };
    way.remote = if from.is_at(Place::Tunnel) { from.peer } else { to.next_hop };
    way.sender_mac = from.mac;
    way.flags = if from.checks_mac != 0 { WayFlags::CHECK_MAC } else { 0 };
    stand_by(way, from.generation, to.generation, service);
    if from.is_at(Place::Tunnel) {
        lead_on(way, to);
    }
}

/// What came through a tunnel ends here, unless a Service leads it on. A way has room for its peer or for its next hop.
#[inline(always)]
fn lead_on(way: &mut Way, to: &End) {
    if way.deliver == Deliver::Route as u8 {
        way.flags |= WayFlags::BY_ROUTES;
    } else if way.deliver == Deliver::Tunnel as u8 || way.deliver == Deliver::Neighbour as u8 {
        // Each of its packets is decided on, and its peer with it.
        way.remote = to.next_hop;
        way.epoch = way.epoch.wrapping_sub(1);
        flow::void(way);
    }
}

/// Lets a way stand as long as these generations do.
#[inline(always)]
fn stand_by(way: &mut Way, egress: GenerationRef, ingress: GenerationRef, service: GenerationRef) {
    (way.egress, way.ingress, way.service) = (egress.slot as u16, ingress.slot as u16, service.slot);
    way.generations = egress.generation.wrapping_add(ingress.generation).wrapping_add(service.generation);
    if egress.slot >= generation::SLOTS || ingress.slot >= generation::SLOTS {
        // A number that only a damaged map has.
        flow::void(way);
    }
}

/// `bpf_redirect_peer` works from ingress hooks only, and the host's hook is an egress one.
#[inline(always)]
const fn deliver_to(kind: u8, from_egress_hook: bool) -> Deliver {
    if kind == PortKind::Veth as u8 && !from_egress_hook { Deliver::Peer } else { Deliver::Port }
}

/// Whether client and server are the same workload, or both the host: replies must come back through the dataplane.
#[inline(always)]
fn is_hairpin(decision: &Decision) -> bool {
    let host_to_host = decision.client.is_at(Place::Host) && decision.server.is_at(Place::Host);
    decision.translated != 0 && (decision.target == decision.opener.src || host_to_host)
}

#[inline(always)]
fn plan_opener(question: &Question, decision: &mut Decision, config: &Config, flow: &mut Flow) {
    plan_sources(question, decision, flow);
    if !question.stands() {
        begin(flow);
    }
    flow.connection.rules = decision.rules;
    flow.way.last_seen = question.now;
    lead(&mut flow.way, decision, [&decision.client, &decision.server], decision.service, config);
}

/// No packet has passed yet.
#[inline(always)]
const fn begin(flow: &mut Flow) {
    (flow.connection.packets, flow.connection.bytes, flow.connection.state) = (0, 0, FlowState::New as u8);
}

/// Addresses, ports and flags of the opener's entry.
#[inline(always)]
fn plan_sources(question: &Question, decision: &mut Decision, flow: &mut Flow) {
    let key = &question.key;
    let kept = kept_source_port(question, decision, flow);
    let counted = if question.stands() { flow.connection.flags & ConnectionFlags::COUNTED } else { 0 };
    flow.connection.flags = if decision.translated == 0 { 0 } else { ConnectionFlags::REWRITE_DST | counted };
    if decision.counts_load != 0 {
        flow.connection.flags |= ConnectionFlags::COUNTED;
    }
    if decision.own_host != 0 {
        flow.connection.flags |= ConnectionFlags::FROM_HOST;
    }
    if question.is_from(Sender::Host) && question.origin != Origin::Own as u8 {
        flow.connection.flags |= ConnectionFlags::FORWARDED;
    }
    (flow.connection.src, flow.connection.sport) = (new_source(key, decision, question.is_v6 != 0), key.sport);
    (flow.connection.dst, flow.connection.dport) = (decision.target, decision.target_port);
    if flow.connection.src != key.src {
        flow.connection.flags |= ConnectionFlags::REWRITE_SRC;
    }
    if kept != 0 {
        flow.connection.flags |= ConnectionFlags::REWRITE_SRC;
        flow.connection.sport = kept;
        decision.masquerade = masquerade::KEPT;
    } else if decision.masquerade == masquerade::BY_PORT {
        flow.connection.sport = 0;
    }
}

/// The address that packets of the opener leave with.
#[inline(always)]
fn new_source(key: &FlowKey6, decision: &Decision, is_v6: bool) -> Addr {
    if decision.masquerade != masquerade::NONE {
        return decision.source;
    }
    match (is_hairpin(decision), is_v6) {
        (true, true) => HAIRPIN_V6,
        (true, false) => HAIRPIN_V4,
        _ => key.src,
    }
}

/// A flow that is decided again keeps the source port that it leaves under, as long as its ends are what they were; 0: it has
/// none of its own.
#[inline(always)]
fn kept_source_port(question: &Question, decision: &Decision, old: &Flow) -> u16 {
    let by_port = decision.masquerade == masquerade::BY_PORT;
    let had = question.stands()
        && (by_port || decision.masquerade == masquerade::NONE || decision.masquerade == masquerade::WITH_PORT)
        && old.connection.flags & ConnectionFlags::REWRITE_SRC != 0
        && (by_port || old.connection.sport != question.key.sport)
        && old.connection.src == new_source(&question.key, decision, question.is_v6 != 0)
        && (old.connection.dst, old.connection.dport) == (decision.target, decision.target_port);
    if had { old.connection.sport } else { 0 }
}

/// The entry of what answers: whose addresses and ports it has is set already.
#[inline(always)]
fn plan_answers(question: &Question, decision: &Decision, config: &Config, flow: &mut Flow) {
    flow.connection.flags |= ConnectionFlags::REPLY;
    if decision.own_host != 0 {
        flow.connection.flags |= ConnectionFlags::FROM_HOST;
    }
    flow.connection.rules = decision.rules;
    flow.way.last_seen = question.now;
    lead(&mut flow.way, decision, [&decision.server, &decision.client], GenerationRef::default(), config);
    if decision.server.checks_mac != 0 && flow.way.sender_mac == [0; 6] {
        // Not known, and a frame may have such an address: whatever answers first is decided on.
        flow.way.epoch = decision.epoch.wrapping_sub(1);
        flow::void(&mut flow.way);
    }
}

/// A walk has no [`Addr`] of its own for the hairpin: both constants are of their family.
const _: () = assert!(HAIRPIN_V4.is_v4() && !HAIRPIN_V6.is_v4() && !Addr::UNSPECIFIED.is_v4());
