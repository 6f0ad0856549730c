// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Rewriting addresses and ports. Direct writes come first: the checksum helper makes packet pointers void.

use weft_abi::{Addr, Connection, ConnectionFlags, Deliver, DropReason, Flow};
use weft_logic::{
    checksum::{self, Summed},
    header::{ETHERNET, IPV4, IPV6, Ipv4, Ipv6, Piece, Transport},
    protocol,
};

use crate::{far, helpers, maps, sctp, skb::Skb, stop};

const BOTH: u16 = ConnectionFlags::REWRITE_SRC | ConnectionFlags::REWRITE_DST;

/// What a packet is rewritten by.
#[derive(Clone, Copy)]
pub struct Rewrite<'f> {
    /// Its addresses and ports afterwards.
    pub flow: &'f Flow,
    /// It passes a router here.
    pub hop: bool,
    /// Who has summed it up.
    pub summed: Summed,
}

/// Rewrites an IPv4 packet, and takes one from its time to live where it makes a hop; keeps the IPv4 header checksum and the
/// transport's checksum right.
#[inline(always)]
pub fn ipv4(skb: &Skb, ip: &Ipv4, transport: &Transport, rewrite: Rewrite<'_>) -> Result<(), DropReason> {
    let Rewrite { flow, hop, .. } = rewrite;
    let to = &flow.connection;
    if to.flags & BOTH == 0 && !hop {
        return Ok(());
    }
    let src = if to.flags & ConnectionFlags::REWRITE_SRC != 0 { to.src.v4_word() } else { ip.src };
    let dst = if to.flags & ConnectionFlags::REWRITE_DST != 0 { to.dst.v4_word() } else { ip.dst };
    let ttl = if hop { ip.ttl.wrapping_sub(1) } else { ip.ttl };
    let diff = checksum::word_diff(ip.src, src) + checksum::word_diff(ip.dst, dst);
    let [old_half, half] = [ip.ttl, ttl].map(|ttl| u16::from_ne_bytes([ttl, ip.protocol]));
    let mut header_diff = diff + checksum::half_diff(old_half, half);
    if needs_identifier(transport, flow) {
        let id = maps::walk().ok_or(DropReason::Kernel)?.masqueraded_id as u16;
        header_diff += checksum::half_diff(ip.id, id);
        let at = skb.at::<u16>(ETHERNET + 4).ok_or(DropReason::Truncated)?;
        // SAFETY: `at` checked the bounds.
        unsafe { *at = id };
    }
    let tail = skb.at::<[u8; 12]>(ETHERNET + 8).ok_or(DropReason::Truncated)?.cast::<u8>();
    // SAFETY: `at` checked 12 bytes from the time to live on: it and the protocol, checksum, source, destination.
    unsafe {
        *tail.cast::<u16>() = half;
        *tail.add(2).cast::<u16>() = checksum::update(ip.checksum, header_diff);
        *tail.add(4).cast::<u32>() = src;
        *tail.add(8).cast::<u32>() = dst;
    }
    if to.flags & BOTH == 0 {
        return Ok(());
    }
    l4(skb, transport, rewrite, diff, ETHERNET + IPV4)
}

/// Rewrites an IPv6 packet, and takes one from its hop limit where it makes a hop; keeps the transport's checksum right
/// (IPv6 has none of its own).
#[inline(always)]
pub fn ipv6(skb: &Skb, ip: &Ipv6, transport: &Transport, rewrite: Rewrite<'_>) -> Result<(), DropReason> {
    let Rewrite { flow, hop, .. } = rewrite;
    if hop {
        let hops = skb.at::<u16>(ETHERNET + 6).ok_or(DropReason::Truncated)?;
        // SAFETY: `at` checked next header and hop limit.
        unsafe { *hops = u16::from_ne_bytes([ip.next_header, ip.hop_limit.wrapping_sub(1)]) };
    }
    let to = &flow.connection;
    if to.flags & BOTH == 0 {
        return Ok(());
    }
    let mut diff = 0;
    let addresses = skb.at::<[Addr; 2]>(ETHERNET + 8).ok_or(DropReason::Truncated)?;
    // SAFETY: `at` checked 32 bytes from the source on.
    unsafe {
        if to.flags & ConnectionFlags::REWRITE_SRC != 0 {
            diff += checksum::addr_diff(&ip.src, &to.src);
            (*addresses)[0] = to.src;
        }
        if to.flags & ConnectionFlags::REWRITE_DST != 0 {
            diff += checksum::addr_diff(&ip.dst, &to.dst);
            (*addresses)[1] = to.dst;
        }
    }
    if needs_identifier(transport, flow) {
        stop::check(far::weft_identify_v6(skb.raw()))?;
    }
    l4(skb, transport, rewrite, diff, ETHERNET + IPV6)
}

