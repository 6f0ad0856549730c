// SPDX-License-Identifier: Apache-2.0

//! The oracle's own rules, each from the text of the API.

use super::*;
use crate::oracle::world::{
    Affinity, Direction, Endpoint, Exposure, Hints, Labels, Mode, NamedPort, Namespace, Node, Peer, Pod, Policy,
    PolicyPort, PortKind, PortRef, Rule, Selector, Service, ServicePort, Slice, SlicePort, node_addresses,
    pod_addresses, pod_cidrs,
};

mod frontends;

const HERE: &str = "node1";

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn selector(pairs: &[(&str, &str)]) -> Selector {
    Selector { labels: labels(pairs), expressions: Vec::new() }
}

fn pod(namespace: &str, name: &str, node: u8, number: u8, ports: &[(&str, Protocol, u16)]) -> Pod {
    let named = |(name, protocol, port): &(&str, Protocol, u16)| NamedPort {
        name: (*name).to_owned(),
        protocol: *protocol,
        port: *port,
    };
    Pod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        node: format!("node{node}"),
        labels: labels(&[("app", name)]),
        addresses: pod_addresses(node, number),
        ports: ports.iter().map(named).collect(),
        kind: PortKind::Veth,
        host_network: false,
        finished: false,
        host_ports: Vec::new(),
    }
}

/// Pods `a` and `b` here, `far` on another node, all in the namespace `red`; `guest` here in `blue`.
fn world() -> World {
    let node = |number| Node {
        name: format!("node{number}"),
        addresses: node_addresses(number),
        pod_cidrs: pod_cidrs(number),
        zone: None,
    };
    let namespace = |name: &str| Namespace { name: name.to_owned(), labels: labels(&[("color", name)]) };
    World {
        mode: Mode::Vxlan,
        nodes: vec![node(1), node(2)],
        namespaces: vec![namespace("red"), namespace("blue")],
        pods: vec![
            pod("red", "a", 1, 11, &[]),
            pod("red", "b", 1, 12, &[("http", Protocol::Tcp, 8080), ("dns", Protocol::Udp, 53)]),
            pod("blue", "guest", 1, 13, &[]),
            pod("red", "far", 2, 11, &[("http", Protocol::Tcp, 9090)]),
        ],
        ..World::default()
    }
}

fn packet(from: &str, to: IpAddr, protocol: Protocol, dport: u16) -> Packet {
    let world = world();
    let (from, source) = match from {
        "host" => (From::Host, node_addresses(1)[0]),
        "wire" => (From::Wire, [203, 0, 113, 10].into()),
        pod => (From::Pod(pod.to_owned()), world.pod(pod).unwrap().addresses[0]),
    };
    Packet { from, source, destination: to, protocol, sport: 40_000, dport, wrong_mac: false }
}

fn of_pod(node: u8, number: u8) -> IpAddr {
    pod_addresses(node, number)[0]
}

fn one(world: &World, packet: &Packet) -> Verdict {
    let verdicts = answer(world, HERE, packet, None, Quirks::default());
    assert_eq!(verdicts.len(), 1, "{verdicts:?}");
    verdicts.into_iter().next().unwrap()
}

fn delivered(verdict: &Verdict) -> (&Target, IpAddr, u16, Source) {
    match verdict {
        Verdict::Delivered { to, address, port, source } => (to, *address, *port, *source),
        other => panic!("{other:?}"),
    }
}

fn policy(types: Option<Vec<Direction>>, ingress: Option<Vec<Rule>>, egress: Option<Vec<Rule>>) -> Policy {
    Policy { namespace: "red".to_owned(), name: "p".to_owned(), selector: Selector::default(), types, ingress, egress }
}

fn to_b(world: &World, from: &str, protocol: Protocol, port: u16) -> Option<Reason> {
    match one(world, &packet(from, of_pod(1, 12), protocol, port)) {
        Verdict::Dropped(reason) => Some(reason),
        _ => None,
    }
}

