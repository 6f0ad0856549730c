// SPDX-License-Identifier: Apache-2.0
//! The guest's program: the driver of `src/guest` on the bare machine.
//!
//! It runs at privilege level 3, where every host runs guests at full speed, with the ports of `abi` open to it.

#![no_std]
#![no_main]

mod bytes;
#[path = "../src/guest/mod.rs"]
#[allow(dead_code, unreachable_pub, reason = "the monitor uses the other part of it")]
mod guest;

use core::arch::{asm, global_asm};

use guest::abi::{self, Control};
use guest::memory::Memory;
use guest::platform::{Cause, Platform};

global_asm!(include_str!("vectors.s"));

/// A processor with the monitor's ports around it.
struct Processor;

impl Platform for Processor {
    #[inline(always)]
    fn kick(&mut self, ring: u16) {
        let port = abi::KICK_PORT + 2 * ring;
        // SAFETY: the port is an event descriptor of the monitor's, which takes any value.
        unsafe { asm!("out dx, ax", in("dx") port, in("ax") ring, options(nostack, preserves_flags)) };
    }

    fn wait(&mut self, seen: u64) {
        // SAFETY: the handler of the breakpoint sleeps and returns; it changes no register.
        unsafe { asm!("int3", in("rdi") seen) };
    }

    fn fail(&mut self, cause: Cause) -> ! {
        leave(abi::FAIL_PORT, cause as u8)
    }
}

/// Tells the monitor a byte and does not go on.
fn leave(port: u16, byte: u8) -> ! {
    loop {
        // SAFETY: the monitor does not run the guest on behind this port.
        unsafe { asm!("out dx, al", in("dx") port, in("al") byte, options(nostack)) };
    }
}

/// Does the job that is in the control page.
#[unsafe(no_mangle)]
extern "C" fn guest_main() -> ! {
    // SAFETY: guest memory lies at address 0, and the monitor does not touch what the driver owns while a job runs.
    let memory = unsafe { Memory::new(core::ptr::without_provenance_mut(0), abi::RAM) };
    // SAFETY: the control page is there, and made of atomics only.
    let control = unsafe { &*core::ptr::without_provenance::<Control>(abi::CONTROL as usize) };
    guest::run(&mut Processor, memory, control);
    leave(abi::DONE_PORT, 0)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    leave(abi::FAIL_PORT, Cause::Panic as u8)
}

/// The unwinding tables of `core` name it; nothing here unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
