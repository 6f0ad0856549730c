// SPDX-License-Identifier: Apache-2.0
//! A machine of each kind, with the smallest device and a socket in place of a tap. Needs /dev/kvm.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Result, ensure};
use weft_test_vmm::{BareDevice, EVENT_IDX, Kind, MRG_RXBUF, Machine, Setup, Task, Work};

const PATIENCE: Duration = Duration::from_secs(60);
const TRIPS: u32 = 500;

fn machine(kind: Kind) -> Result<Machine> {
    Machine::new(Setup { kind, pairs: 1, ring_size: 64, features: MRG_RXBUF | EVENT_IDX, cpu: None })
}

/// A port whose other end sends every frame back.
fn echo() -> Result<OwnedFd> {
    let (port, other) = UnixDatagram::pair()?;
    port.set_nonblocking(true)?;
    std::thread::spawn(move || {
        let mut frame = [0; 2048];
        // Ends with the port.
        while let Ok(len) = other.recv(&mut frame) {
            if len == 0 || other.send(&frame[..len]).is_err() {
                return;
            }
        }
    });
    Ok(port.into())
}

fn round_trips(kind: Kind, work: Work) -> Result<()> {
    let mut machine = machine(kind)?;
    let device = BareDevice::serve(&machine, echo()?, None)?;
    machine.start(work)?;
    machine.finish(PATIENCE)?;
    let kicks = device.stop()?;
    let counters = machine.counters();
    let given = counters.kicks.load(Ordering::Relaxed);
    ensure!(counters.received.load(Ordering::Relaxed) == u64::from(TRIPS), "{counters:?}");
    ensure!(counters.misordered.load(Ordering::Relaxed) == 0, "{counters:?}");
    // Not one kick is lost between the guest's port and the device's descriptor.
    ensure!(given > 0 && kicks == given, "{kicks} of {given} kicks arrived");
    // One for the first buffers, then one for every frame: a ring that has buffers asks for none.
    ensure!(given <= u64::from(TRIPS) + 1, "{given} kicks");
    ensure!(!work.interrupts || machine.interrupts().0 > 0, "no interrupts: {:?}", machine.interrupts());
    let samples = machine.samples(TRIPS.into());
    ensure!(samples.iter().all(|sample| (0.1..60e6).contains(sample)), "microseconds: {samples:?}");
    Ok(())
}

#[test]
fn an_interrupt_driven_guest_in_kvm_gets_its_frames_back() -> Result<()> {
    round_trips(Kind::Kvm, Work { count: TRIPS, ..Work::new(Task::RoundTrip) })
}

#[test]
fn a_polling_guest_in_kvm_gets_its_frames_back() -> Result<()> {
    round_trips(Kind::Kvm, Work { count: TRIPS, interrupts: false, ..Work::new(Task::RoundTrip) })
}

#[test]
fn a_guest_on_a_thread_gets_its_frames_back() -> Result<()> {
    round_trips(Kind::Thread, Work { count: TRIPS, ..Work::new(Task::RoundTrip) })
}

#[test]
fn a_job_that_waits_for_ever_ends_when_it_is_told_to() -> Result<()> {
    for (kind, interrupts) in [(Kind::Kvm, true), (Kind::Kvm, false), (Kind::Thread, true)] {
        let mut machine = machine(kind)?;
        for task in [Task::Receive, Task::Exchange] {
            machine.start(Work { interrupts, ..Work::new(task) })?;
            machine.stop()?;
        }
    }
    Ok(())
}

#[test]
fn a_guest_that_fails_is_an_error_that_says_why() -> Result<()> {
    let mut machine = machine(Kind::Kvm)?;
    // Longer than the memory for it.
    machine.start(Work { buffer_len: 1 << 20, ..Work::new(Task::Receive) })?;
    let error = machine.finish(PATIENCE).expect_err("a job that cannot be done");
    ensure!(format!("{error:#}").contains("gave up"), "{error:#}");
    Ok(())
}
