// SPDX-License-Identifier: Apache-2.0

//! Frontends beside ClusterIPs: who answers at them, whom, and seen as whom.

use super::*;
use crate::oracle::world::{HostPort, Ingress, IpMode, ServiceKind};

const NODE_PORT: u16 = 30_080;
const FAR_PORT: u16 = 8080;

fn lb() -> IpAddr {
    [203, 0, 113, 20].into()
}

fn own() -> IpAddr {
    node_addresses(1)[0]
}

/// The Service of [`served`] with a NodePort and a load balancer's address; it leads to `b` here, and to `far`.
fn exposed() -> World {
    let mut world = served(vec![endpoint(of_pod(1, 12), 1, READY), endpoint(of_pod(2, 11), 2, READY)]);
    let service = &mut world.services[0];
    service.ports[0].node_port = Some(NODE_PORT);
    service.exposure.kind = ServiceKind::LoadBalancer;
    service.exposure.ingress = vec![Ingress { address: Some(lb()), mode: None }];
    world
}

fn to(from: &str, address: IpAddr, port: u16) -> Packet {
    packet(from, address, Protocol::Tcp, port)
}

fn all(world: &World, packet: &Packet) -> Vec<Verdict> {
    answer(world, HERE, packet, None, Quirks::default())
}

fn backends(world: &World, packet: &Packet) -> Vec<(IpAddr, Source)> {
    let verdicts = all(world, packet);
    verdicts.iter().map(delivered).map(|(_, address, _, source)| (address, source)).collect()
}

#[test]
fn who_asks_from_beyond_is_kept_by_a_pod_here_and_masqueraded_beyond_the_node() {
    let [b, far] = [of_pod(1, 12), of_pod(2, 11)];
    let world = exposed();
    let vip = IpAddr::from([10, 96, 0, 10]);
    for frontend in [(own(), NODE_PORT), (lb(), 80), (vip, 80)] {
        let [near, beyond] = [(b, Source::Kept), (far, Source::Masqueraded)];
        assert_eq!(backends(&world, &to("wire", frontend.0, frontend.1)), [near, beyond], "{frontend:?}");
        assert_eq!(
            backends(&world, &to("red/a", frontend.0, frontend.1)),
            [near, (far, Source::Kept)],
            "{frontend:?}, from a pod"
        );
    }
    let of_host = served(vec![endpoint(own(), 1, READY)]);
    assert_eq!(backends(&of_host, &to("wire", vip, 80)), [(own(), Source::Hairpin)]);
    assert_eq!(backends(&of_host, &to("red/a", vip, 80)), [(own(), Source::Kept)]);
}

/// What nobody serves at an address is its own.
#[test]
fn other_ports_and_addresses_are_their_owners() {
    let world = exposed();
    for packet in [
        to("wire", own(), NODE_PORT + 1),
        to("wire", own(), 80),
        to("wire", lb(), 81),
        to("wire", pod_addresses(1, 1)[0], NODE_PORT),
        to("wire", [10, 96, 0, 10].into(), 81),
        Packet { protocol: Protocol::Udp, ..to("wire", own(), NODE_PORT) },
    ] {
        assert_eq!(one(&world, &packet), Verdict::Kernel, "{packet}");
    }
    let beyond = one(&world, &to("red/a", lb(), 81));
    assert_eq!(delivered(&beyond), (&Target::Outside, lb(), 81, Source::Masqueraded));
    assert_eq!(delivered(&one(&world, &to("red/a", own(), NODE_PORT + 1))).0, &Target::Host);
    let another = delivered(&one(&world, &to("red/a", node_addresses(2)[0], NODE_PORT))).1;
    assert_eq!(another, node_addresses(2)[0], "a NodePort of another node is that node's");
}

/// The node's own sockets are led to an address that is theirs alone.
#[test]
fn the_node_asks_for_its_node_ports_by_an_address_of_its_own() {
    let world = exposed();
    let at = |from, port| to(from, hairpin(true), port);
    assert_eq!(backends(&world, &at("host", NODE_PORT))[0], (of_pod(1, 12), Source::Kept));
    for packet in [at("host", NODE_PORT + 1), at("red/a", NODE_PORT)] {
        assert_eq!(one(&world, &packet), Verdict::Dropped(Reason::Unreachable), "{packet}");
    }
}

