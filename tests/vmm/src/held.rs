// SPDX-License-Identifier: Apache-2.0
//! A guest in the hands of a test: its driver works when it is told to, in the thread that tells it, so that every frame and every
//! moment is the test's own choice. No KVM is needed.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::events::Events;
use crate::front_end::FrontEnd;
use crate::guest::abi::{BUFFER_STRIDE, HEADER};
use crate::guest::platform::{Cause, Platform};
use crate::guest::ring::{DriverRing, WRITE};
use crate::machine::{Kind, Machine, Setup};

/// Entries of each ring; so many frames may wait for [`HeldGuest::receive`].
const RING: u16 = 256;
const RX: usize = 0;
const TX: usize = 1;

/// A guest with one queue pair and no offloads, and the device that serves it.
#[derive(Debug)]
pub struct HeldGuest {
    // Before the memory that the device works on.
    _front: FrontEnd,
    machine: Machine,
}

impl HeldGuest {
    /// Connects to the device behind `socket`, waiting for it to appear; from then on frames come.
    ///
    /// # Errors
    /// As [`FrontEnd::connect`].
    pub fn connect(socket: &Path) -> Result<Self> {
        let machine = Machine::new(Setup { kind: Kind::Thread, pairs: 1, ring_size: RING, features: 0, cpu: None })?;
        let mut ring = ring(&machine, RX);
        while let Some(chain) = ring.free_chain() {
            offer(&mut ring, chain, BUFFER_STRIDE as u32, WRITE);
        }
        ring.publish(&mut Held(machine.events()));
        let front = FrontEnd::connect(socket, &machine)?;
        Ok(Self { _front: front, machine })
    }

    /// Sends a frame behind a header of zeros.
    ///
    /// # Errors
    /// It is longer than a page, or the device has taken none of the frames before it.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let length = HEADER + frame.len() as u64;
        ensure!(length <= BUFFER_STRIDE, "a frame of {} bytes", frame.len());
        let mut ring = ring(&self.machine, TX);
        ring.skip(ring.completed());
        let chain = ring.free_chain().context("the device takes no frames")?;
        let at = address(&ring, chain);
        self.machine.ram().write(at, &[0; HEADER as usize])?;
        self.machine.ram().write(at + HEADER, frame)?;
        offer(&mut ring, chain, length as u32, 0);
        ring.publish(&mut Held(self.machine.events()));
        Ok(())
    }

    /// The next frame that the guest was given, if there is one.
    ///
    /// # Errors
    /// The device has used a buffer in a way that it must not.
    pub fn receive(&self) -> Result<Option<Vec<u8>>> {
        let mut ring = ring(&self.machine, RX);
        if ring.completed() == 0 {
            return Ok(None);
        }
        let (chain, length) = ring.take();
        let length = u64::from(length);
        ensure!((HEADER..=BUFFER_STRIDE).contains(&length), "the device has used {length} bytes of a buffer");
        let at = address(&ring, chain) + HEADER;
        // SAFETY: the device has given the buffer back, and gets it again below.
        let frame = unsafe { self.machine.ram().memory().bytes(at, length - HEADER) }.to_vec();
        offer(&mut ring, chain, BUFFER_STRIDE as u32, WRITE);
        ring.publish(&mut Held(self.machine.events()));
        ensure!(self.machine.counters().misordered.load(std::sync::atomic::Ordering::Relaxed) == 0, "out of order");
        Ok(Some(frame))
    }
}

/// The driver's side of a ring, where it was left.
fn ring(machine: &Machine, index: usize) -> DriverRing<'_> {
    DriverRing::new(machine.ram().memory(), machine.ram().control(), index, RING, false, 1)
}

/// Where the buffer of a chain is in guest memory.
fn address(ring: &DriverRing<'_>, chain: u16) -> u64 {
    ring.buffers() + u64::from(chain) * BUFFER_STRIDE
}

fn offer(ring: &mut DriverRing<'_>, chain: u16, length: u32, flags: u16) {
    ring.describe(chain, 0, address(ring, chain), length, flags);
    ring.offer(chain);
}

/// A processor that is not there: whoever holds the guest polls.
struct Held<'a>(&'a Events);

impl Platform for Held<'_> {
    fn kick(&mut self, ring: u16) {
        // A counter that is full wakes the device as well.
        drop(self.0.rings[usize::from(ring)].kick.write(1));
    }

    fn wait(&mut self, _: u64) {}

    fn fail(&mut self, cause: Cause) -> ! {
        panic!("the driver gave up: {cause:?}")
    }
}
