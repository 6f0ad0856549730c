// SPDX-License-Identifier: Apache-2.0
//! The source against an API server of a hundred lines, over loopback.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::http::{Request, Response, StatusCode};
use hyper::{
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::broadcast, task::JoinSet};

use crate::{
    model::{ObjectKey, Snapshot, objects::Pod},
    watch::{ApiServer, Reader, Source, start},
};

/// What the server keeps, by plural.
struct Store {
    objects: Mutex<BTreeMap<String, Vec<Value>>>,
    forbidden: Mutex<BTreeSet<String>>,
    /// Kinds that the server does not know.
    unknown: Mutex<BTreeSet<String>>,
    queries: Mutex<Vec<String>>,
    events: broadcast::Sender<(String, Value)>,
    /// Of the next event.
    version: AtomicU64,
}

/// A running server; it and all its connections end when it is dropped.
struct Server {
    address: SocketAddr,
    _accept: JoinSet<()>,
}

type Body = BoxBody<Bytes, Infallible>;

fn full(status: StatusCode, value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(value.to_string())).boxed();
    Response::builder().status(status).header("content-type", "application/json").body(body).unwrap()
}

impl Store {
    fn new() -> Arc<Self> {
        let events = broadcast::channel(100).0;
        let version = AtomicU64::new(9);
        Arc::new(Self {
            objects: Mutex::default(),
            forbidden: Mutex::default(),
            unknown: Mutex::default(),
            queries: Mutex::default(),
            events,
            version,
        })
    }

    fn put(&self, plural: &str, object: Value) {
        self.objects.lock().unwrap().entry(plural.to_owned()).or_default().push(object.clone());
        self.send(plural, "ADDED", object);
    }

    fn send(&self, plural: &str, kind: &str, mut object: Value) {
        if object["kind"] != "Status" {
            let version = self.version.fetch_add(1, Ordering::Relaxed);
            object["metadata"]["resourceVersion"] = json!(version.to_string());
        }
        // Nobody may be watching yet.
        drop(self.events.send((plural.to_owned(), json!({"type": kind, "object": object}))));
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let plural = request.uri().path().rsplit('/').next().unwrap().to_owned();
        if plural == "version" {
            return full(
                StatusCode::OK,
                &json!({"major": "1", "minor": "36", "gitVersion": "v1.36.4", "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": ""}),
            );
        }
        let query = request.uri().query().unwrap_or_default().to_owned();
        self.queries.lock().unwrap().push(format!("{plural}?{query}"));
        if self.forbidden.lock().unwrap().contains(&plural) {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "message": format!("{plural} is forbidden"), "code": 403});
            return full(StatusCode::FORBIDDEN, &status);
        }
        if self.unknown.lock().unwrap().contains(&plural) {
            return Response::builder()
                .status(StatusCode::NOT_FOUND)
                .body(Full::new(Bytes::from("404 page not found\n")).boxed())
                .unwrap();
        }
        if !query.contains("watch=true") {
            let items = self.objects.lock().unwrap().get(&plural).cloned().unwrap_or_default();
            let list =
                json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items});
            return full(StatusCode::OK, &list);
        }
        let events = futures::stream::unfold(self.events.subscribe(), |mut events| async move {
            events.recv().await.ok().map(|event| (event, events))
        });
        let lines = events.filter_map(move |(of, event)| {
            let line = (of == plural).then(|| Ok(Frame::data(Bytes::from(format!("{event}\n")))));
            std::future::ready(line)
        });
        Response::new(BodyExt::boxed(StreamBody::new(lines)))
    }
}

impl Server {
    async fn start(store: &Arc<Store>, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let store = store.clone();
        let mut accept = JoinSet::new();
        accept.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let store = store.clone();
                let service = service_fn(move |request| {
                    let answer = store.answer(&request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                connections.spawn(async move {
                    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await)
                });
            }
        });
        Self { address, _accept: accept }
    }
}

/// A kubeconfig whose own address leads nowhere: the configured one must be used.
fn kubeconfig(dir: &tempfile::TempDir) -> PathBuf {
    let path = dir.path().join("kubeconfig");
    let text = "{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}], \
                users: [{name: u, user: {token: t}}], contexts: [{name: c, context: {cluster: c, user: u}}]}";
    std::fs::write(&path, text).unwrap();
    path
}

struct Bench {
    store: Arc<Store>,
    server: Option<Server>,
    address: SocketAddr,
    receiver: Reader,
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn new(store: Arc<Store>) -> Self {
        let server = Server::start(&store, "127.0.0.1:0".parse().unwrap()).await;
        let address = server.address;
        let dir = tempfile::tempdir().unwrap();
        let source = ApiServer { server: Some(format!("http://{address}")), kubeconfig: Some(kubeconfig(&dir)) };
        let receiver = Reader::new(start(Source::Kubernetes(source), "here"));
        Self { store, server: Some(server), address, receiver, _dir: dir }
    }

