// SPDX-License-Identifier: Apache-2.0
//! Why a request of the front end is refused.

use nix::errno::Errno;
use thiserror::Error;

use super::worker::WorkerError;
use crate::dirty_log::LogError;
use crate::memory::MemoryError;
use crate::ring::RingError;

/// Why a request cannot be carried out. The device is as it was before the request.
#[derive(Debug, Error)]
pub enum RequestError {
    /// Feature bits that were not offered.
    #[error("the front end sets features {0:#x} that were not offered")]
    FeaturesNotOffered(u64),
    /// Features changed under running rings.
    #[error("features change from {from:#x} to {to:#x} while rings run; only LOG_ALL may")]
    FeaturesWhileRunning {
        /// Features in force.
        from: u64,
        /// Features asked for.
        to: u64,
    },
    /// A ring the device does not have.
    #[error("ring {index} does not exist; the device has {rings} rings, start it with --queues {pairs} for more", pairs = index / 2 + 1)]
    NoSuchRing {
        /// Index asked for.
        index: u32,
        /// Rings of the device.
        rings: usize,
    },
    /// A size, base or flag that makes no sense.
    #[error("ring {index}: {field} {value} is not possible: {reason}")]
    RingValue {
        /// Index of the ring.
        index: u32,
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u32,
        /// Why not.
        reason: &'static str,
    },
    /// The ring's parts cannot be used.
    #[error("ring {index}")]
    Ring {
        /// Index of the ring.
        index: usize,
        /// What is wrong.
        source: RingError,
    },
    /// The kick descriptor cannot be waited for.
    #[error("ring {index}: the kick descriptor cannot be waited for (is it an eventfd?)")]
    Kick {
        /// Index of the ring.
        index: usize,
        /// What the kernel said.
        source: Errno,
    },
    /// A descriptor to signal by cannot be made to never wait.
    #[error("ring {index}: the {what} descriptor cannot be written to without waiting (is it an eventfd?)")]
    Signal {
        /// Index of the ring.
        index: u32,
        /// What it is for.
        what: &'static str,
        /// What the kernel said.
        source: Errno,
    },
    /// A protocol feature is missing.
    #[error("{request} needs protocol feature {feature}, which was not negotiated")]
    ProtocolFeature {
        /// Name of the request.
        request: &'static str,
        /// Name of the feature.
        feature: &'static str,
    },
    /// The memory table is wrong.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The dirty log is wrong.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The port refused.
    #[error("the port refuses {what}")]
    Port {
        /// What it was asked.
        what: &'static str,
        /// What the kernel said.
        source: Errno,
    },
    /// An MTU outside 68..=65535.
    #[error("mtu {0} is outside 68..=65535")]
    Mtu(u64),
    /// The configuration space cannot be written.
    #[error("the configuration space is read-only")]
    ReadOnlyConfig,
    /// A thread is gone.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}
