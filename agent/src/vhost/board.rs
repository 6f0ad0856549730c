// SPDX-License-Identifier: Apache-2.0
//! What readers see of the devices.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Bound,
    sync::{Arc, Mutex, PoisonError},
};

use futures::future::join_all;
use tokio::sync::watch;
use weft_api::{AttachmentId, PodRef, VmReport};

use super::{DeviceSpec, control};

/// Where a device is in its life.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum DeviceState {
    /// It does not answer yet.
    Starting,
    /// It serves its socket.
    Ready,
    /// It has ended, for this reason, and is started anew.
    Restarting(String),
}

impl fmt::Display for DeviceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("device starting"),
            Self::Ready => f.write_str("ready"),
            Self::Restarting(why) => write!(f, "device restarting: {why}"),
        }
    }
}

/// A device, as its supervision last saw it.
#[derive(Clone, Debug)]
pub struct DeviceStatus {
    /// What it is started with.
    pub spec: DeviceSpec,
    /// Its state.
    pub state: DeviceState,
    /// Its process.
    pub pid: Option<u32>,
    /// How often it was started anew.
    pub restarts: u64,
}

impl DeviceStatus {
    pub(super) fn new(spec: DeviceSpec) -> Self {
        Self { spec, state: DeviceState::Starting, pid: None, restarts: 0 }
    }
}

/// All devices of the node; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<BTreeMap<AttachmentId, watch::Receiver<DeviceStatus>>>>);

impl Board {
    /// The device of an attachment.
    #[must_use]
    pub fn get(&self, id: &AttachmentId) -> Option<DeviceStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).map(|status| status.borrow().clone())
    }

    /// All devices, each asked for its metrics, at the same time.
    pub async fn reports(&self) -> Vec<VmReport> {
        let all: Vec<DeviceStatus> = {
            let devices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            devices.values().map(|status| status.borrow().clone()).collect()
        };
        join_all(all.into_iter().map(report)).await
    }

    /// As [`Board::reports`], of the first `most` devices after `after`; and whether there are more. `name`: only those of this
    /// pod (`NAMESPACE/NAME` or `NAME`) or tap.
    pub async fn reports_after(
        &self,
        after: Option<&AttachmentId>,
        name: Option<&str>,
        most: usize,
    ) -> (Vec<VmReport>, bool) {
        let (asked, more) = {
            let devices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let first = after.map_or(Bound::Unbounded, Bound::Excluded);
            let rest = devices.range::<AttachmentId, _>((first, Bound::Unbounded));
            let statuses = rest.map(|(_, status)| status.borrow().clone());
            let mut wanted = statuses.filter(|status| name.is_none_or(|name| is_named(&status.spec, name)));
            let asked: Vec<DeviceStatus> = wanted.by_ref().take(most).collect();
            (asked, wanted.next().is_some())
        };
        (join_all(asked.into_iter().map(report)).await, more)
    }

    pub(super) fn put(&self, status: watch::Receiver<DeviceStatus>) {
        let id = status.borrow().spec.id.clone();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, status);
    }

    pub(super) fn remove(&self, id: &AttachmentId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

fn is_named(spec: &DeviceSpec, name: &str) -> bool {
    let of_pod = |pod: &PodRef| pod.name == name || name.split_once('/') == Some((&pod.namespace, &pod.name));
    spec.tap == name || spec.pod.as_ref().map_or_else(|| spec.id.to_string() == name, of_pod)
}

async fn report(DeviceStatus { spec, state, pid, restarts }: DeviceStatus) -> VmReport {
    let control = spec.control_path();
    let metrics = control::metrics(&control).await;
    let state = match &metrics {
        Err(error) if state == DeviceState::Ready => format!("device does not answer: {error}"),
        _ => state.to_string(),
    };
    VmReport {
        ifname: spec.tap.clone(),
        socket_path: spec.socket.display().to_string(),
        control_path: control.display().to_string(),
        log_path: spec.log_path().display().to_string(),
        id: spec.id,
        pod: spec.pod,
        state,
        pid,
        restarts,
        metrics: metrics.ok(),
    }
}
