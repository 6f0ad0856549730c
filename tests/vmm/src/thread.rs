// SPDX-License-Identifier: Apache-2.0
//! A thread that plays the guest: the same driver, with event descriptors instead of ports and interrupts.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::events::Events;
use crate::guest::abi::{RX_LINE, TX_LINE, WAKE_LINE};
use crate::guest::platform::{Cause, Platform};
use crate::ram::Ram;

/// A machine made of a thread.
#[derive(Debug)]
pub(crate) struct Thread {
    pub(crate) ram: Arc<Ram>,
    pub(crate) events: Arc<Events>,
}

impl Thread {
    /// Runs the job in the control page to its end.
    pub(crate) fn run(&mut self) {
        let ram = Arc::clone(&self.ram);
        crate::guest::run(self, ram.memory(), ram.control());
    }

    /// Takes the interrupts of all rings: returns whether there were any.
    fn interrupted(&self) -> bool {
        let mut any = false;
        let lines = self.events.rings.iter().zip([RX_LINE, TX_LINE].into_iter().cycle());
        for (call, line) in lines.map(|(ring, line)| (&ring.call, line)).chain([(&self.events.wake, WAKE_LINE)]) {
            if call.read().is_ok() {
                self.ram.control().interrupts[line as usize].fetch_add(1, Ordering::SeqCst);
                any = true;
            }
        }
        any
    }
}

impl Platform for Thread {
    fn kick(&mut self, ring: u16) {
        if let Err(error) = self.events.rings[usize::from(ring)].kick.write(1) {
            eprintln!("write to a kick descriptor: {error}");
        }
    }

    fn wait(&mut self, _seen: u64) {
        if self.interrupted() || self.ram.control().stop.load(Ordering::SeqCst) != 0 {
            return;
        }
        let rings = self.events.rings.iter().map(|ring| &ring.call).chain([&self.events.wake]);
        // SAFETY: `events` keeps the descriptors open.
        let fds = rings.map(|event| unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) });
        let mut polled: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        // An error is a reason to look again, as every wake-up is.
        poll(&mut polled, PollTimeout::NONE).unwrap_or_default();
        self.interrupted();
    }

    fn fail(&mut self, cause: Cause) -> ! {
        panic!("the driver gave up: {cause:?}");
    }
}
