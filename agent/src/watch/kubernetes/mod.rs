// SPDX-License-Identifier: Apache-2.0
//! Objects from the API server: list and watch of six kinds, merged into one snapshot.

use std::{collections::BTreeMap, fmt::Debug, sync::Arc, time::Duration};

use futures::{
    StreamExt as _,
    stream::{BoxStream, select_all},
};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
};
use kube::{
    Api, Client, Resource,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::watch::Sender,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    model::{ObjectKey, Snapshot},
    watch::{ApiServer, COALESCE, key_of},
};

mod backoff;
mod connect;
mod strip;
#[cfg(test)]
mod tests;

use backoff::Backoff;
pub(crate) use connect::client;
use strip::Strip;

/// How long to wait between tries to reach the API server.
pub(crate) fn backoff() -> impl Iterator<Item = Duration> {
    Backoff::default()
}

/// Services and slices of other proxies, and of headless Services, never come here.
const OURS: &str = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";

/// How long a watch may be silent before it is made anew; bounds how long a dead connection goes unnoticed.
const WATCH_SECONDS: u32 = 120;

/// How often an API server that does not answer is asked whether it does again.
const PROBE: Duration = Duration::from_secs(2);

/// Watches until every receiver is gone.
pub(crate) async fn run(server: ApiServer, sender: Sender<Arc<Snapshot>>) {
    let mut backoff = Backoff::default();
    let client = loop {
        match connect::client(&server).await {
            Ok(client) => break client,
            Err(error) => {
                let error = format!("cannot set up the connection to the api server: {error:#}");
                tracing::warn!(error);
                sender.send_replace(Arc::new(Snapshot { error: Some(error), ..Snapshot::default() }));
                tokio::select! {
                    () = sender.closed() => return,
                    () = sleep(backoff.delay()) => {}
                }
            }
        }
    };
    follow(client, &sender).await;
}

async fn follow(client: Client, sender: &Sender<Arc<Snapshot>>) {
    let mut changes = changes(&client);
    let mut state = State::default();
    let mut due: Option<Instant> = None;
    loop {
        tokio::select! {
            () = sender.closed() => return,
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                due = None;
                sender.send_replace(Arc::new(state.snapshot()));
            }
            change = changes.next() => {
                let Some(change) = change else { return };
                if state.apply(change) {
                    due = due.or_else(|| Some(Instant::now() + COALESCE));
                }
            }
            () = answers_again(&client), if state.unreachable() => {
                state.reached();
                due = due.or_else(|| Some(Instant::now() + COALESCE));
            }
        }
    }
}

/// Waits until the API server answers. A watch that was made anew says nothing until something changes, so that without
/// this the error would stay in sight long after its end.
async fn answers_again(client: &Client) {
    loop {
        sleep(PROBE).await;
        if let Ok(Ok(_)) = timeout(PROBE, client.apiserver_version()).await {
            return;
        }
    }
}

/// An event, or an error, of one kind.
#[expect(clippy::large_enum_variant, reason = "one at a time, never stored")]
enum Change {
    Pods(watcher::Result<Event<Pod>>),
    Namespaces(watcher::Result<Event<Namespace>>),
    Nodes(watcher::Result<Event<Node>>),
    Services(watcher::Result<Event<Service>>),
    Slices(watcher::Result<Event<EndpointSlice>>),
    Policies(watcher::Result<Event<NetworkPolicy>>),
}

fn changes(client: &Client) -> impl futures::Stream<Item = Change> + Unpin + use<> {
    select_all([
        events(client, None, Change::Pods),
        events(client, None, Change::Namespaces),
        events(client, None, Change::Nodes),
        events(client, Some(OURS), Change::Services),
        events(client, Some(OURS), Change::Slices),
        events(client, None, Change::Policies),
    ])
}

fn events<K>(
    client: &Client,
    selector: Option<&str>,
    wrap: fn(watcher::Result<Event<K>>) -> Change,
) -> BoxStream<'static, Change>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Strip + 'static,
{
    let mut config = watcher::Config::default().timeout(WATCH_SECONDS);
    config.label_selector = selector.map(str::to_owned);
    let stream = watcher(Api::<K>::all(client.clone()), config).backoff(Backoff::default());
    stream.map(move |event| wrap(event.map(|event| event.modify(Strip::strip)))).boxed()
}

/// The snapshot in the making, and how each kind stands.
#[derive(Default)]
struct State {
    snapshot: Snapshot,
    pods: Kind<Pod>,
    namespaces: Kind<Namespace>,
    nodes: Kind<Node>,
    services: Kind<Service>,
    slices: Kind<EndpointSlice>,
    policies: Kind<NetworkPolicy>,
}

