// SPDX-License-Identifier: Apache-2.0
//! The smallest device: what is left of one when everything but the work is taken away.
//!
//! It serves the first pair of a machine from a thread of this process, with the machine's own event descriptors: a
//! kick, a `writev`; a `readv`, an interrupt. It trusts the guest, knows one set of features, and merges no buffers. A
//! device that is compared with it pays for its checks, its features and its process.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::events::Events;
use crate::front_end::EVENT_IDX;
use crate::guest::memory::Memory;
use crate::guest::ring::{NEXT, Parts, passes};
use crate::machine::{Machine, pin};
use crate::ram::Ram;

const RX: usize = 0;
const TX: usize = 1;
/// Most descriptors of a chain.
const MAX_PIECES: usize = 8;
/// Frames one direction may have before the other gets its turn.
const TURN: usize = 64;
/// Offset of `num_buffers` in the header.
const NUM_BUFFERS: u64 = 10;

/// A running device; [`BareDevice::stop`] ends it.
#[derive(Debug)]
pub struct BareDevice {
    stop: Arc<EventFd>,
    thread: JoinHandle<Result<u64>>,
}

impl BareDevice {
    /// Serves the first pair of the machine at this port, a non-blocking descriptor that reads and writes frames behind
    /// a header of 12 bytes. The thread stays on processor `cpu` of the host.
    ///
    /// # Errors
    /// When the guest does without `EVENT_IDX`, or there is no thread or descriptor for it.
    pub fn serve(machine: &Machine, port: OwnedFd, cpu: Option<usize>) -> Result<Self> {
        ensure!(machine.setup().features & EVENT_IDX != 0, "the smallest device wants EVENT_IDX");
        let size = machine.setup().ring_size;
        let ring = |index| BareRing {
            memory: machine.ram().memory(),
            parts: Parts::of(index, size),
            next: machine.used_index(index),
        };
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK).context("eventfd")?);
        let server = Server {
            rings: [ring(RX), ring(TX)],
            events: Arc::clone(machine.events()),
            stop: Arc::clone(&stop),
            port,
            kicks: 0,
            _ram: Arc::clone(machine.ram()),
        };
        let run = move || {
            cpu.map_or(Ok(()), pin)?;
            server.run()
        };
        let thread = std::thread::Builder::new().name("bare".to_owned()).spawn(run).context("starting a thread")?;
        Ok(Self { stop, thread })
    }

    /// Ends it and returns how many kicks it got.
    ///
    /// # Errors
    /// When a system call of its failed.
    pub fn stop(self) -> Result<u64> {
        self.stop.write(1).context("write to an eventfd")?;
        self.thread.join().map_err(|_| anyhow::anyhow!("the smallest device panicked"))?
    }
}

/// The device's side of a ring.
struct BareRing {
    memory: Memory,
    parts: Parts,
    /// Next entry to take, and to complete: they are always the same.
    next: u16,
}

impl BareRing {
    fn available(&self) -> bool {
        self.memory.cell(self.parts.available + 2).load(Ordering::Acquire) != self.next
    }

    /// The pieces of the next chain.
    fn chain(&self, pieces: &mut [(u64, usize); MAX_PIECES]) -> (u16, usize) {
        let slot = u64::from(self.next & (self.parts.size - 1));
        let head = self.memory.cell(self.parts.available + 4 + 2 * slot).load(Ordering::Relaxed);
        let (mut number, mut count) = (head, 0);
        for piece in pieces.iter_mut() {
            let at = self.parts.descriptors + 16 * u64::from(number);
            let (address, rest) = (self.memory.read::<u64>(at), self.memory.read::<u64>(at + 8));
            *piece = (address, rest as u32 as usize);
            (number, count) = ((rest >> 48) as u16, count + 1);
            if (rest >> 32) as u16 & NEXT == 0 {
                break;
            }
        }
        (head, count)
    }

    fn complete(&mut self, head: u16, len: usize) {
        let slot = u64::from(self.next & (self.parts.size - 1));
        self.memory.write(self.parts.used + 4 + 8 * slot, u64::from(head) | (len as u64) << 32);
        self.next = self.next.wrapping_add(1);
    }

    /// Shows the guest all that was completed since `old`, and interrupts it when it asked for that.
    fn publish(&self, old: u16, call: &EventFd) -> Result<()> {
        if old == self.next {
            return Ok(());
        }
        self.memory.cell(self.parts.used_index()).store(self.next, Ordering::Release);
        fence(Ordering::SeqCst);
        let at = self.parts.available + 4 + 2 * u64::from(self.parts.size);
        let event = self.memory.cell(at).load(Ordering::Relaxed);
        if passes(event, self.next, old) {
            call.write(1).context("write to an eventfd")?;
        }
        Ok(())
    }

