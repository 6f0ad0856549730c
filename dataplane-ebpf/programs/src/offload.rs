// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! What a workload asks the kernel to do to its packet after the programs have seen it: checksums and segments.

use core::{mem::MaybeUninit, ptr};

use weft_abi::{DropReason, SkbLayout};
use weft_logic::{
    header::{Piece, Transport},
    offload, protocol,
};

use crate::{helpers, skb::Skb};

/// Set by the loader. No helper shows these fields, and objects made of Rust cannot call the kernel's functions.
#[unsafe(no_mangle)]
static SKB_LAYOUT: SkbLayout =
    SkbLayout { start: 0, summed: 0, summed_shift: 0, csum_start: 0, csum_offset: 0, mac_header: 0, pad: 0 };

/// `CHECKSUM_PARTIAL`.
const PARTIAL: u8 = 3;

/// The bytes of the kernel's `struct sk_buff` that [`SkbLayout`] describes.
#[repr(C, align(8))]
struct Window([u8; SkbLayout::WINDOW]);

/// Refuses a packet with a checksum that would be written over what policy has judged, and one in absurdly short segments.
#[inline(always)]
pub fn check(skb: &Skb, transport: &Transport) -> Result<(), DropReason> {
    let segment = skb.gso_size();
    if segment != 0 && segment < offload::MIN_SEGMENT && transport.protocol == protocol::TCP {
        return Err(DropReason::ChecksumOffload);
    }
    // SAFETY: a valid static; volatile, as the loader sets another value than the compiler sees. The map behind it is
    // frozen, so that the verifier knows the value.
    let layout = unsafe { ptr::read_volatile(&raw const SKB_LAYOUT) };
    if layout.start == 0 {
        return Ok(());
    }
    let mut window = MaybeUninit::<Window>::uninit();
    if !helpers::read_kernel(&mut window, skb.raw() as usize + usize::from(layout.start)) {
        return Err(DropReason::Kernel);
    }
    let bytes = window.as_ptr().cast::<u8>();
    // SAFETY: the helper wrote the window, and the loader gives offsets within it.
    let (summed, start, field, mac) = unsafe {
        let half = |at: u8| u32::from(*bytes.add(usize::from(at)).cast::<u16>());
        let summed = *bytes.add(usize::from(layout.summed)) >> layout.summed_shift & 3;
        (summed, half(layout.csum_start), half(layout.csum_offset), half(layout.mac_header))
    };
    if summed != PARTIAL {
        return Ok(());
    }
    // On this hook the packet begins with its Ethernet header.
    let harmless = transport.piece != Piece::Later
        && offload::is_harmless(transport.protocol, transport.offset as u32, start.wrapping_sub(mac), field);
    if harmless { Ok(()) } else { Err(DropReason::ChecksumOffload) }
}
