// SPDX-License-Identifier: Apache-2.0
//! Where the device's frames go: one queue of a port.
//!
//! The port in service is a tap queue ([`crate::tap`]). Tests and the fuzz target bring their own.

use std::fmt::Debug;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;

/// What a frame handed out by the port may need of its reader.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offload {
    /// Checksums may be partial.
    pub checksum: bool,
    /// TCP/IPv4 frames may be larger than the MTU.
    pub tso4: bool,
    /// TCP/IPv6 frames may be larger than the MTU.
    pub tso6: bool,
    /// Such frames may carry ECN.
    pub ecn: bool,
    /// UDP frames may be larger than the MTU.
    pub uso: bool,
}

/// One queue of a port. Every frame has a virtio-net header in front.
pub trait Port: Debug + Send + Sync {
    /// Takes the next frame into these pieces and returns its bytes, cut at the pieces' end.
    ///
    /// # Errors
    /// `EAGAIN` when there is none, `EFAULT` when a piece is not accessible, or what the port's kernel side says.
    ///
    /// # Safety
    /// Each piece must be an address range of this process that is not otherwise used by Rust code. It may be unmapped
    /// or shared with others; then the call fails or the bytes are theirs.
    unsafe fn read(&self, pieces: &[libc::iovec]) -> Result<usize, Errno>;

    /// Sends one frame made of these pieces.
    ///
    /// # Errors
    /// `EAGAIN` when the port is full for now, `EINVAL` when the header or the frame is malformed, `EFAULT` when a piece
    /// is not accessible, or what the port's kernel side says.
    ///
    /// # Safety
    /// As [`Port::read`].
    unsafe fn write(&self, pieces: &[libc::iovec]) -> Result<usize, Errno>;

    /// Descriptor that becomes readable when there is a frame and writable when there is room.
    fn poll_fd(&self) -> BorrowedFd<'_>;

    /// Joins the queue to the port or takes it out, so that no flow is steered to a queue nobody reads.
    ///
    /// # Errors
    /// What the kernel says.
    fn set_active(&self, active: bool) -> Result<(), Errno>;

    /// Sets the bytes of the header and what frames may need of the reader, for all queues of the port.
    ///
    /// # Errors
    /// What the kernel says.
    fn set_format(&self, header_len: usize, offload: Offload) -> Result<(), Errno>;
}
