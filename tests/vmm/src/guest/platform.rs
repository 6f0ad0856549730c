// SPDX-License-Identifier: Apache-2.0
//! What the driver needs of the machine it runs on.

/// Why a driver gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    /// A check of the program failed.
    Panic = 1,
    /// The control page asks for something there is not.
    Job = 2,
}

/// A machine: a processor in KVM, or a thread that plays one.
pub trait Platform {
    /// Tells the device that there is something in a ring.
    fn kick(&mut self, ring: u16);
    /// Sleeps until an interrupt, if none came since `seen` was read from the counters, or until the job is to end.
    /// May return early.
    fn wait(&mut self, seen: u64);
    /// Ends the job for good.
    fn fail(&mut self, cause: Cause) -> !;
}

/// The processor's time stamp counter.
#[inline(always)]
pub fn cycles() -> u64 {
    // SAFETY: every x86_64 processor has it, and reading it does nothing else.
    unsafe { core::arch::x86_64::_rdtsc() }
}
