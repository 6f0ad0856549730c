// SPDX-License-Identifier: Apache-2.0
//! How long to wait before the API server is asked again.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::Duration,
};

use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(8);

/// After this long without an error the next one counts as the first.
const FORGET: Duration = Duration::from_secs(60);

/// Doubles from a quarter of a second to eight, each wait up to half as long again at random, so that the agents of a large
/// cluster do not come back all at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    last: Option<Instant>,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST, last: None }
    }
}

impl Backoff {
    /// The next wait.
    pub(crate) fn delay(&mut self) -> Duration {
        let now = Instant::now();
        if self.last.is_some_and(|last| now.duration_since(last) > FORGET) {
            self.next = FIRST;
        }
        self.last = Some(now);
        let delay = self.next;
        self.next = (delay * 2).min(LONGEST);
        // A new RandomState is differently seeded each time.
        let percent = u32::try_from(RandomState::new().build_hasher().finish() % 50).unwrap_or_default();
        delay + delay * percent / 100
    }
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.delay())
    }
}

impl kube::runtime::utils::Backoff for Backoff {
    /// Does nothing: the watcher tells of a beginning list before the server has answered anything. See [`FORGET`].
    fn reset(&mut self) {}
}
