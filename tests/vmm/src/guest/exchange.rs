// SPDX-License-Identifier: Apache-2.0
//! Numbered frames both ways, every byte of which is checked: what tests run.

use core::sync::atomic::Ordering;

use super::abi::{self, HEADER};
use super::driver::{Driver, add};
use super::frame::{self, Numbered, Stream};
use super::platform::Platform;

/// Room for one frame that was spread over several buffers, with its header.
const ROOM: usize = frame::MAX + HEADER as usize;

/// Exchanges frames until the job is to end. What is in flight then stays in the rings, for the next job.
pub fn run<P: Platform>(driver: &mut Driver<'_, P>) {
    let window = u64::from(driver.job.count);
    let counters = &driver.control.counters;
    let mut stream = Stream { next: counters.next_expected.load(Ordering::Relaxed), ..Stream::default() };
    let mut limit = counters.next_number.load(Ordering::Relaxed) + window;
    while !driver.stopped() {
        driver.rx.refuse_interrupts();
        driver.tx.refuse_interrupts();
        driver.fill();
        let reclaimed = driver.reclaim();
        let received = receive(driver, &mut stream, &mut limit);
        let sent = send(driver, stream.next + window, limit);
        note(driver, &mut stream);
        if reclaimed == 0 && !received && !sent {
            rest(driver);
        }
    }
}

/// Sends all frames the other side allows and the ring has room for. Returns whether there were any.
fn send<P: Platform>(driver: &mut Driver<'_, P>, allow: u64, limit: u64) -> bool {
    let next = &driver.control.counters.next_number;
    let first = next.load(Ordering::Relaxed);
    let mut number = first;
    while number < limit {
        let Some(chain) = driver.tx.free_chain() else { break };
        let address = driver.tx.buffers() + u64::from(chain) * abi::BUFFER_STRIDE;
        // SAFETY: the chain is free, so the device does not look at its buffer.
        let bytes = unsafe { driver.memory.bytes(address, ROOM as u64) };
        bytes[..HEADER as usize].fill(0);
        let len = frame::write(&mut bytes[HEADER as usize..], Numbered { number, limit: allow });
        driver.tx.describe(chain, 0, address, HEADER as u32 + len as u32, 0);
        driver.tx.offer(chain);
        number += 1;
    }
    next.store(number, Ordering::Relaxed);
    driver.publish_tx();
    number > first
}

/// Takes in and checks all frames there are. Returns whether there were any.
fn receive<P: Platform>(driver: &mut Driver<'_, P>, stream: &mut Stream, limit: &mut u64) -> bool {
    let mut any = false;
    // All buffers of a frame are shown at once, so the first one's header can be trusted with the others being there.
    while driver.rx.completed() > 0 {
        any = true;
        let mut whole = [0u8; ROOM];
        let Some(len) = gather(driver, &mut whole) else {
            stream.corrupt += 1;
            continue;
        };
        let body = &whole[HEADER as usize..len];
        add(&driver.control.counters.received, 1);
        if frame::is_numbered(body)
            && let Some(said) = stream.see(body)
        {
            *limit = said.limit.max(*limit);
        }
    }
    any
}

/// Puts the pieces of the next frame together. Returns its length with the header; `None` if it is no frame at all.
fn gather<P: Platform>(driver: &mut Driver<'_, P>, whole: &mut [u8]) -> Option<usize> {
    let (mut len, mut left, mut first) = (0, 1, true);
    while left > 0 {
        if driver.rx.completed() == 0 {
            return None;
        }
        let (chain, used) = driver.rx.take();
        add(&driver.control.counters.buffers, 1);
        let address = driver.rx.buffers() + u64::from(chain) * abi::BUFFER_STRIDE;
        let used = used.min(driver.job.buffer_len) as usize;
        // SAFETY: the device gave the buffer back.
        let bytes = unsafe { driver.memory.bytes(address, used as u64) };
        if first {
            left = u16::from_le_bytes([*bytes.get(10)?, *bytes.get(11)?]);
            first = false;
        }
        whole.get_mut(len..len + used)?.copy_from_slice(bytes);
        (len, left) = (len + used, left.checked_sub(1)?);
    }
    (len > HEADER as usize).then_some(len)
}

/// Moves what a turn counted into the control page.
fn note<P: Platform>(driver: &Driver<'_, P>, stream: &mut Stream) {
    let counters = &driver.control.counters;
    add(&counters.corrupt, stream.corrupt);
    add(&counters.repeated, stream.repeated);
    add(&counters.lost, stream.lost);
    counters.next_expected.store(stream.next, Ordering::Relaxed);
    *stream = Stream { next: stream.next, ..Stream::default() };
}

fn rest<P: Platform>(driver: &mut Driver<'_, P>) {
    if !driver.interrupts() {
        core::hint::spin_loop();
        return;
    }
    let seen = driver.seen();
    driver.rx.ask_for_interrupt(1);
    driver.tx.ask_for_interrupt((driver.tx.outstanding() / 2).max(1));
    if driver.rx.completed() == 0 && driver.tx.completed() == 0 {
        driver.wait(seen);
    }
}
