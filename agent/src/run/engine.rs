// SPDX-License-Identifier: Apache-2.0
//! The engine: the one place that changes anything. It takes requests and changes of the cluster in turns; in each turn all
//! that wait share one plan and one pass over the maps, and are answered after it.

use std::{
    sync::Arc,
    time::{Duration, Instant as Moment},
};

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use weft_api::{Answer, ApiError, ErrorCode, Request};

use super::{
    asks::{Reply, send},
    interim::Interim,
    node::Node,
};
use crate::{
    attachment::pending::{self, Pending},
    device::{Change, Changes, Due},
    model::Snapshot,
    serve::{Command, Shared},
    watch::Feed,
};

/// Requests of one turn at most.
const BATCH: usize = 64;
/// How long an Attach waits for its pod to be known.
const POD_PATIENCE: Duration = Duration::from_secs(3);
/// A pass for the cluster's changes after which the next may come at once.
const SHORT: Duration = Duration::from_millis(20);
/// Between looks at the folder of recorded releases.
const PENDING_INTERVAL: Duration = Duration::from_secs(1);
/// Between sweeps of the flow tables. A sweep reads them whole, about 40 MiB when they are full.
const SWEEP_INTERVAL: Duration = Duration::from_secs(15);
/// Between looks at the node's devices, addresses, routes and programs that nothing has asked for: the kernel tells of most
/// changes. Also after a pass that failed.
const REPAIR_INTERVAL: Duration = Duration::from_secs(15);
/// Between decisions about what is closed for how many pods there are, while pods change: such a plan takes a second or two at worst.
const RECONSIDER_INTERVAL: Duration = Duration::from_secs(15);

/// See the module.
pub(super) struct Engine {
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    feed: Feed,
    /// When the first change was read that no pass has brought to the maps yet.
    read: Option<Moment>,
    /// Since when passes have broken off, one after the other.
    failing_since: Option<Moment>,
    changes: Changes,
    node: Node,
    /// While what an earlier agent has left is served, and nothing else is known.
    interim: Option<Interim>,
}

/// What woke the engine.
enum Wake {
    Commands(Vec<Command>),
    Cluster,
    Waiting,
    Pending,
    Sweep,
    /// The node's devices, addresses or routes have changed, or ports.
    Changed(Change),
    /// The host may send elsewhere than before.
    Moved,
    /// It is time to look at them again, and at what the kernel does not tell of.
    Repair,
    /// What is closed may fit by now.
    Reconsider,
    End,
}

impl Engine {
    pub(super) fn new(
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
        feed: Feed,
        changes: Changes,
        node: Node,
        interim: Option<Interim>,
    ) -> Self {
        Self { shared, commands, feed, read: None, failing_since: None, changes, node, interim }
    }

