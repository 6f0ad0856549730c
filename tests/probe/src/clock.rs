// SPDX-License-Identifier: Apache-2.0
//! Kernel parameters that spare an emulated guest the measuring of its clocks.

/// What to add to the kernel's command line.
///
/// On a busy machine emulated time goes on while the emulator waits for a processor, and Linux calibrates its delay loop
/// for ever. An emulated TSC is the host's, so its rate can be told: `tsc_early_khz` and `lpj`, loops of one TSC cycle a
/// jiffy, of which Debian's kernels have 250 a second.
#[must_use]
pub fn guest_parameters() -> String {
    tsc_khz().map_or_else(String::new, |khz| format!("tsc_early_khz={khz} lpj={}", khz * 1000 / 250))
}

/// The rate of the time stamp counter, measured against the monotonic clock.
#[cfg(target_arch = "x86_64")]
fn tsc_khz() -> Option<u64> {
    use std::{
        thread,
        time::{Duration, Instant},
    };

    // SAFETY: every x86-64 processor has the instruction, which touches no memory.
    let cycles = || unsafe { core::arch::x86_64::_rdtsc() };
    let (start, first) = (Instant::now(), cycles());
    thread::sleep(Duration::from_millis(20));
    let (last, time) = (cycles(), start.elapsed());
    u64::try_from(u128::from(last - first) * 1_000_000 / time.as_nanos()).ok()
}

/// There is none.
#[cfg(not(target_arch = "x86_64"))]
fn tsc_khz() -> Option<u64> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    #[test]
    fn the_counter_has_a_plausible_rate() {
        let khz = super::tsc_khz().unwrap();
        assert!((100_000..100_000_000).contains(&khz), "{khz} kHz");
    }
}
