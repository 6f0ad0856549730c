// SPDX-License-Identifier: Apache-2.0
//! The verbs of the CNI protocol.

mod add;
mod check;
mod del;
mod gc;
mod journal;
mod status;
mod version;

use std::io::Write;

use weft_api::AttachmentId;

use crate::{
    config::NetworkConfig,
    environment::{Command, Environment},
    error::{CniError, Code},
    logging,
    version::SpecVersion,
};

/// Runs the verb that `CNI_COMMAND` names.
pub(crate) fn dispatch(
    variable: &dyn Fn(&str) -> Option<String>,
    stdin: &[u8],
    output: &mut dyn Write,
) -> Result<(), CniError> {
    let command = variable("CNI_COMMAND").filter(|command| !command.is_empty()).ok_or_else(|| {
        CniError::environment("the environment variable CNI_COMMAND is missing; a container runtime must run weft-cni")
    })?;
    match command.parse()? {
        Command::Version => version::run(stdin, output),
        Command::Del => del::run(variable, stdin),
        Command::Add => {
            let config = start(stdin, SpecVersion::V0_3_1, "ADD")?;
            add::run(&Environment::read(variable)?, &config, output)
        }
        Command::Check => {
            let config = start(stdin, SpecVersion::V0_4_0, "CHECK")?;
            check::run(&Environment::read(variable)?, &config)
        }
        Command::Gc => gc::run(&start(stdin, SpecVersion::V1_1_0, "GC")?),
        Command::Status => status::run(&start(stdin, SpecVersion::V1_1_0, "STATUS")?),
    }
}

/// Reads the configuration of a verb that came with `since`, and starts logging.
fn start(stdin: &[u8], since: SpecVersion, verb: &str) -> Result<NetworkConfig, CniError> {
    let config = NetworkConfig::strict(stdin)?;
    logging::start(&config);
    if config.version < since {
        let (asked, since) = (config.version.as_str(), since.as_str());
        let msg = format!("cniVersion {asked} has no {verb}; set it to {since} or later");
        return Err(CniError::new(Code::IncompatibleVersion, msg));
    }
    Ok(config)
}

/// The `ifalias` of the host's end of an attachment: tells people whose it is, and DEL and GC that it is theirs.
fn alias(id: &AttachmentId) -> String {
    format!("weft:{id}")
}
