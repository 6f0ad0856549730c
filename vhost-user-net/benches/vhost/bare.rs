// SPDX-License-Identifier: Apache-2.0
//! The bare system calls on the tap, and the memory they go through.

use std::process::Command;

use anyhow::{Context, Result};
use weft_vhost::port::{Offload, Port};
use weft_vhost::tap::{Tap, TapQueue};

use crate::frames::{Kind, RING};
use crate::peer::HEADER;
use crate::peer::host::{Host, eventually};

const OFFLOAD: Offload = Offload { checksum: true, tso4: true, tso6: false, ecn: false, uso: false };
const PAGE: usize = 4096;

/// The tap's queue, as the device opens it.
pub(crate) fn tap(host: &Host) -> Result<TapQueue> {
    let queue = Tap::open(&host.tap, 1)?.queues.pop().context("no queue")?;
    queue.set_format(HEADER, OFFLOAD)?;
    wait_for_carrier(&host.tap)?;
    Ok(queue)
}

/// Waits until the kernel has noticed that somebody is at an interface's other side. Before that it throws frames for
/// it away, and says that they are sent.
pub(crate) fn wait_for_carrier(interface: &str) -> Result<()> {
    eventually(&format!("carrier of {interface}"), || {
        let output = Command::new("ip").args(["-o", "link", "show", "dev", interface]).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).contains("state UP").then_some(()))
    })
}

/// Bytes, for the kernel.
pub(crate) fn vector(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

/// Frames to send, in as much memory as the guest's lie in.
pub(crate) struct Frames {
    bytes: Vec<u8>,
    each: usize,
    len: usize,
    at: usize,
}

impl Frames {
    pub(crate) fn new(kind: Kind) -> Self {
        let (frame, each) = (kind.frame(), (kind.len + HEADER).next_multiple_of(PAGE));
        let mut bytes = vec![0; each * (usize::from(RING) * PAGE / each).max(1)];
        bytes.chunks_mut(each).for_each(|slot| slot[..frame.len()].copy_from_slice(&frame));
        Self { bytes, each, len: frame.len(), at: 0 }
    }

    /// The next frame, around in a circle.
    pub(crate) fn next(&mut self) -> &mut [u8] {
        self.at = if self.at + 2 * self.each > self.bytes.len() { 0 } else { self.at + self.each };
        &mut self.bytes[self.at..self.at + self.len]
    }
}

/// Buffers to receive into: as many as the guest has, as far apart.
pub(crate) struct Buffers {
    /// Keeps them.
    _memory: Vec<u8>,
    vectors: Vec<libc::iovec>,
    per_frame: usize,
    at: usize,
}

impl Buffers {
    pub(crate) fn new(kind: Kind) -> Self {
        let mut memory = vec![1; usize::from(RING) * PAGE];
        let vectors = memory.chunks_mut(PAGE).map(|page| vector(&mut page[..kind.buffer()])).collect();
        Self { _memory: memory, vectors, per_frame: kind.buffers(), at: 0 }
    }

    /// Buffers for the next frame, around in a circle.
    pub(crate) fn next(&mut self) -> &[libc::iovec] {
        self.at = if self.at + 2 * self.per_frame > self.vectors.len() { 0 } else { self.at + self.per_frame };
        &self.vectors[self.at..self.at + self.per_frame]
    }
}
