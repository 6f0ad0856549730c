// SPDX-License-Identifier: Apache-2.0
//! The logic's view of the recorded maps: what each look-up found, in words.

use std::{collections::BTreeMap, net::IpAddr};

use weft_abi::{
    Addr, Backend, BackendKey, BackendState, CidrKey, Config, Local, LocalKind, PROTOCOL_ANY, Port, Remote, RemoteKind,
    RuleKey, Rules, Service, ServiceKey, SlotKey, WORLD_IDENTITY,
};
use weft_logic::{Tables, decide::Step};

use super::recorder::{Reads, Recorder};
use crate::{model::Desired, serve::flows};

impl<R: Reads> Tables for Recorder<'_, R> {
    fn config(&self) -> Option<&Config> {
        let config = self.read(self.maps.config());
        self.compare("CONFIG", &0, config.as_ref(), Some(&self.desired.config));
        self.configs.keep(config?)
    }

    fn port(&self, ifindex: u32) -> Option<&Port> {
        let port = self.read(self.maps.port(ifindex));
        let key = flows::Ifnames::default().of(ifindex);
        self.note("PORTS", &key, port.as_ref().map(describe_port));
        self.compare("PORTS", &key, port.as_ref(), self.desired.ports.get(&ifindex));
        self.ports.keep(port?)
    }

    fn local(&self, addr: &Addr) -> Option<&Local> {
        let (local, key) = (self.read(self.maps.local(addr)), self.name(addr));
        self.note("LOCALS", &key, local.as_ref().map(describe_local));
        self.compare("LOCALS", &key, local.as_ref(), self.desired.locals.get(addr));
        self.locals.keep(local?)
    }

    fn remote(&self, addr: &Addr) -> Option<&Remote> {
        let (remote, key) = (self.read(self.maps.remote(addr)), self.name(addr));
        self.note("REMOTES", &key, remote.as_ref().map(describe_remote));
        self.compare("REMOTES", &key, remote.as_ref(), longest(&self.desired.remotes, addr));
        self.remotes.keep(remote?)
    }

    fn service(&self, key: &ServiceKey) -> Option<&Service> {
        let service = self.read(self.maps.service(key));
        let name = self.planner.service_name(key).map(|name| format!(" ({name})")).unwrap_or_default();
        let protocol = flows::protocol(key.protocol);
        let text = format!("{} {protocol} {}{name}", IpAddr::from(key.addr), u16::from_be(key.port));
        self.note("SERVICES", &text, service.as_ref().map(|found| format!("{} backends", found.count)));
        let found = service.as_ref().map(|found| (found.id, found.count as usize));
        let planned = self.desired.services.get(key).map(|planned| (planned.id, planned.backends.len()));
        self.compare("SERVICES", &text, found.as_ref(), planned.as_ref());
        self.services.keep(service?)
    }

    fn slot(&self, key: &SlotKey) -> Option<&Backend> {
        let backend = self.read(self.maps.slot(key));
        let text = format!("backend {} of Service number {}", key.index + 1, key.service);
        let end = |backend: &Backend| format!("{} port {}", self.name(&backend.addr), u16::from_be(backend.port));
        self.note("SLOTS", &text, backend.as_ref().map(end));
        self.compare("SLOTS", &text, backend.as_ref(), planned_backend(self.desired, key));
        self.slots.keep(backend?)
    }

    /// Asked of connections that stand; the first packet of one is explained.
    fn serves(&self, backend: &BackendKey) -> bool {
        self.read(self.maps.backend(backend)) == Some(BackendState::Serving as u32)
    }

    fn identity(&self, addr: &Addr) -> u32 {
        let key = self.name(addr);
        let single = self.read(self.maps.single(addr));
        self.compare("IDENTITIES", &key, single.as_ref(), self.desired.identities.get(addr));
        if let Some(identity) = single {
            self.note("IDENTITIES", &key, Some(format!("identity {identity}")));
            return identity;
        }
        let prefix = self.read(self.maps.prefix(addr));
        self.compare("CIDRS", &key, prefix.as_ref(), longest(&self.desired.cidrs, addr));
        self.note("CIDRS", &key, prefix.map(|identity| format!("identity {identity}")));
        prefix.unwrap_or(WORLD_IDENTITY)
    }

    fn rules(&self, key: &RuleKey) -> Option<&Rules> {
        let rules = self.read(self.maps.rules(key));
        let RuleKey { policy, identity, chunk } = *key;
        let peers =
            if identity == weft_abi::ANY_IDENTITY { "all peers".to_owned() } else { format!("identity {identity}") };
        let text = format!("policy set {policy}, {peers}, chunk {chunk}");
        self.note("RULES", &text, rules.as_ref().map(describe_rules));
        self.compare("RULES", &text, rules.as_ref(), self.desired.rules.get(key));
        self.rules.keep(rules?)
    }

    fn generation(&self, slot: u32) -> u32 {
        self.read(self.maps.generation(slot)).unwrap_or(0)
    }

    fn enter(&self, step: Step) {
        self.step.set(step);
    }
}