#[test]
fn a_local_policy_is_for_clients_from_elsewhere_and_each_for_its_own_frontends() {
    let [b, far] = [of_pod(1, 12), of_pod(2, 11)];
    let count = |world: &World, from, address, port| backends(world, &to(from, address, port)).len();
    let vip = IpAddr::from([10, 96, 0, 10]);
    for (internal, external) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut world = exposed();
        (world.services[0].local, world.services[0].exposure.local) = (internal, external);
        for from in ["red/a", "host", "wire"] {
            assert_eq!(count(&world, from, vip, 80), if internal { 1 } else { 2 }, "{from}");
        }
        for (address, port) in [(own(), NODE_PORT), (lb(), 80)] {
            assert_eq!(count(&world, "wire", address, port), if external { 1 } else { 2 });
            assert_eq!(count(&world, "red/a", address, port), 2);
        }
        assert_eq!(count(&world, "host", hairpin(true), NODE_PORT), 2);
        world.slices[0].endpoints.remove(0);
        let none = Verdict::Dropped(Reason::NoLocalBackend);
        assert_eq!(one(&world, &to("wire", lb(), 80)) == none, external);
        assert_eq!(backends(&world, &to("red/a", lb(), 80)), [(far, Source::Kept)]);
        world.slices[0].endpoints.clear();
        assert_eq!(one(&world, &to("wire", lb(), 80)), Verdict::Dropped(Reason::NoBackend));
        world.slices[0].endpoints = vec![endpoint(b, 1, ENDING), endpoint(far, 2, READY)];
        assert_eq!(backends(&world, &to("wire", lb(), 80))[0].0, if external { b } else { far }, "who ends serves");
    }
}

#[test]
fn a_load_balancer_that_others_are_to_use_is_left_to_them() {
    for (kind, mode, served) in [
        (ServiceKind::LoadBalancer, Some(IpMode::Vip), true),
        (ServiceKind::LoadBalancer, Some(IpMode::Proxy), false),
        (ServiceKind::NodePort, None, false),
    ] {
        let mut world = exposed();
        world.services[0].exposure.kind = kind;
        world.services[0].exposure.ingress[0].mode = mode;
        assert_eq!(all(&world, &to("wire", lb(), 80)) != [Verdict::Kernel], served, "{kind:?} {mode:?}");
        // Without a NodePort the address serves all the same.
        world.services[0].ports[0].node_port = None;
        assert_eq!(all(&world, &to("wire", lb(), 80)) != [Verdict::Kernel], served);
        assert_eq!(one(&world, &to("wire", own(), NODE_PORT)), Verdict::Kernel);
        let another = Service { foreign: true, ..world.services[0].clone() };
        let mut name = world.services[0].clone();
        name.exposure.kind = ServiceKind::ExternalName;
        for unserved in [another, name] {
            world.services[0] = unserved;
            assert_eq!(one(&world, &to("wire", lb(), 80)), Verdict::Kernel);
            assert_eq!(one(&world, &vip("red/a", 80)), Verdict::Dropped(Reason::NoService));
        }
    }
}

#[test]
fn ranges_are_for_clients_of_a_load_balancers_address_alone() {
    let outside = Verdict::Dropped(Reason::SourceRange);
    let mut world = exposed();
    let refuses = |world: &World, packet: &Packet| all(world, packet) == [outside.clone()];
    for (ranges, wire, pod) in [
        (vec!["203.0.113.0/24"], false, true),
        (vec!["203.0.113.11/32", "10.244.1.11/32"], true, false),
        (vec!["2001:db8::/32"], false, false),
        (vec!["somewhere"], true, true),
        (vec!["somewhere", " 10.244.0.0/16"], true, false),
    ] {
        world.services[0].exposure.ranges = ranges.into_iter().map(str::to_owned).collect();
        assert_eq!(refuses(&world, &to("wire", lb(), 80)), wire);
        assert_eq!(refuses(&world, &to("red/a", lb(), 80)), pod);
        assert!(!refuses(&world, &to("wire", own(), NODE_PORT)), "a NodePort is for all");
        assert!(!refuses(&world, &to("wire", [10, 96, 0, 10].into(), 80)));
    }
    let standing = (Some((of_pod(1, 12), 8080)), None);
    let goes_on = answer_standing(&world, HERE, &to("wire", lb(), 80), standing, Quirks::default());
    assert_eq!(delivered(&goes_on[0]).1, of_pod(1, 12), "a connection that stands");
    world.services[0].exposure.external_ips = vec![lb()];
    world.services[0].exposure.ingress.clear();
    assert!(!refuses(&world, &to("wire", lb(), 80)), "an external IP");
    world.services[0].exposure.ingress = vec![Ingress { address: Some(lb()), mode: None }];
    world.services[0].exposure.ranges = vec!["somewhere".to_owned()];
    assert!(refuses(&world, &to("wire", lb(), 80)), "what is both is the load balancer's");
    world.slices.clear();
    assert_eq!(one(&world, &to("wire", lb(), 80)), Verdict::Dropped(Reason::NoBackend));
}

