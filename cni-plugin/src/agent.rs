// SPDX-License-Identifier: Apache-2.0
//! Questions to the node's agent.

use std::time::Duration;

use weft_api::{Answer, AttachmentId, AttachmentSpec, Client, ClientError, Request};

use crate::{
    config::NetworkConfig,
    error::{CniError, Code},
    record::Folder,
};

/// How long ADD waits for one answer: well below the two minutes after which kubelet gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How long DEL and STATUS wait: a release can also be recorded.
pub(crate) const SHORT_PATIENCE: Duration = Duration::from_secs(10);

/// Connects to the agent that `config` names.
pub(crate) fn connect(config: &NetworkConfig, patience: Duration) -> Result<Client, ClientError> {
    Client::connect(&config.agent_socket, Some(patience))
}

/// Asks for addresses and names; answered by [`Answer::Allocation`].
pub(crate) fn allocate(client: &mut Client, spec: &AttachmentSpec) -> Result<Answer, ClientError> {
    client.call(&Request::Allocate(spec.clone()))
}

/// Sends a request that is answered by [`Answer::Done`].
pub(crate) fn done(client: &mut Client, request: &Request) -> Result<(), CniError> {
    match client.call(request).map_err(|error| CniError::from_agent(&error, false))? {
        Answer::Done => Ok(()),
        other => Err(unexpected("the request", &other)),
    }
}

/// Releases every attachment of `network` but `valid`.
pub(crate) fn collect_garbage(client: &mut Client, network: &str, valid: Vec<AttachmentId>) -> Result<(), CniError> {
    let request = Request::Gc { network: network.to_owned(), valid };
    match client.call(&request).map_err(|error| CniError::from_agent(&error, false))? {
        Answer::Released(released) => {
            released.iter().for_each(|id| tracing::info!(%id, "released"));
            Ok(())
        }
        other => Err(unexpected("gc", &other)),
    }
}

/// Releases `id`, or records the release for an agent that is away or fails.
///
/// # Errors
/// Neither worked: the address would be lost, so that the runtime must call again.
pub(crate) fn release(config: &NetworkConfig, id: &AttachmentId) -> Result<(), CniError> {
    let asked = connect(config, SHORT_PATIENCE)
        .map_err(|error| CniError::from_agent(&error, false))
        .and_then(|mut client| done(&mut client, &Request::Release { id: id.clone() }));
    let pending = Folder::of_pending(&config.pending_dir);
    match asked {
        Ok(()) => forget_pending(&pending, id),
        Err(error) => {
            tracing::warn!(%id, %error, "the agent did not release the attachment, leaving it a note");
            pending.save(id, id).map_err(|failed| CniError::new(Code::Io, format!("{error}; and {failed}")))
        }
    }
}

/// A release that was recorded for an earlier attachment of the same name must not hit the one that comes now.
pub(crate) fn settle_pending(config: &NetworkConfig, client: &mut Client, id: &AttachmentId) -> Result<(), CniError> {
    let pending = Folder::of_pending(&config.pending_dir);
    if !pending.contains(id) {
        return Ok(());
    }
    done(client, &Request::Release { id: id.clone() })?;
    forget_pending(&pending, id)
}

fn forget_pending(pending: &Folder, id: &AttachmentId) -> Result<(), CniError> {
    pending.remove(id).map_err(|error| CniError::new(Code::Io, error.to_string()))
}

/// An answer of another kind than the request has.
pub(crate) fn unexpected(request: &str, answer: &Answer) -> CniError {
    CniError::new(
        Code::Protocol,
        format!("the weft agent answered {request} by {answer:?}; install the same version of weft-cni and weft-agent"),
    )
}
