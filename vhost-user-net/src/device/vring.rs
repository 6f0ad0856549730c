// SPDX-License-Identifier: Apache-2.0
//! What a receive and a transmit ring have in common: the ring, its batches, its notifications, its counters.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::metrics::{DropReason, RingCounters, count};
use crate::port::Port;
use crate::ring::{SplitRing, Violation};
use crate::trace::Tracer;

/// Frames after which completions are shown to the guest, so that both sides work at the same time. Large frames take
/// many chains each: half of the ring is enough as well.
pub const BATCH: u32 = 64;
/// Greatest frame: 64 KiB of IP packet, Ethernet and VLAN headers, the virtio-net header.
pub const MAX_FRAME: usize = 65535 + 18 + 12;
/// Bytes of an Ethernet header; no port takes less.
pub const ETHERNET_HEADER: usize = 14;

/// Whether the front end lets the ring work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enable {
    /// It has not said yet: the ring waits.
    Unknown,
    /// The ring works.
    On,
    /// Transmitted frames are thrown away, nothing is received.
    Off,
}

/// Why a ring's turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// There may be more to do.
    More,
    /// The guest has nothing for this ring.
    RingEmpty,
    /// The port has nothing for this ring, or no room.
    PortWait,
}

/// What became of an attempt to move one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// It was passed on; its bytes without the header.
    Frame(usize),
    /// It was thrown away.
    Dropped(DropReason),
    /// There is none to move; not [`Turn::More`].
    Nothing(Turn),
}

/// A ring in service with what its direction needs.
pub trait Queue {
    /// The ring.
    fn vring(&mut self) -> &mut Vring;

    /// Whether the front end lets the ring move frames.
    fn works(&self) -> bool;

    /// Moves one frame, to be shown to the guest later.
    ///
    /// # Errors
    /// When the guest broke the rules.
    fn move_one(&mut self, port: &dyn Port) -> Result<Moved, Violation>;

    /// Asks for kicks before the thread sleeps; returns whether there is something to do at once instead.
    ///
    /// # Errors
    /// When the guest's index is illegal.
    fn arm(&mut self) -> Result<bool, Violation>;

    /// Gives chains taken in advance back, before the ring or its memory changes. A frame that waits for buffers is
    /// lost.
    fn give_back(&mut self) {}

    /// Moves up to `budget` frames and shows them to the guest in batches.
    ///
    /// # Errors
    /// When the guest broke the rules; what was completed before is shown to it.
    fn run(&mut self, port: &dyn Port, budget: u32) -> Result<Turn, Violation> {
        let (mut left, mut turn) = (if self.works() { budget } else { 0 }, Turn::More);
        if left == 0 {
            return Ok(Turn::RingEmpty);
        }
        while left > 0 && turn == Turn::More {
            let mut batch = Batch::default();
            let result = batch.fill(self, port, left.min(BATCH));
            self.vring().publish(batch);
            turn = result?;
            left -= batch.tried;
        }
        Ok(turn)
    }
}

/// What one batch came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Batch {
    /// Frames passed on or thrown away.
    tried: u32,
    frames: u64,
    bytes: u64,
}

impl Batch {
    #[inline]
    fn fill(&mut self, queue: &mut (impl Queue + ?Sized), port: &dyn Port, budget: u32) -> Result<Turn, Violation> {
        let enough = queue.vring().ring.size() / 2;
        while self.tried < budget && queue.vring().ring.unpublished() <= enough {
            match queue.move_one(port)? {
                Moved::Frame(len) => {
                    self.frames += 1;
                    self.bytes += len as u64;
                }
                Moved::Dropped(reason) => queue.vring().counters.count_drop(reason),
                Moved::Nothing(turn) => return Ok(turn),
            }
            self.tried += 1;
        }
        Ok(Turn::More)
    }
}

/// A ring in service.
#[derive(Debug)]
pub struct Vring {
    /// The ring itself.
    pub ring: SplitRing,
    /// Whether it works.
    pub enable: Enable,
    /// Interrupts the guest; absent when the guest polls.
    pub call: Option<Arc<OwnedFd>>,
    /// Reports a broken ring to the front end.
    pub err: Option<Arc<OwnedFd>>,
    /// Counters of this ring.
    pub counters: Arc<RingCounters>,
    /// Copies frames for `trace`, when somebody asks.
    pub tracer: Arc<Tracer>,
    kicks_enabled: bool,
}

impl Vring {
    /// A ring that has not run yet.
    pub fn new(ring: SplitRing, enable: Enable, counters: Arc<RingCounters>, tracer: Arc<Tracer>) -> Self {
        counters.set_broken(false);
        Self { ring, enable, call: None, err: None, counters, tracer, kicks_enabled: false }
    }

    /// Notes that the ring works on, so that the guest need not kick.
    #[inline]
    pub fn keep_quiet(&mut self) {
        if self.kicks_enabled {
            self.kicks_enabled = false;
            self.ring.disable_kicks();
        }
    }

    /// Whether the guest was asked for a kick.
    pub fn kicks_enabled(&self) -> bool {
        self.kicks_enabled
    }

    /// Asks for a kick; returns whether there is something to do at once instead.
    ///
    /// # Errors
    /// When the guest's index is illegal.
    pub fn arm(&mut self, ahead: u16) -> Result<bool, Violation> {
        self.kicks_enabled = true;
        self.ring.enable_kicks(ahead)
    }

    /// Shows the guest what was completed and interrupts it when it wants that.
    #[inline]
    pub fn publish(&mut self, batch: Batch) {
        if self.ring.publish() {
            self.interrupt();
        }
        self.counters.batch(batch.frames, batch.bytes);
    }

    /// Interrupts the guest.
    pub fn interrupt(&self) {
        let Some(call) = &self.call else { return };
        count(&self.counters.interrupts);
        signal(call);
    }

    /// Tells the front end that the ring is broken.
    pub fn report_broken(&self) {
        count(&self.counters.violations);
        self.counters.set_broken(true);
        if let Some(err) = &self.err {
            signal(err);
        }
    }
}

/// Adds one to an eventfd. A counter that is full already wakes its reader.
fn signal(fd: &OwnedFd) {
    match nix::unistd::write(fd, &1u64.to_ne_bytes()) {
        Ok(_) | Err(nix::errno::Errno::EAGAIN) => {}
        Err(error) => tracing::debug!(%error, "write to an eventfd of the front end"),
    }
}
