// SPDX-License-Identifier: Apache-2.0
//! The logic's view of the recorded maps: what each look-up found, in words.

use std::{collections::BTreeMap, net::IpAddr};

use weft_abi::{
    Addr, AddressKey, Affinity, AffinityKey, Algorithm, BackendFlags, BackendKey, Balancer, BlockKey, CLOSED_LIST,
    CidrKey, Class, Config, Frontend, FrontendFlags, FrontendKey, Interval, KnownVerdict, List, ListFlags, Member,
    MemberKey, NO_LIST, Owner, PROTOCOL_ANY, Port, Remote, RemoteKind, RingNode, RuleKey, Run, TICK_SHIFT, Verdict,
    VerdictKey, part,
};
use weft_logic::{Tables, decide::Step};

use super::recorder::{Reads, Recorder};
use crate::{
    apply::flows::now_ticks,
    model::{address::MAPPED_PREFIX, algorithm},
    serve::flows,
};

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
        let described = |balancer: &Balancer| {
            let keeps = if balancer.affinity == 0 { "" } else { "; clients keep theirs" };
            let how = Algorithm::of(balancer.algorithm).map_or("unknown", algorithm::name);
            format!("{how}; {internal} backends (internal), {external} (external), {cluster} (cluster){keeps}")
        };
        self.note("BALANCERS", &text, balancer.as_ref().map(described));
        let found = balancer.as_ref().map(|_| [internal, external, cluster].map(|count| count as usize));
        let planned = self.desired.balancers.get(service).map(|planned| planned.sets().map(|set| set.len()));
        self.compare("BALANCERS", &text, found.as_ref(), planned.as_ref());
        self.balancers.keep(balancer?)
    }

    fn member(&self, key: &MemberKey) -> Option<&Member> {
        let member = self.read(self.maps.member(key));
        let text = format!("backend {} of set {} of Service number {}", key.index + 1, key.set, key.service);
        self.note("MEMBERS", &text, member.as_ref().map(|member| self.end(member.addr, member.port)));
        self.compare("MEMBERS", &text, member.as_ref(), self.planned_member(key));
        self.members.keep(member?)
    }

    fn ring(&self, key: &MemberKey) -> Option<&RingNode> {
        let node = self.read(self.maps.ring(key));
        let text = format!("node {} of set {} of Service number {}", key.index, key.set, key.service);
        self.note("RINGS", &text, node.as_ref().map(|_| "divides the members by their parts".to_owned()));
        self.rings.keep(node?)
    }

    fn load(&self, backend: &BackendKey) -> u32 {
        let load = self.read(self.maps.load(backend));
        let text = format!("{} of Service number {}", self.end(backend.addr, backend.port), backend.service);
        self.note("LOADS", &text, Some(format!("{} connections of this node", load.unwrap_or_default())));
        load.unwrap_or_default()
    }

    /// The first packet of a connection is explained: what is asked for is what the client had before.
    fn backend(&self, backend: &BackendKey) -> u32 {
        let flags = self.read(self.maps.backend(backend));
        let text = format!("{} of Service number {}", self.end(backend.addr, backend.port), backend.service);
        self.note("BACKENDS", &text, flags.map(describe_backend));
        let planned = self.desired.balancers.get(&backend.service);
        let planned = planned.and_then(|planned| planned.names(backend.service).remove(backend));
        self.compare("BACKENDS", &text, flags.as_ref(), planned.as_ref());
        flags.unwrap_or(0)
    }

    fn admits(&self, service: u32, client: &Addr) -> bool {
        let source = self.read(self.maps.source(service, client));
        let key = format!("{} of Service number {service}", self.name(client));
        self.note("SOURCES", &key, source.map(|_| "served".to_owned()));
        self.compare("SOURCES", &key, source.as_ref(), longest(&self.desired.sources, service, client));
        source.is_some()
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        let last = self.read(self.maps.affinity(key));
        let ago = |last: &Affinity| u64::from(now_ticks().saturating_sub(last.last)) << TICK_SHIFT;
        let text = |last: &Affinity| {
            format!("{} before, about {} s ago", self.end(last.addr, last.port), ago(last) / 1_000_000_000)
        };
        self.note("AFFINITIES", &self.name(&key.addr), last.as_ref().map(text));
        last
    }

    fn class_of(&self, net: u32, addr: &Addr) -> Option<u64> {
        let (class, key) = (self.read(self.maps.class_of(net, addr)), self.name(addr));
        self.note("PEERS", &key, class.map(|class| format!("class {class:016x}")));
        self.compare("PEERS", &key, class.as_ref(), self.desired.peers.get(&AddressKey { net, addr: *addr }));
        class
    }

    fn class(&self, class: &u64) -> Option<&Class> {
        let (found, key) = (self.read(self.maps.class(*class)), format!("class {class:016x}"));
        let terms = |class: &Class| class.terms.iter().filter(|term| **term != 0).count();
        self.note("CLASSES", &key, found.as_ref().map(|class| format!("{} selectors mean it", terms(class))));
        self.compare("CLASSES", &key, found.as_ref(), self.desired.classes.get(class));
        self.classes.keep(found?)
    }

    fn list(&self, list: &u64) -> Option<&List> {
        let (found, key) = (self.read(self.maps.list(*list)), describe_list(*list));
        self.note("LISTS", &key, found.as_ref().map(|list| self.describe_head(list)));
        self.compare("LISTS", &key, found.as_ref(), self.desired.lists.get(list));
        self.lists.keep(found?)
    }

    fn run(&self, key: &RuleKey) -> Option<&Run> {
        let run = self.read(self.maps.run(key));
        let of_blocks = key.part & part::TERM == 0 && key.part >= part::BLOCKS;
        let owner = if of_blocks { describe_blocks(key.list) } else { describe_list(key.list) };
        let text = format!("{owner}, {}", describe_part(key.part));
        self.note("RULES", &text, run.as_ref().map(|run| self.describe_run(run)));
        self.compare("RULES", &text, run.as_ref(), self.desired.rules.get(key));
        self.runs.keep(run?)
    }

    fn block(&self, key: &BlockKey) -> Option<u64> {
        let part = self.read(self.maps.block(key));
        let v4 = key.addr.is_v4();
        let length = if v4 { key.prefix_len.saturating_sub(MAPPED_PREFIX.into()) } else { key.prefix_len };
        let text = format!("{}, {}/{length}", describe_blocks(key.blocks), IpAddr::from(key.addr));
        self.note("BLOCKS", &text, part.map(describe_part));
        self.compare("BLOCKS", &text, part.as_ref(), self.desired.blocks.get(key));
        part
    }

    /// Asks the rules always, and compares with what the programs remember of them.
    fn remember(&self, key: &VerdictKey, found: &KnownVerdict) {
        let Some(known) = self.read(self.maps.verdict(key)) else { return };
        let Some(allowed) = known.allows(key) else { return };
        let text = format!("{}, {} {}", describe_list(key.list), flows::protocol(key.protocol), key.port);
        self.note("VERDICTS", &text, Some(if allowed { "allowed before" } else { "refused before" }.to_owned()));
        if known != *found {
            let differs = format!("VERDICTS {text}: the map has {known:?}, the rules say {found:?}");
            self.differences.borrow_mut().push(differs);
        }
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
    let (ingress, egress) = (describe_list(port.ingress_list), describe_list(port.egress_list));
    format!("{}, ingress {ingress}, egress {egress}", weft_api::Mac(port.mac))
}

