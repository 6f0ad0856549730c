// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Time to live: what goes on to another node or the outside passes one router, this node, unless the host sends it. Routes that lead in a
//! circle end so, and whoever traces a route meets the node on it.

use weft_abi::{Deliver, DropReason, Flow, Hook};
use weft_logic::header::Transport;

use crate::{
    family::Family,
    icmp_answer::{self, TIME_EXCEEDED},
    skb::Skb,
    stop::Stop,
};

/// Whether a packet of this hook that goes on by `flow` passes a router here.
#[inline(always)]
pub fn counts<const HOOK: u8>(flow: &Flow) -> bool {
    HOOK != Hook::FromHost as u8 && flow.way.deliver >= Deliver::Tunnel as u8
}

/// Ends a packet whose time is over; its sender is told.
#[inline(always)]
pub fn exceeded<F: Family>(skb: &Skb, transport: &Transport) -> Result<i32, Stop> {
    icmp_answer::tell::<F>(skb, transport, TIME_EXCEEDED, DropReason::HopLimit)
}
