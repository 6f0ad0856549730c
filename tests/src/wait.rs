// SPDX-License-Identifier: Apache-2.0

//! Bounded waiting on real conditions.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

const PAUSE: Duration = Duration::from_millis(50);

/// Calls `condition` until it is true.
///
/// # Errors
/// It was not within `patience`; `what` says what was waited for.
pub fn until(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    until_ok(what, patience, || if condition() { Ok(()) } else { Err(anyhow!("not so")) })
}

/// Calls `attempt` until it succeeds, and gives what it gave.
///
/// # Errors
/// It did not within `patience`; the last failure is the cause.
pub fn until_ok<T>(what: &str, patience: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= patience => {
                return Err(error.context(format!("waited {} s for: {what}", patience.as_secs())));
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}