#[test]
fn without_policies_everybody_reaches_everybody_as_himself() {
    let world = world();
    for (from, node, number, target) in [
        ("red/a", 1, 12, Target::Pod("red/b".to_owned())),
        ("red/a", 2, 11, Target::Node("node2".to_owned())),
        ("host", 1, 12, Target::Pod("red/b".to_owned())),
        ("wire", 1, 12, Target::Pod("red/b".to_owned())),
    ] {
        let verdict = one(&world, &packet(from, of_pod(node, number), Protocol::Tcp, 80));
        assert_eq!(delivered(&verdict), (&target, of_pod(node, number), 80, Source::Kept), "{from}");
    }
    let outside = one(&world, &packet("red/a", [203, 0, 113, 10].into(), Protocol::Udp, 53));
    assert_eq!(delivered(&outside).3, Source::Masqueraded);
    let nobody = one(&world, &packet("red/a", of_pod(1, 200), Protocol::Udp, 53));
    assert_eq!(nobody, Verdict::Dropped(Reason::Unreachable));
}

#[test]
fn nobody_speaks_for_another() {
    let world = world();
    let mut lie = packet("red/a", of_pod(1, 12), Protocol::Tcp, 80);
    lie.source = of_pod(1, 13);
    assert_eq!(one(&world, &lie), Verdict::Dropped(Reason::Source));
    for source in [of_pod(1, 11), of_pod(2, 11), node_addresses(1)[0], [10, 96, 0, 10].into()] {
        let lie = Packet { source, ..packet("wire", of_pod(1, 12), Protocol::Tcp, 80) };
        assert_eq!(one(&world, &lie), Verdict::Dropped(Reason::Source), "{source}");
    }
    let native = World { mode: Mode::Native, ..world };
    let far = Packet { source: of_pod(2, 11), ..packet("wire", of_pod(1, 12), Protocol::Tcp, 80) };
    delivered(&one(&native, &far));
}

/// `policyTypes` unset: ingress, and egress where there is a rule; `egress: []` alone isolates nothing.
#[test]
fn policy_types_default_by_the_rules_there_are() {
    for (types, egress, refused) in [
        (None, None, None),
        (None, Some(vec![]), None),
        (None, Some(vec![Rule::default()]), None),
        (Some(vec![Direction::Egress]), None, Some(Reason::Egress)),
        (Some(vec![Direction::Egress]), Some(vec![Rule::default()]), None),
    ] {
        let mut policy = policy(types, None, egress);
        policy.selector = selector(&[("app", "a")]);
        let world = World { policies: vec![policy.clone()], ..world() };
        assert_eq!(to_b(&world, "red/a", Protocol::Tcp, 80), refused, "{policy:?}");
    }
    let mut policy = policy(None, None, None);
    policy.selector = selector(&[("app", "b")]);
    let world = World { policies: vec![policy], ..world() };
    assert_eq!(to_b(&world, "red/a", Protocol::Tcp, 80), Some(Reason::Ingress));
    assert_eq!(to_b(&world, "host", Protocol::Tcp, 80), None, "the pod's own node is always allowed");
    assert_eq!(to_b(&world, "red/b", Protocol::Tcp, 80), None, "a pod reaches itself");
}

