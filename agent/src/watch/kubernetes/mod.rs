// SPDX-License-Identifier: Apache-2.0
//! Objects from the API server: list and watch of every kind that is watched.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{
    Stream, StreamExt as _,
    future::ready,
    stream::{AbortHandle, BoxStream, SelectAll, abortable},
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
    sync::{Semaphore, mpsc},
    time::{MissedTickBehavior, interval, sleep, sleep_until, timeout},
};

use crate::{
    model::{
        Deltas, Standing,
        objects::{EndpointSlice, Namespace, NetworkPolicy, Node, Pod, Service, ServiceCidr, WEIGHT_LABEL},
        watched_kinds,
    },
    watch::{ApiServer, Teller},
};

mod backoff;
mod connect;
mod kind;
mod object;
mod order;
mod pods;
#[cfg(test)]
mod tests;

use backoff::Backoff;
pub(crate) use connect::{client, host};
use kind::{Changed, Fault, Kind};
use object::{Object, Watched};
use order::Order;
use pods::{Orders, Pods, Scope, WEIGHTS, WatchId};

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

/// Lists that are asked for at the same time: each is in memory whole while it is parsed.
const LISTS: usize = 4;

/// Events that a watch may be ahead of what is told.
const AHEAD: usize = 64;

/// Between looks at which watches of pods are of use.
const TIDY: Duration = Duration::from_secs(10);

/// Watches until nobody reads any more.
pub(crate) async fn run(server: ApiServer, node: String, teller: Teller) {
    let mut backoff = Backoff::default();
    let client = loop {
        match connect::client(&server).await {
            Ok(client) => break client,
            Err(error) => {
                let error = format!("cannot set up the connection to the api server: {error:#}");
                tracing::warn!(error);
                teller.tell(Instant::now(), |_, standing| {
                    standing.error = Some(error);
                    true
                });
                tokio::select! {
                    () = teller.closed() => return,
                    () = sleep(backoff.delay()) => {}
                }
            }
        }
    };
    Follower::new(client, &node, teller).run().await;
}

/// Follows all kinds.
struct Follower {
    client: Client,
    /// See [`LISTS`].
    lists: Arc<Semaphore>,
    teller: Teller,
    changes: SelectAll<BoxStream<'static, Change>>,
    state: State,
    pods: Pods,
    /// Watches of pods of other nodes.
    ends: BTreeMap<WatchId, AbortHandle>,
    synced: bool,
}

impl Follower {
    fn new(client: Client, node: &str, teller: Teller) -> Self {
        let mut changes = SelectAll::new();
        let lists = Arc::new(Semaphore::new(LISTS));
        begin(&client, &lists, node, &mut changes);
        let state = State { pods: Kind::of_several(), ..State::default() };
        Self { client, lists, teller, changes, state, pods: Pods::new(node), ends: BTreeMap::new(), synced: false }
    }

