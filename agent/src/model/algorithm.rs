// SPDX-License-Identifier: Apache-2.0
//! Names of algorithms, as annotations and the configuration have them.

use serde::{Deserialize, Deserializer, Serializer};
use weft_abi::Algorithm;

/// Its name.
pub(crate) const fn name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Random => "random",
        Algorithm::Consistent => "consistent",
        Algorithm::LeastLoaded => "least-loaded",
    }
}

/// The one with this name.
///
/// # Errors
/// There is none; says which there are.
pub(crate) fn named(text: &str) -> Result<Algorithm, String> {
    let found = Algorithm::ALL.into_iter().find(|known| name(*known) == text);
    found.ok_or_else(|| format!("'{text}' is none of {}", Algorithm::ALL.map(name).join(", ")))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Algorithm, D::Error> {
    named(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub(super) fn serialize<S: Serializer>(algorithm: &Algorithm, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name(*algorithm))
}
