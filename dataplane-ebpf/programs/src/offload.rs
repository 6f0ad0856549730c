// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! What a workload asks the kernel to do to its packet after the programs have seen it: checksums and segments.

use core::{mem::MaybeUninit, ptr};

use aya_ebpf::bindings::__sk_buff;
use weft_abi::{DropReason, SkbLayout};
use weft_logic::{
    Frame as _,
    checksum::Summed,
    header::{Kind, Piece, Transport},
    offload,
};

use crate::{helpers, skb::Skb, stop};

/// Set by the loader. No helper shows these fields.
#[unsafe(no_mangle)]
static SKB_LAYOUT: SkbLayout =
    SkbLayout { start: 0, mac_header: 0, summed: 0, summed_shift: 0, csum_start: 0, casts: 0 };

/// What policy has judged of a packet: its headers; what is behind them too; of a later piece, another packet's headers.
const JUDGED_HEADERS: u32 = 0;
const JUDGED_DATA: u32 = 1;
const JUDGED_ALL: u32 = 2;

/// The bytes of the kernel's `struct sk_buff` that [`SkbLayout`] describes.
#[repr(C, align(8))]
struct Window([u8; SkbLayout::WINDOW]);

/// The two halves of a checksum that is still to be written: where it starts in the buffer, and where it goes from there.
#[derive(Clone, Copy)]
#[repr(C)]
struct Unwritten {
    start: u16,
    field: u16,
}

/// Refuses a packet with a checksum that would be written over what policy has judged, and one in absurdly short segments; tells who
/// has `summed` any other up, where that is known.
#[inline(always)]
pub fn check(skb: &Skb, transport: &Transport, summed: &mut Summed) -> Result<(), DropReason> {
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
    let layout = layout();
    if layout.start == 0 {
        return Ok(());
    }
    match unwritten(skb, &layout, summed)? {
        Some(Unwritten { start, field }) => {
            let checksum = u32::from(start) | u32::from(field) << 16;
            let protocol = u32::from(transport.protocol);
            stop::check(weft_check_checksum(skb.raw(), checksum, protocol, transport.offset as u32, judged))
        }
        None => Ok(()),
    }
}

/// Who has summed a packet up of which nothing is to be checked.
#[inline(always)]
pub fn summed(skb: &Skb) -> Summed {
    let (layout, mut summed) = (layout(), Summed::UNKNOWN);
    if layout.start != 0 {
        // Where it cannot be read it stays unknown.
        let _where = unwritten(skb, &layout, &mut summed);
    }
    summed
}

#[inline(always)]
fn layout() -> SkbLayout {
    // SAFETY: a valid static; volatile, as the loader sets another value than the compiler sees. The map behind it is
    // frozen, so that the verifier knows the value.
    unsafe { ptr::read_volatile(&raw const SKB_LAYOUT) }
}

/// The checksum of the packet that is left to somebody else, if one is.
#[inline(always)]
fn unwritten(skb: &Skb, layout: &SkbLayout, summed: &mut Summed) -> Result<Option<Unwritten>, DropReason> {
    let mut window = MaybeUninit::<Window>::uninit();
    let bytes = if layout.casts == 0 {
        if !helpers::read_kernel(&mut window, skb.raw() as usize + usize::from(layout.start)) {
            return Err(DropReason::Kernel);
        }
        window.as_ptr().cast::<u8>()
    } else {
        helpers::kernel_skb(skb.raw()).wrapping_add(usize::from(layout.start))
    };
    // SAFETY: the helper wrote the window, or the verifier knows the structure, and the loader gives offsets within both; the halves are
    // aligned in the kernel's structure, whose fields begin where the window does.
    unsafe {
        *summed = Summed::of(*bytes.add(usize::from(layout.summed)) >> layout.summed_shift);
        let halves = bytes.add(usize::from(layout.csum_start)).cast::<Unwritten>();
        Ok((*summed == Summed::PARTIAL).then(|| *halves))
    }
}

/// Whether a checksum may be written to, by a function of its own for its stack; 0, or the number of the reason + 1. Global to
/// the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_check_checksum(skb: *mut __sk_buff, checksum: u32, protocol: u32, offset: u32, judged: u32) -> u32 {
    stop::code(try_check(skb, checksum, protocol as u8, offset, judged))
}

#[inline(always)]
fn try_check(skb: *mut __sk_buff, checksum: u32, protocol: u8, offset: u32, judged: u32) -> Result<(), DropReason> {
    let layout = layout();
    let mac_header = mac_header(skb, &layout).ok_or(DropReason::Kernel)?;
    // On this hook the packet begins with its Ethernet header.
    let start = (checksum & 0xffff).wrapping_sub(u32::from(mac_header));
    let field = checksum >> 16;
    let harmless = match judged {
        JUDGED_HEADERS => offload::is_harmless(protocol, offset, start, field),
        JUDGED_DATA => start == offset && offload::is_harmless(protocol, offset, start, field),
        _ => false,
    };
    if harmless { Ok(()) } else { Err(DropReason::ChecksumOffload) }
}

/// Where the packet's Ethernet header is in its buffer.
#[inline(always)]
fn mac_header(skb: *mut __sk_buff, layout: &SkbLayout) -> Option<u16> {
    let offset = usize::from(layout.mac_header);
    if layout.casts != 0 {
        // SAFETY: the verifier knows the structure.
        return Some(unsafe { *helpers::kernel_skb(skb).wrapping_add(offset).cast::<u16>() });
    }
    let mut value = MaybeUninit::<u16>::uninit();
    // SAFETY: the helper wrote it, where it says so.
    helpers::read_kernel(&mut value, skb as usize + offset).then(|| unsafe { value.assume_init() })
}
