// SPDX-License-Identifier: Apache-2.0
use std::{
    io::{BufRead as _, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::sync::mpsc;
use weft_abi::{Addr, DropReason, Event, EventKind, FrontendKey};
use weft_api::{
    Answer, ApiError, AttachmentId, Client, ClientError, ErrorCode, FlowEvent, FlowVerdict, MAX_REQUEST, PolicyReport,
    Request,
};

use super::{Command, Shared, View, api, flows};
use crate::{model::Desired, plan::Planner};

mod health;
mod pages;
mod probes;

const PATIENCE: Option<Duration> = Some(Duration::from_secs(20));

struct Server {
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

fn serve(view: View) -> Server {
    serve_plan(view, Planner::default())
}

fn serve_plan(view: View, planner: Planner) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("below/agent.sock");
    let (shared, commands) = Shared::with(view, planner);
    tokio::spawn(api::serve(api::listen(&socket).unwrap(), shared.clone()));
    Server { shared, commands, socket, _dir: dir }
}

async fn call(server: &Server, request: Request) -> Result<Answer, ClientError> {
    let socket = server.socket.clone();
    tokio::task::spawn_blocking(move || Client::connect(socket, PATIENCE)?.call(&request)).await.unwrap()
}

/// Says `bytes` to an agent and hangs up; all that it answers.
async fn converse(bytes: &'static [u8]) -> String {
    let server = serve(View::default());
    let socket = server.socket.clone();
    let text = tokio::task::spawn_blocking(move || {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(PATIENCE).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    text.await.unwrap()
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
        rules: Vec::new(),
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
    let server = serve_plan(View { node: "n1".into(), ..View::default() }, Planner::of(desired));
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
    let text = converse(b"{\"op\":\"dance\"}\n{\"op\":\"ready\"}\n{\"op\":\"re").await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].contains("invalid") && lines[0].contains("dance"), "{text}");
    assert!(lines[1].contains("done"), "{text}");
    assert!(lines[2].contains("cut off"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_agreed_on_and_the_one_before_goes_on() {
    // At last as a plugin of version 1 begins.
    let text = converse(
        b"{\"op\":\"hello\",\"oldest\":1,\"newest\":1}\n{\"op\":\"hello\",\"oldest\":1,\"newest\":9}\n\
          {\"op\":\"hello\",\"oldest\":8,\"newest\":9}\n{\"op\":\"ready\"}\n",
    )
    .await;
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].contains("\"version\":1") && lines[1].contains("\"version\":3"), "{text}");
    assert!(
        lines[2].contains("\"version\"") && lines[2].contains("8 to 9") && lines[2].contains("update the agent"),
        "{text}"
    );
    assert!(lines[3].contains("done"), "{text}");
}

/// An agent of version 1 serves what it knows, and the client says what it does not.
#[test]
fn an_agent_without_a_greeting_is_of_version_1() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let agent = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let (mut writer, mut requests) = (stream.try_clone().unwrap(), std::io::BufReader::new(stream).lines());
        let mut next = || requests.next().map(Result::unwrap);
        assert!(next().unwrap().contains("hello"));
        writer.write_all(b"{\"error\":{\"code\":\"invalid\",\"message\":\"the request does not parse\"}}\n").unwrap();
        assert!(next().unwrap().contains("ready"));
        writer.write_all(b"{\"ok\":{\"kind\":\"done\"}}\n").unwrap();
        next()
    });
    let mut client = Client::connect(&socket, PATIENCE).unwrap();
    assert!(matches!(client.call(&Request::Ready).unwrap(), Answer::Done));
    let query = weft_api::ExplainQuery { from: "a".into(), to: "b".into(), port: 1, source_port: 1, protocol: 6 };
    let error = refusal(client.call(&Request::Explain(query)));
    assert!(error.code == ErrorCode::Version && error.message.contains("update the agent"), "{error}");
    drop(client);
    assert_eq!(agent.join().unwrap(), None, "nothing else was sent");
}

/// 40,000 attachments with long names are 8 MiB: more than any node has.
#[tokio::test(flavor = "multi_thread")]
async fn gc_may_name_thousands_of_attachments() {
    let mut server = serve(View::default());
    let socket = server.socket.clone();
    let known = |number| AttachmentId { network: "n".repeat(60), container_id: format!("{number:064}"), ..id() };
    let client = tokio::task::spawn_blocking(move || {
        let valid = (0..40_000).map(known).collect();
        Client::connect(socket, PATIENCE)?.call(&Request::Gc { network: "weft".into(), valid })
    });
    let (request, reply) = tokio::select! {
        command = server.commands.recv() => command.unwrap(),
        () = tokio::time::sleep(PATIENCE.unwrap()) => panic!("the engine was not asked"),
    };
    let Request::Gc { valid, .. } = request else { panic!("{request:?}") };
    assert_eq!((valid.len(), valid.last()), (40_000, Some(&known(39_999))));
    reply.send(Ok(Answer::Released(vec![id()]))).unwrap();
    assert!(matches!(client.await.unwrap(), Ok(Answer::Released(released)) if released == [id()]));
}

#[test]
fn a_request_that_is_too_long_is_refused_with_its_limit() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let request = Request::Gc { network: "n".repeat(MAX_REQUEST), valid: Vec::new() };
    let error = refusal(Client::connect(&socket, PATIENCE).unwrap().call(&request));
    assert!(error.code == ErrorCode::Invalid && error.message.contains("33554432"), "{error}");
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
    let key = FrontendKey::of_cluster(addr(96), 80_u16.to_be(), 6);
    let desired = Desired {
        names: [(addr(1), "default/client".to_owned()), (addr(2), "default/server".to_owned())].into(),
        service_names: [(key, "default/web".to_owned())].into(),
        ..Desired::default()
    };
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
    let event = flows::describe(&raw, &Planner::of(desired), 100, &mut flows::Ifnames::default());
    assert_eq!((event.time_ns, event.verdict, event.reason.as_str()), (105, FlowVerdict::Dropped, "policy-ingress"));
    assert_eq!(event.source_name.as_deref(), Some("default/client"));
    assert_eq!(event.destination_name.as_deref(), Some("default/server"));
    assert_eq!(event.service.as_deref(), Some("default/web"));
    assert_eq!(event.backend, Some(("10.0.0.2".parse().unwrap(), 8080)));
    assert_eq!((event.source_port, event.destination_port, event.ifname.as_str()), (40_000, 80, "lo"));
}
