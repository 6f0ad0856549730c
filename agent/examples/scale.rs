// SPDX-License-Identifier: Apache-2.0
//! What a change costs at Kubernetes' limits: 5,000 nodes, 150,000 pods, 10,000 Services with 20 endpoints each. Maps are in
//! memory, so that what the kernel takes for its writes is not in it. `cargo run --release -p weft-agent --example scale`

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;
use serde_json::{Value, from_value, json};
use weft_agent::{
    model::{Attachment, Changed, Deltas, Mode, News, NodeFacts, ObjectKey, Room, Standing},
    plan::Planner,
};

const NODES: u32 = 5_000;
const PODS: u32 = 150_000;
const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 20;
const TURNS: u32 = 200;

fn object<T: DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(from_value(value).expect("an object of the API"))
}

fn node(n: u32) -> Value {
    json!({"metadata": {"name": format!("n{n}")}, "spec": {"podCIDRs": [format!("10.{}.{}.0/24", n >> 8, n & 255)]},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("172.16.{}.{}", n >> 8, n & 255)}]}})
}

fn pod(n: u32, labels: &str) -> Value {
    let (node, last) = (n % NODES, 2 + n / NODES);
    json!({"metadata": {"namespace": format!("ns{}", n % 500), "name": format!("p{n}"), "uid": format!("uid-{n}"),
            "labels": {"app": labels, "pod-template-hash": format!("{:x}", n % 5000)}},
        "spec": {"nodeName": format!("n{node}"), "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 80}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": format!("10.{}.{}.{last}", node >> 8, node & 255)}]}})
}

fn service(n: u32) -> Value {
    json!({"metadata": {"namespace": format!("ns{}", n % 500), "name": format!("s{n}")},
        "spec": {"clusterIP": format!("10.96.{}.{}", n >> 8, n & 255), "ports": [{"port": 80}]}})
}

fn slice(n: u32, ready: bool) -> Value {
    let endpoint = |e: u32| {
        let address = format!("10.{}.{}.{}", (n * 7 + e) % 20, n & 255, 2 + e);
        json!({"addresses": [address], "conditions": {"ready": ready || e > 0}, "nodeName": format!("n{}", n + e)})
    };
    let endpoints: Vec<Value> = (0..ENDPOINTS).map(endpoint).collect();
    json!({"metadata": {"namespace": format!("ns{}", n % 500), "name": format!("s{n}-x"), "labels": {"kubernetes.io/service-name": format!("s{n}")}},
        "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": endpoints})
}

fn all<T: DeserializeOwned>(values: impl Iterator<Item = Value>) -> Changed<T> {
    let keyed = values.map(|value| (key(&value), object(value)));
    Changed::all(keyed.collect())
}

fn key(value: &Value) -> ObjectKey {
    let text = |field: &str| value["metadata"][field].as_str().unwrap_or_default().to_owned();
    ObjectKey::new(&text("namespace"), &text("name"))
}

fn one<T: DeserializeOwned>(value: Value) -> Changed<T> {
    Changed { all: false, objects: BTreeMap::from([(key(&value), Some(object(value)))]) }
}

fn attachment(n: u32) -> Arc<Attachment> {
    let pod = pod(n, "a");
    let address = pod["status"]["podIPs"][0]["ip"].as_str().unwrap_or_default().to_owned();
    object(json!({
        "spec": {"id": {"network": "weft", "container_id": format!("c{n}"), "ifname": "eth0"}, "netns": "", "port": "veth",
            "pod": {"namespace": pod["metadata"]["namespace"], "name": pod["metadata"]["name"], "uid": null},
            "addresses": [], "mac": null, "mtu": null, "queues": 1, "owner": null, "group": null},
        "allocation": {"addresses": [{"address": format!("{address}/32"), "gateway": "10.0.0.1"}], "mac": "02:00:00:00:00:01",
            "gateway_mac": "02:00:00:00:00:02", "host_ifname": format!("weft{n}"), "mtu": 1450, "routes": [],
            "dns": {}, "socket_path": null},
        "link": {"ifindex": 100 + n, "ifname": format!("weft{n}")}
    }))
}

fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find(|line| line.starts_with("RssAnon")).unwrap_or("RssAnon: ?").to_owned()
}

struct Bench {
    planner: Planner,
    facts: NodeFacts,
    attachments: Vec<Arc<Attachment>>,
}

impl Bench {
    fn turn(&mut self, deltas: Deltas) -> usize {
        let standing = Standing { synced: true, ..Standing::default() };
        self.planner.take(News { deltas, standing, since: None });
        self.planner.observe(&self.facts, self.attachments.clone());
        let room = Room {
            services: 65_536,
            members: 524_288,
            peers: 524_288,
            terms: weft_abi::TERMS_PER_CLASS,
            classes: 65_536,
            rules: 131_072,
            blocks: 65_536,
            work: Room::WORK,
        };
        let patch = self.planner.patch(&room);
        patch.frontends.len()
            + patch.balancers.len()
            + patch.peers.len()
            + patch.classes.len()
            + patch.ports.len()
            + patch.remotes.len()
    }

