// SPDX-License-Identifier: Apache-2.0

//! The VMM's side of a tap, held by this process: every header and every moment is its own choice.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    mem,
    net::IpAddr,
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    rc::Rc,
};

use anyhow::{Context as _, Result};
use weft_probe::frames::Offload;

use super::net::Place as _;
use crate::{
    cni::{Attachment, Plug},
    node::Node,
};

/// Bytes of a virtio-net header as Weft's taps have it.
const HEADER: usize = 12;

/// A workload on a tap that is nothing but its VMM.
pub(super) struct TapWorkload {
    // Before the attachment: the tap is let go of before it goes.
    tap: OpenTap,
    pub(super) attachment: Attachment,
    pub(super) addresses: Vec<IpAddr>,
}

impl TapWorkload {
    /// Plugs in a tap for `pod` on `node` and opens it.
    pub(super) fn new(node: &Rc<Node>, pod: &str) -> Result<Self> {
        let mut attachment = Attachment::new(node, pod, Plug::Tap)?;
        attachment.add()?;
        let side = attachment.interface(false)?;
        let name = side["name"].as_str().context("the tap has no name in the result")?.to_owned();
        let tap = node.inside(move || OpenTap::open(&name))?;
        let addresses = attachment.addresses()?;
        Ok(Self { tap, attachment, addresses })
    }

    /// Sends a frame as the guest.
    pub(super) fn send(&self, frame: &[u8], offload: Offload) -> io::Result<()> {
        self.tap.send(frame, offload)
    }
}

/// A tap that was opened.
#[derive(Debug)]
pub(crate) struct OpenTap(File);

impl OpenTap {
    /// Opens a tap of the network namespace of this thread.
    pub(crate) fn open(name: &str) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        // SAFETY: all zeros is a valid ifreq.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags =
            i16::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).map_err(io::Error::other)?;
        // SAFETY: the request is valid and lives through the call.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut length = libc::c_int::try_from(HEADER).map_err(io::Error::other)?;
        // SAFETY: the pointer is to an int that lives through the call.
        match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw mut length) } {
            0 => Ok(Self(file)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Sends a frame as the guest.
    pub(crate) fn send(&self, frame: &[u8], offload: Offload) -> io::Result<()> {
        let mut bytes = offload.to_bytes().to_vec();
        bytes.resize(HEADER, 0);
        bytes.extend_from_slice(frame);
        (&self.0).write_all(&bytes)
    }
    /// The next frame that the guest gets, if there is one.
    pub(crate) fn receive(&self) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; 70_000];
        match (&self.0).read(&mut bytes) {
            Ok(length) => {
                bytes.truncate(length);
                Ok(bytes.get(HEADER..).map(<[u8]>::to_vec))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}
