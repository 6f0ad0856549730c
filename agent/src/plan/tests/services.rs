// SPDX-License-Identifier: Apache-2.0
//! Services and endpoint choice (reference: kube-proxy's contract).

use rstest::rstest;
use weft_abi::{CLUSTER_NET, Frontend, FrontendFlags, FrontendKey};

use super::*;

fn key(vip: &str, port: u16, protocol: u8) -> FrontendKey {
    FrontendKey::of_cluster(addr(vip), port.to_be(), protocol)
}

/// Backends of a frontend as `address:port`; none: no such frontend.
fn backends(desired: &Desired, vip: &str, port: u16, protocol: u8) -> Option<Vec<String>> {
    let Frontend { service, flags } = *desired.frontends.get(&key(vip, port, protocol))?;
    assert_eq!(flags, 0, "a ClusterIP");
    let text = |backend: &weft_abi::Member| {
        let octets: Vec<u8> = backend.addr.0.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let ip = std::net::Ipv6Addr::from(<[u8; 16]>::try_from(octets).unwrap());
        let ip = ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4);
        std::net::SocketAddr::new(ip, u16::from_be(backend.port)).to_string()
    };
    Some(desired.balancers[&service].internal.iter().map(text).collect())
}

/// The number of a frontend's Service port.
fn number(desired: &Desired, vip: &str, port: u16) -> u32 {
    desired.frontends[&key(vip, port, TCP)].service
}

fn web(world: &mut World) {
    world.service("web", json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}]}));
}

fn endpoint(ip: &str, ready: Option<bool>, serving: Option<bool>, terminating: Option<bool>) -> Value {
    json!({"addresses": [ip], "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
}

#[rstest]
#[case::nil_is_ready(None, None, None, true)]
#[case::ready(Some(true), None, None, true)]
#[case::not_ready(Some(false), None, None, false)]
#[case::ready_while_terminating(Some(true), Some(true), Some(true), true)]
#[case::serving_not_ready_not_terminating(Some(false), Some(true), Some(false), false)]
#[case::terminating_serving(Some(false), Some(true), Some(true), true)]
#[case::terminating_not_serving(Some(false), Some(false), Some(true), false)]
fn conditions(
    #[case] ready: Option<bool>,
    #[case] serving: Option<bool>,
    #[case] terminating: Option<bool>,
    #[case] used: bool,
) {
    let mut world = World::default();
    web(&mut world);
    world.slice(
        "s",
        "web",
        json!({"ports": [{"port": 8080}], "endpoints": [endpoint("10.0.0.1", ready, serving, terminating)]}),
    );
    let expected = if used { vec!["10.0.0.1:8080".to_owned()] } else { vec![] };
    assert_eq!(backends(&world.plan(), "10.96.0.1", 80, TCP), Some(expected));
}

#[test]
fn terminating_endpoints_serve_only_where_nothing_is_ready() {
    let mut world = World::default();
    web(&mut world);
    let terminating = endpoint("10.0.0.2", Some(false), Some(true), Some(true));
    world.slice("s", "web", json!({"ports": [{"port": 80}], "endpoints": [{"addresses": ["10.0.0.1"]}, terminating]}));
    assert_eq!(backends(&world.plan(), "10.96.0.1", 80, TCP).unwrap(), ["10.0.0.1:80"]);
    world.slice("s", "web", json!({"ports": [{"port": 80}], "endpoints": [terminating]}));
    let desired = world.plan();
    assert_eq!(backends(&desired, "10.96.0.1", 80, TCP).unwrap(), ["10.0.0.2:80"]);
    assert_eq!(desired.service_reports[0].ports[0].backends[0].state, "terminating");
}

/// Whoever has a connection to it keeps it: kube-proxy forgets those of endpoints that do not serve, and no others.
#[test]
fn an_endpoint_that_serves_and_is_not_ready_keeps_what_it_has() {
    let mut world = World::default();
    web(&mut world);
    let serving = endpoint("10.0.0.2", Some(false), Some(true), Some(false));
    for others in [json!([serving]), json!([{"addresses": ["10.0.0.1"]}, serving])] {
        let chosen = others.as_array().map_or(0, Vec::len) - 1;
        world.slice("s", "web", json!({"ports": [{"port": 80}], "endpoints": others}));
        let desired = world.plan();
        let balancers: Vec<_> = desired.balancers.values().collect();
        let [balancer] = balancers[..] else { panic!("{balancers:?}") };
        assert_eq!((balancer.internal.len(), balancer.keeping.len()), (chosen, 1), "{balancer:?}");
    }
}

#[test]
fn slices_merge_and_only_first_addresses_count() {
    let mut world = World::default();
    web(&mut world);
    world
        .slice("s1", "web", json!({"ports": [{"port": 80}], "endpoints": [{"addresses": ["10.0.0.3", "10.0.0.9"]}]}))
        .slice(
            "s2",
            "web",
            json!({"ports": [{"port": 80}], "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.3"]}]}),
        )
        .slice("s3", "web", json!({"ports": [{"port": 81}], "endpoints": [{"addresses": ["10.0.0.3"]}]}))
        .slice("other", "db", json!({"ports": [{"port": 80}], "endpoints": [{"addresses": ["10.0.0.7"]}]}))
        .slice(
            "v6",
            "web",
            json!({"addressType": "IPv6", "ports": [{"port": 80}], "endpoints": [{"addresses": ["fd00::1"]}]}),
        )
        .slice(
            "fqdn",
            "web",
            json!({"addressType": "FQDN", "ports": [{"port": 80}], "endpoints": [{"addresses": ["a.example"]}]}),
        );
    let desired = world.plan();
    assert_eq!(backends(&desired, "10.96.0.1", 80, TCP).unwrap(), ["10.0.0.1:80", "10.0.0.3:80", "10.0.0.3:81"]);
    assert_eq!(desired.problems, Vec::<String>::new());
}

