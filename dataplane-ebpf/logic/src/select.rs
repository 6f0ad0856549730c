// SPDX-License-Identifier: Apache-2.0
//! Choosing: a backend for a flow, a port for a masqueraded one.

/// Maps a random word evenly to `0..count` without division; 0 where `count` is 0.
#[inline(always)]
#[must_use]
pub const fn index(random: u32, count: u32) -> u32 {
    ((random as u64 * count as u64) >> 32) as u32
}

/// The `attempt`-th port (host byte order) to try in a range of `count` ports from `first`, for a random seed.
///
/// Attempts of one seed step by a number that is prime to every range, so that they never meet.
#[inline(always)]
#[must_use]
pub const fn masquerade_port(first: u16, count: u16, seed: u32, attempt: u32) -> u16 {
    let start = index(seed, count as u32);
    let offset = start + attempt * 257;
    let count = if count == 0 { 1 } else { count as u32 };
    first.wrapping_add((offset % count) as u16)
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

    #[test]
    fn masquerade_ports_stay_in_the_range() {
        for attempt in 0..16 {
            let port = masquerade_port(61_000, 4_536, u32::MAX, attempt);
            assert!(port >= 61_000, "{port}");
        }
    }
}
