// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Packets that are larger than the way out of the node takes: their sender is told, as by a router, so that it sends smaller ones.

use aya_ebpf::bindings::__sk_buff;
use weft_abi::{DropReason, Flow};
use weft_logic::{
    Frame as _, Tables as _,
    header::{ETHERNET, Transport},
};

use crate::{
    family::Family,
    helpers,
    icmp_answer::{self, MTU_AT, TOO_BIG},
    maps::Kernel,
    skb::Skb,
    stop::Stop,
};

/// Bytes of a frame that every way takes: those of the smallest MTU of IPv6 (RFC 8200, 5).
const SMALL: u32 = ETHERNET as u32 + 1280;

/// The MTU that a packet which leaves the node by `flow` exceeds; 0: it fits. What the kernel cuts into segments anyway does.
#[inline(always)]
pub fn exceeded(skb: &Skb, flow: &Flow) -> u32 {
    if skb.len() <= SMALL || skb.gso_size() != 0 {
        return 0;
    }
    weft_exceeded_mtu(skb.raw(), flow.ifindex)
}

/// [`exceeded`], by a function of its own for its stack; global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_exceeded_mtu(skb: *mut __sk_buff, ifindex: u32) -> u32 {
    let Some(config) = Kernel.config() else { return 0 };
    let len = Skb::of(skb).len().saturating_sub(ETHERNET as u32);
    if config.mtu == 0 || len <= u32::from(config.mtu) {
        return 0;
    }
    helpers::exceeded_mtu(skb, ifindex, len).unwrap_or(0)
}

/// Ends a packet that is too big, and tells its sender; one of IPv4 that routers may cut is dropped: they would have to.
#[inline(always)]
pub fn refuse<F: Family>(skb: &Skb, ip: &F::Header, transport: &Transport, mtu: u32) -> Result<i32, Stop> {
    if F::may_be_cut(ip) {
        return Err(DropReason::TooBig.into());
    }
    icmp_answer::tell::<F>(skb, transport, TOO_BIG | mtu << MTU_AT, DropReason::TooBig)
}
