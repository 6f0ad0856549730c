// SPDX-License-Identifier: Apache-2.0
//! Pages on the wire, between agents and clients of this version and those before.

use std::{io::BufReader, os::unix::net::UnixListener, thread};

use serde_json::{Value, json};
use weft_api::{Entries, List, MAX_PAGE_ENTRIES, PageQuery, RouteReport};

use super::*;

fn policies(count: usize) -> Vec<PolicyReport> {
    let policy = |number| PolicyReport {
        namespace: "default".into(),
        name: format!("p{number:04}"),
        directions: vec!["ingress".into()],
        selected: Vec::new(),
        rules: 0,
        state: "enforced".into(),
    };
    (0..count).map(policy).collect()
}

fn desired(count: usize) -> Desired {
    let route =
        RouteReport { node: "n2".into(), pod_cidr: "10.2.0.0/24".parse().unwrap(), via: "192.0.2.2".parse().unwrap() };
    Desired {
        policy_reports: policies(count),
        route_reports: vec![route],
        problems: vec!["svc.yaml: no".into()],
        ..Desired::default()
    }
}

/// All policies that a client is told, and in how many pages.
fn told(client: &mut Client) -> (Vec<PolicyReport>, usize) {
    let mut count = 0;
    let policies = client.pages(List::Policies, None).flat_map(|page| match page.unwrap() {
        Entries::Policies(policies) => {
            count += 1;
            policies
        }
        other => panic!("{other:?}"),
    });
    (policies.collect(), count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_all_pages_over_one_connection() {
    let count = 2 * MAX_PAGE_ENTRIES + 1;
    let server = serve_plan(View { node: "n1".into(), ..View::default() }, Planner::of(desired(count)));
    let socket = server.socket.clone();
    let client = tokio::task::spawn_blocking(move || {
        let mut client = Client::connect(socket, PATIENCE).unwrap();
        (told(&mut client), client.status().unwrap(), client.call(&Request::Status).unwrap())
    });
    let ((policies, pages), status, whole) = client.await.unwrap();
    assert_eq!((policies == self::policies(count), pages), (true, 3));
    let Answer::Status(whole) = whole else { panic!("{whole:?}") };
    assert_eq!((status.node.as_str(), status.routes.len()), ("n1", 1));
    assert_eq!((&status.routes, &status.problems), (&whole.routes, &whole.problems));
    let query = PageQuery { list: List::Policies, limit: Some(0), after: None, name: None };
    let error = refusal(call(&server, Request::List(query)).await);
    assert!(error.code == ErrorCode::Invalid && error.message.starts_with("limit: "), "{error}");
}

/// What clients of versions 1 and 2 say, byte by byte.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_know_no_pages_get_all_in_one_line() {
    let server = serve_plan(View::default(), Planner::of(desired(MAX_PAGE_ENTRIES + 1)));
    for greeting in ["", "{\"op\":\"hello\",\"oldest\":1,\"newest\":2}\n"] {
        let socket = server.socket.clone();
        let lines = tokio::task::spawn_blocking(move || {
            let mut stream = UnixStream::connect(socket).unwrap();
            stream.set_read_timeout(PATIENCE).unwrap();
            let requests = "{\"op\":\"policies\"}\n{\"op\":\"services\"}\n{\"op\":\"status\"}\n";
            stream.write_all(format!("{greeting}{requests}").as_bytes()).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            BufReader::new(stream).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
        });
        let lines: Vec<Value> = lines.await.unwrap();
        let [.., policies, services, status] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!(lines.len(), 3 + usize::from(!greeting.is_empty()));
        assert!(greeting.is_empty() || lines[0]["ok"]["value"]["version"] == 2, "{}", lines[0]);
        assert_eq!(policies["ok"]["kind"], "policies");
        assert_eq!(policies["ok"]["value"].as_array().unwrap().len(), MAX_PAGE_ENTRIES + 1);
        assert_eq!(services, &json!({"ok": {"kind": "services", "value": []}}));
        assert_eq!(status["ok"]["value"]["routes"][0]["node"], "n2");
        assert_eq!(status["ok"]["value"]["problems"], json!(["svc.yaml: no"]));
    }
}

/// An agent of version 2: what it is asked, and what it answers to each.
fn old_agent(listener: UnixListener, answers: Vec<(&'static str, Value)>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut writer = stream.try_clone().unwrap();
        let mut requests = BufReader::new(stream).lines();
        for (wanted, answer) in answers {
            let request: Value = serde_json::from_str(&requests.next().unwrap().unwrap()).unwrap();
            assert_eq!(request["op"], wanted);
            writeln!(writer, "{}", json!({"ok": answer})).unwrap();
        }
        assert!(requests.next().is_none(), "something else was asked");
    })
}

