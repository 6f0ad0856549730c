// SPDX-License-Identifier: Apache-2.0
//! What the monitor and the guest agree on: the map of guest memory, the ports, the control page.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Bytes of guest memory.
pub const RAM: u64 = 64 << 20;

/// Global descriptor table.
pub const GDT: u64 = 0x1000;
/// Interrupt descriptor table.
pub const IDT: u64 = 0x2000;
/// Task state segment with its port bitmap.
pub const TSS: u64 = 0x3000;
/// Page tables, a page for each of three levels.
pub const PAGE_TABLES: u64 = 0x4000;
/// End of the stack of privilege level 0.
pub const KERNEL_STACK: u64 = 0x1_0000;
/// End of the driver's stack.
pub const STACK: u64 = 0x4_0000;
/// The control page. `guest/vectors.s` knows it.
pub const CONTROL: u64 = 0x4_0000;
/// The guest's program. `guest/link.ld` knows it.
pub const IMAGE: u64 = 0x10_0000;
/// Bytes there are for it.
pub const IMAGE_SPACE: u64 = 0x10_0000;
/// First instruction of a job.
pub const ENTRY: u64 = IMAGE + 0x400;
/// Handler of the breakpoint, the driver's way to sleep.
pub const HALT_HANDLER: u64 = IMAGE + 0x300;
/// The rings, one behind the other.
pub const RINGS: u64 = 0x20_0000;
/// Bytes for one ring.
pub const RING_SPACE: u64 = 0x4_0000;
/// Buffers of the first ring.
pub const BUFFERS: u64 = 0x80_0000;
/// Bytes for the buffers of one ring: 1024 pages.
pub const BUFFER_SPACE: u64 = 0x40_0000;
/// Distance of the buffers of a ring.
pub const BUFFER_STRIDE: u64 = 4096;
/// A frame, behind its header, that the monitor put there to be sent.
pub const TEMPLATE: u64 = 0x300_0000;
/// Times of round trips in cycles, 32 bits each.
pub const SAMPLES: u64 = 0x310_0000;
/// Most samples there is room for.
pub const MAX_SAMPLES: u64 = 0x1_0000;
/// Most rings there is room for.
pub const MAX_RINGS: usize = 8;

/// Where the guest has the processor's interrupt controller: right behind memory. `guest/vectors.s` knows it.
pub const LOCAL_APIC: u64 = RAM;

/// Kick of ring 0; the others follow, two apart.
pub const KICK_PORT: u16 = 0x510;
/// The job is done.
pub const DONE_PORT: u16 = 0x5f0;
/// The driver gave up, for the `Cause` it writes.
pub const FAIL_PORT: u16 = 0x5f2;
/// Ports below this are the driver's to use.
pub const PORTS: u16 = 0x600;
/// An exception; the byte is its vector. Written at privilege level 0 only.
pub const EXCEPTION_PORT: u16 = 0xf4;

/// Interrupt line of all receive rings.
pub const RX_LINE: u32 = 4;
/// Interrupt line of all transmit rings.
pub const TX_LINE: u32 = 5;
/// Interrupt line the monitor wakes the guest with.
pub const WAKE_LINE: u32 = 6;

/// Bytes of the virtio-net header (virtio 1.3, 5.1.6).
pub const HEADER: u64 = 12;

/// What the driver is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Task {
    /// Send the template as often as possible.
    Transmit,
    /// Take frames in and count buffers.
    Receive,
    /// Send numbered frames and check the numbered frames that come.
    Exchange,
    /// Send the template and wait until it comes back, some times over.
    RoundTrip,
    /// Make a chain available that lies outside memory.
    Break,
}

impl Task {
    /// The task of this number.
    pub fn of(number: u32) -> Option<Self> {
        [Self::Transmit, Self::Receive, Self::Exchange, Self::RoundTrip, Self::Break].into_iter().nth(number as usize)
    }
}

/// Sleep when there is nothing to do and have the device interrupt; without it the driver polls.
pub const INTERRUPTS: u32 = 1;
/// `VIRTIO_F_EVENT_IDX` was negotiated.
pub const EVENT_IDX: u32 = 2;

/// A job, as the monitor asks for it.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    /// What to do.
    pub task: Task,
    /// `INTERRUPTS`, `EVENT_IDX`.
    pub flags: u32,
    /// Queue pair to do it on.
    pub pair: u32,
    /// Entries of each ring.
    pub ring_size: u32,
    /// Bytes of the template with its header.
    pub frame_len: u32,
    /// Bytes of a receive buffer.
    pub buffer_len: u32,
    /// Round trips to make; numbered frames that may be on their way; buffers to receive, or 0 for no end.
    pub count: u32,
    /// Frames of 1514 bytes, to nobody, ahead of each request of a round trip.
    pub ahead: u32,
}

impl Job {
    /// Puts the job into the control page.
    pub fn store(self, control: &Control) {
        let Self { task, flags, pair, ring_size, frame_len, buffer_len, count, ahead } = self;
        let fields = [task as u32, flags, pair, ring_size, frame_len, buffer_len, count, ahead];
        control.job.iter().zip(fields).for_each(|(field, value)| field.store(value, Ordering::SeqCst));
    }

    /// The job in the control page, if it is one of the tasks.
    pub fn load(control: &Control) -> Option<Self> {
        let [task, flags, pair, ring_size, frame_len, buffer_len, count, ahead] =
            control.job.each_ref().map(|field| field.load(Ordering::Relaxed));
        Some(Self { task: Task::of(task)?, flags, pair, ring_size, frame_len, buffer_len, count, ahead })
    }
}

/// Where the driver stands in a ring. Only the driver writes it; it outlives jobs.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Place {
    /// Next entry of the available ring to write: what the device was shown last.
    pub next_avail: AtomicU32,
    /// Next used element to read.
    pub last_used: AtomicU32,
}

/// What the driver counted. Everything but the times goes on over jobs.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Counters {
    /// Frames, or chains, that came back sent.
    pub sent: AtomicU64,
    /// Frames that were looked at: in an exchange all, in round trips the answers.
    pub received: AtomicU64,
    /// Buffers that were used by received frames.
    pub buffers: AtomicU64,
    /// Kicks given.
    pub kicks: AtomicU64,
    /// Numbered frames with bytes or a length they must not have.
    pub corrupt: AtomicU64,
    /// Numbered frames that came again, or behind a later one.
    pub repeated: AtomicU64,
    /// Numbers that were left out.
    pub lost: AtomicU64,
    /// One more than the greatest number received.
    pub next_expected: AtomicU64,
    /// The next number to send.
    pub next_number: AtomicU64,
    /// Used elements that were not the next chain's.
    pub misordered: AtomicU64,
    /// Cycles at the start of the job.
    pub started: AtomicU64,
    /// Cycles when the last used element was seen.
    pub last_work: AtomicU64,
}

/// The page through which the monitor and the driver speak. Its first fields are known to `guest/vectors.s`.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Control {
    /// Interrupts taken, by line.
    pub interrupts: [AtomicU32; 8],
    /// The monitor wants the job to end.
    pub stop: AtomicU32,
    /// `Job`, field by field.
    pub job: [AtomicU32; 8],
    /// What was counted.
    pub counters: Counters,
    /// The rings.
    pub places: [Place; MAX_RINGS],
}
