// SPDX-License-Identifier: Apache-2.0
//! The devices of vhost-user ports: one `weft-vhost` process per port.
//!
//! | File | What it does |
//! |---|---|
//! | `spec` | what a port's device is started with, and where its files are |
//! | `process` | one process: start it, find one of an earlier agent, end it |
//! | `running` | finds the processes that no record names |
//! | `cgroup` | the control groups in which a device outlives the agent's container |
//! | `supervise` | keeps one device running until it is told to stop |
//! | `control` | asks a device how it is |
//! | `log` | keeps its log short |
//! | `board` | what readers see |
//!
//! A device outlives the agent: it has a session, control groups and a log file of its own, and holds nothing of the agent's.
//! The next agent finds it by its process id and start time (`device.json`), or by its command line, and adopts it, unless
//! that line would be another one now.

mod board;
mod cgroup;
mod control;
mod log;
mod process;
mod running;
mod spec;
mod supervise;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use weft_api::{ApiError, AttachmentId, ErrorCode};

pub use self::{
    board::{Board, DeviceState, DeviceStatus},
    cgroup::{Cgroups, root as cgroup_root},
    spec::{DeviceSpec, MAX_QUEUES, check_folder, socket_path},
};
use crate::model::Attachment;

/// Name of the device's binary.
pub const BINARY: &str = "weft-vhost";
/// How long an ADD waits for its device.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// Starts that may fail before an ADD gives up.
const START_TRIES: u64 = 3;

/// The devices of this node. Dropping it leaves the processes running.
#[derive(Debug)]
pub struct Devices {
    binary: PathBuf,
    folder: PathBuf,
    cgroups: Cgroups,
    board: Board,
    /// Processes of earlier agents, until somebody looks after them.
    found: running::Running,
    running: BTreeMap<AttachmentId, Running>,
    stopping: BTreeMap<AttachmentId, JoinHandle<()>>,
}

/// One device under supervision. The supervision ends with it, the process does not.
#[derive(Debug)]
struct Running {
    spec: DeviceSpec,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
    status: watch::Receiver<DeviceStatus>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Devices {
    /// Devices run `binary`; their files are in `folder`, one folder each, and they live in `cgroups`.
    #[must_use]
    pub fn new(binary: PathBuf, folder: PathBuf, cgroups: Cgroups, board: Board) -> Self {
        let found = running::find(&folder);
        Self { binary, folder, cgroups, board, found, running: BTreeMap::new(), stopping: BTreeMap::new() }
    }

    /// Starts the device of an attached vhost-user port, or adopts the one that runs; nothing for other ports.
    /// [`Devices::ready`] tells when it serves.
    ///
    /// # Errors
    /// The folder of its files cannot be made.
    pub fn start(&mut self, attachment: &Attachment) -> Result<(), ApiError> {
        let Some(spec) = DeviceSpec::of(attachment) else { return Ok(()) };
        if self.running.get(&spec.id).is_some_and(|running| running.spec == spec) {
            return Ok(());
        }
        self.stop(&spec.id);
        fs::create_dir_all(spec.folder())
            .map_err(|error| refused(format!("cannot create {}: {error}", spec.folder().display())))?;
        let before = self.stopping.remove(&spec.id);
        let (sender, status) = watch::channel(DeviceStatus::new(spec.clone()));
        self.board.put(status.clone());
        let stop = CancellationToken::new();
        let supervise = supervise::Supervision {
            binary: self.binary.clone(),
            spec: spec.clone(),
            cgroups: self.cgroups.clone(),
            found: self.found.remove(&spec.tap).unwrap_or_default(),
            status: sender,
            stop: stop.clone(),
        };
        let task = tokio::spawn(async move {
            if let Some(before) = before {
                // Whether it ended well is in the log.
                drop(before.await);
            }
            supervise.run().await;
        });
        self.running.insert(spec.id.clone(), Running { spec, stop, task: Some(task), status });
        Ok(())
    }

    /// Waits until the device of a port serves its socket; none where the port has no device.
    pub fn ready(&self, id: &AttachmentId) -> Option<impl Future<Output = Result<(), ApiError>> + Send + use<>> {
        let mut status = self.running.get(id)?.status.clone();
        Some(async move {
            let settled = |status: &DeviceStatus| status.state == DeviceState::Ready || status.restarts >= START_TRIES;
            // However the wait ends, the state says it.
            drop(tokio::time::timeout(START_PATIENCE, status.wait_for(settled)).await);
            let status = status.borrow();
            if status.state == DeviceState::Ready {
                return Ok(());
            }
            let log = status.spec.log_path();
            Err(refused(format!(
                "the vhost-user port {} has no device: {}; see {}",
                status.spec.tap,
                status.state,
                log.display()
            )))
        })
    }

    /// Begins to end the device of a port; what is unknown is fine.
    pub fn stop(&mut self, id: &AttachmentId) {
        let Some(mut running) = self.running.remove(id) else { return };
        self.board.remove(id);
        running.stop.cancel();
        self.stopping.extend(running.task.take().map(|task| (id.clone(), task)));
    }

    /// Waits until the device is gone, and its files with it; the wait is bounded, because in the end it is killed.
    pub async fn stopped(&mut self, id: &AttachmentId) {
        self.stop(id);
        if let Some(task) = self.stopping.remove(id)
            && let Err(error) = task.await
        {
            tracing::error!(%id, %error, "the supervision of a device broke off");
        }
    }

    /// Ends the devices of an earlier agent whose port is no more.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub async fn sweep(&mut self) -> io::Result<()> {
        let wanted: BTreeSet<&str> = self.running.values().map(|running| running.spec.tap.as_str()).collect();
        sweep(&self.folder, &std::mem::take(&mut self.found), &wanted).await?;
        self.cgroups.sweep(&wanted).await;
        Ok(())
    }
}

/// Ends every device whose files are in `folder`, and removes its control groups: for the cleanup of a node.
///
/// # Errors
/// The folder cannot be read.
pub async fn remove_all(folder: &Path, cgroups: &Cgroups) -> io::Result<()> {
    sweep(folder, &running::find(folder), &BTreeSet::new()).await?;
    cgroups.remove_all().await;
    Ok(())
}

async fn sweep(folder: &Path, found: &running::Running, wanted: &BTreeSet<&str>) -> io::Result<()> {
    for (tap, pids) in found.iter().filter(|(tap, _)| !wanted.contains(tap.as_str())) {
        for pid in pids {
            if let Some(process) = process::DeviceProcess::of(*pid, &folder.join(tap))? {
                tracing::info!(tap, pid, "ending a device whose port is no more");
                process.end().await;
            }
        }
    }
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| wanted.contains(name)) || !entry.file_type()?.is_dir() {
            continue;
        }
        if let Some(process) = process::DeviceProcess::recorded(&entry.path())? {
            tracing::info!(folder = %entry.path().display(), "ending a device whose port is no more");
            process.end().await;
        }
        spec::remove_files(&entry.path());
    }
    Ok(())
}

fn refused(message: String) -> ApiError {
    ApiError { code: ErrorCode::Io, message }
}
