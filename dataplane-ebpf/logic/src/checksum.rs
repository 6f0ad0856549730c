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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
