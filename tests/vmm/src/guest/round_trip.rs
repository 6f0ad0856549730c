// SPDX-License-Identifier: Apache-2.0
//! One frame there and back, some times over, and how long each took.

use super::abi::{self, HEADER};
use super::driver::{Driver, add};
use super::frame::ETHERNET;
use super::platform::{Platform, cycles};

/// A frame to a station that is not there: the host throws it away.
const NOBODY: [u8; 14] = [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 0x88, 0xb6];
const AHEAD_LEN: u64 = 1514;

/// Makes the round trips of the job, or as many as are made until it is to end.
pub fn run<P: Platform>(driver: &mut Driver<'_, P>) {
    driver.fill();
    driver.rx.refuse_interrupts();
    driver.tx.refuse_interrupts();
    for round in 0..u64::from(driver.job.count).min(abi::MAX_SAMPLES) {
        let Some(time) = once(driver) else { return };
        driver.memory.write(abi::SAMPLES + 4 * round, u32::try_from(time).unwrap_or(u32::MAX));
        add(&driver.control.counters.received, 1);
    }
}

/// Sends, behind the frames that go ahead, and waits for the answer; `None` when the job is to end.
fn once<P: Platform>(driver: &mut Driver<'_, P>) -> Option<u64> {
    for _ in 0..driver.job.ahead {
        put(driver, NOBODY, AHEAD_LEN)?;
    }
    put(driver, ETHERNET, 64)?;
    let start = cycles();
    driver.publish_tx();
    wait_for_answer(driver)?;
    let time = cycles().wrapping_sub(start);
    driver.fill();
    while driver.tx.outstanding() > 0 {
        if driver.reclaim() == 0 && driver.stopped() {
            return None;
        }
    }
    Some(time)
}

/// Offers a frame; `None` when there is no room, which means a device that lost one.
fn put<P: Platform>(driver: &mut Driver<'_, P>, ethernet: [u8; 14], len: u64) -> Option<()> {
    let chain = driver.tx.free_chain()?;
    let address = driver.tx.buffers() + u64::from(chain) * abi::BUFFER_STRIDE;
    // SAFETY: the chain is free, so the device does not look at its buffer.
    let bytes = unsafe { driver.memory.bytes(address, HEADER + len) };
    bytes[..HEADER as usize].fill(0);
    bytes[HEADER as usize..][..14].copy_from_slice(&ethernet);
    driver.tx.describe(chain, 0, address, (HEADER + len) as u32, 0);
    driver.tx.offer(chain);
    Some(())
}

/// Takes frames in until one is an answer.
fn wait_for_answer<P: Platform>(driver: &mut Driver<'_, P>) -> Option<()> {
    loop {
        while driver.rx.completed() > 0 {
            let (chain, _) = driver.rx.take();
            let address = driver.rx.buffers() + u64::from(chain) * abi::BUFFER_STRIDE;
            // SAFETY: the device gave the buffer back.
            if unsafe { driver.memory.bytes(address + HEADER, 14) } == ETHERNET {
                driver.rx.refuse_interrupts();
                return Some(());
            }
        }
        if driver.stopped() {
            return None;
        }
        if driver.interrupts() {
            let seen = driver.seen();
            driver.rx.ask_for_interrupt(1);
            if driver.rx.completed() == 0 {
                driver.wait(seen);
            }
        }
    }
}
