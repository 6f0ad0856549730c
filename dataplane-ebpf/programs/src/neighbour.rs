// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! ICMPv6 that never leaves a link: neighbour solicitations are answered for everybody (RFC 4861, RFC 4389), router
//! solicitations of VMs go to the agent, the rest ends here.

use aya_ebpf::bindings::__sk_buff;
use weft_abi::{Addr, Counter, DropReason, GATEWAY_MAC, Hook};
use weft_logic::{
    Frame as _, Tables as _, address, admit, checksum,
    header::{ETHERNET, Ethernet, IPV6, Ipv6, icmp},
    protocol,
    walk::{Sender, Walk},
};

use crate::{
    decide, helpers, hook,
    maps::{self, Kernel},
    report,
    share::{self, Tokens},
    skb::Skb,
    stop::{self, Stop},
};

/// A neighbour solicitation before its options (RFC 4861, 4.3).
#[repr(C)]
#[derive(Clone, Copy)]
struct Solicitation {
    kind: u8,
    code: u8,
    checksum: u16,
    flags: u32,
    target: Addr,
}

/// A neighbour advertisement with the target's link-layer address (RFC 4861, 4.4).
#[repr(C)]
#[derive(Clone, Copy)]
struct Advertisement {
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
const ADVERTISEMENT_LEN: u16 = size_of::<Advertisement>() as u16;
const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;
/// Router, solicited, override.
const ANSWER_FLAGS: u32 = 0xe000_0000_u32.to_be();
/// Options of a solicitation that are looked at.
const MAX_OPTIONS: u32 = 8;
/// `ff02::2` (RFC 4291, 2.7.1) and the link-local address of the gateway.
const ALL_ROUTERS: Addr = Addr::from_octets([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
const GATEWAY: Addr = Addr::from_octets([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// Handles link-local ICMPv6 of type `kind`.
#[inline(always)]
pub fn handle<const HOOK: u8>(skb: &Skb, kind: u8) -> Result<i32, Stop> {
    report::forget();
    if HOOK != Hook::FromWorkload as u8 {
        return Err(if hook::is_shared(HOOK) { Stop::Return(hook::NEXT) } else { DropReason::Multicast.into() });
    }
    match kind {
        icmp::NEIGHBOUR_SOLICITATION => stop::resume(weft_answer_neighbour(skb.raw())),
        icmp::ROUTER_SOLICITATION => stop::resume(weft_solicit_router(skb.raw())),
        _ => Err(DropReason::Multicast.into()),
    }
}

/// [`solicit_router`], as [`stop::suspend`] says. Exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_solicit_router(skb: *mut __sk_buff) -> u32 {
    stop::suspend(solicit_router(&Skb::of(skb)))
}

/// RFC 4861, 6.1.1. Behind an extension header it would be something else, and so it would be to a router.
#[inline(always)]
fn solicit_router(skb: &Skb) -> Result<i32, Stop> {
    let ethernet: Ethernet = skb.read(0).ok_or(DropReason::Truncated)?;
    let ip: Ipv6 = skb.read(ETHERNET).ok_or(DropReason::Truncated)?;
    let walk: &mut Walk = maps::walk().ok_or(DropReason::Kernel)?;
    if (ip.next_header, ip.hop_limit) != (protocol::ICMPV6, 255) {
        return Err(DropReason::BadHeader.into());
    }
    if ip.dst != ALL_ROUTERS && ip.dst != GATEWAY {
        return Err(DropReason::Multicast.into());
    }
    if !address::is_link_local_v6(&ip.src) && !ip.src.is_unspecified() {
        return Err(DropReason::SourceAddress.into());
    }
    walk.question.key.ifindex = skb.ifindex();
    walk.question.sender_mac = ethernet.src;
    walk.question.sender = Sender::Workload as u32;
    Err(decide::guest_configuration(skb, walk))
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
    skb.pull_headers::<{ OFFSET + size_of::<Solicitation>() }>();
    let ethernet: Ethernet = skb.read(0).ok_or(DropReason::Truncated)?;
    let ip: Ipv6 = skb.read(ETHERNET).ok_or(DropReason::Truncated)?;
    let port = Kernel.port(skb.ifindex()).ok_or(DropReason::UnknownPort)?;
    let is_own = |addr: &Addr| admit::leads_to(Kernel.owner(port.net, addr), skb.ifindex());
    if ethernet.src != port.mac || !(is_own(&ip.src) || address::is_link_local_v6(&ip.src) || ip.src.is_unspecified()) {
        return Err(DropReason::ArpSpoofed.into());
    }
    // Duplicate address detection (RFC 4862) asks from the unspecified address and wants silence.
    if ip.src.is_unspecified() {
        return Err(Stop::Return(hook::DROP));
    }
    let asked: Solicitation = skb.read(OFFSET).ok_or(DropReason::Truncated)?;
    // RFC 4861 7.1.1; and behind an extension header this would be something else.
    let header = (ip.next_header, ip.hop_limit, asked.kind, asked.code);
    if header != (protocol::ICMPV6, 255, icmp::NEIGHBOUR_SOLICITATION, 0) {
        return Err(DropReason::BadHeader.into());
    }
    check_options(skb, &ip, &port.mac)?;
    if is_own(&asked.target) {
        return Err(Stop::Return(hook::DROP));
    }
    share::take(skb.ifindex(), Tokens::Answers)?;
    write_answer(skb, &ip, &asked.target, port.mac)?;
    report::count(Counter::ArpAnswered);
    skb.set_mark(weft_abi::MARK_DELIVERED);
    Ok(helpers::redirect_out(skb.ifindex()))
}

/// The source's link-layer address may be missing (a unicast solicitation) or come behind other options; where it is, it is
/// the port's.
#[inline(always)]
fn check_options(skb: &Skb, ip: &Ipv6, mac: &[u8; 6]) -> Result<(), DropReason> {
    let end = OFFSET + usize::from(u16::from_be(ip.payload_len));
    let mut offset = OFFSET + size_of::<Solicitation>();
    for _ in 0..MAX_OPTIONS {
        if offset >= end {
            break;
        }
        let option: [u8; 8] = skb.load(offset).ok_or(DropReason::Truncated)?;
        let [kind, len, address @ ..] = option;
        if len == 0 {
            return Err(DropReason::BadHeader);
        }
        if kind == SOURCE_LINK_ADDRESS && (len != 1 || address != *mac) {
            return Err(DropReason::ArpSpoofed);
        }
        offset += usize::from(len) * 8;
    }
    if offset == end { Ok(()) } else { Err(DropReason::BadHeader) }
}

/// Writes the advertisement for `target` over the solicitation, whatever length that had; computes the ICMPv6 checksum anew,
/// pseudo header included (RFC 4443, 2.3).
#[inline(always)]
fn write_answer(skb: &Skb, ip: &Ipv6, target: &Addr, mac: [u8; 6]) -> Result<(), DropReason> {
    let mut reply = Advertisement {
        kind: ADVERTISEMENT,
        code: 0,
        checksum: 0,
        flags: ANSWER_FLAGS,
        target: *target,
        option: TARGET_LINK_ADDRESS,
        option_len: 1,
        mac: GATEWAY_MAC,
    };
    let header = Ipv6 { src: *target, dst: ip.src, hop_limit: 255, payload_len: ADVERTISEMENT_LEN.to_be(), ..*ip };
    reply.checksum = advertisement_checksum(&header, &reply);
    if !helpers::resize(skb.raw(), OFFSET as u32 + u32::from(ADVERTISEMENT_LEN)) {
        return Err(DropReason::Kernel);
    }
    skb.pull_headers::<{ OFFSET + size_of::<Advertisement>() }>();
    let ethernet = skb.at::<[[u8; 6]; 2]>(0).ok_or(DropReason::Truncated)?;
    // SAFETY: `at` checked the bounds.
    unsafe { *ethernet = [mac, GATEWAY_MAC] };
    let at = skb.at::<Ipv6>(ETHERNET).ok_or(DropReason::Truncated)?;
    // SAFETY: `at` checked the bounds.
    unsafe { *at = header };
    let at = skb.at::<Advertisement>(OFFSET).ok_or(DropReason::Truncated)?;
    // SAFETY: `at` checked the bounds.
    unsafe { *at = reply };
    Ok(())
}

/// The checksum of a message whose own is 0, under this header.
#[inline(always)]
fn advertisement_checksum(ip: &Ipv6, message: &Advertisement) -> u16 {
    let [a, b, c, d, e, f] = message.mac;
    let sum = checksum::addr_sum(&ip.src)
        + checksum::addr_sum(&ip.dst)
        + u64::from(u32::from(ADVERTISEMENT_LEN).to_be())
        + u64::from(u32::from(protocol::ICMPV6).to_be())
        + u64::from(u32::from_ne_bytes([message.kind, message.code, 0, 0]))
        + u64::from(message.flags)
        + checksum::addr_sum(&message.target)
        + u64::from(u32::from_ne_bytes([message.option, message.option_len, a, b]))
        + u64::from(u32::from_ne_bytes([c, d, e, f]));
    checksum::update(u16::MAX, sum)
}
