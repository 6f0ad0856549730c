// SPDX-License-Identifier: Apache-2.0
use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::sync::mpsc;
use weft_abi::{Addr, DropReason, Event, EventKind, ServiceKey};
use weft_api::{
    Answer, ApiError, AttachmentId, Client, ClientError, ErrorCode, FlowEvent, FlowVerdict, PolicyReport, Request,
};

use super::{Command, Shared, View, api, flows, health};
use crate::model::Desired;

const PATIENCE: Option<Duration> = Some(Duration::from_secs(20));

struct Server {
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

fn serve(view: View) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("below/agent.sock");
    let (shared, commands) = Shared::new(view);
    tokio::spawn(api::serve(api::listen(&socket).unwrap(), shared.clone()));
    Server { shared, commands, socket, _dir: dir }
}

async fn call(server: &Server, request: Request) -> Result<Answer, ClientError> {
    let socket = server.socket.clone();
    tokio::task::spawn_blocking(move || Client::connect(socket, PATIENCE)?.call(&request)).await.unwrap()
}

fn refusal(result: Result<Answer, ClientError>) -> ApiError {
    match result {
        Err(ClientError::Refused(error)) => error,
        other => panic!("not refused: {other:?}"),
    }
}

fn id() -> AttachmentId {
    AttachmentId { network: "weft".into(), container_id: "c".into(), ifname: "eth0".into() }
}

