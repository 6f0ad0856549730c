// SPDX-License-Identifier: Apache-2.0
//! The life of the device: one front end after the other, as server or as client.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

use crate::device::Device;
use crate::pace::Pace;
use crate::protocol::channel::Channel;
use crate::session::{self, End};

/// Connections that are served as fast as they come: those of a VMM that starts, and tries a few times.
const CONNECTIONS_AT_ONCE: u32 = 32;
/// Between two of a front end that connects again and again after that.
const CONNECTION_PERIOD: Duration = Duration::from_millis(100);

/// Where front ends come from.
#[derive(Debug)]
pub enum Endpoint {
    /// They connect to this socket.
    Server(UnixListener),
    /// The device connects to a front end that listens, and again after a connection ended.
    Client {
        /// Path of the front end's socket.
        path: PathBuf,
        /// Time between two tries.
        retry: Duration,
    },
    /// One connection that was handed over; the device ends with it.
    Inherited(UnixStream),
}

/// Why the device cannot go on.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// `poll` failed.
    #[error("poll")]
    Poll(#[source] Errno),
    /// `accept` failed in a way that waiting does not mend.
    #[error("accept on the vhost-user socket")]
    Accept(#[source] io::Error),
}

/// Serves front ends until `stop` becomes readable.
///
/// # Errors
/// When the process cannot wait for connections any more.
pub fn run(endpoint: Endpoint, device: &mut Device, stop: BorrowedFd<'_>) -> Result<(), ServiceError> {
    match endpoint {
        Endpoint::Inherited(stream) => {
            serve(stream, device, stop, None);
            Ok(())
        }
        Endpoint::Server(listener) => run_server(&listener, device, stop),
        Endpoint::Client { path, retry } => run_client(&path, retry, device, stop),
    }
}

fn run_server(listener: &UnixListener, device: &mut Device, stop: BorrowedFd<'_>) -> Result<(), ServiceError> {
    let mut pace = Pace::new(CONNECTIONS_AT_ONCE, CONNECTION_PERIOD);
    while wait(stop, Some(listener.as_fd()), PollTimeout::NONE)? {
        if let Err(pause) = pace.take(Instant::now()) {
            // A front end that connects in a loop: it waits in the listener's queue.
            if !wait(stop, None, timeout(pause))? {
                return Ok(());
            }
            continue;
        }
        match listener.accept() {
            Ok((stream, _)) => {
                if serve(stream, device, stop, Some(listener)) == End::Stopped {
                    return Ok(());
                }
            }
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(ServiceError::Accept(error)),
        }
    }
    Ok(())
}

fn run_client(
    path: &std::path::Path,
    retry: Duration,
    device: &mut Device,
    stop: BorrowedFd<'_>,
) -> Result<(), ServiceError> {
    let pause = timeout(retry);
    let mut told = false;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                told = false;
                if serve(stream, device, stop, None) == End::Stopped {
                    return Ok(());
                }
            }
            Err(error) if !told => {
                tracing::info!(path = %path.display(), %error, "no front end yet, trying on");
                told = true;
            }
            Err(_) => {}
        }
        if !wait(stop, None, pause)? {
            return Ok(());
        }
    }
}

/// Serves one connection and lets go of everything it brought.
fn serve(stream: UnixStream, device: &mut Device, stop: BorrowedFd<'_>, listener: Option<&UnixListener>) -> End {
    device.metrics().update(|state| {
        state.connected = true;
        state.connections += 1;
    });
    tracing::info!("front end connected");
    let refuse = || refuse_second(listener);
    let result = Channel::new(stream)
        .map_err(session::SessionError::from)
        .and_then(|channel| session::serve(&channel, device, stop, listener.map(AsFd::as_fd), refuse));
    let end = match result {
        Ok(end) => {
            tracing::info!(?end, "front end gone");
            end
        }
        Err(error) => {
            let error = crate::chain(&error);
            tracing::warn!(%error, "connection ended");
            device.metrics().update(|state| state.last_error = Some(error));
            End::Closed
        }
    };
    device.disconnect();
    device.metrics().update(|state| state.connected = false);
    end
}

fn refuse_second(listener: Option<&UnixListener>) {
    match listener.map(UnixListener::accept) {
        Some(Ok(_)) => tracing::warn!("a second front end connected while one is served; it was refused"),
        Some(Err(error)) if !is_passing(&error) => tracing::warn!(%error, "accept on the vhost-user socket"),
        _ => {}
    }
}

fn timeout(time: Duration) -> PollTimeout {
    PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX)
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted)
}

/// Waits for `other` or for the time to pass; returns false when the device is to stop.
fn wait(stop: BorrowedFd<'_>, other: Option<BorrowedFd<'_>>, timeout: PollTimeout) -> Result<bool, ServiceError> {
    loop {
        let mut fds = vec![PollFd::new(stop, PollFlags::POLLIN)];
        fds.extend(other.map(|other| PollFd::new(other, PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Ok(_) => return Ok(!fds.first().and_then(PollFd::any).unwrap_or(false)),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(ServiceError::Poll(error)),
        }
    }
}