fn describe_backend(flags: u32) -> String {
    if flags & BackendFlags::INTERNAL == 0 { "takes no new connections".to_owned() } else { "may be chosen".to_owned() }
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

fn describe_list(list: u64) -> String {
    match list {
        NO_LIST => "not isolated".to_owned(),
        CLOSED_LIST => "closed".to_owned(),
        list => format!("list {list:016x}"),
    }
}

fn describe_blocks(blocks: u64) -> String {
    format!("blocks {blocks:016x}")
}

fn describe_part(part: u64) -> String {
    match part {
        part if part & part::TERM != 0 => format!("peers {:012x}", part >> 16 & 0x7fff_ffff_ffff),
        part if part >= part::BLOCKS => format!("block {}", (part - part::BLOCKS) / part::STEP),
        part if part >= part::ANY_POD => "all pods".to_owned(),
        _ => "all peers".to_owned(),
    }
}

fn describe_interval(interval: &Interval) -> String {
    let Interval { first, last, protocol, .. } = *interval;
    let protocol = if protocol == PROTOCOL_ANY { "everything".to_owned() } else { flows::protocol(protocol) };
    match (first, last) {
        (0, u16::MAX) => protocol,
        (first, last) if first == last => format!("{protocol} {first}"),
        (first, last) => format!("{protocol} {first}-{last}"),
    }
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
    fn end(&self, addr: Addr, port: u16) -> String {
        format!("{} port {}", self.name(&addr), u16::from_be(port))
    }

    fn describe_head(&self, list: &List) -> String {
        let isolated = list.flags & ListFlags::ISOLATES != 0;
        let otherwise = if isolated { self.planner.rule_name(list.isolated_by) } else { None };
        otherwise.map_or_else(|| "open".to_owned(), |name| format!("else refused: {name}"))
    }

    fn describe_run(&self, run: &Run) -> String {
        let verb = |bits| match Interval::verdict(bits) {
            verdict if verdict == Verdict::Accept as u8 => "allows",
            verdict if verdict == Verdict::Deny as u8 => "denies",
            _ => "passes",
        };
        let said = run.intervals.iter().filter(|interval| Interval::verdict(interval.bits) != Verdict::None as u8);
        let said = said.map(|interval| {
            let name = self.planner.rule_name(interval.rule).map(|name| format!(" ({name})")).unwrap_or_default();
            format!("{} {}{name}", verb(interval.bits), describe_interval(interval))
        });
        let said: Vec<String> = said.collect();
        if said.is_empty() { "says nothing".to_owned() } else { said.join(", ") }
    }

    /// What the plan has in the place of a member: sets are numbered by the maps.
    fn planned_member(&self, key: &MemberKey) -> Option<&Member> {
        let balancer = self.read(self.maps.balancer(key.service))?;
        let place = balancer.sets().iter().position(|set| set.set == key.set)?;
        self.desired.balancers.get(&key.service)?.sets()[place].get(key.index as usize)
    }
}
