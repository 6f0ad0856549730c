// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! ICMP errors (RFC 792, RFC 4443): they belong to the flow of the packet inside, and go back translated both outside and
//! inside (RFC 5508, REQ-4), so that the receiver finds its own packet in it.

use aya_ebpf::bindings::__sk_buff;
use weft_abi::{Addr, Connection, ConnectionFlags, DropReason, Flow, FlowKey6, Hook, WayFlags};
use weft_logic::{
    Frame as _, checksum, flow as life,
    header::{self, ETHERNET, Ethernet, Ipv4, Ipv6, Piece, Transport},
    protocol,
    walk::Walk,
};

use crate::{
    decide,
    family::{Family, V4, V6},
    far::OFFSETS,
    helpers, hook,
    maps::{self, Kernel},
    report, sctp,
    skb::Skb,
    stop::{self, Stop},
    table::{self, Buffer},
    tunnel, walk,
};

/// Bytes of an ICMP or ICMPv6 error before the packet inside.
pub const ERROR_HEADER: usize = 8;

/// A family whose packets can be inside an ICMP error.
pub trait Inner: Family {
    /// [`find`] by a function of its own; 0, or the reason + 1.
    fn find_inner(skb: &Skb, ifindex: u32, offset: u32, hook: u32) -> u32;
    /// [`rewrite`] by a function of its own; 0, or the reason + 1.
    fn rewrite_inner(skb: &Skb, offset: u32) -> u32;
    /// Reads the packet inside at `at` to the walk's `about`, the place of its transport header to `far`.
    fn parse_inner(skb: &Skb, at: usize, walk: &mut Walk) -> Option<()>;
    /// Writes the addresses of the IP header at `ip`, which differ by `diff`, and keeps its checksum; the difference to a
    /// checksum over the header.
    fn write_inner(skb: &Skb, ip: usize, src: &Addr, dst: &Addr, diff: u64) -> Option<u64>;
}

impl Inner for V4 {
    #[inline(always)]
    fn find_inner(skb: &Skb, ifindex: u32, offset: u32, hook: u32) -> u32 {
        weft_find_inner_v4(skb.raw(), ifindex, offset, hook)
    }

    #[inline(always)]
    fn rewrite_inner(skb: &Skb, offset: u32) -> u32 {
        weft_rewrite_inner_v4(skb.raw(), offset)
    }

    #[inline(always)]
    fn parse_inner(skb: &Skb, at: usize, walk: &mut Walk) -> Option<()> {
        let ip: Ipv4 = skb.load(at)?;
        let l4 = at + usize::from(ip.version_ihl & 0xf) * 4;
        // A later piece has no ports to tell its flow by.
        if ip.version_ihl < 0x45 || ip.fragment & 0x1fff_u16.to_be() != 0 {
            return None;
        }
        (walk.about.src, walk.about.dst) = (Addr::v4(ip.src), Addr::v4(ip.dst));
        set_transport(skb, walk, ip.protocol, l4)
    }

    /// Header and checksum: their differences cancel each other but for folding.
    #[inline(always)]
    fn write_inner(skb: &Skb, ip: usize, src: &Addr, dst: &Addr, diff: u64) -> Option<u64> {
        let old: u16 = skb.load(ip + 10)?;
        let new = checksum::update(old, diff);
        let words = [src.v4_word(), dst.v4_word()];
        (helpers::store(skb.raw(), ip + 10, &new) && helpers::store(skb.raw(), ip + 12, &words))
            .then(|| diff + checksum::half_diff(old, new))
    }
}

impl Inner for V6 {
    #[inline(always)]
    fn find_inner(skb: &Skb, ifindex: u32, offset: u32, hook: u32) -> u32 {
        weft_find_inner_v6(skb.raw(), ifindex, offset, hook)
    }

    #[inline(always)]
    fn rewrite_inner(skb: &Skb, offset: u32) -> u32 {
        weft_rewrite_inner_v6(skb.raw(), offset)
    }

