// SPDX-License-Identifier: Apache-2.0
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::executor::block_on;
use proptest::{collection::vec, prelude::*};
use serde_json::{from_value, json};
use weft_abi::Config;
use weft_api::{EndpointReport, PolicyReport, Reply};

use super::*;
use crate::{
    model::{Deltas, Desired, Mode, News, NodeFacts, Standing},
    plan::Planner,
    serve::View,
};

/// What changes between two pages: of a Service, which is there or not, how many backends it has.
type Change = (u8, Option<u16>);

fn facts() -> NodeFacts {
    NodeFacts {
        name: "here".into(),
        mode: Mode::Vxlan,
        config: Config::default(),
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
    }
}

fn key(number: u8) -> ObjectKey {
    // Names of which one begins with the other, in namespaces of which one begins with the other.
    ObjectKey::new(["x", "x-y", "y"][usize::from(number % 3)], &"s".repeat(usize::from(number / 3) + 1))
}

/// A Service of two ports with so many endpoints of each family behind each, from the address of this number on.
fn change(deltas: &mut Deltas, key: &ObjectKey, endpoints: Option<std::ops::Range<u16>>) {
    let spec = json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00:96::1"],
        "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]});
    let service = endpoints.is_some().then(|| Arc::new(from_value(json!({"spec": spec})).unwrap()));
    deltas.services.objects.insert(key.clone(), service);
    for (family, name) in [("IPv4", "four"), ("IPv6", "six")] {
        let address =
            |n: u16| if family == "IPv4" { format!("10.1.{}.{}", n >> 8, n & 255) } else { format!("fd00::{n:x}") };
        let slice = endpoints.clone().map(|numbers| {
            let endpoints: Vec<_> =
                numbers.map(|number| json!({"addresses": [address(number)], "nodeName": "there"})).collect();
            let labels = json!({"kubernetes.io/service-name": key.name});
            let ports = json!([{"name": "a", "port": 8080}, {"name": "b", "port": 8081}]);
            let slice =
                json!({"metadata": {"labels": labels}, "addressType": family, "ports": ports, "endpoints": endpoints});
            Arc::new(from_value(slice).unwrap())
        });
        deltas.slices.objects.insert(ObjectKey::new(&key.namespace, &format!("{}-{name}", key.name)), slice);
    }
}

fn take(shared: &Shared, deltas: Deltas) {
    let mut planner = shared.planner_mut();
    planner.take(News { deltas, standing: Standing { synced: true, ..Standing::default() }, since: None });
    planner.observe(&facts(), vec![]);
}

fn shared(planner: Planner, view: View) -> Arc<Shared> {
    let (shared, _) = Shared::with(view, planner);
    shared
}

fn query(list: List) -> PageQuery {
    PageQuery { list, limit: None, after: None, name: None }
}

fn ask(shared: &Shared, query: &PageQuery) -> Page {
    block_on(page(query, shared)).unwrap()
}

/// All pages of a list, of so many entries each.
fn pages(shared: &Shared, list: List, limit: u32) -> Vec<Page> {
    let mut pages = vec![ask(shared, &PageQuery { limit: Some(limit), ..query(list) })];
    while let Some(after) = pages.last().unwrap().next.clone() {
        pages.push(ask(shared, &PageQuery { limit: Some(limit), after: Some(after), ..query(list) }));
    }
    pages
}

fn services_of(page: Page) -> Vec<ServiceReport> {
    let Entries::Services(services) = page.entries else { panic!("{:?}", page.entries) };
    services
}

fn key_of(report: &ServiceReport) -> ObjectKey {
    ObjectKey::new(&report.namespace, &report.name)
}

