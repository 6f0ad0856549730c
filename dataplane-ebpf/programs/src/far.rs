// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Packets whose transport header is not right behind the IP header: options, extension headers, datagrams in pieces.
//!
//! The functions are exported, and thereby global to the verifier: it walks them once for the object, not once for every way
//! that leads there, and what they found comes back through a map as plain numbers.

use aya_ebpf::bindings::{__sk_buff, BPF_ANY};
use weft_abi::{DropReason, FragmentKey, FragmentPorts};
use weft_logic::{
    Frame as _,
    decide::Far as Found,
    header::{ETHERNET, Kind, Piece, TcpFlags, Transport},
};

use crate::{
    family::{Family, V4, V6},
    maps::{self, FRAGMENTS},
    skb::Skb,
    stop::code,
};

/// [`Found::kind`] of an ICMP error; every other number but 0 is a link-local ICMPv6 type, and these start at 130.
const ICMP_ERROR: u8 = 1;

/// The largest offset of a transport header; a mask, for the verifier.
pub const OFFSETS: usize = 0x3ff;

/// A family whose far transport headers are found by a function of its own.
pub trait Far: Family {
    /// [`Family::parse_far`] and the look-up of a fragment's ports; what it found is in the walk's `far`. 0, or the reason + 1.
    fn find_far(skb: &Skb, ifindex: u32) -> u32;
}

impl Far for V4 {
    #[inline(always)]
    fn find_far(skb: &Skb, ifindex: u32) -> u32 {
        weft_parse_far_v4(skb.raw(), ifindex)
    }
}

impl Far for V6 {
    #[inline(always)]
    fn find_far(skb: &Skb, ifindex: u32) -> u32 {
        weft_parse_far_v6(skb.raw(), ifindex)
    }
}

/// [`Far::find_far`] of IPv4.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_parse_far_v4(skb: *mut __sk_buff, ifindex: u32) -> u32 {
    code(parse::<V4>(&Skb::of(skb), ifindex))
}

/// [`Far::find_far`] of IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_parse_far_v6(skb: *mut __sk_buff, ifindex: u32) -> u32 {
    code(parse::<V6>(&Skb::of(skb), ifindex))
}

#[inline(always)]
fn parse<F: Family>(skb: &Skb, ifindex: u32) -> Result<(), DropReason> {
    let mut transport = F::parse_far(skb)?;
    if transport.piece != Piece::Whole {
        let ip: F::Header = skb.read(ETHERNET).ok_or(DropReason::Truncated)?;
        ports::<F>(ifindex, &ip, &mut transport)?;
    }
    // Beyond, `found` and the functions that rewrite would be somewhere else.
    if transport.offset > OFFSETS {
        return Err(DropReason::ExtensionHeaders);
    }
    let walk = maps::walk().ok_or(DropReason::Kernel)?;
    walk.far = Found {
        offset: transport.offset as u32,
        sport: transport.sport,
        dport: transport.dport,
        protocol: transport.protocol,
        flags: transport.flags.0,
        later: u8::from(transport.piece == Piece::Later),
        kind: match transport.kind {
            Kind::Flow => 0,
            Kind::IcmpError => ICMP_ERROR,
            Kind::Link(kind) => kind,
        },
    };
    Ok(())
}

/// What [`parse`] found.
#[inline(always)]
pub fn found(far: &Found) -> Transport {
    Transport {
        protocol: far.protocol,
        flags: TcpFlags(far.flags),
        sport: far.sport,
        dport: far.dport,
        offset: far.offset as usize & OFFSETS,
        piece: if far.later == 0 { Piece::Whole } else { Piece::Later },
        fragment_id: 0,
        kind: match far.kind {
            0 => Kind::Flow,
            ICMP_ERROR => Kind::IcmpError,
            kind => Kind::Link(kind),
        },
    }
}

/// Records the ports that a first fragment tells, fills in those of a later one.
#[inline(always)]
fn ports<F: Family>(ifindex: u32, ip: &F::Header, transport: &mut Transport) -> Result<(), DropReason> {
    let packet = F::widen(&F::key(ifindex, ip, transport));
    let key =
        FragmentKey { src: packet.src, dst: packet.dst, id: transport.fragment_id, ifindex, protocol: packet.protocol };
    if transport.piece == Piece::First {
        let ports = FragmentPorts { sport: transport.sport, dport: transport.dport };
        return FRAGMENTS.insert(key, ports, u64::from(BPF_ANY)).map_err(|_| DropReason::FlowTable);
    }
    // SAFETY: values are replaced whole; a reader under RCU sees one or the other.
    let ports = unsafe { FRAGMENTS.get(key) }.ok_or(DropReason::FragmentUnknown)?;
    (transport.sport, transport.dport) = (ports.sport, ports.dport);
    Ok(())
}
