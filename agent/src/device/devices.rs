// SPDX-License-Identifier: Apache-2.0
//! By which devices packets come to the node from outside of it.

use std::collections::BTreeMap;

use super::links::{Link, NAME_PREFIX};

/// The node's devices, Weft's own left out.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Devices {
    /// Those that the node hears others by, with index and name: they get `from_uplink`.
    pub heard: Vec<(u32, String)>,
    /// Those without an Ethernet header (TUN, WireGuard, PPP), by name: what is behind them the host's own stack reaches.
    pub by_stack: Vec<String>,
}

impl Devices {
    /// Of those that are heard, as `DEVICES` has them.
    pub(super) fn indices(&self) -> BTreeMap<u32, u32> {
        self.heard.iter().map(|(index, _)| (*index, 1)).collect()
    }

    /// The uplink whatever it is, every other device that is up. Ports of a bridge, bond or team are heard as that; a VRF takes
    /// nothing out of its devices.
    pub(super) fn choose(links: &[Link], uplink: u32) -> Self {
        let mut devices = Self::default();
        let is_ours = |link: &Link| link.name.starts_with(NAME_PREFIX);
        let mut sorted: Vec<&Link> = links.iter().filter(|link| !link.loopback && !is_ours(link)).collect();
        sorted.sort_by_key(|link| (link.index != uplink, link.index));
        for link in sorted.into_iter().filter(|link| link.index == uplink || (link.up && !is_port(link, links))) {
            if link.ethernet {
                devices.heard.push((link.index, link.name.clone()));
            } else {
                devices.by_stack.push(link.name.clone());
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
        Link { index, name: name.to_owned(), kind: kind.to_owned(), up: true, ethernet: true, ..Link::default() }
    }

    #[test]
    fn devices_that_others_are_heard_by() {
        let all = [
            Link { ethernet: false, loopback: true, ..link(1, "lo", "") },
            link(2, "eth0", ""),
            link(3, "eth1", ""),
            Link { up: false, ..link(4, "eth2", "") },
            link(5, "bond0", "bond"),
            Link { controller: Some(5), ..link(6, "eth3", "") },
            link(7, "red", "vrf"),
            Link { controller: Some(7), ..link(8, "eth4", "") },
            link(9, "weft0", "veth"),
            link(10, "weft0a1b2c3d4e", "veth"),
            Link { ethernet: false, ..link(11, "wg0", "wireguard") },
            Link { ethernet: false, up: false, ..link(12, "tunl0", "ipip") },
            // Of another namespace's device the index may be any.
            Link { controller: Some(99), ..link(13, "eth5", "") },
        ];
        let names = |devices: &Devices| devices.heard.iter().map(|(_, name)| name.clone()).collect::<Vec<_>>();
        let found = Devices::choose(&all, 3);
        assert_eq!(names(&found), ["eth1", "eth0", "bond0", "red", "eth4", "eth5"]);
        assert_eq!(found.by_stack, ["wg0"]);
        let found = Devices::choose(&all, 4);
        assert_eq!(names(&found)[0], "eth2", "the uplink, also while it is down");
        let found = Devices::choose(&all, 11);
        assert!(found.by_stack == ["wg0"] && names(&found)[0] == "eth0", "an uplink without Ethernet header");
    }
}
