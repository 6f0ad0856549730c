// SPDX-License-Identifier: Apache-2.0
//! Services and endpoint choice (reference: kube-proxy's contract).

use rstest::rstest;
use weft_abi::{CLUSTER_NET, CidrKey, Frontend, FrontendFlags, FrontendKey, SocketEnd};

use super::*;
use crate::model::NextHop;

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
            "Service x/zz: 10.96.0.1 port 80/TCP is taken by Service x/web; give one of them another address or port",
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

/// What leads to a Service port beside its ClusterIP, as `address:port`.
fn further(desired: &Desired, vip: &str, port: u16) -> Vec<String> {
    let service = number(desired, vip, port);
    let beside = desired.frontends.iter().filter(|(key, frontend)| {
        frontend.service == service && !key.is_address() && frontend.flags & FrontendFlags::FURTHER != 0
    });
    let text = |(key, frontend): (&FrontendKey, &Frontend)| {
        let flags = frontend.flags & !(FrontendFlags::EXTERNAL_IP | FrontendFlags::FOR_HOST);
        assert_eq!(flags, FrontendFlags::EXTERNAL | FrontendFlags::FURTHER);
        std::net::SocketAddr::new(key.addr.into(), u16::from_be(key.port)).to_string()
    };
    beside.map(text).collect()
}

/// The frontends beside a ClusterIP that serve only some, and whom.
fn limited(desired: &Desired, vip: &str, port: u16) -> (Vec<String>, Vec<String>) {
    let service = number(desired, vip, port);
    let frontends =
        desired.frontends.iter().filter(|(_, frontend)| frontend.service == service && frontend.is_limited());
    let sources = desired.sources.keys().filter(|key| key.net == service);
    let prefix = |key: &CidrKey| format!("{}/{}", IpAddr::from(key.addr), key.address_bits());
    (frontends.map(|(key, _)| IpAddr::from(key.addr).to_string()).collect(), sources.map(prefix).collect())
}

#[test]
fn source_ranges_are_of_the_load_balancers_addresses_and_of_their_family() {
    let mut world = World::default();
    let spec = |ranges: Value| {
        json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00:96::1"],
            "externalIPs": ["203.0.113.1", "203.0.113.9"], "ports": [{"port": 80, "nodePort": 30_080}],
            "loadBalancerSourceRanges": ranges})
    };
    world.service("web", spec(json!(["198.51.100.7/24", " 192.0.2.1/32", "198.51.100.0/24"])));
    world.load_balancer("web", json!([{"ip": "203.0.113.9"}, {"ip": "2001:db8:77::9"}]));
    let desired = world.plan();
    let ranges = ["198.51.100.0/120".to_owned(), "192.0.2.1/128".into()];
    // An external IP that is the load balancer's too is limited as that.
    assert_eq!(limited(&desired, "10.96.0.1", 80), (vec!["203.0.113.9".into()], ranges.into()));
    assert_eq!(limited(&desired, "fd00:96::1", 80), (vec![], vec![]));
    let [open] = &*desired.problems else { panic!("{:?}", desired.problems) };
    assert!(open.contains("Service x/web") && open.contains("2001:db8:77::9"), "{open}");
    // What nobody understands admits nobody.
    world.service("web", spec(json!(["198.51.100.0", "2001:db8::/32"])));
    world.load_balancer("web", json!([{"ip": "203.0.113.9"}, {"ip": "2001:db8:77::9"}]));
    let desired = world.plan();
    assert_eq!(limited(&desired, "10.96.0.1", 80), (vec!["203.0.113.9".into()], vec![]));
    assert_eq!(limited(&desired, "fd00:96::1", 80), (vec!["2001:db8:77::9".into()], vec!["2001:db8::/32".into()]));
    assert!(desired.problems[0].contains("loadBalancerSourceRanges: '198.51.100.0'"), "{:?}", desired.problems);
}

fn spread(world: &mut World) {
    let endpoints =
        json!([{"addresses": ["10.0.0.1"], "nodeName": "here"}, {"addresses": ["10.0.0.2"], "nodeName": "there"}]);
    world.slice("s", "web", json!({"ports": [{"port": 80}], "endpoints": endpoints}));
}

