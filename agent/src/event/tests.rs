// SPDX-License-Identifier: Apache-2.0
use std::{convert::Infallible, net::SocketAddr};

use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc};

use super::*;
use crate::watch::ApiServer;

/// An API server that takes everything and tells what it took: method, path, body.
async fn server() -> (SocketAddr, mpsc::UnboundedReceiver<(String, String, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let sender = sender.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let sender = sender.clone();
                async move {
                    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let value: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
                    drop(sender.send((method, path, value)));
                    let response =
                        Response::builder().status(StatusCode::CREATED).header("content-type", "application/json");
                    Ok::<_, Infallible>(response.body(Full::new(body)).unwrap())
                }
            });
            tokio::spawn(async move {
                drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    (address, receiver)
}

fn refusal(kind: RefusedKind, name: &str, why: &str) -> Refusal {
    let (key, uid) = (ObjectKey::new("tenant", name), Some(format!("uid of {name}")));
    Refusal { kind, key, uid, why: why.to_owned() }
}

async fn events(address: SocketAddr) -> (Events, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    let text = "{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}], \
                users: [{name: u, user: {token: t}}], contexts: [{name: c, context: {cluster: c, user: u}}]}";
    std::fs::write(&path, text).unwrap();
    let server = ApiServer { server: Some(format!("http://{address}")), kubeconfig: Some(path) };
    (Events::start(&Source::Kubernetes(server), "node1"), dir)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_object_is_told_of_once_with_its_kind_and_why() {
    let (address, mut taken) = server().await;
    let (events, _dir) = events(address).await;
    let long = "x".repeat(5000);
    let mut refusals: BTreeSet<Refusal> = [
        refusal(RefusedKind::Policy, "p", "does not fit: 84 prefixes"),
        // Two frontends of one Service.
        refusal(RefusedKind::Service, "s", "a"),
        refusal(RefusedKind::Service, "s", &long),
    ]
    .into();
    events.tell(&refusals, None);
    let (method, path, first) = taken.recv().await.unwrap();
    assert_eq!((method.as_str(), path.as_str()), ("POST", "/apis/events.k8s.io/v1/namespaces/tenant/events"));
    let regarding = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "namespace": "tenant", "name": "p", "uid": "uid of p"});
    assert_eq!(first["regarding"], regarding);
    assert_eq!((&first["type"], &first["note"]), (&json!("Warning"), &json!("does not fit: 84 prefixes")));
    assert_eq!((&first["reportingController"], &first["reportingInstance"]), (&json!("weft-agent"), &json!("node1")));
    assert_eq!(taken.recv().await.unwrap().2["regarding"]["kind"], "Service");

    // What is known is not told again, not even after it was gone for a while.
    events.tell(&BTreeSet::new(), None);
    events.tell(&refusals, None);
    refusals.insert(refusal(RefusedKind::Pod, "web", &long));
    events.tell(&refusals, None);
    let (_, _, next) = taken.recv().await.unwrap();
    assert_eq!((&next["regarding"]["kind"], next["note"].as_str().unwrap().len()), (&json!("Pod"), LONGEST_NOTE));
    assert!(taken.try_recv().is_err());

    // Of the node itself, which is in no namespace.
    let of_node = Refusal { key: ObjectKey::new("", "node1"), ..refusal(RefusedKind::Node, "node1", "no address") };
    events.tell(&refusals, Some(of_node.clone()));
    let (_, path, next) = taken.recv().await.unwrap();
    assert_eq!(path, "/apis/events.k8s.io/v1/namespaces/default/events");
    assert_eq!(next["regarding"], json!({"apiVersion": "v1", "kind": "Node", "name": "node1", "uid": "uid of node1"}));
    assert_eq!((&next["reason"], &next["note"]), (&json!("NoMasqueradeAddress"), &json!("no address")));
    events.tell(&refusals, Some(of_node.clone()));
    assert!(taken.try_recv().is_err());

    // Of a Service that is served, at a port of its own.
    let of_port = refusal(RefusedKind::HealthCheck, "s", "cannot listen");
    events.tell(&refusals, [of_node, of_port]);
    let (_, _, next) = taken.recv().await.unwrap();
    assert_eq!((&next["regarding"]["kind"], &next["regarding"]["name"]), (&json!("Service"), &json!("s")));
    assert_eq!((&next["reason"], &next["type"]), (&json!("FailedToStartServiceHealthcheck"), &json!("Warning")));
    assert!(taken.try_recv().is_err());

    // Of a Service that is edited, whenever it is.
    for why in ["spec.clusterIPs: 'x' is not an IP address", "spec.clusterIPs: 'y' is not an IP address"] {
        events.tell(&refusals, [refusal(RefusedKind::WrittenService, "s", why)]);
        let (_, _, next) = taken.recv().await.unwrap();
        assert_eq!((&next["reason"], &next["note"]), (&json!("ServiceNotAsWritten"), &json!(why)));
        events.tell(&refusals, [refusal(RefusedKind::WrittenService, "s", why)]);
        assert!(taken.try_recv().is_err());
    }
}

#[tokio::test]
async fn a_folder_has_no_events() {
    let events = Events::start(&Source::Dir("/nowhere".into()), "node1");
    events.tell(&[refusal(RefusedKind::Pod, "web", "why")].into(), None);
    assert!(events.0.is_none());
}

/// A tenant that edits Services again and again keeps nobody else from an Event, and nothing that does not fit.
#[tokio::test]
async fn a_namespace_that_edits_without_end_silences_itself_alone() {
    let now = Instant::now();
    let edits = (0..WRITTEN_OF_NAMESPACE).map(|number| refusal(RefusedKind::WrittenService, "s", &number.to_string()));
    let told: BTreeMap<Subject, Instant> = edits.map(|edit| (subject(&edit), now)).collect();
    let again = refusal(RefusedKind::WrittenService, "s", "again");
    let of_node = Refusal { key: ObjectKey::new("", "node1"), ..refusal(RefusedKind::Node, "node1", "no address") };
    let of_other = Refusal { key: ObjectKey::new("zz", "s"), ..again.clone() };
    let next = |refusals: &[&Refusal]| untold(&refusals.iter().copied().cloned().collect(), &[&told]);
    assert_eq!(next(&[&again]), None);
    assert_eq!(next(&[&again, &of_other]), Some(of_other.clone()));
    assert_eq!(next(&[&again, &of_other, &of_node]), Some(of_node));
    assert_eq!(next(&[&refusal(RefusedKind::Service, "s", "does not fit")]).unwrap().kind, RefusedKind::Service);
    // One of the same name that is made anew has an Event of its own.
    let anew = Refusal { uid: Some("another".to_owned()), ..of_other.clone() };
    assert_ne!(subject(&anew), subject(&of_other));
}
