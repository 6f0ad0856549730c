// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Who encapsulated a packet (RFC 7348).

use aya_ebpf::bindings::__sk_buff;
use weft_abi::{Addr, DropReason};
use weft_logic::Tables as _;

use crate::{helpers, maps::Kernel, skb::Skb};

/// The node that encapsulated the packet, for Weft's network.
#[inline(always)]
pub fn peer(skb: &Skb) -> Result<Addr, DropReason> {
    let (peer, vni) = helpers::tunnel_peer(skb.raw()).ok_or(DropReason::TunnelPeer)?;
    if Kernel.config().is_some_and(|config| config.vni == vni) { Ok(peer) } else { Err(DropReason::TunnelPeer) }
}

/// Whether `node` encapsulated the packet, for Weft's network: one helper call, as its family is known.
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
    let Some(config) = Kernel.config() else { return 0 };
    let found = if node.is_v4() { helpers::tunnel_peer_v4(skb) } else { helpers::tunnel_peer_v6(skb) };
    u32::from(found.is_some_and(|(peer, vni)| vni == config.vni && peer == *node))
}
