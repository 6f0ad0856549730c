// SPDX-License-Identifier: Apache-2.0
//! The engine: the one place that changes anything. It takes requests and changes of the cluster in turns; in each turn all
//! that wait share one plan and one pass over the maps, and are answered after it.

use std::{
    sync::Arc,
    time::{Duration, Instant as Moment},
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use weft_api::{Answer, ApiError, AttachmentId, ErrorCode, PortLink, Request};

use super::node::Node;
use crate::{
    apply::flows,
    attachment::pending::{self, Pending},
    device::Changes,
    serve::{Command, Shared},
    watch::Feed,
};

/// Requests of one turn at most.
const BATCH: usize = 64;
/// How long an Attach waits for its pod to be known.
const POD_PATIENCE: Duration = Duration::from_secs(3);
/// Between looks at the folder of recorded releases.
const PENDING_INTERVAL: Duration = Duration::from_secs(1);
/// Between sweeps of the flow tables. A sweep reads them whole, about 40 MiB when they are full.
const SWEEP_INTERVAL: Duration = Duration::from_secs(15);
/// Between looks at the node's devices, addresses, routes and programs that nothing has asked for: the kernel tells of most
/// changes. Also after a pass that failed.
const REPAIR_INTERVAL: Duration = Duration::from_secs(15);

type Reply = oneshot::Sender<Result<Answer, ApiError>>;

/// See the module.
pub(super) struct Engine {
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    feed: Feed,
    /// When the first change was read that no pass has brought to the maps yet.
    read: Option<Moment>,
    changes: Changes,
    node: Node,
    /// Attachments whose pod is not known yet, and until when they wait.
    waiting: Vec<(AttachmentId, PortLink, Reply, Instant)>,
}

/// What a turn still has to do after its pass.
#[derive(Default)]
struct Turn {
    replan: bool,
    attached: Vec<(AttachmentId, Reply)>,
    releases: Vec<Release>,
}

/// Attachments to release together, and who asked.
struct Release {
    ids: Vec<AttachmentId>,
    asked_by: Asker,
}

enum Asker {
    Del(Reply),
    Gc(Reply),
    Record(Pending),
}

/// What woke the engine.
enum Wake {
    Commands(Vec<Command>),
    Cluster,
    Waiting,
    Pending,
    Sweep,
    /// The node's devices, addresses or routes have changed.
    Changed,
    /// It is time to look at them again, and at what the kernel does not tell of.
    Repair,
    End,
}

impl Engine {
    pub(super) fn new(
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
        feed: Feed,
        changes: Changes,
        node: Node,
    ) -> Self {
        Self { shared, commands, feed, read: None, changes, node, waiting: Vec::new() }
    }

    /// Works until nobody can ask any more or the source ends.
    pub(super) async fn run(mut self) {
        let [mut pendings, mut sweeps, mut repairs] = [PENDING_INTERVAL, SWEEP_INTERVAL, REPAIR_INTERVAL].map(interval);
        for ticks in [&mut pendings, &mut sweeps, &mut repairs] {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        // What was told before this began.
        self.finish(Turn { replan: true, ..Turn::default() }).await;
        let mut next_news = Instant::now();
        loop {
            self.shared.beat();
            let mut batch = Vec::new();
            let deadline = self.waiting.iter().map(|(_, _, _, until)| *until).min();
            let wake = tokio::select! {
                count = self.commands.recv_many(&mut batch, BATCH) => if count == 0 { Wake::End } else { Wake::Commands(batch) },
                changed = news(&mut self.feed, next_news) => if changed { Wake::Cluster } else { Wake::End },
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Wake::Waiting,
                _ = pendings.tick() => Wake::Pending,
                _ = sweeps.tick() => Wake::Sweep,
                () = self.changes.changed() => Wake::Changed,
                _ = repairs.tick() => Wake::Repair,
            };
            let looks = matches!(wake, Wake::Changed | Wake::Repair);
            let is_news = matches!(wake, Wake::Cluster);
            let began = Instant::now();
            match self.begin(wake).await {
                Some(turn) => self.finish(turn).await,
                None => return,
            }
            if is_news {
                // Where every change plans much, changes take half of the time at most: requests come between.
                next_news = Instant::now() + began.elapsed();
            }
            if looks {
                // With the pass that it asked for.
                self.changes.looked(began.elapsed());
            }
        }
    }

    /// The first half of a turn: everything up to the plan.
    async fn begin(&mut self, wake: Wake) -> Option<Turn> {
        let mut turn = Turn::default();
        match wake {
            Wake::Commands(commands) => {
                for (request, reply) in commands {
                    self.take(request, reply, &mut turn).await;
                }
            }
            Wake::Cluster => turn.replan = self.take_news(),
            Wake::Waiting => {}
            Wake::Pending => self.take_pending(&mut turn),
            Wake::Sweep => self.sweep(),
            Wake::Changed => turn.replan = self.node.repair(&self.shared.work).await,
            // A pass that did not do everything is tried again.
            Wake::Repair => turn.replan = self.node.repair(&self.shared.work).await | self.node.wants_pass(),
            Wake::End => return None,
        }
        self.attach_known(&mut turn).await;
        Some(turn)
    }

    /// The second half: one pass for everybody, then the answers.
    async fn finish(&mut self, turn: Turn) {
        let Turn { replan, attached, releases } = turn;
        let outcome = if replan { self.pass().await } else { Ok(()) };
        for (id, reply) in attached {
            let programmed = outcome.clone().and_then(|()| self.node.is_programmed(&id));
            let served = match programmed {
                Ok(()) => self.node.open_port(&id).await,
                Err(error) => Err(error),
            };
            answer_attach(served, self.node.devices.ready(&id), reply);
        }
        for release in releases {
            self.finish_release(release, &outcome).await;
        }
        self.node.publish(&self.shared);
    }

    /// Whether there is something to plan in what the source has told.
    fn take_news(&mut self) -> bool {
        let news = self.feed.take();
        let since = news.since;
        let changed = self.shared.planner_mut().take(news);
        self.read = self.read.or(since.filter(|_| changed));
        changed
    }

    async fn take(&mut self, request: Request, reply: Reply, turn: &mut Turn) {
        match request {
            Request::Allocate(spec) => {
                let answer = self.node.allocate(spec).await.map(Answer::Allocation);
                send(reply, answer);
            }
            Request::Attach { id, link } => self.waiting.push((id, link, reply, Instant::now() + POD_PATIENCE)),
            Request::Release { id } => self.release(vec![id], Asker::Del(reply), turn),
            Request::Gc { network, valid } => {
                let garbage = self.node.attachments.garbage(&network, &valid);
                self.release(garbage, Asker::Gc(reply), turn);
            }
            Request::Check { id, addresses } => {
                let answer = self.node.check(&id, &addresses).map(|()| Answer::Done);
                send(reply, answer);
            }
            other => {
                let message = format!("request {other:?} is not for the engine; this is a bug of weft-agent");
                send(reply, Err(ApiError { code: ErrorCode::Invalid, message }));
            }
        }
    }

    fn release(&mut self, ids: Vec<AttachmentId>, asked_by: Asker, turn: &mut Turn) {
        for id in &ids {
            // Its Attach must not come after it.
            for (_, _, reply, _) in self.waiting.extract_if(.., |(waiting, ..)| waiting == id) {
                send(reply, Err(crate::attachment::unknown(id)));
            }
            turn.replan |= self.node.begin_release(id);
        }
        turn.releases.push(Release { ids, asked_by });
    }

    fn take_pending(&mut self, turn: &mut Turn) {
        match pending::list(&self.node.pending_dir()) {
            Ok(found) => {
                for pending in found.into_iter().filter(Pending::stands) {
                    tracing::info!(id = %pending.id, "finishing a release that was recorded while no agent answered");
                    self.release(vec![pending.id.clone()], Asker::Record(pending), turn);
                }
            }
            Err(error) => tracing::warn!(%error, "cannot list the recorded releases"),
        }
    }

    /// Attaches what waits and whose pod is known, or that has waited for long enough.
    async fn attach_known(&mut self, turn: &mut Turn) {
        let now = Instant::now();
        let due: Vec<_> = {
            let planner = self.shared.planner();
            self.waiting
                .extract_if(.., |(id, _, _, until)| *until <= now || self.node.knows_pod(id, &planner))
                .collect()
        };
        for (id, link, reply, _) in due {
            match self.node.attach(&id, link).await {
                Ok(()) => {
                    turn.replan = true;
                    turn.attached.push((id, reply));
                }
                Err(error) => send(reply, Err(error)),
            }
        }
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

    async fn finish_release(&mut self, Release { ids, asked_by }: Release, outcome: &Result<(), ApiError>) {
        // Without a pass the entries of a port are taken out directly: a release never waits for others' objects.
        let result = self.node.finish_release(&ids, outcome.is_err()).await;
        match (asked_by, result) {
            (Asker::Del(reply), result) => send(reply, result.map(|()| Answer::Done)),
            (Asker::Gc(reply), result) => send(reply, result.map(|()| Answer::Released(ids))),
            (Asker::Record(pending), Ok(())) => {
                if let Err(error) = pending.finish() {
                    tracing::warn!(id = %pending.id, %error, "cannot remove the record of a finished release");
                }
            }
            (Asker::Record(pending), Err(error)) => {
                tracing::warn!(id = %pending.id, %error, "cannot finish a recorded release")
            }
        }
    }

    fn sweep(&self) {
        match tokio::task::block_in_place(|| flows::sweep(self.node.maps())) {
            Ok(0) => {}
            Ok(removed) => tracing::debug!(removed, "removed idle flow entries"),
            Err(error) => tracing::warn!(%error, "cannot sweep the flow tables"),
        }
        match self.node.dataplane.remove_defunct_links() {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => tracing::info!(?removed, "removed links of programs to devices that are gone"),
            Err(error) => tracing::warn!(%error, "cannot look for links of programs to devices that are gone"),
        }
    }
}

/// Waits for news of the cluster, taken not before `not_before`; false: the source has ended.
async fn news(feed: &mut Feed, not_before: Instant) -> bool {
    sleep_until(not_before).await;
    feed.changed().await
}

/// Once the port's device serves, where it has one; nobody else waits for that.
fn answer_attach(
    served: Result<(), ApiError>,
    device: Option<impl Future<Output = Result<(), ApiError>> + Send + 'static>,
    reply: Reply,
) {
    match (served, device) {
        (Ok(()), Some(device)) => drop(tokio::spawn(async move { send(reply, device.await.map(|()| Answer::Done)) })),
        (served, _) => send(reply, served.map(|()| Answer::Done)),
    }
}

/// A client that went away needs no answer.
fn send(reply: Reply, answer: Result<Answer, ApiError>) {
    drop(reply.send(answer));
}