#[test]
fn node_ports_external_ips_and_load_balancers_lead_where_the_cluster_ip_does() {
    let mut world = World::default();
    world.service(
        "web",
        json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00:96::1"],
            "externalIPs": ["203.0.113.1", "2001:db8:77::1"], "ports": [{"port": 80, "nodePort": 30_080}]}),
    );
    world.load_balancer(
        "web",
        json!([{"ip": "203.0.113.9"}, {"ip": "203.0.113.10", "ipMode": "Proxy"}, {"hostname": "lb.example"},
            {"ip": "203.0.113.11", "ipMode": "VIP"}, {"ip": "2001:db8:77::9"}]),
    );
    let desired = world.plan();
    assert!(desired.problems.is_empty(), "{:?}", desired.problems);
    let four = ["0.0.0.0:30080", "203.0.113.1:80", "203.0.113.9:80", "203.0.113.11:80"];
    let six = ["[::]:30080", "[2001:db8:77::1]:80", "[2001:db8:77::9]:80"];
    let sorted = |mut all: Vec<String>| {
        all.sort();
        all
    };
    assert_eq!(sorted(further(&desired, "10.96.0.1", 80)), sorted(four.map(str::to_owned).into()));
    assert_eq!(sorted(further(&desired, "fd00:96::1", 80)), sorted(six.map(str::to_owned).into()));
    // Other ports of addresses beyond the cluster are no Service's: no route leads all of them here.
    let routes: Vec<_> = desired.host_routes.iter().map(|route| route.dst.to_string()).collect();
    assert!(!routes.iter().any(|dst| dst.starts_with("203.0.113.") || dst.starts_with("0.0.0.0")), "{routes:?}");
    let external: IpAddr = "203.0.113.9".parse().unwrap();
    assert!(!desired.remotes.contains_key(&crate::plan::address::cidr_key(external.into())));
    // Another type has no load balancer, whatever its status says.
    world.service("web", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
    world.load_balancer("web", json!([{"ip": "203.0.113.9"}]));
    assert_eq!(further(&world.plan(), "10.96.0.1", 80), [""; 0]);
}

/// Not where the ClusterIP's clients get other endpoints, and not where the node would lose its router or its API server.
#[test]
fn external_addresses_lead_sockets_of_the_host_to_the_cluster_ip() {
    let mut world = World::default();
    let spec = |policy: &str| {
        json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1", "internalTrafficPolicy": policy,
            "externalIPs": ["203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.4"], "ports": [{"port": 80, "nodePort": 30_080}]})
    };
    world.service("web", spec("Cluster"));
    world.load_balancer("web", json!([{"ip": "203.0.113.9"}]));
    world.facts.reserved = vec!["203.0.113.2".parse().unwrap()];
    world.facts.next_hops = [("192.0.2.9", "203.0.113.4")]
        .map(|(node, via)| (node.parse().unwrap(), NextHop::Router(via.parse().unwrap())))
        .into();
    world.facts.api_servers = Some(vec!["203.0.113.3".parse().unwrap()]);
    let for_host = |desired: &Desired| {
        let led = desired.frontends.iter().filter(|(_, frontend)| frontend.flags & FrontendFlags::FOR_HOST != 0);
        led.map(|(key, _)| IpAddr::from(key.addr).to_string()).collect::<Vec<_>>()
    };
    let desired = world.plan();
    assert_eq!(for_host(&desired), ["203.0.113.1", "203.0.113.9"]);
    let firsts: Vec<SocketEnd> = desired.balancers.values().map(|balancer| balancer.first).collect();
    let vip: IpAddr = "10.96.0.1".parse().unwrap();
    assert_eq!(firsts, [SocketEnd::new(vip.into(), 80_u16.to_be())]);
    world.service("web", spec("Local"));
    assert_eq!(for_host(&world.plan()), [""; 0]);
    world.service("web", spec("Cluster"));
    world.facts.api_servers = None;
    assert_eq!(for_host(&world.plan()), [""; 0], "nobody knows where the node asks");
    world.facts.api_servers = Some(vec![]);
    world.facts.exposure.external_from_node = false;
    assert_eq!(for_host(&world.plan()), [""; 0]);
}

#[rstest]
#[case::everywhere("Cluster", "Cluster", &["1", "2"], &["1", "2"])]
#[case::from_elsewhere("Cluster", "Local", &["1", "2"], &["1"])]
#[case::from_pods("Local", "Cluster", &["1"], &["1", "2"])]
#[case::nowhere("Local", "Local", &["1"], &["1"])]
fn traffic_policies_are_of_their_own_clients(
    #[case] internal: &str,
    #[case] external: &str,
    #[case] expected: &[&str],
    #[case] expected_externally: &[&str],
) {
    let mut world = World::default();
    world.service(
        "web",
        json!({"type": "NodePort", "clusterIP": "10.96.0.1", "internalTrafficPolicy": internal,
            "externalTrafficPolicy": external, "ports": [{"port": 80, "nodePort": 30_080}]}),
    );
    spread(&mut world);
    let desired = world.plan();
    let balancer = &desired.balancers[&number(&desired, "10.96.0.1", 80)];
    let last = |set: &Arc<[weft_abi::Member]>| -> Vec<String> {
        let octet =
            |member: &weft_abi::Member| IpAddr::from(member.addr).to_string().rsplit('.').next().unwrap().to_owned();
        set.iter().map(octet).collect()
    };
    assert_eq!(
        (last(&balancer.internal), last(&balancer.external)),
        (
            expected.iter().map(ToString::to_string).collect(),
            expected_externally.iter().map(ToString::to_string).collect(),
        )
    );
    assert_eq!(last(&balancer.cluster), ["1", "2"], "clients of this node");
    assert!(balancer.keeping.is_empty());
}

