// SPDX-License-Identifier: Apache-2.0
//! The kernel tells that something of the node's links, addresses, routes, device settings or filters has changed (rtnetlink(7),
//! multicast groups). What it was is not read: whoever is woken looks at everything, so that a message that was lost, or one of
//! another kernel, does no harm. Only of neighbours it is: of each the kernel tells every few seconds that it still answers.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket},
};
use tokio::{
    io::unix::AsyncFd,
    time::{Instant, sleep_until},
};

use super::{Error, Result};

/// `RTNLGRP_*` of `linux/rtnetlink.h`, as the bits that bind(2) takes: links, neighbours, traffic control (the filters of ports),
/// IPv4 and IPv6 addresses and routes, and the settings below `net.ipv4.conf` and `net.ipv6.conf`.
const GROUPS: u32 = group(1) | group(3) | group(4) | group(5) | group(7) | group(9) | group(11) | group(24) | group(25);
/// Between two looks at least, so that a process of the node that changes things in a loop costs four looks a second.
const MIN_PAUSE: Duration = Duration::from_millis(250);
/// Looks take this part of the time at most: one to nine.
const PAUSE_PER_LOOK: u32 = 9;
/// Messages taken in one go: the socket's buffer has room for fewer.
const MAX_DRAIN: usize = 4096;

const fn group(number: u32) -> u32 {
    1 << (number - 1)
}

/// Where the kernel's messages arrive.
pub struct Changes {
    fd: AsyncFd<OwnedFd>,
    pending: bool,
    /// The next look may begin then.
    next: Instant,
    neighbours: Neighbours,
}

impl Changes {
    /// Listens in the network namespace of the calling thread; must run inside a tokio runtime.
    ///
    /// # Errors
    /// The kernel gives no such socket.
    pub fn open() -> Result<Self> {
        let opened = subscribe().and_then(|fd| {
            // SAFETY: the descriptor is owned, so it stays open and the same for as long as the AsyncFd has it.
            unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
        });
        let fd = opened.map_err(|source| Error::Netlink {
            action: "listen to",
            object: "changes of links, filters, addresses and routes".to_owned(),
            source,
        })?;
        Ok(Self { fd, pending: false, next: Instant::now(), neighbours: Neighbours::default() })
    }

    /// Waits until something has changed since the last call, and until the pause after the last look is over. Takes
    /// whatever is queued with it. Nothing is lost if the wait is given up.
    pub async fn changed(&mut self) {
        while !self.pending {
            self.wait().await;
        }
        sleep_until(self.next).await;
        // What came meanwhile is seen by the same look.
        self.drain();
        self.pending = false;
    }

    /// To be called after each look, with the time that it and what it led to took: sets the pause before the next.
    pub fn looked(&mut self, took: Duration) {
        self.next = Instant::now() + MIN_PAUSE.max(took.saturating_mul(PAUSE_PER_LOOK));
    }

    async fn wait(&mut self) {
        if let Err(error) = self.fd.readable().await.map(|mut ready| ready.clear_ready()) {
            // Without a reactor nothing else of the agent works either; the slow look goes on.
            tracing::error!(%error, "cannot wait for changes of the node's devices");
            std::future::pending::<()>().await;
        }
        self.drain();
    }

    /// Takes the queued messages. `ENOBUFS` says that there were more than fit: a change too.
    fn drain(&mut self) {
        let mut buffer = [0; 64];
        for _ in 0..MAX_DRAIN {
            match recv(self.fd.get_ref().as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(len) => self.pending |= self.neighbours.changed(&buffer[..len]),
                Err(Errno::ENOBUFS) => self.pending = true,
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}

/// The Ethernet addresses that were last told of the neighbours that the agent has the kernel keep ([`super::next_hops`]).
#[derive(Default)]
struct Neighbours(HashMap<Vec<u8>, Vec<u8>>);

impl Neighbours {
    /// Whether a message tells of something new: all do but those on neighbours of others, and those that only say that a
    /// neighbour still answers by the address it had.
    /// Source: `struct nlmsghdr`, `struct ndmsg` and `NDA_*` of the kernel's headers.
    fn changed(&mut self, message: &[u8]) -> bool {
        const HEADER: usize = 16;
        const ATTRIBUTES: usize = HEADER + 12;
        let kind = message.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
        if !matches!(kind, Some(libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH)) {
            return true;
        }
        let Some(header) = message.get(HEADER..ATTRIBUTES) else { return true };
        let (family, flags) = (i32::from(header[0]), header[10]);
        let attributes = &message[ATTRIBUTES..];
        // Device and address.
        let key = [&header[4..8], attribute(attributes, libc::NDA_DST).unwrap_or_default()].concat();
        // One that is deleted has lost the flag.
        let ours = flags & libc::NTF_EXT_LEARNED != 0 || self.0.contains_key(&key);
        if !ours || !matches!(family, libc::AF_INET | libc::AF_INET6) {
            return false;
        }
        match (kind, attribute(attributes, libc::NDA_LLADDR)) {
            (Some(libc::RTM_NEWNEIGH), Some(mac)) => self.0.insert(key, mac.to_vec()).as_deref() != Some(mac),
            _ => self.0.remove(&key).is_some(),
        }
    }
}

/// The first netlink attribute of this type.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let header = bytes.get(..4)?;
        let [len, kind] = [0, 2].map(|at| u16::from_ne_bytes([header[at], header[at + 1]]));
        let value = bytes.get(4..usize::from(len))?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(usize::from(len).next_multiple_of(4)..)?;
    }
}

fn subscribe() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
    Ok(fd)
}
