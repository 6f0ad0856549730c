// SPDX-License-Identifier: Apache-2.0
//! The frames that are moved.

use crate::peer::HEADER;

/// A kind of frame.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// Bytes without the virtio-net header.
    pub(crate) len: usize,
    gso: bool,
    /// Frames a tap's queue is filled with.
    pub(crate) queue: usize,
}

pub(crate) const SMALL: Kind = Kind { name: "64", len: 64, gso: false, queue: 20_000 };
pub(crate) const FULL: Kind = Kind { name: "1500", len: 1514, gso: false, queue: 20_000 };
pub(crate) const LARGE: Kind = Kind { name: "gso", len: 65_226, gso: true, queue: 20_000 };
pub(crate) const KINDS: [Kind; 3] = [SMALL, FULL, LARGE];

/// Entries of each ring.
pub(crate) const RING: u16 = 1024;

impl Kind {
    /// Bytes of a buffer of the guest's; each lies on a page of its own. Linux makes them as large as recent frames, up
    /// to a page (`get_mergeable_buf_len` in its virtio_net).
    pub(crate) fn buffer(self) -> usize {
        if self.gso { 4096 } else { 1536 }
    }

    /// Buffers one frame takes.
    pub(crate) fn buffers(self) -> usize {
        (self.len + HEADER).div_ceil(self.buffer())
    }

    /// Whether frames are larger than the MTU.
    pub(crate) fn is_large(self) -> bool {
        self.gso
    }

    /// The virtio-net header.
    pub(crate) fn header(self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        if self.gso {
            // NEEDS_CSUM, TCPV4, 54 bytes of headers, segments of 1448, checksum of TCP.
            header[..10].copy_from_slice(&[1, 1, 54, 0, 0xa8, 0x05, 34, 0, 16, 0]);
        }
        header
    }

    /// A TCP segment to nobody here: the host's stack drops it as soon as it sees the address.
    pub(crate) fn frame(self) -> Vec<u8> {
        let mut frame = vec![0; self.len];
        frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 8, 0]);
        let total = ((self.len - 14) as u16).to_be_bytes();
        let ip = [0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        frame[14..34].copy_from_slice(&ip);
        frame[46] = 0x50;
        frame
    }

    /// The header and the frame, as a guest sends them.
    pub(crate) fn bytes(self) -> Vec<u8> {
        [&self.header()[..], &self.frame()].concat()
    }

    /// The same as a packet socket takes them: its header has no `num_buffers`.
    pub(crate) fn packet(self) -> Vec<u8> {
        [&self.header()[..10], &self.frame()].concat()
    }
}
