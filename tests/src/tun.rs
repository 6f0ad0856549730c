// SPDX-License-Identifier: Apache-2.0

//! A link between two machines whose packets have no Ethernet header, as of PPP or WireGuard: a TUN on each, joined here.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::OpenOptionsExt as _,
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns},
    sys::eventfd::{EfdFlags, EventFd},
};

use crate::{
    bed::{Bed, OUTSIDE_V4, OUTSIDE_V6},
    namespace::Namespace,
    node::Node,
    shell::Shell as _,
};

/// The link; it goes, and the devices with it, when this is dropped.
#[derive(Debug)]
pub struct PointToPoint {
    end: EventFd,
    joint: Option<JoinHandle<()>>,
}

impl PointToPoint {
    /// The device on both machines of [`PointToPoint::to_outside`].
    pub const DEVICE: &str = "ppp0";
    /// The node's IPv4 address on the link to the outside.
    pub const NODE_V4: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
    /// The outside's.
    pub const PEER_V4: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
    /// The node's IPv6 address on the link to the outside.
    pub const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, 1);
    /// The outside's.
    pub const PEER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, 2);

    /// A link between `node` and the outside, up, with an MTU of 1400 and addresses of both families; no route leads by it yet.
    ///
    /// # Errors
    /// One of them has such a device.
    pub fn to_outside(bed: &Bed, node: &Node) -> Result<Self> {
        let device = Self::DEVICE;
        let link = Self::new([node.machine(), bed.outside().machine()], device)?;
        let addresses = |v4: Ipv4Addr, v6: Ipv6Addr| {
            format!(
                "set -e
                 ip address add {v4}/30 dev {device}; ip address add {v6}/126 dev {device} nodad
                 ip link set {device} mtu 1400 up"
            )
        };
        node.sh(&addresses(Self::NODE_V4, Self::NODE_V6))?.ok()?;
        let peer = addresses(Self::PEER_V4, Self::PEER_V6);
        bed.outside()
            .sh(&format!(
                "{peer}
                 ip route replace 10.99.0.0/30 dev {device} src {OUTSIDE_V4}
                 ip route replace fd00:99::/126 dev {device} metric 256 src {OUTSIDE_V6}"
            ))?
            .ok()?;
        Ok(link)
    }

    /// The node's address on the link to the outside, of the family of `peer`.
    #[must_use]
    pub fn node_address_for(peer: IpAddr) -> IpAddr {
        if peer.is_ipv4() { Self::NODE_V4.into() } else { Self::NODE_V6.into() }
    }

    /// Makes a device called `name` on both machines, down and without addresses, and carries packets between them.
    ///
    /// # Errors
    /// One of them has such a device.
    pub fn new(machines: [&Namespace; 2], name: &str) -> Result<Self> {
        let [one, other] = machines.map(|machine| open_inside(machine, name));
        let (one, other) = (one?, other?);
        let end = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let told = end.as_fd().try_clone_to_owned()?;
        let joint = thread::spawn(move || {
            loop {
                let fds = [one.as_fd(), other.as_fd(), told.as_fd()];
                let mut waiting = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
                let _interrupted = poll(&mut waiting, PollTimeout::NONE);
                if waiting[2].any().unwrap_or(true) {
                    return;
                }
                carry(&one, &other);
                carry(&other, &one);
            }
        });
        Ok(Self { end, joint: Some(joint) })
    }
}

impl Drop for PointToPoint {
    fn drop(&mut self) {
        let _told = self.end.write(1);
        if let Some(joint) = self.joint.take() {
            let _ended = joint.join();
        }
    }
}

/// What there is of packets; a device that is down takes none.
fn carry(from: &File, to: &File) {
    let mut bytes = vec![0; 70_000];
    while let Ok(length) = (&mut &*from).read(&mut bytes) {
        let _lost = (&mut &*to).write(&bytes[..length]);
    }
}

fn open_inside(machine: &Namespace, name: &str) -> Result<File> {
    let (netns, name) = (File::open(machine.proc("ns/net"))?, name.to_owned());
    let opened = thread::spawn(move || {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        open(&name)
    });
    opened.join().ok().context("a thread has panicked")?.with_context(|| format!("a TUN on {}", machine.name()))
}

fn open(name: &str) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_TUN | libc::IFF_NO_PI).map_err(io::Error::other)?;
    // SAFETY: the request is valid and lives through the call.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}
