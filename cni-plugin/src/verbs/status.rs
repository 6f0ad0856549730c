// SPDX-License-Identifier: Apache-2.0
//! STATUS: can ADD be served now? (CNI spec 1.1.0, "STATUS")

use weft_api::Request;

use crate::{
    agent::{self, SHORT_PATIENCE},
    config::NetworkConfig,
    error::{CniError, Code},
};

/// Asks the agent.
///
/// # Errors
/// [`Code::Unavailable`] with the reason.
pub(super) fn run(config: &NetworkConfig) -> Result<(), CniError> {
    let asked = agent::connect(config, SHORT_PATIENCE)
        .map_err(|error| CniError::from_agent(&error, false))
        .and_then(|mut client| agent::done(&mut client, &Request::Ready));
    asked.map_err(|error| CniError { code: Code::Unavailable, ..error })
}
