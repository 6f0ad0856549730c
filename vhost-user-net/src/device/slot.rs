// SPDX-License-Identifier: Apache-2.0
//! A ring's place in its pair: in service or not, the kick that wakes it, where it goes on.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::epoll::Epoll;

use super::vring::{Queue, Turn, Vring};
use crate::metrics::count;
use crate::port::Port;
use crate::ring::Violation;

/// Frames one ring may move before the other gets its turn.
const BUDGET: u32 = 256;

/// One ring's place in its pair.
#[derive(Debug)]
pub(super) struct Slot<Q> {
    pub(super) queue: Option<Q>,
    kick: Option<Arc<OwnedFd>>,
    /// Where the next start goes on: what `GET_VRING_BASE` answers.
    base: u16,
}

impl<Q> Default for Slot<Q> {
    fn default() -> Self {
        Self { queue: None, kick: None, base: 0 }
    }
}

impl<Q: Queue> Slot<Q> {
    /// A place with this queue in service. Without a kick descriptor its ring is polled.
    pub(super) fn new(queue: Q, kick: Option<Arc<OwnedFd>>) -> Self {
        Self { queue: Some(queue), kick, base: 0 }
    }

    /// The ring, if it is in service. Chains taken in advance are given back first.
    pub(super) fn vring(&mut self) -> Option<&mut Vring> {
        let queue = self.queue.as_mut()?;
        queue.give_back();
        Some(queue.vring())
    }

    /// Takes the queue out of service; returns the index it has to go on at.
    pub(super) fn stop(&mut self, epoll: &Epoll) -> u16 {
        if let Some(vring) = self.vring() {
            self.base = vring.ring.next_avail();
        }
        self.queue = None;
        if let Some(kick) = self.kick.take()
            && let Err(error) = epoll.delete(&kick)
        {
            tracing::debug!(%error, "epoll_ctl(DEL) of a kick descriptor");
        }
        self.base
    }

    /// Counts a kick.
    pub(super) fn kicked(&mut self) {
        if let Some(queue) = &mut self.queue {
            count(&queue.vring().counters.kicks);
        }
    }

    /// Whether the front end wants the ring polled.
    pub(super) fn is_polled(&self) -> bool {
        self.queue.is_some() && self.kick.is_none()
    }

    /// Gives the ring its turn, while the port is ready for it; returns whether there is more to do at once.
    pub(super) fn turn(&mut self, port: &dyn Port, ready: &mut bool) -> Result<bool, Violation> {
        let Some(queue) = self.queue.as_mut().filter(|_| *ready) else { return Ok(false) };
        let turn = queue.run(port, BUDGET)?;
        *ready = turn != Turn::PortWait;
        Ok(turn == Turn::More)
    }

    /// Asks the guest for a kick, unless the ring waits for the port; returns whether there is something to do instead.
    pub(super) fn arm(&mut self, ready: bool) -> Result<bool, Violation> {
        self.queue.as_mut().filter(|_| ready).map_or(Ok(false), Queue::arm)
    }
}