/// Missing or empty `from` is anybody, missing or empty `ports` any port and protocol; a port without protocol is TCP.
#[test]
fn what_is_left_out_of_a_rule_means_all() {
    let port = |protocol, port, end| PolicyPort { protocol, port, end };
    let number = |number| Some(PortRef::Number(number));
    for (ports, protocol, dport, allowed) in [
        (None, Protocol::Echo, 0, true),
        (Some(vec![]), Protocol::Sctp, 7, true),
        (Some(vec![port(None, None, None)]), Protocol::Tcp, 7, true),
        (Some(vec![port(None, None, None)]), Protocol::Udp, 7, false),
        (Some(vec![port(Some(Protocol::Udp), None, None)]), Protocol::Tcp, 7, false),
        (Some(vec![port(None, number(80), None)]), Protocol::Echo, 0, false),
        (Some(vec![port(None, number(80), Some(90))]), Protocol::Tcp, 90, true),
        (Some(vec![port(None, number(80), Some(90))]), Protocol::Tcp, 91, false),
        (Some(vec![port(None, number(80), Some(90))]), Protocol::Tcp, 79, false),
        (Some(vec![port(None, Some(PortRef::Name("http".to_owned())), None)]), Protocol::Tcp, 8080, true),
        (Some(vec![port(None, Some(PortRef::Name("http".to_owned())), None)]), Protocol::Tcp, 9090, false),
        // A name is a port's of its protocol only.
        (Some(vec![port(None, Some(PortRef::Name("dns".to_owned())), None)]), Protocol::Tcp, 53, false),
        (Some(vec![port(Some(Protocol::Udp), Some(PortRef::Name("dns".to_owned())), None)]), Protocol::Udp, 53, true),
    ] {
        let rule = Rule { peers: None, ports };
        let world = World { policies: vec![policy(None, Some(vec![rule.clone()]), None)], ..world() };
        let refused = to_b(&world, "red/a", protocol, dport);
        assert_eq!(refused, (!allowed).then_some(Reason::Ingress), "{rule:?} {protocol:?} {dport}");
    }
}

/// A name is a port's of each peer pod, so that with a block it can match nobody; for ingress it is the receiver's own.
#[test]
fn a_named_port_means_nobody_in_a_block() {
    let named = PolicyPort { protocol: None, port: Some(PortRef::Name("http".to_owned())), end: None };
    let block = Peer::Block { cidr: "10.244.0.0/16".parse().unwrap(), except: Vec::new() };
    let pods = Peer::Pods { pods: Some(Selector::default()), namespaces: None };
    for (direction, peer, allowed) in
        [(Direction::Egress, block.clone(), false), (Direction::Egress, pods, true), (Direction::Ingress, block, true)]
    {
        let rules = vec![Rule { peers: Some(vec![peer]), ports: Some(vec![named.clone()]) }];
        let [ingress, egress] = match direction {
            Direction::Ingress => [Some(rules), None],
            Direction::Egress => [None, Some(rules)],
        };
        let mut policy = policy(Some(vec![direction]), ingress, egress);
        policy.selector = selector(&[("app", if direction == Direction::Egress { "a" } else { "b" })]);
        let world = World { policies: vec![policy], ..world() };
        assert_eq!(to_b(&world, "red/a", Protocol::Tcp, 8080).is_none(), allowed, "{direction:?}");
    }
}

#[test]
fn a_pod_selector_alone_means_the_policys_own_namespace() {
    let pods = |pods, namespaces| Peer::Pods { pods, namespaces };
    let all = || Some(Selector::default());
    let blue = || Some(selector(&[("color", "blue")]));
    let named = || Some(selector(&[("kubernetes.io/metadata.name", "blue")]));
    for (peer, a, guest) in [
        (pods(all(), None), true, false),
        (pods(None, all()), true, true),
        (pods(None, blue()), false, true),
        (pods(None, named()), false, true),
        (pods(Some(selector(&[("app", "a")])), all()), true, false),
        (pods(Some(selector(&[("app", "a")])), blue()), false, false),
    ] {
        let rule = Rule { peers: Some(vec![peer.clone()]), ports: None };
        let world = World { policies: vec![policy(None, Some(vec![rule]), None)], ..world() };
        assert_eq!(to_b(&world, "red/a", Protocol::Tcp, 1).is_none(), a, "{peer:?}");
        assert_eq!(to_b(&world, "blue/guest", Protocol::Tcp, 1).is_none(), guest, "{peer:?}");
        assert!(to_b(&world, "wire", Protocol::Tcp, 1).is_some(), "{peer:?}");
    }
}

