// SPDX-License-Identifier: Apache-2.0
//! Following single frames: the first bytes of each, copied out while somebody asks for it.

use std::fmt::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use serde::Serialize;

/// Bytes copied of each frame, the virtio-net header included.
const SNAP: usize = 12 + 80;
/// Frames that may wait for the reader; what comes while it is full is not reported.
const BACKLOG: usize = 1024;

/// Which way a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Sent by the guest.
    FromGuest,
    /// Received by the guest.
    ToGuest,
}

/// One frame that was followed.
#[derive(Debug, Serialize)]
pub struct Record {
    /// Which way it went.
    pub direction: Direction,
    /// Its bytes, the virtio-net header included.
    pub len: usize,
    /// Its first bytes in hexadecimal.
    pub data: String,
    /// What the port said to it, when it refused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The switch and the way out of traced frames.
#[derive(Debug, Default)]
pub struct Tracer {
    left: AtomicU32,
    sender: Mutex<Option<SyncSender<Record>>>,
}

impl Tracer {
    /// Follows the next `count` frames; takes over from whoever followed before.
    pub fn start(&self, count: u32) -> Receiver<Record> {
        let (sender, receiver) = sync_channel(BACKLOG);
        *self.sender.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        self.left.store(count, Ordering::Relaxed);
        receiver
    }

    /// Ends following.
    pub fn stop(&self) {
        self.left.store(0, Ordering::Relaxed);
        *self.sender.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether somebody follows frames.
    #[inline]
    pub fn active(&self) -> bool {
        self.left.load(Ordering::Relaxed) != 0
    }

    /// Reports one frame. The pieces must be readable memory of this process.
    pub(crate) fn frame(&self, direction: Direction, pieces: &[libc::iovec], len: usize, error: Option<Errno>) {
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            return;
        }
        self.left.store(left - 1, Ordering::Relaxed);
        let record = Record { direction, len, data: hex(pieces, len), error: error.map(|error| error.to_string()) };
        let mut sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = sender.as_ref().is_some_and(|sender| {
            matches!(sender.try_send(record), Err(std::sync::mpsc::TrySendError::Disconnected(_)))
        });
        // The reader is told the end by the sender's drop.
        if gone || left == 1 {
            *sender = None;
            self.left.store(0, Ordering::Relaxed);
        }
    }
}

fn hex(pieces: &[libc::iovec], len: usize) -> String {
    let mut text = String::with_capacity(2 * SNAP);
    let mut left = len.min(SNAP);
    for piece in pieces {
        for at in 0..piece.iov_len.min(left) {
            // SAFETY: callers pass pieces of guest memory or of the device's own, and at < iov_len.
            let byte = unsafe { piece.iov_base.cast::<u8>().add(at).read_volatile() };
            // Writing to a String cannot fail.
            write!(text, "{byte:02x}").unwrap_or_default();
        }
        left -= piece.iov_len.min(left);
    }
    text
}
