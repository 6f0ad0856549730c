// SPDX-License-Identifier: Apache-2.0
//! What the agent shows: the local API, flow events, health and metrics.
//!
//! Requests that change something go to the engine ([`crate::run`]) one after the other; everything else is answered from
//! the [`View`] that the engine publishes and from the plan as it stands ([`Shared::planner`]), which is let go before the
//! answer is sent: a slow reader never holds the engine up.

pub mod api;
mod encode;
mod explain;
pub mod flows;
pub mod health;
mod http;
pub mod metrics;
pub mod node_health;
mod page;
pub mod port;
pub mod proxy;
pub mod report;
pub mod service_health;
#[cfg(test)]
mod tests;
mod vms;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot, watch};
use weft_api::{Answer, ApiError, Request, SourceState};
use weft_dataplane::Maps;

use crate::{
    model::Attachment,
    plan::{Planner, Versions},
    vhost::Board,
};

/// A request for the engine, and where its answer goes.
pub type Command = (Request, oneshot::Sender<Result<Answer, ApiError>>);

/// A turn of the engine takes milliseconds, the first one of a large cluster seconds: one that takes longer ends readiness.
const STUCK: Duration = Duration::from_secs(20);

/// What has waited for longer is late: twice kube-proxy's period of synchronization.
const LATE: Duration = Duration::from_secs(60);

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
    /// Names of the devices by which others are heard, the uplink's first.
    pub devices: Vec<String>,
    /// Names of those that only the host's own stack uses.
    pub stack_devices: Vec<String>,
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
    /// What could not be applied, and what is wrong with the node; see [`Shared::problems`] for all.
    pub problems: Vec<String>,
    /// Every attachment.
    pub attachments: Vec<Arc<Attachment>>,
    /// Which state of the cluster was applied last; none before the first one.
    pub planned: Option<Versions>,
    /// When a pass over the dataplane last worked; none: none has yet.
    pub updated: Option<SystemTime>,
    /// Since when something has waited that no pass has brought to the dataplane; none: nothing waits.
    pub behind_since: Option<Instant>,
    /// The node is about to go: load balancers should send new connections elsewhere.
    pub leaving: bool,
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
    planner: RwLock<Planner>,
    commands: mpsc::Sender<Command>,
    /// Flow events.
    pub flows: flows::Flows,
    /// Devices of vhost-user ports.
    pub devices: Board,
    /// Numbers of the engine's work.
    pub work: metrics::Work,
    /// Ports that could not be had.
    pub missing: port::Missing,
    /// What load balancers are to be told of Services.
    pub checks: service_health::Changes,
    maps: OnceLock<Arc<Maps>>,
    started: Instant,
    /// Milliseconds after `started` at which the engine was last seen to work; 0: it has not begun yet.
    beat: AtomicU64,
}

impl Shared {
    /// With a first view; also gives the end from which the engine takes its requests.
    #[must_use]
    pub fn new(view: View) -> (Arc<Self>, mpsc::Receiver<Command>) {
        Self::with(view, Planner::default())
    }

    /// As [`Shared::new`], with a planner that goes on where an earlier run has left.
    #[must_use]
    pub fn with(view: View, planner: Planner) -> (Arc<Self>, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let shared = Self {
            view: watch::Sender::new(Arc::new(view)),
            planner: RwLock::new(planner),
            commands,
            flows: flows::Flows::default(),
            devices: Board::default(),
            work: metrics::Work::default(),
            missing: port::Missing::default(),
            checks: service_health::Changes::default(),
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

    /// The plan as it stands. Whoever reads it holds the engine up: ask it, and let it go.
    pub fn planner(&self) -> RwLockReadGuard<'_, Planner> {
        self.planner.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The plan, for the engine alone.
    pub fn planner_mut(&self) -> RwLockWriteGuard<'_, Planner> {
        self.planner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that wants the operator's eye, each once: the node's, the source's, the plan's, and ports that are missing.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let (view, planner) = (self.view(), self.planner());
        let all = view.problems.iter().chain(&planner.snapshot().problems).cloned().chain(planner.problems());
        let all = all.chain(self.missing.problems());
        let mut seen = BTreeSet::new();
        all.filter(|problem| seen.insert(problem.clone())).collect()
    }

    /// Why readiness is not given: see [`View::unfit`], or a turn of the engine takes too long.
    #[must_use]
    pub fn unfit(&self) -> Option<String> {
        let stuck = self.since_beat().filter(|since| *since > STUCK);
        let stuck = stuck.map(|since| format!("the engine has not finished a turn for {} s", since.as_secs()));
        self.view().unfit().map(str::to_owned).or(stuck)
    }

    /// Whether Services are served as the cluster has them: whoever has nothing to do keeps up (kube-proxy's `healthy`).
    #[must_use]
    pub fn keeps_up(&self) -> bool {
        self.keeps_up_at(Instant::now())
    }

    fn keeps_up_at(&self, now: Instant) -> bool {
        let view = self.view();
        // At first everything waits, unless what an earlier agent has left is whole.
        let is_empty = view.updated.is_none() && view.not_ready.is_some();
        let behind = view.behind_since.into_iter().chain(is_empty.then_some(self.started));
        behind.chain(self.last_beat()).all(|since| now.saturating_duration_since(since) <= LATE)
    }

    /// The engine works.
    pub fn beat(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.beat.store(now.max(1), Ordering::Relaxed);
    }

    /// How long ago the engine was seen to work; none: it has not begun yet.
    #[must_use]
    pub fn since_beat(&self) -> Option<Duration> {
        self.last_beat().map(|beat| beat.elapsed())
    }

    fn last_beat(&self) -> Option<Instant> {
        match self.beat.load(Ordering::Relaxed) {
            0 => None,
            beat => Some(self.started + Duration::from_millis(beat)),
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
