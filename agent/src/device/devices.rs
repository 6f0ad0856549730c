// SPDX-License-Identifier: Apache-2.0
//! By which devices packets come to the node from outside of it.

use std::collections::BTreeMap;

use ipnet::IpNet;
use weft_abi::{Addr, Device};

use super::{
    addresses::Assigned,
    links::{Framing, Link, NAME_PREFIX},
};

/// The node's devices, Weft's own left out.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Devices {
    /// Those that the node hears others by: they get `from_uplink` or `from_l3`.
    pub heard: Vec<Heard>,
    /// Those whose packets begin with neither an Ethernet nor an IP header, by name: what is behind them the host's own stack reaches.
    pub by_stack: Vec<String>,
}

/// A device that the node hears others by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Heard {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Its packets have an Ethernet header; else they begin with the IP header.
    pub ethernet: bool,
    /// Bytes of an IP packet that it takes.
    pub mtu: u32,
}

impl Devices {
    /// Those that are heard, as `DEVICES` has them: with the first address of each family that is fit for use, one of `pools` only
    /// where there is no other.
    pub(super) fn with_addresses(&self, assigned: &[Assigned], pools: &[IpNet]) -> BTreeMap<u32, Device> {
        let address = |index: u32, is_ipv4: bool| {
            let own = assigned.iter().filter(|own| own.ifindex == index && own.global && own.preferred);
            let own = own.filter(|own| own.address.is_ipv4() == is_ipv4);
            let found = own.min_by_key(|own| pools.iter().any(|pool| pool.contains(&own.address)));
            found.map_or(Addr::UNSPECIFIED, |own| own.address.into())
        };
        let device = |heard: &Heard| Device {
            v4: address(heard.index, true),
            v6: address(heard.index, false),
            ..Device::default()
        };
        self.heard.iter().map(|heard| (heard.index, device(heard))).collect()
    }

    /// The uplink whatever it is, every other device that is up. Ports of a bridge, bond or team are heard as that; a VRF takes
    /// nothing out of its devices.
    pub(super) fn choose(links: &[Link], uplink: u32) -> Self {
        let mut devices = Self::default();
        let is_ours = |link: &Link| link.name.starts_with(NAME_PREFIX);
        let mut sorted: Vec<&Link> = links.iter().filter(|link| !link.loopback && !is_ours(link)).collect();
        sorted.sort_by_key(|link| (link.index != uplink, link.index));
        for link in sorted.into_iter().filter(|link| link.index == uplink || (link.up && !is_port(link, links))) {
            let (index, name) = (link.index, link.name.clone());
            match link.framing {
                Framing::Other => devices.by_stack.push(name),
                framing => {
                    devices.heard.push(Heard { index, name, ethernet: framing == Framing::Ethernet, mtu: link.mtu })
                }
            }
        }
        devices
    }
}

fn is_port(link: &Link, links: &[Link]) -> bool {
    let controller = link.controller.and_then(|index| links.iter().find(|link| link.index == index));
    controller.is_some_and(|controller| controller.kind != "vrf")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: kind.to_owned(),
            up: true,
            framing: Framing::Ethernet,
            ..Link::default()
        }
    }

    #[test]
    fn devices_that_others_are_heard_by() {
        let all = [
            Link { framing: Framing::Other, loopback: true, ..link(1, "lo", "") },
            link(2, "eth0", ""),
            link(3, "eth1", ""),
            Link { up: false, ..link(4, "eth2", "") },
            link(5, "bond0", "bond"),
            Link { controller: Some(5), ..link(6, "eth3", "") },
            link(7, "red", "vrf"),
            Link { controller: Some(7), ..link(8, "eth4", "") },
            link(9, "weft0", "veth"),
            link(10, "weft0a1b2c3d4e", "veth"),
            Link { framing: Framing::Ip, ..link(11, "wg0", "wireguard") },
            Link { framing: Framing::Ip, up: false, ..link(12, "tunl0", "ipip") },
            // Of another namespace's device the index may be any.
            Link { controller: Some(99), ..link(13, "eth5", "") },
            Link { framing: Framing::Other, ..link(14, "ipsec0", "xfrm") },
        ];
        let names = |devices: &Devices| devices.heard.iter().map(|heard| heard.name.clone()).collect::<Vec<_>>();
        let found = Devices::choose(&all, 3);
        assert_eq!(names(&found), ["eth1", "eth0", "bond0", "red", "eth4", "wg0", "eth5"]);
        assert_eq!(found.by_stack, ["ipsec0"]);
        assert!(found.heard.iter().all(|heard| heard.ethernet == (heard.name != "wg0")));
        let found = Devices::choose(&all, 4);
        assert_eq!(names(&found)[0], "eth2", "the uplink, also while it is down");
        let found = Devices::choose(&all, 11);
        assert_eq!(names(&found)[..2], ["wg0", "eth0"], "an uplink without Ethernet header");
    }
}
