// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Packets whose transport header is not right behind the IP header: options, extension headers, datagrams in pieces.
//!
//! The functions are exported, and thereby global to the verifier: it walks them once for the object, not once for every way
//! that leads there, and what they found comes back through a map as plain numbers.

use aya_ebpf::bindings::{__sk_buff, BPF_ANY};
use weft_abi::DropReason;
use weft_logic::{
    Frame as _, fragment,
    header::{self, ETHERNET, Kind, Piece, TcpFlags, Transport},
    walk::{Far as Found, Walk},
};

use crate::{
    family::{Family, V4, V6},
    helpers,
    maps::{self, FRAGMENTS, IDENTIFIERS, NEXT_IDENTIFIERS},
    share::{self, Tokens},
    skb::Skb,
    stop::{check, code},
};

/// [`Found::piece`].
const WHOLE: u8 = 0;
const FIRST: u8 = 1;
const LATER: u8 = 2;

/// The largest offset of a transport header; a mask, for the verifier.
pub const OFFSETS: usize = 0x3ff;

/// A family whose far transport headers are found by functions of their own.
pub trait Far: Family {
    /// [`Family::parse_far`]; what it found is in the walk's `far`. 0, or the reason + 1.
    fn parse_into_walk(skb: &Skb) -> u32;
    /// For a piece of a datagram: records or fills in its ports. 0, or the reason + 1.
    fn find_datagram(skb: &Skb, ifindex: u32) -> u32;
    /// The identification of the datagram that the packet is a piece of, as in the packet.
    fn identification(skb: &Skb) -> Option<u32>;
}

impl Far for V4 {
    #[inline(always)]
    fn parse_into_walk(skb: &Skb) -> u32 {
        weft_parse_far_v4(skb.raw())
    }

    #[inline(always)]
    fn find_datagram(skb: &Skb, ifindex: u32) -> u32 {
        weft_find_datagram_v4(skb.raw(), ifindex)
    }

    #[inline(always)]
    fn identification(skb: &Skb) -> Option<u32> {
        skb.load::<u16>(ETHERNET + 4).map(u32::from)
    }
}

impl Far for V6 {
    #[inline(always)]
    fn parse_into_walk(skb: &Skb) -> u32 {
        weft_parse_far_v6(skb.raw())
    }

    #[inline(always)]
    fn find_datagram(skb: &Skb, ifindex: u32) -> u32 {
        weft_find_datagram_v6(skb.raw(), ifindex)
    }

    #[inline(always)]
    fn identification(skb: &Skb) -> Option<u32> {
        skb.load(header::ipv6_identification_at(skb)? & OFFSETS)
    }
}

/// The transport header of a packet that has none right behind its IP header.
#[inline(always)]
pub fn find<F: Far>(skb: &Skb, ifindex: u32) -> Result<Transport, DropReason> {
    check(F::parse_into_walk(skb))?;
    let walk = maps::walk().ok_or(DropReason::Kernel)?;
    if walk.far.piece != WHOLE {
        check(F::find_datagram(skb, ifindex))?;
    }
    Ok(found(&walk.far))
}

/// What [`find`] has found of this packet.
#[inline(always)]
pub fn again() -> Result<Transport, DropReason> {
    Ok(found(&maps::walk().ok_or(DropReason::Kernel)?.far))
}

/// [`Far::parse_into_walk`] of IPv4.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_parse_far_v4(skb: *mut __sk_buff) -> u32 {
    code(parse::<V4>(&Skb::of(skb)))
}

/// [`Far::parse_into_walk`] of IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_parse_far_v6(skb: *mut __sk_buff) -> u32 {
    code(parse::<V6>(&Skb::of(skb)))
}

/// [`Far::find_datagram`] of IPv4.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_find_datagram_v4(skb: *mut __sk_buff, ifindex: u32) -> u32 {
    code(find_datagram::<V4>(&Skb::of(skb), ifindex))
}

/// [`Far::find_datagram`] of IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_find_datagram_v6(skb: *mut __sk_buff, ifindex: u32) -> u32 {
    code(find_datagram::<V6>(&Skb::of(skb), ifindex))
}

