// SPDX-License-Identifier: Apache-2.0
//! Versions of the CNI spec.

use std::str::FromStr;

/// A supported version of the CNI spec, oldest first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum SpecVersion {
    /// 0.3.1: ADD, DEL, VERSION.
    V0_3_1,
    /// 0.4.0 adds CHECK.
    V0_4_0,
    /// 1.0.0 drops `ips[].version`.
    V1_0_0,
    /// 1.1.0 adds GC, STATUS, `interfaces[].mtu` and `interfaces[].socketPath`.
    V1_1_0,
}

impl SpecVersion {
    /// All, oldest first.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// What answers use where no supported version was asked.
    pub const LATEST: Self = Self::V1_1_0;

    /// The version as it stands in `cniVersion`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }
}

/// A version of the spec that is not supported.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("cniVersion '{asked}' is not supported; set it to one of {}", SpecVersion::ALL.map(SpecVersion::as_str).join(", "))]
pub struct UnsupportedVersion {
    /// What was asked for.
    pub asked: String,
}

impl FromStr for SpecVersion {
    type Err = UnsupportedVersion;

    fn from_str(text: &str) -> Result<Self, UnsupportedVersion> {
        let found = Self::ALL.into_iter().find(|version| version.as_str() == text);
        found.ok_or_else(|| UnsupportedVersion { asked: text.to_owned() })
    }
}