    fn measure(&mut self, what: &str, change: impl Fn(u32, &mut Self) -> Deltas) {
        let mut times: Vec<Duration> = (0..TURNS)
            .map(|turn| {
                let deltas = change(turn, self);
                let began = Instant::now();
                let _ = self.turn(deltas);
                began.elapsed()
            })
            .collect();
        times.sort_unstable();
        println!("{what}: p50 {:?}, p99 {:?}", times[times.len() / 2], times[times.len() * 99 / 100]);
    }
}

/// Policies as `cargo xtask bench scale` has them: each selects one of the pods here, and lets one application in.
fn one_of_many(n: u32, port: u32) -> Value {
    let app = format!("app-{}", n * 7 % (PODS / ENDPOINTS));
    json!({"metadata": {"namespace": "ns0", "name": format!("many-{n}"), "uid": format!("many-{n}")}, "spec": {
        "podSelector": {"matchLabels": {"app": format!("local-{}", n % 30)}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": app}}}],
            "ports": [{"protocol": "TCP", "port": port}]}]}})
}

/// Pods of applications, and those here each with a name of its own.
fn applied(n: u32) -> Value {
    let here = n.is_multiple_of(NODES) && n / NODES < 30;
    pod(n, &if here { format!("local-{}", n / NODES) } else { format!("app-{}", n / ENDPOINTS) })
}

fn policy() -> Value {
    json!({"metadata": {"namespace": "ns0", "name": "p"}, "spec": {"podSelector": {},
        "ingress": [{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "a"}}}], "ports": [{"port": 80}]}]}})
}

fn main() {
    let facts = NodeFacts {
        plain_cidrs: Vec::new(),
        exposure: Default::default(),
        api_servers: Some(vec![]),
        name: "n0".into(),
        mode: Mode::Vxlan,
        config: weft_abi::Config { host_ifindex: 2, ..weft_abi::Config::default() },
        pod_cidrs: vec!["10.0.0.0/24".parse().expect("a prefix")],
        devices: BTreeMap::new(),
        host_addresses: vec![IpAddr::from([10, 0, 0, 1])],
        reserved: vec![],
        service_cidrs: vec!["10.96.0.0/16".parse().expect("a prefix")],
        next_hops: BTreeMap::new(),
        checks_neighbours: true,
    };
    let attachments = (0..30).map(|n| attachment(n * NODES)).collect();
    let mut bench = Bench { planner: Planner::default(), facts, attachments };
    println!("before: {}", resident());
    let deltas = Deltas {
        nodes: all((0..NODES).map(node)),
        namespaces: all((0..500).map(|n| json!({"metadata": {"name": format!("ns{n}")}}))),
        pods: all((0..PODS).map(|n| pod(n, "a"))),
        services: all((0..SERVICES).map(service)),
        slices: all((0..SERVICES).map(|n| slice(n, true))),
        policies: Changed::all(BTreeMap::new()),
        service_cidrs: Changed::all(BTreeMap::new()),
    };
    println!("objects: {}", resident());
    let began = Instant::now();
    let writes = bench.turn(deltas);
    println!("cold plan: {:?}, {writes} writes, {}", began.elapsed(), resident());
    bench.measure("one endpoint", |turn, _| Deltas { slices: one(slice(turn, turn % 2 == 1)), ..Deltas::default() });
    bench.measure("one endpoint, the same slice", |turn, _| Deltas {
        slices: one(slice(7, turn % 2 == 1)),
        ..Deltas::default()
    });
    bench.measure("a pod elsewhere", |turn, _| Deltas { pods: one(pod(turn + 1, "b")), ..Deltas::default() });
    bench.measure("ADD", |turn, bench| {
        let n = 31 + turn;
        bench.attachments.push(attachment(n * NODES));
        Deltas { pods: one(pod(n * NODES, "a")), ..Deltas::default() }
    });
    bench.attachments.truncate(30);
    let began = Instant::now();
    let writes = bench.turn(Deltas { policies: one(policy()), ..Deltas::default() });
    println!("a policy that knows every pod: {:?}, {writes} writes, {}", began.elapsed(), resident());
    bench.measure("a pod elsewhere, with that policy", |turn, _| Deltas {
        pods: one(pod(turn + 1, if turn % 2 == 0 { "a" } else { "b" })),
        ..Deltas::default()
    });
    bench.measure("ADD, with that policy", |turn, bench| {
        bench.attachments.push(attachment((31 + turn) * NODES));
        Deltas::default()
    });
    bench.attachments.truncate(30);
    let pods = all((0..PODS).map(applied));
    bench.turn(Deltas { policies: Changed::all(BTreeMap::new()), pods, ..Deltas::default() });
    bench.planner.pack();
    for policies in [1_000, 10_000] {
        let many = (0..policies).map(|n| one_of_many(n, 1000 + n));
        let began = Instant::now();
        let before = resident();
        bench.turn(Deltas { policies: all(many), ..Deltas::default() });
        bench.planner.pack();
        println!("{policies} policies: {:?}, {before} -> {}", began.elapsed(), resident());
        bench.measure("a port of a policy", |turn, _| Deltas {
            policies: one(one_of_many(31, 40_000 + turn)),
            ..Deltas::default()
        });
    }
    bench.measure("a node", |turn, _| Deltas { nodes: one(node(NODES + turn)), ..Deltas::default() });
}
