// SPDX-License-Identifier: Apache-2.0
//! Tests of the plan as a whole.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use crate::model::objects::{Namespace, Pod};
use serde_json::{Value, from_value, json};
use weft_abi::{Addr, AddressKey, Config};
use weft_api::{Mac, PortKind, PortLink};

use self::{programs::Programs, whole::plan};
use super::{address::cidr_key, policy::Held};
use crate::model::{Attachment, Desired, Mode, NodeFacts, Numbers, ObjectKey, Room, Snapshot};

mod affinity;
mod capacity;
mod choice;
mod classes;
mod health_checks;
mod host_ports;
mod lists;
mod oracle;
mod planner;
mod policy;
pub(crate) mod programs;
mod properties;
mod routes;
mod services;
mod whole;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMP: u8 = 1;

/// A cluster, this node, and the numbers so far.
#[derive(Clone, Debug)]
struct World {
    snapshot: Snapshot,
    facts: NodeFacts,
    attachments: Vec<Arc<Attachment>>,
    numbers: Numbers,
    limits: Limits,
    /// What stands in the maps: the last plan.
    standing: Desired,
}

/// How much the maps hold.
#[derive(Clone, Copy, Debug)]
struct Limits {
    services: usize,
    members: usize,
    peers: usize,
    classes: usize,
    terms: usize,
    rules: usize,
    blocks: usize,
    work: u64,
}

impl Limits {
    fn room(self) -> Room {
        let Self { services, members, peers, classes, terms, rules, blocks, work } = self;
        Room { services, members, peers, classes, terms, rules, blocks, work }
    }
}

const WIDE: Limits = Limits {
    services: 1 << 16,
    members: 1 << 18,
    peers: 1 << 19,
    classes: 1 << 16,
    terms: weft_abi::TERMS_PER_CLASS,
    rules: 1 << 16,
    blocks: 1 << 16,
    work: Room::WORK,
};

impl Default for World {
    fn default() -> Self {
        let config = Config { host_ifindex: 2, ..Config::default() };
        let facts = NodeFacts {
            name: "here".into(),
            mode: Mode::Vxlan,
            config,
            pod_cidrs: vec![],
            devices: BTreeMap::new(),
            plain_cidrs: Vec::new(),
            exposure: Default::default(),
            api_servers: Some(vec![]),
            host_addresses: vec![],
            reserved: vec![],
            service_cidrs: vec![],
            next_hops: BTreeMap::new(),
            checks_neighbours: true,
        };
        let snapshot = Snapshot { synced: true, ..Snapshot::default() };
        let (limits, standing) = (WIDE, Desired::default());
        Self { snapshot, facts, attachments: vec![], numbers: Numbers::default(), limits, standing }
    }
}

impl World {
    fn plan(&mut self) -> Desired {
        self.plan_with(&Held::default())
    }

    /// As a planner plans that holds so much.
    fn plan_with(&mut self, held: &Held) -> Desired {
        let Self { snapshot, facts, attachments, standing, numbers, .. } = self;
        let desired = plan(snapshot, facts, attachments, &self.limits.room(), (standing, held), numbers);
        self.standing = desired.clone();
        desired
    }

    fn namespace(&mut self, name: &str, labels: Value) {
        let namespace: Namespace = from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap();
        self.snapshot.namespaces.insert(ObjectKey::new("", name), Arc::new(namespace));
    }

    /// A pod somewhere in the cluster; `more` is merged into its top level.
    fn pod(&mut self, key: (&str, &str), labels: Value, ips: &[&str], more: Value) -> &mut Self {
        let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        let mut pod = json!({
            "metadata": {"namespace": key.0, "name": key.1, "labels": labels},
            "spec": {"containers": [], "nodeName": "there"},
            "status": {"podIPs": ips},
        });
        merge(&mut pod, more);
        let pod: Pod = from_value(pod).unwrap();
        if !self.snapshot.namespaces.contains_key(&ObjectKey::new("", key.0)) {
            self.namespace(key.0, json!({}));
        }
        self.snapshot.pods.insert(ObjectKey::new(key.0, key.1), Arc::new(pod));
        if !self.snapshot.nodes.contains_key(&ObjectKey::new("", "there")) {
            self.node("there", &["10.0.0.0/8", "fd00::/8"]);
        }
        self
    }

    fn node(&mut self, name: &str, pod_cidrs: &[&str]) -> &mut Self {
        let addresses = json!([{"type": "InternalIP", "address": "192.0.2.9"}]);
        let node =
            json!({"metadata": {"name": name}, "spec": {"podCIDRs": pod_cidrs}, "status": {"addresses": addresses}});
        self.snapshot.nodes.insert(ObjectKey::new("", name), Arc::new(from_value(node).unwrap()));
        self
    }

    /// Labels a node with a zone; empty: with none.
    fn zone(&mut self, node: &str, zone: &str) -> &mut Self {
        let node = self.snapshot.nodes.get_mut(&ObjectKey::new("", node)).unwrap();
        let labels = if zone.is_empty() { json!({}) } else { json!({"topology.kubernetes.io/zone": zone}) };
        Arc::make_mut(node).metadata.labels = Some(Arc::new(from_value(labels).unwrap()));
        self
    }

