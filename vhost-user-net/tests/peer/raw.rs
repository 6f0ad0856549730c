// SPDX-License-Identifier: Apache-2.0
//! A front end that says anything: bytes and descriptors as they are.

use std::io::{IoSlice, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use weft_vhost::protocol::message::Request;

use super::host::eventually;
use super::ring::PATIENCE;

const NEED_REPLY: u32 = 8;

/// A connection on which anything can be said.
pub struct Raw(UnixStream);

impl Raw {
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = eventually("connecting", || Ok(UnixStream::connect(socket).ok()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }

    pub fn send(&self, bytes: &[u8], fds: &[RawFd]) -> Result<()> {
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        let sent = sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::empty(), None)?;
        ensure!(sent == bytes.len(), "short send");
        Ok(())
    }

    pub fn request(&self, request: Request, flags: u32, payload: &[u8], fds: &[RawFd]) -> Result<()> {
        self.send(&message(request as u32, 1 | flags, payload.len() as u32, payload), fds)
    }

    pub fn u64(&mut self, request: Request) -> Result<u64> {
        let mut bytes = [0; 20];
        self.0.read_exact(&mut bytes).with_context(|| format!("reply to {request:?}"))?;
        ensure!(bytes[..4] == (request as u32).to_ne_bytes(), "reply to another request: {bytes:?}");
        Ok(u64::from_ne_bytes(bytes[12..].try_into()?))
    }

    pub fn ask(&mut self, request: Request) -> Result<u64> {
        self.request(request, 0, &[], &[])?;
        self.u64(request)
    }

    pub fn acknowledged(&mut self, request: Request, payload: &[u8], fds: &[RawFd]) -> Result<u64> {
        self.request(request, NEED_REPLY, payload, fds)?;
        self.u64(request)
    }

    /// Waits for the device to end the connection.
    pub fn wait_closed(&mut self) -> Result<()> {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
            Err(error) => Err(error).context("the connection stays open"),
        }
    }
}

pub fn message(request: u32, flags: u32, size: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [request.to_ne_bytes(), flags.to_ne_bytes(), size.to_ne_bytes()].concat();
    bytes.extend_from_slice(payload);
    bytes
}

pub fn state(index: u32, num: u32) -> Vec<u8> {
    [index.to_ne_bytes(), num.to_ne_bytes()].concat()
}

pub fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
