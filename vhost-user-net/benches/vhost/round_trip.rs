// SPDX-License-Identifier: Apache-2.0
//! One frame from the guest to a packet socket that sends it back.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use weft_test_vmm::guest::frame::ETHERNET;
use weft_test_vmm::{BareDevice, Machine, Task, Work};
use weft_vhost::port::Port;

use crate::bare::{self, vector};
use crate::peer::HEADER;
use crate::peer::host::Host;
use crate::processor::{DEVICE_CPU, FRONT_CPU, pin};
use crate::reflector::{HOLD, Reflector};
use crate::report::{Pair, Report};
use crate::served::{Served, below, machine};
use crate::settings::Settings;

const COUNT: u32 = 2_000;
/// Frames ahead of each request under load.
const AHEAD: u32 = 31;
const PATIENCE: Duration = Duration::from_secs(60);
const SMALLEST: &str = "smallest device";

/// Sorted times of one measurement.
struct Times(Vec<f64>);

impl Times {
    fn new(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        Self(times)
    }

    fn at(&self, percent: usize) -> f64 {
        self.0[self.0.len() * percent / 100]
    }
}

pub(crate) fn rows(host: &Host, settings: &Settings, report: &mut Report) -> Result<()> {
    // A device that looks for work wants the processor that a station would wait on: it gets its answers at once.
    let kinds: [(_, _, _, &[&str]); 3] =
        [("rr", HOLD, 0, &[]), ("rr_loaded", HOLD, AHEAD, &[]), ("rr_poll", Duration::ZERO, 0, &["--poll-us", "100"])];
    for (name, hold, ahead, arguments) in kinds {
        if settings.wants(name) {
            let pairs = settings.pairs(
                || reflected(host, hold, || on_smallest_device(host, settings, ahead)),
                || reflected(host, hold, || on_device(host, settings, ahead, arguments)),
            )?;
            put(report, name, &pairs);
        }
    }
    if settings.wants("rr_direct") {
        let times = settings.repeat(|| reflected(host, Duration::ZERO, || without_guest(host)))?;
        for percent in [50, 99] {
            let values: Vec<f64> = times.iter().map(|times| times.at(percent)).collect();
            report.alone(&format!("rr_direct_p{percent}"), "us", &values);
        }
    }
    Ok(())
}

fn put(report: &mut Report, name: &str, pairs: &[Pair<Times>]) {
    for percent in [50, 99] {
        let at = |pair: &Pair<Times>| Pair { baseline: pair.baseline.at(percent), value: pair.value.at(percent) };
        let pairs: Vec<_> = pairs.iter().map(at).collect();
        report.times(&format!("{name}_p{percent}"), SMALLEST, &pairs);
    }
}

/// Measures with a station on the tap's other side. The time for which it holds an answer back is not counted.
fn reflected(host: &Host, hold: Duration, measure: impl FnOnce() -> Result<Vec<f64>>) -> Result<Times> {
    let reflector = Reflector::start(host, hold)?;
    let times = measure()?;
    drop(reflector);
    let held = hold.as_secs_f64() * 1e6;
    Ok(Times::new(times.into_iter().map(|time| time - held).collect()))
}

fn on_device(host: &Host, settings: &Settings, ahead: u32, arguments: &[&str]) -> Result<Vec<f64>> {
    let mut served = Served::new(host, settings, arguments)?;
    round_trips(&mut served.machine, ahead)
}

fn on_smallest_device(host: &Host, settings: &Settings, ahead: u32) -> Result<Vec<f64>> {
    let tap = bare::tap(host)?;
    let mut machine = machine(settings, 1)?;
    let port = tap.poll_fd().try_clone_to_owned().context("dup of the tap")?;
    let device = below(settings, || BareDevice::serve(&machine, port, Some(DEVICE_CPU)))?;
    let times = round_trips(&mut machine, ahead)?;
    device.stop()?;
    Ok(times)
}

fn round_trips(machine: &mut Machine, ahead: u32) -> Result<Vec<f64>> {
    machine.start(Work { count: COUNT, ahead, ..Work::new(Task::RoundTrip) })?;
    machine.finish(PATIENCE)?;
    let made = machine.counters().received.load(Ordering::Relaxed);
    ensure!(made == u64::from(COUNT), "only {made} round trips were made");
    Ok(machine.samples(made))
}

/// The same on the tap's descriptor, by this thread.
fn without_guest(host: &Host) -> Result<Vec<f64>> {
    let tap = bare::tap(host)?;
    pin(Pid::from_raw(0), DEVICE_CPU)?;
    let mut bytes = vec![0; HEADER + 64];
    bytes[HEADER..][..14].copy_from_slice(&ETHERNET);
    let (mut buffer, mut times) = (vec![0; 2048], Vec::new());
    for _ in 0..COUNT {
        let start = Instant::now();
        // SAFETY: the piece is a local buffer.
        unsafe { tap.write(&[vector(&mut bytes)]) }.context("write to the tap")?;
        // SAFETY: as above.
        while unsafe { tap.read(&[vector(&mut buffer)]) }.is_err() {
            let ready = poll(&mut [PollFd::new(tap.poll_fd(), PollFlags::POLLIN)], PollTimeout::from(1000u16))?;
            ensure!(ready == 1, "no frame came back");
        }
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    pin(Pid::from_raw(0), FRONT_CPU)?;
    Ok(times)
}
