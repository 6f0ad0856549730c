// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Time to live: what a workload sends to another node or the outside passes one router, this node. Routes that lead in a
//! circle end so, and whoever traces a route meets the node on it.

use aya_ebpf::bindings::__sk_buff;
use weft_abi::{Addr, Counter, Deliver, DropReason, Flow, GATEWAY_MAC, Hook, MARK_DELIVERED};
use weft_logic::{
    Frame as _, Tables as _, checksum,
    header::{ETHERNET, Ethernet, IPV4, IPV6, Ipv4, Ipv6, Kind, Piece, Transport},
    protocol,
};

use crate::{
    family::Family,
    helpers,
    maps::Kernel,
    report,
    share::{self, Tokens},
    skb::Skb,
    stop::{self, Stop},
};

/// Bytes of an ICMP or ICMPv6 header.
const ICMP: usize = 8;
/// Words of a quoted packet: its IP header, and 8 bytes of its data (RFC 792); of TCP the whole header, because the kernel cuts no
/// packet before the place of a checksum that is still to be made.
const QUOTE4: usize = (IPV4 + 8) / 4;
const QUOTE4_TCP: usize = (IPV4 + 20) / 4;
const QUOTE6: usize = (IPV6 + 8) / 4;
const QUOTE6_TCP: usize = (IPV6 + 20) / 4;

/// Time exceeded in transit: ICMP type and code (RFC 792), ICMPv6 type and code (RFC 4443, 3.3).
const TIME_EXCEEDED_V4: [u8; 2] = [11, 0];
const TIME_EXCEEDED_V6: [u8; 2] = [3, 0];
/// Time to live of the error itself.
const HOPS: u8 = 64;

/// The headers of an ICMP error, before the packet that it is about.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Error<H> {
    dst: [u8; 6],
    src: [u8; 6],
    ethertype: u16,
    ip: H,
    kind: [u8; 2],
    checksum: u16,
    unused: u32,
}

/// Whether a packet of this hook that goes on by `flow` passes a router here.
#[inline(always)]
pub fn counts<const HOOK: u8>(flow: &Flow) -> bool {
    HOOK == Hook::FromWorkload as u8 && flow.deliver >= Deliver::Tunnel as u8
}

/// Ends a packet whose time is over. Its sender is told, but of an error, of a later fragment (RFC 1812, 4.3.2.7), and of what
/// has options or extension headers.
#[inline(always)]
pub fn exceeded<F: Family>(skb: &Skb, transport: &Transport) -> Result<i32, Stop> {
    let near = ETHERNET + if F::IS_V6 { IPV6 } else { IPV4 };
    if transport.offset != near || transport.piece == Piece::Later || transport.kind != Kind::FLOW {
        return Err(DropReason::HopLimit.into());
    }
    share::take(skb.ifindex(), Tokens::Answers)?;
    let tcp = u32::from(transport.protocol == protocol::TCP);
    stop::resume(if F::IS_V6 { weft_exceeded_v6(skb.raw(), tcp) } else { weft_exceeded_v4(skb.raw(), tcp) })
}

/// [`answer_v4`], as [`stop::suspend`] says. Exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_exceeded_v4(skb: *mut __sk_buff, tcp: u32) -> u32 {
    let skb = Skb::of(skb);
    stop::suspend(if tcp == 0 { answer_v4::<QUOTE4>(&skb) } else { answer_v4::<QUOTE4_TCP>(&skb) })
}

/// [`answer_v6`], as [`stop::suspend`] says. Exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_exceeded_v6(skb: *mut __sk_buff, tcp: u32) -> u32 {
    let skb = Skb::of(skb);
    stop::suspend(if tcp == 0 { answer_v6::<QUOTE6>(&skb) } else { answer_v6::<QUOTE6_TCP>(&skb) })
}