    /// Works until nobody can ask any more or the source ends.
    pub(super) async fn run(mut self) {
        let [mut pendings, mut sweeps, mut repairs, mut reconsiders] =
            [PENDING_INTERVAL, SWEEP_INTERVAL, REPAIR_INTERVAL, RECONSIDER_INTERVAL].map(interval);
        for ticks in [&mut pendings, &mut sweeps, &mut repairs, &mut reconsiders] {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        self.publish();
        // What was told before this began.
        self.finish(true).await;
        self.end_interim().await;
        let mut next_news = Instant::now();
        loop {
            self.shared.beat();
            let mut batch = Vec::new();
            let deadline = self.node.next_deadline();
            let interim = self.interim.as_ref().map(|interim| interim.next(Instant::now()));
            let wake = tokio::select! {
                count = self.commands.recv_many(&mut batch, BATCH) => if count == 0 { Wake::End } else { Wake::Commands(batch) },
                changed = news(&mut self.feed, next_news) => if changed { Wake::Cluster } else { Wake::End },
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Wake::Waiting,
                () = sleep_until(interim.unwrap_or_else(Instant::now)), if interim.is_some() => Wake::Waiting,
                _ = pendings.tick() => Wake::Pending,
                _ = sweeps.tick() => Wake::Sweep,
                due = self.changes.due() => match due {
                    Due::Look(change) => Wake::Changed(change),
                    Due::Move => Wake::Moved,
                },
                _ = repairs.tick() => Wake::Repair,
                _ = reconsiders.tick() => Wake::Reconsider,
            };
            let looks = matches!(wake, Wake::Changed(_) | Wake::Repair);
            let is_news = matches!(wake, Wake::Cluster);
            let began = Instant::now();
            match self.begin(wake).await {
                Some(replan) => self.finish(replan).await,
                None => return,
            }
            self.end_interim().await;
            if is_news {
                // Where every change plans much, changes take half of the time at most: requests come between.
                next_news = Instant::now() + began.elapsed().saturating_sub(SHORT);
            }
            if looks && !self.changes.owes_move() {
                self.node.save_host_state();
            }
            if looks {
                // With the pass that it asked for.
                self.changes.looked(began.elapsed());
            }
        }
    }

    /// The first half of a turn: everything up to the plan. Whether one is due; none: the engine ends.
    async fn begin(&mut self, wake: Wake) -> Option<bool> {
        let mut replan = false;
        match wake {
            Wake::Commands(commands) => {
                for (request, reply) in commands {
                    self.take_or_hold(request, reply).await;
                }
            }
            Wake::Cluster => replan = self.take_news(),
            Wake::Waiting => {}
            Wake::Pending => self.take_pending().await,
            Wake::Sweep => self.node.sweep(),
            Wake::Changed(change) => replan = self.node.repair(change, &self.shared.work).await,
            Wake::Moved => self.node.move_routes(),
            // A pass that did not do everything is tried again.
            Wake::Repair => replan = self.node.repair(Change::Node, &self.shared.work).await | self.node.wants_pass(),
            Wake::Reconsider => replan = self.shared.planner_mut().reconsider(),
            Wake::End => return None,
        }
        self.end_waits().await;
        Some(replan)
    }

    /// The second half: one pass for everybody, then what becomes of the ports.
    async fn finish(&mut self, replan: bool) {
        let wanted = self.node.ports_want_pass();
        let began = Moment::now();
        let outcome = if replan || wanted { Some(self.pass().await) } else { None };
        match &outcome {
            Some(Ok(())) => self.failing_since = None,
            Some(Err(_)) => drop(self.failing_since.get_or_insert(began)),
            None => {}
        }
        self.node.settle_ports(outcome.as_ref()).await;
        self.publish();
    }

    fn publish(&mut self) {
        let goes_on = self.interim.as_ref().is_some_and(|interim| interim.is_on(Instant::now()));
        let behind_since = self.read.into_iter().chain(self.failing_since).min();
        self.node.publish(&self.shared, goes_on, behind_since);
    }

    /// Once the source has told everything, or does not answer: what was held goes on, after the pass that it asked for.
    async fn end_interim(&mut self) {
        let is_over = |interim: &mut Interim| {
            let planner = self.shared.planner();
            let Snapshot { synced, error, .. } = planner.snapshot();
            *synced || error.is_some() || interim.is_over(Instant::now())
        };
        let Some(interim) = self.interim.take_if(is_over) else { return };
        for (request, reply) in interim.into_held() {
            self.take(request, reply).await;
        }
        self.end_waits().await;
        self.finish(false).await;
    }

    async fn take_or_hold(&mut self, request: Request, reply: Reply) {
        let left = match &mut self.interim {
            Some(interim) => interim.hold(request, reply),
            None => Some((request, reply)),
        };
        if let Some((request, reply)) = left {
            self.take(request, reply).await;
        }
    }

    /// Whether there is something to plan in what the source has told.
    fn take_news(&mut self) -> bool {
        let news = self.feed.take();
        let since = news.since;
        let changed = self.shared.planner_mut().take(news);
        if changed {
            self.shared.work.heard();
        }
        self.read = self.read.or(since.filter(|_| changed));
        changed
    }

    async fn take(&mut self, request: Request, reply: Reply) {
        let (ports, dataplane) = self.node.ports();
        match request {
            Request::Allocate(spec) => ports.allocate(dataplane, spec, reply).await,
            Request::Attach { id, link } => {
                ports.attach(dataplane, &id, link, Instant::now() + POD_PATIENCE, reply).await;
            }
            Request::Release { id } => ports.release(dataplane, &id, reply).await,
            Request::Gc { network, valid } => ports.collect(dataplane, &network, &valid, reply).await,
            Request::Check { id, addresses } => {
                let answer = ports.check(dataplane, &id, &addresses).map(|()| Answer::Done);
                send(reply, answer);
            }
            other => {
                let message = format!("request {other:?} is not for the engine; this is a bug of weft-agent");
                send(reply, Err(ApiError { code: ErrorCode::Invalid, message }));
            }
        }
    }

    async fn take_pending(&mut self) {
        match pending::list(&self.node.pending_dir()) {
            Ok(found) => {
                for pending in found.into_iter().filter(Pending::stands) {
                    tracing::info!(id = %pending.id, "finishing a release that was recorded while no agent answered");
                    let (ports, dataplane) = self.node.ports();
                    ports.release_recorded(dataplane, pending).await;
                }
            }
            Err(error) => tracing::warn!(%error, "cannot list the recorded releases"),
        }
    }

    /// Ports whose pod is known, or that have waited for it for long enough, go on.
    async fn end_waits(&mut self) {
        if self.node.next_deadline().is_none() {
            return;
        }
        let known = self.node.known(&self.shared.planner());
        let (ports, dataplane) = self.node.ports();
        ports.end_waits(dataplane, &known, Instant::now()).await;
    }

    /// Plans and applies. Before the source has synced nothing is planned: what is there stays as it is.
    async fn pass(&mut self) -> Result<(), ApiError> {
        // What has come meanwhile goes with it.
        self.take_news();
        if !self.shared.planner().snapshot().synced {
            let message = "the object source has not told everything yet; see `weft status`".to_owned();
            return Err(ApiError { code: ErrorCode::NotReady, message });
        }
        self.node.pass(&self.shared).await.map_err(|error| {
            tracing::error!(error = format!("{error:#}"), "a pass over the dataplane broke off");
            ApiError { code: ErrorCode::Io, message: format!("{error:#}") }
        })?;
        if let Some(read) = self.read.take() {
            self.shared.work.lagged(read.elapsed());
        }
        Ok(())
    }
}

/// Waits for news of the cluster, taken not before `not_before`; false: the source has ended.
async fn news(feed: &mut Feed, not_before: Instant) -> bool {
    sleep_until(not_before).await;
    feed.changed().await
}
