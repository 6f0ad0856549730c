// SPDX-License-Identifier: Apache-2.0
//! Driver and device side by side, in every order that the memory model of C++11 allows ([loom]).
//!
//! The device is the ring's real code ([`Indices`]); only its shared fields are loom's atomics. The driver does what
//! virtio 1.3 asks of one. Shown, with `EVENT_IDX` and without:
//! - no wake-up is lost: a device that goes to sleep after `enable_kicks` is kicked for what the driver offers, and a
//!   driver that goes to sleep is interrupted for what the device completes;
//! - what is behind an index is visible to who reads the index: heads behind the available index, elements behind the
//!   used index, without a mark in them.
//!
//! That the models can fail is shown by the same models without the fence.
//!
//! [loom]: https://docs.rs/loom

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering, fence};
use loom::thread;
use weft_vhost::ring::cells::{Cells, Element};
use weft_vhost::ring::event;
use weft_vhost::ring::indices::{Indices, Rules};

const SIZE: usize = 4;
/// Chains of a model: few, for the orders are many.
const CHAINS: u16 = 2;
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// A ring in loom's memory.
#[derive(Debug)]
struct Ring {
    avail_flags: AtomicU16,
    avail_index: AtomicU16,
    heads: [AtomicU16; SIZE],
    used_event: AtomicU16,
    /// Flags and index in one, as the device writes them.
    used: AtomicU32,
    avail_event: AtomicU16,
    elements: [(AtomicU32, AtomicU32); SIZE],
    /// Eventfds: kick and call. Changed by swaps only, as the kernel does it under a lock.
    kicked: AtomicBool,
    called: AtomicBool,
    /// Without it the models have to fail.
    fences: bool,
    event_idx: bool,
}

impl Ring {
    fn new(event_idx: bool, fences: bool) -> Self {
        Self {
            avail_flags: AtomicU16::new(0),
            avail_index: AtomicU16::new(0),
            heads: [const { 0 }; SIZE].map(AtomicU16::new),
            // As after a long run: far behind, so that nobody is told anything without a new wish.
            used_event: AtomicU16::new(0x8000),
            used: AtomicU32::new(0),
            avail_event: AtomicU16::new(0x8000),
            elements: [const { 0 }; SIZE].map(|zero| (AtomicU32::new(zero), AtomicU32::new(zero))),
            kicked: AtomicBool::new(false),
            called: AtomicBool::new(false),
            fences,
            event_idx,
        }
    }

    fn barrier(&self) {
        if self.fences {
            fence(Ordering::SeqCst);
        }
    }

    // The driver's side.

    fn offer(&self, index: u16, head: u16) {
        self.heads[usize::from(index) % SIZE].store(head, Ordering::Relaxed);
        self.avail_index.store(index + 1, Ordering::Release);
    }

    fn wants_kick(&self, old: u16, new: u16) -> bool {
        self.barrier();
        if self.event_idx {
            event::passes(self.avail_event.load(Ordering::Relaxed), new, old)
        } else {
            self.used.load(Ordering::Relaxed) as u16 & NO_NOTIFY == 0
        }
    }

    fn used_index(&self) -> u16 {
        (self.used.load(Ordering::Acquire) >> 16) as u16
    }

    /// Asks for an interrupt and looks once more; returns whether there is nothing to take.
    fn sleeps(&self, seen: u16) -> bool {
        if self.event_idx {
            self.used_event.store(seen, Ordering::Relaxed);
        } else {
            self.avail_flags.store(0, Ordering::Relaxed);
        }
        self.barrier();
        self.used_index() == seen
    }
}

/// The ring as the device sees it.
#[derive(Debug, Clone)]
struct Shared(Arc<Ring>);

impl Cells for Shared {
    fn avail_flags(&self) -> u16 {
        self.0.avail_flags.load(Ordering::Relaxed)
    }

    fn avail_index(&self) -> u16 {
        self.0.avail_index.load(Ordering::Acquire)
    }

    fn head(&self, slot: u16) -> u16 {
        self.0.heads[usize::from(slot)].load(Ordering::Relaxed)
    }

    fn used_event(&self) -> u16 {
        self.0.used_event.load(Ordering::Relaxed)
    }

    fn used(&self) -> (u16, u16) {
        let both = self.0.used.load(Ordering::Relaxed);
        (both as u16, (both >> 16) as u16)
    }

    fn set_used(&self, flags: u16, index: u16) {
        self.0.used.store(u32::from(flags) | u32::from(index) << 16, Ordering::Release);
    }

    fn set_used_flags(&self, flags: u16) {
        // One field in loom's memory; only the device writes it.
        let both = self.0.used.load(Ordering::Relaxed);
        self.0.used.store(both & 0xffff_0000 | u32::from(flags), Ordering::Relaxed);
    }

