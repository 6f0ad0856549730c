// SPDX-License-Identifier: Apache-2.0
//! From a decision to the entries of both directions. No look-ups: everything is in the walk.

use weft_abi::{Addr, Config, Deliver, Flow, FlowFlags, FlowState, GATEWAY_MAC, GenerationRef, HAIRPIN_V4, HAIRPIN_V6};

use crate::{
    decide::{self, Origin, Sender, Walk},
    flow, masquerade,
};

/// Makes `forward`, `reverse` and `reverse_key`, complete but for the port of a new masqueraded flow (0, see
/// [`masquerade::BY_PORT`]).
#[inline(always)]
pub fn plan(walk: &mut Walk, config: &Config) {
    let kept_port = kept_masquerade_port(walk, config);
    plan_sources(walk, config, kept_port);
    plan_forward(walk, config);
    walk.reverse_key = flow::answer_key(&walk.forward, walk.key.protocol);
    plan_reverse(walk, config);
}

/// Lets both entries be void from the next packet on, see [`decide::moved`].
#[inline(always)]
pub fn poison(walk: &mut Walk) {
    walk.forward.service = decide::NEVER;
    walk.reverse.service = decide::NEVER;
}

/// Lets the flow leave under this port (network byte order) of the masquerade range: in both entries.
#[inline(always)]
pub const fn masquerade(walk: &mut Walk, port: u16) {
    walk.forward.sport = port;
    walk.reverse_key.dport = port;
}

/// A masqueraded flow that decides again keeps its port; 0: it has none.
#[inline(always)]
fn kept_masquerade_port(walk: &Walk, config: &Config) -> u16 {
    let source = masquerade::source(config, walk.is_v6 != 0);
    let had = walk.old != 0
        && walk.masquerade == masquerade::BY_PORT
        && walk.forward.flags & FlowFlags::REWRITE_SRC != 0
        && walk.forward.src == source
        && walk.forward.dst == walk.target
        && walk.forward.dport == walk.target_port;
    if had { walk.forward.sport } else { 0 }
}

/// Whether client and server are the same workload, or both the host: replies must come back through the dataplane.
#[inline(always)]
fn is_hairpin(walk: &Walk) -> bool {
    let host_to_host = walk.sender == Sender::Host as u32 && walk.deliver == Deliver::Host as u8;
    walk.translated != 0 && (walk.target == walk.key.src || host_to_host)
}

/// Addresses, ports and flags of the forward entry.
#[inline(always)]
fn plan_sources(walk: &mut Walk, config: &Config, kept_port: u16) {
    let hairpin = is_hairpin(walk);
    let flow = &mut walk.forward;
    flow.flags = if walk.translated == 0 { 0 } else { FlowFlags::REWRITE_DST };
    if walk.from.here != 0 || walk.from_neighbour != 0 {
        flow.flags |= FlowFlags::CHECK_MAC;
    }
    if walk.own_host != 0 {
        flow.flags |= FlowFlags::FROM_HOST;
    }
    if walk.sender == Sender::Host as u32 && walk.origin != Origin::Own as u8 {
        flow.flags |= FlowFlags::FORWARDED;
    }
    (flow.src, flow.sport) = (walk.key.src, walk.key.sport);
    (flow.dst, flow.dport) = (walk.target, walk.target_port);
    if hairpin {
        flow.flags |= FlowFlags::REWRITE_SRC;
        flow.src = if walk.is_v6 == 0 { HAIRPIN_V4 } else { HAIRPIN_V6 };
    }
    if walk.masquerade != masquerade::NONE {
        flow.flags |= FlowFlags::REWRITE_SRC;
        flow.src = masquerade::source(config, walk.is_v6 != 0);
    }
    if walk.masquerade == masquerade::BY_PORT {
        flow.sport = kept_port;
        if kept_port != 0 {
            walk.masquerade = masquerade::KEPT;
        }
    }
}

