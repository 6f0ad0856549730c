// SPDX-License-Identifier: Apache-2.0
//! Speed of the device beside the bare system calls on the same tap, in the same run.
//!
//! `cargo bench -p weft-vhost --bench vhost -- [--json PATH] [--seconds S] [--rounds N] [--only PREFIX]
//! [--front-end kvm|thread] [--real-time]`; needs root and /dev/kvm, makes its own network namespaces. The guest runs
//! on processor 0, the device and the bare loop on processor 1; `--real-time` keeps everybody else off them.
//!
//! The guest is the one of `tests/vmm`: a driver in KVM whose kicks are ioeventfds and whose interrupts are irqfds.
//! With `--front-end thread` a thread of the bench plays it.
//!
//! | Row | What is measured | Beside it |
//! |---|---|---|
//! | `tx_64`, `tx_1500`, `tx_gso` | guest to tap, frames of 64 and 1500 bytes and 64 KiB | `writev` in a loop |
//! | `rx_64`, `rx_1500`, `rx_gso` | tap to guest: a full tap queue is drained | `readv` in a loop |
//! | `rx_1500_log`, `rx_gso_log`, `tx_64_log` | the same while every write is logged for a migration | the device without the log |
//! | `rr_p50`, `rr_p99` | one frame to a packet socket that sends it back | the same guest on the smallest device |
//! | `rr_loaded_p50`, `rr_loaded_p99` | the same, each behind 31 frames of 1500 bytes | the same guest on the smallest device |
//! | `rr_poll_p50`, `rr_poll_p99` | as `rr`, with `--poll-us 100` | the same guest on the smallest device |
//! | `rr_direct_p50`, `rr_direct_p99` | the same on the tap's descriptor, without a guest | |
//! | `restart` | from `kill -9` of the device under a flood to the first frame through its successor | |
//! | `rss_1`, `rss_4` | resident memory of the device beside the guest's, with one and four queue pairs at work | |
//!
//! Round trips are those of a guest that sleeps until its answer comes: the station on the tap holds each back for 50
//! microseconds, which are not counted (`reflector`). Only the polling device's and those without a guest are at once.
//!
//! The bare loops go through as many buffers, as far apart, as the guest has, so that the difference is the ring's work
//! and not the processor's caches. Rates are per second of processor time of the device (or of the bare loop): unlike
//! the rate by the clock, which is printed too, they do not fall when others use the machine.

#[path = "../../tests/peer/mod.rs"]
mod peer;

mod bare;
mod dirty_log;
mod frames;
mod memory;
mod mirror;
mod processor;
mod receive;
mod reflector;
mod report;
mod restart;
mod round_trip;
mod served;
mod settings;
mod transmit;

use anyhow::Result;
use nix::unistd::Pid;
use peer::host::Host;
use report::Report;
use settings::Settings;

fn main() -> Result<()> {
    if reflector::serve_if_asked()? {
        return Ok(());
    }
    let settings = Settings::from_arguments()?;
    processor::pin(Pid::from_raw(0), processor::FRONT_CPU)?;
    if settings.real_time {
        processor::real_time(processor::FIRST)?;
    }
    let host = Host::new(1)?;
    let mut report = Report::default();
    transmit::rows(&host, &settings, &mut report)?;
    receive::rows(&host, &settings, &mut report)?;
    dirty_log::rows(&host, &settings, &mut report)?;
    restart::rows(&host, &settings, &mut report)?;
    round_trip::rows(&host, &settings, &mut report)?;
    memory::rows(&host, &settings, &mut report)?;
    report.write(settings.json.as_deref())
}
