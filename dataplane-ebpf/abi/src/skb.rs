// SPDX-License-Identifier: Apache-2.0
//! Where the kernel's own `struct sk_buff` has what `struct __sk_buff` does not show.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What tells of a checksum that is left to somebody else (`CHECKSUM_PARTIAL`): offsets in bytes, for this kernel. Given to the
/// programs as a global when they are loaded; nothing pinned has it, so [`crate::ABI_VERSION`] does not count it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
pub struct SkbLayout {
    /// Where the [`SkbLayout::WINDOW`] bytes begin that have what is asked of every packet; 0: not known, and nothing is checked.
    pub start: u16,
    /// Where `mac_header` is, from the beginning of the structure on. It is further away, and read where it is needed.
    pub mac_header: u16,
    /// The byte that `ip_summed` is in, from `start` on.
    pub summed: u8,
    /// The lowest of its two bits.
    pub summed_shift: u8,
    /// `csum_start`, from `start` on; `csum_offset` follows it.
    pub csum_start: u8,
    /// Not 0: the programs may read the structure itself, since [`SkbLayout::CAST`] calls a function of this kernel; else they copy the
    /// bytes, which takes 10 ns.
    pub casts: u8,
}

impl SkbLayout {
    /// How many bytes the programs copy of every packet, where they cannot read the structure itself: two words, which is what costs
    /// least.
    pub const WINDOW: usize = 16;
    /// The number of the helper that programs call in place of the kernel's function `bpf_cast_to_kern_ctx` (6.2): Rust's compiler cannot
    /// name such functions, so the loader writes the number of this kernel's own there. No helper has this number.
    pub const CAST: u32 = 0x7ef7_ca57;
    /// Name of the global in the object file.
    pub const GLOBAL: &str = "SKB_LAYOUT";
}

crate::pod!(SkbLayout);

const _: () = assert!(size_of::<SkbLayout>() == 8);
