// SPDX-License-Identifier: Apache-2.0
//! The programs' clock.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// [`crate::Way::last_seen`] counts units of 2^30 ns (1.07 s) of `CLOCK_MONOTONIC`: a shift, no division, in the programs.
pub const TICK_SHIFT: u32 = 30;

/// How this kernel's jiffies tell `CLOCK_MONOTONIC`: the verifier puts the word in place of the helper that reads it, where the clock's
/// own helper is a call. Given to the programs as a global when they are loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
pub struct Jiffies {
    /// Nanoseconds of one; 0: not known, and the clock is asked.
    pub nanos: u32,
    /// The jiffy that the kernel began with (`INITIAL_JIFFIES` of `linux/jiffies.h`).
    pub first: u32,
}

impl Jiffies {
    /// Name of the global in the object file.
    pub const GLOBAL: &str = "JIFFIES";

    /// Of a kernel whose coarse clocks move every `nanos` nanoseconds, 1 to 10 ms: with each jiffy. `INITIAL_JIFFIES` is five minutes
    /// before the 32-bit counter of old kernels turns over.
    #[must_use]
    pub const fn every(nanos: u32) -> Self {
        if nanos < 1_000_000 || nanos > 10_000_000 {
            return Self { nanos: 0, first: 0 };
        }
        // HZ as the kernel has it: `TICK_NSEC` is rounded.
        let per_second = (1_000_000_000 + nanos / 2) / nanos;
        Self { nanos, first: (300 * per_second).wrapping_neg() }
    }
}

crate::pod!(Jiffies);

const _: () = assert!(size_of::<Jiffies>() == 8);

#[cfg(test)]
mod tests {
    use super::Jiffies;

    /// `linux/jiffies.h`, for the values of `CONFIG_HZ` that there are.
    #[test]
    fn jiffies_begin_where_the_kernel_begins() {
        for (nanos, hz) in [(10_000_000, 100), (4_000_000, 250), (3_333_333, 300), (1_000_000, 1000)] {
            assert_eq!(Jiffies::every(nanos), Jiffies { nanos, first: (-300_i32 * hz) as u32 });
        }
        assert_eq!((Jiffies::every(1), Jiffies::every(0)), (Jiffies::default(), Jiffies::default()));
    }
}