/// Computes the checksums of the IPv4 and the ICMP header anew.
#[inline(always)]
fn answer_v4<const WORDS: usize>(skb: &Skb) -> Result<i32, Stop> {
    let node = Kernel.config().ok_or(DropReason::Kernel)?.node_v4;
    let (Some(ethernet), Some(asked)) = (skb.read::<Ethernet>(0), skb.read::<Ipv4>(ETHERNET)) else {
        return Err(DropReason::Truncated.into());
    };
    let quote: [u32; WORDS] = skb.load(ETHERNET).ok_or(DropReason::HopLimit)?;
    if node.is_unspecified() {
        return Err(DropReason::HopLimit.into());
    }
    let total = (IPV4 + ICMP + WORDS * 4) as u16;
    let mut ip = Ipv4 {
        version_ihl: 0x45,
        total_len: total.to_be(),
        ttl: HOPS,
        protocol: protocol::ICMP,
        src: node.v4_word(),
        dst: asked.src,
        ..Ipv4::default()
    };
    ip.checksum = checksum::update(
        u16::MAX,
        u64::from(u16::from_ne_bytes([ip.version_ihl, ip.tos]))
            + u64::from(ip.total_len)
            + u64::from(u16::from_ne_bytes([ip.ttl, ip.protocol]))
            + u64::from(ip.src)
            + u64::from(ip.dst),
    );
    let sum = u64::from(u16::from_ne_bytes(TIME_EXCEEDED_V4)) + sum(&quote);
    let error = Error {
        dst: ethernet.src,
        src: GATEWAY_MAC,
        ethertype: ethernet.ethertype,
        ip,
        kind: TIME_EXCEEDED_V4,
        checksum: checksum::update(u16::MAX, sum),
        unused: 0,
    };
    send_back(skb, &error, WORDS * 4)
}

/// Computes the ICMPv6 checksum anew, pseudo header included.
#[inline(always)]
fn answer_v6<const WORDS: usize>(skb: &Skb) -> Result<i32, Stop> {
    let node: Addr = Kernel.config().ok_or(DropReason::Kernel)?.node_v6;
    let (Some(ethernet), Some(asked)) = (skb.read::<Ethernet>(0), skb.read::<Ipv6>(ETHERNET)) else {
        return Err(DropReason::Truncated.into());
    };
    let quote: [u32; WORDS] = skb.load(ETHERNET).ok_or(DropReason::HopLimit)?;
    if node.is_unspecified() {
        return Err(DropReason::HopLimit.into());
    }
    let len = (ICMP + WORDS * 4) as u16;
    let ip = Ipv6 {
        version_class_label: 0x6000_0000_u32.to_be(),
        payload_len: len.to_be(),
        next_header: protocol::ICMPV6,
        hop_limit: HOPS,
        src: node,
        dst: asked.src,
    };
    let sum = checksum::addr_sum(&ip.src)
        + checksum::addr_sum(&ip.dst)
        + u64::from(u32::from(len).to_be())
        + u64::from(u32::from(protocol::ICMPV6).to_be())
        + u64::from(u16::from_ne_bytes(TIME_EXCEEDED_V6))
        + sum(&quote);
    let error = Error {
        dst: ethernet.src,
        src: GATEWAY_MAC,
        ethertype: ethernet.ethertype,
        ip,
        kind: TIME_EXCEEDED_V6,
        checksum: checksum::update(u16::MAX, sum),
        unused: 0,
    };
    send_back(skb, &error, WORDS * 4)
}

#[inline(always)]
fn sum<const WORDS: usize>(words: &[u32; WORDS]) -> u64 {
    words.iter().map(|word| u64::from(*word)).sum()
}

/// Puts the error's headers before the packet, which is cut to the `quoted` bytes behind its Ethernet header.
#[inline(always)]
fn send_back<H: Copy>(skb: &Skb, error: &Error<H>, quoted: usize) -> Result<i32, Stop> {
    let headers = size_of::<Error<H>>();
    if !helpers::resize(skb.raw(), (ETHERNET + quoted) as u32)
        || !helpers::grow_head(skb.raw(), (headers - ETHERNET) as u32)
    {
        return Err(DropReason::Kernel.into());
    }
    let frame = skb.at::<Error<H>>(0).ok_or(DropReason::Kernel)?;
    // SAFETY: `at` checked the bounds.
    unsafe { *frame = *error };
    report::count(Counter::IcmpAnswered);
    skb.set_mark(MARK_DELIVERED);
    Ok(helpers::redirect_out(skb.ifindex()))
}
