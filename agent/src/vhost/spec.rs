// SPDX-License-Identifier: Apache-2.0
//! What a device is started with, and where its files are.

use std::{
    fs,
    path::{Path, PathBuf},
};

use weft_api::{AttachmentId, Mac, PodRef};

use crate::{
    file::{self, gone},
    model::Attachment,
};

/// Queue pairs that a device serves at most.
pub const MAX_QUEUES: u16 = 16;
/// `sun_path` of unix(7) takes 108 bytes with the closing zero.
const MAX_PATH: usize = 107;
/// Each device has a user of its own: this number and the tap's index. Above the ranges that distributions, systemd and
/// container runtimes give out, below 2^31.
const FIRST_USER: u32 = 0x7000_0000;

const SOCKET: &str = "vhost.sock";
const CONTROL: &str = "control.sock";
const LOG: &str = "device.log";
const RECORD: &str = "device.json";
/// The argument by which a device is known among all processes.
pub(super) const SOCKET_FLAG: &str = "--socket=";

/// A port's device as it is to run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeviceSpec {
    /// Which attachment.
    pub id: AttachmentId,
    /// Whose it is.
    pub pod: Option<PodRef>,
    /// The tap.
    pub tap: String,
    /// The socket for the VMM; the other files are beside it.
    pub socket: PathBuf,
    /// Queue pairs.
    pub queues: u16,
    /// The guest's Ethernet address.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// User and group of the sockets; none: the agent's own.
    pub owner: Option<(u32, u32)>,
    /// The user and group that the process becomes.
    pub user: u32,
}

impl DeviceSpec {
    /// The device of an attached vhost-user port; none for every other attachment.
    #[must_use]
    pub fn of(attachment: &Attachment) -> Option<Self> {
        let Attachment { spec, allocation, link } = attachment;
        let (link, socket) = (link.as_ref()?, allocation.socket_path.as_ref()?);
        Some(Self {
            id: spec.id.clone(),
            pod: spec.pod.clone(),
            tap: link.ifname.clone(),
            socket: socket.into(),
            queues: spec.queues,
            mac: allocation.mac,
            mtu: allocation.mtu,
            owner: (spec.owner.is_some() || spec.group.is_some())
                .then(|| (spec.owner.unwrap_or(0), spec.group.unwrap_or(0))),
            user: FIRST_USER | (link.ifindex & (FIRST_USER - 1)),
        })
    }

    /// The folder of the device's files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.socket.parent().unwrap_or(Path::new("/"))
    }

    /// The control socket.
    #[must_use]
    pub fn control_path(&self) -> PathBuf {
        self.folder().join(CONTROL)
    }

    /// The log file.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.folder().join(LOG)
    }

    /// The command line without the binary.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let Self { tap, queues, mac, user, .. } = self;
        let mut arguments = vec![
            format!("{SOCKET_FLAG}{}", self.socket.display()),
            format!("--control={}", self.control_path().display()),
            format!("--tap={tap}"),
            format!("--queues={queues}"),
            format!("--mac={mac}"),
            format!("--user={user}:{user}"),
        ];
        // The configuration space of virtio-net has 16 bits for it.
        arguments.extend(u16::try_from(self.mtu).ok().map(|mtu| format!("--mtu={mtu}")));
        arguments.extend(self.owner.map(|(user, group)| format!("--socket-owner={user}:{group}")));
        arguments
    }
}

/// The socket of the port `tap`, with `folder` as the folder of all devices.
#[must_use]
pub fn socket_path(folder: &Path, tap: &str) -> PathBuf {
    folder.join(tap).join(SOCKET)
}

/// Refuses a folder in which the sockets' paths would be too long.
///
/// # Errors
/// Says how long it may be.
pub fn check_folder(folder: &Path, tap: &str) -> Result<(), String> {
    let longest = folder.join(tap).join(CONTROL).as_os_str().len();
    if longest <= MAX_PATH {
        return Ok(());
    }
    let most = folder.as_os_str().len().saturating_sub(longest - MAX_PATH);
    Err(format!(
        "port vhost-user: the folder {} is too long for sockets in it, at most {most} bytes; shorten runDir in the agent's configuration",
        folder.display()
    ))
}

/// Where the process of the device in `folder` is recorded.
pub(super) fn record_path(folder: &Path) -> PathBuf {
    folder.join(RECORD)
}

/// Removes a device's files and its folder; what is not a device's stays.
pub(super) fn remove_files(folder: &Path) {
    let files = [RECORD, SOCKET, CONTROL, LOG].iter().try_for_each(|name| file::remove(&folder.join(name)));
    if let Err(error) = files.and_then(|()| gone(fs::remove_dir(folder))) {
        tracing::warn!(folder = %folder.display(), %error, "cannot remove the files of a device");
    }
}
