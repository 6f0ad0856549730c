// SPDX-License-Identifier: Apache-2.0
//! Event descriptors between the guest, its device and the monitor.

use anyhow::{Context, Result};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The descriptors of one ring.
#[derive(Debug)]
pub struct RingEvents {
    /// The guest kicks the device.
    pub kick: EventFd,
    /// The device interrupts the guest.
    pub call: EventFd,
    /// The device reports the ring as broken.
    pub err: EventFd,
}

/// The descriptors of a machine.
#[derive(Debug)]
pub struct Events {
    /// Those of its rings.
    pub rings: Vec<RingEvents>,
    /// The monitor wakes the guest.
    pub wake: EventFd,
}

impl Events {
    pub(crate) fn new(rings: usize) -> Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK).context("eventfd");
        let ring = |_| Ok(RingEvents { kick: event()?, call: event()?, err: event()? });
        Ok(Self { rings: (0..rings).map(ring).collect::<Result<_>>()?, wake: event()? })
    }
}