#[inline(always)]
fn parse<F: Family>(skb: &Skb) -> Result<(), DropReason> {
    let transport = F::parse_far(skb)?;
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
        piece: match transport.piece {
            Piece::Whole => WHOLE,
            Piece::First => FIRST,
            Piece::Later => LATER,
        },
        kind: transport.kind.0,
    };
    Ok(())
}

/// What [`parse`] found.
#[inline(always)]
fn found(far: &Found) -> Transport {
    Transport {
        protocol: far.protocol,
        flags: TcpFlags(far.flags),
        sport: far.sport,
        dport: far.dport,
        offset: far.offset as usize & OFFSETS,
        piece: match far.piece {
            FIRST => Piece::First,
            LATER => Piece::Later,
            _ => Piece::Whole,
        },
        fragment_id: 0,
        kind: Kind(far.kind),
    }
}

/// Records the datagram that a first fragment tells of, fills in the ports of a later one; the walk's `masqueraded_id`
/// is then what the fragment is masqueraded with.
///
/// Every datagram gets a fresh one, from a counter per destination: the receiver puts together what has one identifier, and
/// all workloads come to it from one address. Were it the workload's own, or a function of it, another one could choose its
/// identifiers so that its pieces are taken for somebody else's.
#[inline(always)]
fn find_datagram<F: Far>(skb: &Skb, ifindex: u32) -> Result<(), DropReason> {
    let walk = maps::walk().ok_or(DropReason::Kernel)?;
    let ip: F::Header = skb.read(ETHERNET).ok_or(DropReason::Truncated)?;
    let id = F::identification(skb).ok_or(DropReason::Truncated)?;
    let packet = F::widen(&F::key(ifindex, &ip, &found(&walk.far)));
    let (key, now) = (fragment::key(&packet, id), helpers::coarse_ticks());
    // SAFETY: values are replaced whole; a reader under RCU sees one or the other.
    let known = unsafe { FRAGMENTS.get(key) }.filter(|known| fragment::belongs(&packet, id, known));
    walk.datagram = key;
    if walk.far.piece == LATER {
        let known = known.ok_or(DropReason::FragmentUnknown)?;
        (walk.far.sport, walk.far.dport) = (known.sport, known.dport);
        (walk.masqueraded_id, walk.by_stack) = (known.masqueraded_id, u8::from(known.by_stack != 0));
        return Ok(());
    }
    share::take(ifindex, Tokens::Fragments)?;
    walk.masqueraded_id = match known {
        Some(known) if fragment::is_again(known, now) => known.masqueraded_id,
        _ => next_identifier(fragment::destination(&packet.dst, packet.protocol)),
    };
    // Whether it goes by the stack its size tells.
    let datagram = fragment::datagram(&packet, id, walk.masqueraded_id, now);
    FRAGMENTS.insert(key, datagram, u64::from(BPF_ANY)).map_err(|_| DropReason::FlowTable)
}

/// All pieces of the datagram that follow the packet's go by the host's stack.
#[inline(always)]
pub fn follow_by_stack(walk: &Walk) {
    if let Some(datagram) = FRAGMENTS.get_ptr_mut(walk.datagram) {
        // SAFETY: an aligned word of a map value. Where another of the port's datagrams has taken the place meanwhile, it goes that
        // way too.
        unsafe { (*datagram).by_stack = 1 };
    }
}

/// An identifier that no datagram to this destination had lately; they begin anywhere.
#[inline(always)]
pub fn next_identifier(destination: u32) -> u32 {
    let Some(next) = NEXT_IDENTIFIERS.get_ptr_mut(destination & (IDENTIFIERS - 1)) else { return helpers::random() };
    if helpers::fetch_add(next, 1) == 0 {
        helpers::fetch_add(next, helpers::random());
    }
    helpers::fetch_add(next, 1)
}

/// Writes the identifier that a piece of an IPv6 datagram is masqueraded with: 0, or the number of the reason + 1. No checksum
/// covers the fragment header. Exported, and thereby global to the verifier, as above.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weft_identify_v6(skb: *mut __sk_buff) -> u32 {
    let Some(walk) = maps::walk() else { return code(Err(DropReason::Kernel)) };
    let at = header::ipv6_identification_at(&Skb::of(skb)).unwrap_or(usize::MAX) & OFFSETS;
    let id = walk.masqueraded_id;
    code(if helpers::store(skb, at, &id) { Ok(()) } else { Err(DropReason::Kernel) })
}
