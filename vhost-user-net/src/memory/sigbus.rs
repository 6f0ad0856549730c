// SPDX-License-Identifier: Apache-2.0
//! Guest memory that goes away.
//!
//! A front end can cut the file behind a region short while the device uses it. The next access then raises SIGBUS,
//! which would end the process without a word. The handler installed here puts private zero pages in place of the lost
//! mapping, so that the access completes harmlessly, and marks the region as lost; the worker threads see the mark and
//! stop their rings with a clear error. A SIGBUS anywhere else still ends the process.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Two tables of the greatest size may be alive while one replaces the other.
const SLOTS: usize = 1024;
const FREE: usize = 0;
const CLAIMED: usize = 1;

struct Slot {
    /// First address of the mapping, or [`FREE`], or [`CLAIMED`] while the slot is being filled.
    start: AtomicUsize,
    len: AtomicUsize,
    lost: AtomicBool,
}

static TABLE: [Slot; SLOTS] =
    [const { Slot { start: AtomicUsize::new(FREE), len: AtomicUsize::new(0), lost: AtomicBool::new(false) } }; SLOTS];
static LOSSES: AtomicU32 = AtomicU32::new(0);

/// How often a mapping was lost in this process. A change means: ask [`super::GuestMemory::is_lost`].
#[inline]
pub fn losses() -> u32 {
    LOSSES.load(Ordering::Relaxed)
}

/// Installs the handler for the whole process.
///
/// # Errors
/// When the kernel refuses `sigaction`.
pub fn install() -> nix::Result<()> {
    let action = SigAction::new(SigHandler::SigAction(on_sigbus), SaFlags::SA_SIGINFO, SigSet::empty());
    // SAFETY: the handler only uses atomics and the async-signal-safe calls mmap and signal.
    unsafe { sigaction(Signal::SIGBUS, &action) }.map(|_| ())
}

/// The handler's entry for one mapping. A mapping past the table's capacity is not watched.
#[derive(Debug)]
pub(crate) struct Watch {
    slot: Option<usize>,
}

impl Watch {
    pub(crate) fn new(start: usize, len: usize) -> Self {
        let claim =
            |slot: &Slot| slot.start.compare_exchange(FREE, CLAIMED, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let slot = TABLE.iter().position(claim);
        if let Some(slot) = slot.and_then(|index| TABLE.get(index)) {
            slot.lost.store(false, Ordering::Relaxed);
            slot.len.store(len, Ordering::Relaxed);
            slot.start.store(start, Ordering::Release);
        }
        Self { slot }
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.slot.and_then(|index| TABLE.get(index)).is_some_and(|slot| slot.lost.load(Ordering::Acquire))
    }

    /// Takes the mapping out of the table; to be called before it is unmapped.
    pub(crate) fn end(&mut self) {
        if let Some(slot) = self.slot.take().and_then(|index| TABLE.get(index)) {
            slot.start.store(FREE, Ordering::Release);
        }
    }
}

extern "C" fn on_sigbus(_signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo, and for SIGBUS it has an address.
    let addr = unsafe { (*info).si_addr() } as usize;
    let hit = TABLE.iter().find(|slot| {
        let start = slot.start.load(Ordering::Acquire);
        start > CLAIMED && addr.wrapping_sub(start) < slot.len.load(Ordering::Relaxed)
    });
    let replaced = hit.is_some_and(|slot| {
        let start = slot.start.load(Ordering::Acquire) as *mut c_void;
        let len = slot.len.load(Ordering::Relaxed);
        // Shared: private memory would count against RLIMIT_DATA, with which a supervisor bounds this process.
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: replaces exactly the mapping of this slot, whose pages are gone, at the same address.
        let got = unsafe { libc::mmap(start, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        slot.lost.store(true, Ordering::Release);
        LOSSES.fetch_add(1, Ordering::Release);
        got == start
    });
    if !replaced {
        // SAFETY: restoring the default action is async-signal-safe; the access then faults again and ends the process.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    }
}
