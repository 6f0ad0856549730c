// SPDX-License-Identifier: Apache-2.0
//! The monitor's vhost-user front end: hands a machine's memory, rings and event descriptors to a device.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion};

use crate::guest::abi::RAM;
use crate::guest::ring::Parts;
use crate::machine::Machine;
use crate::ram;

/// `VIRTIO_NET_F_MRG_RXBUF`
pub const MRG_RXBUF: u64 = 1 << 15;
/// `VHOST_F_LOG_ALL`
pub const LOG_ALL: u64 = 1 << 26;
/// `VIRTIO_F_RING_EVENT_IDX`
pub const EVENT_IDX: u64 = 1 << 29;
/// `VHOST_USER_F_PROTOCOL_FEATURES`
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// `VIRTIO_F_VERSION_1`
pub const VERSION_1: u64 = 1 << 32;

/// How long a device may take to listen.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection to a device that serves a machine's rings.
pub struct FrontEnd {
    front: Frontend,
    features: u64,
}

impl std::fmt::Debug for FrontEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrontEnd").field("features", &self.features).finish_non_exhaustive()
    }
}

impl FrontEnd {
    /// Connects, waiting for the socket to appear, and starts all rings where the device before this one left them.
    /// The machine may run.
    ///
    /// # Errors
    /// When the device does not offer the machine's features or refuses something.
    pub fn connect(socket: &Path, machine: &Machine) -> Result<Self> {
        let features = machine.setup().features | VERSION_1 | PROTOCOL_FEATURES;
        let rings = machine.events().rings.len();
        let mut front = Frontend::from_stream(stream(socket)?, rings as u64);
        front.set_owner().context("SET_OWNER")?;
        let offered = front.get_features().context("GET_FEATURES")?;
        ensure!(offered & features == features, "the device offers {offered:#x}, the guest wants {features:#x}");
        let mut wanted = VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::LOG_SHMFD;
        wanted.set(VhostUserProtocolFeatures::MQ, rings > 2);
        let protocol = front.get_protocol_features().context("GET_PROTOCOL_FEATURES")?;
        ensure!(protocol.contains(wanted), "the device offers the protocol features {protocol:?}");
        front.set_protocol_features(wanted).context("SET_PROTOCOL_FEATURES")?;
        front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        front.set_features(features).context("SET_FEATURES")?;
        front.set_mem_table(&machine.ram().regions()).context("SET_MEM_TABLE")?;
        let mut connected = Self { front, features };
        (0..rings).try_for_each(|index| connected.start(machine, index))?;
        Ok(connected)
    }

    fn start(&mut self, machine: &Machine, index: usize) -> Result<()> {
        let (layout, events) = (machine.ring(index), &machine.events().rings[index]);
        let front = &mut self.front;
        front.set_vring_num(index, layout.queue_size).context("SET_VRING_NUM")?;
        front.set_vring_base(index, machine.used_index(index)).context("SET_VRING_BASE")?;
        front.set_vring_addr(index, &layout).context("SET_VRING_ADDR")?;
        front.set_vring_call(index, &events.call).context("SET_VRING_CALL")?;
        front.set_vring_err(index, &events.err).context("SET_VRING_ERR")?;
        front.set_vring_kick(index, &events.kick).context("SET_VRING_KICK")?;
        front.set_vring_enable(index, true).context("SET_VRING_ENABLE")
    }

    /// Has the device log what it writes into guest memory; returns the log.
    ///
    /// # Errors
    /// When the device refuses it.
    pub fn start_log(&mut self, machine: &Machine) -> Result<OwnedFd> {
        let bytes = (RAM / 4096 / 8).next_multiple_of(4096);
        let log = ram::memfd(bytes)?;
        let region = VhostUserDirtyLogRegion { mmap_size: bytes, mmap_offset: 0, mmap_handle: log.as_raw_fd() };
        self.front.set_log_base(0, Some(region)).context("SET_LOG_BASE")?;
        self.front.set_features(self.features | LOG_ALL).context("SET_FEATURES")?;
        for index in 0..machine.events().rings.len() {
            let mut layout = machine.ring(index);
            (layout.flags, layout.log_addr) = (1, Some(Parts::of(index, layout.queue_size).used));
            self.front.set_vring_addr(index, &layout).context("SET_VRING_ADDR")?;
        }
        Ok(log)
    }
}

fn stream(socket: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => return Err(error).with_context(|| format!("connecting to {}", socket.display())),
        }
    }
}