    fn set_avail_event(&self, index: u16) {
        self.0.avail_event.store(index, Ordering::Relaxed);
    }

    fn element(&self, slot: u16) -> Element {
        let (id, len) = &self.0.elements[usize::from(slot)];
        Element { id: id.load(Ordering::Relaxed), len: len.load(Ordering::Relaxed) }
    }

    fn set_element(&self, slot: u16, element: Element) {
        let (id, len) = &self.0.elements[usize::from(slot)];
        len.store(element.len, Ordering::Relaxed);
        id.store(element.id, Ordering::Relaxed);
    }

    fn clear_mark(&self, slot: u16) {
        let id = &self.0.elements[usize::from(slot)].0;
        id.store(id.load(Ordering::Relaxed) & 0xffff, Ordering::Relaxed);
    }

    fn fence(&self) {
        self.0.barrier();
    }
}

fn device(ring: &Arc<Ring>) -> Indices<Shared> {
    let rules = Rules { size: SIZE as u16, event_idx: ring.event_idx, in_order: false };
    Indices::new(Shared(Arc::clone(ring)), rules, 0)
}

/// The device runs dry and sleeps while the driver offers chains: whatever it did not see, it is kicked for.
fn no_kick_is_lost(event_idx: bool, fences: bool) {
    loom::model(move || {
        let ring = Arc::new(Ring::new(event_idx, fences));
        let mut device = device(&ring);
        device.disable_kicks();
        let driver = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || {
                for index in 0..CHAINS {
                    ring.offer(index, 7 + index);
                    if ring.wants_kick(index, index + 1) {
                        ring.kicked.swap(true, Ordering::AcqRel);
                    }
                }
            })
        };
        let mut taken = 0;
        loop {
            while device.available(0).expect("index") > 0 {
                assert_eq!(device.head(0), 7 + taken, "a head behind the index");
                device.advance(1);
                taken += 1;
            }
            let sleeps = !device.enable_kicks(0).expect("index");
            if sleeps && !ring.kicked.swap(false, Ordering::AcqRel) {
                break;
            }
        }
        driver.join().expect("driver");
        let woken = ring.kicked.swap(false, Ordering::AcqRel);
        assert!(taken == CHAINS || woken, "the device sleeps on with {taken} taken (event_idx {event_idx})");
    });
}

/// The driver takes what it sees and sleeps while the device completes a batch: whatever it did not see, it is
/// interrupted for. Elements are whole and without a mark.
fn no_interrupt_is_lost(event_idx: bool, fences: bool) {
    loom::model(move || {
        let ring = Arc::new(Ring::new(event_idx, fences));
        (0..=CHAINS).for_each(|index| ring.offer(index, 7 + index));
        ring.avail_flags.store(NO_INTERRUPT, Ordering::Relaxed);
        let mut device = device(&ring);
        // The first interrupt after a start is sent in any case; the driver's wish decides from the second on.
        complete(&mut device);
        assert!(device.publish());
        let worker = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || {
                (0..CHAINS).for_each(|_| complete(&mut device));
                if device.publish() {
                    ring.called.swap(true, Ordering::AcqRel);
                }
            })
        };
        let mut seen = 0;
        loop {
            while ring.used_index() != seen {
                let (id, len) = &ring.elements[usize::from(seen)];
                let element = (id.load(Ordering::Relaxed), len.load(Ordering::Relaxed));
                assert_eq!(element, (7 + u32::from(seen), 100), "an element behind the index");
                seen += 1;
            }
            if ring.sleeps(seen) {
                break;
            }
        }
        worker.join().expect("device");
        let woken = ring.called.swap(false, Ordering::AcqRel);
        assert!(seen == CHAINS + 1 || woken, "the driver sleeps on with {seen} seen (event_idx {event_idx})");
    });
}

fn complete(device: &mut Indices<Shared>) {
    assert!(device.available(0).expect("index") > 0);
    device.complete_frame(device.head(0), 100);
    device.advance(1);
}

#[test]
fn a_device_that_sleeps_is_kicked() {
    no_kick_is_lost(true, true);
    no_kick_is_lost(false, true);
}

#[test]
fn a_driver_that_sleeps_is_interrupted() {
    no_interrupt_is_lost(true, true);
    no_interrupt_is_lost(false, true);
}

#[test]
fn without_the_fence_wake_ups_are_lost() {
    for model in [no_kick_is_lost, no_interrupt_is_lost] {
        for event_idx in [true, false] {
            let lost = catch_unwind(AssertUnwindSafe(|| model(event_idx, false)));
            assert!(lost.is_err(), "the model has no order in which the fence matters (event_idx {event_idx})");
        }
    }
}
