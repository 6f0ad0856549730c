// SPDX-License-Identifier: Apache-2.0
//! A port's service is started again when it ends, whatever ended it.

use std::{
    future::Future,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, sleep},
};

/// Between starts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pauses {
    /// Before the first new start; doubled with each failure. A service that ran for as long as the last pause can be begins
    /// with the first again.
    pub(super) first: Duration,
    pub(super) last: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { first: Duration::from_secs(1), last: Duration::from_secs(60) }
    }
}

/// A failure is told for so long.
const TOLD: Duration = Duration::from_secs(600);

/// What all ports' services count, for metrics.
#[derive(Debug, Default)]
pub struct Counters {
    /// Services that ended and were started again.
    pub failures: AtomicU64,
    /// Frames that waited because their port had asked too often.
    pub limited: AtomicU64,
}

/// How one port's service is.
#[derive(Debug)]
pub(super) struct Health {
    counters: Arc<Counters>,
    failed: Mutex<Option<Failure>>,
}

#[derive(Clone, Debug)]
struct Failure {
    times: u64,
    why: String,
    last: Instant,
}

impl Health {
    pub(super) fn new(counters: Arc<Counters>) -> Self {
        Self { counters, failed: Mutex::new(None) }
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    fn fail(&self, why: String) {
        self.counters.failures.fetch_add(1, Ordering::Relaxed);
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let times = failed.as_ref().map_or(0, |failure| failure.times) + 1;
        *failed = Some(Failure { times, why, last: Instant::now() });
    }

    /// What failed lately, if anything did.
    pub(super) fn problem(&self) -> Option<String> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let Failure { times, why, last } = failed;
        (last.elapsed() < TOLD).then(|| format!("failed {times} times and was started again; the last time: {why}"))
    }
}

/// Runs what `start` gives, again and again, with growing pauses.
pub(super) async fn supervise<S, F>(mut start: S, health: Arc<Health>, pauses: Pauses)
where
    S: FnMut() -> io::Result<F>,
    F: Future<Output = ()> + Send + 'static,
{
    let mut pause = pauses.first;
    loop {
        let began = Instant::now();
        let why = match start() {
            // In a set, the service ends with its supervision.
            Ok(service) => match JoinSet::from_iter([service]).join_next().await {
                Some(Err(error)) => reason(error),
                _ => "it ended".to_owned(),
            },
            Err(error) => format!("it cannot be started: {error}"),
        };
        tracing::error!(why, "the service of a guest failed");
        health.fail(why);
        if began.elapsed() >= pauses.last {
            pause = pauses.first;
        }
        sleep(pause).await;
        pause = pauses.last.min(pause * 2);
    }
}

fn reason(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            format!("panic: {}", text.unwrap_or("without a text"))
        }
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
        },
        time::Duration,
    };

    use tokio::{sync::mpsc, time::timeout};

    use super::{Counters, Health, Pauses, supervise};

    #[tokio::test]
    async fn a_service_that_panics_or_does_not_start_is_started_again() {
        let counters = Arc::new(Counters::default());
        let health = Arc::new(Health::new(counters.clone()));
        let (runs, mut running) = mpsc::channel(1);
        let starts = AtomicU64::new(0);
        let start = move || {
            let (number, runs) = (starts.fetch_add(1, Ordering::Relaxed), runs.clone());
            if number == 1 {
                return Err(io::Error::other("no socket"));
            }
            Ok(async move {
                assert!(number > 2, "option of {number} bytes");
                runs.send(number).await.unwrap();
                std::future::pending::<()>().await;
            })
        };
        assert_eq!(health.problem(), None);
        let pauses = Pauses { first: Duration::from_millis(1), last: Duration::from_millis(5) };
        let supervision = tokio::spawn(supervise(start, health.clone(), pauses));
        let number = timeout(Duration::from_secs(20), running.recv()).await.expect("a start that does not fail");
        assert_eq!((number, counters.failures.load(Ordering::Relaxed)), (Some(3), 3));
        let problem = health.problem().unwrap();
        assert!(problem.contains("3 times") && problem.contains("panic: option of 2 bytes"), "{problem}");
        // The service goes with its supervision.
        supervision.abort();
        assert_eq!(timeout(Duration::from_secs(20), running.recv()).await.expect("the service is still there"), None);
    }
}
