// SPDX-License-Identifier: Apache-2.0
//! Split virtqueues, seen from the device (virtio 1.3, section 2.7).
//!
//! Everything in a ring is written by the guest and may change at any moment. Each field is read once, checked, and
//! used from the copy. What a correct driver cannot produce is a [`Violation`]; the ring it happens on is stopped.

pub mod cells;
pub mod descriptor;
pub mod event;
pub mod indices;
pub mod split;

use thiserror::Error;

pub use descriptor::{Access, Segments};
pub use split::{Layout, RingError, SplitRing};

/// Greatest ring size of the specification.
pub const MAX_SIZE: u16 = 32768;
/// Most pieces of host memory one chain may come to; the kernel takes 1024 in one call, two are the device's own.
pub const MAX_SEGMENTS: usize = 1022;

/// What a guest did that no correct driver does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Violation {
    /// The available index ran ahead of the ring's size.
    #[error("the available index jumped to {index} while {next} is the next one and the ring has {size} entries")]
    AvailJump {
        /// Index read.
        index: u16,
        /// Next index the device would take.
        next: u16,
        /// Ring size.
        size: u16,
    },
    /// A descriptor index outside its table.
    #[error("descriptor {index} is outside its table of {size}")]
    DescriptorIndex {
        /// Index read.
        index: u32,
        /// Entries of the table.
        size: u32,
    },
    /// More descriptors in a chain than its table has.
    #[error("the chain at descriptor {head} loops")]
    Loop {
        /// First descriptor of the chain.
        head: u16,
    },
    /// A chain of more pieces than the device takes.
    #[error("the chain at descriptor {head} has more than {MAX_SEGMENTS} pieces")]
    TooManySegments {
        /// First descriptor of the chain.
        head: u16,
    },
    /// A descriptor without bytes.
    #[error("a descriptor of the chain at {head} has no bytes")]
    EmptyDescriptor {
        /// First descriptor of the chain.
        head: u16,
    },
    /// An address outside guest memory.
    #[error("{len:#x} bytes at {addr:#x} are not all guest memory")]
    Address {
        /// Guest address.
        addr: u64,
        /// Bytes.
        len: u32,
    },
    /// A buffer for the wrong direction.
    #[error("the chain at descriptor {head} has a buffer of the wrong direction")]
    Direction {
        /// First descriptor of the chain.
        head: u16,
    },
    /// A misused indirect descriptor.
    #[error("indirect descriptor of the chain at {head}: {fault}")]
    Indirect {
        /// First descriptor of the chain.
        head: u16,
        /// What is wrong with it.
        fault: IndirectFault,
    },
    /// A chain too short for the header in front of every frame.
    #[error("a chain of {len} bytes has no room for the virtio-net header")]
    NoHeader {
        /// Bytes of the chain.
        len: u64,
    },
    /// The kernel could not reach the guest's memory, or its file was cut short.
    #[error("guest memory went away under the ring")]
    MemoryLost,
}

/// What is wrong with an indirect descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum IndirectFault {
    /// `VIRTIO_F_INDIRECT_DESC` is not in force.
    #[error("the feature was not negotiated")]
    NotNegotiated,
    /// A table in a table.
    #[error("it is inside an indirect table")]
    Nested,
    /// The descriptor also has a successor.
    #[error("it has a successor")]
    WithNext,
    /// The length is 0 or no multiple of a descriptor's.
    #[error("its table's length is not a positive multiple of 16")]
    Length,
    /// The table does not lie in one memory region.
    #[error("its table is not in one memory region")]
    Table,
}
