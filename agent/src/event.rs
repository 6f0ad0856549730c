// SPDX-License-Identifier: Apache-2.0
//! Events on objects that do not fit or are not served as they are written, and on the node, for those who own them: `kubectl describe`
//! shows them.
//!
//! They are posted in the background, each object once and then hourly while it lasts, a few at a time: a pass never waits
//! for the API server, and an agent whose node is full of refused objects is no burden to it. A folder has no Events.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    model::{ObjectKey, Refusal, RefusedKind},
    plan::Digest,
    watch::{Source, kubernetes},
};

/// An object that goes on being refused is told again after this long; the API server keeps an Event for an hour.
const REPEAT: Duration = Duration::from_secs(3600);
/// Between two Events.
const PAUSE: Duration = Duration::from_millis(500);
/// After one that could not be posted.
const RETRY: Duration = Duration::from_secs(30);
/// Longest note that the API server takes, in bytes.
pub(crate) const LONGEST_NOTE: usize = 1024;
/// Objects that are remembered as told, at most.
const REMEMBERED: usize = 10_000;
/// With so many remembered no more Events are posted on how Services are written.
const REMEMBERED_WITH_WRITTEN: usize = REMEMBERED / 2;
/// Events on how its Services are written that a namespace has within [`REPEAT`] at most: a tenant that edits without end keeps nobody else
/// from theirs.
const WRITTEN_OF_NAMESPACE: usize = 60;

/// Posts Events.
#[derive(Debug)]
pub(crate) struct Events(Option<watch::Sender<BTreeSet<Refusal>>>);

/// The object of an Event, and a digest of its uid and of the text where one is posted anew when either changes: of how a Service is
/// written. Texts on what does not fit have numbers in them that come and go.
type Subject = (RefusedKind, ObjectKey, u64);

fn subject(refusal: &Refusal) -> Subject {
    let digest = match refusal.kind {
        RefusedKind::WrittenService => {
            Digest::spread([refusal.uid.as_deref().unwrap_or_default(), &refusal.why].join(" ").as_bytes())
        }
        _ => 0,
    };
    (refusal.kind, refusal.key.clone(), digest)
}

impl Events {
    /// Starts the background task, where the source is an API server; must be called within a tokio runtime.
    #[must_use]
    pub(crate) fn start(source: &Source, node: &str) -> Self {
        let Source::Kubernetes(server) = source else { return Self(None) };
        let (sender, receiver) = watch::channel(BTreeSet::new());
        let (server, node) = (server.clone(), node.to_owned());
        tokio::spawn(async move {
            let mut backoff = kubernetes::backoff();
            loop {
                match kubernetes::client(&server).await {
                    Ok(client) => return post(client, node, receiver).await,
                    // The source tells why.
                    Err(error) => tracing::debug!(%error, "cannot post Events yet"),
                }
                sleep(backoff.next().unwrap_or(RETRY)).await;
            }
        });
        Self(Some(sender))
    }

    /// Whether anybody hears of them.
    pub(crate) const fn are_posted(&self) -> bool {
        self.0.is_some()
    }

    /// Tells what does not fit now, and what else is refused, of the node itself and of its ports. Returns at once.
    pub(crate) fn tell(&self, refusals: &BTreeSet<Refusal>, others: impl IntoIterator<Item = Refusal>) {
        let Some(sender) = &self.0 else { return };
        let others: BTreeSet<Refusal> = others.into_iter().collect();
        sender.send_if_modified(|known| {
            let same = known.len() == refusals.len() + others.len()
                && refusals.iter().chain(&others).all(|refusal| known.contains(refusal));
            if !same {
                known.clone_from(refusals);
                known.extend(others);
            }
            !same
        });
    }
}