/// Whether the packet is a piece of a datagram that is masqueraded: see `far` for its identifier.
#[inline(always)]
fn needs_identifier(transport: &Transport, flow: &Flow) -> bool {
    transport.piece != Piece::Whole
        && flow.way.deliver == Deliver::Route as u8
        && flow.connection.flags & ConnectionFlags::REWRITE_SRC != 0
}

/// Ports (or echo identifier) and checksum of the transport header. `near`: where it is without options.
#[inline(always)]
fn l4(
    skb: &Skb,
    transport: &Transport,
    Rewrite { flow, summed, .. }: Rewrite<'_>,
    address_diff: u64,
    near: usize,
) -> Result<(), DropReason> {
    let Connection { flags, .. } = flow.connection;
    let sport = if flags & ConnectionFlags::REWRITE_SRC != 0 { flow.connection.sport } else { transport.sport };
    let dport = if flags & ConnectionFlags::REWRITE_DST != 0 { flow.connection.dport } else { transport.dport };
    let ports_move = sport != transport.sport || dport != transport.dport;
    if transport.piece == Piece::Later {
        // Of SCTP the first piece was refused as well.
        let is_lost = ports_move && transport.protocol == protocol::SCTP;
        return if is_lost { Err(DropReason::Unrewritable) } else { Ok(()) };
    }
    let port_diff = checksum::half_diff(transport.sport, sport) + checksum::half_diff(transport.dport, dport);
    let ports_at = match transport.protocol {
        protocol::ICMP | protocol::ICMPV6 => transport.offset + 4,
        _ => transport.offset,
    };
    if ports_move {
        if transport.protocol == protocol::SCTP {
            return sctp::move_ports(skb, transport, sport, dport);
        }
        write_ports(skb, transport, sport, dport, ports_at, near)?;
    }
    if summed.is_in_packet() && transport.offset == near {
        match transport.protocol {
            protocol::TCP => return update_checksum(skb, near + 16, summed, address_diff, port_diff, false),
            protocol::UDP => return update_checksum(skb, near + 6, summed, address_diff, port_diff, true),
            _ => {}
        }
    }
    let (field, has_pseudo_header) = match transport.protocol {
        protocol::TCP => (transport.offset + 16, true),
        protocol::UDP => (transport.offset + 6, true),
        protocol::ICMP => (transport.offset + 2, false),
        protocol::ICMPV6 => (transport.offset + 2, true),
        protocol::UDP_LITE | protocol::DCCP => (transport.offset + 6, true),
        _ => return Ok(()),
    };
    // A sum of 0 is written as 0xffff where 0 says that there is none.
    let optional = matches!(transport.protocol, protocol::UDP | protocol::UDP_LITE);
    let addresses_kept = !has_pseudo_header
        || helpers::replace_l4_checksum(skb.raw(), field, checksum::fold32(address_diff), true, optional);
    let ports_kept =
        !ports_move || helpers::replace_l4_checksum(skb.raw(), field, checksum::fold32(port_diff), false, optional);
    if addresses_kept && ports_kept { Ok(()) } else { Err(DropReason::Kernel) }
}

/// Keeps the checksum of TCP and UDP right where it is all that there is to keep: without a helper's two calls (20 ns).
#[inline(always)]
fn update_checksum(
    skb: &Skb,
    at: usize,
    summed: Summed,
    address_diff: u64,
    port_diff: u64,
    optional: bool,
) -> Result<(), DropReason> {
    let field = skb.at::<u16>(at).ok_or(DropReason::Truncated)?;
    // SAFETY: `at` checked the bounds.
    unsafe {
        // 0 says that there is none, and a sum of 0 is written as 0xffff.
        if optional && *field == 0 {
            return Ok(());
        }
        let sum = summed.update(*field, address_diff, port_diff);
        *field = if optional && sum == 0 { 0xffff } else { sum };
    }
    Ok(())
}

/// Writes both ports, or the identifier of an echo (its request keeps it as source port, its reply as destination port).
#[inline(always)]
fn write_ports(
    skb: &Skb,
    transport: &Transport,
    sport: u16,
    dport: u16,
    ports_at: usize,
    near: usize,
) -> Result<(), DropReason> {
    if matches!(transport.protocol, protocol::ICMP | protocol::ICMPV6) {
        // The other one is 0.
        let id = sport | dport;
        return if helpers::store(skb.raw(), ports_at, &id) { Ok(()) } else { Err(DropReason::Kernel) };
    }
    if transport.offset == near {
        let ports = skb.at::<[u16; 2]>(near).ok_or(DropReason::Truncated)?;
        // SAFETY: `at` checked four bytes.
        unsafe { *ports = [sport, dport] };
        return Ok(());
    }
    if helpers::store(skb.raw(), ports_at, &[sport, dport]) { Ok(()) } else { Err(DropReason::Kernel) }
}