    #[inline(always)]
    fn parse_inner(skb: &Skb, at: usize, walk: &mut Walk) -> Option<()> {
        let [_, next_header]: [u16; 2] = skb.load(at + 4)?;
        let [next, _] = next_header.to_ne_bytes();
        walk.about.src = skb.load(at + 8)?;
        walk.about.dst = skb.load(at + 24)?;
        let behind = header::walk_extensions(skb, next, at + size_of::<Ipv6>(), skb.len() as usize).ok()?;
        // A later piece has no ports to tell its flow by.
        if behind.piece == Piece::Later || behind.offset > OFFSETS {
            return None;
        }
        set_transport(skb, walk, behind.protocol, behind.offset & OFFSETS)
    }

    /// There is no header checksum.
    #[inline(always)]
    fn write_inner(skb: &Skb, ip: usize, src: &Addr, dst: &Addr, diff: u64) -> Option<u64> {
        let (src, dst) = (*src, *dst);
        (helpers::store(skb.raw(), ip + 8, &src) && helpers::store(skb.raw(), ip + 24, &dst)).then_some(diff)
    }
}

/// Finds the flow of an error's sender and translates the packet inside. The walk's `forward` is then what the error itself
/// goes on by: as that flow says, but for a router's own source address and for ports, of which it has none.
#[inline(always)]
pub fn translate<F: Inner, const HOOK: u8>(
    skb: &Skb,
    ifindex: u32,
    transport: &Transport,
    decided: bool,
) -> Result<&'static Flow, Stop> {
    report::forget();
    let offset = transport.offset as u32;
    if !decided && look::<F, HOOK>(skb, ifindex, offset).map_err(failed::<HOOK>)? {
        return Err(Stop::Return(walk::ASK_AGAIN));
    }
    stop::check(F::rewrite_inner(skb, offset)).map_err(failed::<HOOK>)?;
    let walk = maps::walk().ok_or(DropReason::Kernel)?;
    if walk.about.protocol == u32::from(protocol::SCTP) {
        stop::check(sctp::weft_keep_inner_sctp(skb.raw(), offset)).map_err(failed::<HOOK>)?;
    }
    Ok(&walk.forward)
}

/// What becomes of an error that cannot be translated: on the uplink it may be the host's own.
#[inline(always)]
pub fn failed<const HOOK: u8>(reason: DropReason) -> Stop {
    if hook::is_shared(HOOK) { Stop::Return(hook::NEXT) } else { reason.into() }
}

/// Finds the flow that the error goes by; whether something has moved since its last packet.
#[inline(always)]
fn look<F: Inner, const HOOK: u8>(skb: &Skb, ifindex: u32, offset: u32) -> Result<bool, DropReason> {
    stop::check(F::find_inner(skb, ifindex, offset, u32::from(HOOK)))?;
    let walk = maps::walk().ok_or(DropReason::Kernel)?;
    table::begin();
    if F::find(&walk.question.key, Buffer::One).is_none() {
        return Err(table::refusal().unwrap_or(DropReason::IcmpUnrelated));
    }
    stop::check(weft_go_by(skb.raw(), u32::from(HOOK)))?;
    let walk = maps::walk().ok_or(DropReason::Kernel)?;
    let has_moved = walk.has_moved != 0;
    if !has_moved && HOOK == Hook::FromOverlay as u8 && !tunnel::is_from(skb, &walk.forward.way.remote) {
        return Err(DropReason::TunnelPeer);
    }
    Ok(has_moved)
}

/// Reads the packet inside: it is the walk's `about`, and its answers are what the walk asks for. Of IPv4; 0, or the reason + 1.
/// Exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_find_inner_v4(skb: *mut __sk_buff, ifindex: u32, offset: u32, hook: u32) -> u32 {
    stop::code(find::<V4>(&Skb::of(skb), ifindex, offset as usize & OFFSETS, hook))
}

/// [`weft_find_inner_v4`] of IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_find_inner_v6(skb: *mut __sk_buff, ifindex: u32, offset: u32, hook: u32) -> u32 {
    stop::code(find::<V6>(&Skb::of(skb), ifindex, offset as usize & OFFSETS, hook))
}

/// Rewrites the packet inside from the walk's `about` to its `about_there`; keeps the inner IPv4 header checksum, the inner
/// transport checksum where it is there, and the error's own checksum right. Of IPv4; 0, or the reason + 1.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_rewrite_inner_v4(skb: *mut __sk_buff, offset: u32) -> u32 {
    stop::code(rewrite::<V4>(&Skb::of(skb), offset as usize & OFFSETS))
}

