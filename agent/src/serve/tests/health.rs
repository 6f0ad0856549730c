// SPDX-License-Identifier: Apache-2.0
//! Probes and scrapes over real sockets.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

use super::PATIENCE;
use crate::serve::{Shared, View, health};

async fn serve_health(shared: &Arc<Shared>) -> SocketAddr {
    let mut listeners = health::listen(&["127.0.0.1:0".parse().unwrap()]).await.unwrap();
    let listener = listeners.remove(0);
    let address = listener.local_addr().unwrap();
    tokio::spawn(health::serve(listener, shared.clone()));
    address
}

async fn serve_metrics(shared: &Arc<Shared>) -> SocketAddr {
    let listener = health::listen_for_metrics(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(health::serve_metrics(listener, shared.clone()));
    address
}

pub(super) async fn get(address: SocketAddr, path: &'static str) -> String {
    let ask = move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(PATIENCE).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    tokio::task::spawn_blocking(ask).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_metrics_are_apart() {
    let (shared, _commands) = Shared::new(View { not_ready: Some("starting".into()), ..View::default() });
    let (probes, scrapes) = (serve_health(&shared).await, serve_metrics(&shared).await);
    let not_ready = get(probes, "/readyz").await;
    assert!(not_ready.starts_with("HTTP/1.1 503") && not_ready.ends_with("starting\n"), "{not_ready}");
    assert!(get(probes, "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(get(probes, "/").await.starts_with("HTTP/1.1 404"));
    let refused = get(probes, "/metrics").await;
    assert!(refused.starts_with("HTTP/1.1 404") && refused.contains("metricsAddress"), "{refused}");
    assert!(get(scrapes, "/healthz").await.starts_with("HTTP/1.1 404"));
    shared.publish(|view| {
        view.not_ready = None;
        (view.pod_cidrs, view.addresses_used) = (vec!["10.1.0.0/24".parse().unwrap()], vec![(3, 253)]);
    });
    assert!(get(probes, "/readyz").await.starts_with("HTTP/1.1 200"));
    shared.publish(|view| view.failing = Some("3 passes in a row broke off".into()));
    let failing = get(probes, "/readyz").await;
    assert!(failing.starts_with("HTTP/1.1 503") && failing.ends_with("broke off\n"), "{failing}");
    shared.publish(|view| view.failing = None);
    shared.work.lagged(std::time::Duration::from_millis(3));
    let metrics = get(scrapes, "/metrics").await;
    assert!(metrics.contains("weft_ready 1\n") && metrics.ends_with("# EOF\n"), "{metrics}");
    assert!(metrics.contains("\nweft_lag_seconds_count 1\n"), "{metrics}");
    for (name, value) in [("addresses_used", 3), ("addresses", 253)] {
        let line = format!("\nweft_{name}{{pool=\"10.1.0.0/24\"}} {value}\n");
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
}

/// Clients that say nothing, and some that begin a request and never end it.
#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_keep_no_probe_out() {
    let (shared, _commands) = Shared::new(View::default());
    let address = serve_health(&shared).await;
    let flood = move || {
        let mut idle: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(address).unwrap()).collect();
        for stream in idle.iter_mut().step_by(2) {
            // The server may have let go of it already.
            drop(stream.write_all(b"GET /healthz HTTP/1.1\r\nX-Slow:"));
        }
        idle
    };
    let mut idle = tokio::task::spawn_blocking(flood).await.unwrap();
    for _ in 0..3 {
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
    }
    // The oldest went, and the youngest stayed.
    let mut byte = [0];
    let oldest = idle.first_mut().unwrap();
    oldest.set_read_timeout(PATIENCE).unwrap();
    assert!(matches!(oldest.read(&mut byte), Ok(0) | Err(_)), "the oldest connection is still there");
    assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn addresses_that_cannot_be_had_are_named() {
    let taken = health::listen(&["127.0.0.1:0".parse().unwrap()]).await.unwrap();
    let address = taken[0].local_addr().unwrap();
    let error = health::listen(&[address]).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("healthAddresses: cannot listen on {address}")), "{error}");
    let error = health::listen(&["192.0.2.77:9911".parse().unwrap()]).await.unwrap_err().to_string();
    assert!(error.contains("192.0.2.77:9911"), "{error}");
    let error = health::listen_for_metrics(&address.to_string().parse().unwrap()).await.unwrap_err().to_string();
    assert!(error.starts_with("metricsAddress: cannot listen on"), "{error}");
}