    async fn wait(&mut self, what: impl Fn(&Snapshot) -> bool) -> Snapshot {
        tokio::time::timeout(Duration::from_secs(30), self.receiver.wait_for(what)).await.unwrap()
    }
}

fn pod(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "x", "name": name, "uid": name, "labels": labels, "resourceVersion": "7",
            "managedFields": [{"manager": "m", "operation": "Update"}], "annotations": {"note": "long"}},
        "spec": {"nodeName": "n", "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [{"name": "c", "image": "i", "ports": [{"name": "http", "containerPort": 80}, {"containerPort": 81}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "hostIP": "192.0.2.1"}})
}

fn key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey::new(namespace, name)
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_then_follows() {
    let store = Store::new();
    store.put("pods", pod("a", json!({"app": "a"})));
    store.put("namespaces", json!({"metadata": {"name": "x", "labels": {"team": "red"}}}));
    let mut bench = Bench::new(store).await;
    let snapshot = bench.wait(|snapshot| snapshot.synced).await;
    assert_eq!((snapshot.pods.len(), snapshot.namespaces.len(), &snapshot.error), (1, 1, &None));

    let pod_a = &snapshot.pods[&key("x", "a")];
    assert_eq!(pod_a.metadata.labels.as_ref().unwrap().get("app"), Some("a"));
    assert_eq!(pod_a.ports.len(), 1, "named ports only");
    assert!(pod_a.metadata.resource_version.is_none() && pod_a.metadata.annotations.is_none());

    let selected = |queries: &[String], plural: &str| {
        let of_kind: Vec<&String> = queries.iter().filter(|query| query.starts_with(plural)).collect();
        !of_kind.is_empty()
            && of_kind.iter().all(|query| {
                query.contains(
                    "labelSelector=%21service.kubernetes.io%2Fservice-proxy-name%2C%21service.kubernetes.io%2Fheadless",
                )
            })
    };
    {
        let queries = bench.store.queries.lock().unwrap();
        assert!(selected(&queries, "services?") && selected(&queries, "endpointslices?"), "{queries:?}");
        assert!(!selected(&queries, "pods?"));
        let with_weight =
            |query: &String| query.starts_with("pods?") && query.contains("labelSelector=weft.dev%2Fweight");
        assert!(queries.iter().any(with_weight), "of all nodes: {queries:?}");
    }

    // The watches may not have begun when the lists were done: an event until it is seen.
    let service = json!({"metadata": {"namespace": "x", "name": "s"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}});
    bench.send_until("services", "ADDED", service.clone(), |snapshot| snapshot.services.len() == 1).await;
    bench.send_until("services", "DELETED", service, |snapshot| snapshot.services.is_empty()).await;
    bench
        .send_until("pods", "MODIFIED", pod("a", json!({"app": "b"})), |snapshot| {
            snapshot.pods[&key("x", "a")].metadata.labels.as_ref().is_some_and(|labels| &labels["app"] == "b")
        })
        .await;
}

#[test]
fn a_change_of_what_nobody_reads_is_no_change() {
    let read = |mut object: Value, version: &str| {
        object["metadata"]["resourceVersion"] = json!(version);
        let pod: super::Watched<Pod, k8s_openapi::api::core::v1::Pod> = serde_json::from_value(object).unwrap();
        let super::Event::Apply(mut pod) = super::Watched::unwrap(super::Event::Apply(pod)) else { unreachable!() };
        assert_eq!(pod.metadata.resource_version.take().as_deref(), Some(version));
        pod
    };
    let mut heartbeat = pod("a", json!({}));
    heartbeat["status"]["hostIP"] = json!("192.0.2.2");
    assert_eq!(read(pod("a", json!({})), "1"), read(heartbeat, "2"));
    assert_ne!(read(pod("a", json!({})), "1"), read(pod("a", json!({"app": "a"})), "3"));
}

