// SPDX-License-Identifier: Apache-2.0
//! Where sockets of the host are led that ask the host itself. What goes from the host to an address of its own never comes by a
//! device, so that ports of the host and NodePorts have to be found when a socket names them.
//!
//! A port of the host leads to the one workload that has it. A NodePort leads to the hairpin address instead, with the same port: what
//! goes there leaves by `weft0`, where it is balanced, translated, counted and refused as every other packet is. So does an external
//! address of a Service, to its ClusterIP: what else the host asks of that address leaves the node as before.

use weft_abi::{
    Addr, AddressKey, Balancer, CLUSTER_NET, Config, Frontend, FrontendFlags, FrontendKey, HAIRPIN_V4, HAIRPIN_V6,
    Member, MemberKey, Owner, Remote, RemoteKind, SocketEnd,
};

use crate::{address, admit, protocol};

/// Look-ups without room that packets share: a packet may come between two of them.
pub trait Sockets {
    /// `ADDRESSES`.
    fn owner(&self, key: &AddressKey) -> Option<&Owner>;
    /// `FRONTENDS`.
    fn frontend(&self, key: &FrontendKey) -> Option<&Frontend>;
    /// `BALANCERS`.
    fn balancer(&self, service: u32) -> Option<&Balancer>;
    /// `MEMBERS`.
    fn member(&self, key: &MemberKey) -> Option<&Member>;
    /// `REMOTES`, in the cluster's network.
    fn remote(&self, addr: &Addr) -> Option<&Remote>;
    /// `SOURCES`: whether the Service port serves this client at its limited frontends.
    fn admits(&self, service: u32, client: &Addr) -> bool;
    /// `CONFIG`.
    fn config(&self) -> Option<&Config>;
}

/// Where a socket of the host is led that asks for `asked`; none: there.
#[inline(always)]
pub fn lead<S: Sockets>(sockets: &S, asked: SocketEnd, protocol: u8) -> Option<SocketEnd> {
    if !protocol::names_ports(protocol) {
        return None;
    }
    let is_loopback = address::is_loopback(&asked.addr);
    let owner = sockets.owner(&AddressKey { net: CLUSTER_NET, addr: asked.addr });
    let exact = sockets.frontend(&FrontendKey::of_cluster(asked.addr, asked.port, protocol));
    if !is_loopback && !owner.is_some_and(Owner::is_host) {
        return if owner.is_none() { service(sockets, &asked.addr, exact?) } else { None };
    }
    let of_any = sockets.frontend(&FrontendKey::of_node_port(&asked.addr, asked.port, protocol));
    let serves_node_ports = is_loopback || owner.is_some_and(Owner::serves_node_ports);
    if serves_node_ports && of_any.is_some_and(|of_any| !of_any.is_host_port()) {
        let hairpin = if asked.addr.is_v4() { HAIRPIN_V4 } else { HAIRPIN_V6 };
        return Some(SocketEnd::new(hairpin, asked.port));
    }
    let host_port = exact.filter(|frontend| frontend.is_host_port());
    let host_port = host_port.or_else(|| of_any.filter(|of_any| of_any.is_host_port()))?;
    workload(sockets, host_port.service)
}

/// The workload that has a port of the host.
#[inline(always)]
fn workload<S: Sockets>(sockets: &S, service: u32) -> Option<SocketEnd> {
    let set = sockets.balancer(service)?.cluster;
    let member = sockets.member(&MemberKey { service, set: set.set, index: 0 })?;
    Some(SocketEnd::new(member.addr, member.port))
}

