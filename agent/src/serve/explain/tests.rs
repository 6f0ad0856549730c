// SPDX-License-Identifier: Apache-2.0
//! On maps that hold what the plan says, and on such that do not.

use std::collections::BTreeMap;

use rstest::rstest;
use weft_abi::{
    Addr, AddressKey, Affinity, AffinityKey, BackendKey, Balancer, BlockKey, CLUSTER_NET, CidrKey, Class, Config,
    Frontend, FrontendFlags, FrontendKey, Interval, KnownVerdict, List, ListFlags, Member, MemberKey, MemberSet, Owner,
    Port, Remote, RemoteKind, RingNode, RuleKey, Run, VerdictKey, part,
};
use weft_api::{ErrorCode, ExplainQuery, Explanation};

use super::{Known, Reads, explain};
use crate::{
    apply::flows::now_ticks,
    model::{Desired, DesiredAffinity, DesiredBalancer},
    plan::Planner,
};

type Read<T> = Result<Option<T>, weft_dataplane::Error>;

const CLIENT_PORT: u32 = 1001;
const SERVER_PORT: u32 = 1002;
const HOST: u32 = 1003;
const UPLINK: u32 = 1004;
const OVERLAY: u32 = 1005;
const TCP: u8 = 6;

/// Maps as a plan wants them, and what the programs remember of every question.
struct Fake(Desired, Option<bool>);

impl Reads for Fake {
    fn config(&self) -> Read<Config> {
        Ok(Some(self.0.config))
    }
    fn port(&self, ifindex: u32) -> Read<Port> {
        Ok(self.0.ports.get(&ifindex).copied())
    }
    fn owner(&self, net: u32, addr: &Addr) -> Read<Owner> {
        Ok(self.0.addresses.get(&AddressKey { net, addr: *addr }).copied())
    }
    fn remote(&self, _: u32, addr: &Addr) -> Read<Remote> {
        // The prefixes of this test do not overlap.
        let octets = |addr: &Addr| addr.0.map(u32::from_be);
        let covers =
            |key: &CidrKey| octets(&key.addr)[3] >> 8 == octets(addr)[3] >> 8 && key.addr.is_v4() == addr.is_v4();
        Ok(self.0.remotes.iter().find(|(key, _)| covers(key)).map(|(_, remote)| *remote))
    }
    fn frontend(&self, key: &FrontendKey) -> Read<Frontend> {
        Ok(self.0.frontends.get(key).copied())
    }
    fn balancer(&self, service: u32) -> Read<Balancer> {
        let set = |planned: &DesiredBalancer| MemberSet::even(5, planned.internal.len().try_into().unwrap());
        let balancer = |planned: &DesiredBalancer| {
            let (set, DesiredAffinity { ticks: affinity, name }) = (set(planned), planned.affinity);
            let balancer =
                Balancer { internal: set, external: set, cluster: set, generation: 1, ..Balancer::default() };
            Balancer { affinity, name, ..balancer }
        };
        Ok(self.0.balancers.get(&service).map(balancer))
    }
    fn member(&self, key: &MemberKey) -> Read<Member> {
        let balancer = self.0.balancers.get(&key.service).filter(|_| key.set == 5);
        Ok(balancer.and_then(|balancer| balancer.internal.get(key.index as usize)).copied())
    }
    fn ring(&self, _: &MemberKey) -> Read<RingNode> {
        Ok(None)
    }
    fn load(&self, _: &BackendKey) -> Read<u32> {
        Ok(None)
    }
    fn backend(&self, key: &BackendKey) -> Read<u32> {
        Ok(self.0.balancers.get(&key.service).and_then(|balancer| balancer.names(key.service).remove(key)))
    }
    fn source(&self, service: u32, client: &Addr) -> Read<u32> {
        let is_it = |key: &CidrKey| key.net == service && key.address_bits() == 128 && key.addr == *client;
        Ok(self.0.sources.iter().find(|(key, _)| is_it(key)).map(|(_, served)| *served))
    }
    /// Everybody had the last backend.
    fn affinity(&self, key: &AffinityKey) -> Read<Affinity> {
        let named = self.0.balancers.values().find(|balancer| balancer.affinity.name == key.service);
        let last = named.and_then(|balancer| balancer.internal.last());
        Ok(last.map(|Member { addr, port, .. }| Affinity { addr: *addr, port: *port, pad: 0, last: now_ticks() }))
    }
    fn class_of(&self, net: u32, addr: &Addr) -> Read<u64> {
        Ok(self.0.peers.get(&AddressKey { net, addr: *addr }).copied())
    }
    fn class(&self, class: u64) -> Read<Class> {
        Ok(self.0.classes.get(&class).copied())
    }
    fn list(&self, list: u64) -> Read<List> {
        Ok(self.0.lists.get(&list).copied())
    }
    fn run(&self, key: &RuleKey) -> Read<Run> {
        Ok(self.0.rules.get(key).copied())
    }
    fn block(&self, key: &BlockKey) -> Read<u64> {
        Ok(self.0.blocks.get(key).copied())
    }
    fn verdict(&self, key: &VerdictKey) -> Read<KnownVerdict> {
        Ok(self.1.map(|allowed| KnownVerdict::new(key, allowed, 20)))
    }
    fn generation(&self, _: u32) -> Read<u32> {
        Ok(Some(1))
    }
    fn service_generation(&self, _: u32) -> Read<u32> {
        Ok(Some(1))
    }
}