#[test]
fn an_external_address_takes_nothing_from_pods_nodes_and_services() {
    let mut world = exposed();
    let second =
        Service { name: "other".to_owned(), addresses: vec![[10, 96, 0, 11].into()], ..world.services[0].clone() };
    world.services.push(second);
    let targets = [of_pod(1, 13), of_pod(2, 11), of_pod(1, 200), pod_addresses(1, 1)[0], own(), node_addresses(2)[0]];
    let before: Vec<_> = targets.map(|target| all(&world, &to("red/a", target, 80))).into();
    let unused = IpAddr::from([10, 96, 7, 7]);
    let others = IpAddr::from([10, 96, 0, 11]);
    world.services[0].exposure.external_ips = targets.into_iter().chain([unused, others]).collect();
    let after: Vec<_> = targets.map(|target| all(&world, &to("red/a", target, 80))).into();
    assert_eq!(before, after);
    assert_eq!(one(&world, &to("red/a", unused, 80)), Verdict::Dropped(Reason::NoService));
    world.services[1].ports[0].port = 443;
    assert_eq!(one(&world, &to("red/a", others, 80)), Verdict::Dropped(Reason::NoServicePort));
    // Of a family that the Service has not.
    world.services[0].exposure.external_ips = vec!["2001:db8::9".parse().unwrap()];
    let of_v6 = Packet { source: pod_addresses(1, 11)[1], ..to("red/a", "2001:db8::9".parse().unwrap(), 80) };
    assert_eq!(delivered(&one(&world, &of_v6)).0, &Target::Outside);
}

/// By the strongest claim, then by age, then by name.
#[test]
fn of_several_who_ask_for_a_frontend_one_has_it() {
    let mut world = exposed();
    world.services[0].created = 5;
    let mut second = world.services[0].clone();
    (second.name, second.addresses) = ("second".to_owned(), vec![[10, 96, 0, 11].into()]);
    world.services.push(second);
    // Only the first one has endpoints.
    let has_first = |world: &World, packet: &Packet| !all(world, packet).contains(&Verdict::Dropped(Reason::NoBackend));
    let [node_port, balancer] = [to("wire", own(), NODE_PORT), to("wire", lb(), 80)];
    for (first, second, wins) in [(5, 6, true), (6, 5, false), (5, 5, false)] {
        (world.services[0].created, world.services[1].created) = (first, second);
        assert_eq!(has_first(&world, &node_port), wins, "{first} {second}");
        assert_eq!(has_first(&world, &balancer), wins);
    }
    let exposure = &mut world.services[1].exposure;
    exposure.ingress.clear();
    exposure.external_ips = vec![lb()];
    assert!(has_first(&world, &balancer), "a load balancer's address, though another one is older");
    assert!(is_contested(&world, HERE), "the NodePort");
    let mut before = world.clone();
    before.services[1].ports[0].node_port = None;
    let taken = taken_from_holder(&before, &world, HERE).unwrap();
    assert_eq!((&*taken.name, taken.address, taken.port), ("second", None, NODE_PORT));
    assert!(taken_from_holder(&world, &world, HERE).is_none());
    world.services[1].ports[0].node_port = None;
    assert!(!is_contested(&world, HERE));
}

