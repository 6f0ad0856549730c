// SPDX-License-Identifier: Apache-2.0
//! What load balancers ask of a Service at this node, at its `healthCheckNodePort`: whether it has an endpoint here that is ready.
//! Ports open and close as Services come, change and go. Bodies, headers and codes are kube-proxy's.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    num::NonZeroU16,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use hyper::header::{HeaderName, HeaderValue};
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::{
    Shared,
    http::{self, Connections, Reply},
    port::{Owner, everywhere},
};
use crate::model::{HealthCheck, HealthChecks, ObjectKey, objects::Uid};

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What is to be told from now on, on its way from the engine to the ports, and who asks there.
#[derive(Debug, Default)]
pub struct Changes {
    waiting: Mutex<HealthChecks>,
    news: Notify,
    /// Of all ports together: there may be as many ports as Services, and whoever reaches the node reaches each of them.
    pub(super) connections: Connections,
}

impl Changes {
    /// Takes what has changed. Returns at once.
    pub fn put(&self, changes: HealthChecks) {
        if changes.is_empty() {
            return;
        }
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).extend(changes);
        self.news.notify_one();
    }

    async fn next(&self) -> HealthChecks {
        self.news.notified().await;
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Follows what changes, for ever.
pub async fn serve(shared: Arc<Shared>) {
    let mut open = BTreeMap::new();
    loop {
        let changes = shared.checks.next().await;
        follow(&mut open, changes, &shared).await;
    }
}

/// The ports of one Service.
struct Open {
    port: NonZeroU16,
    uid: Option<Uid>,
    families: [Option<Answering>; 2],
}

/// The port of one family.
struct Answering {
    ready: Arc<AtomicU32>,
    task: AbortOnDropHandle<()>,
}

/// Ports are closed before others are opened: one may have changed hands.
async fn follow(open: &mut BTreeMap<ObjectKey, Open>, changes: HealthChecks, shared: &Arc<Shared>) {
    for (service, check) in &changes {
        close(open, service, check.as_ref()).await;
    }
    for (service, check) in changes {
        let Some(HealthCheck { port, ready, uid }) = check else { continue };
        let standing = open.entry(service.clone()).or_insert_with(|| {
            tracing::info!(%service, port, "load balancers may ask for a Service");
            Open { port, uid: uid.clone(), families: [None, None] }
        });
        for ((answering, ready), address) in standing.families.iter_mut().zip(ready).zip(everywhere(port.get())) {
            match (answering.as_ref(), ready) {
                (Some(answering), Some(ready)) => answering.ready.store(ready, Ordering::Relaxed),
                (None, Some(ready)) => {
                    *answering = Some(Answering::start(&service, uid.as_ref(), address, ready, shared))
                }
                (_, None) => {}
            }
        }
    }
}

/// Closes what the Service does not have any more.
async fn close(open: &mut BTreeMap<ObjectKey, Open>, service: &ObjectKey, check: Option<&HealthCheck>) {
    let Some(standing) = open.get_mut(service) else { return };
    let kept = check.filter(|check| check.port == standing.port && check.uid == standing.uid);
    for (place, answering) in standing.families.iter_mut().enumerate() {
        if kept.is_some_and(|check| check.ready[place].is_some()) {
            continue;
        }
        if let Some(Answering { task, .. }) = answering.take() {
            task.abort();
            // Once it has ended the port is free. That it was ended is no error.
            drop(task.await);
        }
    }
    if kept.is_none() {
        open.remove(service);
        tracing::info!(%service, "load balancers may not ask for a Service any more");
    }
}

impl Answering {
    fn start(service: &ObjectKey, uid: Option<&Uid>, address: SocketAddr, ready: u32, shared: &Arc<Shared>) -> Self {
        let ready = Arc::new(AtomicU32::new(ready));
        let owner = Owner::Service(service.clone(), uid.map(ToString::to_string));
        let (count, shared, service) = (ready.clone(), shared.clone(), service.clone());
        let task = async move {
            let Some(listener) = shared.missing.listen(&owner, address).await else { return };
            let connections = shared.checks.connections.clone();
            http::serve_among(listener, connections, move |_| {
                let reply = answer(&service, count.load(Ordering::Relaxed), shared.keeps_up());
                async { reply }
            })
            .await;
        };
        Self { ready, task: AbortOnDropHandle::new(tokio::spawn(task)) }
    }
}

fn answer(ObjectKey { namespace, name }: &ObjectKey, ready: u32, keeps_up: bool) -> Reply {
    let body = json!({
        "service": {"namespace": &**namespace, "name": &**name},
        "localEndpoints": ready,
        "serviceProxyHealthy": keeps_up,
    });
    let mut reply = http::judgement(ready > 0 && keeps_up, &body);
    reply.headers_mut().insert(WEIGHT, HeaderValue::from(ready));
    reply
}
