// SPDX-License-Identifier: Apache-2.0
//! Health over HTTP, `/healthz` and `/readyz`, for probes of this node; and metrics, `/metrics`, at an address of their own.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hyper::{Request, StatusCode, body::Incoming};
use tokio::net::TcpListener;

use super::{
    Shared,
    http::{self, Reply},
    metrics,
    port::is_switched_off,
};
use crate::config::MetricsAddress;

/// The engine works at least once a second; a full pass over a large cluster takes a few.
const HUNG: Duration = Duration::from_secs(60);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain";

/// Listens on every address for health. A loopback address of a family that the node has switched off is left out, as long as
/// there is another.
///
/// # Errors
/// What `bind` says, with the address and the field of the configuration.
pub async fn listen(addresses: &[SocketAddr]) -> io::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    let mut absent = None;
    for address in addresses {
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "healthAddresses: pods of this node reach it, because it is no loopback address");
        }
        match TcpListener::bind(address).await {
            Ok(listener) => listeners.push(listener),
            Err(error) if address.ip().is_loopback() && is_switched_off(&error) => {
                tracing::info!(%address, %error, "healthAddresses: this node does not have it");
                absent = Some(named("healthAddresses", *address, &error));
            }
            Err(error) => return Err(named("healthAddresses", *address, &error)),
        }
    }
    match absent {
        Some(error) if listeners.is_empty() => Err(error),
        _ => Ok(listeners),
    }
}

/// Listens for scrapes.
///
/// # Errors
/// As [`listen`].
pub async fn listen_for_metrics(address: &MetricsAddress) -> io::Result<TcpListener> {
    let wanted = address.socket();
    match TcpListener::bind(wanted).await {
        Err(error) if address.is_any() && is_switched_off(&error) => {
            let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), wanted.port());
            TcpListener::bind(v4).await.map_err(|error| named("metricsAddress", v4, &error))
        }
        bound => bound.map_err(|error| named("metricsAddress", wanted, &error)),
    }
}

fn named(field: &str, address: SocketAddr, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{field}: cannot listen on {address}: {error}"))
}

/// Serves health for ever.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    http::serve(listener, move |request| {
        let reply = health(&request, &shared);
        async { reply }
    })
    .await;
}

/// Serves metrics for ever.
pub async fn serve_metrics(listener: TcpListener, shared: Arc<Shared>) {
    http::serve(listener, move |request| scraped(request, shared.clone())).await;
}

fn health(request: &Request<Incoming>, shared: &Shared) -> Reply {
    match request.uri().path() {
        "/healthz" => alive(shared),
        "/readyz" => match shared.unfit() {
            None => http::text(StatusCode::OK, PLAIN, "ok\n".to_owned()),
            Some(why) => http::text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("{why}\n")),
        },
        "/metrics" => not_found("metrics are at metricsAddress of the agent's configuration, where it is set\n"),
        _ => not_found("there is /healthz and /readyz\n"),
    }
}

/// Whether the engine works.
pub(super) fn alive(shared: &Shared) -> Reply {
    match shared.since_beat().filter(|since| *since > HUNG) {
        None => http::text(StatusCode::OK, PLAIN, "ok\n".to_owned()),
        Some(since) => {
            let text = format!("the engine has not worked for {} s\n", since.as_secs());
            http::text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, text)
        }
    }
}

async fn scraped(request: Request<Incoming>, shared: Arc<Shared>) -> Reply {
    if request.uri().path() != "/metrics" {
        return not_found("there is /metrics\n");
    }
    exposition(metrics::text(shared).await)
}

/// Metrics, as they are scraped.
pub(super) fn exposition(text: Result<String, fmt::Error>) -> Reply {
    match text {
        Ok(text) => http::text(StatusCode::OK, OPEN_METRICS, text),
        Err(error) => http::text(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("{error}\n")),
    }
}

pub(super) fn not_found(text: &str) -> Reply {
    http::text(StatusCode::NOT_FOUND, PLAIN, text.to_owned())
}
