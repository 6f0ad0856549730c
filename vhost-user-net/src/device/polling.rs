// SPDX-License-Identifier: Apache-2.0
//! How long a thread looks for work before it sleeps.
//!
//! A look that finds nothing is processor time for nothing, so the time adapts: it is the limit while looking pays,
//! halves with every look in vain, and comes back when a sleep turns out to have been shorter than the limit, that is
//! when a look would have found what the thread was woken for.

use std::time::{Duration, Instant};

/// A shorter look than this is none.
const LEAST: Duration = Duration::from_micros(2);

/// The time one thread looks for work.
#[derive(Debug)]
pub struct Polling {
    limit: Duration,
    window: Duration,
    slept: Option<Instant>,
}

impl Polling {
    /// Looks for up to `limit`; zero is never.
    pub fn new(limit: Duration) -> Self {
        Self { limit, window: limit, slept: None }
    }

    /// How long to look now.
    pub fn window(&self) -> Duration {
        self.window
    }

    /// A look found work.
    pub fn found(&mut self) {
        self.window = self.limit;
    }

    /// Whether the thread ever looks; if not, nothing needs to be told.
    pub fn is_on(&self) -> bool {
        !self.limit.is_zero()
    }

    /// A look found nothing, and the thread sleeps now.
    pub fn sleeps(&mut self, now: Instant) {
        self.window /= 2;
        if self.window < LEAST {
            self.window = Duration::ZERO;
        }
        self.slept = Some(now);
    }

    /// The thread goes on.
    pub fn woken(&mut self, now: Instant) {
        if let Some(slept) = self.slept.take()
            && now.duration_since(slept) < self.limit
        {
            self.window = self.limit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(100);

    #[test]
    fn looks_in_vain_get_shorter_and_end() {
        let mut polling = Polling::new(LIMIT);
        let now = Instant::now();
        let windows: Vec<_> = (0..7)
            .map(|_| {
                polling.sleeps(now);
                polling.woken(now + LIMIT);
                polling.window().as_nanos()
            })
            .collect();
        assert_eq!(windows, [50_000, 25_000, 12_500, 6_250, 3_125, 0, 0]);
    }

    #[test]
    fn they_come_back_when_a_look_would_have_paid() {
        let mut polling = Polling::new(LIMIT);
        let now = Instant::now();
        (0..7).for_each(|_| polling.sleeps(now));
        polling.woken(now + LIMIT / 2);
        assert_eq!(polling.window(), LIMIT);
        polling.sleeps(now);
        polling.found();
        assert_eq!(polling.window(), LIMIT);
    }

    #[test]
    fn without_a_limit_there_is_no_look() {
        let mut polling = Polling::new(Duration::ZERO);
        let now = Instant::now();
        polling.sleeps(now);
        polling.woken(now);
        polling.found();
        assert!(polling.window().is_zero() && !polling.is_on());
    }
}
