// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Packets that are larger than the way out of the node takes: their sender is told, as by a router, so that it sends smaller ones.
//!
//! What routers may cut is cut: a program cannot make several packets of one, so the host's own IP stack does it. Towards nodes by
//! tunnel it cuts what encapsulates the packet, and the other node puts that together. Elsewhere the packet, decided on and
//! translated, comes in by `weft0` as if from a host there, and the stack forwards it by the routes that the decision was made
//! of; `from_host` does not see it, it leaves by another device. Filters of the host for forwarded packets see it. Where a datagram
//! comes in pieces, all of them take the way of the first one that is too big: the stack may wait for them all.

use aya_ebpf::bindings::__sk_buff;
use weft_abi::{Addr, Deliver, DropReason, Flow, GATEWAY_MAC};
use weft_logic::{
    Frame as _, Tables as _, fragment,
    header::{ETHERNET, Piece, Transport},
    protocol,
};

use crate::{
    deliver,
    family::Family,
    far, helpers,
    icmp_answer::{self, MTU_AT, TOO_BIG},
    maps::{self, Kernel},
    share::{self, Tokens},
    skb::Skb,
    stop::{self, Stop},
};

/// Bytes of a frame that every way takes: those of the smallest MTU of IPv6 (RFC 8200, 5).
const SMALL: u32 = ETHERNET as u32 + 1280;

/// Bytes of the headers before a TCP segment's data, with all of their options, but for extension headers of IPv6.
const TCP_HEADERS: u32 = 60 + 60;

/// The MTU that a packet which leaves the node by `flow` exceeds; 0: it fits. Where the kernel is to cut it into segments of TCP,
/// each of these; of other ones the sender knows the size as well as the kernel.
#[inline(always)]
pub fn exceeded(skb: &Skb, flow: &Flow, transport: &Transport) -> u32 {
    let segment = skb.gso_size();
    if segment == 0 && skb.len() <= SMALL
        || segment != 0 && (transport.protocol != protocol::TCP || segment + TCP_HEADERS <= SMALL - ETHERNET as u32)
    {
        return 0;
    }
    weft_exceeded_mtu(skb.raw(), flow.way.ifindex, segment, transport.offset as u32)
}

/// [`exceeded`], by a function of its own for its stack; `header`: where that of TCP is. Global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_exceeded_mtu(skb: *mut __sk_buff, ifindex: u32, segment: u32, header: u32) -> u32 {
    let Some(config) = Kernel.config() else { return 0 };
    let packet = Skb::of(skb);
    let frame = if segment == 0 {
        packet.len()
    } else {
        let words = packet.load::<u8>(header as usize + 12).unwrap_or(0) >> 4;
        header + u32::from(words) * 4 + segment
    };
    let len = frame.saturating_sub(ETHERNET as u32);
    if config.mtu == 0 || len <= u32::from(config.mtu) {
        return 0;
    }
    let device = helpers::mtu(skb, ifindex).filter(|mtu| len > *mtu).unwrap_or(0);
    let most = u32::from(config.workload_mtu);
    if most != 0 && len > most && (device == 0 || most < device) { most } else { device }
}

/// Whether a piece that fits goes by the host's stack all the same, because those of its datagram before it did: a stack that tracks
/// connections holds pieces until it has them all.
#[inline(always)]
pub fn follows(transport: &Transport, flow: &Flow) -> bool {
    transport.piece == Piece::Later
        && flow.way.deliver != Deliver::Tunnel as u8
        && maps::walk().is_some_and(|walk| walk.by_stack != 0)
}

/// Bytes of a frame that fit a datagram of the underlay, its headers and those of VXLAN included.
const ENCAPSULATED: u32 = 0xffff - 40 - 8 - 8;

/// Lets a packet that is too big, or [`follows`] such a one, go on in pieces, within its port's share; whether by the host's stack ([`hand_over`]): then it is
/// the first piece of its datagram from here on, and masqueraded as that, see `far`.
#[inline(always)]
pub fn cut(skb: &Skb, flow: &Flow, transport: &mut Transport) -> Result<bool, DropReason> {
    let by_tunnel = flow.way.deliver == Deliver::Tunnel as u8;
    let whole = transport.piece == Piece::Whole;
    let protocol = u32::from(transport.protocol);
    stop::check(weft_may_cut(skb.raw(), u32::from(by_tunnel), u32::from(whole), protocol))?;
    if !by_tunnel && whole {
        transport.piece = Piece::First;
    }
    Ok(!by_tunnel)
}

/// 0, or the number of the reason + 1. Exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_may_cut(skb: *mut __sk_buff, by_tunnel: u32, whole: u32, protocol: u32) -> u32 {
    let skb = Skb::of(skb);
    if by_tunnel != 0 && skb.len() > ENCAPSULATED {
        return stop::code(Err(DropReason::TooBig));
    }
    if whole != 0 {
        let (Some(walk), Some(destination)) = (maps::walk(), skb.load::<u32>(ETHERNET + 16)) else {
            return stop::code(Err(DropReason::Kernel));
        };
        walk.masqueraded_id = far::next_identifier(fragment::destination(&Addr::v4(destination), protocol));
    } else if by_tunnel == 0
        && let Some(walk) = maps::walk()
    {
        far::follow_by_stack(walk);
    }
    stop::code(share::take(skb.ifindex(), Tokens::Fragments))
}

/// Gives a packet that is rewritten, but for its time to live, to the host's stack.
#[inline(always)]
pub fn hand_over(skb: &Skb) -> Result<i32, Stop> {
    stop::resume(weft_hand_over(skb.raw()))
}

/// [`hand_over`], as [`stop::suspend`] says. Exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_hand_over(skb: *mut __sk_buff) -> u32 {
    let Some(config) = Kernel.config() else { return stop::suspend(Err(DropReason::Kernel.into())) };
    let written = deliver::write_macs(&Skb::of(skb), &config.host_mac, &GATEWAY_MAC);
    stop::suspend(match written {
        Ok(()) => Ok(helpers::redirect_in(config.host_ifindex)),
        Err(reason) => Err(reason.into()),
    })
}

/// Ends a packet that is too big, and tells its sender.
#[inline(always)]
pub fn refuse<F: Family>(skb: &Skb, transport: &Transport, mtu: u32) -> Result<i32, Stop> {
    icmp_answer::tell::<F>(skb, transport, TOO_BIG | mtu << MTU_AT, DropReason::TooBig)
}
