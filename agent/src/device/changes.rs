// SPDX-License-Identifier: Apache-2.0
//! The kernel tells that something of the node's links, addresses, routes, device settings or filters has changed (rtnetlink(7),
//! multicast groups). What it was is not read: whoever is woken looks at everything, so that a message that was lost, or one of
//! another kernel, does no harm. With two exceptions: of each neighbour the kernel tells every few seconds that it still answers,
//! and what is of a workload's port alone asks for no look at the node, which may have thousands of routes.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    net::if_::if_indextoname,
    sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket},
};
use tokio::{
    io::unix::AsyncFd,
    time::{Instant, sleep_until},
};

use super::{Error, Result, moves::Moves};
use crate::attachment::is_host_ifname;

/// `RTNLGRP_*` of `linux/rtnetlink.h`, as the bits that bind(2) takes: links, neighbours, traffic control (the filters of ports),
/// IPv4 and IPv6 addresses, routes and rules, next hops that routes share, and the settings below `net.ipv4.conf` and
/// `net.ipv6.conf`.
const GROUPS: u32 = group(1)
    | group(3)
    | group(4)
    | group(5)
    | group(7)
    | group(8)
    | group(9)
    | group(11)
    | group(19)
    | group(24)
    | group(25)
    | group(32);
/// Between two looks at least, so that a process of the node that changes things in a loop costs four looks a second.
const MIN_PAUSE: Duration = Duration::from_millis(250);
/// Looks take this part of the time at most: one to nine.
const PAUSE_PER_LOOK: u32 = 9;
/// After a move of the routes' generation another one waits so long, and the longer while changes go on: a routing daemon that never
/// rests costs two moves a second.
const MOVE_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_MOVE_PAUSE: Duration = Duration::from_millis(500);
/// Messages taken in one go: the socket's buffer has room for fewer.
const MAX_DRAIN: usize = 4096;

const fn group(number: u32) -> u32 {
    1 << (number - 1)
}

/// What has changed.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Change {
    /// Something of ports of workloads.
    Ports,
    /// Something of the node, and of ports as well.
    Node,
}

/// What there is to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Due {
    /// A look at what has changed.
    Look(Change),
    /// What was decided by the host's routes, addresses and links is to be decided anew: they are others than before, and not by
    /// Weft's doing.
    Move,
}

/// Where the kernel's messages arrive.
pub struct Changes {
    fd: AsyncFd<OwnedFd>,
    pending: Option<Change>,
    /// The next look may begin then.
    next: Instant,
    moves: Moves,
    has_moved: bool,
    /// When [`Due::Move`] may be returned next, and the pause after that.
    next_move: Instant,
    move_pause: Duration,
    neighbours: Neighbours,
    ports: Ports,
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
        let (neighbours, ports, now) = (Neighbours::default(), Ports::default(), Instant::now());
        let moves = Moves::default();
        let (next_move, move_pause) = (now, MOVE_PAUSE);
        Ok(Self { fd, pending: None, next: now, moves, has_moved: false, next_move, move_pause, neighbours, ports })
    }

    /// Waits until something has changed since the last call, and until the pause after the last look, or move, is over; tells
    /// what is due. Takes whatever is queued with it. Nothing is lost if the wait is given up.
    pub async fn due(&mut self) -> Due {
        loop {
            let now = Instant::now();
            let look = self.pending.map(|_| self.next);
            let moved = self.has_moved.then_some(self.next_move);
            if moved.is_some_and(|at| at <= now) {
                return self.tell_move(now);
            }
            if look.is_some_and(|at| at <= now) {
                // What came meanwhile is seen by the same look.
                self.drain();
                return Due::Look(self.pending.take().unwrap_or(Change::Node));
            }
            // Of more messages nothing more would follow: a storm of them is not read one by one.
            let is_full = self.pending == Some(Change::Node) && self.has_moved;
            let next = look.into_iter().chain(moved).min();
            tokio::select! {
                () = self.wait(), if !is_full => {}
                () = sleep_until(next.unwrap_or(now)), if next.is_some() => {}
            }
        }
    }

    /// As [`Changes::due`], of looks alone.
    #[cfg(test)]
    pub(super) async fn changed(&mut self) -> Change {
        loop {
            if let Due::Look(change) = self.due().await {
                return change;
            }
        }
    }

    /// What came up to now goes with this move; what comes later has one of its own.
    fn tell_move(&mut self, now: Instant) -> Due {
        self.drain();
        self.has_moved = false;
        let is_storm = now.duration_since(self.next_move) < MOVE_PAUSE;
        self.move_pause = if is_storm { (self.move_pause * 2).min(LONGEST_MOVE_PAUSE) } else { MOVE_PAUSE };
        self.next_move = now + self.move_pause;
        Due::Move
    }

    /// Whether messages that have arrived up to now ask for a [`Due::Move`] that was not returned yet.
    pub fn owes_move(&mut self) -> bool {
        self.drain();
        self.has_moved
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

    fn read(&mut self, message: &[u8]) -> Option<Change> {
        self.neighbours.changed(message).then(|| self.ports.changed(message))
    }

    /// Takes the queued messages. `ENOBUFS` says that there were more than fit: a change too.
    fn drain(&mut self) {
        let mut buffer = [0; 1024];
        for _ in 0..MAX_DRAIN {
            match recv(self.fd.get_ref().as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(len) => {
                    self.has_moved |= self.moves.moved(&buffer[..len]);
                    self.pending = self.pending.max(self.read(&buffer[..len]));
                }
                Err(Errno::ENOBUFS) => {
                    // What was lost may have been the end of a port.
                    self.ports.0.clear();
                    self.moves.forget();
                    (self.pending, self.has_moved) = (Some(Change::Node), true);
                }
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}

/// `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;

/// The type of a message.
pub(super) fn kind_of(message: &[u8]) -> Option<u16> {
    message.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]))
}

