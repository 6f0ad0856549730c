// SPDX-License-Identifier: Apache-2.0
//! How the source hands over what it has told: nothing waits, nothing is told twice. What is not fetched yet is kept by object,
//! so that a reader that is slow gets the last state of each and no more than the cluster has.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::model::{Deltas, News, Snapshot, Standing};

/// How long a source that says nothing, not even an error, is waited for where there is a state to go on with.
const PATIENCE: Duration = Duration::from_secs(5);

type Pending = Arc<Mutex<News>>;

/// The end of the source.
#[derive(Debug)]
pub(crate) struct Teller {
    pending: Pending,
    told: watch::Sender<()>,
}

/// The end of the reader.
pub struct Feed {
    pending: Pending,
    told: watch::Receiver<()>,
    remembered: Remembered,
}

/// Reads what an earlier run has left, if there is something.
type Load = Box<dyn FnOnce() -> Option<Snapshot> + Send>;

/// What an earlier run has left, in place of a source that is silent.
enum Remembered {
    No,
    /// The source is waited for, until then or until it tells an error: of a large cluster the state is much to read, and mostly for
    /// nothing.
    Waits(Load, Option<Instant>),
    /// Since when nobody has told more.
    Shown(Option<u64>),
}

/// Both ends.
pub(crate) fn channel() -> (Teller, Feed) {
    let pending = Pending::default();
    let (sender, receiver) = watch::channel(());
    let feed = Feed { pending: pending.clone(), told: receiver, remembered: Remembered::No };
    (Teller { pending, told: sender }, feed)
}

fn lock(pending: &Pending) -> MutexGuard<'_, News> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Teller {
    /// Adds to what is pending; wakes the reader if `change` says so. `since`: when it was read.
    pub(crate) fn tell(&self, since: Instant, change: impl FnOnce(&mut Deltas, &mut Standing) -> bool) {
        let mut pending = lock(&self.pending);
        let News { deltas, standing, since: first } = &mut *pending;
        if change(deltas, standing) {
            first.get_or_insert(since);
            drop(pending);
            self.told.send_replace(());
        }
    }

    /// How the source stood when it last told.
    pub(crate) fn standing(&self) -> Standing {
        lock(&self.pending).standing.clone()
    }

    /// Waits until nobody reads any more.
    pub(crate) async fn closed(&self) {
        self.told.closed().await;
    }
}

impl Feed {
    /// Shows what an earlier run has left until the source has told everything once, if it tells an error first, or, where it
    /// `may_be_silent`, nothing soon.
    #[must_use]
    pub fn or_remembered(
        mut self,
        may_be_silent: bool,
        load: impl FnOnce() -> Option<Snapshot> + Send + 'static,
    ) -> Self {
        let deadline = may_be_silent.then(|| Instant::now() + PATIENCE);
        self.remembered = Remembered::Waits(Box::new(load), deadline);
        self
    }

    /// From now on somebody listens: only now does silence count. `until`: for so long something better than what an earlier run has
    /// left goes on.
    pub fn listen(&mut self, until: Option<Instant>) {
        if let Remembered::Waits(_, Some(deadline)) = &mut self.remembered {
            *deadline = until.unwrap_or_else(|| Instant::now() + PATIENCE);
        }
    }

    /// Waits until there is something to take; false: the source has ended. Nothing is lost if the wait is given up.
    pub async fn changed(&mut self) -> bool {
        let deadline = match &self.remembered {
            Remembered::Waits(_, deadline) => deadline.map(tokio::time::Instant::from),
            _ => None,
        };
        tokio::select! {
            changed = self.told.changed() => changed.is_ok(),
            () = tokio::time::sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now)), if deadline.is_some() => true,
        }
    }

    /// Takes what was told since the last call. Until every kind was listed once there are no objects: those of half a cluster
    /// are of no use.
    pub fn take(&mut self) -> News {
        self.told.mark_unchanged();
        let mut pending = lock(&self.pending);
        if pending.standing.synced {
            if !matches!(self.remembered, Remembered::No) {
                tracing::info!("the source has told everything");
                self.remembered = Remembered::No;
            }
            let deltas = std::mem::take(&mut pending.deltas);
            return News { deltas, standing: pending.standing.clone(), since: pending.since.take() };
        }
        let standing = pending.standing.clone();
        drop(pending);
        self.stand_in(standing)
    }

    fn stand_in(&mut self, standing: Standing) -> News {
        let mut deltas = Deltas::default();
        self.remembered = match std::mem::replace(&mut self.remembered, Remembered::No) {
            Remembered::Waits(load, deadline)
                if standing.error.is_some() || deadline.is_some_and(|at| at <= Instant::now()) =>
            {
                load().map_or(Remembered::No, |snapshot| {
                    tracing::info!("the source does not answer: going on with what an earlier run has left");
                    deltas = Deltas::whole(&snapshot);
                    Remembered::Shown(snapshot.remembered)
                })
            }
            other => other,
        };
        match self.remembered {
            Remembered::Shown(remembered) => {
                News { deltas, standing: Standing { synced: true, remembered, ..standing }, since: None }
            }
            _ => News { deltas, standing, since: None },
        }
    }
}

/// A reader for tests: what has been told so far.
#[cfg(test)]
pub(crate) struct Reader {
    feed: Feed,
    planner: crate::plan::Planner,
}

#[cfg(test)]
impl Reader {
    pub(crate) fn new(feed: Feed) -> Self {
        Self { feed, planner: crate::plan::Planner::default() }
    }

    pub(crate) fn now(&mut self) -> &Snapshot {
        self.planner.take(self.feed.take());
        self.planner.snapshot()
    }

    pub(crate) async fn wait_for(&mut self, what: impl Fn(&Snapshot) -> bool) -> Snapshot {
        loop {
            if what(self.now()) {
                return self.planner.snapshot().clone();
            }
            assert!(self.feed.changed().await, "the source has ended");
        }
    }
}
