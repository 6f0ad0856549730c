// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Other ports for SCTP, whose checksum covers all of the packet: see [`weft_logic::sctp`].
//!
//! The functions are exported, and thereby global to the verifier, as in `far`: no other protocol's packets have anything of them.

use aya_ebpf::bindings::__sk_buff;
use weft_abi::{DropReason, FlowKey6};
use weft_logic::{
    Frame as _, checksum,
    checksum::Summed,
    header::{ETHERNET, IPV6, Ipv4, Ipv6, Piece, Transport, ethertype},
    sctp,
};

use crate::{far::OFFSETS, helpers, icmp_error::ERROR_HEADER, maps, offload, skb::Skb, stop};

/// Where the checksum is in the common header.
const CHECKSUM: usize = 8;

/// Writes both ports (network byte order); keeps the checksum right.
///
/// # Errors
/// [`DropReason::Unrewritable`]: of a packet in pieces none has all that the checksum is of.
#[inline(always)]
pub fn move_ports(skb: &Skb, transport: &Transport, sport: u16, dport: u16) -> Result<(), DropReason> {
    let whole = u32::from(transport.piece == Piece::Whole);
    stop::check(weft_move_sctp_ports(skb.raw(), word(sport, dport), transport.offset as u32, whole))
}

/// [`move_ports`]: 0, or the number of the reason + 1.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_move_sctp_ports(skb: *mut __sk_buff, ports: u32, offset: u32, whole: u32) -> u32 {
    stop::code(write(&Skb::of(skb), ports, offset as usize & OFFSETS, whole != 0))
}

#[inline(always)]
fn write(skb: &Skb, ports: u32, offset: usize, whole: bool) -> Result<(), DropReason> {
    let len = len(skb, ETHERNET, offset, whole).ok_or(DropReason::Unrewritable)?;
    let [before, tag, checksum]: [u32; 3] = skb.load(offset).ok_or(DropReason::Truncated)?;
    let kept = if sctp::is_summed(offload::summed(skb), checksum) {
        weft_sctp_checksum(checksum, before, ports, len.into())
    } else {
        checksum
    };
    if helpers::store(skb.raw(), offset, &[ports, tag, kept]) { Ok(()) } else { Err(DropReason::Kernel) }
}

/// Two ports as they are in a packet.
#[inline(always)]
fn word(sport: u16, dport: u16) -> u32 {
    let ([a, b], [c, d]) = (sport.to_ne_bytes(), dport.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// The length of the SCTP packet at `offset` whose IP header is at `ip`, where this is all of it.
#[inline(always)]
fn len(skb: &Skb, ip: usize, offset: usize, whole: bool) -> Option<u16> {
    let behind = offset.checked_sub(ip)?;
    if skb.protocol() == ethertype::IPV6.to_be() {
        return sctp::len_v6(&skb.load::<Ipv6>(ip)?, behind, if whole { Piece::Whole } else { Piece::First });
    }
    // By the header alone: what the host's stack is still to cut is whole here, see `too_big`.
    sctp::len_v4(&skb.load::<Ipv4>(ip)?, behind)
}

/// [`sctp::update`]. Only here `len` has bounds that the verifier knows as well as the compiler does.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_sctp_checksum(checksum: u32, before: u32, after: u32, len: u32) -> u32 {
    sctp::update(checksum, before, after, len as u16)
}

/// Keeps the checksum of the SCTP packet inside the ICMP error at `offset` right, where it is there, and the error's own: its ports have
/// become those of the walk's `about_there`. 0, or the number of the reason + 1.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weft_keep_inner_sctp(skb: *mut __sk_buff, offset: u32) -> u32 {
    stop::code(keep_inner(&Skb::of(skb), offset as usize & OFFSETS))
}

/// By the length that the inner header tells. Of a piece it stays as it is: who receives the error has not the rest.
#[inline(always)]
fn keep_inner(skb: &Skb, offset: usize) -> Result<(), DropReason> {
    let walk = maps::walk().ok_or(DropReason::Kernel)?;
    let (ip, l4) = (offset + ERROR_HEADER, walk.about_offset as usize & 0x7ff);
    // Whether a header between the two tells of a piece is not looked up.
    let Some(len) = len(skb, ip, l4, l4 == ip + IPV6) else { return Ok(()) };
    let old: u32 = skb.load(l4 + CHECKSUM).unwrap_or(0);
    if !sctp::is_summed(Summed::UNKNOWN, old) {
        return Ok(());
    }
    let [before, after] = [&walk.about, &walk.about_there].map(|key: &FlowKey6| word(key.sport, key.dport));
    let new = weft_sctp_checksum(old, before, after, len.into());
    let diff = checksum::fold32(checksum::word_diff(old, new));
    let kept = helpers::store(skb.raw(), l4 + CHECKSUM, &new)
        && helpers::replace_l4_checksum(skb.raw(), offset + 2, diff, false, false);
    if kept { Ok(()) } else { Err(DropReason::Kernel) }
}
