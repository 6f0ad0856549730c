// SPDX-License-Identifier: Apache-2.0
//! The driver of one queue pair while it does a job.

use core::sync::atomic::{AtomicU64, Ordering, fence};

use super::abi::{self, Control, Job};
use super::memory::Memory;
use super::platform::{Platform, cycles};
use super::ring::{self, DriverRing};

/// As a Linux guest lays a large frame out: the headers, then fragments of up to 32 KiB.
const FIRST_PIECE: u64 = 78;
const PIECE: u64 = 32768;

/// A driver at work.
pub struct Driver<'a, P> {
    /// The machine.
    pub platform: &'a mut P,
    /// Guest memory.
    pub memory: Memory,
    /// The control page.
    pub control: &'a Control,
    /// What is to be done.
    pub job: Job,
    /// Ring of received frames.
    pub rx: DriverRing<'a>,
    /// Ring of sent frames.
    pub tx: DriverRing<'a>,
}

/// Adds to a counter that only the driver writes.
#[inline(always)]
pub fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed) + count, Ordering::Relaxed);
}

impl<'a, P: Platform> Driver<'a, P> {
    /// A driver of the job's pair, which goes on where the one before it ended.
    pub fn new(platform: &'a mut P, memory: Memory, control: &'a Control, job: Job) -> Self {
        let ring = |index: usize, pieces| {
            let event_idx = job.flags & abi::EVENT_IDX != 0;
            DriverRing::new(memory, control, index, job.ring_size as u16, event_idx, pieces)
        };
        let first = 2 * job.pair as usize;
        let (rx, tx) = (ring(first, 1), ring(first + 1, pieces_of(job.frame_len.into())));
        Self { platform, memory, control, job, rx, tx }
    }

    /// Whether the device is to interrupt.
    #[inline(always)]
    pub fn interrupts(&self) -> bool {
        self.job.flags & abi::INTERRUPTS != 0
    }

    /// Whether the monitor wants the job to end.
    #[inline(always)]
    pub fn stopped(&self) -> bool {
        self.control.stop.load(Ordering::Relaxed) != 0
    }

    /// Notes when the job began.
    pub fn start_clock(&self) {
        self.control.counters.started.store(cycles(), Ordering::Relaxed);
    }

    /// Notes that there was work just now.
    #[inline(always)]
    pub fn note_work(&self) {
        self.control.counters.last_work.store(cycles(), Ordering::Relaxed);
    }

    /// The counters of interrupts, to be read before the last look for work ahead of `wait`.
    pub fn seen(&self) -> u64 {
        let line = |line: u32| u64::from(self.control.interrupts[line as usize].load(Ordering::SeqCst));
        line(abi::RX_LINE) | line(abi::TX_LINE) << 32
    }

    /// Sleeps until an interrupt behind `seen`.
    pub fn wait(&mut self, seen: u64) {
        self.platform.wait(seen);
    }

    /// Offers every free buffer, with descriptors written anew.
    pub fn fill(&mut self) {
        while let Some(chain) = self.rx.free_chain() {
            let address = self.rx.buffers() + u64::from(chain) * abi::BUFFER_STRIDE;
            self.rx.describe(chain, 0, address, self.job.buffer_len, ring::WRITE);
            self.rx.offer(chain);
        }
        self.publish_rx();
    }

    /// Shows the device the buffers that were offered.
    #[inline(always)]
    pub fn publish_rx(&mut self) {
        let kicks = self.rx.publish(self.platform);
        add(&self.control.counters.kicks, kicks);
    }

    /// Shows the device the frames that were offered.
    #[inline(always)]
    pub fn publish_tx(&mut self) {
        let kicks = self.tx.publish(self.platform);
        add(&self.control.counters.kicks, kicks);
    }

    /// Takes the chains of sent frames back. Returns how many.
    #[inline(always)]
    pub fn reclaim(&mut self) -> u16 {
        let count = self.tx.completed();
        for _ in 0..count {
            self.tx.take();
        }
        add(&self.control.counters.sent, count.into());
        count
    }

    /// Lays the template out in every chain of the transmit ring. Each lies in memory of its own while there is some.
    pub fn lay_out(&mut self) {
        let len = u64::from(self.job.frame_len);
        let each = len.next_multiple_of(abi::BUFFER_STRIDE);
        let copies = abi::BUFFER_SPACE / each;
        for chain in 0..self.tx.chains() {
            let address = self.tx.buffers() + u64::from(chain) % copies * each;
            self.memory.copy(abi::TEMPLATE, address, len);
            self.lay_out_at(chain, address);
        }
    }

    /// Describes a frame of the job's length that lies at `address`.
    pub fn lay_out_at(&mut self, chain: u16, address: u64) {
        let len = u64::from(self.job.frame_len);
        if pieces_of(len) == 1 {
            self.tx.describe(chain, 0, address, len as u32, 0);
            return;
        }
        let (mut at, mut piece, mut size) = (0, 0, FIRST_PIECE);
        while at < len {
            let flags = if at + size < len { ring::NEXT } else { 0 };
            self.tx.describe(chain, piece, address + at, size as u32, flags);
            (at, piece) = (at + size, piece + 1);
            size = PIECE.min(len - at);
        }
    }

    /// Offers a chain whose buffer is nowhere, as no correct driver does.
    pub fn break_ring(&mut self) {
        let Some(chain) = self.tx.free_chain() else { return };
        self.tx.describe(chain, 0, u64::MAX - 0x1000, 64, 0);
        self.tx.offer(chain);
        fence(Ordering::SeqCst);
        self.publish_tx();
    }
}

/// Descriptors of a frame of this length.
fn pieces_of(len: u64) -> u16 {
    if len <= abi::BUFFER_STRIDE { 1 } else { 1 + (len - FIRST_PIECE).div_ceil(PIECE) as u16 }
}