fn addr(text: &str) -> Addr {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

/// A client and a server here, the server isolated for ingress but for port 80; a Service before it, another node, a host.
fn desired() -> Desired {
    let port = |ingress_list| Port { ingress_list, mac: [2, 0, 0, 0, 0, 7], ..Port::default() };
    let own = |text: &str| AddressKey::of_cluster(addr(text));
    let http = Interval::accept(TCP, 80, 80, 20);
    let head = List { flags: ListFlags::ANY | ListFlags::ISOLATES, isolated_by: 21, ..List::EMPTY };
    let prefix = |net: &str| CidrKey::of_cluster(addr(net), 96 + 24);
    let vip = FrontendKey::of_cluster(addr("10.96.0.10"), 8000_u16.to_be(), TCP);
    let member = Member::new(addr("10.1.0.6"), 80_u16.to_be());
    Desired {
        config: Config {
            uplink_ifindex: UPLINK,
            host_ifindex: HOST,
            overlay_ifindex: OVERLAY,
            node_v4: addr("192.0.2.1"),
            masquerade_v4: addr("192.0.2.1"),
            masquerade_first: 1024,
            masquerade_count: 100,
            ..Config::default()
        },
        ports: [(CLIENT_PORT, port(0)), (SERVER_PORT, port(3))].into(),
        addresses: [
            (own("10.1.0.5"), Owner::workload(CLIENT_PORT)),
            (own("10.1.0.6"), Owner::workload(SERVER_PORT)),
            (own("192.0.2.1"), Owner::host(HOST)),
        ]
        .into(),
        remotes: [
            (prefix("10.1.0.0"), Remote::new(Addr::UNSPECIFIED, RemoteKind::OwnPods)),
            (prefix("10.2.0.0"), Remote::new(addr("192.0.2.2"), RemoteKind::Tunnel)),
            (prefix("10.96.0.0"), Remote::new(Addr::UNSPECIFIED, RemoteKind::Services)),
        ]
        .into(),
        frontends: [
            (vip, Frontend { service: 70, flags: 0 }),
            (FrontendKey::of_address(CLUSTER_NET, vip.addr), Frontend { service: 0, flags: FrontendFlags::ADDRESS }),
        ]
        .into(),
        balancers: [(70, DesiredBalancer::of([member], []))].into(),
        lists: [(3, head)].into(),
        rules: [(RuleKey { list: 3, part: part::ANY }, Run::of(&[http]))].into(),
        names: [(addr("10.1.0.5"), "default/client".to_owned()), (addr("10.1.0.6"), "default/server".to_owned())]
            .into(),
        service_names: BTreeMap::from([(vip, "default/web".to_owned())]),
        ..Desired::default()
    }
}

fn query(from: &str, to: &str, port: u16) -> ExplainQuery {
    ExplainQuery { from: from.to_owned(), to: to.to_owned(), port, source_port: 40_000, protocol: TCP }
}

fn ask(query: &ExplainQuery, maps: Desired) -> Explanation {
    let planner = Planner::of(desired());
    explain(query, &Known { planner: &planner, attachments: &[] }, &Fake(maps, None)).unwrap()
}

#[rstest]
#[case::pods(
    "default/client",
    "default/server",
    80,
    "from_workload",
    "delivered to 10.1.0.6 (default/server) by #1002"
)]
#[case::denied("default/client", "default/server", 81, "from_workload", "dropped, policy-ingress")]
#[case::service(
    "default/client",
    "svc/default/web",
    8000,
    "from_workload",
    "by #1002, as TCP 10.1.0.5:40000 (default/client) -> 10.1.0.6:80 (default/server)"
)]
#[case::service_port("default/client", "10.96.0.10", 8001, "from_workload", "dropped, no-service-port")]
#[case::service_address("default/client", "10.96.0.11", 8000, "from_workload", "dropped, no-service")]
#[case::other_node("10.2.0.9", "default/server", 80, "from_overlay", "delivered to 10.1.0.6 (default/server)")]
#[case::to_other_node("default/client", "10.2.0.9", 80, "from_workload", "encapsulated to node 192.0.2.2")]
#[case::outside("default/client", "198.51.100.7", 443, "from_workload", "under a port that is free there")]
#[case::probe("host", "default/server", 81, "from_host", "delivered to 10.1.0.6 (default/server)")]
#[case::stranger("198.51.100.7", "default/server", 81, "from_uplink", "dropped, policy-ingress")]
#[case::stranger_to_host("198.51.100.7", "host", 22, "from_uplink", "the host's own IP stack")]
fn packets_are_decided_as_the_programs_do(
    #[case] from: &str,
    #[case] to: &str,
    #[case] port: u16,
    #[case] hook: &str,
    #[case] verdict: &str,
) {
    let explained = ask(&query(from, to, port), desired());
    assert!(explained.verdict.contains(verdict), "{explained:#?}");
    assert_eq!((explained.hook.as_str(), explained.forwarded), (hook, !verdict.starts_with("dropped")));
    assert!(explained.differences.is_empty() && !explained.steps.is_empty(), "{explained:#?}");
}

