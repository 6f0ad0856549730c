// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! The largest TCP segment that both sides name when they connect is lowered to what the way between them takes, where the
//! configuration asks for it: for networks that lose "too big". Only SYNs come here.

use aya_ebpf::bindings::__sk_buff;
use weft_abi::{Deliver, DropReason, Flow, Hook};
use weft_logic::{
    Tables as _, checksum,
    header::Transport,
    mss::{self, Found},
};

use crate::{family::Family, helpers, maps::Kernel, skb::Skb, stop};

/// Lowers what a SYN names, if it leaves the node or has come from beyond it.
#[inline(always)]
pub fn clamp<F: Family, const HOOK: u8>(skb: &Skb, flow: &Flow, transport: &Transport) -> Result<(), DropReason> {
    let comes_in = HOOK == Hook::FromUplink as u8 || HOOK == Hook::FromOverlay as u8;
    let leaves = flow.way.deliver >= Deliver::Tunnel as u8;
    if !leaves && !comes_in {
        return Ok(());
    }
    // 0: the device that it comes by, which the verifier wants read on its own.
    let device = if leaves { flow.way.ifindex } else { 0 };
    stop::check(weft_clamp_mss(skb.raw(), device, transport.offset as u32, u32::from(F::IS_V6)))
}

/// Where in the options of a packet the search is.
struct Search {
    skb: *mut __sk_buff,
    /// Where the TCP header is.
    header: u32,
    /// The next option.
    at: u32,
    /// Where the options end.
    end: u32,
    /// The most that may be named.
    most: u16,
    /// Not 0: the kernel refused.
    failed: u16,
}

/// [`clamp`] for what goes by a device: 0, or the number of the reason + 1. Exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_clamp_mss(skb: *mut __sk_buff, device: u32, header: u32, is_v6: u32) -> u32 {
    let Some(config) = Kernel.config() else { return stop::code(Err(DropReason::Kernel)) };
    if config.mss_clamp == 0 {
        return 0;
    }
    let device = if device == 0 { Skb::of(skb).ifindex() } else { device };
    // A device that is gone tells nothing: its packets are lost anyway.
    let Some(mtu) = helpers::mtu(skb, device) else { return 0 };
    let mtu = match u32::from(config.workload_mtu) {
        most if most != 0 && most < mtu => most,
        _ => mtu,
    };
    let end = mss::end_of_options(&Skb::of(skb), header as usize);
    let most = mss::most(config.mss_clamp, mtu, is_v6 != 0);
    let mut search = Search { skb, header, at: header + 20, end, most, failed: 0 };
    helpers::repeat(mss::MOST_OPTIONS, next_option, &mut search);
    stop::code(if search.failed == 0 { Ok(()) } else { Err(DropReason::Kernel) })
}

/// `bpf_loop` body: 0 goes on, 1 ends.
unsafe extern "C" fn next_option(_: u32, search: *mut Search) -> i64 {
    // SAFETY: `repeat` hands over the state it was given.
    let search = unsafe { &mut *search };
    if search.at >= search.end {
        return 1;
    }
    let Found { next, mss_at } = mss::option(&Skb::of(search.skb), search.at, search.end);
    if mss_at != 0 && !lower(search, mss_at) {
        search.failed = 1;
        return 1;
    }
    search.at = next;
    0
}

/// Writes the most that may be named over a value that is larger, and keeps the TCP checksum right: one that is left to the sender
/// is of the pseudo header alone, and the helper knows.
#[inline(always)]
fn lower(search: &Search, at: u32) -> bool {
    let Some(named) = helpers::load::<u16>(search.skb, at as usize) else { return false };
    if u16::from_be(named) <= search.most {
        return true;
    }
    let most = search.most.to_be();
    let summed = |value| mss::as_summed(value, search.header, at);
    let diff = checksum::fold32(checksum::half_diff(summed(named), summed(most)));
    helpers::store(search.skb, at as usize, &most)
        && helpers::replace_l4_checksum(search.skb, search.header as usize + 16, diff, false, false)
}