impl Bench {
    async fn send_until(&mut self, plural: &str, kind: &str, object: Value, what: impl Fn(&Snapshot) -> bool) {
        for _ in 0..100 {
            self.store.send(plural, kind, object.clone());
            let seen = tokio::time::timeout(Duration::from_millis(200), self.receiver.wait_for(&what)).await;
            if seen.is_ok() {
                return;
            }
        }
        panic!("{kind} of {plural} never came through: {:?}", self.receiver.now().error);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_server_the_last_good_state_stays() {
    let store = Store::new();
    store.put("pods", pod("a", json!({})));
    let mut bench = Bench::new(store).await;
    bench.wait(|snapshot| snapshot.synced).await;

    bench.server = None;
    let snapshot = bench.wait(|snapshot| snapshot.error.is_some()).await;
    assert_eq!((snapshot.synced, snapshot.pods.len()), (true, 1));

    bench.server = Some(Server::start(&bench.store, bench.address).await);
    bench.wait(|snapshot| snapshot.error.is_none()).await;
    bench.send_until("pods", "ADDED", pod("b", json!({})), |snapshot| snapshot.pods.len() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_is_too_old_is_listed_anew() {
    let store = Store::new();
    store.put("pods", pod("a", json!({})));
    store.put("pods", pod("b", json!({})));
    let mut bench = Bench::new(store).await;
    bench.wait(|snapshot| snapshot.pods.len() == 2).await;
    bench.store.objects.lock().unwrap().get_mut("pods").unwrap().remove(0);
    let gone = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "message": "too old", "code": 410});
    bench.send_until("pods", "ERROR", gone, |snapshot| !snapshot.pods.contains_key(&key("x", "a"))).await;
    let snapshot = bench.wait(|snapshot| snapshot.error.is_none()).await;
    assert_eq!(snapshot.pods.keys().collect::<Vec<_>>(), [&key("x", "b")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_said_and_nothing_is_told_before_all_is_there() {
    let store = Store::new();
    store.put("pods", pod("a", json!({})));
    store.forbidden.lock().unwrap().insert("networkpolicies".into());
    let mut bench = Bench::new(store).await;
    let snapshot = bench.wait(|snapshot| snapshot.error.is_some()).await;
    assert!(snapshot.error.as_ref().unwrap().contains("networkpolicies is forbidden"), "{:?}", snapshot.error);
    assert!(!snapshot.synced && snapshot.pods.is_empty());
    bench.store.forbidden.lock().unwrap().clear();
    let snapshot = bench.wait(|snapshot| snapshot.synced && snapshot.error.is_none()).await;
    assert_eq!(snapshot.pods.len(), 1);
}

fn service_cidr(name: &str, cidr: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"cidrs": [cidr]}, "status": {"conditions": []}})
}

#[tokio::test(flavor = "multi_thread")]
async fn service_cidrs_are_followed() {
    let store = Store::new();
    store.put("servicecidrs", service_cidr("kubernetes", "10.96.0.0/16"));
    let mut bench = Bench::new(store).await;
    let snapshot = bench.wait(|snapshot| snapshot.synced).await;
    let spec = snapshot.service_cidrs[&key("", "kubernetes")].spec.clone().unwrap();
    assert_eq!(spec.cidrs, Some(vec!["10.96.0.0/16".to_owned()]));
    let second = service_cidr("second", "10.97.0.0/16");
    bench.send_until("servicecidrs", "ADDED", second.clone(), |snapshot| snapshot.service_cidrs.len() == 2).await;
    bench.send_until("servicecidrs", "DELETED", second, |snapshot| snapshot.service_cidrs.len() == 1).await;
}

/// Before Kubernetes 1.33; and a role of an older manifest.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_service_cidrs_is_gone_on_with_until_it_has_them() {
    let store = Store::new();
    store.put("pods", pod("a", json!({})));
    store.unknown.lock().unwrap().insert("servicecidrs".into());
    let mut bench = Bench::new(store).await;
    let snapshot = bench.wait(|snapshot| snapshot.synced).await;
    assert_eq!((snapshot.pods.len(), snapshot.service_cidrs.len(), &snapshot.error), (1, 0, &None));
    bench.store.put("servicecidrs", service_cidr("kubernetes", "10.96.0.0/16"));
    bench.store.unknown.lock().unwrap().clear();
    bench.wait(|snapshot| snapshot.service_cidrs.len() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn service_cidrs_that_may_not_be_read_are_said_and_keep_nobody_waiting() {
    let store = Store::new();
    store.forbidden.lock().unwrap().insert("servicecidrs".into());
    let mut bench = Bench::new(store).await;
    let snapshot = bench.wait(|snapshot| snapshot.synced).await;
    assert!(snapshot.error.as_ref().unwrap().contains("servicecidrs is forbidden"), "{:?}", snapshot.error);
    bench.store.forbidden.lock().unwrap().clear();
    bench.wait(|snapshot| snapshot.error.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_credentials_are_named() {
    let source =
        ApiServer { server: Some("http://127.0.0.1:1".into()), kubeconfig: Some("/nonexistent/kubeconfig".into()) };
    let mut receiver = Reader::new(start(Source::Kubernetes(source), "here"));
    let found = tokio::time::timeout(Duration::from_secs(30), receiver.wait_for(|snapshot| snapshot.error.is_some()));
    let error = found.await.unwrap().error.unwrap();
    assert!(error.contains("/nonexistent/kubeconfig"), "{error}");
}