fn describe_port(port: &Port) -> String {
    let addresses = [port.v4, port.v6].into_iter().filter(|addr| !addr.is_unspecified());
    let addresses: Vec<String> = addresses.map(|addr| IpAddr::from(addr).to_string()).collect();
    let isolation = |set: u32| if set == 0 { "not isolated".to_owned() } else { format!("policy set {set}") };
    let (ingress, egress) = (isolation(port.ingress_policy), isolation(port.egress_policy));
    format!("{}, {}, ingress {ingress}, egress {egress}", addresses.join(" and "), weft_api::Mac(port.mac))
}

fn describe_local(local: &Local) -> String {
    if local.kind == LocalKind::Host as u32 {
        return "this node itself".to_owned();
    }
    format!("a workload at {}", flows::Ifnames::default().of(local.ifindex))
}

fn describe_remote(remote: &Remote) -> String {
    let via = IpAddr::from(remote.via);
    match remote.kind {
        kind if kind == RemoteKind::OwnPods as u32 => "this node's pod CIDR".to_owned(),
        kind if kind == RemoteKind::Tunnel as u32 => format!("pods of the node that encapsulates as {via}"),
        kind if kind == RemoteKind::Native as u32 => {
            format!("pods of the neighbour {via}, {}", weft_api::Mac(remote.mac))
        }
        kind if kind == RemoteKind::Routed as u32 => format!("pods by way of {via}"),
        kind if kind == RemoteKind::Services as u32 => "a Service CIDR".to_owned(),
        kind if kind == RemoteKind::Node as u32 => format!("the node that encapsulates as {via}"),
        kind if kind == RemoteKind::Plain as u32 => "outside, reached with workloads' own addresses".to_owned(),
        kind if kind == RemoteKind::Unreachable as u32 => "pods of a node without a way to it".to_owned(),
        other => format!("kind {other}"),
    }
}

fn describe_rules(rules: &Rules) -> String {
    let rule = |rule: &weft_abi::PortRule| {
        let protocol =
            if rule.protocol == PROTOCOL_ANY { "everything".to_owned() } else { flows::protocol(rule.protocol) };
        match (rule.first, rule.last) {
            (0, u16::MAX) => protocol,
            (first, last) if first == last => format!("{protocol} {first}"),
            (first, last) => format!("{protocol} {first}-{last}"),
        }
    };
    let count = usize::from(rules.count).min(rules.rules.len());
    let allowed: Vec<String> = rules.rules[..count].iter().map(rule).collect();
    format!("allows {}", allowed.join(", "))
}

/// The value of the longest prefix in `table` that covers `addr`.
fn longest<'t, V>(table: &'t BTreeMap<CidrKey, V>, addr: &Addr) -> Option<&'t V> {
    let covers = |key: &CidrKey| {
        let mask = u128::MAX.checked_shl(128_u32.saturating_sub(key.prefix_len)).unwrap_or(0);
        (bits(&key.addr) ^ bits(addr)) & mask == 0
    };
    table.iter().filter(|(key, _)| covers(key)).max_by_key(|(key, _)| key.prefix_len).map(|(_, value)| value)
}

fn bits(addr: &Addr) -> u128 {
    match IpAddr::from(*addr) {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

fn planned_backend<'d>(desired: &'d Desired, key: &SlotKey) -> Option<&'d Backend> {
    let service = desired.services.values().find(|service| service.id == key.service)?;
    service.backends.get(key.index as usize)
}
