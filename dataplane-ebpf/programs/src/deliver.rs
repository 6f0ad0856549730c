// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Sending a decided packet on.

use aya_ebpf::bindings::__sk_buff;
use weft_abi::{Addr, Deliver, DropReason, Flow, GATEWAY_MAC, MARK_DELIVERED, OVERLAY_MAC, WayFlags};
use weft_logic::{
    Frame as _, Tables as _,
    header::{ETHERNET, ethertype},
};

use crate::{helpers, hook, maps::Kernel, skb::Skb};

/// Destination and source of an Ethernet header as halves: three stores each instead of six.
#[repr(C)]
struct Macs {
    dst: [u16; 3],
    src: [u16; 3],
}

/// Writes the Ethernet addresses and redirects the packet as the flow says; the program's return value.
#[inline(always)]
pub fn deliver(skb: &Skb, flow: &Flow) -> Result<i32, DropReason> {
    let kind = flow.way.deliver;
    let ifindex = flow.way.ifindex;
    let by_routes = flow.way.flags & WayFlags::BY_ROUTES != 0;
    if kind == Deliver::Route as u8 && (by_routes || flow.way.remote.is_unspecified()) {
        return Ok(helpers::redirect_route(ifindex));
    }
    if kind == Deliver::Neighbour as u8 || kind == Deliver::Route as u8 {
        return Ok(weft_redirect_neighbour(ifindex, &raw const flow.way.remote));
    }
    let from = if kind == Deliver::Tunnel as u8 { OVERLAY_MAC } else { GATEWAY_MAC };
    write_macs(skb, &flow.way.dst_mac, &from)?;
    if kind == Deliver::Peer as u8 {
        if !skb.is_for_host() && !helpers::set_packet_type(skb.raw(), helpers::PACKET_HOST) {
            return Err(DropReason::Kernel);
        }
        return Ok(helpers::redirect_peer(ifindex));
    }
    if kind == Deliver::Host as u8 {
        return Ok(helpers::redirect_in(ifindex));
    }
    if kind == Deliver::Tunnel as u8 {
        if weft_set_tunnel(skb.raw(), &raw const flow.way.remote) == 0 {
            return Err(DropReason::Kernel);
        }
        return Ok(helpers::redirect_out(ifindex));
    }
    skb.set_mark(MARK_DELIVERED);
    Ok(helpers::redirect_out(ifindex))
}

/// [`helpers::redirect_neighbour`], by a function of its own for its stack; global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_redirect_neighbour(ifindex: u32, next_hop: *const Addr) -> i32 {
    if next_hop.is_null() {
        return hook::DROP;
    }
    // SAFETY: the caller's reference; the verifier checked its size.
    let next_hop = unsafe { *next_hop };
    helpers::redirect_neighbour(ifindex, &next_hop)
}

/// [`helpers::set_tunnel`] with the node's network identifier; 0: the kernel refused.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weft_set_tunnel(skb: *mut __sk_buff, remote: *const Addr) -> u32 {
    if remote.is_null() {
        return 0;
    }
    let vni = Kernel.config().map_or(0, |config| config.vni);
    // SAFETY: the caller's reference; the verifier checked its size.
    let remote = unsafe { *remote };
    u32::from(helpers::set_tunnel(skb, vni, class(&Skb::of(skb)), &remote))
}

/// The class of service (DSCP, RFC 2474) of an IP packet, where the byte of IPv4 has it: the network between nodes sees it as well. The
/// bits of congestion beside it are the VXLAN driver's (RFC 6040).
#[inline(always)]
fn class(skb: &Skb) -> u8 {
    const IPV6: u16 = ethertype::IPV6.to_be();
    let Some([first, second]) = skb.read::<[u8; 2]>(ETHERNET) else { return 0 };
    let byte = if skb.protocol() == IPV6 { first << 4 | second >> 4 } else { second };
    byte & 0xfc
}

/// Writes the Ethernet addresses.
#[inline(always)]
pub fn write_macs(skb: &Skb, dst: &[u8; 6], src: &[u8; 6]) -> Result<(), DropReason> {
    let macs = skb.at::<Macs>(0).ok_or(DropReason::Truncated)?;
    // SAFETY: `at` checked the bounds; a Flow's addresses are at even offsets.
    unsafe {
        (*macs).dst = halves(dst);
        (*macs).src = halves(src);
    }
    Ok(())
}

#[inline(always)]
fn halves(mac: &[u8; 6]) -> [u16; 3] {
    // SAFETY: same size; BPF loads need no alignment on the targets' JITs.
    unsafe { *core::ptr::from_ref(mac).cast::<[u16; 3]>() }
}