/// An exception cuts only its own rule's block; blocks match pods' addresses too.
#[test]
fn a_block_includes_pods_and_its_exceptions_are_its_own() {
    let block = |cidr: &str, except: &[&str]| Peer::Block {
        cidr: cidr.parse().unwrap(),
        except: except.iter().map(|text| text.parse().unwrap()).collect(),
    };
    let holed = block("10.244.0.0/16", &["10.244.1.11/32"]);
    for (peers, a, guest) in [
        (vec![holed.clone()], false, true),
        (vec![holed, block("10.244.1.8/29", &[])], true, true),
        (vec![block("::/0", &[])], false, false),
    ] {
        let rule = Rule { peers: Some(peers), ports: None };
        let world = World { policies: vec![policy(None, Some(vec![rule.clone()]), None)], ..world() };
        assert_eq!(to_b(&world, "red/a", Protocol::Tcp, 1).is_none(), a, "{rule:?}");
        assert_eq!(to_b(&world, "blue/guest", Protocol::Tcp, 1).is_none(), guest, "{rule:?}");
    }
}

/// Pods on their node's network, pods that have finished, and addresses that are not their node's are no peers.
#[test]
fn a_selector_means_only_addresses_that_are_the_pods_own() {
    let rule =
        Rule { peers: Some(vec![Peer::Pods { pods: Some(Selector::default()), namespaces: None }]), ports: None };
    let mut world = World { mode: Mode::Native, policies: vec![policy(None, Some(vec![rule]), None)], ..world() };
    let far = Packet { source: of_pod(2, 11), ..packet("wire", of_pod(1, 12), Protocol::Tcp, 80) };
    delivered(&one(&world, &far));
    world.pods[3].finished = true;
    assert_eq!(one(&world, &far), Verdict::Dropped(Reason::Ingress));
    world.pods[3].finished = false;
    world.pods[3].node = HERE.to_owned();
    assert_eq!(one(&world, &far), Verdict::Dropped(Reason::Ingress), "of another node's prefix");
}

fn endpoint(address: IpAddr, node: u8, conditions: [Option<bool>; 3]) -> Endpoint {
    let [ready, serving, terminating] = conditions;
    Endpoint {
        addresses: vec![address],
        node: Some(format!("node{node}")),
        ready,
        serving,
        terminating,
        hints: Hints::default(),
    }
}

fn served(endpoints: Vec<Endpoint>) -> World {
    let port = ServicePort { name: "web".to_owned(), protocol: Protocol::Tcp, port: 80, node_port: None };
    let slice_port =
        |port, name: &str| SlicePort { name: Some(name.to_owned()), protocol: Some(Protocol::Tcp), port: Some(port) };
    let slice = Slice {
        namespace: "red".to_owned(),
        name: "s".to_owned(),
        service: "web".to_owned(),
        ipv4: true,
        ports: vec![slice_port(8080, "web"), slice_port(1, "other"), SlicePort { port: None, ..slice_port(0, "none") }],
        endpoints,
    };
    let service = Service {
        namespace: "red".to_owned(),
        name: "web".to_owned(),
        addresses: vec![[10, 96, 0, 10].into()],
        ports: vec![port],
        local: false,
        affinity: Affinity::None,
        foreign: false,
        created: 0,
        exposure: Exposure::default(),
    };
    World { services: vec![service], slices: vec![slice], ..world() }
}

fn vip(from: &str, port: u16) -> Packet {
    packet(from, [10, 96, 0, 10].into(), Protocol::Tcp, port)
}

const READY: [Option<bool>; 3] = [Some(true), Some(true), Some(false)];
const ENDING: [Option<bool>; 3] = [Some(false), Some(true), Some(true)];
const DEAD: [Option<bool>; 3] = [Some(false), Some(false), Some(true)];

#[test]
fn a_service_leads_to_ready_endpoints_and_else_to_those_that_end_and_serve() {
    let [b, far] = [of_pod(1, 12), of_pod(2, 11)];
    let where_to = |world: &World| -> Vec<IpAddr> {
        answer(world, HERE, &vip("red/a", 80), None, Quirks::default())
            .iter()
            .map(|verdict| match verdict {
                Verdict::Delivered { address, port: 8080, .. } => *address,
                other => panic!("{other:?}"),
            })
            .collect()
    };
    assert_eq!(where_to(&served(vec![endpoint(b, 1, READY), endpoint(far, 2, ENDING)])), [b]);
    assert_eq!(where_to(&served(vec![endpoint(b, 1, DEAD), endpoint(far, 2, ENDING)])), [far]);
    // Nothing said is ready.
    assert_eq!(where_to(&served(vec![endpoint(b, 1, [None; 3]), endpoint(far, 2, ENDING)])), [b]);
    let mut local = served(vec![endpoint(b, 1, ENDING), endpoint(far, 2, READY)]);
    local.services[0].local = true;
    assert_eq!(where_to(&local), [b]);
}

