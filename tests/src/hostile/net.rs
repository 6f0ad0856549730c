// SPDX-License-Identifier: Apache-2.0

//! Sockets of this process in the network namespaces of a bed: nothing has to be started to send a frame or to see one.

use std::{
    fs::File,
    io,
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use weft_probe::frames::{FrameReceiver, FrameSender};

use crate::{bed::Outside, cni::Attachment, container::Container, namespace::Namespace, node::Node, shell::Shell};

/// Somewhere with a network namespace.
pub trait Place {
    /// The namespace's file, as this process reaches it.
    fn net(&self) -> PathBuf;

    /// Runs `work` in the namespace, on a thread of its own.
    ///
    /// # Errors
    /// The namespace is gone, or `work` failed.
    fn inside<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> Result<T>
    where
        Self: Sized,
    {
        inside(&self.net(), work)
    }

    /// A UDP socket at `address`.
    ///
    /// # Errors
    /// It is taken, or not of this namespace.
    fn udp(&self, address: SocketAddr) -> Result<UdpSocket>
    where
        Self: Sized,
    {
        self.inside(|| UdpSocket::bind(address)).with_context(|| format!("bind UDP {address}"))
    }

    /// Sends frames out of `iface`; `offloads`: with requests to the device.
    ///
    /// # Errors
    /// There is no such interface.
    fn sender(&self, iface: &str, offloads: bool) -> Result<FrameSender>
    where
        Self: Sized,
    {
        let open = if offloads { FrameSender::with_offloads } else { FrameSender::open };
        self.inside(|| open(iface)).with_context(|| format!("send frames on {iface}"))
    }

    /// Sees frames that come into `iface`.
    ///
    /// # Errors
    /// There is no such interface.
    fn receiver(&self, iface: &str) -> Result<FrameReceiver>
    where
        Self: Sized,
    {
        self.inside(|| FrameReceiver::open(iface)).with_context(|| format!("see frames on {iface}"))
    }
}

/// Runs `work` in the network namespace at `path`, on a thread of its own.
fn inside<T: Send>(path: &Path, work: impl FnOnce() -> io::Result<T> + Send) -> Result<T> {
    let namespace = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let work = || -> Result<T> {
        setns(&namespace, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", path.display()))?;
        Ok(work()?)
    };
    thread::scope(|scope| scope.spawn(work).join()).map_err(|_| anyhow!("the thread in the namespace panicked"))?
}

impl Place for Container {
    fn net(&self) -> PathBuf {
        self.attachment().net()
    }
}

impl Place for Attachment {
    fn net(&self) -> PathBuf {
        self.node().machine().path(&self.netns)
    }
}

impl Place for Node {
    fn net(&self) -> PathBuf {
        self.machine().net()
    }
}

impl Place for Outside {
    fn net(&self) -> PathBuf {
        self.machine().net()
    }
}

impl Place for Namespace {
    fn net(&self) -> PathBuf {
        self.proc("ns/net")
    }
}

/// The Ethernet address of an interface.
pub(crate) fn mac_of(machine: &dyn Shell, iface: &str) -> Result<[u8; 6]> {
    let text = machine.sh(&format!("cat /sys/class/net/{iface}/address"))?.ok()?;
    let mac: weft_api::Mac = text.trim().parse().with_context(|| format!("{iface} has the address {text}"))?;
    Ok(mac.0)
}
