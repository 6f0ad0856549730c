// SPDX-License-Identifier: Apache-2.0
//! Messages on a Unix socket: bytes and file descriptors in, bytes out.

use std::io::{IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use thiserror::Error;

use super::message::{HEADER_LEN, Header, MessageError};

/// How long the rest of a message may take once its first byte is there, and a reply until the front end takes it.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most descriptors the kernel passes in one message (`SCM_MAX_FD`): with room for them none is lost unseen.
const MAX_FDS: usize = 253;

/// Why a connection cannot go on.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The front end closed the connection in the middle of a message.
    #[error("the front end closed the connection after {got} of {want} bytes of a message")]
    Cut {
        /// Bytes received.
        got: usize,
        /// Bytes of the part that was being read.
        want: usize,
    },
    /// The rest of a message did not come.
    #[error("the rest of a message did not come within {} s", PATIENCE.as_secs())]
    Slow,
    /// The header is malformed.
    #[error(transparent)]
    Header(#[from] MessageError),
    /// A system call failed.
    #[error("{call} of the vhost-user socket")]
    System {
        /// Name of the call.
        call: &'static str,
        /// What it said.
        source: std::io::Error,
    },
}

/// One message as it came.
#[derive(Debug)]
pub struct Raw {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: Vec<u8>,
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// A connection to a front end.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
}

impl Channel {
    /// Talks over this connection.
    ///
    /// # Errors
    /// When the socket's timeout cannot be set.
    pub fn new(stream: UnixStream) -> Result<Self, ChannelError> {
        let system = |call| move |source| ChannelError::System { call, source };
        stream.set_nonblocking(false).map_err(system("fcntl"))?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(system("setsockopt(SO_SNDTIMEO)"))?;
        Ok(Self { stream })
    }

    /// Receives one message; `None` when the front end closed the connection between two messages.
    ///
    /// # Errors
    /// When the connection breaks or the header is malformed.
    pub fn receive(&self) -> Result<Option<Raw>, ChannelError> {
        let deadline = Instant::now() + PATIENCE;
        let mut bytes = [0; HEADER_LEN];
        let mut fds = Vec::new();
        match self.fill(&mut bytes, &mut fds, deadline) {
            Ok(()) => {}
            Err(ChannelError::Cut { got: 0, .. }) => return Ok(None),
            Err(error) => return Err(error),
        }
        let header = Header::from_bytes(&bytes);
        header.check()?;
        let mut payload = vec![0; header.size as usize];
        self.fill(&mut payload, &mut fds, deadline)?;
        Ok(Some(Raw { header, payload, fds }))
    }

    /// Sends one reply.
    ///
    /// # Errors
    /// When the connection breaks or the front end does not take it.
    pub fn send(&self, bytes: &[u8]) -> Result<(), ChannelError> {
        (&self.stream).write_all(bytes).map_err(|source| ChannelError::System { call: "sendmsg", source })
    }

    fn fill(&self, buffer: &mut [u8], fds: &mut Vec<OwnedFd>, deadline: Instant) -> Result<(), ChannelError> {
        let want = buffer.len();
        let mut got = 0;
        while got < want {
            self.wait(deadline)?;
            match self.read_some(buffer.get_mut(got..).unwrap_or_default(), fds) {
                Ok(0) | Err(Errno::ECONNRESET) => return Err(ChannelError::Cut { got, want }),
                Ok(count) => got += count,
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(error) => return Err(ChannelError::System { call: "recvmsg", source: error.into() }),
            }
        }
        Ok(())
    }

    fn wait(&self, deadline: Instant) -> Result<(), ChannelError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => Err(ChannelError::Slow),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(ChannelError::System { call: "poll", source: error.into() }),
        }
    }

    fn read_some(&self, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize, Errno> {
        let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
        let mut slices = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<()>(self.stream.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = control {
                // SAFETY: the kernel just made these descriptors for this process and nobody else knows them.
                fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        Ok(message.bytes)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