impl State {
    /// Takes a change in; true where there is something to tell.
    fn apply(&mut self, change: Change) -> bool {
        let changed = match change {
            Change::Pods(event) => self.pods.apply("pods", event, &mut self.snapshot.pods),
            Change::Namespaces(event) => self.namespaces.apply("namespaces", event, &mut self.snapshot.namespaces),
            Change::Nodes(event) => self.nodes.apply("nodes", event, &mut self.snapshot.nodes),
            Change::Services(event) => self.services.apply("services", event, &mut self.snapshot.services),
            Change::Slices(event) => self.slices.apply("endpointslices", event, &mut self.snapshot.slices),
            Change::Policies(event) => self.policies.apply("networkpolicies", event, &mut self.snapshot.policies),
        };
        match changed {
            Changed::No => false,
            // Objects of half a cluster are of no use: the first whole state is told at once.
            Changed::Objects => self.synced(),
            Changed::Standing => true,
        }
    }

    fn synced(&mut self) -> bool {
        self.kinds_listed().iter().all(|listed| **listed)
    }

    fn kinds_listed(&mut self) -> [&mut bool; 6] {
        let Self { snapshot: _, pods, namespaces, nodes, services, slices, policies } = self;
        [
            &mut pods.listed,
            &mut namespaces.listed,
            &mut nodes.listed,
            &mut services.listed,
            &mut slices.listed,
            &mut policies.listed,
        ]
    }

    fn faults(&mut self) -> [&mut Option<Fault>; 6] {
        let Self { snapshot: _, pods, namespaces, nodes, services, slices, policies } = self;
        [
            &mut pods.fault,
            &mut namespaces.fault,
            &mut nodes.fault,
            &mut services.fault,
            &mut slices.fault,
            &mut policies.fault,
        ]
    }

    fn unreachable(&mut self) -> bool {
        self.faults().iter().any(|fault| fault.as_ref().is_some_and(|fault| fault.unreachable))
    }

    /// The server answers again: what it refuses it will say once more.
    fn reached(&mut self) {
        for fault in self.faults() {
            if fault.as_ref().is_some_and(|fault| fault.unreachable) {
                *fault = None;
            }
        }
    }

    fn snapshot(&mut self) -> Snapshot {
        let error = self.faults().iter().find_map(|fault| fault.as_ref().map(|fault| fault.text.clone()));
        let synced = self.synced();
        let objects = if synced { self.snapshot.clone() } else { Snapshot::default() };
        Snapshot { synced, error, ..objects }
    }
}

/// Why a kind does not come.
#[derive(Debug, Eq, PartialEq)]
struct Fault {
    text: String,
    /// No answer at all, as against a refusal.
    unreachable: bool,
}

enum Changed {
    No,
    Objects,
    /// Listed for the first time, or an error came or went.
    Standing,
}

/// How one kind stands.
#[derive(Debug)]
struct Kind<K> {
    /// Objects of a list that is not complete yet; until then those of before stay.
    listing: BTreeMap<ObjectKey, Arc<K>>,
    listed: bool,
    fault: Option<Fault>,
}

impl<K> Default for Kind<K> {
    fn default() -> Self {
        Self { listing: BTreeMap::new(), listed: false, fault: None }
    }
}

impl<K> Kind<K>
where
    K: Resource<DynamicType = ()> + PartialEq,
{
    fn apply(
        &mut self,
        name: &str,
        event: watcher::Result<Event<K>>,
        objects: &mut BTreeMap<ObjectKey, Arc<K>>,
    ) -> Changed {
        let event = match event {
            Ok(event) => event,
            Err(error) => return self.fail(name, &error),
        };
        let changed = match event {
            Event::Init => {
                self.listing.clear();
                // Nothing was answered yet.
                return Changed::No;
            }
            Event::InitApply(object) => {
                let key = key_of(object.meta());
                self.listing.insert(key, Arc::new(object));
                false
            }
            Event::InitDone => {
                let first = !std::mem::replace(&mut self.listed, true);
                let listing = std::mem::take(&mut self.listing);
                let differs = *objects != listing;
                *objects = listing;
                if first {
                    self.fault = None;
                    return Changed::Standing;
                }
                differs
            }
            Event::Apply(object) => {
                let key = key_of(object.meta());
                let known = objects.get(&key).is_some_and(|known| **known == object);
                if !known {
                    objects.insert(key, Arc::new(object));
                }
                !known
            }
            Event::Delete(object) => objects.remove(&key_of(object.meta())).is_some(),
        };
        match (self.fault.take(), changed) {
            (Some(_), _) => Changed::Standing,
            (None, true) => Changed::Objects,
            (None, false) => Changed::No,
        }
    }

    fn fail(&mut self, name: &str, error: &watcher::Error) -> Changed {
        tracing::debug!(kind = name, %error, "watch failed");
        let fault = Fault { text: format!("{name}: {}", chain(error)), unreachable: is_unreachable(error) };
        if self.fault.as_ref() == Some(&fault) {
            return Changed::No;
        }
        self.fault = Some(fault);
        Changed::Standing
    }
}

fn is_unreachable(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => {
            !matches!(error, kube::Error::Api(_))
        }
        WatchError(_) | NoResourceVersion => false,
    }
}

/// The error with its causes; those that the text before them has said already are left out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
