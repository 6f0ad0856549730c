// SPDX-License-Identifier: Apache-2.0
//! The guest: a virtio-net driver that does jobs.
//!
//! This module is compiled twice: into the guest's own program (`guest/main.rs`), without a standard library, and into
//! the monitor, which shares the map of memory and the frames with it and can run the same driver on a thread.

pub mod abi;
pub mod driver;
pub mod exchange;
pub mod flood;
pub mod frame;
pub mod memory;
pub mod platform;
pub mod ring;
pub mod round_trip;

use abi::{Control, Job, MAX_RINGS, Task};
use driver::Driver;
use memory::Memory;
use platform::{Cause, Platform};

/// Does the job the control page asks for.
pub fn run(platform: &mut impl Platform, memory: Memory, control: &Control) {
    let Some(job) = job(control) else { platform.fail(Cause::Job) };
    let mut driver = Driver::new(platform, memory, control, job);
    driver.start_clock();
    match job.task {
        Task::Transmit => flood::transmit(&mut driver),
        Task::Receive => flood::receive(&mut driver),
        Task::Exchange => exchange::run(&mut driver),
        Task::RoundTrip => round_trip::run(&mut driver),
        Task::Break => driver.break_ring(),
    }
}

/// The job in the control page, if it is one that can be done.
fn job(control: &Control) -> Option<Job> {
    let job = Job::load(control)?;
    let rings = (job.pair as usize) < MAX_RINGS / 2;
    let size = job.ring_size.is_power_of_two() && (8..=1024).contains(&job.ring_size);
    let buffer = (64..=abi::BUFFER_STRIDE).contains(&job.buffer_len.into());
    (rings && size && buffer && job.frame_len <= 0x1_1000).then_some(job)
}
