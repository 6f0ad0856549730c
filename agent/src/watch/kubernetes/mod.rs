// SPDX-License-Identifier: Apache-2.0
//! Objects from the API server: list and watch of every kind that is watched.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{
    StreamExt as _,
    future::ready,
    stream::{BoxStream, select_all},
};
use kube::{
    Api, Client, Resource,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};

use crate::{
    model::{
        Changed as Objects, Deltas, ObjectKey, Standing,
        objects::{EndpointSlice, Namespace, NetworkPolicy, Node, Pod, Service},
        watched_kinds,
    },
    watch::{ApiServer, Teller},
};

mod backoff;
mod connect;
mod object;
mod order;
#[cfg(test)]
mod tests;

use backoff::Backoff;
pub(crate) use connect::client;
use object::{Object, Watched};
use order::Order;

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

/// Watches until nobody reads any more.
pub(crate) async fn run(server: ApiServer, teller: Teller) {
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
    follow(client, &teller).await;
}

async fn follow(client: Client, teller: &Teller) {
    let mut changes = changes(&client);
    let mut state = State::default();
    loop {
        tokio::select! {
            () = teller.closed() => return,
            change = changes.next() => {
                let Some(change) = change else { return };
                teller.tell(Instant::now(), |deltas, standing| {
                    let changed = state.apply(change, deltas);
                    if changed {
                        state.describe(standing);
                    }
                    changed
                });
            }
            () = answers_again(&client), if state.unreachable() => {
                state.reached();
                teller.tell(Instant::now(), |_, standing| {
                    state.describe(standing);
                    true
                });
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

/// One kind, event by event.
fn events<T, A>(
    client: &Client,
    selector: Option<&str>,
    wrap: fn(watcher::Result<Event<T>>) -> Change,
) -> BoxStream<'static, Change>
where
    T: Object + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    A: Resource<DynamicType = ()> + Debug + 'static,
{
    // From the API server's cache: a cluster of agents that start at once costs etcd nothing.
    let mut config = watcher::Config::default().any_semantic().timeout(WATCH_SECONDS);
    config.label_selector = selector.map(str::to_owned);
    let api = Api::<Watched<T, A>>::all(client.clone());
    let stream = watcher(api, config).backoff(Backoff::default());
    let mut order = Order::default();
    let in_order = stream.filter(move |event| ready(event.as_ref().map_or(true, |event| order.is_next(event))));
    in_order.map(move |event| wrap(event.map(Watched::unwrap))).boxed()
}

/// Which objects of a kind are of any use.
fn selector(plural: &str) -> Option<&'static str> {
    matches!(plural, "services" | "endpointslices").then_some(OURS)
}

macro_rules! declare {
    ($($(#[$doc:meta])* $field:ident, $Variant:ident: $Type:ty = $Api:ty, $kind:literal, $plural:literal;)*) => {
        /// An event, or an error, of one kind.
        enum Change {
            $($Variant(watcher::Result<Event<$Type>>),)*
        }

        fn changes(client: &Client) -> impl futures::Stream<Item = Change> + Unpin + use<> {
            select_all([$(events::<$Type, $Api>(client, selector($plural), Change::$Variant),)*])
        }

        /// How each kind stands.
        #[derive(Default)]
        struct State {
            $($field: Kind<$Type>,)*
        }

        impl State {
            /// Takes a change in; true where there is something to tell.
            fn apply(&mut self, change: Change, deltas: &mut Deltas) -> bool {
                let changed = match change {
                    $(Change::$Variant(event) => self.$field.apply($plural, event, &mut deltas.$field),)*
                };
                match changed {
                    Changed::No => false,
                    // Objects of half a cluster are of no use: the first whole state is told at once.
                    Changed::Objects => self.synced(),
                    Changed::Standing => true,
                }
            }

            fn synced(&self) -> bool {
                $(self.$field.listed)&&*
            }

            fn faults(&mut self) -> Vec<&mut Option<Fault>> {
                vec![$(&mut self.$field.fault,)*]
            }
        }
    };
}
watched_kinds!(declare);

impl State {
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

    fn describe(&mut self, standing: &mut Standing) {
        standing.synced = self.synced();
        standing.error = self.faults().iter().find_map(|fault| fault.as_ref().map(|fault| fault.text.clone()));
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
    K: Object,
{
    fn apply(&mut self, name: &str, event: watcher::Result<Event<K>>, deltas: &mut Objects<K>) -> Changed {
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
                let key = object.meta().key();
                self.listing.insert(key, Arc::new(object));
                false
            }
            Event::InitDone => {
                let first = !std::mem::replace(&mut self.listed, true);
                deltas.extend(Objects::all(std::mem::take(&mut self.listing)));
                if first {
                    self.fault = None;
                    return Changed::Standing;
                }
                true
            }
            // Whether it is another one now the reader sees.
            Event::Apply(object) => {
                deltas.objects.insert(object.meta().key(), Some(Arc::new(object)));
                true
            }
            Event::Delete(object) => {
                deltas.objects.insert(object.meta().key(), None);
                true
            }
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
