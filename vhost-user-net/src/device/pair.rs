// SPDX-License-Identifier: Apache-2.0
//! A queue pair: two rings and a queue of the port, served by one thread that owns them.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;

use super::polling::Polling;
use super::rx::RxQueue;
use super::slot::Slot;
use super::tx::TxQueue;
use super::vring::{Batch, Vring};
use crate::memory::sigbus;
use crate::port::Port;
use crate::ring::Violation;

/// How long the thread sleeps while a front end wants its rings polled (no kick descriptor).
const POLLED_SLEEP_MS: u16 = 1;
/// How long a full port is left alone when its descriptor does not report room.
const FULL_SLEEP_MS: u16 = 10;

pub(super) const WAKE: u64 = 0;
pub(super) const PORT: u64 = 1;
const RX_KICK: u64 = 2;
const TX_KICK: u64 = 3;

/// A change of a pair, made on its thread.
pub(super) type Job = Box<dyn FnOnce(&mut Pair) + Send>;

/// Which ring of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Receive: even ring indices.
    Rx,
    /// Transmit: odd ring indices.
    Tx,
}

impl Side {
    /// The side of this ring index.
    pub fn of(index: usize) -> Self {
        if index.is_multiple_of(2) { Self::Rx } else { Self::Tx }
    }

    fn token(self) -> u64 {
        match self {
            Self::Rx => RX_KICK,
            Self::Tx => TX_KICK,
        }
    }
}

/// A ring on its way into service.
#[derive(Debug)]
pub enum NewRing {
    /// A receive ring.
    Rx(RxQueue),
    /// A transmit ring.
    Tx(TxQueue),
}

/// A queue pair, on its thread.
#[derive(Debug)]
pub struct Pair {
    index: usize,
    port: Arc<dyn Port>,
    epoll: Epoll,
    polling: Polling,
    rx: Slot<RxQueue>,
    tx: Slot<TxQueue>,
    port_readable: bool,
    port_writable: bool,
    losses: u32,
}

impl Pair {
    pub(super) fn new(index: usize, port: Arc<dyn Port>, epoll: Epoll, poll_for: Duration) -> Self {
        let (rx, tx) = (Slot::default(), Slot::default());
        let losses = sigbus::losses();
        let polling = Polling::new(poll_for);
        Self { index, port, epoll, polling, rx, tx, port_readable: true, port_writable: true, losses }
    }

    /// Puts a ring into service.
    ///
    /// # Errors
    /// When its kick descriptor cannot be waited for.
    pub fn start(&mut self, ring: NewRing, kick: Option<Arc<OwnedFd>>) -> Result<(), Errno> {
        let side = match ring {
            NewRing::Rx(_) => Side::Rx,
            NewRing::Tx(_) => Side::Tx,
        };
        self.stop(side);
        if let Some(kick) = &kick {
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
            self.epoll.add(kick, EpollEvent::new(flags, side.token()))?;
        }
        match ring {
            NewRing::Rx(queue) => self.rx = Slot::new(queue, kick),
            NewRing::Tx(queue) => self.tx = Slot::new(queue, kick),
        }
        if let Some(vring) = self.vring(side) {
            // What a device that was killed had done and not shown yet.
            vring.publish(Batch::default());
        }
        Ok(())
    }

    /// Takes a ring out of service and returns the index it has to go on at.
    pub fn stop(&mut self, side: Side) -> u16 {
        match side {
            Side::Rx => self.rx.stop(&self.epoll),
            Side::Tx => self.tx.stop(&self.epoll),
        }
    }

    /// The ring of this side, if it is in service. Chains taken in advance are given back first.
    pub fn vring(&mut self, side: Side) -> Option<&mut Vring> {
        match side {
            Side::Rx => self.rx.vring(),
            Side::Tx => self.tx.vring(),
        }
    }

    pub(super) fn serve(mut self, inbox: &Receiver<Job>, wake: &EventFd) {
        let mut events = [EpollEvent::empty(); 8];
        let mut busy = true;
        loop {
            let woken = match self.wait(&mut events, busy) {
                Ok(woken) => woken,
                Err(error) => {
                    tracing::error!(pair = self.index, %error, "epoll_wait");
                    return;
                }
            };
            let called = events.iter().take(woken).filter(|event| self.note(event)).count() > 0;
            if called && !Self::run_jobs(&mut self, inbox, wake) {
                return;
            }
            self.check_memory();
            busy = self.step();
            if !busy {
                busy = self.poll() || self.arm();
                // What was read just now may have been the first access to lost memory.
                self.check_memory();
            }
        }
    }