    async fn run(mut self) {
        let mut tidy = interval(TIDY);
        tidy.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let deadline = self.pods.deadline();
            tokio::select! {
                () = self.teller.closed() => return,
                change = self.changes.next() => match change {
                    Some(change) => self.take(change),
                    None => return,
                },
                () = answers_again(&self.client), if self.state.unreachable() => {
                    self.state.reached();
                    self.tell(Deltas::default(), Changed::Standing);
                }
                () = sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now)), if deadline.is_some() => {
                    let released = self.pods.release(tokio::time::Instant::now());
                    self.tell(released, Changed::Objects);
                }
                _ = tidy.tick() => {
                    let (orders, mut gone) = (self.pods.tidy(), Deltas::default());
                    self.order(orders, &mut gone);
                    if !gone.is_empty() {
                        self.tell(gone, Changed::Objects);
                    }
                }
            }
        }
    }

    fn take(&mut self, change: Change) {
        let (watch, now) = (change.watch, tokio::time::Instant::now());
        let is_list = change.ends_list_of_pods();
        let mut deltas = Deltas::default();
        let changed = self.state.apply(change, &mut deltas);
        let orders = self.pods.screen(&mut deltas, now);
        self.order(orders, &mut deltas);
        if is_list {
            let orders = self.pods.listed(watch);
            self.order(orders, &mut deltas);
        }
        if !self.pods.is_started() && self.state.tells_needs() {
            let orders = self.pods.start();
            self.order(orders, &mut deltas);
            self.follow_weights();
        }
        let released = self.pods.release(now);
        let changed = if released.is_empty() { changed } else { changed.or_objects() };
        deltas.extend(released);
        self.tell(deltas, changed);
    }

    /// Begins and ends watches of pods.
    fn order(&mut self, Orders { begin, end }: Orders, deltas: &mut Deltas) {
        for watch in end {
            if let Some(handle) = self.ends.remove(&watch) {
                handle.abort();
            }
            self.state.pods.end(watch, &mut deltas.pods);
        }
        for (watch, scope) in begin {
            tracing::debug!(watch, ?scope, "watching pods of other nodes");
            self.state.pods.begin(watch);
            let (stream, handle) = abortable(pods_of(&self.client, &self.lists, watch, Asked::of_scope(&scope)));
            self.ends.insert(watch, handle);
            self.changes.push(stream.boxed());
        }
    }

    /// Begins to watch pods with a weight: of Services that they serve, every node has to know it.
    fn follow_weights(&mut self) {
        let asked = Asked { labels: Some(WEIGHT_LABEL.to_owned()), ..Asked::default() };
        self.state.pods.begin(WEIGHTS);
        self.changes.push(pods_of(&self.client, &self.lists, WEIGHTS, asked));
    }

    fn tell(&mut self, fresh: Deltas, changed: Changed) {
        let was_synced = self.synced;
        // Objects of half a cluster are of no use: the first whole state is told at once.
        self.synced |= self.pods.is_started() && self.state.is_listed();
        let wakes = match changed {
            Changed::Standing => true,
            Changed::Objects => self.synced,
            Changed::No => false,
        };
        let (state, synced) = (&mut self.state, self.synced);
        if fresh.is_empty() && !wakes && synced == was_synced {
            return;
        }
        self.teller.tell(Instant::now(), |deltas, standing| {
            deltas.extend(fresh);
            state.describe(standing, synced);
            wakes || synced != was_synced
        });
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

/// Which objects of a kind are asked for.
#[derive(Debug, Default)]
struct Asked<'a> {
    namespace: Option<&'a str>,
    labels: Option<String>,
    fields: Option<String>,
}

impl<'a> Asked<'a> {
    /// Those that are of any use; of pods of other nodes [`Pods`] says which.
    fn of_kind(plural: &str, node: &str) -> Self {
        match plural {
            "services" | "endpointslices" => Self { labels: Some(OURS.to_owned()), ..Self::default() },
            "pods" => Self { fields: Some(format!("spec.nodeName={node}")), ..Self::default() },
            _ => Self::default(),
        }
    }

    fn of_scope(scope: &'a Scope) -> Self {
        Self { namespace: scope.namespace.as_deref(), labels: scope.query(), fields: None }
    }
}

/// One watch, event by event.
fn events<T, A>(
    client: &Client,
    lists: &Arc<Semaphore>,
    asked: Asked<'_>,
    wrap: impl Fn(watcher::Result<Event<T>>) -> Change + Send + 'static,
) -> BoxStream<'static, Change>
where
    T: Object + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    A: Resource<DynamicType = ()> + Debug + 'static,
{
    let Asked { namespace, labels, fields } = asked;
    // From the API server's cache: a cluster of agents that start at once costs etcd nothing.
    let mut config = watcher::Config::default().any_semantic().timeout(WATCH_SECONDS);
    (config.label_selector, config.field_selector) = (labels, fields);
    let api = match namespace {
        Some(namespace) => Api::<Watched<T, A>>::namespaced_with(client.clone(), namespace, &()),
        None => Api::all(client.clone()),
    };
    let stream = watcher(api, config).backoff(Backoff::default());
    let mut order = Order::default();
    let in_order = stream.filter(move |event| ready(event.as_ref().map_or(true, |event| order.is_next(event))));
    read_aside(in_order.map(move |event| wrap(event.map(Watched::unwrap))), lists.clone()).boxed()
}

