// SPDX-License-Identifier: Apache-2.0
//! What load balancers, and others that know kube-proxy, ask.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{PATIENCE, health::get};
use crate::{
    model::{Deltas, HealthCheck, HealthChecks, News, ObjectKey, RefusedKind, Snapshot, Standing},
    serve::{
        Shared, View,
        http::MAX_CONNECTIONS,
        node_health,
        port::{Owner, everywhere},
        proxy, service_health,
    },
};

const LATE: Duration = Duration::from_secs(61);

/// Code, headers in lower case, body.
async fn ask(address: SocketAddr, path: &'static str) -> (u16, String, Value) {
    let text = get(address, path).await;
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, head.to_lowercase(), serde_json::from_str(body).unwrap_or(Value::Null))
}

async fn bound() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn load_balancers_hear_of_the_node_and_of_what_waits() {
    let (shared, _commands) = Shared::new(View { updated: Some(SystemTime::UNIX_EPOCH), ..View::default() });
    let (listener, address) = bound().await;
    tokio::spawn(node_health::serve_on(listener, shared.clone()));
    let (code, head, body) = ask(address, "/healthz").await;
    assert_eq!(code, 200, "{body}");
    for header in ["content-type: application/json", "x-content-type-options: nosniff"] {
        assert!(head.contains(header), "{head}");
    }
    assert_eq!((&body["healthy"], &body["nodeEligible"]), (&json!(true), &json!(true)));
    // Whoever has nothing to do is up to date.
    assert_eq!(body["lastUpdated"], body["currentTime"]);
    for family in ["IPv4", "IPv6"] {
        assert_eq!(body["status"][family], json!({"lastUpdated": body["lastUpdated"], "healthy": true}));
    }
    let (code, _, body) = ask(address, "/livez").await;
    assert_eq!((code, body.get("nodeEligible"), &body["healthy"]), (200, None, &json!(true)));

    // A node that goes is well, and gets no new connections.
    shared.publish(|view| view.leaving = true);
    let (code, _, body) = ask(address, "/healthz").await;
    assert_eq!((code, &body["healthy"], &body["nodeEligible"]), (503, &json!(true), &json!(false)));
    assert_eq!(ask(address, "/livez").await.0, 200);

    shared.publish(|view| (view.leaving, view.behind_since) = (false, Some(Instant::now() - LATE)));
    for path in ["/healthz", "/livez"] {
        let (code, _, body) = ask(address, path).await;
        assert_eq!((code, &body["healthy"]), (503, &json!(false)));
        assert_eq!(
            (&body["lastUpdated"], &body["status"]["IPv6"]["healthy"]),
            (&json!("1970-01-01T00:00:00Z"), &json!(false))
        );
    }
    shared.publish(|view| view.behind_since = None);
    assert_eq!(ask(address, "/healthz").await.0, 200);
    assert_eq!(ask(address, "/").await.0, 404);
}

#[test]
fn what_waits_may_wait_for_a_minute() {
    let (shared, _commands) = Shared::new(View { not_ready: Some("starting".into()), ..View::default() });
    let now = Instant::now();
    // At first everything waits.
    assert!(shared.keeps_up_at(now) && !shared.keeps_up_at(now + LATE));
    shared.publish(|view| view.not_ready = None);
    assert!(shared.keeps_up_at(now + LATE), "what an earlier agent has left is whole");
    // The devices are others: what stands is served.
    shared.publish(|view| (view.updated, view.not_ready) = (Some(SystemTime::now()), Some("once more".into())));
    assert!(shared.keeps_up_at(now + LATE));
    shared.publish(|view| view.behind_since = Some(now));
    assert!(shared.keeps_up_at(now + LATE / 2) && !shared.keeps_up_at(now + LATE));
    shared.publish(|view| view.behind_since = None);
    // An engine that hangs hears of nothing that waits.
    std::thread::sleep(Duration::from_millis(2));
    shared.beat();
    assert!(shared.keeps_up_at(Instant::now()) && !shared.keeps_up_at(Instant::now() + LATE));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_named_and_tried_again() {
    let (shared, _commands) = Shared::new(View::default());
    let (taken, address) = bound().await;
    let waiting = tokio::spawn({
        let shared: Arc<Shared> = shared.clone();
        async move { shared.missing.listen(&Owner::Field("services.healthzPort"), address).await }
    });
    until(|| !shared.problems().is_empty()).await;
    let problem = shared.problems().pop().unwrap();
    assert!(problem.starts_with(&format!("services.healthzPort: cannot listen on {address}")), "{problem}");
    assert!(problem.contains("0: none"), "{problem}");
    drop(taken);
    assert!(waiting.await.unwrap().is_some());
    assert_eq!(shared.problems(), [""; 0]);
}

/// Whatever the node says of sockets of IPv6 alone.
#[tokio::test]
async fn both_families_have_a_port_each() {
    let (shared, _commands) = Shared::new(View::default());
    let owner = Owner::Field("x");
    let [v4, _] = everywhere(0);
    let v4 = shared.missing.listen(&owner, v4).await.unwrap();
    let [_, v6] = everywhere(v4.local_addr().unwrap().port());
    if let Some(v6) = shared.missing.listen(&owner, v6).await {
        assert_eq!(v4.local_addr().unwrap().port(), v6.local_addr().unwrap().port());
    }
}

fn checks(name: &str, port: u16, ready: Option<u32>) -> HealthChecks {
    let check = ready.map(|ready| HealthCheck {
        port: port.try_into().unwrap(),
        ready: [Some(ready), None],
        uid: Some("u".into()),
    });
    [(ObjectKey::new("x", name), check)].into()
}

async fn until(mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE.unwrap(), wait).await.unwrap();
}

