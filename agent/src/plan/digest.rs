// SPDX-License-Identifier: Apache-2.0
//! A hash that stays the same over versions of the standard library and over restarts.

use std::hash::Hasher;

/// FNV-1a, 64 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>); everything is written with a fixed width and order.
#[derive(Clone, Debug)]
pub(crate) struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Digest {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

impl Digest {
    /// The digest of some bytes, spread over all bits so that such digests may be added up.
    pub(crate) fn spread(bytes: &[u8]) -> u64 {
        let mut digest = Self::default();
        digest.write(bytes);
        // The finalizer of splitmix64: FNV's low bits alone would cancel out in sums.
        let mut x = digest.finish();
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_test_vectors() {
        for (text, expected) in
            [("", 0xcbf2_9ce4_8422_2325), ("a", 0xaf63_dc4c_8601_ec8c), ("foobar", 0x8594_4171_f739_67e8)]
        {
            let mut digest = Digest::default();
            digest.write(text.as_bytes());
            assert_eq!(digest.finish(), expected, "{text}");
        }
    }
}
