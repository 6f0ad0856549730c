// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Who encapsulated a packet (RFC 7348).

use aya_ebpf::bindings::__sk_buff;
use weft_abi::{Addr, DropReason};
use weft_logic::{Tables as _, admit};

use crate::{
    helpers::{self, Tunnel},
    maps::{self, Kernel},
    skb::Skb,
    stop,
};

/// Writes the node that encapsulated the packet, for Weft's network and towards the address that nodes know, to the walk's
/// `tunnel_peer`.
#[inline(always)]
pub fn find_peer(skb: &Skb) -> Result<(), DropReason> {
    stop::check(weft_find_peer(skb.raw()))
}

/// [`find_peer`], by a function of its own for its stack; 0, or the number of the reason + 1. Global to the verifier, as in
/// `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_find_peer(skb: *mut __sk_buff) -> u32 {
    let tunnel = helpers::tunnel_v4(skb).or_else(|| helpers::tunnel_v6(skb)).filter(is_for_us);
    stop::code(match (tunnel, maps::walk()) {
        (Some(tunnel), Some(walk)) => {
            walk.question.tunnel_peer = tunnel.peer;
            Ok(())
        }
        _ => Err(DropReason::TunnelPeer),
    })
}

/// The VXLAN device listens on all addresses of the node. Those that other nodes do not know they do not keep their workloads
/// from encapsulating to.
#[inline(always)]
fn is_for_us(tunnel: &Tunnel) -> bool {
    let Some(config) = Kernel.config() else { return false };
    tunnel.vni == config.vni && tunnel.local == *admit::known_address(config, !tunnel.local.is_v4())
}

/// Whether `node` encapsulated the packet, as [`find_peer`] says: one helper call, as its family is known.
#[inline(always)]
pub fn is_from(skb: &Skb, node: &Addr) -> bool {
    weft_is_from(skb.raw(), &raw const *node) != 0
}

/// [`is_from`], by a function of its own for its stack; global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_is_from(skb: *mut __sk_buff, node: *const Addr) -> u32 {
    if node.is_null() {
        return 0;
    }
    // SAFETY: the caller's reference; the verifier checked its size.
    let node = unsafe { &*node };
    let tunnel = if node.is_v4() { helpers::tunnel_v4(skb) } else { helpers::tunnel_v6(skb) };
    u32::from(tunnel.is_some_and(|tunnel| tunnel.peer == *node && is_for_us(&tunnel)))
}