#[test]
fn the_steps_are_the_look_ups_in_their_order() {
    let explained = ask(&query("default/client", "svc/default/web", 8000), desired());
    let steps: Vec<_> = explained.steps.iter().map(|step| (step.step.as_str(), step.map.as_str())).collect();
    let expected = [
        ("admit", "PORTS"),
        ("admit", "ADDRESSES"),
        ("translate", "FRONTENDS"),
        ("translate", "BALANCERS"),
        ("translate", "MEMBERS"),
        ("locate", "ADDRESSES"),
        ("locate", "PORTS"),
        ("judge", "LISTS"),
        ("judge", "RULES"),
    ];
    assert_eq!(steps, expected);
    assert_eq!(explained.steps[8].value, "allows TCP 80 (unknown rule 20)");
    assert!(explained.verdict.ends_with("; allowed by unknown rule 20"), "{explained:#?}");
    let refused = ask(&query("default/client", "default/server", 81), desired());
    assert!(refused.verdict.ends_with("; unknown rule 21"), "{refused:#?}");
}

/// By chance it would be the first one.
#[test]
fn a_client_that_keeps_its_backend_is_told_which() {
    let mut planned = desired();
    let balancer = planned.balancers.get_mut(&70).unwrap();
    let first = balancer.internal[0];
    let last = Member::new(addr("10.2.0.9"), 90_u16.to_be());
    *balancer =
        DesiredBalancer { affinity: DesiredAffinity { ticks: 9, name: 8 }, ..DesiredBalancer::of([first, last], []) };
    let planner = Planner::of(planned.clone());
    let query = query("default/client", "svc/default/web", 8000);
    let known = Known { planner: &planner, attachments: &[] };
    let explained = explain(&query, &known, &Fake(planned, None)).unwrap();
    assert!(explained.verdict.contains("-> 10.2.0.9:90"), "{explained:#?}");
    assert_eq!(explained.differences, Vec::<String>::new());
    let told: Vec<_> = explained.steps.iter().map(|step| (step.map.as_str(), step.value.as_str())).collect();
    assert!(told.contains(&("BACKENDS", "may be chosen")), "{explained:#?}");
    assert!(told.contains(&("AFFINITIES", "10.2.0.9 port 90 before, about 0 s ago")), "{explained:#?}");
}