#[test]
fn an_endpoint_in_two_slices_is_ready_if_either_says_so() {
    let mut world = World::default();
    web(&mut world);
    let old = endpoint("10.0.0.1", Some(false), Some(true), Some(true));
    world.slice("a", "web", json!({"ports": [{"port": 80}], "endpoints": [old]})).slice(
        "b",
        "web",
        json!({"ports": [{"port": 80}], "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "n"}]}),
    );
    let desired = world.plan();
    let report = &desired.service_reports[0].ports[0].backends[0];
    assert_eq!((report.state.as_str(), report.node.as_deref()), ("ready", Some("n")));
}

#[test]
fn ports_go_by_name_and_protocol() {
    let mut world = World::default();
    world.service(
        "dns",
        json!({"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            {"name": "sig", "port": 53, "protocol": "SCTP"}]}),
    );
    world.slice(
        "s",
        "dns",
        json!({"ports": [{"name": "dns", "port": 5353, "protocol": "UDP"}, {"name": "dns-tcp", "port": 5354},
                         {"name": "sig", "port": null, "protocol": "SCTP"}],
               "endpoints": [{"addresses": ["10.0.0.1"]}]}),
    );
    let desired = world.plan();
    assert_eq!(backends(&desired, "10.96.0.10", 53, UDP).unwrap(), ["10.0.0.1:5353"]);
    assert_eq!(backends(&desired, "10.96.0.10", 53, TCP).unwrap(), ["10.0.0.1:5354"]);
    assert_eq!(backends(&desired, "10.96.0.10", 53, SCTP).unwrap(), Vec::<String>::new(), "a nil port is no port");
    let address = Frontend { service: 0, flags: FrontendFlags::ADDRESS };
    assert_eq!(desired.frontends[&FrontendKey::of_address(CLUSTER_NET, addr("10.96.0.10"))], address);
    let numbers: std::collections::BTreeSet<u32> =
        desired.frontends.values().map(|frontend| frontend.service).collect();
    assert_eq!(numbers.len(), 4, "each frontend has its own number, and the address none");
}

#[test]
fn both_families_have_frontends_of_their_own() {
    let mut world = World::default();
    let vips = json!(["fd00:96::1", "10.96.0.1"]);
    world.service("web", json!({"clusterIP": "fd00:96::1", "clusterIPs": vips, "ports": [{"port": 80}]}));
    world.slice("v4", "web", json!({"ports": [{"port": 80}], "endpoints": [{"addresses": ["10.0.0.1"]}]})).slice(
        "v6",
        "web",
        json!({"addressType": "IPv6", "ports": [{"port": 80}], "endpoints": [{"addresses": ["fd00::1"]}]}),
    );
    let desired = world.plan();
    assert_eq!(backends(&desired, "10.96.0.1", 80, TCP).unwrap(), ["10.0.0.1:80"]);
    assert_eq!(backends(&desired, "fd00:96::1", 80, TCP).unwrap(), ["[fd00::1]:80"]);
    let [a, b] = ["10.96.0.1", "fd00:96::1"].map(|vip| number(&desired, vip, 80));
    assert_ne!(a, b);
    assert_eq!(desired.service_names[&key("fd00:96::1", 80, TCP)], "x/web");
    assert_eq!(desired.service_reports[0].ports[0].backends.len(), 2);
}

#[rstest]
#[case::headless(json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 80}]}), json!({}))]
#[case::no_vip_yet(json!({"clusterIP": "", "ports": [{"port": 80}]}), json!({}))]
#[case::external_name(json!({"type": "ExternalName", "externalName": "a.example", "clusterIP": "10.96.0.1", "ports": [{"port": 80}]}), json!({}))]
#[case::another_proxy(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}), json!({"service.kubernetes.io/service-proxy-name": ""}))]
#[case::labelled_headless(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}), json!({"service.kubernetes.io/headless": "x"}))]
fn skipped(#[case] spec: Value, #[case] labels: Value) {
    let mut world = World::default();
    let service =
        from_value(json!({"metadata": {"namespace": "x", "name": "web", "labels": labels}, "spec": spec})).unwrap();
    world.snapshot.services.insert(ObjectKey::new("x", "web"), Arc::new(service));
    let desired = world.plan();
    assert!(
        desired.frontends.is_empty()
            && desired.balancers.is_empty()
            && desired.problems.is_empty()
            && world.numbers.services.is_empty()
    );
}

#[test]
fn a_frontend_without_backends_stays() {
    let mut world = World::default();
    web(&mut world);
    assert_eq!(backends(&world.plan(), "10.96.0.1", 80, TCP), Some(vec![]));
}

#[test]
fn internal_traffic_policy_local_means_this_node() {
    let mut world = World::default();
    world.service("web", json!({"clusterIP": "10.96.0.1", "internalTrafficPolicy": "Local", "ports": [{"port": 80}]}));
    let endpoints =
        json!([{"addresses": ["10.0.0.1"], "nodeName": "here"}, {"addresses": ["10.0.0.2"], "nodeName": "there"}]);
    world.slice("s", "web", json!({"ports": [{"port": 80}], "endpoints": endpoints}));
    assert_eq!(backends(&world.plan(), "10.96.0.1", 80, TCP).unwrap(), ["10.0.0.1:80"]);
}

#[test]
fn bad_objects_are_named_and_leave_the_others_alone() {
    let mut world = World::default();
    web(&mut world);
    world
        .service("zz", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}))
        .service(
            "odd",
            json!({"clusterIP": "10.96.0.2", "ports": [{"port": 0}, {"name": "p", "port": 81, "protocol": "ICMP"}]}),
        )
        .service("bad", json!({"clusterIP": "10.96.0.300", "ports": [{"port": 80}]}));
    let desired = world.plan();
    assert_eq!((desired.frontends.len(), desired.balancers.len()), (2, 1));
    assert_eq!(
        desired.problems,
        [
            "Service x/bad: spec.clusterIPs: '10.96.0.300' is not an IP address",
            "Service x/odd: spec.ports '': port: 0 is not between 1 and 65535",
            "Service x/odd: spec.ports 'p': protocol: 'ICMP' is not TCP, UDP or SCTP",
            "Service x/zz: 10.96.0.1 port 80/TCP is taken by Service x/web; give one of them another clusterIP or port",
        ]
    );
}

#[test]
fn numbers_outlive_changes_of_everything_else() {
    let mut world = World::default();
    web(&mut world);
    let before = number(&world.plan(), "10.96.0.1", 80);
    world.service("a-first", json!({"clusterIP": "10.96.0.2", "ports": [{"port": 80}]}));
    world.local(("x", "p"), json!({}), &["10.0.0.5"], json!({}));
    let desired = world.plan();
    assert_eq!(number(&desired, "10.96.0.1", 80), before);
    assert_ne!(number(&desired, "10.96.0.2", 80), before);
}

#[test]
fn equal_sets_are_one() {
    let mut world = World::default();
    web(&mut world);
    world.slice("s", "web", json!({"ports": [{"port": 80}], "endpoints": [{"addresses": ["10.0.0.1"]}]}));
    let desired = world.plan();
    let balancer = &desired.balancers[&number(&desired, "10.96.0.1", 80)];
    assert!(balancer.sets().iter().all(|set| Arc::ptr_eq(set, &balancer.internal)), "stored once here too");
}