fn endpoints(count: Option<u16>) -> Option<std::ops::Range<u16>> {
    count.map(|count| 1..count + 1)
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    vec((0..12_u8, prop::option::weighted(0.7, 0..4_u16)), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes, changes and goes between two pages: nothing appears twice, what was there all the time appears, and all of
    /// it in one order. Without changes the pages together are the whole.
    #[test]
    fn pages_together_are_the_whole(first in changes(), between in vec(changes(), 0..6), limit in 1..4_u32) {
        let shared = shared(Planner::default(), View::default());
        let put = |changes: &[Change]| {
            let mut deltas = Deltas::default();
            changes.iter().for_each(|(number, count)| change(&mut deltas, &key(*number), endpoints(*count)));
            take(&shared, deltas);
            shared.planner().service_reports()
        };
        let begin = put(&first);
        let mut always: BTreeSet<ObjectKey> = begin.iter().map(key_of).collect();
        let mut ever = begin.clone();
        let (mut told, mut next, mut between) = (Vec::new(), query(List::Services), between.iter());
        next.limit = Some(limit);
        let quiet = between.len() == 0;
        loop {
            let page = ask(&shared, &next);
            next.after = page.next.clone();
            let services = services_of(page);
            prop_assert!(services.len() <= limit as usize);
            prop_assert!(!services.is_empty() || next.after.is_none());
            told.extend(services);
            if next.after.is_none() {
                break;
            }
            if let Some(changes) = between.next() {
                let now = put(changes);
                let keys: BTreeSet<ObjectKey> = now.iter().map(key_of).collect();
                always = always.intersection(&keys).cloned().collect();
                ever.extend(now);
            }
        }
        let keys: Vec<ObjectKey> = told.iter().map(key_of).collect();
        prop_assert!(keys.is_sorted_by(|a, b| a < b), "{:?}", keys);
        prop_assert!(always.iter().all(|key| keys.contains(key)), "{:?} lack one of {:?}", keys, always);
        prop_assert!(told.iter().all(|report| ever.contains(report)));
        if quiet {
            prop_assert_eq!(told, begin);
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]

    /// A Service that fits into no page comes in parts; of its backends, too, none appears twice, and none is lost that stays.
    #[test]
    fn a_service_larger_than_a_page_comes_in_parts(size in 1500..2500_u16, shift in prop_oneof![Just(0), 1..400_u16], other in any::<bool>()) {
        let shared = shared(Planner::default(), View::default());
        let put = |range: std::ops::Range<u16>| {
            let mut deltas = Deltas::default();
            change(&mut deltas, &key(1), Some(range));
            change(&mut deltas, &key(2), other.then_some(1..4));
            take(&shared, deltas);
        };
        put(1..size);
        let whole = shared.planner().service_reports();
        let (mut next, mut parts, mut told): (_, _, Vec<ServiceReport>) = (query(List::Services), 0, Vec::new());
        loop {
            let page = ask(&shared, &next);
            let line = serde_json::to_vec(&Reply::Ok(weft_api::Answer::Page(page.clone()))).unwrap();
            prop_assert!(line.len() < MAX_PAGE_BYTES + 200, "{} bytes", line.len());
            next.after = page.next.clone();
            parts += usize::from(page.partial);
            for service in services_of(page) {
                let other = match told.last_mut() {
                    None => Some(service),
                    Some(last) => last.extend(service).err().map(|other| *other),
                };
                told.extend(other);
            }
            if next.after.is_none() {
                break;
            }
            if shift > 0 {
                put(shift..size + shift);
            }
        }
        prop_assert!(parts > 0);
        if shift == 0 {
            prop_assert_eq!(told, whole);
            return Ok(());
        }
        prop_assert_eq!(told.len(), whole.len());
        for (told, whole) in told[0].ports.iter().zip(&whole[0].ports) {
            prop_assert_eq!((&told.name, told.port), (&whole.name, whole.port));
            let set: BTreeSet<_> = told.backends.iter().map(|backend| backend.address).collect();
            prop_assert_eq!(set.len(), told.backends.len());
            let stays = |number: u16| set.contains(&std::net::Ipv4Addr::from([10, 1, (number >> 8) as u8, number as u8]).into());
            prop_assert!((shift.max(1)..size).all(stays));
        }
    }
}

#[test]
fn a_service_of_many_ports_is_cut_between_them_too() {
    let port = |number: u16, backends: u16| weft_api::ServicePortReport {
        name: format!("p{number}"),
        protocol: "TCP".into(),
        port: number,
        node_port: None,
        backends: (1..=backends)
            .map(|last| weft_api::BackendReport {
                address: std::net::Ipv4Addr::from([10, 1, (last >> 8) as u8, last as u8]).into(),
                port: 8080,
                node: None,
                state: "ready".into(),
                weight: 100,
            })
            .collect(),
    };
    for backends in [0, 1, 2, 5, 1000] {
        let ports =
            (1..6000 / (backends + 1) + 2).map(|number| port(number, if number % 7 == 0 { 0 } else { backends }));
        let whole = ServiceReport {
            namespace: "x".into(),
            name: "s".into(),
            cluster_ips: vec!["10.96.0.1".parse().unwrap()],
            external_ips: Vec::new(),
            ports: ports.collect(),
            affinity_seconds: None,
            algorithm: "random".into(),
        };
        let (mut rest, mut told, mut end) = (whole.clone(), None::<ServiceReport>, None);
        loop {
            let cut = cut(&mut rest, end.map_or(0, |end: Within| end.port));
            assert!(cut.is_none() || length(&rest) <= MAX_PAGE_BYTES + 1);
            match &mut told {
                None => told = Some(rest),
                Some(told) => told.extend(rest).unwrap(),
            }
            rest = whole.clone();
            end = cut;
            let Some(end) = end else { break };
            skip(&mut rest, end);
        }
        assert_eq!(told, Some(whole), "{backends} backends a port");
    }
}

fn policy(name: &str) -> PolicyReport {
    PolicyReport {
        namespace: "x".into(),
        name: name.into(),
        directions: Vec::new(),
        selected: Vec::new(),
        rules: 0,
        state: "enforced".into(),
    }
}

#[test]
fn every_list_comes_by_pages() {
    let route = |node: &str, cidr: &str| RouteReport {
        node: node.into(),
        pod_cidr: cidr.parse().unwrap(),
        via: "192.0.2.1".parse().unwrap(),
    };
    let desired = Desired {
        policy_reports: ["a", "b", "c"].map(policy).into(),
        route_reports: vec![route("n1", "10.1.0.0/24"), route("n1", "fd00:1::/64"), route("n2", "10.0.0.0/24")],
        problems: vec!["two".into(), "three".into(), "one".into()],
        ..Desired::default()
    };
    let view = View {
        attachments: (1..4).map(|number| Attachment::sample(number, None, &[]).into()).collect(),
        ..View::default()
    };
    let shared = shared(Planner::of(desired), view);
    let told = |list| {
        let names = pages(&shared, list, 1).into_iter().map(|page| match page.entries {
            Entries::Policies(all) => all.into_iter().map(|policy| policy.name).collect(),
            Entries::Routes(all) => all.into_iter().map(|route| route.pod_cidr.to_string()).collect(),
            Entries::Endpoints(all) => all.into_iter().map(|EndpointReport { ifname, .. }| ifname).collect(),
            Entries::Problems(all) => all,
            other => panic!("{other:?}"),
        });
        let names: Vec<Vec<String>> = names.collect();
        assert!(names.iter().all(|page| page.len() == 1), "{names:?}");
        names.concat()
    };
    assert_eq!(told(List::Policies), ["a", "b", "c"]);
    assert_eq!(told(List::Routes), ["10.1.0.0/24", "fd00:1::/64", "10.0.0.0/24"]);
    assert_eq!(told(List::Endpoints), ["weft1", "weft2", "weft3"]);
    assert_eq!(told(List::Problems), ["one", "three", "two"]);
    assert!(matches!(ask(&shared, &query(List::Vms)).entries, Entries::Vms(vms) if vms.is_empty()));
}

#[test]
fn a_page_ends_at_its_bounds_whatever_is_asked_for() {
    let names: Vec<String> = (0..2500).map(|number| format!("p{number:04}")).collect();
    let few = Desired { policy_reports: names.iter().map(|name| policy(name)).collect(), ..Desired::default() };
    let page =
        ask(&shared(Planner::of(few), View::default()), &PageQuery { limit: Some(u32::MAX), ..query(List::Policies) });
    assert!(matches!(&page.entries, Entries::Policies(all) if all.len() == MAX_PAGE_ENTRIES));
    assert_eq!(page.next.as_deref(), Some("x/p0999"));

    let long = (0..10).map(|number| format!("{number}{}", "x".repeat(MAX_PAGE_BYTES / 3))).collect();
    let shared = shared(Planner::of(Desired { problems: long, ..Desired::default() }), View::default());
    let sizes = pages(&shared, List::Problems, 1000).into_iter().map(|page| match page.entries {
        Entries::Problems(problems) => problems.len(),
        other => panic!("{other:?}"),
    });
    assert_eq!(sizes.collect::<Vec<_>>(), [2; 5]);
}

#[test]
fn a_query_that_is_not_valid_is_refused_by_field_and_with_the_fix() {
    let shared = shared(Planner::default(), View::default());
    let refused = |query: PageQuery| block_on(page(&query, &shared)).unwrap_err();
    for (list, after) in [
        (List::Services, "web"),
        (List::Services, "x/web 1"),
        (List::Services, "x/web first 10.0.0.1:80"),
        (List::Services, "x/web 1 10.0.0.1"),
        (List::Policies, ""),
        (List::Endpoints, "weft/c1"),
        (List::Endpoints, "weft/c1/eth0/more"),
        (List::Vms, "weft"),
        (List::Routes, "n1 10.0.0.0/33"),
    ] {
        let error = refused(PageQuery { after: Some(after.into()), ..query(list) });
        assert_eq!(error.code, ErrorCode::Invalid);
        assert!(error.message.starts_with(&format!("continue: '{after}'")), "{error}");
        assert!(error.message.contains("leave it out to begin anew"), "{error}");
    }
    let error = refused(PageQuery { limit: Some(0), ..query(List::Services) });
    assert!(error.message.starts_with("limit: ") && error.message.contains("1 or more"), "{error}");
    let error = refused(PageQuery { name: Some("web".into()), ..query(List::Services) });
    assert!(error.message.starts_with("name: ") && error.message.contains("leave it out"), "{error}");
}