#[test]
fn a_service_without_endpoints_and_a_port_of_none_are_told_apart() {
    let none = served(vec![endpoint(of_pod(1, 12), 1, DEAD)]);
    assert_eq!(one(&none, &vip("red/a", 80)), Verdict::Dropped(Reason::NoBackend));
    assert_eq!(one(&none, &vip("red/a", 81)), Verdict::Dropped(Reason::NoServicePort));
    let echo = Packet { protocol: Protocol::Echo, ..vip("red/a", 81) };
    assert_eq!(one(&none, &echo), Verdict::Dropped(Reason::NoService));
    let nobodys = packet("red/a", [10, 96, 0, 11].into(), Protocol::Tcp, 80);
    assert_eq!(one(&none, &nobodys), Verdict::Dropped(Reason::NoService));
    let mut foreign = served(vec![endpoint(of_pod(1, 12), 1, READY)]);
    foreign.services[0].foreign = true;
    assert_eq!(one(&foreign, &vip("red/a", 80)), Verdict::Dropped(Reason::NoService));
    let mut local = served(vec![endpoint(of_pod(2, 11), 2, READY)]);
    local.services[0].local = true;
    assert_eq!(one(&local, &vip("red/a", 80)), Verdict::Dropped(Reason::NoLocalBackend));
}

#[test]
fn a_client_that_keeps_its_backend_has_it_as_long_as_that_may_be_chosen() {
    let [b, far] = [of_pod(1, 12), of_pod(2, 11)];
    let where_to = |world: &World, last: IpAddr| -> Vec<IpAddr> {
        let verdicts = answer(world, HERE, &vip("red/a", 80), Some((last, 8080)), Quirks::default());
        verdicts.iter().map(|verdict| delivered(verdict).1).collect()
    };
    let both = served(vec![endpoint(b, 1, READY), endpoint(far, 2, READY)]);
    assert_eq!([where_to(&both, b), where_to(&both, far)], [[b], [far]]);
    let ending = served(vec![endpoint(b, 1, ENDING), endpoint(far, 2, READY)]);
    assert_eq!(where_to(&ending, b), [far]);
    let mut local = both;
    local.services[0].local = true;
    assert_eq!(where_to(&local, far), [b]);
}

#[test]
fn clients_are_told_apart_by_address_port_and_node() {
    let mut world = served(vec![endpoint(of_pod(1, 12), 1, READY)]);
    assert_eq!(client(&world, HERE, &vip("red/a", 80)), None, "nobody asks for it");
    world.services[0].affinity = Affinity::ClientIp;
    let more = ServicePort { name: "more".to_owned(), protocol: Protocol::Tcp, port: 81, node_port: None };
    world.services[0].ports.push(more);
    let of = |node, packet: &Packet| client(&world, node, packet).map(|(client, _)| client);
    let own = of(HERE, &vip("red/a", 80)).unwrap();
    assert_eq!(of(HERE, &Packet { sport: 40_001, ..vip("red/a", 80) }).as_ref(), Some(&own));
    for other in [of(HERE, &vip("red/a", 81)), of(HERE, &vip("red/b", 80)), of("node2", &vip("red/a", 80))] {
        assert!(other.is_some_and(|other| other != own));
    }
    assert_eq!(client(&world, HERE, &vip("red/a", 80)).unwrap().1, Duration::from_secs(10_800));
    assert!(keeps(&world, &own));
    world.services[0].ports.remove(0);
    assert!(!keeps(&world, &own), "its port is gone");
}

