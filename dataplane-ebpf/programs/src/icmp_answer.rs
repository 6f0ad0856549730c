// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! ICMP errors of the node's own (RFC 792, RFC 4443): what its workloads, its host, and those whose packets it forwards are told of
//! them.

use aya_ebpf::bindings::__sk_buff;
use weft_abi::{Addr, Counter, DropReason, GATEWAY_MAC, MARK_DELIVERED};
use weft_logic::{
    Frame as _, Tables as _, checksum,
    header::{ETHERNET, Ethernet, IPV4, IPV6, Ipv4, Ipv6, Kind, Piece, Transport},
    protocol,
};

use crate::{
    deliver,
    family::Family,
    helpers, hook,
    maps::{self, Kernel},
    report,
    share::{self, Tokens},
    skb::Skb,
    stop::{self, Stop},
    tunnel,
};

/// Bytes of an ICMP or ICMPv6 header.
const ICMP: usize = 8;
/// Words of a quoted packet: its IP header, and 8 bytes of its data (RFC 792); of TCP the whole header, because the kernel cuts no
/// packet before the place of a checksum that is still to be made.
const QUOTE4: usize = (IPV4 + 8) / 4;
const QUOTE4_TCP: usize = (IPV4 + 20) / 4;
const QUOTE6: usize = (IPV6 + 8) / 4;
const QUOTE6_TCP: usize = (IPV6 + 20) / 4;

/// What an error is about: the packet has passed as many routers as it may.
pub const TIME_EXCEEDED: u32 = 0;
/// Nobody serves where it goes to; told in the name of the address that was asked.
pub const UNREACHABLE_PORT: u32 = 1;
/// Larger than the way takes (RFC 1191, RFC 8201); from [`MTU_AT`] on how many bytes that is.
pub const TOO_BIG: u32 = 2;
/// The lowest bit of the MTU of [`TOO_BIG`].
pub const MTU_AT: u32 = 16;

/// Type and code of an error, of IPv4 or IPv6.
#[inline(always)]
const fn kind(about: u32, family: usize) -> [u8; 2] {
    const TIME: [[u8; 2]; 2] = [[11, 0], [3, 0]];
    const PORT: [[u8; 2]; 2] = [[3, 3], [1, 4]];
    const SIZE: [[u8; 2]; 2] = [[3, 4], [2, 0]];
    match about & 0xff {
        UNREACHABLE_PORT => PORT[family & 1],
        TOO_BIG => SIZE[family & 1],
        _ => TIME[family & 1],
    }
}

/// What stands in the second word of an error, which ICMP and ICMPv6 have the MTU at the end of.
#[inline(always)]
const fn second_word(about: u32) -> u32 {
    (about >> MTU_AT).to_be()
}

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
    second_word: u32,
}

/// Tells the sender of a packet what it cannot do, within its tokens. Nothing is told of an error, of a later fragment (RFC 1812,
/// 4.3.2.7), and of what has options or extension headers: `otherwise`.
#[inline(always)]
pub fn tell<F: Family>(skb: &Skb, transport: &Transport, about: u32, otherwise: DropReason) -> Result<i32, Stop> {
    let near = ETHERNET + if F::IS_V6 { IPV6 } else { IPV4 };
    if transport.offset != near || transport.piece == Piece::Later || transport.kind != Kind::FLOW || !may_go_back(skb)
    {
        return Err(otherwise.into());
    }
    share::take(skb.ifindex(), Tokens::Answers)?;
    let tcp = u32::from(transport.protocol == protocol::TCP);
    send::<F>(skb, about, tcp)
}

/// As [`tell`], of a packet that may be told of.
#[inline(always)]
pub fn send<F: Family>(skb: &Skb, about: u32, tcp: u32) -> Result<i32, Stop> {
    stop::resume(if F::IS_V6 {
        weft_icmp_error_v6(skb.raw(), about, tcp)
    } else {
        weft_icmp_error_v4(skb.raw(), about, tcp)
    })
}

/// [`answer_v4`], as [`stop::suspend`] says. Exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_icmp_error_v4(skb: *mut __sk_buff, about: u32, tcp: u32) -> u32 {
    let skb = Skb::of(skb);
    stop::suspend(if tcp == 0 { answer_v4::<QUOTE4>(&skb, about) } else { answer_v4::<QUOTE4_TCP>(&skb, about) })
}

/// [`answer_v6`], as [`stop::suspend`] says. Exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_icmp_error_v6(skb: *mut __sk_buff, about: u32, tcp: u32) -> u32 {
    let skb = Skb::of(skb);
    stop::suspend(if tcp == 0 { answer_v6::<QUOTE6>(&skb, about) } else { answer_v6::<QUOTE6_TCP>(&skb, about) })
}

