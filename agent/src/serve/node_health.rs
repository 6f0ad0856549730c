// SPDX-License-Identifier: Apache-2.0
//! What load balancers and others that know kube-proxy ask of the node: `/healthz` and `/livez`, by default at port 10256 of every
//! address. Bodies and codes are kube-proxy's (KEP-3836).

use std::{sync::Arc, time::SystemTime};

use hyper::{Request, body::Incoming};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{
    Shared, health,
    http::{self, Reply},
    metrics::Probe,
    port::{everywhere, serve_both},
};

/// Serves every address of the node, for ever.
pub async fn serve(port: u16, shared: Arc<Shared>) {
    serve_both("services.healthzPort", everywhere(port), shared, serve_on).await;
}

pub(super) async fn serve_on(listener: TcpListener, shared: Arc<Shared>) {
    http::serve(listener, move |request| {
        let reply = answer(&request, &shared);
        async { reply }
    })
    .await;
}

fn answer(request: &Request<Incoming>, shared: &Shared) -> Reply {
    let (probe, eligible) = match request.uri().path() {
        "/healthz" => (Probe::Healthz, Some(!shared.view().leaving)),
        "/livez" => (Probe::Livez, None),
        _ => return health::not_found("there is /healthz and /livez\n"),
    };
    let healthy = shared.keeps_up();
    let good = healthy && eligible.unwrap_or(true);
    shared.work.probed(probe, good);
    http::judgement(good, &body(healthy, eligible, shared.view().updated))
}

/// Both families are programmed in one pass, and have the same to tell.
fn body(healthy: bool, eligible: Option<bool>, updated: Option<SystemTime>) -> Value {
    let now = Timestamp::now();
    // As kube-proxy has it: whoever is healthy is up to date, however long ago there was something to do.
    let last = if healthy { Some(now) } else { updated.and_then(|updated| Timestamp::try_from(updated).ok()) };
    let last = last.map(|last| last.to_string());
    let family = json!({"lastUpdated": last, "healthy": healthy});
    let mut body = json!({
        "lastUpdated": last,
        "currentTime": now.to_string(),
        "healthy": healthy,
        "status": {"IPv4": family, "IPv6": family},
    });
    if let Some(eligible) = eligible {
        body["nodeEligible"] = eligible.into();
    }
    body
}
