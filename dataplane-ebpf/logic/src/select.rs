// SPDX-License-Identifier: Apache-2.0
//! Choosing evenly.

/// Maps a random word evenly to `0..count` without division; 0 where `count` is 0.
#[inline(always)]
#[must_use]
pub const fn index(random: u32, count: u32) -> u32 {
    ((random as u64 * count as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_covers_the_range_and_never_leaves_it() {
        for count in [1_u32, 2, 3, 7, 250] {
            assert_eq!(index(0, count), 0);
            assert_eq!(index(u32::MAX, count), count - 1);
        }
        assert_eq!(index(u32::MAX, 0), 0);
    }
}
