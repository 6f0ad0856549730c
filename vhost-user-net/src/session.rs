// SPDX-License-Identifier: Apache-2.0
//! One connection of a front end, from its first message to its end.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

use crate::device::Device;
use crate::protocol::channel::{Channel, ChannelError};
use crate::protocol::message::{self, MessageError};

/// How long a connection may take to end when the next one is there already.
const GRACE_MS: u16 = 100;

/// Why a connection ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The front end closed it.
    Closed,
    /// The device is to stop.
    Stopped,
}

/// Why a connection had to be ended.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The connection broke.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// A malformed message.
    #[error("malformed message")]
    Message(#[from] MessageError),
    /// A request failed and the front end has no other way to learn it.
    #[error("a request of the front end failed: {0}")]
    Request(String),
    /// `poll` failed.
    #[error("poll of the vhost-user socket")]
    Poll(#[source] Errno),
}

/// Serves one connection until it ends, or until `stop` becomes readable. `refuse` is called when somebody else
/// connects meanwhile, that is when `listener` becomes readable.
///
/// # Errors
/// When the connection breaks, a message is malformed, or a request fails that the front end did not want
/// acknowledged. The device keeps its rings until [`Device::disconnect`].
pub fn serve(
    channel: &Channel,
    device: &mut Device,
    stop: BorrowedFd<'_>,
    listener: Option<BorrowedFd<'_>>,
    mut refuse: impl FnMut(),
) -> Result<End, SessionError> {
    loop {
        let mut fds = vec![PollFd::new(stop, PollFlags::POLLIN), PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        fds.extend(listener.map(|listener| PollFd::new(listener, PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(SessionError::Poll(error)),
        }
        let ready = |at: usize| fds.get(at).and_then(PollFd::any).unwrap_or(false);
        if ready(0) {
            return Ok(End::Stopped);
        }
        if ready(1) && !turn(channel, device)? {
            return Ok(End::Closed);
        }
        // A front end that closed this connection and made the next one at once may be seen on the listener first: the
        // kernel looks at one descriptor after the other, and a process it forked may hold the old one a moment longer.
        if ready(2) && !ready(1) && !is_ready(channel)? {
            refuse();
        }
    }
}

/// Whether something comes on this connection, be it its end, within [`GRACE_MS`].
fn is_ready(channel: &Channel) -> Result<bool, SessionError> {
    match poll(&mut [PollFd::new(channel.as_fd(), PollFlags::POLLIN)], PollTimeout::from(GRACE_MS)) {
        Ok(count) => Ok(count > 0),
        Err(Errno::EINTR) => Ok(true),
        Err(error) => Err(SessionError::Poll(error)),
    }
}

/// Serves one message; returns false when there is none any more.
fn turn(channel: &Channel, device: &mut Device) -> Result<bool, SessionError> {
    let Some(raw) = channel.receive()? else { return Ok(false) };
    let header = raw.header;
    let wants_ack = header.needs_reply() && device.acknowledges();
    tracing::debug!(request = ?message::Request::from_number(header.request), size = header.size, fds = raw.fds.len(), "request");
    let result = message::decode(&header, &raw.payload, raw.fds)
        .map_err(|error| error.to_string())
        .and_then(|message| device.handle(message).map_err(|error| crate::chain(&error)));
    match result {
        Ok(reply) => {
            let payload = reply.payload().or_else(|| wants_ack.then(|| 0u64.to_ne_bytes().to_vec()));
            if let Some(payload) = payload {
                channel.send(&header.reply(&payload))?;
            }
        }
        Err(error) => refuse(channel, device, &header, wants_ack, error)?,
    }
    Ok(true)
}

fn refuse(
    channel: &Channel,
    device: &Device,
    header: &message::Header,
    wants_ack: bool,
    error: String,
) -> Result<(), SessionError> {
    let request = message::Request::from_number(header.request);
    device.metrics().update(|state| state.last_error = Some(error.clone()));
    // A request with a reply of its own has no form for a failure.
    let has_reply = request.is_some_and(message::Request::has_own_reply);
    if !wants_ack || has_reply {
        return Err(SessionError::Request(error));
    }
    tracing::warn!(?request, %error, "request refused");
    channel.send(&header.reply(&1u64.to_ne_bytes()))?;
    Ok(())
}
