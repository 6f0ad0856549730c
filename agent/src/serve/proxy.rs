// SPDX-License-Identifier: Apache-2.0
//! What programs on the node ask kube-proxy for, by default at port 10249 of 127.0.0.1 and ::1: its mode, whether it lives, and its
//! metrics as far as Weft has a counterpart, under their names, so that dashboards go on. A pass is for both families: no metric has the
//! label `ip_family`.

use std::{fmt, sync::Arc, time::SystemTime};

use hyper::{Request, StatusCode, body::Incoming};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, text::encode},
    registry::{Registry, Unit},
};
use tokio::net::TcpListener;

use super::{
    Shared,
    encode::{Encoded, counter, counters, gauge, seconds},
    health,
    http::{self, Reply},
    metrics::{Probe, count, label},
    port::{on_loopback, serve_both},
};
use crate::plan::Versions;

/// Serves this node's own programs, for ever.
pub async fn serve(port: u16, shared: Arc<Shared>) {
    serve_both("services.metricsPort", on_loopback(port), shared, serve_on).await;
}

pub(super) async fn serve_on(listener: TcpListener, shared: Arc<Shared>) {
    http::serve(listener, move |request| {
        let reply = answer(&request, &shared);
        async { reply }
    })
    .await;
}

fn answer(request: &Request<Incoming>, shared: &Arc<Shared>) -> Reply {
    match request.uri().path() {
        "/proxyMode" => http::text(StatusCode::OK, "text/plain; charset=utf-8", "weft".to_owned()),
        "/healthz" => health::alive(shared),
        "/metrics" => health::exposition(text(shared.clone())),
        _ => health::not_found("there is /proxyMode, /healthz and /metrics\n"),
    }
}

fn text(shared: Arc<Shared>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("kubeproxy");
    let help = "Time of a pass that brings what has changed to the dataplane, of both families";
    registry.register_with_unit("sync_proxy_rules_duration", help, Unit::Seconds, shared.work.passes().clone());
    registry.register_collector(Box::new(Live(shared)));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Live(Arc<Shared>);

impl Collector for Live {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Encoded {
        let (view, now) = (self.0.view(), self.0.planner().versions());
        let applied = view.planned.unwrap_or_default();
        self.encode_times(&mut encoder, view.updated)?;
        encode_changes(&mut encoder, now, applied)?;
        for (probe, name) in [(Probe::Healthz, "proxy_healthz"), (Probe::Livez, "proxy_livez")] {
            let answers = ["200", "503"].into_iter().zip(self.0.work.answers(probe));
            let answers = answers.map(|(code, times)| (label("code", code), times));
            counters(&mut encoder, name, "Answers to load balancers by their code", answers)?;
        }
        Ok(())
    }
}

impl Live {
    /// What has not happened yet has no time.
    fn encode_times(&self, encoder: &mut DescriptorEncoder<'_>, updated: Option<SystemTime>) -> Encoded {
        if let Some(updated) = updated.and_then(|updated| updated.duration_since(SystemTime::UNIX_EPOCH).ok()) {
            let help = "When a pass last worked";
            seconds(encoder, "sync_proxy_rules_last_timestamp", help, updated.as_secs_f64())?;
        }
        if let Some(heard) = self.0.work.last_heard() {
            let help = "When a change was last heard of";
            seconds(encoder, "sync_proxy_rules_last_queued_timestamp", help, heard.as_secs_f64())?;
        }
        Ok(())
    }
}

/// Since the agent has started; those that wait are the ones that no pass has brought to the dataplane.
fn encode_changes(encoder: &mut DescriptorEncoder<'_>, now: Versions, applied: Versions) -> Encoded {
    let waiting = |now: u64, applied: u64| count(usize::try_from(now.saturating_sub(applied)).unwrap_or(usize::MAX));
    let (services, slices) = (waiting(now.services, applied.services), waiting(now.slices, applied.slices));
    counter(encoder, "sync_proxy_rules_service_changes", "Changes of Services", now.services)?;
    gauge(encoder, "sync_proxy_rules_service_changes_pending", "Changes of Services that wait", services)?;
    counter(encoder, "sync_proxy_rules_endpoint_changes", "Changes of EndpointSlices", now.slices)?;
    gauge(encoder, "sync_proxy_rules_endpoint_changes_pending", "Changes of EndpointSlices that wait", slices)
}
