// SPDX-License-Identifier: Apache-2.0
//! A packet socket on one port.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socket, sockopt};
use tokio::io::unix::AsyncFd;
use weft_abi::MARK_DELIVERED;

/// Longest frame that is read. Everything a guest may ask for is far shorter; the limit also bounds how deep a hostile
/// DHCPv6 message can nest its options.
pub(super) const MAX_FRAME: usize = 2048;

/// Receives frames of one EtherType from one port and sends frames to it.
///
/// Bound to an EtherType and not to all of them: then it sees a frame after the port's ingress program, so only what
/// that lets pass to the host's stack, and it never sees what the host sends.
pub(super) struct PortSocket {
    fd: AsyncFd<OwnedFd>,
}

impl PortSocket {
    /// Opens a socket for `ethertype` (host byte order) on the interface. It marks what it sends as decided, so that
    /// `to_workload` lets it pass.
    pub(super) fn open(ifindex: u32, ethertype: libc::c_int) -> io::Result<Self> {
        // Without a protocol nothing arrives before the socket is bound to its port.
        let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        setsockopt(&fd, sockopt::Mark, &MARK_DELIVERED)?;
        bind(&fd, ifindex, ethertype)?;
        // SAFETY: the descriptor is owned, so it stays open and the same for as long as the AsyncFd has it.
        let fd = unsafe { AsyncFd::register(fd) }?;
        Ok(Self { fd })
    }

    /// Waits for a frame and reads it into `buffer`; the length of one that did not fit is more than the buffer's.
    pub(super) async fn receive(&self, buffer: &mut [u8; MAX_FRAME]) -> io::Result<usize> {
        loop {
            let mut ready = self.fd.readable().await?;
            let read = ready.try_io(|fd| Ok(recv(fd.as_raw_fd(), buffer, MsgFlags::MSG_TRUNC)?));
            if let Ok(result) = read {
                return result;
            }
        }
    }

    /// Sends one frame; never waits, a port that takes none loses it.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        send(self.fd.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT)?;
        Ok(())
    }
}

fn bind(fd: &OwnedFd, ifindex: u32, ethertype: libc::c_int) -> io::Result<()> {
    let invalid = |_| io::Error::from_raw_os_error(libc::EINVAL);
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).map_err(invalid)?,
        sll_protocol: u16::try_from(ethertype).map_err(invalid)?.to_be(),
        sll_ifindex: i32::try_from(ifindex).map_err(invalid)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(invalid)?;
    // SAFETY: `address` is a sockaddr_ll of `length` bytes that lives through the call, and `fd` is open.
    let result = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