/// [`weft_rewrite_inner_v4`] of IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_rewrite_inner_v6(skb: *mut __sk_buff, offset: u32) -> u32 {
    stop::code(rewrite::<V6>(&Skb::of(skb), offset as usize & OFFSETS))
}

#[inline(always)]
fn find<F: Inner>(skb: &Skb, ifindex: u32, offset: usize, hook: u32) -> Result<(), DropReason> {
    let ip: F::Header = skb.read(ETHERNET).ok_or(DropReason::Truncated)?;
    let (outer_src, outer_dst) = F::addresses(&F::key(0, &ip, &Transport::default()));
    let walk = maps::walk().ok_or(DropReason::Kernel)?;
    F::parse_inner(skb, offset + ERROR_HEADER, walk).ok_or(DropReason::Truncated)?;
    let from_end = outer_src == walk.about.dst;
    if hook == Hook::FromWorkload as u32 && !from_end {
        return Err(DropReason::SourceAddress);
    }
    ask_for_answers(walk, ifindex);
    if outer_dst != walk.about.src {
        return Err(DropReason::IcmpUnrelated);
    }
    walk.from_end = u8::from(from_end);
    Ok(())
}

/// Takes the flow that was found for the one that the error goes by. 0, or the reason + 1. Exported, and thereby global to the verifier,
/// as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_go_by(skb: *mut __sk_buff, hook: u32) -> u32 {
    stop::code(go_by(&Skb::of(skb), hook))
}

#[inline(always)]
fn go_by(skb: &Skb, hook: u32) -> Result<(), DropReason> {
    let (Some(walk), Some(found)) = (maps::walk(), maps::buffer(Buffer::One as u32)) else {
        return Err(DropReason::Kernel);
    };
    let flow = &found.flow;
    maps::copy(flow, &mut walk.forward);
    let ethernet: Ethernet = skb.read(0).ok_or(DropReason::Truncated)?;
    if hook == Hook::FromWorkload as u32
        && flow.way.flags & WayFlags::CHECK_MAC != 0
        && ethernet.src != walk.forward.way.sender_mac
    {
        return Err(DropReason::SourceMac);
    }
    walk.has_moved = u8::from(!life::stands(&Kernel, &flow.way));
    Ok(())
}

/// Something has moved since the last packet of the error's flow: how it goes on is decided anew, and only if the connection
/// is still what the error is about. 0, or the reason + 1. Exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weft_decide_again(skb: *mut __sk_buff, is_v6: u32, hook: u32) -> u32 {
    let Some(walk) = maps::walk() else { return stop::code(Err(DropReason::Kernel)) };
    walk.question.is_v6 = is_v6 as u8;
    walk.question.tcp_flags = 0;
    let Connection { src, dst, sport, dport, .. } = walk.forward.connection;
    let asked = decide::weft_ask_related(skb, hook);
    let Some(walk) = maps::walk() else { return stop::code(Err(DropReason::Kernel)) };
    let now = &walk.forward.connection;
    let same = (now.src, now.dst) == (src, dst) && (now.sport, now.dport) == (sport, dport);
    if asked == 0 && !same { stop::code(Err(DropReason::IcmpUnrelated)) } else { asked }
}

/// Sets what the packet inside becomes, and how the error itself goes on.
#[inline(always)]
fn plan(walk: &mut Walk) {
    let from_end = walk.from_end != 0;
    let to = &mut walk.forward.connection;
    let (packet, there) = (&walk.about, &mut walk.about_there);
    let has = |flag: u16| to.flags & flag != 0;
    (there.src, there.sport) =
        if has(ConnectionFlags::REWRITE_DST) { (to.dst, to.dport) } else { (packet.src, packet.sport) };
    (there.dst, there.dport) =
        if has(ConnectionFlags::REWRITE_SRC) { (to.src, to.sport) } else { (packet.dst, packet.dport) };
    if !from_end {
        to.flags &= !ConnectionFlags::REWRITE_SRC;
    }
    (to.sport, to.dport) = (0, 0);
}

/// The packets that the error's sender answers the packet inside with: it belongs to their flow.
#[inline(always)]
fn ask_for_answers(walk: &mut Walk, ifindex: u32) {
    let (key, about) = (&mut walk.question.key, &walk.about);
    key.ifindex = ifindex;
    (key.src, key.sport) = (about.dst, about.dport);
    (key.dst, key.dport) = (about.src, about.sport);
    key.protocol = about.protocol;
}