fn event(number: u16) -> FlowEvent {
    FlowEvent {
        time_ns: number.into(),
        verdict: FlowVerdict::Forwarded,
        reason: "local".into(),
        protocol: "TCP".into(),
        source: "10.0.0.1".parse().unwrap(),
        source_port: number,
        destination: "10.0.0.2".parse().unwrap(),
        destination_port: 80,
        backend: None,
        source_name: None,
        destination_name: None,
        service: None,
        ifname: "eth0".into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_are_answered_from_the_view() {
    let policy = PolicyReport {
        namespace: "default".into(),
        name: "deny".into(),
        directions: vec!["ingress".into()],
        selected: Vec::new(),
        rules: 0,
        state: "enforced".into(),
    };
    let desired = Desired { policy_reports: vec![policy.clone()], ..Desired::default() };
    let server = serve(View { node: "n1".into(), desired: Arc::new(desired), ..View::default() });
    assert!(matches!(call(&server, Request::Ready).await, Ok(Answer::Done)));
    assert!(matches!(call(&server, Request::Policies).await, Ok(Answer::Policies(p)) if p == [policy]));
    assert!(matches!(call(&server, Request::Status).await, Ok(Answer::Status(s)) if s.node == "n1"));
    assert!(matches!(call(&server, Request::Endpoints).await, Ok(Answer::Endpoints(e)) if e.is_empty()));
    assert_eq!(refusal(call(&server, Request::Drops).await).code, ErrorCode::NotReady);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_not_ready_says_why() {
    let server = serve(View { not_ready: Some("dir:/m: not synced yet".into()), ..View::default() });
    for request in [Request::Ready, Request::Release { id: id() }] {
        let error = refusal(call(&server, request).await);
        assert!(error.code == ErrorCode::NotReady && error.message.contains("dir:/m"), "{error:?}");
    }
    assert!(matches!(call(&server, Request::Status).await, Ok(Answer::Status(s)) if s.not_ready.is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_go_to_the_engine_and_its_answer_comes_back() {
    let mut server = serve(View::default());
    let socket = server.socket.clone();
    let client = tokio::task::spawn_blocking(move || {
        let mut client = Client::connect(socket, PATIENCE).unwrap();
        // One connection carries one request after the other.
        [client.call(&Request::Release { id: id() }), client.call(&Request::Release { id: id() })]
    });
    let (request, reply) = server.commands.recv().await.unwrap();
    assert!(matches!(request, Request::Release { id: asked } if asked == id()));
    reply.send(Ok(Answer::Done)).unwrap();
    let (_, reply) = server.commands.recv().await.unwrap();
    reply.send(Err(ApiError { code: ErrorCode::Io, message: "disk".into() })).unwrap();
    let [first, second] = client.await.unwrap();
    assert!(matches!(first, Ok(Answer::Done)));
    assert_eq!(refusal(second).code, ErrorCode::Io);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_ends_leaves_nobody_waiting() {
    let server = serve(View::default());
    let Server { commands, shared, .. } = server;
    drop(commands);
    assert_eq!(shared.ask(Request::Release { id: id() }).await.unwrap_err().code, ErrorCode::NotReady);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_request_is_refused_and_the_connection_goes_on() {
    let server = serve(View::default());
    let socket = server.socket.clone();
    let text = tokio::task::spawn_blocking(move || {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(PATIENCE).unwrap();
        stream.write_all(b"{\"op\":\"dance\"}\n{\"op\":\"ready\"}\n{\"op\":\"re").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    let text = text.await.unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].contains("invalid") && lines[0].contains("dance"), "{text}");
    assert!(lines[1].contains("done"), "{text}");
    assert!(lines[2].contains("cut off"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_are_remembered_up_to_a_bound_and_followed() {
    let server = serve(View::default());
    for number in 0..=u16::try_from(flows::REMEMBERED).unwrap() {
        server.shared.flows.push(event(number));
    }
    let answer = call(&server, Request::Flows { last: usize::MAX, follow: false }).await.unwrap();
    let Answer::Flows(events) = answer else { panic!("{answer:?}") };
    assert_eq!((events.len(), events[0].source_port), (flows::REMEMBERED, 1));

    let socket = server.socket.clone();
    let (subscribed, wait) = tokio::sync::oneshot::channel();
    let follower = tokio::task::spawn_blocking(move || {
        let mut client = Client::connect(socket, PATIENCE).unwrap();
        let first = client.call(&Request::Flows { last: 2, follow: true }).unwrap();
        subscribed.send(()).unwrap();
        (first, client.next_answer().unwrap())
    });
    wait.await.unwrap();
    server.shared.flows.push(event(7));
    let (first, second) = follower.await.unwrap();
    assert!(matches!(first, Answer::Flows(events) if events.len() == 2));
    assert!(matches!(second, Answer::Flows(events) if events == [event(7)]));
}

#[test]
fn an_event_is_named() {
    let addr = |last| Addr::v4(u32::from_ne_bytes([10, 0, 0, last]));
    let key = ServiceKey { addr: addr(96), port: 80_u16.to_be(), protocol: 6, pad: 0 };
    let desired = Desired {
        names: [(addr(1), "default/client".to_owned()), (addr(2), "default/server".to_owned())].into(),
        service_names: [(key, "default/web".to_owned())].into(),
        ..Desired::default()
    };
    let view = View { desired: Arc::new(desired), ..View::default() };
    let raw = Event {
        time_ns: 5,
        ifindex: 1,
        src: addr(1),
        dst: addr(96),
        backend: addr(2),
        sport: 40_000_u16.to_be(),
        dport: 80_u16.to_be(),
        backend_port: 8080_u16.to_be(),
        protocol: 6,
        kind: EventKind::Drop as u8,
        reason: DropReason::PolicyIngress as u8,
        ..Event::default()
    };
    let event = flows::describe(&raw, &view, 100, &mut flows::Ifnames::default());
    assert_eq!((event.time_ns, event.verdict, event.reason.as_str()), (105, FlowVerdict::Dropped, "policy-ingress"));
    assert_eq!(event.source_name.as_deref(), Some("default/client"));
    assert_eq!(event.destination_name.as_deref(), Some("default/server"));
    assert_eq!(event.service.as_deref(), Some("default/web"));
    assert_eq!(event.backend, Some(("10.0.0.2".parse().unwrap(), 8080)));
    assert_eq!((event.source_port, event.destination_port, event.ifname.as_str()), (40_000, 80, "lo"));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_tells_readiness_and_metrics() {
    let (shared, _commands) = Shared::new(View { not_ready: Some("starting".into()), ..View::default() });
    let listener = health::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(health::serve(listener, shared.clone()));
    let get = |path: &'static str| {
        tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(PATIENCE).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        })
    };
    let not_ready = get("/readyz").await.unwrap();
    assert!(not_ready.starts_with("HTTP/1.1 503") && not_ready.ends_with("starting\n"), "{not_ready}");
    assert!(get("/healthz").await.unwrap().starts_with("HTTP/1.1 200"));
    assert!(get("/").await.unwrap().starts_with("HTTP/1.1 404"));
    shared.publish(|view| {
        view.not_ready = None;
        (view.pod_cidrs, view.addresses_used) = (vec!["10.1.0.0/24".parse().unwrap()], vec![(3, 253)]);
    });
    assert!(get("/readyz").await.unwrap().starts_with("HTTP/1.1 200"));
    let metrics = get("/metrics").await.unwrap();
    assert!(metrics.contains("weft_ready 1\n") && metrics.ends_with("# EOF\n"), "{metrics}");
    for (name, value) in [("addresses_used", 3), ("addresses", 253)] {
        let line = format!("\nweft_{name}{{pool=\"10.1.0.0/24\"}} {value}\n");
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataplane_that_follows_no_more_ends_readiness_and_goes_on_answering() {
    let failing = Some("3 passes in a row broke off".to_owned());
    let server = serve(View { failing, broken_passes: 3, ..View::default() });
    let listener = health::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(health::serve(listener, server.shared.clone()));
    let text = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(PATIENCE).unwrap();
        write!(stream, "GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    let text = text.await.unwrap();
    assert!(text.starts_with("HTTP/1.1 503") && text.ends_with("3 passes in a row broke off\n"), "{text}");
    assert!(matches!(call(&server, Request::Ready).await, Ok(Answer::Done)));
}
