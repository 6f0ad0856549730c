// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! ICMPv6 that never leaves a link: neighbour solicitations are answered for everybody (RFC 4861, RFC 4389), router
//! solicitations of VMs go to the agent, the rest ends here.

use aya_ebpf::bindings::__sk_buff;
use weft_abi::{Addr, Counter, DropReason, GATEWAY_MAC, Hook};
use weft_logic::{
    Frame as _, Tables as _, address, checksum,
    decide::{Sender, Walk},
    header::{ETHERNET, Ethernet, IPV6, Ipv6, icmp},
    protocol,
};

use crate::{
    decide, helpers, hook,
    maps::{self, Kernel},
    report,
    share::{self, Tokens},
    skb::Skb,
    stop::{self, Stop},
};

/// A neighbour message with one link-layer address option: 32 bytes behind the IPv6 header.
#[repr(C)]
#[derive(Clone, Copy)]
struct Neighbour {
    kind: u8,
    code: u8,
    checksum: u16,
    flags: u32,
    target: Addr,
    option: u8,
    option_len: u8,
    mac: [u8; 6],
}

const OFFSET: usize = ETHERNET + IPV6;
const ADVERTISEMENT: u8 = 136;
const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;
/// Router, solicited, override.
const ANSWER_FLAGS: u32 = 0xe000_0000_u32.to_be();

/// Handles link-local ICMPv6 of type `kind`.
#[inline(always)]
pub fn handle<const HOOK: u8>(skb: &Skb, kind: u8) -> Result<i32, Stop> {
    report::forget();
    if HOOK != Hook::FromWorkload as u8 {
        return Err(Stop::Return(if hook::is_shared(HOOK) { hook::NEXT } else { hook::DROP }));
    }
    match kind {
        icmp::NEIGHBOUR_SOLICITATION => stop::resume(weft_answer_neighbour(skb.raw())),
        icmp::ROUTER_SOLICITATION => Err(solicit_router(skb)),
        _ => Err(DropReason::Multicast.into()),
    }
}

#[inline(always)]
fn solicit_router(skb: &Skb) -> Stop {
    let (Some(walk), Some(ethernet)) = (maps::walk(), skb.read::<Ethernet>(0)) else {
        return Stop::Drop(DropReason::Truncated);
    };
    let walk: &mut Walk = walk;
    walk.key.ifindex = skb.ifindex();
    walk.sender_mac = ethernet.src;
    walk.sender = Sender::Workload as u32;
    decide::guest_configuration(walk)
}

/// [`answer`], as [`stop::suspend`] says. Exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_answer_neighbour(skb: *mut __sk_buff) -> u32 {
    stop::suspend(answer(&Skb::of(skb)))
}

/// Turns a solicitation into its advertisement and sends it back.
#[inline(always)]
fn answer(skb: &Skb) -> Result<i32, Stop> {
    skb.pull_headers::<{ OFFSET + core::mem::size_of::<Neighbour>() }>();
    let ethernet: Ethernet = skb.read(0).ok_or(DropReason::Truncated)?;
    let ip: Ipv6 = skb.read(ETHERNET).ok_or(DropReason::Truncated)?;
    let port = Kernel.port(skb.ifindex()).ok_or(DropReason::UnknownPort)?;
    if ethernet.src != port.mac || !(ip.src == port.v6 || address::is_link_local_v6(&ip.src) || ip.src.is_unspecified())
    {
        return Err(DropReason::ArpSpoofed.into());
    }
    // Duplicate address detection (RFC 4862) asks from the unspecified address and wants silence.
    if ip.src.is_unspecified() {
        return Err(Stop::Return(hook::DROP));
    }
    let asked: Neighbour = skb.read(OFFSET).ok_or(DropReason::Truncated)?;
    // RFC 4861 7.1.1; and behind an extension header this would be something else.
    let header = (ip.next_header, ip.hop_limit, asked.kind, asked.code);
    if header != (protocol::ICMPV6, 255, icmp::NEIGHBOUR_SOLICITATION, 0) {
        return Err(DropReason::BadHeader.into());
    }
    if asked.option != SOURCE_LINK_ADDRESS || asked.option_len != 1 || asked.mac != port.mac {
        return Err(DropReason::ArpSpoofed.into());
    }
    if asked.target == port.v6 {
        return Err(Stop::Return(hook::DROP));
    }
    share::take(skb.ifindex(), Tokens::Answers)?;
    write_answer(skb, &ip, &asked, port.mac)?;
    report::count(Counter::ArpAnswered);
    skb.set_mark(weft_abi::MARK_DELIVERED);
    Ok(helpers::redirect_out(skb.ifindex()))
}

/// Writes the advertisement over the solicitation; keeps the ICMPv6 checksum right by the difference of every changed field,
/// the pseudo header's addresses included.
#[inline(always)]
fn write_answer(skb: &Skb, ip: &Ipv6, asked: &Neighbour, mac: [u8; 6]) -> Result<(), DropReason> {
    let mut reply = *asked;
    reply.kind = ADVERTISEMENT;
    reply.flags = ANSWER_FLAGS;
    reply.option = TARGET_LINK_ADDRESS;
    reply.mac = GATEWAY_MAC;
    let diff = checksum::addr_diff(&ip.src, &asked.target)
        + checksum::addr_diff(&ip.dst, &ip.src)
        + checksum::half_diff(
            u16::from_ne_bytes([asked.kind, asked.code]),
            u16::from_ne_bytes([reply.kind, reply.code]),
        )
        + checksum::word_diff(asked.flags, reply.flags)
        + checksum::half_diff(
            u16::from_ne_bytes([asked.option, asked.option_len]),
            u16::from_ne_bytes([reply.option, reply.option_len]),
        )
        + mac_diff(&asked.mac, &reply.mac);
    reply.checksum = checksum::update(asked.checksum, diff);
    let header = Ipv6 { src: asked.target, dst: ip.src, hop_limit: 255, ..*ip };
    let ethernet = skb.at::<[[u8; 6]; 2]>(0).ok_or(DropReason::Truncated)?;
    // SAFETY: `at` checked the bounds.
    unsafe { *ethernet = [mac, GATEWAY_MAC] };
    let at = skb.at::<Ipv6>(ETHERNET).ok_or(DropReason::Truncated)?;
    // SAFETY: `at` checked the bounds.
    unsafe { *at = header };
    let at = skb.at::<Neighbour>(OFFSET).ok_or(DropReason::Truncated)?;
    // SAFETY: `at` checked the bounds.
    unsafe { *at = reply };
    Ok(())
}

#[inline(always)]
fn mac_diff(old: &[u8; 6], new: &[u8; 6]) -> u64 {
    let half = |mac: &[u8; 6], index: usize| u16::from_ne_bytes([mac[index], mac[index + 1]]);
    checksum::half_diff(half(old, 0), half(new, 0))
        + checksum::half_diff(half(old, 2), half(new, 2))
        + checksum::half_diff(half(old, 4), half(new, 4))
}
