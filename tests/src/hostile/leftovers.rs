// SPDX-License-Identifier: Apache-2.0

//! B7: what is written down does not grow with what a tenant does, and large calls are served.

use std::{fs, os::fd::AsRawFd as _, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
use serde_json::{Value, json};

use super::Case;
use crate::{
    bed::Bed,
    binaries::Binaries,
    cni::{Attachment, Plug},
    manifest,
    node::Mode,
    wait::until_ok,
};

/// How often a VMM connects.
const CONNECTIONS: usize = 30_000;
/// What a device may have written by then.
const MOST_LOG: u64 = 256 << 10;
/// A log of the plugin that is far too large, and what it may be after a call.
const LARGE_LOG: u64 = 256 << 20;
const MOST_PLUGIN_LOG: u64 = 64 << 20;

/// One node.
pub(super) struct Site {
    bed: Bed,
}

impl Site {
    /// The site.
    pub(super) fn new(binaries: &Binaries) -> Result<Self> {
        Ok(Self { bed: super::bed(1, Mode::Vxlan, Value::Null, binaries)? })
    }

    fn attachment(&self, pod: &str, plug: Plug) -> Result<Attachment> {
        self.bed.apply(&manifest::pod(pod, self.bed.node(1).name(), &[]))?;
        Attachment::new(self.bed.node(1), pod, plug)
    }
}

pub(super) fn cases() -> Vec<Case<Site>> {
    vec![
        Case::new("B7/log-of-a-vmm-that-reconnects/vhost", log_of_a_vmm_that_reconnects),
        Case::new("B7/gc-of-60000-attachments/runtime", gc),
        Case::new("B7/log-of-the-plugin/runtime", log_of_the_plugin),
    ]
}

/// A VMM that connects and goes away, in a loop.
fn log_of_a_vmm_that_reconnects(site: &Site) -> Result<()> {
    let mut attachment = site.attachment("default/loop", Plug::VhostUser)?;
    attachment.add()?;
    let node = site.bed.node(1);
    let vms: Vec<weft_api::VmReport> = node.weft_json("vm")?;
    let vm = vms.first().context("no vhost-user port")?;
    let (socket, log) = (node.machine().path(&vm.socket_path), node.machine().path(&vm.log_path));
    // A device that has had enough of them leaves them waiting.
    let connected = (0..CONNECTIONS).filter(|_| connects(&socket)).count();
    until_ok("a connection after the loop", Duration::from_secs(30), || {
        ensure!(
            connects(&socket),
            "nothing is shown: it does not connect after {connected} of {CONNECTIONS} connections"
        );
        Ok(())
    })?;
    let folder = log.parent().context("the log has no folder")?;
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().contains("log") {
            bytes += entry.metadata()?.len();
        }
    }
    ensure!(bytes < MOST_LOG, "{connected} connections left {bytes} bytes of log");
    Ok(())
}

/// Whether the socket takes a connection at once; it is ended.
fn connects(path: &Path) -> bool {
    let connect = || -> nix::Result<()> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)
    };
    connect().is_ok()
}

/// More than 4 MiB of what is valid: an upstream limit of pods on a large node is far below, a runtime's list need not be.
fn gc(site: &Site) -> Result<()> {
    let mut kept = site.attachment("default/kept", Plug::Veth)?;
    kept.add()?;
    let mut gc = site.attachment("default/kept", Plug::Veth)?;
    let known = (0..60_000).map(|number| (format!("{number:064x}"), "eth0".to_owned()));
    let valid = known.chain([(kept.container_id.clone(), kept.ifname.clone())]);
    gc.config["cni.dev/valid-attachments"] =
        valid.map(|(id, ifname)| json!({"containerID": id, "ifname": ifname})).collect();
    gc.call("GC").context("GC")?;
    kept.call("CHECK").map(drop).context("CHECK after GC")
}

/// The plugin does not write for ever into the file that it was given.
fn log_of_the_plugin(site: &Site) -> Result<()> {
    let node = site.bed.node(1);
    let path = node.file("plugin.log");
    let outer = node.machine().path(&path);
    // Sparse: it takes no room.
    fs::File::create(&outer)?.set_len(LARGE_LOG)?;
    let mut attachment = site.attachment("default/logged", Plug::Veth)?;
    attachment.config["logFile"] = json!(path);
    attachment.config["logLevel"] = json!("debug");
    attachment.add()?;
    attachment.del()?;
    let length = fs::metadata(&outer)?.len();
    ensure!(length < MOST_PLUGIN_LOG, "the log has {length} bytes");
    Ok(())
}
