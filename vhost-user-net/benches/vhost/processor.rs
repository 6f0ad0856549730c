// SPDX-License-Identifier: Apache-2.0
//! Who runs on which processor, and how long it did.

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// The guest's, and the bench's own.
pub(crate) const FRONT_CPU: usize = 0;
/// The device's, or the bare loop's.
pub(crate) const DEVICE_CPU: usize = 1;

/// Priority of guests and devices.
pub(crate) const SECOND: i32 = 1;
/// Priority of the bench, which has to get the processor from a guest that polls.
pub(crate) const FIRST: i32 = 2;

/// Keeps a thread on a processor.
pub(crate) fn pin(pid: Pid, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(pid, &set).context("sched_setaffinity; the bench needs two processors")
}

/// Keeps all threads of a process on a processor.
pub(crate) fn pin_process(pid: u32, cpu: usize) -> Result<()> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let tid: i32 = task?.file_name().to_string_lossy().parse()?;
        pin(Pid::from_raw(tid), cpu)?;
    }
    Ok(())
}

/// Gives this thread, and what it starts from now on, the processor before everybody else, so that others on the
/// machine are not part of the figures. The kernel leaves them a part of every second.
pub(crate) fn real_time(priority: i32) -> Result<()> {
    let parameter = libc::sched_param { sched_priority: priority };
    // SAFETY: the parameter is read only.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) };
    ensure!(done == 0, "sched_setscheduler: {}; the bench needs root", std::io::Error::last_os_error());
    Ok(())
}

/// Processor seconds of a process, all threads, from the scheduler's own clock.
pub(crate) fn time_of(pid: u32) -> Result<f64> {
    let mut total = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        total += text.split_whitespace().next().context("schedstat")?.parse::<u64>()?;
    }
    Ok(total as f64 / 1e9)
}

/// Processor seconds of this thread.
pub(crate) fn own_time() -> Result<f64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(now.tv_sec() as f64 + now.tv_nsec() as f64 / 1e9)
}
