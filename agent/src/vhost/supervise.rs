// SPDX-License-Identifier: Apache-2.0
//! Keeps one device running until it is told to stop.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    time::{interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    board::{DeviceState, DeviceStatus},
    cgroup::Cgroups,
    control, log,
    process::DeviceProcess,
    spec::{DeviceSpec, remove_files},
};

/// How long a device may take to answer for the first time.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at the log's length: a device of an earlier version writes megabytes a second when a VMM connects in a loop.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// One device to look after.
#[derive(Debug)]
pub(super) struct Supervision {
    pub(super) binary: PathBuf,
    pub(super) spec: DeviceSpec,
    pub(super) cgroups: Cgroups,
    /// Processes that an earlier agent started for it.
    pub(super) found: Vec<u32>,
    pub(super) status: watch::Sender<DeviceStatus>,
    pub(super) stop: CancellationToken,
}

impl Supervision {
    /// Returns once it was told to stop and the device is gone.
    pub(super) async fn run(self) {
        let mut pauses = Pauses::default();
        let mut next = self.adopt().await;
        while !self.stop.is_cancelled() {
            let since = Instant::now();
            let process = match next.take() {
                Some(process) => Ok(process),
                None => DeviceProcess::spawn(&self.binary, &self.spec, &self.cgroups).await,
            };
            let why = match process {
                Ok(process) => self.serve(process).await,
                Err(error) => Some(format!("cannot be started: {error}")),
            };
            let Some(why) = why else { break };
            self.note(why);
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = sleep(pauses.after(since.elapsed())) => {}
            }
        }
        self.cgroups.remove(&self.spec.tap).await;
        remove_files(self.spec.folder());
    }

    /// The device of an earlier agent, recorded or not; any other process on its tap is ended.
    async fn adopt(&self) -> Option<DeviceProcess> {
        let mut adopted: Option<DeviceProcess> = None;
        for process in self.earlier() {
            if adopted.as_ref().is_some_and(|adopted| adopted.pid() == process.pid()) {
                continue;
            }
            if adopted.is_none() && process.runs(&self.spec) {
                tracing::info!(tap = self.spec.tap, pid = process.pid(), "adopted a device");
                adopted = Some(process);
                continue;
            }
            tracing::info!(tap = self.spec.tap, pid = process.pid(), "ending a device with another command line");
            process.end().await;
        }
        if let Some(Err(error)) = adopted.as_ref().map(|process| process.record(&self.spec)) {
            tracing::warn!(tap = self.spec.tap, %error, "cannot record an adopted device");
        }
        adopted
    }

    fn earlier(&self) -> Vec<DeviceProcess> {
        let folder = self.spec.folder();
        let recorded = [DeviceProcess::recorded(folder)].into_iter();
        let looks = recorded.chain(self.found.iter().map(|pid| DeviceProcess::of(*pid, folder)));
        let found = looks.filter_map(|look| {
            look.unwrap_or_else(|error| {
                tracing::warn!(tap = self.spec.tap, %error, "cannot look at a device of an earlier agent");
                None
            })
        });
        found.collect()
    }

    /// Looks after a process until it ends, and tells why; none: it was told to stop, and the process is gone.
    async fn serve(&self, mut process: DeviceProcess) -> Option<String> {
        self.status.send_modify(|status| status.pid = Some(process.pid()));
        let why = tokio::select! {
            () = self.stop.cancelled() => None,
            why = self.attend(&mut process) => Some(why),
        };
        // Also one that did not answer has to let go of the tap.
        process.end().await;
        why
    }

    async fn attend(&self, process: &mut DeviceProcess) -> String {
        let (control, pid) = (self.spec.control_path(), process.pid());
        let answered = timeout(ANSWER_PATIENCE, control::until_answered(&control, pid));
        tokio::select! {
            why = process.ended() => return self.explain(&why),
            answered = answered => if answered.is_err() {
                return self.explain("no answer on its control socket");
            },
        }
        tracing::info!(tap = self.spec.tap, pid, socket = %self.spec.socket.display(), "a device is ready");
        self.status.send_modify(|status| status.state = DeviceState::Ready);
        let mut looks = interval(LOG_INTERVAL);
        loop {
            tokio::select! {
                why = process.ended() => return self.explain(&why),
                _ = looks.tick() => self.bound_log(),
            }
        }
    }

    fn explain(&self, why: &str) -> String {
        log::last_line(&self.spec.log_path()).map_or_else(|| why.to_owned(), |line| format!("{why}: {line}"))
    }

    fn note(&self, why: String) {
        tracing::warn!(tap = self.spec.tap, why, "a device ended; starting it anew");
        self.status.send_modify(|status| {
            status.state = DeviceState::Restarting(why);
            status.pid = None;
            status.restarts += 1;
        });
    }

    fn bound_log(&self) {
        let path = self.spec.log_path();
        if let Err(error) = log::cut(&path) {
            tracing::warn!(log = %path.display(), %error, "cannot cut the log of a device");
        }
    }
}

/// How long to wait before a device is started anew: not at all the first time, because a guest waits for its network;
/// then longer and longer.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    failures: u32,
}

impl Pauses {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(30);
    /// A device that ran for this long had no trouble with starting.
    const FORGET_AFTER: Duration = Duration::from_secs(60);

    /// The pause after a process that ran for so long.
    pub(super) fn after(&mut self, uptime: Duration) -> Duration {
        if uptime >= Self::FORGET_AFTER {
            self.failures = 0;
        }
        let pause = match self.failures {
            0 => Duration::ZERO,
            failures => Self::FIRST.saturating_mul(1 << (failures - 1).min(16)).min(Self::LONGEST),
        };
        self.failures = self.failures.saturating_add(1);
        pause
    }
}
