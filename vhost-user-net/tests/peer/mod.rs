// SPDX-License-Identifier: Apache-2.0
//! A front end with a driver of its own: guest memory in a memfd, split rings, and the `vhost` crate's protocol side.
//!
//! Shared by the tests and the bench; each uses a part of it.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "shared by several test binaries, each of which uses a part of the peer"
)]

pub mod exchange;
pub mod host;
pub mod ram;
pub mod raw;
pub mod ring;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VringConfigData};
use weft_vhost::protocol::features;

use ram::Ram;
use ring::DriverRing;

pub const RX: usize = 0;
pub const TX: usize = 1;
pub const HEADER: usize = 12;

/// Feature bits most tests run with.
pub const PLAIN: u64 = features::VERSION_1 | features::PROTOCOL_FEATURES;
pub const MERGEABLE: u64 = PLAIN | features::MRG_RXBUF;

/// How to set a front end up.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub features: u64,
    pub protocol: u64,
    pub ring_size: u16,
    pub pairs: usize,
}

impl Default for Options {
    fn default() -> Self {
        let protocol = VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::LOG_SHMFD;
        Self { features: MERGEABLE, protocol: protocol.bits(), ring_size: 256, pairs: 1 }
    }
}

impl Options {
    /// New rings in `ram`, all of them.
    pub fn rings(&self, ram: &Arc<Ram>) -> Result<Vec<DriverRing>> {
        let event_idx = self.features & features::EVENT_IDX != 0;
        (0..2 * self.pairs).map(|index| DriverRing::new(ram, index, self.ring_size, event_idx)).collect()
    }
}

/// A connected front end.
pub struct Peer {
    pub front: Frontend,
    pub ram: Arc<Ram>,
    pub rings: Vec<DriverRing>,
    pub options: Options,
}

impl Peer {
    /// Connects and starts all rings.
    pub fn start(socket: &Path, options: Options) -> Result<Self> {
        let ram = Arc::new(Ram::new(&[(0, Ram::SIZE)])?);
        let mut peer = Self::negotiate(socket, ram, options)?;
        peer.start_rings(&vec![0; options.pairs * 2])?;
        Ok(peer)
    }

    /// Connects, negotiates and hands the memory over. The rings are the ones in `ram`, new.
    pub fn negotiate(socket: &Path, ram: Arc<Ram>, options: Options) -> Result<Self> {
        let rings = options.rings(&ram)?;
        let mut front = connect(socket, rings.len() as u64)?;
        front.set_owner()?;
        let offered = front.get_features()?;
        anyhow::ensure!(offered & options.features == options.features, "offered only {offered:#x}");
        let protocol = VhostUserProtocolFeatures::from_bits_retain(options.protocol);
        let can = front.get_protocol_features()?;
        anyhow::ensure!(can.contains(protocol), "protocol features offered: {can:?}");
        front.set_protocol_features(protocol)?;
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        front.set_features(options.features)?;
        front.set_mem_table(&ram.regions())?;
        Ok(Self { front, ram, rings, options })
    }

    /// Starts all rings at these available indices.
    pub fn start_rings(&mut self, bases: &[u16]) -> Result<()> {
        for (index, base) in bases.iter().enumerate() {
            let ring = &self.rings[index];
            self.front.set_vring_num(index, ring.size())?;
            self.front.set_vring_base(index, *base)?;
            self.front.set_vring_addr(index, &ring.config(None))?;
            self.front.set_vring_call(index, &ring.call)?;
            self.front.set_vring_err(index, &ring.err)?;
            self.front.set_vring_kick(index, &ring.kick).with_context(|| format!("kick of ring {index}"))?;
            self.front.set_vring_enable(index, true)?;
        }
        Ok(())
    }

    pub fn config_with_log(&self, index: usize) -> VringConfigData {
        let ring = &self.rings[index];
        ring.config(Some(ring.used_addr()))
    }

    /// Starts logging all writes; returns the log.
    pub fn start_log(&mut self) -> Result<OwnedFd> {
        let bytes = (Ram::SIZE as u64).div_ceil(4096 * 8).next_multiple_of(4096);
        let log = ram::memfd(bytes)?;
        let region = VhostUserDirtyLogRegion { mmap_size: bytes, mmap_offset: 0, mmap_handle: log.as_raw_fd() };
        self.front.set_log_base(0, Some(region))?;
        self.front.set_features(self.options.features | features::LOG_ALL)?;
        for index in 0..self.rings.len() {
            self.front.set_vring_addr(index, &self.config_with_log(index))?;
        }
        Ok(log)
    }

    /// Puts `count` receive buffers of `len` bytes into the ring, each one descriptor.
    pub fn fill_rx(&mut self, ring: usize, count: u16, len: u32) -> Result<()> {
        let base = self.ram.buffers(ring);
        for _ in 0..count {
            let slot = self.rings[ring].next_slot();
            let addr = base + u64::from(slot) * 4096;
            self.rings[ring].descriptor(slot, addr, len, ring::WRITE, 0);
            self.rings[ring].offer(slot);
        }
        self.rings[ring].publish()
    }

    /// Sends one frame behind a header of zeros, in one descriptor.
    pub fn send(&mut self, frame: &[u8]) -> Result<()> {
        self.send_with([0; HEADER], frame)
    }

    /// Sends one frame behind this header, in one descriptor.
    pub fn send_with(&mut self, header: [u8; HEADER], frame: &[u8]) -> Result<()> {
        let slot = self.rings[TX].next_slot();
        let addr = self.ram.buffers(TX) + u64::from(slot) * 4096;
        self.ram.write(addr, &header);
        self.ram.write(addr + HEADER as u64, frame);
        self.rings[TX].descriptor(slot, addr, (HEADER + frame.len()) as u32, 0, 0);
        self.rings[TX].offer(slot);
        self.rings[TX].publish()
    }

    /// Waits for the next received frame and returns its header and its bytes, from all buffers it was spread over.
    pub fn receive(&mut self, ring: usize) -> Result<(Vec<u8>, Vec<u8>)> {
        let (slot, len) = self.rings[ring].wait_used()?;
        let mut frame = self.read_buffer(ring, slot, len);
        let count = u16::from_le_bytes([frame[10], frame[11]]);
        for _ in 1..count {
            let (slot, len) = self.rings[ring].wait_used()?;
            frame.extend(self.read_buffer(ring, slot, len));
        }
        let body = frame.split_off(HEADER);
        Ok((frame, body))
    }

    fn read_buffer(&self, ring: usize, slot: u16, len: u32) -> Vec<u8> {
        self.ram.read(self.ram.buffers(ring) + u64::from(slot) * 4096, len as usize)
    }
}

/// Connects, waiting for the socket to appear.
pub fn connect(socket: &Path, rings: u64) -> Result<Frontend> {
    // `Frontend::connect` sleeps 100 ms between its tries.
    let stream = host::eventually("connecting", || Ok(std::os::unix::net::UnixStream::connect(socket).ok()))?;
    Ok(Frontend::from_stream(stream, rings))
}

/// A descriptor of its own for the same file.
pub fn duplicate(fd: &impl AsRawFd) -> Result<OwnedFd> {
    // SAFETY: dup makes a new descriptor that nobody else knows.
    let copy = unsafe { libc::dup(fd.as_raw_fd()) };
    anyhow::ensure!(copy >= 0, "dup: {}", std::io::Error::last_os_error());
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}