/// What is answered, unless the port is being closed.
fn text_at(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(PATIENCE)?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Somebody else may have taken the port since: the problem says so, and the test goes on.
fn listens(shared: &Shared, port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok() && shared.missing.problems().is_empty()
}

#[tokio::test(flavor = "multi_thread")]
async fn load_balancers_hear_of_a_service_as_it_changes() {
    let (shared, _commands) = Shared::new(View::default());
    tokio::spawn(service_health::serve(shared.clone()));
    let (listener, address) = bound().await;
    drop(listener);
    let port = address.port();
    shared.checks.put(checks("web", port, Some(2)));
    until(|| listens(&shared, port)).await;
    let (code, head, body) = ask(address, "/whatever").await;
    let service = json!({"namespace": "x", "name": "web"});
    assert_eq!(body, json!({"service": service, "localEndpoints": 2, "serviceProxyHealthy": true}));
    assert_eq!(code, 200);
    let headers =
        ["content-type: application/json", "x-content-type-options: nosniff", "x-load-balancing-endpoint-weight: 2"];
    for header in headers {
        assert!(head.contains(header), "{head}");
    }

    shared.publish(|view| view.behind_since = Some(Instant::now() - LATE));
    let (code, _, body) = ask(address, "/").await;
    assert_eq!((code, &body["localEndpoints"], &body["serviceProxyHealthy"]), (503, &json!(2), &json!(false)));
    shared.publish(|view| view.behind_since = None);

    // The last one terminates. What stands before is taken first.
    shared.checks.put(checks("web", port, Some(0)));
    let mut answer = ask(address, "/").await;
    while answer.2["localEndpoints"] == 2 {
        answer = ask(address, "/").await;
    }
    assert_eq!(
        (answer.0, &answer.2["localEndpoints"], &answer.2["serviceProxyHealthy"]),
        (503, &json!(0), &json!(true))
    );
    assert!(answer.1.contains("x-load-balancing-endpoint-weight: 0"), "{}", answer.1);

    shared.checks.put(checks("web", port, None));
    until(|| !listens(&shared, port)).await;
    // And back, at once in the hands of another one.
    shared.checks.put(checks("web", port, Some(1)));
    until(|| listens(&shared, port)).await;
    let mut swapped = checks("web", port, None);
    swapped.extend(checks("api", port, Some(1)));
    shared.checks.put(swapped);
    until(|| text_at(address).is_ok_and(|text| text.contains("\"name\":\"api\""))).await;
    assert_eq!(shared.problems(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_services_port_that_is_taken_is_a_problem_and_an_event_of_it() {
    let (shared, _commands) = Shared::new(View::default());
    tokio::spawn(service_health::serve(shared.clone()));
    let taken = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    shared.checks.put(checks("web", port, Some(1)));
    until(|| !shared.missing.refusals().is_empty()).await;
    let refusal = shared.missing.refusals().pop_first().unwrap();
    assert_eq!((refusal.kind, &refusal.key), (RefusedKind::HealthCheck, &ObjectKey::new("x", "web")));
    assert_eq!(refusal.uid.as_deref(), Some("u"));
    let problem = shared.problems().pop().unwrap();
    assert!(
        problem.starts_with(&format!("Service x/web: healthCheckNodePort: cannot listen on 0.0.0.0:{port}")),
        "{problem}"
    );
    // The Service goes, and its problem with it.
    shared.checks.put(checks("web", port, None));
    until(|| shared.problems().is_empty()).await;
    assert!(shared.missing.refusals().is_empty());
}

/// However many Services have a port: clients that say nothing take no more file descriptors, and keep nobody out.
#[tokio::test(flavor = "multi_thread")]
async fn ports_of_services_share_their_connections() {
    let (shared, _commands) = Shared::new(View::default());
    tokio::spawn(service_health::serve(shared.clone()));
    // Both at once: they differ.
    let ((one, web), (other, api)) = (bound().await, bound().await);
    drop((one, other));
    let mut both = checks("web", web.port(), Some(1));
    both.extend(checks("api", api.port(), Some(1)));
    shared.checks.put(both);
    until(|| listens(&shared, web.port()) && listens(&shared, api.port())).await;
    let idle = move || [web, api].map(|address| [(); MAX_CONNECTIONS].map(|()| TcpStream::connect(address).unwrap()));
    let idle = tokio::task::spawn_blocking(idle).await.unwrap();
    until(|| shared.checks.connections.count() == MAX_CONNECTIONS).await;
    for address in [web, api] {
        assert_eq!(ask(address, "/").await.0, 200);
        assert!(shared.checks.connections.count() <= MAX_CONNECTIONS);
    }
    drop(idle);
}

/// Whatever its own name leads to there.
#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_own_programs_ask_by_either_family() {
    let (shared, _commands) = Shared::new(View::default());
    let (listener, address) = bound().await;
    drop(listener);
    tokio::spawn(proxy::serve(address.port(), shared.clone()));
    until(|| listens(&shared, address.port())).await;
    assert!(get(address, "/proxyMode").await.ends_with("weft"));
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, address.port()));
    // Where the node has it.
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.is_ok() {
        until(|| TcpStream::connect(v6).is_ok()).await;
        assert!(get(v6, "/proxyMode").await.ends_with("weft"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_asks_for_kube_proxy_finds_its_mode_and_metrics() {
    let (shared, _commands) = Shared::new(View::default());
    let (listener, address) = bound().await;
    tokio::spawn(proxy::serve_on(listener, shared.clone()));
    let mode = get(address, "/proxyMode").await;
    assert!(mode.starts_with("HTTP/1.1 200") && mode.ends_with("\r\n\r\nweft"), "{mode}");
    assert!(get(address, "/healthz").await.ends_with("ok\n"));
    assert!(get(address, "/debug").await.starts_with("HTTP/1.1 404"));
    let before = get(address, "/metrics").await;
    assert!(!before.contains("timestamp"), "nothing has happened yet: {before}");

    let mut snapshot = Snapshot::default();
    let slice = serde_json::from_value(json!({"metadata": {"name": "s"}, "addressType": "IPv4"})).unwrap();
    snapshot.services.insert(ObjectKey::new("x", "web"), Arc::default());
    snapshot.slices.insert(ObjectKey::new("x", "s"), Arc::new(slice));
    let news = |snapshot: &Snapshot| News {
        deltas: Deltas::whole(snapshot),
        standing: Standing { synced: true, ..Standing::default() },
        since: None,
    };
    shared.planner_mut().take(news(&snapshot));
    let planned = Some(shared.planner().versions());
    shared.publish(|view| {
        (view.planned, view.updated) = (planned, Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1500)));
    });
    // One more, which no pass has brought to the maps.
    snapshot.services.clear();
    shared.planner_mut().take(news(&snapshot));
    shared.work.heard();
    shared.work.passed(Duration::from_millis(3));
    shared.work.probed(crate::serve::metrics::Probe::Livez, false);
    let metrics = get(address, "/metrics").await;
    for line in [
        "sync_proxy_rules_service_changes_total 2",
        "sync_proxy_rules_service_changes_pending 1",
        "sync_proxy_rules_endpoint_changes_total 1",
        "sync_proxy_rules_endpoint_changes_pending 0",
        "sync_proxy_rules_last_timestamp_seconds 1.5",
        "sync_proxy_rules_duration_seconds_count 1",
        "sync_proxy_rules_duration_seconds_bucket{le=\"0.004\"} 1",
        "proxy_livez_total{code=\"503\"} 1",
        "proxy_healthz_total{code=\"200\"} 0",
    ] {
        assert!(metrics.contains(&format!("\nkubeproxy_{line}\n")), "{line} in {metrics}");
    }
    assert!(metrics.contains("\nkubeproxy_sync_proxy_rules_last_queued_timestamp_seconds "), "{metrics}");
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
}