#[test]
fn an_agent_that_knows_no_pages_is_asked_for_all_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let whole = policies(MAX_PAGE_ENTRIES + 1);
    let status = json!({"version": "0.1.0", "api_version": 2, "node": "n1", "mode": "vxlan",
        "source": {"name": "none", "synced": true, "error": null}, "pod_cidrs": [], "addresses_used": [], "uplink": "eth0",
        "uptime_seconds": 1, "maps": [], "problems": ["svc.yaml: no"], "events_lost": 0,
        "routes": [{"node": "n2", "pod_cidr": "10.2.0.0/24", "via": "192.0.2.2"}]});
    let answers = vec![
        ("hello", json!({"kind": "hello", "value": {"version": 2, "agent": "0.1.0"}})),
        ("policies", json!({"kind": "policies", "value": whole})),
        ("status", json!({"kind": "status", "value": status})),
        ("vms", json!({"kind": "vms", "value": []})),
    ];
    let agent = old_agent(UnixListener::bind(&socket).unwrap(), answers);
    let mut client = Client::connect(&socket, PATIENCE).unwrap();
    let (policies, pages) = told(&mut client);
    assert_eq!((policies == whole, pages), (true, 1));
    let status = client.status().unwrap();
    assert_eq!((status.routes.len(), status.problems), (1, vec!["svc.yaml: no".to_owned()]));
    let vms: Vec<_> = client.pages(List::Vms, Some("web")).collect::<Result<_, _>>().unwrap();
    assert!(matches!(&vms[..], [Entries::Vms(vms)] if vms.is_empty()));
    let query = PageQuery { list: List::Policies, limit: None, after: None, name: None };
    let error = refusal(client.call(&Request::List(query)));
    assert!(error.code == ErrorCode::Version && error.message.contains("update the agent"), "{error}");
    drop(client);
    agent.join().unwrap();
}

/// A Service in parts is told when it is whole, also where it or the agent has gone between them.
#[test]
fn parts_of_a_service_are_put_together() {
    let service = |name: &str, backends: &[u8]| {
        let backend = |last: &u8| json!({"address": format!("10.0.0.{last}"), "port": 80, "node": null, "state": "ready", "weight": 7});
        let backends: Vec<_> = backends.iter().map(backend).collect();
        json!({"namespace": "x", "name": name, "cluster_ips": [], "external_ips": [],
            "affinity_seconds": 10_800, "algorithm": "random",
            "ports": [{"name": "", "protocol": "TCP", "port": 80, "node_port": null, "backends": backends}]})
    };
    let page = |services: Vec<Value>, next: Option<&str>, partial: bool| {
        let page = json!({"entries": {"services": services}, "continue": next, "partial": partial});
        ("list", json!({"kind": "page", "value": page}))
    };
    let hello = || ("hello", json!({"kind": "hello", "value": {"version": 3, "agent": "0.1.0"}}));
    let told = |pages: Vec<(&'static str, Value)>| {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let agent = old_agent(UnixListener::bind(&socket).unwrap(), [vec![hello()], pages].concat());
        let mut client = Client::connect(&socket, PATIENCE).unwrap();
        let told = client.pages(List::Services, None).flat_map(|page| match page.unwrap() {
            Entries::Services(services) => services.into_iter().map(|service| serde_json::to_value(service).unwrap()),
            other => panic!("{other:?}"),
        });
        let told: Vec<Value> = told.collect();
        drop(client);
        agent.join().unwrap();
        told
    };
    let all = told(vec![
        page(vec![service("a", &[1])], Some("x/a"), false),
        page(vec![service("b", &[1, 2])], Some("x/b 0 10.0.0.2:80"), true),
        page(vec![service("b", &[3])], Some("x/b 0 10.0.0.3:80"), true),
        page(vec![service("b", &[4]), service("c", &[5])], None, false),
    ]);
    assert_eq!(all, [service("a", &[1]), service("b", &[1, 2, 3, 4]), service("c", &[5])]);
    let gone = told(vec![
        page(vec![service("b", &[1, 2])], Some("x/b 0 10.0.0.2:80"), true),
        page(vec![service("c", &[5])], None, false),
    ]);
    assert_eq!(gone, [service("b", &[1, 2]), service("c", &[5])]);
    let last =
        told(vec![page(vec![service("b", &[1, 2])], Some("x/b 0 10.0.0.2:80"), true), page(vec![], None, false)]);
    assert_eq!(last, [service("b", &[1, 2])]);
}
