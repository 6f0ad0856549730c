// SPDX-License-Identifier: Apache-2.0
//! Ports of the host that lead to workloads.

use weft_abi::{CLUSTER_NET, Frontend, FrontendFlags, FrontendKey};
use weft_api::{HostPort, HostPortProtocol};

use super::*;

const EXTERNAL: u32 = FrontendFlags::EXTERNAL | FrontendFlags::HOST_PORT;

fn host_port(address: Option<&str>, port: u16, target: u16, protocol: HostPortProtocol) -> HostPort {
    HostPort { address: address.map(|address| address.parse().unwrap()), port, target, protocol }
}

/// A pod of this node with these host ports.
fn pod(world: &mut World, name: &str, ips: &[&str], host_ports: &[HostPort]) -> u32 {
    let ifindex = world.local(("x", name), json!({}), ips, json!({}));
    Arc::make_mut(world.attachments.last_mut().unwrap()).spec.host_ports = host_ports.to_vec();
    ifindex
}

/// What leads where, as `address:port/protocol backend`; ports of the host only.
fn leads(desired: &Desired) -> Vec<String> {
    let of_hosts = desired.frontends.iter().filter(|(_, frontend)| frontend.is_host_port());
    let text = |(key, frontend): (&FrontendKey, &Frontend)| {
        assert_eq!((key.net, frontend.flags), (CLUSTER_NET, EXTERNAL));
        let balancer = &desired.balancers[&frontend.service];
        let [member] = &*balancer.internal else { panic!("one backend: {balancer:?}") };
        assert!(balancer.sets().iter().all(|set| ***set == [*member]), "whoever asks: {balancer:?}");
        let at = |addr: Addr, port: u16| std::net::SocketAddr::new(addr.into(), u16::from_be(port));
        format!("{}/{} {}", at(key.addr, key.port), key.protocol, at(member.addr, member.port))
    };
    of_hosts.map(text).collect()
}

#[test]
fn address_protocol_and_family_tell_ports_apart() {
    let mut world = World::default();
    let (tcp, udp) = (HostPortProtocol::Tcp, HostPortProtocol::Udp);
    pod(
        &mut world,
        "a",
        &["172.20.0.2", "fd00:3::2"],
        &[host_port(None, 80, 8080, tcp), host_port(Some("0.0.0.0"), 81, 8081, tcp)],
    );
    pod(
        &mut world,
        "b",
        &["172.20.0.3", "fd00:3::3"],
        &[host_port(Some("192.0.2.1"), 80, 8080, tcp), host_port(None, 80, 53, udp)],
    );
    pod(
        &mut world,
        "c",
        &["172.20.0.4"],
        &[host_port(Some("127.0.0.1"), 80, 8080, tcp), host_port(Some("2001:db8::1"), 80, 1, tcp)],
    );
    let mut desired = leads(&world.plan());
    desired.sort();
    let mut expected = [
        "0.0.0.0:80/6 172.20.0.2:8080",
        "[::]:80/6 [fd00:3::2]:8080",
        "0.0.0.0:81/6 172.20.0.2:8081",
        "192.0.2.1:80/6 172.20.0.3:8080",
        "0.0.0.0:80/17 172.20.0.3:53",
        "[::]:80/17 [fd00:3::3]:53",
        "127.0.0.1:80/6 172.20.0.4:8080",
    ];
    expected.sort_unstable();
    assert_eq!(desired, expected);
    let desired = world.plan();
    assert!(desired.problems.is_empty(), "{:?}", desired.problems);
    assert!(
        !desired.frontends.values().any(|frontend| frontend.flags & FrontendFlags::ADDRESS != 0),
        "they refuse nothing else"
    );
    let without = World { attachments: Vec::new(), ..world.clone() }.plan();
    assert_eq!((&desired.host_routes, &desired.remotes), (&without.host_routes, &without.remotes), "they need no way");
}

#[test]
fn a_port_is_the_services_first_and_then_that_of_the_pod_that_has_it() {
    let mut world = World::default();
    let ports =
        [host_port(None, 30_080, 8080, HostPortProtocol::Tcp), host_port(None, 8443, 8443, HostPortProtocol::Tcp)];
    pod(&mut world, "web", &["172.20.0.2"], &ports);
    pod(&mut world, "web2", &["172.20.0.3"], &ports[1..]);
    let spec = json!({"type": "NodePort", "clusterIP": "172.30.0.1", "ports": [{"port": 80, "nodePort": 30_080}]});
    world.service("web", spec);
    let desired = world.plan();
    assert_eq!(leads(&desired), ["0.0.0.0:8443/6 172.20.0.2:8443"]);
    assert_eq!(
        desired.problems,
        [
            "workload x/web (weft/c10/eth0): hostPort 30080 of 0.0.0.0/TCP is taken by Service x/web; give one of them another hostPort",
            "workload x/web2 (weft/c11/eth0): hostPort 8443 of 0.0.0.0/TCP is taken by workload x/web (weft/c10/eth0); give one of \
             them another hostPort",
        ]
    );
    world.snapshot.services.clear();
    world.attachments.remove(0);
    let desired = world.plan();
    assert_eq!(leads(&desired), ["0.0.0.0:8443/6 172.20.0.3:8443"]);
    assert!(!desired.problems.iter().any(|problem| problem.contains("hostPort")), "{:?}", desired.problems);
}

/// An attachment without a link is no workload yet.
#[test]
fn a_workload_without_a_link_has_no_ports() {
    let mut world = World::default();
    pod(&mut world, "web", &["172.20.0.2"], &[host_port(None, 80, 80, HostPortProtocol::Sctp)]);
    assert_eq!(leads(&world.plan()), ["0.0.0.0:80/132 172.20.0.2:80"]);
    Arc::make_mut(&mut world.attachments[0]).link = None;
    assert!(leads(&world.plan()).is_empty());
}
