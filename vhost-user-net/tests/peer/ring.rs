// SPDX-License-Identifier: Apache-2.0
//! The driver's side of a split ring.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use vhost::VringConfigData;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::ram::Ram;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// How long the device may take for anything, on a machine that does many other things.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A ring in guest memory, driven by hand.
pub struct DriverRing {
    ram: Arc<Ram>,
    index: usize,
    size: u16,
    base: u64,
    event_idx: bool,
    /// Next entry of the available ring to write.
    pub next_avail: u16,
    published: u16,
    /// Next used element to read.
    pub last_used: u16,
    pub kick: EventFd,
    pub call: EventFd,
    pub err: EventFd,
    /// Kicks given.
    pub kicks: u64,
}

impl DriverRing {
    pub fn new(ram: &Arc<Ram>, index: usize, size: u16, event_idx: bool) -> Result<Self> {
        let base = ram.ring_space(index);
        let event = || EventFd::new(EFD_NONBLOCK);
        let (kick, call, err) = (event()?, event()?, event()?);
        let ram = Arc::clone(ram);
        Ok(Self {
            ram,
            index,
            size,
            base,
            event_idx,
            next_avail: 0,
            published: 0,
            last_used: 0,
            kick,
            call,
            err,
            kicks: 0,
        })
    }

    pub fn size(&self) -> u16 {
        self.size
    }

    pub fn desc_addr(&self) -> u64 {
        self.base
    }

    pub fn avail_addr(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    pub fn used_addr(&self) -> u64 {
        (self.avail_addr() + 6 + 2 * u64::from(self.size)).next_multiple_of(4096)
    }

    pub fn config(&self, log: Option<u64>) -> VringConfigData {
        let host = |guest| self.ram.host(guest, 1) as u64;
        VringConfigData {
            queue_max_size: self.size,
            queue_size: self.size,
            flags: u32::from(log.is_some()),
            desc_table_addr: host(self.desc_addr()),
            used_ring_addr: host(self.used_addr()),
            avail_ring_addr: host(self.avail_addr()),
            log_addr: log,
        }
    }

    /// Takes up where another driver of the same ring left off.
    pub fn resume(&mut self, next_avail: u16, last_used: u16) {
        (self.next_avail, self.published, self.last_used) = (next_avail, next_avail, last_used);
    }

    /// Goes on with the ring at an address this much greater.
    pub fn move_by(&mut self, distance: u64) {
        self.base += distance;
    }

    /// The slot the next chain is to use when slots are used in turn.
    #[inline]
    pub fn next_slot(&self) -> u16 {
        self.next_avail & (self.size - 1)
    }

    #[inline]
    pub fn descriptor(&self, slot: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.descriptor_at(self.desc_addr() + 16 * u64::from(slot), addr, len, flags, next);
    }

    /// Writes a descriptor anywhere, for indirect tables.
    #[inline]
    pub fn descriptor_at(&self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        let host = self.ram.host(at, 16);
        // SAFETY: `host` checked the sixteen bytes; unaligned writes are allowed.
        unsafe {
            host.cast::<u64>().write_unaligned(addr);
            host.add(8).cast::<u64>().write_unaligned(rest);
        }
    }

    #[inline]
    fn cell(&self, guest: u64) -> &AtomicU16 {
        // SAFETY: `host` checked the two bytes, and all fields of a ring are aligned.
        unsafe { AtomicU16::from_ptr(self.ram.host(guest, 2).cast()) }
    }

    /// Makes a chain available; the device sees it after `publish`.
    #[inline]
    pub fn offer(&mut self, head: u16) {
        self.cell(self.avail_addr() + 4 + 2 * u64::from(self.next_slot())).store(head, Ordering::Relaxed);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Shows the device what was offered and kicks it when it wants that.
    #[inline]
    pub fn publish(&mut self) -> Result<()> {
        let (old, new) = (self.published, self.next_avail);
        self.set_avail_index(new);
        self.published = new;
        fence(Ordering::SeqCst);
        if self.wants_kick(old, new) {
            self.kicks += 1;
            self.kick.write(1)?;
        }
        Ok(())
    }

    pub fn set_avail_index(&self, index: u16) {
        self.cell(self.avail_addr() + 2).store(index, Ordering::Release);
    }

    fn wants_kick(&self, old: u16, new: u16) -> bool {
        if self.event_idx {
            let event = self.cell(self.used_addr() + 4 + 8 * u64::from(self.size)).load(Ordering::Relaxed);
            return new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old);
        }
        self.cell(self.used_addr()).load(Ordering::Relaxed) & 1 == 0
    }

    /// Asks for an interrupt when the device used one more (`EVENT_IDX`), or for none at all (its absence).
    pub fn set_used_event(&self, event: u16) {
        self.cell(self.avail_addr() + 4 + 2 * u64::from(self.size)).store(event, Ordering::SeqCst);
    }

    /// Sets the available ring's flags: 1 is "no interrupt".
    pub fn set_avail_flags(&self, flags: u16) {
        self.cell(self.avail_addr()).store(flags, Ordering::SeqCst);
    }

    /// Sets the device's index: a driver that starts over gives the device zeroed rings.
    pub fn set_used_index(&self, index: u16) {
        self.cell(self.used_addr() + 2).store(index, Ordering::Release);
    }

    pub fn used_index(&self) -> u16 {
        self.cell(self.used_addr() + 2).load(Ordering::Acquire)
    }

    /// The next used element, if there is one: head and length.
    #[inline]
    pub fn used(&mut self) -> Option<(u16, u32)> {
        if self.used_index() == self.last_used {
            return None;
        }
        let at = self.used_addr() + 4 + 8 * u64::from(self.last_used & (self.size - 1));
        self.last_used = self.last_used.wrapping_add(1);
        let host = self.ram.host(at, 8).cast::<u32>();
        // SAFETY: `host` checked the eight bytes; used elements are aligned to 4.
        let (id, len) = unsafe { (host.read_volatile(), host.add(1).read_volatile()) };
        Some((id as u16, len))
    }

    pub fn wait_used(&mut self) -> Result<(u16, u32)> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(element) = self.used() {
                return Ok(element);
            }
            if Instant::now() > deadline {
                bail!("ring {} has no used buffer after {PATIENCE:?}", self.index);
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Number of interrupts since the last look.
    pub fn interrupts(&self) -> u64 {
        self.call.read().unwrap_or(0)
    }

    /// Waits until the device reports the ring as broken.
    pub fn wait_broken(&self) -> Result<()> {
        super::host::eventually("the ring to be reported broken", || Ok(self.err.read().ok().map(|_| ())))
    }
}
