// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Proxy ARP (RFC 826, RFC 1027): the gateway's address answers for everybody.

use aya_ebpf::bindings::__sk_buff;
use weft_abi::{Addr, Counter, DropReason, GATEWAY_MAC};
use weft_logic::{Frame as _, Tables as _, admit};

use crate::{
    helpers, hook,
    maps::Kernel,
    report,
    share::{self, Tokens},
    skb::Skb,
    stop::{self, Stop},
};

/// An Ethernet frame with an ARP packet for IPv4; fields in network byte order.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Arp {
    dst: [u8; 6],
    src: [u8; 6],
    ethertype: u16,
    hardware: u16,
    protocol: u16,
    lengths: u16,
    operation: u16,
    sender_mac: [u8; 6],
    sender: u32,
    target_mac: [u8; 6],
    target: u32,
}

const ETHERNET_IPV4: (u16, u16, u16) = (1_u16.to_be(), 0x0800_u16.to_be(), 0x0604_u16.to_be());
const REQUEST: u16 = 1_u16.to_be();
const REPLY: u16 = 2_u16.to_be();

/// Answers a workload's request from its own port; a message that claims another's address is dropped.
#[inline(always)]
pub fn answer(skb: &Skb) -> Result<i32, Stop> {
    stop::resume(weft_answer_arp(skb.raw()))
}

/// [`answer`], as [`stop::suspend`] says. Exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_answer_arp(skb: *mut __sk_buff) -> u32 {
    stop::suspend(try_answer(&Skb::of(skb)))
}

#[inline(always)]
fn try_answer(skb: &Skb) -> Result<i32, Stop> {
    report::forget();
    skb.pull_headers::<{ core::mem::size_of::<Arp>() }>();
    let arp: Arp = skb.read(0).ok_or(DropReason::Truncated)?;
    if (arp.hardware, arp.protocol, arp.lengths) != ETHERNET_IPV4 {
        return Err(DropReason::BadHeader.into());
    }
    let port = Kernel.port(skb.ifindex()).ok_or(DropReason::UnknownPort)?;
    let is_own = |word| admit::leads_to(Kernel.owner(port.net, &Addr::v4(word)), skb.ifindex());
    if arp.src != port.mac || arp.sender_mac != port.mac {
        return Err(DropReason::ArpSpoofed.into());
    }
    let probe = arp.sender == 0;
    if !probe && !is_own(arp.sender) {
        return Err(DropReason::ArpSpoofed.into());
    }
    // Probes (RFC 5227) and announcements of the own address want silence.
    if arp.operation != REQUEST || probe || is_own(arp.target) {
        return Err(Stop::Return(hook::DROP));
    }
    share::take(skb.ifindex(), Tokens::Answers)?;
    let reply = Arp {
        dst: port.mac,
        src: GATEWAY_MAC,
        operation: REPLY,
        sender_mac: GATEWAY_MAC,
        sender: arp.target,
        target_mac: port.mac,
        target: arp.sender,
        ..arp
    };
    let frame = skb.at::<Arp>(0).ok_or(DropReason::Truncated)?;
    // SAFETY: `at` checked the bounds.
    unsafe { *frame = reply };
    report::count(Counter::ArpAnswered);
    skb.set_mark(weft_abi::MARK_DELIVERED);
    Ok(helpers::redirect_out(skb.ifindex()))
}
