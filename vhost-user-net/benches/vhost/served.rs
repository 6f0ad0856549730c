// SPDX-License-Identifier: Apache-2.0
//! A guest with a device, each on its processor.

use anyhow::Result;
use weft_test_vmm::{EVENT_IDX, FrontEnd, MRG_RXBUF, Machine, Setup};
use weft_vhost::protocol::features;

use crate::bare::wait_for_carrier;
use crate::frames::RING;
use crate::peer::host::{Backend, Host};
use crate::processor::{self, DEVICE_CPU, FIRST, FRONT_CPU, SECOND};
use crate::settings::Settings;

/// What all guests negotiate.
const FEATURES: u64 =
    features::CSUM | features::HOST_TSO4 | features::GUEST_CSUM | features::GUEST_TSO4 | EVENT_IDX | MRG_RXBUF;

/// A guest, its device, and the connection of both. The guest ends first.
pub(crate) struct Served {
    pub(crate) machine: Machine,
    pub(crate) front: FrontEnd,
    pub(crate) backend: Backend,
}

impl Served {
    /// A guest of one queue pair and a device with these arguments.
    pub(crate) fn new(host: &Host, settings: &Settings, more: &[&str]) -> Result<Self> {
        Self::with_pairs(host, settings, 1, more)
    }

    /// As `new`, with several pairs.
    pub(crate) fn with_pairs(host: &Host, settings: &Settings, pairs: usize, more: &[&str]) -> Result<Self> {
        let backend = below(settings, || backend(host, more))?;
        let machine = machine(settings, pairs)?;
        let front = FrontEnd::connect(&host.socket(), &machine)?;
        wait_for_carrier(&host.tap)?;
        Ok(Self { machine, front, backend })
    }

    /// Processor seconds of the device so far.
    pub(crate) fn device_time(&self) -> Result<f64> {
        processor::time_of(self.backend.child.id())
    }
}

/// A device on its processor.
pub(crate) fn backend(host: &Host, more: &[&str]) -> Result<Backend> {
    let backend = host.backend(more)?;
    processor::pin_process(backend.child.id(), DEVICE_CPU)?;
    Ok(backend)
}

/// A guest on its processor, without a device.
pub(crate) fn machine(settings: &Settings, pairs: usize) -> Result<Machine> {
    let several = if pairs > 1 { features::MQ } else { 0 };
    let (kind, features) = (settings.front_end, FEATURES | several);
    below(settings, || Machine::new(Setup { kind, pairs, ring_size: RING, features, cpu: Some(FRONT_CPU) }))
}

/// Starts something at the priority of guests and devices.
pub(crate) fn below<T>(settings: &Settings, start: impl FnOnce() -> Result<T>) -> Result<T> {
    if !settings.real_time {
        return start();
    }
    processor::real_time(SECOND)?;
    let started = start();
    processor::real_time(FIRST)?;
    started
}
