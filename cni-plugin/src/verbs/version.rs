// SPDX-License-Identifier: Apache-2.0
//! VERSION: tells the supported versions.

use std::io::Write;

use serde_json::json;

use crate::{config, error::CniError, version::SpecVersion};

/// Answers in the version that stdin asks for, or in the latest.
pub(super) fn run(stdin: &[u8], output: &mut dyn Write) -> Result<(), CniError> {
    let supported: Vec<_> = SpecVersion::ALL.iter().map(|version| version.as_str()).collect();
    let answer = json!({ "cniVersion": config::asked_version(stdin).as_str(), "supportedVersions": supported });
    writeln!(output, "{answer}").map_err(|error| CniError::io("cannot write the answer to stdout", error))
}
