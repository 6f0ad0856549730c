// SPDX-License-Identifier: Apache-2.0
//! Guest to tap.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::unistd::Pid;
use weft_test_vmm::{Task, Work};
use weft_vhost::port::Port;

use crate::bare::{self, Frames, vector};
use crate::frames::{KINDS, Kind};
use crate::peer::HEADER;
use crate::peer::host::Host;
use crate::processor::{DEVICE_CPU, FRONT_CPU, own_time, pin};
use crate::report::{Rate, Report};
use crate::served::Served;
use crate::settings::Settings;

/// Until every buffer was used once, on both sides.
const WARM_UP: Duration = Duration::from_millis(50);

pub(crate) fn rows(host: &Host, settings: &Settings, report: &mut Report) -> Result<()> {
    for kind in KINDS {
        let name = format!("tx_{}", kind.name);
        if settings.wants(&name) {
            let pairs = settings.pairs(|| writev(host, settings, kind), || device(host, settings, kind, false))?;
            report.rates(&name, kind, "writev", &pairs);
        }
    }
    Ok(())
}

fn writev(host: &Host, settings: &Settings, kind: Kind) -> Result<Rate> {
    let tap = bare::tap(host)?;
    pin(Pid::from_raw(0), DEVICE_CPU)?;
    let (mut header, mut frames) = (kind.header(), Frames::new(kind));
    let (start, cpu, mut count) = (Instant::now(), own_time()?, 0);
    while start.elapsed() < settings.time {
        for _ in 0..64 {
            let pieces = [vector(&mut header[..HEADER]), vector(frames.next())];
            // SAFETY: the pieces are local buffers.
            unsafe { tap.write(&pieces) }.context("writev to the tap")?;
        }
        count += 64;
    }
    let rate = Rate { frames: count, wall: start.elapsed().as_secs_f64(), cpu: own_time()? - cpu };
    pin(Pid::from_raw(0), FRONT_CPU)?;
    Ok(rate)
}

/// A guest that never lets the ring run empty.
pub(crate) fn device(host: &Host, settings: &Settings, kind: Kind, logging: bool) -> Result<Rate> {
    let mut served = Served::new(host, settings, &[])?;
    let _log = if logging { Some(served.front.start_log(&served.machine)?) } else { None };
    let bytes = kind.bytes();
    served.machine.set_template(&bytes)?;
    let work = Work { interrupts: false, frame_len: bytes.len() as u32, ..Work::new(Task::Transmit) };
    served.machine.start(work)?;
    std::thread::sleep(WARM_UP);
    let sent = |served: &Served| served.machine.counters().sent.load(Ordering::Relaxed);
    let (start, before, cpu) = (Instant::now(), sent(&served), served.device_time()?);
    std::thread::sleep(settings.time);
    let (wall, frames, cpu) = (start.elapsed().as_secs_f64(), sent(&served) - before, served.device_time()? - cpu);
    served.machine.stop()?;
    Ok(Rate { frames, wall, cpu })
}