    /// A pod of this node; its port has the next free interface index.
    fn local(&mut self, key: (&str, &str), labels: Value, ips: &[&str], more: Value) -> u32 {
        self.pod(key, labels, ips, more);
        self.attach(Some(key), ips)
    }

    fn attach(&mut self, pod: Option<(&str, &str)>, ips: &[&str]) -> u32 {
        let number = u32::try_from(self.attachments.len()).unwrap() + 10;
        self.attachments.push(attachment(number, pod, ips).into());
        number
    }

    fn policy(&mut self, key: (&str, &str), spec: Value) -> &mut Self {
        let policy = from_value(json!({"metadata": {"namespace": key.0, "name": key.1}, "spec": spec})).unwrap();
        self.snapshot.policies.insert(ObjectKey::new(key.0, key.1), Arc::new(policy));
        self
    }

    fn service(&mut self, name: &str, spec: Value) -> &mut Self {
        let service = from_value(json!({"metadata": {"namespace": "x", "name": name}, "spec": spec})).unwrap();
        self.snapshot.services.insert(ObjectKey::new("x", name), Arc::new(service));
        self
    }

    /// Lets a Service be made at this second.
    fn created(&mut self, name: &str, second: i64) -> &mut Self {
        let service = self.snapshot.services.get_mut(&ObjectKey::new("x", name)).unwrap();
        let time = format!("2026-01-01T00:00:{second:02}Z");
        Arc::make_mut(service).metadata.creation_timestamp = Some(from_value(json!(time)).unwrap());
        self
    }

    /// Lets a Service say how its backends are chosen.
    fn algorithm(&mut self, name: &str, algorithm: &str) -> &mut Self {
        let service = self.snapshot.services.get_mut(&ObjectKey::new("x", name)).unwrap();
        let annotations = json!({"weft.dev/algorithm": algorithm});
        Arc::make_mut(service).metadata.annotations = from_value(annotations).unwrap();
        self
    }

    /// Lets a load balancer have given the Service these addresses.
    fn load_balancer(&mut self, name: &str, ingress: Value) -> &mut Self {
        let service = self.snapshot.services.get_mut(&ObjectKey::new("x", name)).unwrap();
        Arc::make_mut(service).status = serde_json::from_value(json!({"loadBalancer": {"ingress": ingress}})).unwrap();
        self
    }

    fn service_cidr(&mut self, name: &str, cidrs: &[&str]) -> &mut Self {
        let object = from_value(json!({"metadata": {"name": name}, "spec": {"cidrs": cidrs}})).unwrap();
        self.snapshot.service_cidrs.insert(ObjectKey::new("", name), Arc::new(object));
        self
    }

    fn slice(&mut self, name: &str, service: &str, slice: Value) -> &mut Self {
        let labels = json!({"kubernetes.io/service-name": service});
        let mut value = json!({"metadata": {"namespace": "x", "name": name, "labels": labels}, "addressType": "IPv4"});
        merge(&mut value, slice);
        self.snapshot.slices.insert(ObjectKey::new("x", name), Arc::new(from_value(value).unwrap()));
        self
    }
}

fn attachment(number: u32, pod: Option<(&str, &str)>, ips: &[&str]) -> Attachment {
    let link = PortLink { ifindex: number, ifname: format!("weft{number}") };
    Attachment { link: Some(link), ..Attachment::sample(u8::try_from(number).unwrap(), pod, ips) }
}

fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, more) if !more.is_null() => *into = more,
        _ => {}
    }
}

/// What passes on the wire: a protocol, and the destination port where the protocol has any.
type Packet = (u8, Option<u16>);

fn addr(ip: &str) -> Addr {
    ip.parse::<IpAddr>().unwrap().into()
}

/// The programs' verdict of one list.
fn judged(desired: &Desired, list: u64, peer: &str, packet: Packet) -> bool {
    verdict(desired, list, peer, packet).0
}

/// The verdict, and the number of the rule.
fn verdict(desired: &Desired, list: u64, peer: &str, (protocol, port): Packet) -> (bool, u32) {
    let (peer, mut rule) = (AddressKey::of_cluster(addr(peer)), 0);
    let programs = Programs(desired);
    let allowed = weft_logic::policy::allows(&programs, list, &peer, protocol, port.unwrap_or_default(), &mut rule);
    (allowed, rule)
}

/// Whether the port lets a packet of `peer` in.
fn lets_in(desired: &Desired, ifindex: u32, peer: &str, packet: Packet) -> bool {
    judged(desired, desired.ports[&ifindex].ingress_list, peer, packet)
}

/// Whether the port lets a packet to `peer` out.
fn lets_out(desired: &Desired, ifindex: u32, peer: &str, packet: Packet) -> bool {
    judged(desired, desired.ports[&ifindex].egress_list, peer, packet)
}
