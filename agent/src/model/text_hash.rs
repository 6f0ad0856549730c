// SPDX-License-Identifier: Apache-2.0
//! Numbers of what policies are compiled to: keyed hashes of what it is, so that nobody has to remember them.

use std::{fmt, hash::Hasher as _};

use siphasher::sip::SipHasher13;

/// Key of the hash. It is the node's secret: who writes policies cannot choose whose numbers meet.
#[derive(Clone, Copy, Default, Eq, PartialEq)]
pub struct HashKey(pub [u64; 2]);

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(..)")
    }
}

impl HashKey {
    /// Begins the hash of a thing of one kind: things of different kinds have different numbers.
    pub(crate) fn of(self, kind: &str) -> KeyedHash {
        let Self([first, second]) = self;
        KeyedHash(SipHasher13::new_with_keys(first, second)).text(kind)
    }
}

/// A hash under way. What is added knows its length, so that nothing runs into what comes after it.
#[derive(Clone, Debug)]
pub(crate) struct KeyedHash(SipHasher13);

impl KeyedHash {
    pub(crate) fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.write(&(bytes.len() as u64).to_le_bytes());
        self.0.write(bytes);
        self
    }

    pub(crate) fn number(mut self, number: u64) -> Self {
        self.0.write(&number.to_le_bytes());
        self
    }

    pub(crate) fn finish(self) -> u64 {
        self.0.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_has_one_number_by_a_key_and_others_have_others() {
        let key = HashKey([7, 9]);
        let number = |key: HashKey, kind: &str, texts: &[&str]| {
            texts.iter().fold(key.of(kind), |hash, text| hash.text(text)).finish()
        };
        assert_eq!(number(key, "term", &["a"]), number(key, "term", &["a"]));
        let all = [
            number(key, "term", &["a"]),
            number(HashKey([1, 2]), "term", &["a"]),
            number(key, "class", &["a"]),
            number(key, "term", &["b"]),
            number(key, "term", &["ab"]),
            number(key, "term", &["a", "b"]),
            number(key, "term", &["", "ab"]),
        ];
        assert_eq!(all.into_iter().collect::<std::collections::BTreeSet<_>>().len(), all.len());
        assert!(format!("{key:?}").contains(".."), "a secret");
    }
}
