// SPDX-License-Identifier: Apache-2.0

//! Random Services, policies and packets.

use std::fmt;

use serde_json::{Value, json};

use super::{PEERS, PORTS};
use crate::{random::Random, shell::Protocol};

/// Ports of the Services; on the second nothing is offered.
const SERVICE_PORTS: [u16; 2] = [80, 81];

/// Objects that hold for some cases.
pub(super) struct Round {
    pub(super) services: Vec<Value>,
    pub(super) policies: Vec<Value>,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for object in self.services.iter().chain(&self.policies) {
            writeln!(f, "{object}")?;
        }
        Ok(())
    }
}

impl Round {
    /// Number of the guest's Service.
    pub(super) const GUEST: usize = PEERS.len();
    /// Number of the container's Service.
    pub(super) const CONTAINER: usize = PEERS.len() + 1;

    /// The cluster address of the Service with a number.
    pub(super) fn vip(number: usize, v6: bool) -> String {
        if v6 { format!("fd00:96::1{number}") } else { format!("10.96.0.1{number}") }
    }

    pub(super) fn generate(number: usize, random: &mut Random) -> Self {
        let mut services: Vec<Value> = PEERS
            .iter()
            .enumerate()
            .map(|(peer, (_, pod, _))| {
                let (namespace, name) = pod.split_once('/').unwrap_or_default();
                service(peer, namespace, name, &Shape::generate(random))
            })
            .collect();
        // Those of the two subjects have the same shape.
        let shape = Shape::generate(random);
        services.push(service(Self::GUEST, "default", "guest", &shape));
        services.push(service(Self::CONTAINER, "default", "container", &shape));
        let count = random.below(4);
        let mut policies: Vec<Value> =
            (0..count).map(|index| policy(&format!("round-{number}-{index}"), random)).collect();
        // Tells that the round's objects have arrived, also where it has no other policy.
        let marker = json!({"podSelector": {"matchLabels": {"nobody": "has-this"}}, "policyTypes": ["Ingress"]});
        policies.push(network_policy("default", &format!("round-{number}-end"), &marker));
        Self { services, policies }
    }
}

/// What a Service is like.
struct Shape {
    target: u16,
    has_udp: bool,
    has_backend: bool,
}

impl Shape {
    fn generate(random: &mut Random) -> Self {
        Self { target: *random.pick(&PORTS), has_udp: random.chance(80), has_backend: random.chance(90) }
    }
}

fn service(number: usize, namespace: &str, pod: &str, shape: &Shape) -> Value {
    let vips = [Round::vip(number, false), Round::vip(number, true)];
    let mut ports =
        vec![json!({"name": "tcp", "protocol": "TCP", "port": SERVICE_PORTS[0], "targetPort": shape.target})];
    if shape.has_udp {
        ports.push(json!({"name": "udp", "protocol": "UDP", "port": SERVICE_PORTS[0], "targetPort": shape.target}));
    }
    let selected = if shape.has_backend { pod } else { "nobody" };
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": format!("svc-{pod}")},
        "spec": {
            "clusterIP": vips[0], "clusterIPs": vips, "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack", "selector": {"name": selected}, "ports": ports,
        },
    })
}

fn network_policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec,
    })
}

/// A policy of the subjects, or of the peers of one namespace.
fn policy(name: &str, random: &mut Random) -> Value {
    let (namespace, selector) = if random.chance(70) {
        ("default", json!({"matchLabels": {"kind": "subject"}}))
    } else {
        (*random.pick(&["default", "other"]), json!({"matchExpressions": [{"key": "color", "operator": "Exists"}]}))
    };
    let ingress = random.chance(60);
    let types = if ingress { "Ingress" } else { "Egress" };
    let rules: Vec<Value> = (0..random.below(3)).map(|_| rule(if ingress { "from" } else { "to" }, random)).collect();
    network_policy(
        namespace,
        name,
        &json!({"podSelector": selector, "policyTypes": [types], (if ingress { "ingress" } else { "egress" }): rules}),
    )
}

fn rule(direction: &str, random: &mut Random) -> Value {
    let peers: Vec<Value> = (0..1 + random.below(2)).map(|_| peer(random)).collect();
    let mut rule = json!({direction: peers});
    if random.chance(50) {
        rule["ports"] = json!([port(random)]);
    }
    rule
}

fn peer(random: &mut Random) -> Value {
    let color = json!({"matchLabels": {"color": random.pick(&["red", "blue"])}});
    match random.below(5) {
        0 => json!({"podSelector": color}),
        1 => json!({"namespaceSelector": {"matchLabels": {"kind": "other"}}, "podSelector": color}),
        2 => json!({"namespaceSelector": {}}),
        3 => json!({"ipBlock": {"cidr": "10.244.0.0/16", "except": [format!("10.244.{}.0/24", 1 + random.below(2))]}}),
        _ => {
            json!({"ipBlock": {"cidr": "fd00:244::/32", "except": [format!("fd00:244:0:{}::/64", 1 + random.below(2))]}})
        }
    }
}

fn port(random: &mut Random) -> Value {
    let protocol = *random.pick(&["TCP", "UDP"]);
    match random.below(3) {
        0 => json!({"protocol": protocol}),
        1 => json!({"protocol": protocol, "port": PORTS[0], "endPort": PORTS[1]}),
        _ => json!({"protocol": protocol, "port": random.pick(&PORTS)}),
    }
}

/// From the subject to the peer, or the other way.
#[derive(Clone, Copy, Debug)]
pub(super) enum Direction {
    Out,
    In,
}

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Packet {
    Direct { protocol: Protocol, port: u16 },
    Service { protocol: Protocol, port: u16 },
    Ping { bytes: usize },
}

/// One question, asked of both.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) direction: Direction,
    pub(super) peer: usize,
    pub(super) v6: bool,
    pub(super) packet: Packet,
}

impl Case {
    pub(super) fn generate(random: &mut Random) -> Self {
        let protocol = *random.pick(&[Protocol::Tcp, Protocol::Udp]);
        let packet = match random.below(10) {
            // The third port is one where nobody listens.
            0..=3 => Packet::Direct { protocol, port: *random.pick(&[PORTS[0], PORTS[1], 9999]) },
            4..=7 => {
                Packet::Service { protocol, port: if random.chance(90) { SERVICE_PORTS[0] } else { SERVICE_PORTS[1] } }
            }
            8 => Packet::Ping { bytes: 56 },
            _ => Packet::Ping { bytes: 4000 },
        };
        Self {
            direction: *random.pick(&[Direction::Out, Direction::In]),
            peer: random.below(PEERS.len()),
            v6: random.chance(50),
            packet,
        }
    }
}
