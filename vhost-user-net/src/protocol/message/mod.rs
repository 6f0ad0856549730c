// SPDX-License-Identifier: Apache-2.0
//! Typed vhost-user messages and their decoding.
//!
//! Source: QEMU `docs/interop/vhost-user.rst`. All integers are in the byte order of the host. Decoding is pure: it
//! checks the payload's size, the fields' ranges and the number of file descriptors, and does nothing else, so that a
//! [`Message`] is always well formed.

mod decode;
mod error;
mod header;
mod reader;
mod request;

use std::os::fd::OwnedFd;

pub use decode::decode;
pub use error::MessageError;
pub use header::Header;
pub use request::Request;

/// Bytes of the header in front of every message: request, flags, payload size.
pub const HEADER_LEN: usize = 12;
/// Most bytes of payload any message of this device can have.
pub const MAX_PAYLOAD: usize = 4096;
/// Most regions one `SET_MEM_TABLE` can carry (the base protocol's limit).
pub const MAX_TABLE_REGIONS: usize = 8;
/// Most bytes one `GET_CONFIG` or `SET_CONFIG` may transfer.
pub const MAX_CONFIG: usize = 256;

/// Where a region of guest memory lies and how to map it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionSpec {
    /// Guest physical address of the first byte.
    pub guest_addr: u64,
    /// Bytes.
    pub size: u64,
    /// Address of the first byte in the front end's process; ring addresses are given in these.
    pub user_addr: u64,
    /// Offset of the first byte in the region's file.
    pub mmap_offset: u64,
}

/// `struct vhost_vring_state`: a ring and a number whose meaning the request gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VringState {
    /// Index of the ring.
    pub index: u32,
    /// Size, base or enable flag.
    pub num: u32,
}

/// `struct vhost_vring_addr`: where the three parts of a split ring lie, in the front end's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VringAddr {
    /// Index of the ring.
    pub index: u32,
    /// Bit 0: writes to the used ring are to be logged at `log`.
    pub flags: u32,
    /// Descriptor table.
    pub desc: u64,
    /// Used ring.
    pub used: u64,
    /// Available ring.
    pub avail: u64,
    /// Guest physical address of the used ring, for the dirty log.
    pub log: u64,
}

/// A well-formed message from the front end.
#[derive(Debug)]
pub enum Message {
    /// Asks for the virtio feature bits this device offers.
    GetFeatures,
    /// Sets the virtio feature bits in force.
    SetFeatures(u64),
    /// Claims the device.
    SetOwner,
    /// Gives the device up (deprecated; stops the rings).
    ResetOwner,
    /// Replaces the guest's memory table.
    SetMemTable(Vec<(RegionSpec, OwnedFd)>),
    /// Gives the dirty log: bytes, offset in the file, file.
    SetLogBase {
        /// Bytes of the log.
        size: u64,
        /// Offset of the log in its file.
        offset: u64,
        /// The log's file.
        fd: OwnedFd,
    },
    /// Gives an eventfd to signal on writes to the log; unused by every known front end.
    SetLogFd(OwnedFd),
    /// Sets a ring's size.
    SetVringNum(VringState),
    /// Sets a ring's addresses.
    SetVringAddr(VringAddr),
    /// Sets the next available index of a ring.
    SetVringBase(VringState),
    /// Stops a ring and asks for its next available index.
    GetVringBase(u32),
    /// Gives the eventfd the guest kicks, and starts the ring. `None`: the device has to poll.
    SetVringKick(u32, Option<OwnedFd>),
    /// Gives the eventfd that interrupts the guest. `None`: the guest polls.
    SetVringCall(u32, Option<OwnedFd>),
    /// Gives the eventfd that reports a broken ring.
    SetVringErr(u32, Option<OwnedFd>),
    /// Asks for the protocol feature bits.
    GetProtocolFeatures,
    /// Sets the protocol feature bits in force.
    SetProtocolFeatures(u64),
    /// Asks for the number of rings.
    GetQueueNum,
    /// Enables or disables a ring.
    SetVringEnable(VringState),
    /// Asks for a RARP announcement of this MAC address.
    SendRarp([u8; 6]),
    /// Tells the MTU the guest was given.
    NetSetMtu(u64),
    /// Asks for a part of the configuration space.
    GetConfig {
        /// First byte.
        offset: u32,
        /// Bytes.
        size: u32,
        /// Flags, echoed in the reply.
        flags: u32,
    },
    /// Writes a part of the configuration space.
    SetConfig {
        /// First byte.
        offset: u32,
        /// The bytes to write.
        data: Vec<u8>,
    },
    /// Returns the device to its first state.
    ResetDevice,
    /// Asks for the number of regions the memory table can hold.
    GetMaxMemSlots,
    /// Adds a region to the memory table.
    AddMemRegion(RegionSpec, OwnedFd),
    /// Takes a region out of the memory table.
    RemoveMemRegion(RegionSpec),
}