#[test]
fn a_port_of_the_host_leads_to_its_pod_unless_a_service_has_it() {
    let port = |address, port| HostPort { address, protocol: Protocol::Tcp, port, target: FAR_PORT };
    let mut world = exposed();
    world.pods[0].host_ports = vec![port(None, 8000), port(Some(own()), 8001), port(None, NODE_PORT)];
    world.pods[1].host_ports = vec![port(None, 8000), port(None, 8001), port(Some(own()), NODE_PORT)];
    for number in [8000, 8001] {
        for from in ["wire", "red/b"] {
            assert_eq!(backends(&world, &to(from, own(), number)), [(of_pod(1, 11), Source::Kept)]);
        }
    }
    assert_eq!(backends(&world, &to("red/a", own(), 8000)), [(of_pod(1, 11), Source::NotItself)]);
    assert_eq!(backends(&world, &to("wire", own(), NODE_PORT))[0].0, of_pod(1, 12), "the Service's");
    // Of all addresses of the node, and of one.
    let gateway = pod_addresses(1, 1)[0];
    assert_eq!(backends(&world, &to("red/b", gateway, 8000)), [(of_pod(1, 11), Source::Kept)]);
    assert_eq!(backends(&world, &to("red/a", gateway, 8001)), [(of_pod(1, 12), Source::Kept)]);
    assert_eq!(delivered(&one(&world, &to("red/b", gateway, NODE_PORT))).0, &Target::Host);
}

fn hinted(number: (u8, u8), zones: &[&str], nodes: &[&str]) -> Endpoint {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let hints = Hints { zones: names(zones), nodes: names(nodes) };
    Endpoint { hints, ..endpoint(of_pod(number.0, number.1), number.0, READY) }
}

/// KEP-2433 and KEP-3015.
#[test]
fn hints_count_where_every_ready_endpoint_has_some_and_one_is_for_this_node() {
    let [b, guest, far] = [(1, 12), (1, 13), (2, 11)];
    let where_to = |zone: Option<&str>, endpoints: Vec<Endpoint>| -> Vec<IpAddr> {
        let mut world = served(endpoints);
        world.nodes[0].zone = zone.map(str::to_owned);
        backends(&world, &vip("red/a", 80)).into_iter().map(|(address, _)| address).collect()
    };
    let of = |numbers: &[(u8, u8)]| numbers.iter().map(|number| of_pod(number.0, number.1)).collect::<Vec<_>>();
    let zones = || vec![hinted(b, &["east"], &[]), hinted(guest, &["east"], &[]), hinted(far, &["west", "north"], &[])];
    assert_eq!(where_to(Some("west"), zones()), of(&[far]));
    assert_eq!(where_to(Some("east"), zones()), of(&[b, guest]));
    assert_eq!(where_to(Some("south"), zones()), of(&[b, guest, far]), "for nobody there");
    assert_eq!(where_to(None, zones()), of(&[b, guest, far]));
    let mut some = zones();
    some[0].hints = Hints::default();
    assert_eq!(where_to(Some("west"), some.clone()), of(&[b, guest, far]));
    (some[0].ready, some[0].serving) = (Some(false), Some(true));
    assert_eq!(where_to(Some("west"), some), of(&[far]), "only those that are ready are asked");
    let nodes = || {
        vec![hinted(b, &["west"], &["node2"]), hinted(guest, &["west"], &["node1"]), hinted(far, &["east"], &["node2"])]
    };
    assert_eq!(where_to(Some("east"), nodes()), of(&[guest]), "nodes come before zones");
    let mut elsewhere = nodes();
    elsewhere[1].hints.nodes = vec!["node2".to_owned()];
    assert_eq!(where_to(Some("east"), elsewhere), of(&[far]));
    let mut ending = zones();
    ending.iter_mut().for_each(|endpoint| (endpoint.ready, endpoint.terminating) = (Some(false), Some(true)));
    assert_eq!(where_to(Some("west"), ending), of(&[b, guest, far]), "those that end are for everybody");
}

/// On another node a masqueraded client is the node that it asked.
#[test]
fn another_nodes_policies_see_the_node_that_masquerades() {
    let mut world = exposed();
    world.slices[0].endpoints.remove(0);
    let block = |cidr: &str| Peer::Block { cidr: cidr.parse().unwrap(), except: Vec::new() };
    let packet = to("wire", own(), NODE_PORT);
    for (peer, arrives) in [(block("192.168.119.1/32"), true), (block("203.0.113.0/24"), false)] {
        world.policies = vec![policy(None, Some(vec![Rule { peers: Some(vec![peer]), ports: None }]), None)];
        let finals = end_to_end(&world, HERE, &packet, all(&world, &packet));
        let at = Spot::Pod("red/far".to_owned());
        assert_eq!(matches!(&finals[..], [Final::At { spot, .. }] if *spot == at), arrives);
    }
}