    /// Waits for events, or only looks for them while the thread is busy; returns their number.
    fn wait(&mut self, events: &mut [EpollEvent], busy: bool) -> Result<usize, Errno> {
        let timeout = if busy { EpollTimeout::ZERO } else { self.sleep_time() };
        let polling = !busy && self.polling.is_on();
        if polling {
            self.polling.sleeps(Instant::now());
        }
        let woken = match self.epoll.wait(events, timeout) {
            Err(Errno::EINTR) => 0,
            result => result?,
        };
        if polling {
            self.polling.woken(Instant::now());
        }
        if woken == 0 && !busy {
            // A port that stays full tries again now and then, whatever its descriptor says.
            self.port_writable = true;
        }
        Ok(woken)
    }

    /// Runs what the session sent; returns false when the session is gone.
    fn run_jobs(pair: &mut Self, inbox: &Receiver<Job>, wake: &EventFd) -> bool {
        if let Err(error) = wake.read() {
            tracing::debug!(%error, "read of the wake descriptor");
        }
        loop {
            match inbox.try_recv() {
                Ok(job) => job(pair),
                Err(std::sync::mpsc::TryRecvError::Empty) => return true,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Notes one event; returns whether it is the session's.
    fn note(&mut self, event: &EpollEvent) -> bool {
        match event.data() {
            PORT => {
                self.port_readable |= event.events().contains(EpollFlags::EPOLLIN);
                self.port_writable |= event.events().contains(EpollFlags::EPOLLOUT);
            }
            RX_KICK => self.rx.kicked(),
            TX_KICK => self.tx.kicked(),
            _ => return true,
        }
        false
    }

    fn sleep_time(&self) -> EpollTimeout {
        if self.rx.is_polled() || self.tx.is_polled() {
            EpollTimeout::from(POLLED_SLEEP_MS)
        } else if !self.port_writable && self.tx.queue.is_some() {
            EpollTimeout::from(FULL_SLEEP_MS)
        } else {
            EpollTimeout::NONE
        }
    }

    /// Gives both rings a turn; returns whether there is more to do at once.
    fn step(&mut self) -> bool {
        let sent = self.step_tx();
        let received = self.step_rx();
        sent || received
    }

    fn step_tx(&mut self) -> bool {
        let result = self.tx.turn(&*self.port, &mut self.port_writable);
        result.unwrap_or_else(|violation| self.fail(Side::Tx, violation))
    }

    fn step_rx(&mut self) -> bool {
        let result = self.rx.turn(&*self.port, &mut self.port_readable);
        result.unwrap_or_else(|violation| self.fail(Side::Rx, violation))
    }

    /// Looks for work a while before the thread sleeps, when it was told to; returns whether some came.
    fn poll(&mut self) -> bool {
        let window = self.polling.window();
        if window.is_zero() || (self.tx.queue.is_none() && self.rx.queue.is_none()) {
            return false;
        }
        let deadline = Instant::now() + window;
        while Instant::now() < deadline {
            if self.glance() {
                self.polling.found();
                return true;
            }
        }
        false
    }

    /// Looks once whether there is work, without going to sleep.
    fn glance(&mut self) -> bool {
        let looked = self.tx.queue.as_mut().map(|queue| queue.vring.ring.look(0));
        if matches!(looked, Some(Ok(1..) | Err(_))) {
            return true;
        }
        let mut events = [EpollEvent::empty(); 8];
        let Ok(count @ 1..) = self.epoll.wait(&mut events, EpollTimeout::ZERO) else {
            std::hint::spin_loop();
            return false;
        };
        // The session's event is level-triggered and comes again.
        events.iter().take(count).for_each(|event| {
            self.note(event);
        });
        true
    }

    /// Asks the guest for kicks before the thread sleeps; returns whether there is something to do instead.
    fn arm(&mut self) -> bool {
        let tx = self.tx.arm(self.port_writable);
        let tx = tx.unwrap_or_else(|violation| self.fail(Side::Tx, violation));
        // A receive ring with buffers waits for the port, not for the guest.
        let rx = self.rx.arm(self.port_readable);
        let rx = rx.unwrap_or_else(|violation| self.fail(Side::Rx, violation));
        tx || rx
    }

    /// Stops both rings when guest memory went away under them.
    fn check_memory(&mut self) {
        let losses = sigbus::losses();
        if losses == self.losses {
            return;
        }
        self.losses = losses;
        for side in [Side::Rx, Side::Tx] {
            if self.vring(side).is_some_and(|vring| vring.ring.memory().is_lost()) {
                self.fail(side, Violation::MemoryLost);
            }
        }
    }

    /// Takes a ring out of service for what its guest did.
    fn fail(&mut self, side: Side, violation: Violation) -> bool {
        tracing::warn!(pair = self.index, ?side, %violation, "the guest broke the rules of its ring; the ring is stopped");
        if let Some(vring) = self.vring(side) {
            vring.report_broken();
        }
        self.stop(side);
        false
    }
}