    /// Asks for a kick.
    fn arm(&self) {
        let index = self.memory.cell(self.parts.available + 2).load(Ordering::Acquire);
        self.memory.cell(self.parts.used + 4 + 8 * u64::from(self.parts.size)).store(index, Ordering::Relaxed);
    }
}

/// A piece of guest memory, for the kernel.
fn vector_of(memory: Memory, address: u64, len: usize) -> libc::iovec {
    libc::iovec { iov_base: memory.at(address, len as u64).cast(), iov_len: len }
}

struct Server {
    rings: [BareRing; 2],
    events: Arc<Events>,
    stop: Arc<EventFd>,
    port: OwnedFd,
    kicks: u64,
    /// Keeps the rings mapped.
    _ram: Arc<Ram>,
}

impl Server {
    /// Serves until it is told to stop; returns the kicks.
    fn run(mut self) -> Result<u64> {
        loop {
            let (sent, received) = (self.transmit()?, self.receive()?);
            if sent || received {
                continue;
            }
            if self.arm() {
                continue;
            }
            if self.sleep()? {
                return Ok(self.kicks);
            }
        }
    }

    /// Asks for the kicks it needs; returns whether there is something to do at once instead. Of a receive ring with
    /// buffers it needs none: it waits for the port. A kick for every buffer the guest puts back would cost the guest an
    /// exit, and wake the device for the next frame in time that no round trip counts.
    fn arm(&self) -> bool {
        let [rx, tx] = &self.rings;
        let starved = !rx.available();
        tx.arm();
        if starved {
            rx.arm();
        }
        fence(Ordering::SeqCst);
        tx.available() || starved && rx.available()
    }

    /// Sleeps until there is something to do; returns whether that is to stop.
    fn sleep(&mut self) -> Result<bool> {
        let (rx, tx) = (&self.events.rings[RX].kick, &self.events.rings[TX].kick);
        // SAFETY: `self` keeps the descriptors open.
        let [rx_fd, tx_fd, stop] =
            [rx, tx, &*self.stop].map(|event| unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) });
        // The port is of no use without buffers.
        let port = if self.rings[RX].available() { PollFlags::POLLIN } else { PollFlags::empty() };
        let wait = |fd| PollFd::new(fd, PollFlags::POLLIN);
        poll(&mut [wait(stop), wait(rx_fd), wait(tx_fd), PollFd::new(self.port.as_fd(), port)], PollTimeout::NONE)
            .context("poll")?;
        self.kicks += rx.read().unwrap_or(0) + tx.read().unwrap_or(0);
        Ok(self.stop.read().is_ok())
    }

    fn transmit(&mut self) -> Result<bool> {
        self.turn(TX, |port, pieces| {
            // SAFETY: the pieces lie in guest memory, which is mapped as long as the device is.
            let written = unsafe { libc::writev(port, pieces.as_ptr(), pieces.len() as i32) };
            ensure!(written > 0, "writev: {}", Errno::last());
            Ok(Some(0))
        })
    }

    fn receive(&mut self) -> Result<bool> {
        self.turn(RX, |port, pieces| {
            // SAFETY: as in `transmit`.
            let read = unsafe { libc::readv(port, pieces.as_ptr(), pieces.len() as i32) };
            if read < 0 && Errno::last() == Errno::EAGAIN {
                return Ok(None);
            }
            ensure!(read > 0, "readv: {}", Errno::last());
            Ok(Some(read as usize))
        })
    }

    /// Gives one direction its turn: `transfer` moves the frame of a chain and says how many bytes it wrote to it, or
    /// that there is none. Returns whether a frame was moved.
    #[inline(always)]
    fn turn(
        &mut self,
        index: usize,
        transfer: impl Fn(RawFd, &[libc::iovec]) -> Result<Option<usize>>,
    ) -> Result<bool> {
        let (old, ring) = (self.rings[index].next, &mut self.rings[index]);
        for _ in 0..TURN {
            if !ring.available() {
                break;
            }
            let mut pieces = [(0, 0); MAX_PIECES];
            let (head, count) = ring.chain(&mut pieces);
            let vector = pieces.map(|(at, len)| vector_of(ring.memory, at, len));
            let Some(len) = transfer(self.port.as_raw_fd(), &vector[..count])? else { break };
            if len > 0 {
                ring.memory.write(pieces[0].0 + NUM_BUFFERS, 1u16);
            }
            ring.complete(head, len);
        }
        ring.publish(old, &self.events.rings[index].call)?;
        Ok(ring.next != old)
    }
}