/// Computes the checksums of the IPv4 and the ICMP header anew.
#[inline(always)]
fn answer_v4<const WORDS: usize>(skb: &Skb, about: u32) -> Result<i32, Stop> {
    let node = Kernel.config().ok_or(DropReason::Kernel)?.node_v4;
    let (Some(ethernet), Some(asked)) = (skb.read::<Ethernet>(0), skb.read::<Ipv4>(ETHERNET)) else {
        return Err(DropReason::Truncated.into());
    };
    let quoted = sum::<WORDS>(skb)?;
    let kind = kind(about, 0);
    let src = if about == UNREACHABLE_PORT { asked.dst } else { node.v4_word() };
    if src == 0 {
        return Err(DropReason::NoRoute.into());
    }
    let total = (IPV4 + ICMP + WORDS * 4) as u16;
    let mut ip = Ipv4 {
        version_ihl: 0x45,
        total_len: total.to_be(),
        ttl: HOPS,
        protocol: protocol::ICMP,
        src,
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
    let sum = u64::from(u16::from_ne_bytes(kind)) + u64::from(second_word(about)) + quoted;
    let error = Error {
        dst: ethernet.dst,
        src: ethernet.src,
        ethertype: ethernet.ethertype,
        ip,
        kind,
        checksum: checksum::update(u16::MAX, sum),
        second_word: second_word(about),
    };
    send_back(skb, &error, WORDS * 4)
}

/// Computes the ICMPv6 checksum anew, pseudo header included.
#[inline(always)]
fn answer_v6<const WORDS: usize>(skb: &Skb, about: u32) -> Result<i32, Stop> {
    let node: &Addr = &Kernel.config().ok_or(DropReason::Kernel)?.node_v6;
    let (Some(ethernet), Some(asked)) = (skb.read::<Ethernet>(0), skb.read::<Ipv6>(ETHERNET)) else {
        return Err(DropReason::Truncated.into());
    };
    let quoted = sum::<WORDS>(skb)?;
    let kind = kind(about, 1);
    let src = if about == UNREACHABLE_PORT { &asked.dst } else { node };
    if src.is_unspecified() {
        return Err(DropReason::NoRoute.into());
    }
    let len = (ICMP + WORDS * 4) as u16;
    let ip = Ipv6 {
        version_class_label: 0x6000_0000_u32.to_be(),
        payload_len: len.to_be(),
        next_header: protocol::ICMPV6,
        hop_limit: HOPS,
        src: *src,
        dst: asked.src,
    };
    let sum = checksum::addr_sum(&ip.src)
        + checksum::addr_sum(&ip.dst)
        + u64::from(u32::from(len).to_be())
        + u64::from(u32::from(protocol::ICMPV6).to_be())
        + u64::from(u16::from_ne_bytes(kind))
        + u64::from(second_word(about))
        + quoted;
    let error = Error {
        dst: ethernet.dst,
        src: ethernet.src,
        ethertype: ethernet.ethertype,
        ip,
        kind,
        checksum: checksum::update(u16::MAX, sum),
        second_word: second_word(about),
    };
    send_back(skb, &error, WORDS * 4)
}

/// The sum of the words that are quoted, read where they are: the stack has no room for them.
#[inline(always)]
fn sum<const WORDS: usize>(skb: &Skb) -> Result<u64, DropReason> {
    let words = skb.at::<[u32; WORDS]>(ETHERNET).ok_or(DropReason::Truncated)?;
    let mut sum = 0;
    for index in 0..WORDS {
        // SAFETY: `at` checked the bounds of them all.
        sum += u64::from(unsafe { (*words)[index] });
    }
    Ok(sum)
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
    Ok(BACK)
}

/// Whether what came by this device can be answered by it: without Ethernet addresses, as `l3` has it, it cannot.
#[inline(always)]
pub fn may_go_back(skb: &Skb) -> bool {
    skb.read::<Ethernet>(0).is_some_and(|ethernet| ethernet.src != [0; 6])
}

/// What comes of a packet whose IP addresses are turned round: it goes [`back`], once whoever has turned it has given its stack back.
pub const BACK: i32 = 0x7d;

/// Sends a packet back to whoever sent it.
#[inline(always)]
pub fn back(skb: &Skb) -> i32 {
    let ifindex = skb.ifindex();
    let Some(config) = Kernel.config() else { return hook::DROP };
    // By the overlay all frames have the same Ethernet addresses.
    let turned =
        if config.overlay_ifindex == ifindex { weft_tunnel_back(skb.raw()) } else { weft_turn_frame(skb.raw()) };
    if turned == 0 {
        return hook::DROP;
    }
    if config.host_ifindex == ifindex {
        return helpers::redirect_in(ifindex);
    }
    skb.set_mark(MARK_DELIVERED);
    helpers::redirect_out(ifindex)
}

/// Lets a frame go to who sent it, from the gateway of this node's ports, elsewhere from whom it went to; 0: there is none. Exported, and
/// thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_turn_frame(skb: *mut __sk_buff) -> u32 {
    let skb = Skb::of(skb);
    let Some(asked) = skb.read::<Ethernet>(0) else { return 0 };
    let ifindex = skb.ifindex();
    let is_own = Kernel.port(ifindex).is_some() || Kernel.config().is_some_and(|config| config.host_ifindex == ifindex);
    let written = if is_own {
        deliver::write_macs(&skb, &asked.src, &GATEWAY_MAC)
    } else {
        deliver::write_macs(&skb, &asked.src, &asked.dst)
    };
    u32::from(written.is_ok())
}

/// Lets a packet go to the node that it came from; 0: the kernel refused. Exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_tunnel_back(skb: *mut __sk_buff) -> u32 {
    let found = tunnel::find_peer(&Skb::of(skb));
    let Some(walk) = maps::walk() else { return 0 };
    if found.is_err() { 0 } else { deliver::weft_set_tunnel(skb, &raw const walk.question.tunnel_peer) }
}
