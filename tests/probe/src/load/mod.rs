// SPDX-License-Identifier: Apache-2.0
//! `load-serve` and `load`: one server and one client that measure a path, each on a processor of its choice.
//!
//! Client and server on one processor take turns, so that a round trip is the path's cost and two context switches, with
//! no processor woken up in between: that is what is stable on a shared machine.

mod client;
mod server;

use std::{io, mem};

pub(crate) use client::run;
pub(crate) use server::run as serve;

/// First byte of a connection whose every byte is sent back.
const ECHO: u8 = b'e';
/// First byte of a connection whose bytes are counted up to its end; the count is sent back as 8 bytes.
const SINK: u8 = b's';

/// How much this process goes before others, as `nice` counts.
const NICE: i32 = -10;

/// Measures before everybody else on the machine: a session of its own, whose group the scheduler prefers as `nice` does
/// within a group (sched(7), "The autogroup feature"). What the machine does not allow or have changes nothing.
fn hurry() {
    // SAFETY: plain system calls on this process; setsid fails where it leads a group already.
    unsafe {
        libc::setsid();
        libc::setpriority(libc::PRIO_PROCESS, 0, NICE);
    }
    drop(std::fs::write("/proc/self/autogroup", NICE.to_string()));
}

/// Keeps this process on processor `cpu`.
fn pin(cpu: Option<usize>) -> Result<(), String> {
    let Some(cpu) = cpu else { return Ok(()) };
    if cpu >= mem::size_of::<libc::cpu_set_t>() * 8 {
        return Err(format!("--cpu: there is no processor {cpu}"));
    }
    // SAFETY: all zeros is a valid, empty cpu_set_t.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: `cpu` is a bit of the set, see above.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set is valid for the length given; 0 is this process.
    let result = unsafe { libc::sched_setaffinity(0, mem::size_of_val(&set), &raw const set) };
    if result == 0 { Ok(()) } else { Err(format!("--cpu {cpu}: {}", io::Error::last_os_error())) }
}
