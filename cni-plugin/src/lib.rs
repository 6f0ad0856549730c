// SPDX-License-Identifier: Apache-2.0
//! Weft's CNI plugin: CNI spec 1.1.0 down to 0.3.1, the verbs ADD, DEL, CHECK, GC, STATUS and VERSION.
//!
//! The plugin makes links and configures sandboxes; the node's agent decides names, addresses and policy and is asked
//! over [`weft_api`]. The plugin is synchronous and keeps nothing in memory between runs: what it must remember for DEL
//! stands in one small file per attachment ([`record`]).
//!
//! Every verb validates all of its input before it touches anything, applies in order, and on an error undoes exactly
//! what it applied, in reverse.

mod agent;
mod config;
mod device_info;
mod environment;
mod error;
mod file;
mod logging;
mod netlink;
mod record;
mod request;
mod result;
mod sandbox;
mod sandbox_plan;
mod sysctl;
mod tap;
mod verbs;
mod version;

use std::{
    io::{Read, Write},
    process::ExitCode,
};

pub use config::NetworkConfig;
pub use device_info::DeviceInfo;
pub use environment::{Command, Environment};
pub use error::{CniError, Code};
pub use record::Record;
pub use result::CniResult;
pub use version::{SpecVersion, UnsupportedVersion};

/// Runs one CNI call: environment by `variable`, configuration from `input`, the answer to `output`.
///
/// Exit status 1 goes with an error object on `output` (CNI spec 1.1.0, "Error").
pub fn run(variable: &dyn Fn(&str) -> Option<String>, input: &mut dyn Read, output: &mut dyn Write) -> ExitCode {
    let mut stdin = Vec::new();
    let answered = input
        .read_to_end(&mut stdin)
        .map_err(|error| CniError::new(Code::Io, format!("cannot read the network configuration from stdin: {error}")))
        .and_then(|_| verbs::dispatch(variable, &stdin, output));
    let Err(error) = answered else { return ExitCode::SUCCESS };
    tracing::error!(code = u32::from(error.code), "{error}");
    let version = config::asked_version(&stdin);
    if let Err(broken) = writeln!(output, "{}", error.to_json(version)) {
        tracing::error!(%broken, "cannot write the error to stdout");
    }
    ExitCode::FAILURE
}
