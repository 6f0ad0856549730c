// SPDX-License-Identifier: Apache-2.0
//! Tap to guest.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;
use weft_test_vmm::{Machine, Task, Work};
use weft_vhost::port::Port;

use crate::bare::{self, Buffers};
use crate::frames::{KINDS, Kind, RING};
use crate::mirror::Mirror;
use crate::peer::host::{Host, Wire, run};
use crate::processor::{DEVICE_CPU, FRONT_CPU, own_time, pin};
use crate::report::{Rate, Report};
use crate::served::Served;
use crate::settings::Settings;

/// After this long without a buffer nothing more comes, even on a machine with a lot to do.
const QUIET: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn rows(host: &Host, settings: &Settings, report: &mut Report) -> Result<()> {
    for kind in KINDS {
        let name = format!("rx_{}", kind.name);
        if settings.wants(&name) {
            let pairs = settings.pairs(|| readv(host, kind), || device(host, settings, kind, false))?;
            report.rates(&name, kind, "readv", &pairs);
        }
    }
    Ok(())
}

fn readv(host: &Host, kind: Kind) -> Result<Rate> {
    let tap = bare::tap(host)?;
    fill(host, kind, kind.queue)?;
    pin(Pid::from_raw(0), DEVICE_CPU)?;
    let mut buffers = Buffers::new(kind);
    let (start, cpu, mut frames) = (Instant::now(), own_time()?, 0);
    // SAFETY: the pieces are parts of local memory.
    while unsafe { tap.read(buffers.next()) }.is_ok() {
        frames += 1;
    }
    let rate = Rate { frames, wall: start.elapsed().as_secs_f64(), cpu: own_time()? - cpu };
    pin(Pid::from_raw(0), FRONT_CPU)?;
    check(kind, frames)?;
    Ok(rate)
}

/// A guest that gives every buffer back at once.
pub(crate) fn device(host: &Host, settings: &Settings, kind: Kind, logging: bool) -> Result<Rate> {
    let mut served = Served::new(host, settings, &[])?;
    let _log = if logging { Some(served.front.start_log(&served.machine)?) } else { None };
    use_every_buffer(host, &mut served.machine, kind)?;
    fill(host, kind, kind.queue)?;
    let machine = &mut served.machine;
    let before = machine.counters().buffers.load(Ordering::Relaxed);
    let cpu = crate::processor::time_of(served.backend.child.id())?;
    machine.start(work(kind, 0))?;
    wait_for_buffers(machine, before + (kind.queue * kind.buffers()) as u64);
    machine.stop()?;
    let cpu = crate::processor::time_of(served.backend.child.id())? - cpu;
    let counters = machine.counters();
    let frames = (counters.buffers.load(Ordering::Relaxed) - before) / kind.buffers() as u64;
    check(kind, frames).with_context(|| format!("{counters:?}: {}", served.backend.metrics().unwrap_or_default()))?;
    let cycles = counters.last_work.load(Ordering::Relaxed) - counters.started.load(Ordering::Relaxed);
    Ok(Rate { frames, wall: cycles as f64 / machine.frequency(), cpu })
}

fn work(kind: Kind, count: u32) -> Work {
    Work { interrupts: false, buffer_len: kind.buffer() as u32, count, ..Work::new(Task::Receive) }
}

/// Receives into every buffer once, so that no page is new to the device when the clock runs. The ring is left without
/// buffers, so that the tap's queue can be filled.
fn use_every_buffer(host: &Host, machine: &mut Machine, kind: Kind) -> Result<()> {
    let frames = usize::from(RING) / kind.buffers();
    machine.start(work(kind, (frames * kind.buffers()) as u32))?;
    fill(host, kind, frames)?;
    machine.finish(PATIENCE)
}

/// Waits until so many buffers are used, or no more come.
fn wait_for_buffers(machine: &Machine, count: u64) {
    let buffers = || machine.counters().buffers.load(Ordering::Relaxed);
    let (mut seen, mut since) = (buffers(), Instant::now());
    while seen < count && since.elapsed() < QUIET {
        std::thread::sleep(Duration::from_millis(10));
        let now = buffers();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
}

/// Puts frames for the guest into the tap's queue.
fn fill(host: &Host, kind: Kind, count: usize) -> Result<()> {
    run(&format!("ip link set dev {} txqueuelen {}", host.tap, kind.queue))?;
    let packet = kind.packet();
    if kind.is_large() {
        return Mirror::new(host)?.send(&packet, count);
    }
    let wire = Wire::open(&host.tap, true)?;
    (0..count).try_for_each(|_| wire.send(&packet))
}

fn check(kind: Kind, frames: u64) -> Result<()> {
    ensure!(frames > kind.queue as u64 * 9 / 10, "only {frames} of {} frames came", kind.queue);
    Ok(())
}
