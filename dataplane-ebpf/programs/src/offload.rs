// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! What a workload asks the kernel to do to its packet after the programs have seen it: checksums and segments.

use core::{mem::MaybeUninit, ptr};

use aya_ebpf::bindings::__sk_buff;
use weft_abi::{DropReason, SkbLayout};
use weft_logic::{
    Frame as _,
    header::{Kind, Piece, Transport},
    offload,
};

use crate::{helpers, skb::Skb, stop};

/// Set by the loader. No helper shows these fields, and objects made of Rust cannot call the kernel's functions.
#[unsafe(no_mangle)]
static SKB_LAYOUT: SkbLayout =
    SkbLayout { start: 0, summed: 0, summed_shift: 0, csum_start: 0, csum_offset: 0, mac_header: 0, pad: 0 };

/// What policy has judged of a packet: its headers; what is behind them too; of a later piece, another packet's headers.
const JUDGED_HEADERS: u32 = 0;
const JUDGED_DATA: u32 = 1;
const JUDGED_ALL: u32 = 2;

/// `CHECKSUM_PARTIAL`.
const PARTIAL: u8 = 3;

/// The bytes of the kernel's `struct sk_buff` that [`SkbLayout`] describes.
#[repr(C, align(8))]
struct Window([u8; SkbLayout::WINDOW]);

/// Refuses a packet with a checksum that would be written over what policy has judged, and one in absurdly short segments.
#[inline(always)]
pub fn check(skb: &Skb, transport: &Transport) -> Result<(), DropReason> {
    if !offload::may_be_cut(transport.protocol, skb.len(), skb.gso_size()) {
        return Err(DropReason::ChecksumOffload);
    }
    let judged = if transport.piece == Piece::Later {
        JUDGED_ALL
    } else if transport.kind == Kind::ICMP_ERROR {
        // The packet that it quotes is what was judged.
        JUDGED_DATA
    } else {
        JUDGED_HEADERS
    };
    stop::check(weft_check_checksum(skb.raw(), u32::from(transport.protocol), transport.offset as u32, judged))
}

/// [`try_check`], by a function of its own for its stack; 0, or the number of the reason + 1. Global to the verifier, as in
/// `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_check_checksum(skb: *mut __sk_buff, protocol: u32, offset: u32, judged: u32) -> u32 {
    stop::code(try_check(skb, protocol as u8, offset, judged))
}

#[inline(always)]
fn try_check(skb: *mut __sk_buff, protocol: u8, offset: u32, judged: u32) -> Result<(), DropReason> {
    // SAFETY: a valid static; volatile, as the loader sets another value than the compiler sees. The map behind it is
    // frozen, so that the verifier knows the value.
    let layout = unsafe { ptr::read_volatile(&raw const SKB_LAYOUT) };
    if layout.start == 0 {
        return Ok(());
    }
    let mut window = MaybeUninit::<Window>::uninit();
    if !helpers::read_kernel(&mut window, skb as usize + usize::from(layout.start)) {
        return Err(DropReason::Kernel);
    }
    let bytes = window.as_ptr().cast::<u8>();
    // SAFETY: the helper wrote the window, and the loader gives offsets within it.
    let (summed, start, field, mac) = unsafe {
        let half = |at: u8| u32::from(*bytes.add(usize::from(at)).cast::<u16>());
        let summed = *bytes.add(usize::from(layout.summed)) >> layout.summed_shift & 3;
        (summed, half(layout.csum_start), half(layout.csum_offset), half(layout.mac_header))
    };
    // On this hook the packet begins with its Ethernet header.
    let start = start.wrapping_sub(mac);
    let harmless = match judged {
        JUDGED_HEADERS => offload::is_harmless(protocol, offset, start, field),
        JUDGED_DATA => start == offset && offload::is_harmless(protocol, offset, start, field),
        _ => false,
    };
    if summed != PARTIAL || harmless { Ok(()) } else { Err(DropReason::ChecksumOffload) }
}