/// Of `CategorizeEndpoints`: each endpoint is `node hints/zone hints`, and how it is.
#[rstest]
#[case::nobody_is_hinted_at(&["/", "/"], &[], &["1", "2"])]
#[case::of_this_zone(&["/a", "/b"], &[], &["1"])]
#[case::of_several_zones(&["/b,a", "/b", "/a"], &[], &["1", "3"])]
#[case::of_this_node(&["here/b", "there/a"], &[], &["1"])]
#[case::of_other_nodes_and_this_zone(&["there/b", "there/a"], &[], &["2"])]
#[case::of_other_nodes(&["there/", "there/"], &[], &["1", "2"])]
#[case::of_other_zones(&["/b", "/c"], &[], &["1", "2"])]
#[case::not_all_are_hinted_at(&["/a", "/"], &[], &["1", "2"])]
#[case::not_all_of_nodes_but_of_zones(&["here/b", "/a"], &[], &["2"])]
#[case::what_is_not_ready_does_not_count(&["/a", "/b", "/"], &[3], &["1"])]
#[case::nothing_of_this_zone_is_ready(&["/a", "/b"], &[1], &["2"])]
#[case::where_all_terminate_hints_do_not_count(&["/a", "/b"], &[1, 2], &["1", "2"])]
fn hints_keep_traffic_in_its_zone_or_node(
    #[case] endpoints: &[&str],
    #[case] terminating: &[usize],
    #[case] expected: &[&str],
) {
    let mut world = World::default();
    world.node("here", &[]).zone("here", "a");
    world.service("web", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
    let hints = |names: &str| -> Vec<Value> {
        names.split(',').filter(|name| !name.is_empty()).map(|name| json!({"name": name})).collect()
    };
    let endpoint = |(number, text): (usize, &&str)| {
        let (nodes, zones) = text.split_once('/').unwrap();
        let ready = !terminating.contains(&number);
        json!({"addresses": [format!("10.0.0.{number}")], "hints": {"forNodes": hints(nodes), "forZones": hints(zones)},
            "conditions": {"ready": ready, "serving": true, "terminating": !ready}})
    };
    let endpoints: Vec<Value> = (1..).zip(endpoints).map(endpoint).collect();
    world.slice("s", "web", json!({"ports": [{"port": 80}], "endpoints": endpoints}));
    let expected: Vec<String> = expected.iter().map(|last| format!("10.0.0.{last}:80")).collect();
    let desired = world.plan();
    assert_eq!(backends(&desired, "10.96.0.1", 80, TCP).unwrap(), expected);
    let told: Vec<String> =
        desired.service_reports[0].ports[0].backends.iter().map(|told| format!("{}:80", told.address)).collect();
    assert_eq!(told, expected, "what is told is what is done");
    let other = &desired.balancers[&number(&desired, "10.96.0.1", 80)].keeping;
    let ready = world.snapshot.slices.values().next().unwrap().endpoints.as_ref().unwrap().len();
    assert_eq!(other.len(), ready - expected.len(), "who is not meant for this node keeps what it has");
}

/// Of nodes that are labelled with none, hints mean nothing.
#[test]
fn without_a_zone_hints_for_zones_do_not_count() {
    let mut world = World::default();
    world.node("here", &[]).node("there", &[]).zone("there", "a");
    world.service("web", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
    let endpoints = json!([{"addresses": ["10.0.0.1"], "hints": {"forZones": [{"name": "a"}]}},
        {"addresses": ["10.0.0.2"], "hints": {"forZones": [{"name": "b"}]}}]);
    world.slice("s", "web", json!({"ports": [{"port": 80}], "endpoints": endpoints}));
    assert_eq!(backends(&world.plan(), "10.96.0.1", 80, TCP).unwrap(), ["10.0.0.1:80", "10.0.0.2:80"]);
}

#[test]
fn external_addresses_can_be_limited_and_what_is_none_is_named() {
    let mut world = World::default();
    let spec = json!({"clusterIP": "10.96.0.1", "externalIPs": ["203.0.113.1", "198.51.100.1", "127.0.0.1", "x"],
        "ports": [{"port": 80}]});
    world.service("web", spec);
    world.facts.exposure.allowed_cidrs = vec!["203.0.113.0/24".parse().unwrap()];
    let desired = world.plan();
    assert_eq!(further(&desired, "10.96.0.1", 80), ["203.0.113.1:80"]);
    let named = |what: &str| desired.problems.iter().filter(|problem| problem.contains(what)).count();
    assert_eq!((named("198.51.100.1 is in none of services.allowedCIDRs"), named("'x' is not an IP address")), (1, 1));
    world.facts.exposure.external_ips = false;
    let desired = world.plan();
    assert_eq!(further(&desired, "10.96.0.1", 80), [""; 0]);
    assert!(desired.problems.iter().any(|problem| problem.contains("services.externalIPs is off")));
}

/// Who may write a Service must not be able to take a port from another's ClusterIP, whatever the names of both.
#[rstest]
#[case::of_the_configuration(true)]
#[case::of_a_service_cidr(false)]
fn an_external_address_takes_no_port_of_a_cluster_ip(#[case] configured: bool) {
    let mut world = World::default();
    let dns = json!({"clusterIP": "172.30.0.10", "ports": [{"port": 53}]});
    world.service("kube-dns", dns);
    let thief = json!({"clusterIP": "172.30.0.66", "externalIPs": ["172.30.0.10"], "ports": [{"port": 53}]});
    world.service("a-thief", thief);
    if configured {
        world.facts.service_cidrs = vec!["172.30.0.0/16".parse().unwrap()];
    } else {
        world.service_cidr("kubernetes", &["172.30.0.0/16"]);
    }
    spread(&mut world);
    let desired = world.plan();
    assert_eq!(desired.frontends[&key("172.30.0.10", 53, TCP)].flags, 0, "the ClusterIP's");
    let why = "Service x/a-thief: spec.externalIPs: 172.30.0.10 is in 172.30.0.0/16, which is for ClusterIPs, and is not served";
    assert!(desired.problems.iter().any(|problem| problem == why), "{:?}", desired.problems);
    assert_eq!(desired.problems.len(), 1, "{:?}", desired.problems);
}

#[test]
fn a_node_port_that_two_ask_for_is_the_first_ones() {
    let mut world = World::default();
    let spec = |vip: &str| json!({"type": "NodePort", "clusterIP": vip, "ports": [{"port": 80, "nodePort": 30_080}]});
    world.service("b", spec("10.96.0.2")).service("a", spec("10.96.0.1"));
    let desired = world.plan();
    assert_eq!(further(&desired, "10.96.0.1", 80), ["0.0.0.0:30080"]);
    assert_eq!(further(&desired, "10.96.0.2", 80), [""; 0]);
    assert_eq!(
        desired.problems,
        ["Service x/b: nodePort 30080/TCP is taken by Service x/a; give one of them another nodePort"]
    );
}

/// CVE-2020-8554: whoever may write a Service must not be able to take what another one has.
#[test]
fn an_address_that_two_ask_for_is_the_load_balancers_then_the_oldest_ones() {
    let mut world = World::default();
    let spec = |vip: &str, external: &[&str]| json!({"type": "LoadBalancer", "clusterIP": vip, "externalIPs": external, "ports": [{"port": 80}]});
    let beside = |world: &mut World| {
        let desired = world.plan();
        let taken = desired.problems.iter().filter(|problem| problem.contains("is taken by")).count();
        (further(&desired, "10.96.0.1", 80), further(&desired, "10.96.0.2", 80), taken)
    };
    let (one, other) = ("203.0.113.1:80".to_owned(), "203.0.113.2:80".to_owned());
    // The name that comes first is the newer one's.
    world.service("a", spec("10.96.0.1", &["203.0.113.1", "203.0.113.2"])).created("a", 2);
    world.service("b", spec("10.96.0.2", &["203.0.113.1"])).created("b", 1);
    assert_eq!(beside(&mut world), (vec![other.clone()], vec![one.clone()], 1));
    world.service("b", spec("10.96.0.2", &[])).created("b", 3);
    assert_eq!(beside(&mut world), (vec![one.clone(), other.clone()], vec![], 0));
    world.load_balancer("b", json!([{"ip": "203.0.113.2"}]));
    assert_eq!(beside(&mut world), (vec![one.clone()], vec![other.clone()], 1), "whoever was there before");
    world.load_balancer("a", json!([{"ip": "203.0.113.2"}]));
    assert_eq!(
        beside(&mut world),
        (vec![one.clone(), other.clone()], vec![], 1),
        "two load balancers: the oldest one's"
    );
    // Nobody asks for it any more but the other one.
    world.snapshot.services.remove(&ObjectKey::new("x", "a"));
    let desired = world.plan();
    assert_eq!(further(&desired, "10.96.0.2", 80), [other]);
    assert!(desired.problems.is_empty(), "{:?}", desired.problems);
}
