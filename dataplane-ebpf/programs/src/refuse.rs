// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Refusing aloud: who asks a Service that nobody serves is told at once, as by a host on whose port nobody listens. From wherever it
//! asks: the answer goes back to the device that the packet came by.

use aya_ebpf::bindings::__sk_buff;
use weft_abi::{Counter, DropReason};
use weft_logic::{
    Frame as _, checksum,
    header::{ETHERNET, IPV4, IPV6, Kind, TcpFlags, ethertype},
    protocol,
};

use crate::{
    family::{Family, V4, V6},
    helpers,
    icmp_answer::{self, UNREACHABLE_PORT},
    report,
    share::{self, Tokens},
    skb::Skb,
    stop::{self, Stop},
};

/// A TCP header without options as words (RFC 9293).
type Tcp = [u32; 4];

const RST: u8 = 0x04;
const RST_ACK: u8 = 0x14;

/// Counts a packet that is dropped, and tells its sender. Without tokens, and of what is no packet to answer, it hears nothing.
#[inline(always)]
pub fn refuse(skb: &Skb, hook: u8, reason: DropReason) -> i32 {
    let dropped = report::dropped(skb, hook, reason);
    let is_v6 = skb.protocol() == ethertype::IPV6.to_be();
    let answer = match (weft_may_answer(skb.raw(), u32::from(is_v6)), is_v6) {
        (NOT, _) => return dropped,
        (BY_RESET, _) => stop::resume(weft_reset(skb.raw(), u32::from(is_v6))),
        (_, true) => icmp_answer::send::<V6>(skb, UNREACHABLE_PORT, 0),
        (_, false) => icmp_answer::send::<V4>(skb, UNREACHABLE_PORT, 0),
    };
    answer.unwrap_or(dropped)
}

/// [`weft_may_answer`]: nothing is told.
const NOT: u32 = 0;
/// [`weft_may_answer`]: it is TCP.
const BY_RESET: u32 = 1;
/// [`weft_may_answer`]: it is something else.
const BY_ERROR: u32 = 2;

/// How a packet may be answered, for which it takes a token. Exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_may_answer(skb: *mut __sk_buff, is_v6: u32) -> u32 {
    let skb = Skb::of(skb);
    let found =
        if is_v6 == 0 { V4::parse(&skb).map(|(_, found)| found) } else { V6::parse(&skb).map(|(_, found)| found) };
    let Ok(Some(transport)) = found else { return NOT };
    if transport.flags.rst()
        || transport.kind != Kind::FLOW
        || !icmp_answer::may_go_back(&skb)
        || share::take(skb.ifindex(), Tokens::Answers).is_err()
    {
        return NOT;
    }
    if transport.protocol == protocol::TCP { BY_RESET } else { BY_ERROR }
}

/// Turns a TCP segment without IP options into the RST that answers it (RFC 9293, 3.10.7.1), as [`stop::suspend`] says.
/// Options and data stay: RST may carry them (RFC 9293, 3.5.3). Source and destination change places, which no checksum feels;
/// the transport's checksum is kept by the difference of the other words. Exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_reset(skb: *mut __sk_buff, is_v6: u32) -> u32 {
    let skb = Skb::of(skb);
    stop::suspend(if is_v6 == 0 {
        answer::<4>(&skb, ETHERNET + IPV4, ETHERNET + 12)
    } else {
        answer::<16>(&skb, ETHERNET + IPV6, ETHERNET + 8)
    })
}

/// `SIZE`: bytes of an address, which stand at `addresses`, the source first; `l4`: where the transport header is.
#[inline(always)]
fn answer<const SIZE: usize>(skb: &Skb, l4: usize, addresses: usize) -> Result<i32, Stop> {
    let ends: [[u8; SIZE]; 2] = skb.load(addresses).ok_or(DropReason::Truncated)?;
    let asked: Tcp = skb.load(l4).ok_or(DropReason::Truncated)?;
    let length: u16 = skb.load(ETHERNET + if SIZE == 4 { 2 } else { 4 }).ok_or(DropReason::Truncated)?;
    let segment = u32::from(u16::from_be(length)) - if SIZE == 4 { IPV4 as u32 } else { 0 };
    let answer = answer_to(&asked, segment);
    let diff = (0..4).map(|word| checksum::word_diff(asked[word], answer[word])).sum();
    let stored = helpers::store(skb.raw(), addresses, &[ends[1], ends[0]])
        && helpers::store(skb.raw(), l4, &answer)
        && helpers::replace_l4_checksum(skb.raw(), l4 + 16, checksum::fold32(diff), false, false);
    if !stored {
        return Err(DropReason::Kernel.into());
    }
    report::count(Counter::Reset);
    Ok(icmp_answer::BACK)
}

/// The header that answers a segment of `length` bytes, its own header included.
#[inline(always)]
fn answer_to(asked: &Tcp, length: u32) -> Tcp {
    let [ports, sequence, acknowledged, rest] = *asked;
    let [offset, flags, _, _] = rest.to_ne_bytes();
    let header = u32::from(offset >> 4) * 4;
    let takes = u32::from(flags & 1) + u32::from((flags >> 1) & 1);
    let end = u32::from_be(sequence).wrapping_add(length.wrapping_sub(header)).wrapping_add(takes);
    if TcpFlags(flags).ack() {
        let rest = u32::from_ne_bytes([offset, RST, 0, 0]);
        [ports.rotate_left(16), acknowledged, 0, rest]
    } else {
        let rest = u32::from_ne_bytes([offset, RST_ACK, 0, 0]);
        [ports.rotate_left(16), 0, end.to_be(), rest]
    }
}
