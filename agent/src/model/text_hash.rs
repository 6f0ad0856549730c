// SPDX-License-Identifier: Apache-2.0
//! Names of what is told apart by a text and numbered in the maps: policy sets, and sets of peers.

use std::fmt;

use siphasher::sip128::{Hasher128 as _, SipHasher13};

/// The keyed hash of a canonical text: 128 bits, so that two texts do not have one name.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TextHash(u128);

/// Key of that hash. It is the node's secret: who writes policies cannot choose whose numbers meet.
#[derive(Clone, Copy, Default, Eq, PartialEq)]
pub struct HashKey(pub [u64; 2]);

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(..)")
    }
}

impl HashKey {
    /// The name of a text.
    pub(crate) fn of_text(self, text: &str) -> TextHash {
        self.of_bytes([text.as_bytes()])
    }

    /// The name of a set of peers, each with a port; they are in order.
    pub(crate) fn of_peers(self, peers: &[(TextHash, u16)]) -> TextHash {
        let bytes = |(peer, port): &(TextHash, u16)| (peer.0.to_le_bytes(), port.to_le_bytes());
        let bytes: Vec<_> = peers.iter().map(bytes).collect();
        self.of_bytes(bytes.iter().flat_map(|(peer, port)| [&peer[..], &port[..]]))
    }

    fn of_bytes<'a>(self, parts: impl IntoIterator<Item = &'a [u8]>) -> TextHash {
        let Self([first, second]) = self;
        let mut hasher = SipHasher13::new_with_keys(first, second);
        parts.into_iter().for_each(|part| std::hash::Hasher::write(&mut hasher, part));
        TextHash(hasher.finish128().into())
    }
}

impl TextHash {
    /// A number that is likely its own, of `count` from 0.
    pub(crate) const fn number(self, count: u32) -> u32 {
        // Smaller than `count`.
        (self.0 % count as u128) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_one_name_by_a_key_and_a_set_another_than_any_other() {
        let key = HashKey([7, 9]);
        assert_eq!(key.of_text("a"), key.of_text("a"));
        assert_ne!(key.of_text("a"), key.of_text("b"));
        assert_ne!(key.of_text("a"), HashKey([1, 2]).of_text("a"));
        let [a, b] = ["a", "b"].map(|text| key.of_text(text));
        let sets: [&[(TextHash, u16)]; 6] =
            [&[], &[(a, 0)], &[(b, 0)], &[(a, 80)], &[(a, 0), (b, 0)], &[(a, 0), (a, 80)]];
        let names: std::collections::BTreeSet<TextHash> = sets.into_iter().map(|set| key.of_peers(set)).collect();
        assert_eq!(names.len(), sets.len());
        assert!(format!("{key:?}").contains(".."), "a secret");
    }
}
