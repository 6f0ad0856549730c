// SPDX-License-Identifier: Apache-2.0
//! The logic's view of the recorded maps: what each look-up found, in words.

use std::{collections::BTreeMap, net::IpAddr};

use weft_abi::{
    Addr, AddressKey, BackendKey, BackendState, Balancer, CidrKey, Config, Frontend, FrontendFlags, FrontendKey,
    Member, MemberKey, Owner, PROTOCOL_ANY, Port, Remote, RemoteKind, RuleKey, Rules, WORLD_IDENTITY,
};
use weft_logic::{Tables, decide::Step};

use super::recorder::{Reads, Recorder};
use crate::serve::flows;

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

    fn owner(&self, net: u32, addr: &Addr) -> Option<&Owner> {
        let (owner, key) = (self.read(self.maps.owner(net, addr)), self.name(addr));
        self.note("ADDRESSES", &key, owner.as_ref().map(describe_owner));
        self.compare("ADDRESSES", &key, owner.as_ref(), self.desired.addresses.get(&AddressKey { net, addr: *addr }));
        self.owners.keep(owner?)
    }

    fn remote(&self, net: u32, addr: &Addr) -> Option<&Remote> {
        let (remote, key) = (self.read(self.maps.remote(net, addr)), self.name(addr));
        self.note("REMOTES", &key, remote.as_ref().map(describe_remote));
        self.compare("REMOTES", &key, remote.as_ref(), longest(&self.desired.remotes, net, addr));
        self.remotes.keep(remote?)
    }

    fn frontend(&self, key: &FrontendKey) -> Option<&Frontend> {
        let frontend = self.read(self.maps.frontend(key));
        let name = self.planner.service_name(key).map(|name| format!(" ({name})")).unwrap_or_default();
        let text = if key.is_address() {
            IpAddr::from(key.addr).to_string()
        } else {
            let protocol = flows::protocol(key.protocol);
            format!("{} {protocol} {}{name}", IpAddr::from(key.addr), u16::from_be(key.port))
        };
        self.note("FRONTENDS", &text, frontend.as_ref().map(describe_frontend));
        self.compare("FRONTENDS", &text, frontend.as_ref(), self.desired.frontends.get(key));
        self.frontends.keep(frontend?)
    }

    fn balancer(&self, service: &u32) -> Option<&Balancer> {
        let balancer = self.read(self.maps.balancer(*service));
        let text = format!("Service number {service}");
        let [internal, external, cluster] =
            balancer.as_ref().map(Balancer::sets).unwrap_or_default().map(|set| set.count);
        let counts = || format!("{internal} backends (internal), {external} (external), {cluster} (cluster)");
        self.note("BALANCERS", &text, balancer.as_ref().map(|_| counts()));
        let found = balancer.as_ref().map(|_| [internal, external, cluster].map(|count| count as usize));
        let planned = self.desired.balancers.get(service).map(|planned| planned.sets().map(|set| set.len()));
        self.compare("BALANCERS", &text, found.as_ref(), planned.as_ref());
        self.balancers.keep(balancer?)
    }

    fn member(&self, key: &MemberKey) -> Option<&Member> {
        let member = self.read(self.maps.member(key));
        let text = format!("backend {} of set {} of Service number {}", key.index + 1, key.set, key.service);
        let end = |member: &Member| format!("{} port {}", self.name(&member.addr), u16::from_be(member.port));
        self.note("MEMBERS", &text, member.as_ref().map(end));
        self.compare("MEMBERS", &text, member.as_ref(), self.planned_member(key));
        self.members.keep(member?)
    }

    /// Asked of connections that stand; the first packet of one is explained.
    fn serves(&self, backend: &BackendKey) -> bool {
        self.read(self.maps.backend(backend)) == Some(BackendState::Serving as u32)
    }

    fn identity(&self, net: u32, addr: &Addr) -> u32 {
        let key = self.name(addr);
        let single = self.read(self.maps.single(net, addr));
        self.compare(
            "IDENTITIES",
            &key,
            single.as_ref(),
            self.desired.identities.get(&AddressKey { net, addr: *addr }),
        );
        if let Some(identity) = single {
            self.note("IDENTITIES", &key, Some(format!("identity {identity}")));
            return identity;
        }
        let prefix = self.read(self.maps.prefix(net, addr));
        self.compare("CIDRS", &key, prefix.as_ref(), longest(&self.desired.cidrs, net, addr));
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

    fn service_generation(&self, service: u32) -> u32 {
        self.read(self.maps.service_generation(service)).unwrap_or(0)
    }

    fn enter(&self, step: Step) {
        self.step.set(step);
    }
}

fn describe_port(port: &Port) -> String {
    let isolation = |set: u32| if set == 0 { "not isolated".to_owned() } else { format!("policy set {set}") };
    let (ingress, egress) = (isolation(port.ingress_policy), isolation(port.egress_policy));
    format!("{}, ingress {ingress}, egress {egress}", weft_api::Mac(port.mac))
}

fn describe_owner(owner: &Owner) -> String {
    if owner.is_host() {
        return "this node itself".to_owned();
    }
    format!("a workload at {}", flows::Ifnames::default().of(owner.ifindex))
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

/// The value of the longest prefix in `table` that covers `addr` of the network `net`.
fn longest<'t, V>(table: &'t BTreeMap<CidrKey, V>, net: u32, addr: &Addr) -> Option<&'t V> {
    let covers = |key: &CidrKey| {
        let mask = u128::MAX.checked_shl(128_u32.saturating_sub(key.address_bits())).unwrap_or(0);
        key.net == net && (bits(&key.addr) ^ bits(addr)) & mask == 0
    };
    table.iter().filter(|(key, _)| covers(key)).max_by_key(|(key, _)| key.prefix_len).map(|(_, value)| value)
}

fn bits(addr: &Addr) -> u128 {
    match IpAddr::from(*addr) {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

fn describe_frontend(frontend: &Frontend) -> String {
    let kind = match frontend.flags {
        0 => "a ClusterIP's",
        flags if flags & FrontendFlags::ADDRESS != 0 => return "a ClusterIP".to_owned(),
        _ => "an external address's",
    };
    format!("Service number {}, {kind}", frontend.service)
}

impl<R: Reads> Recorder<'_, R> {
    /// What the plan has in the place of a member: sets are numbered by the maps.
    fn planned_member(&self, key: &MemberKey) -> Option<&Member> {
        let balancer = self.read(self.maps.balancer(key.service))?;
        let place = balancer.sets().iter().position(|set| set.set == key.set)?;
        self.desired.balancers.get(&key.service)?.sets()[place].get(key.index as usize)
    }
}
