// SPDX-License-Identifier: Apache-2.0
//! Incremental internet checksums (RFC 1624).

use weft_abi::Addr;

/// The difference that replacing `old` by `new` makes to a ones' complement sum, unfolded: add differences, then [`fold32`].
#[inline(always)]
#[must_use]
pub const fn word_diff(old: u32, new: u32) -> u64 {
    (!old) as u64 + new as u64
}

/// [`word_diff`] of two 16-bit fields in network byte order.
#[inline(always)]
#[must_use]
pub const fn half_diff(old: u16, new: u16) -> u64 {
    (!old) as u64 + new as u64
}

/// [`word_diff`] of all words of an address; for mapped IPv4 addresses that is the difference of the IPv4 word alone.
#[inline(always)]
#[must_use]
pub const fn addr_diff(old: &Addr, new: &Addr) -> u64 {
    let [a, b, c, d] = old.0;
    let [e, f, g, h] = new.0;
    word_diff(a, e) + word_diff(b, f) + word_diff(c, g) + word_diff(d, h)
}

/// The sum of an address' words, for a checksum that is computed anew: add sums, then [`update`] a field of `0xffff`.
#[inline(always)]
#[must_use]
pub const fn addr_sum(addr: &Addr) -> u64 {
    let [a, b, c, d] = addr.0;
    a as u64 + b as u64 + c as u64 + d as u64
}

/// Folds a sum of differences to the 32 bits that `bpf_l4_csum_replace` takes with size 0.
#[inline(always)]
#[must_use]
pub const fn fold32(sum: u64) -> u32 {
    let once = (sum & 0xffff_ffff) + (sum >> 32);
    ((once & 0xffff_ffff) + (once >> 32)) as u32
}

/// Applies a difference to a checksum field as it stands in a header (network byte order, complemented).
#[inline(always)]
#[must_use]
pub const fn update(field: u16, diff: u64) -> u16 {
    let sum = fold32(diff) as u64 + (!field) as u64;
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// Who has summed a packet up, as the kernel's `ip_summed` tells.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Summed(u8);

impl Summed {
    /// `CHECKSUM_PARTIAL`: the field has the sum of the pseudo header, and whoever sends the packet adds the rest.
    pub const PARTIAL: Self = Self(3);
    /// Not known here.
    pub const UNKNOWN: Self = Self(4);
    /// `CHECKSUM_COMPLETE`: the kernel has a sum of its own beside the packet.
    const COMPLETE: Self = Self(2);

    /// Of the kernel's two bits.
    #[inline(always)]
    #[must_use]
    pub const fn of(bits: u8) -> Self {
        Self(bits & 3)
    }

    /// Whether the field in the packet is all that there is to keep right.
    #[inline(always)]
    #[must_use]
    pub const fn is_in_packet(self) -> bool {
        self.0 != Self::COMPLETE.0 && self.0 != Self::UNKNOWN.0
    }

    /// The field, network byte order, once these have changed in the pseudo header and in what is summed, see [`word_diff`].
    #[inline(always)]
    #[must_use]
    pub const fn update(self, field: u16, pseudo_diff: u64, diff: u64) -> u16 {
        if self.0 == Self::PARTIAL.0 { !update(!field, pseudo_diff) } else { update(field, pseudo_diff + diff) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// As the kernel does it: `inet_proto_csum_replace_by_diff` of `net/core/utils.c`.
        #[test]
        fn a_sum_that_is_left_to_the_sender_is_of_the_pseudo_header(old: u32, new: u32, ports: [u16; 2], rest: u32) {
            let sum = |words: &[u32]| !words.iter().fold(0xffff, |field, word| update(field, u64::from(*word)));
            let pseudo = word_diff(old, new);
            let moved = half_diff(ports[0], ports[1]);
            prop_assert_eq!(Summed::PARTIAL.update(sum(&[old, rest]), pseudo, moved), sum(&[new, rest]));
            let whole = |address, port: u16| !sum(&[address, rest, port.into()]);
            prop_assert_eq!(Summed::of(0).update(whole(old, ports[0]), pseudo, moved), whole(new, ports[1]));
        }
    }

    fn full(words: &[u16]) -> u16 {
        let mut sum: u64 = words.iter().map(|word| u64::from(*word)).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    proptest! {
        #[test]
        fn incremental_equals_full(mut words in proptest::collection::vec(any::<u16>(), 4..20), new in any::<[u16; 2]>()) {
            words.push(1); // no all-zero sums: 0 and 0xffff are the same number there
            let before = full(&words);
            let old = [words[0], words[1]];
            words[..2].copy_from_slice(&new);
            let word = |half: [u16; 2]| (u32::from(half[1]) << 16) | u32::from(half[0]);
            prop_assert_eq!(update(before, word_diff(word(old), word(new))), full(&words));
        }
    }
}