/// Whether a route takes the place of another one, which nothing tells of, or is a default route.
fn outranks(message: &[u8]) -> bool {
    let flags = message.get(6..8).map(|bytes| i32::from(u16::from_ne_bytes([bytes[0], bytes[1]])));
    let is_default = message.get(HEADER + 1).is_none_or(|length| *length == 0);
    is_default || flags.is_none_or(|flags| flags & libc::NLM_F_REPLACE != 0)
}

/// Links that have the name of a workload's port.
#[derive(Default)]
struct Ports(HashSet<u32>);

impl Ports {
    /// What a message tells of. An address is the node's wherever it is; what is not understood may be anything.
    /// Source: `struct ifinfomsg`, `tcmsg`, `netconfmsg`, `rtmsg` and their attributes of the kernel's headers.
    fn changed(&mut self, message: &[u8]) -> Change {
        const IFNAME: u16 = 3;
        const OUTPUT_DEVICE: u16 = 4;
        const CONFIGURED_DEVICE: u16 = 1;
        let index = |at: usize| {
            let bytes = message.get(HEADER + at..HEADER + at + 4)?;
            Some(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        };
        let number = |after: usize, kind: u16| {
            let value = attribute(message.get(HEADER + after..)?, kind)?;
            Some(u32::from_ne_bytes(value.try_into().ok()?))
        };
        let is_port = match kind_of(message) {
            Some(libc::RTM_NEWLINK) => {
                let name = message.get(HEADER + 16..).and_then(|attributes| attribute(attributes, IFNAME));
                let name = name.and_then(|name| std::str::from_utf8(name).ok());
                let is_port = name.is_some_and(|name| is_host_ifname(name.trim_end_matches('\0')));
                // All bits of the mask: the link is new. Another one that has this name now was something else before.
                let is_new = index(12) == Some(u32::MAX);
                match index(4) {
                    Some(index) if is_port => !self.0.insert(index) || is_new,
                    Some(index) => {
                        self.0.remove(&index);
                        false
                    }
                    None => false,
                }
            }
            Some(libc::RTM_DELLINK) => index(4).is_some_and(|index| self.0.remove(&index)),
            Some(libc::RTM_NEWQDISC..=libc::RTM_GETTFILTER) => self.has(index(4)),
            Some(libc::RTM_NEWROUTE | libc::RTM_DELROUTE) if !outranks(message) => self.has(number(12, OUTPUT_DEVICE)),
            Some(libc::RTM_NEWNETCONF | libc::RTM_DELNETCONF) => self.has(number(4, CONFIGURED_DEVICE)),
            _ => false,
        };
        if is_port { Change::Ports } else { Change::Node }
    }

    /// The kernel reports the settings of a new link before the link, so that its name is asked for.
    fn has(&mut self, index: Option<u32>) -> bool {
        let Some(index) = index else { return false };
        if self.0.contains(&index) {
            return true;
        }
        let name = if_indextoname(index).ok();
        let is_port = name.is_some_and(|name| name.to_str().is_ok_and(is_host_ifname));
        is_port && self.0.insert(index)
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
        const ATTRIBUTES: usize = HEADER + 12;
        let kind = kind_of(message);
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
pub(super) fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
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