/// Egress is judged on the backend; a pod that meets itself sees another source.
#[test]
fn policy_is_judged_after_the_choice_of_a_backend() {
    let mut world = served(vec![endpoint(of_pod(1, 12), 1, READY)]);
    let to_backend = Peer::Block { cidr: "10.244.1.12/32".parse().unwrap(), except: Vec::new() };
    let to_vip = Peer::Block { cidr: "10.96.0.0/16".parse().unwrap(), except: Vec::new() };
    for (peer, allowed) in [(to_backend, true), (to_vip, false)] {
        let rule = Rule { peers: Some(vec![peer]), ports: None };
        let mut policy = policy(Some(vec![Direction::Egress]), None, Some(vec![rule]));
        policy.selector = selector(&[("app", "a")]);
        world.policies = vec![policy];
        assert_eq!(one(&world, &vip("red/a", 80)) != Verdict::Dropped(Reason::Egress), allowed);
    }
    world.policies.clear();
    assert_eq!(delivered(&one(&world, &vip("red/b", 80))).3, Source::NotItself);
}

/// Established TCP stays whatever happens to its endpoint; other protocols stay with one that serves.
#[test]
fn a_connection_keeps_a_backend_that_serves() {
    let [b, far] = [of_pod(1, 12), of_pod(2, 11)];
    let standing = |world: &World, protocol| {
        let packet = Packet { protocol, ..vip("red/a", 80) };
        let verdicts = answer_standing(world, HERE, &packet, (Some((b, 8080)), None), Quirks::default());
        verdicts.iter().map(|verdict| delivered(verdict).1).collect::<Vec<_>>()
    };
    let as_udp = |mut world: World| {
        world.services[0].ports[0].protocol = Protocol::Udp;
        world.slices[0].ports[0].protocol = Some(Protocol::Udp);
        world
    };
    let grown = || served(vec![endpoint(b, 1, READY), endpoint(far, 2, READY)]);
    let ended = || served(vec![endpoint(b, 1, DEAD), endpoint(far, 2, READY)]);
    let ending = || served(vec![endpoint(b, 1, ENDING), endpoint(far, 2, READY)]);
    assert_eq!(standing(&grown(), Protocol::Tcp), [b]);
    assert_eq!(standing(&ended(), Protocol::Tcp), [b]);
    assert_eq!(standing(&world(), Protocol::Tcp), [b]);
    assert_eq!(standing(&as_udp(grown()), Protocol::Udp), [b]);
    assert_eq!(standing(&as_udp(ending()), Protocol::Udp), [b]);
    assert_eq!(standing(&as_udp(ended()), Protocol::Udp), [far]);
}

/// A Service that comes to have its address leads what begins, and what is not established.
#[test]
fn established_tcp_that_began_without_a_service_goes_on_without() {
    let mut world = served(vec![endpoint(of_pod(1, 12), 1, READY)]);
    let address = IpAddr::from([203, 0, 113, 20]);
    world.services[0].exposure.external_ips = vec![address];
    let mut udp = world.clone();
    (udp.services[0].ports[0].protocol, udp.slices[0].ports[0].protocol) = (Protocol::Udp, Some(Protocol::Udp));
    for (world, protocol, kept) in [(&world, Protocol::Tcp, true), (&udp, Protocol::Udp, false)] {
        let packet = packet("red/a", address, protocol, 80);
        let verdicts = answer_standing(world, HERE, &packet, (None, None), Quirks::default());
        assert_eq!(delivered(&verdicts[0]).1 == address, kept, "{protocol:?}");
        assert_ne!(delivered(&one(world, &packet)).1, address);
    }
}

#[test]
fn an_answer_arrives_where_the_question_came_from() {
    let world = world();
    for (from, target) in
        [("red/a", Target::Pod("red/a".to_owned())), ("host", Target::Host), ("wire", Target::Outside)]
    {
        assert_eq!(back(&world, HERE, &packet(from, of_pod(1, 12), Protocol::Tcp, 80)), target);
    }
    let far = Packet { source: of_pod(2, 11), ..packet("wire", of_pod(1, 12), Protocol::Tcp, 80) };
    assert_eq!(back(&World { mode: Mode::Native, ..world }, HERE, &far), Target::Node("node2".to_owned()));
}