#[inline(always)]
fn plan_forward(walk: &mut Walk, config: &Config) {
    let flow = &mut walk.forward;
    if walk.old == 0 {
        (flow.packets, flow.bytes, flow.state) = (0, 0, FlowState::New as u8);
    }
    flow.epoch = walk.epoch;
    flow.last_seen = walk.now;
    flow.deliver = walk.deliver;
    flow.ifindex = walk.ifindex;
    flow.remote = if walk.sender == Sender::Overlay as u32 { walk.tunnel_peer } else { walk.remote };
    flow.dst_mac = if walk.to.here != 0 {
        walk.to.mac
    } else if walk.deliver == Deliver::Host as u8 {
        config.host_mac
    } else {
        GATEWAY_MAC
    };
    flow.sender_mac = walk.sender_mac;
    flow.egress = if walk.from.here != 0 { walk.from.generation } else { GenerationRef::default() };
    flow.ingress = walk.to.generation;
    flow.service = walk.service;
}

#[inline(always)]
fn plan_reverse(walk: &mut Walk, config: &Config) {
    let forward_flags = walk.forward.flags;
    let flow = &mut walk.reverse;
    flow.epoch = walk.epoch;
    flow.flags = FlowFlags::REPLY | (forward_flags & FlowFlags::FROM_HOST);
    if forward_flags & FlowFlags::REWRITE_DST != 0 {
        flow.flags |= FlowFlags::REWRITE_SRC;
    }
    if forward_flags & FlowFlags::REWRITE_SRC != 0 {
        flow.flags |= FlowFlags::REWRITE_DST;
    }
    flow.state = FlowState::New as u8;
    flow.last_seen = walk.now;
    (flow.packets, flow.bytes) = (0, 0);
    (flow.src, flow.sport) = (walk.key.dst, walk.key.dport);
    (flow.dst, flow.dport) = (walk.key.src, walk.key.sport);
    // To the node that encapsulated the packet; of what goes to a node by the tunnel, its answers must come from there.
    flow.remote = if walk.deliver == Deliver::Tunnel as u8 { walk.remote } else { walk.tunnel_peer };
    flow.ingress = walk.forward.egress;
    flow.service = GenerationRef::default();
    (flow.egress, flow.sender_mac) = (GenerationRef::default(), [0; 6]);
    if walk.to.here != 0 {
        flow.flags |= FlowFlags::CHECK_MAC;
        (flow.egress, flow.sender_mac) = (walk.to.generation, walk.to.mac);
    } else if walk.to_neighbour != 0 {
        flow.flags |= FlowFlags::CHECK_MAC;
        flow.sender_mac = walk.remote_mac;
        if walk.remote_mac == [0; 6] {
            // Not known, and a frame may have such an address: whatever answers first is decided on.
            flow.epoch = walk.epoch.wrapping_sub(1);
            flow.service = decide::NEVER;
        }
    }
    way_back(walk, config);
}

/// How replies reach whoever sent the packet.
#[inline(always)]
fn way_back(walk: &mut Walk, config: &Config) {
    let answered_by_host = walk.deliver == Deliver::Host as u8;
    let flow: &mut Flow = &mut walk.reverse;
    flow.dst_mac = GATEWAY_MAC;
    if walk.from.here != 0 {
        flow.deliver = decide::deliver_to(walk.from.kind, answered_by_host) as u8;
        flow.ifindex = walk.key.ifindex;
        flow.dst_mac = walk.from.mac;
    } else if walk.sender == Sender::Host as u32 {
        flow.deliver = Deliver::Host as u8;
        flow.ifindex = config.host_ifindex;
        flow.dst_mac = config.host_mac;
    } else if walk.sender == Sender::Overlay as u32 {
        flow.deliver = Deliver::Tunnel as u8;
        flow.ifindex = config.overlay_ifindex;
    } else {
        flow.deliver = Deliver::Route as u8;
        flow.ifindex = config.uplink_ifindex;
    }
}

/// A walk has no [`Addr`] of its own for the hairpin: both constants are of their family.
const _: () = assert!(HAIRPIN_V4.is_v4() && !HAIRPIN_V6.is_v4() && !Addr::UNSPECIFIED.is_v4());
