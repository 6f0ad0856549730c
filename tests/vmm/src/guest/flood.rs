// SPDX-License-Identifier: Apache-2.0
//! As many frames as go, in one direction: what benches measure.

use super::driver::{Driver, add};
use super::platform::Platform;

/// Sends the template until the job is to end, and takes all chains back.
pub fn transmit<P: Platform>(driver: &mut Driver<'_, P>) {
    driver.lay_out();
    loop {
        driver.tx.refuse_interrupts();
        let stopped = driver.stopped();
        while let Some(chain) = driver.tx.free_chain().filter(|_| !stopped) {
            driver.tx.offer(chain);
        }
        driver.publish_tx();
        if driver.reclaim() > 0 {
            driver.note_work();
        } else if stopped && driver.tx.outstanding() == 0 {
            return;
        } else {
            rest(driver);
        }
    }
}

/// Nothing was done: waits for half of what is out, or looks again.
fn rest<P: Platform>(driver: &mut Driver<'_, P>) {
    if !driver.interrupts() || driver.stopped() {
        core::hint::spin_loop();
        return;
    }
    let seen = driver.seen();
    driver.tx.ask_for_interrupt((driver.tx.outstanding() / 2).max(1));
    if driver.tx.completed() == 0 {
        driver.wait(seen);
    }
}

/// Takes frames in. With a count the job ends when so many buffers were used, and they stay away from the device; else
/// buffers go back as they come until the job is to end.
pub fn receive<P: Platform>(driver: &mut Driver<'_, P>) {
    let mut left = driver.job.count;
    driver.rx.refuse_interrupts();
    driver.fill();
    driver.start_clock();
    while !driver.stopped() {
        let count = driver.rx.completed();
        if count == 0 {
            idle(driver);
            continue;
        }
        driver.rx.skip(count);
        driver.rx.refuse_interrupts();
        add(&driver.control.counters.buffers, count.into());
        if driver.job.count == 0 {
            offer_again(driver, count);
        } else {
            left = left.saturating_sub(count.into());
            if left == 0 {
                return;
            }
        }
        driver.note_work();
    }
}

fn offer_again<P: Platform>(driver: &mut Driver<'_, P>, count: u16) {
    for _ in 0..count {
        if let Some(chain) = driver.rx.free_chain() {
            driver.rx.offer(chain);
        }
    }
    driver.publish_rx();
}

fn idle<P: Platform>(driver: &mut Driver<'_, P>) {
    if !driver.interrupts() {
        core::hint::spin_loop();
        return;
    }
    let seen = driver.seen();
    driver.rx.ask_for_interrupt(1);
    if driver.rx.completed() == 0 {
        driver.wait(seen);
    }
}
