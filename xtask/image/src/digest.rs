// SPDX-License-Identifier: Apache-2.0

//! SHA-256 digests, of bytes and of what passes through a writer.

use std::fmt;
use std::io::{self, Write};

use sha2::{Digest as _, Sha256};

/// A SHA-256 digest; shown as OCI descriptors have it, `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest(String);

impl Digest {
    /// Digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_hash(Sha256::new_with_prefix(bytes))
    }

    /// The hexadecimal digits alone: a blob's file name.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0
    }

    fn from_hash(hash: Sha256) -> Self {
        Self(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sha256:{}", self.0)
    }
}

/// Counts and hashes what it hands on.
pub(crate) struct Hashing<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Hashing<W> {
    pub(crate) fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), size: 0 }
    }

    /// The writer below, the digest and the number of bytes.
    pub(crate) fn finish(self) -> (W, Digest, u64) {
        (self.inner, Digest::from_hash(self.hash), self.size)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    // The example of FIPS 180-2, appendix B.1.
    #[test]
    fn the_standards_example_has_its_digest() {
        assert_eq!(Digest::of(b"abc").to_string(), OF_ABC);
    }

    #[test]
    fn what_passes_through_is_hashed_and_counted() {
        let mut hashing = Hashing::new(Vec::new());
        hashing.write_all(b"ab").unwrap();
        hashing.write_all(b"c").unwrap();
        let (inner, digest, size) = hashing.finish();
        assert_eq!((inner.as_slice(), digest.to_string().as_str(), size), (b"abc".as_slice(), OF_ABC, 3));
    }
}