/// The ClusterIP of a Service that has an external address which nobody has: not one that a pod of another node may have, or that the
/// node, by its own address, is no client of.
#[inline(always)]
fn service<S: Sockets>(sockets: &S, asked: &Addr, frontend: &Frontend) -> Option<SocketEnd> {
    if frontend.flags & FrontendFlags::FOR_HOST == 0
        || sockets.remote(asked).is_some_and(|remote| remote.kind != RemoteKind::Plain as u32)
    {
        return None;
    }
    let number = frontend.service;
    if frontend.is_limited() && !sockets.admits(number, admit::known_address(sockets.config()?, !asked.is_v4())) {
        return None;
    }
    let first = sockets.balancer(number)?.first;
    if first.port == 0 { None } else { Some(first) }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::{HashMap, HashSet};

    use weft_abi::MemberSet;

    use super::*;

    #[derive(Default)]
    struct Node {
        owners: HashMap<Addr, Owner>,
        frontends: HashMap<FrontendKey, Frontend>,
        balancers: HashMap<u32, Balancer>,
        members: HashMap<u32, Member>,
        remotes: HashMap<Addr, Remote>,
        served: HashSet<(u32, Addr)>,
        config: Config,
    }

    impl Sockets for Node {
        fn owner(&self, key: &AddressKey) -> Option<&Owner> {
            self.owners.get(&key.addr)
        }

        fn frontend(&self, key: &FrontendKey) -> Option<&Frontend> {
            self.frontends.get(key)
        }

        fn balancer(&self, service: u32) -> Option<&Balancer> {
            self.balancers.get(&service)
        }

        fn member(&self, key: &MemberKey) -> Option<&Member> {
            self.members.get(&key.service).filter(|_| (key.set, key.index) == (key.service, 0))
        }

        fn remote(&self, addr: &Addr) -> Option<&Remote> {
            self.remotes.get(addr)
        }

        fn admits(&self, service: u32, client: &Addr) -> bool {
            self.served.contains(&(service, *client))
        }

        fn config(&self) -> Option<&Config> {
            Some(&self.config)
        }
    }

    const TCP: u8 = 6;
    const UDP: u8 = 17;

    fn addr(text: &str) -> Addr {
        text.parse::<core::net::IpAddr>().unwrap().into()
    }

    fn end(text: &str, port: u16) -> SocketEnd {
        SocketEnd::new(addr(text), port.to_be())
    }

    /// A node with a NodePort, ports of the host for one workload each, and a ClusterIP and an external address that it has itself.
    fn node() -> Node {
        let mut node = Node::default();
        for (text, owner) in [("192.0.2.1", Owner::node_ports(1)), ("198.51.100.1", Owner::host(1))] {
            node.owners.insert(addr(text), owner);
        }
        node.owners.insert(addr("2001:db8::1"), Owner::node_ports(1));
        node.owners.insert(addr("10.1.0.2"), Owner::workload(7));
        let mut add = |text: &str, port: u16, service, flags| {
            let key = FrontendKey::of_cluster(addr(text), port.to_be(), TCP);
            node.frontends.insert(key, Frontend { service, flags });
        };
        let further = FrontendFlags::EXTERNAL | FrontendFlags::FURTHER;
        let host_port = FrontendFlags::EXTERNAL | FrontendFlags::HOST_PORT;
        add("0.0.0.0", 30_080, 1, further);
        add("::", 30_080, 2, further);
        add("0.0.0.0", 8080, 3, host_port);
        add("127.0.0.1", 8081, 4, host_port);
        add("192.0.2.1", 8081, 5, host_port);
        add("192.0.2.1", 8082, 6, further);
        add("198.51.100.1", 30_080, 6, further);
        add("192.0.2.1", 8083, 7, host_port);
        add("192.0.2.1", 30_080, 4, host_port);
        for service in 3..=5_u16 {
            let member = Member::new(addr("10.1.0.2"), (service * 100).to_be());
            let cluster = MemberSet::even(service.into(), 1);
            node.balancers.insert(service.into(), Balancer { cluster, ..Balancer::default() });
            node.members.insert(service.into(), member);
        }
        node
    }

    #[test]
    fn what_the_host_serves_itself_is_found_by_its_own_sockets() {
        let node = node();
        let to = |text: &str, port| lead(&node, end(text, port), TCP);
        let (hairpin_v4, hairpin_v6) =
            (SocketEnd::new(HAIRPIN_V4, 30_080_u16.to_be()), SocketEnd::new(HAIRPIN_V6, 30_080_u16.to_be()));
        assert_eq!(to("192.0.2.1", 30_080), Some(hairpin_v4), "a NodePort, before a port of the host");
        assert_eq!(to("127.0.0.1", 30_080), Some(hairpin_v4));
        assert_eq!(to("127.9.9.9", 30_080), Some(hairpin_v4));
        assert_eq!(to("::1", 30_080), Some(hairpin_v6));
        assert_eq!(to("2001:db8::1", 30_080), Some(hairpin_v6));
        for text in ["192.0.2.1", "198.51.100.1", "127.0.0.1"] {
            assert_eq!(to(text, 8080), Some(end("10.1.0.2", 300)), "a port of the host, at all of its addresses");
        }
        assert_eq!(to("127.0.0.1", 8081), Some(end("10.1.0.2", 400)), "each address by itself");
        assert_eq!(to("192.0.2.1", 8081), Some(end("10.1.0.2", 500)));
    }

    /// A node that is 192.0.2.1, and Service port 9 with external addresses.
    fn node_with_external_addresses() -> Node {
        let mut node = Node { config: Config { node_v4: addr("192.0.2.1"), ..Config::default() }, ..Node::default() };
        node.owners.insert(addr("10.1.0.2"), Owner::workload(7));
        node.owners.insert(addr("192.0.2.1"), Owner::node_ports(1));
        node.remotes.insert(addr("10.2.0.2"), Remote::new(Addr::UNSPECIFIED, RemoteKind::Node));
        node.remotes.insert(addr("203.0.113.5"), Remote::new(Addr::UNSPECIFIED, RemoteKind::Plain));
        let external = FrontendFlags::EXTERNAL | FrontendFlags::FURTHER;
        let mut add = |text: &str, service, flags| {
            let key = FrontendKey::of_cluster(addr(text), 443_u16.to_be(), TCP);
            node.frontends.insert(key, Frontend { service, flags: external | flags });
        };
        for text in ["203.0.113.1", "203.0.113.5", "2001:db8:9::1", "10.1.0.2", "10.2.0.2", "192.0.2.1"] {
            add(text, 9, FrontendFlags::FOR_HOST);
        }
        add("203.0.113.2", 9, 0);
        add("203.0.113.3", 9, FrontendFlags::FOR_HOST | FrontendFlags::LIMITED);
        add("203.0.113.4", 8, FrontendFlags::FOR_HOST | FrontendFlags::LIMITED);
        node.served.insert((9, addr("192.0.2.1")));
        for service in [8, 9] {
            let first = end("172.30.0.9", 80);
            node.balancers.insert(service, Balancer { first, ..Balancer::default() });
        }
        node
    }

    #[test]
    fn an_external_address_of_a_service_is_found_by_the_hosts_sockets() {
        let node = node_with_external_addresses();
        let to = |text: &str, port| lead(&node, end(text, port), TCP);
        let service = Some(end("172.30.0.9", 80));
        assert_eq!(to("203.0.113.1", 443), service);
        assert_eq!(to("2001:db8:9::1", 443), service);
        assert_eq!(to("203.0.113.5", 443), service, "in a prefix without masquerade");
        assert_eq!(to("203.0.113.3", 443), service, "the node is one of its clients");
        assert_eq!(to("203.0.113.4", 443), None, "the node is none of its clients");
        assert_eq!(to("203.0.113.2", 443), None, "not for the host");
        assert_eq!(to("203.0.113.1", 80), None, "another port leaves the node");
        assert_eq!(lead(&node, end("203.0.113.1", 443), UDP), None, "so does another protocol");
        for of_others in ["10.1.0.2", "10.2.0.2", "192.0.2.1"] {
            assert_eq!(to(of_others, 443), None, "{of_others} is a pod's or a node's");
        }
    }

    #[test]
    fn everything_else_goes_where_it_says() {
        let node = node();
        let to = |text: &str, port| lead(&node, end(text, port), TCP);
        assert_eq!(
            to("198.51.100.1", 30_080),
            None,
            "NodePorts are not served there, and no Service takes what is the host's"
        );
        assert_eq!(to("192.0.2.1", 8082), None, "no Service takes what is the host's");
        assert_eq!(to("198.51.100.1", 8081), None);
        assert_eq!(to("203.0.113.1", 30_080), None, "somebody else's");
        assert_eq!(to("10.1.0.2", 8080), None, "a workload's");
        assert_eq!(to("::1", 8080), None, "of the other family");
        assert_eq!(to("192.0.2.1", 8083), None, "its workload is not there yet");
        assert_eq!(to("127.0.0.1", 22), None);
        assert_eq!(lead(&node, end("192.0.2.1", 30_080), UDP), None, "of another protocol");
        assert_eq!(lead(&node, end("192.0.2.1", 30_080), 1), None);
    }
}
