// SPDX-License-Identifier: Apache-2.0
//! What the agent shows: the local API, flow events, health and metrics.
//!
//! Requests that change something go to the engine ([`crate::run`]) one after the other; everything else is answered from
//! the [`View`] that the engine publishes, so that a slow reader never holds it up.

pub mod api;
mod encode;
mod explain;
pub mod flows;
pub mod health;
mod http;
pub mod metrics;
pub mod report;
#[cfg(test)]
mod tests;
mod vms;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot, watch};
use weft_api::{Answer, ApiError, Request, SourceState};
use weft_dataplane::Maps;

use crate::{
    model::{Attachment, Desired, Snapshot},
    vhost::Board,
};

/// A request for the engine, and where its answer goes.
pub type Command = (Request, oneshot::Sender<Result<Answer, ApiError>>);

/// How many requests may wait for the engine.
pub const COMMANDS: usize = 1024;

/// The agent's state, as the engine last published it.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The node's name.
    pub node: String,
    /// `vxlan` or `native`.
    pub mode: String,
    /// Name of the uplink; empty until it is known.
    pub uplink: String,
    /// The node's pod CIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// Addresses given out and in all, per pod CIDR.
    pub addresses_used: Vec<(u64, u64)>,
    /// The object source.
    pub source: Option<SourceState>,
    /// Why CNI requests cannot be served now; none: they can.
    pub not_ready: Option<String>,
    /// Passes over the dataplane that broke off, in a row.
    pub broken_passes: u32,
    /// Why the node should get no new workloads although requests are served: the dataplane follows the cluster no more.
    pub failing: Option<String>,
    /// Objects refused by the source, what the plan left out, what could not be applied.
    pub problems: Vec<String>,
    /// Every attachment.
    pub attachments: Vec<Attachment>,
    /// The plan that was applied last.
    pub desired: Arc<Desired>,
    /// What it was made of; none before the first one.
    pub planned: Option<Arc<Snapshot>>,
}

impl View {
    /// Why readiness is not given.
    #[must_use]
    pub fn unfit(&self) -> Option<&str> {
        self.not_ready.as_deref().or(self.failing.as_deref())
    }
}

/// What all servers share.
#[derive(Debug)]
pub struct Shared {
    view: watch::Sender<Arc<View>>,
    commands: mpsc::Sender<Command>,
    /// Flow events.
    pub flows: flows::Flows,
    /// Devices of vhost-user ports.
    pub devices: Board,
    /// Numbers of the engine's work.
    pub work: metrics::Work,
    maps: OnceLock<Arc<Maps>>,
    started: Instant,
    /// Milliseconds after `started` at which the engine was last seen to work; 0: it has not begun yet.
    beat: AtomicU64,
}

impl Shared {
    /// With a first view; also gives the end from which the engine takes its requests.
    #[must_use]
    pub fn new(view: View) -> (Arc<Self>, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let shared = Self {
            view: watch::Sender::new(Arc::new(view)),
            commands,
            flows: flows::Flows::default(),
            devices: Board::default(),
            work: metrics::Work::default(),
            maps: OnceLock::new(),
            started: Instant::now(),
            beat: AtomicU64::new(0),
        };
        (Arc::new(shared), receiver)
    }

    /// The view as it is now.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// The views from now on.
    #[must_use]
    pub fn views(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }

    /// Changes the view.
    pub fn publish(&self, change: impl FnOnce(&mut View)) {
        self.view.send_modify(|view| change(Arc::make_mut(view)));
    }

    /// The engine works.
    pub fn beat(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.beat.store(now.max(1), Ordering::Relaxed);
    }

    /// How long ago the engine was seen to work; none: it has not begun yet.
    #[must_use]
    pub fn since_beat(&self) -> Option<Duration> {
        match self.beat.load(Ordering::Relaxed) {
            0 => None,
            beat => Some(self.started.elapsed().saturating_sub(Duration::from_millis(beat))),
        }
    }

    /// The maps, once the dataplane is open.
    #[must_use]
    pub fn maps(&self) -> Option<&Arc<Maps>> {
        self.maps.get()
    }

    /// Tells the maps, once.
    pub fn set_maps(&self, maps: Arc<Maps>) {
        // A second call could only bring the same maps.
        drop(self.maps.set(maps));
    }

    /// Asks the engine.
    ///
    /// # Errors
    /// What the engine refused, or that the agent is not ready or ends.
    pub async fn ask(&self, request: Request) -> Result<Answer, ApiError> {
        let (reply, answer) = oneshot::channel();
        if self.commands.send((request, reply)).await.is_err() {
            return Err(ending());
        }
        answer.await.unwrap_or_else(|_| Err(ending()))
    }
}

fn ending() -> ApiError {
    ApiError { code: weft_api::ErrorCode::NotReady, message: "the agent is about to end; try again".to_owned() }
}