#[test]
fn what_the_maps_have_and_the_plan_does_not_is_told() {
    let mut maps = desired();
    maps.ports.get_mut(&SERVER_PORT).unwrap().ingress_list = 0;
    let balancer = maps.balancers.get_mut(&70).unwrap();
    let other = Member { port: 81_u16.to_be(), ..balancer.internal[0] };
    *balancer = DesiredBalancer::of([other], []);
    let explained = ask(&query("default/client", "svc/default/web", 8000), maps);
    // The decision is that of the maps.
    assert!(explained.forwarded, "{explained:#?}");
    let told = explained.differences.join("\n");
    assert_eq!(explained.differences.len(), 2, "{told}");
    assert!(
        told.contains("PORTS #1002: the map has") && told.contains("MEMBERS backend 1 of set 5 of Service number 70"),
        "{told}"
    );
}

/// Each list, and the class of each peer, is looked at twice.
#[test]
fn both_ends_may_have_lists_that_ask_for_classes() {
    let mut both = desired();
    let (term, class) = (part::TERM | 5 << 16, 77);
    let mut head = List { flags: ListFlags::ISOLATES, isolated_by: 21, ..List::EMPTY };
    head.add_part(term);
    let run = both.rules[&RuleKey { list: 3, part: part::ANY }];
    for list in [8, 9] {
        both.lists.insert(list, head);
        both.rules.insert(RuleKey { list, part: term }, run);
    }
    both.ports.get_mut(&CLIENT_PORT).unwrap().egress_list = 8;
    both.ports.get_mut(&SERVER_PORT).unwrap().ingress_list = 9;
    let mut terms = Class { version: 1, ..Class::default() };
    terms.terms[0] = term;
    both.classes.insert(class, terms);
    both.peers = ["10.1.0.5", "10.1.0.6"].map(|text| (AddressKey::of_cluster(addr(text)), class)).into();
    let planner = Planner::of(both.clone());
    let known = Known { planner: &planner, attachments: &[] };
    let ask =
        |port| explain(&query("default/client", "default/server", port), &known, &Fake(both.clone(), None)).unwrap();
    assert!(ask(80).forwarded, "{:#?}", ask(80));
    assert!(ask(81).verdict.contains("policy-egress"), "{:#?}", ask(81));
}

#[test]
fn what_the_programs_remember_otherwise_is_told() {
    let planner = Planner::of(desired());
    let known = Known { planner: &planner, attachments: &[] };
    let ask = |remembered| {
        let query = query("default/client", "default/server", 80);
        explain(&query, &known, &Fake(desired(), Some(remembered))).unwrap()
    };
    let same = ask(true);
    assert!(same.differences.is_empty() && same.steps.iter().any(|step| step.value == "allowed before"), "{same:#?}");
    let other = ask(false);
    assert!(other.forwarded && other.differences[0].starts_with("VERDICTS list "), "{other:#?}");
}

#[rstest]
#[case("default/nobody", "10.1.0.6", "from: default/nobody is neither an address nor known here")]
#[case("10.1.0.5", "svc/default/none", "to: svc/default/none is neither")]
#[case("10.1.0.5", "2001:db8::1", "have no address family in common")]
fn ends_that_are_not_known_are_named(#[case] from: &str, #[case] to: &str, #[case] message: &str) {
    let planner = Planner::of(desired());
    let known = Known { planner: &planner, attachments: &[] };
    let error = explain(&query(from, to, 80), &known, &Fake(desired(), None)).unwrap_err();
    assert_eq!(error.code, ErrorCode::Invalid);
    assert!(error.message.contains(message), "{}", error.message);
}