/// Posts until nobody tells anything any more.
async fn post(client: Client, node: String, mut refusals: watch::Receiver<BTreeSet<Refusal>>) {
    let reporter = Reporter { controller: "weft-agent".to_owned(), instance: Some(node) };
    let mut told: BTreeMap<Subject, Instant> = BTreeMap::new();
    let mut refused: BTreeMap<Subject, Instant> = BTreeMap::new();
    loop {
        let now = Instant::now();
        told.retain(|_, at| now.duration_since(*at) < REPEAT);
        refused.retain(|_, at| now.duration_since(*at) < RETRY);
        let next = untold(&refusals.borrow_and_update(), &[&told, &refused]);
        let Some(refusal) = next else {
            let again = |times: &BTreeMap<Subject, Instant>, after| times.values().min().map(|at| *at + after);
            let due = again(&told, REPEAT).into_iter().chain(again(&refused, RETRY)).min();
            tokio::select! {
                changed = refusals.changed() => if changed.is_err() { return },
                () = sleep_until(due.unwrap_or(now)), if due.is_some() => {}
            }
            continue;
        };
        // A recorder that is kept would count an earlier Event up, in the place of posting one with another text.
        let recorder = Recorder::new(client.clone(), reporter.clone());
        match recorder.publish(&event(&refusal), &reference(&refusal)).await {
            Ok(()) => {
                told.insert(subject(&refusal), Instant::now());
                sleep(PAUSE).await;
            }
            Err(error) => {
                // Once round before it is tried again: one that is refused for good holds up no other.
                tracing::debug!(object = %refusal.key, %error, "cannot post an Event");
                refused.insert(subject(&refusal), Instant::now());
                sleep(PAUSE).await;
            }
        }
    }
}

/// The next object to tell of: none of those that were told, or tried, lately.
fn untold(refusals: &BTreeSet<Refusal>, lately: &[&BTreeMap<Subject, Instant>]) -> Option<Refusal> {
    if lately.iter().any(|subjects| subjects.len() >= REMEMBERED) {
        return None;
    }
    let written = |subject: &&Subject| subject.0 == RefusedKind::WrittenService;
    let mut written_of: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, key, _) in lately.iter().flat_map(|subjects| subjects.keys()).filter(written) {
        *written_of.entry(&key.namespace).or_default() += 1;
    }
    let is_full = lately.iter().any(|subjects| subjects.len() >= REMEMBERED_WITH_WRITTEN);
    let is_new = |refusal: &&Refusal| {
        let of_namespace = || written_of.get(&*refusal.key.namespace).copied().unwrap_or_default();
        if refusal.kind == RefusedKind::WrittenService && (is_full || of_namespace() >= WRITTEN_OF_NAMESPACE) {
            return false;
        }
        let subject = subject(refusal);
        lately.iter().all(|subjects| !subjects.contains_key(&subject))
    };
    refusals.iter().find(is_new).cloned()
}

fn event(refusal: &Refusal) -> Event {
    let mut note = refusal.why.clone();
    note.truncate(note.floor_char_boundary(LONGEST_NOTE));
    let (reason, action) = match refusal.kind {
        RefusedKind::Policy => ("PolicyDoesNotFit", "CloseWorkloads"),
        RefusedKind::Pod => ("WorkloadClosed", "CloseWorkload"),
        RefusedKind::Namespace => ("PodsDoNotFit", "CloseWorkloads"),
        RefusedKind::Service => ("ServiceDoesNotFit", "RefuseFlows"),
        // As kube-proxy has it.
        RefusedKind::HealthCheck => ("FailedToStartServiceHealthcheck", "Listen"),
        RefusedKind::WrittenService => ("ServiceNotAsWritten", "LeaveOut"),
        RefusedKind::Node => ("NoMasqueradeAddress", "RefuseFlows"),
    };
    Event {
        type_: EventType::Warning,
        reason: reason.to_owned(),
        note: Some(note),
        action: action.to_owned(),
        secondary: None,
    }
}

fn reference(refusal: &Refusal) -> ObjectReference {
    let (api_version, kind) = match refusal.kind {
        RefusedKind::Policy => ("networking.k8s.io/v1", "NetworkPolicy"),
        RefusedKind::Pod => ("v1", "Pod"),
        RefusedKind::Namespace => ("v1", "Namespace"),
        RefusedKind::Service | RefusedKind::HealthCheck | RefusedKind::WrittenService => ("v1", "Service"),
        RefusedKind::Node => ("v1", "Node"),
    };
    let namespace = Some(refusal.key.namespace.to_string()).filter(|namespace| !namespace.is_empty());
    ObjectReference {
        api_version: Some(api_version.to_owned()),
        kind: Some(kind.to_owned()),
        namespace,
        name: Some(refusal.key.name.to_string()),
        uid: refusal.uid.clone(),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests;
