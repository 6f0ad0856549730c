// SPDX-License-Identifier: Apache-2.0
//! How often something may happen: some times at once, then one at a time.

use std::time::{Duration, Instant};

/// A token bucket. It is full at first.
#[derive(Debug)]
pub struct Pace {
    burst: u32,
    period: Duration,
    /// When the bucket is full, or would be with all that was taken put back.
    full_at: Option<Instant>,
}

impl Pace {
    /// `burst` times at once, and once more after each `period`.
    pub const fn new(burst: u32, period: Duration) -> Self {
        Self { burst, period, full_at: None }
    }

    /// Takes one, if there is one.
    ///
    /// # Errors
    /// How long it takes until there is one.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let full_at = self.full_at.map_or(now, |full_at| full_at.max(now)) + self.period;
        let missing = full_at.duration_since(now);
        match missing.checked_sub(self.period * self.burst) {
            None | Some(Duration::ZERO) => {
                self.full_at = Some(full_at);
                Ok(())
            }
            Some(wait) => Err(wait),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Pace;

    #[test]
    fn some_come_at_once_and_then_one_in_each_period() {
        const PERIOD: Duration = Duration::from_millis(100);
        let (mut pace, start) = (Pace::new(3, PERIOD), Instant::now());
        for _ in 0..3 {
            assert_eq!(pace.take(start), Ok(()));
        }
        assert_eq!(pace.take(start), Err(PERIOD));
        let later = start + Duration::from_millis(30);
        assert_eq!(pace.take(later), Err(Duration::from_millis(70)));
        assert_eq!(pace.take(start + PERIOD), Ok(()));
        assert_eq!(pace.take(start + PERIOD), Err(PERIOD));
        // A long rest fills it, and not more.
        let rested = start + Duration::from_secs(3600);
        let taken = (0..10).take_while(|_| pace.take(rested).is_ok()).count();
        assert_eq!(taken, 3);
    }
}