/// Protocol, ports, and the place of the transport header of the packet inside.
#[inline(always)]
fn set_transport(skb: &Skb, walk: &mut Walk, protocol_number: u8, l4: usize) -> Option<()> {
    walk.about.protocol = u32::from(protocol_number);
    walk.about_offset = l4 as u32;
    (walk.about.sport, walk.about.dport) = inner_ports(skb, protocol_number, l4)?;
    Some(())
}

/// Ports of the packet inside; of an echo its identifier, as in flow keys.
#[inline(always)]
fn inner_ports(skb: &Skb, protocol_number: u8, l4: usize) -> Option<(u16, u16)> {
    let [first, second, third, _]: [u16; 4] = skb.load(l4)?;
    let [kind, _] = first.to_ne_bytes();
    match (protocol_number, kind) {
        (protocol::TCP | protocol::UDP | protocol::SCTP, _) => Some((first, second)),
        (protocol::ICMP, 8) | (protocol::ICMPV6, 128) => Some((third, 0)),
        (protocol::ICMP, 0) | (protocol::ICMPV6, 129) => Some((0, third)),
        _ => Some((0, 0)),
    }
}

#[inline(always)]
fn rewrite<F: Inner>(skb: &Skb, offset: usize) -> Result<(), DropReason> {
    let walk = maps::walk().ok_or(DropReason::Kernel)?;
    plan(walk);
    let (packet, change) = (&walk.about, &walk.about_there);
    let (ip, l4) = (offset + ERROR_HEADER, walk.about_offset as usize & 0x7ff);
    let addresses = checksum::addr_diff(&packet.src, &change.src) + checksum::addr_diff(&packet.dst, &change.dst);
    let ports = checksum::half_diff(packet.sport, change.sport) + checksum::half_diff(packet.dport, change.dport);
    let protocol_number = packet.protocol as u8;
    let header = F::write_inner(skb, ip, &change.src, &change.dst, addresses).ok_or(DropReason::Kernel)?;
    write_inner_ports(skb, l4, packet, change).ok_or(DropReason::Kernel)?;
    let inner = update_inner_checksum(skb, l4, protocol_number, addresses, ports).ok_or(DropReason::Kernel)?;
    let diff = checksum::fold32(header + ports + inner);
    if helpers::replace_l4_checksum(skb.raw(), offset + 2, diff, false, false) {
        Ok(())
    } else {
        Err(DropReason::Kernel)
    }
}

#[inline(always)]
fn write_inner_ports(skb: &Skb, l4: usize, packet: &FlowKey6, change: &FlowKey6) -> Option<()> {
    let stored = match packet.protocol as u8 {
        protocol::TCP | protocol::UDP | protocol::SCTP => helpers::store(skb.raw(), l4, &[change.sport, change.dport]),
        protocol::ICMP | protocol::ICMPV6 => {
            let id = if packet.sport != 0 { change.sport } else { change.dport };
            helpers::store(skb.raw(), l4 + 4, &id)
        }
        _ => true,
    };
    stored.then_some(())
}

/// Keeps the inner transport checksum right, where it is there: RFC 792 asks for 8 bytes of the packet's data, so TCP's may
/// be cut off; UDP's may be 0, that is none; of SCTP see `sctp`. The difference that this makes to the error's checksum.
#[inline(always)]
fn update_inner_checksum(skb: &Skb, l4: usize, protocol_number: u8, addresses: u64, ports: u64) -> Option<u64> {
    let (field, has_pseudo_header) = match protocol_number {
        protocol::TCP => (16, true),
        protocol::UDP => (6, true),
        protocol::ICMP => (2, false),
        protocol::ICMPV6 => (2, true),
        _ => return Some(0),
    };
    let old = skb.load::<u16>(l4 + field).unwrap_or(0);
    if old == 0 {
        return Some(0);
    }
    let new = match checksum::update(old, ports + if has_pseudo_header { addresses } else { 0 }) {
        // 0 says that there is none (RFC 768); the same number in ones' complement.
        0 if protocol_number == protocol::UDP => 0xffff,
        sum => sum,
    };
    helpers::store(skb.raw(), l4 + field, &new).then(|| checksum::half_diff(old, new))
}