/// The same stream, read and parsed by a task of its own: on a machine of several processors lists are parsed side by side. So
/// that no more of them are in memory than that takes, the task waits for one of `lists` until it has its first list.
fn read_aside(
    stream: impl Stream<Item = Change> + Send + 'static,
    lists: Arc<Semaphore>,
) -> impl Stream<Item = Change> + Send + 'static {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let task = tokio::spawn(async move {
        let mut stream = std::pin::pin!(stream);
        let mut permit = lists.acquire_owned().await.ok();
        loop {
            let change = tokio::select! {
                () = sender.closed() => return,
                change = stream.next() => change,
            };
            let Some(change) = change else { return };
            // One that is refused must not keep others from their turn.
            if change.ends_list() {
                drop(permit.take());
            }
            if sender.send(change).await.is_err() {
                return;
            }
        }
    });
    futures::stream::unfold((receiver, task), async |(mut receiver, task)| match receiver.recv().await {
        Some(change) => Some((change, (receiver, task))),
        // A kind that nobody reads any more must not pass for one that does not change.
        None => match task.await {
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            _ => None,
        },
    })
}

fn pods_of(client: &Client, lists: &Arc<Semaphore>, watch: WatchId, asked: Asked<'_>) -> BoxStream<'static, Change> {
    let wrap = move |event| Change { watch, event: Told::Pod(event) };
    events::<Pod, k8s_openapi::api::core::v1::Pod>(client, lists, asked, wrap)
}

/// What a watch tells.
struct Change {
    watch: WatchId,
    event: Told,
}

impl Change {
    fn ends_list_of_pods(&self) -> bool {
        matches!(self.event, Told::Pod(Ok(Event::InitDone)))
    }

    /// The list is whole, or refused.
    const fn ends_list(&self) -> bool {
        self.event.ends_list()
    }
}

macro_rules! declare {
    ($($(#[$doc:meta])* $field:ident, $Variant:ident: $Type:ty = $Api:ty, $kind:literal, $plural:literal;)*) => {
        /// An event, or an error, of one kind.
        enum Told {
            $($Variant(watcher::Result<Event<$Type>>),)*
        }

        impl Told {
            const fn ends_list(&self) -> bool {
                match self {
                    $(Self::$Variant(event) => matches!(event, Ok(Event::InitDone) | Err(_)),)*
                }
            }
        }

        /// Begins to watch every kind.
        fn begin(
            client: &Client,
            lists: &Arc<Semaphore>,
            node: &str,
            changes: &mut SelectAll<BoxStream<'static, Change>>,
        ) {
            $(
                let wrap = |event| Change { watch: 0, event: Told::$Variant(event) };
                changes.push(events::<$Type, $Api>(client, lists, Asked::of_kind($plural, node), wrap));
            )*
        }

        /// How each kind stands.
        #[derive(Default)]
        struct State {
            $($field: Kind<$Type>,)*
        }

        impl State {
            /// Takes a change in; whether there is something to tell.
            fn apply(&mut self, Change { watch, event }: Change, deltas: &mut Deltas) -> Changed {
                match event {
                    $(Told::$Variant(event) => self.$field.apply($plural, watch, event, &mut deltas.$field),)*
                }
            }

            fn is_listed(&self) -> bool {
                $(self.$field.is_listed())&&*
            }

            fn faults(&mut self) -> Vec<&mut Option<Fault>> {
                let mut all = Vec::new();
                $(all.extend(self.$field.faults());)*
                all
            }
        }
    };
}
watched_kinds!(declare);

impl State {
    /// What says which pods are needed is listed: to these, which take longest, nothing else is to be waited for.
    fn tells_needs(&self) -> bool {
        self.policies.is_listed() && self.namespaces.is_listed() && self.pods.is_listed()
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

    fn describe(&mut self, standing: &mut Standing, synced: bool) {
        standing.synced = synced;
        standing.error = self.faults().iter().find_map(|fault| fault.as_ref().map(|fault| fault.text.clone()));
    }
}
