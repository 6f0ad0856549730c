// SPDX-License-Identifier: Apache-2.0
//! What one port's guest is told, whatever the protocol.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use weft_api::Mac;

use super::{GuestPort, LINK_LOCAL_GATEWAY, names};

/// How long a guest may use its address without asking again, in seconds. It never changes while the port lives; a day
/// lets guests outlast an agent that is away.
pub(super) const LEASE_SECONDS: u32 = 86_400;

/// Everything that answers are made of.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub(super) mac: Mac,
    pub(super) v4: Option<Lease4>,
    pub(super) v6: Option<Lease6>,
    pub(super) mtu: u32,
    pub(super) hostname: Option<String>,
    /// Search list as text, names that are none left out.
    pub(super) search: Vec<String>,
}

/// The IPv4 part.
#[derive(Clone, Debug)]
pub(super) struct Lease4 {
    pub(super) address: Ipv4Addr,
    pub(super) prefix_len: u8,
    pub(super) mask: Ipv4Addr,
    pub(super) gateway: Ipv4Addr,
    pub(super) nameservers: Vec<Ipv4Addr>,
}

/// The IPv6 part.
#[derive(Clone, Debug)]
pub(super) struct Lease6 {
    pub(super) address: Ipv6Addr,
    /// Link-local.
    pub(super) gateway: Ipv6Addr,
    pub(super) nameservers: Vec<Ipv6Addr>,
}

impl Lease {
    pub(super) fn new(port: &GuestPort) -> Self {
        let mut lease = Self {
            mac: port.mac,
            v4: None,
            v6: None,
            mtu: port.mtu,
            hostname: port.hostname.as_deref().filter(|name| names::wire(name).is_some()).map(str::to_owned),
            search: port.dns.search.iter().filter(|name| names::wire(name).is_some()).cloned().collect(),
        };
        for assigned in &port.addresses {
            match (assigned.address, assigned.gateway) {
                (IpNet::V4(net), IpAddr::V4(gateway)) => {
                    let nameservers = port.dns.nameservers.iter().filter_map(as_v4).collect();
                    let (address, prefix_len, mask) = (net.addr(), net.prefix_len(), net.netmask());
                    lease.v4 = Some(Lease4 { address, prefix_len, mask, gateway, nameservers });
                }
                (IpNet::V6(net), gateway) => {
                    let nameservers = port.dns.nameservers.iter().filter_map(as_v6).collect();
                    let gateway = as_v6(&gateway).filter(Ipv6Addr::is_unicast_link_local).unwrap_or(LINK_LOCAL_GATEWAY);
                    lease.v6 = Some(Lease6 { address: net.addr(), gateway, nameservers });
                }
                (IpNet::V4(net), IpAddr::V6(gateway)) => {
                    tracing::warn!(address = %net, %gateway, "a guest's IPv4 address has no IPv4 gateway: DHCP will not serve it");
                }
            }
        }
        lease
    }

    /// The search list in wire form.
    pub(super) fn search_wire(&self) -> Vec<u8> {
        self.search.iter().filter_map(|name| names::wire(name)).flatten().collect()
    }
}

fn as_v4(address: &IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    }
}

fn as_v6(address: &IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => Some(*v6),
    }
}
