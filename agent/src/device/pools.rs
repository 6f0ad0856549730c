// SPDX-License-Identifier: Apache-2.0
//! Which addresses of the node workloads are masqueraded with beside its own. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use weft_abi::{Addr, Device, POOL_ADDRESSES, Pool};

use super::{DeviceConfig, addresses::Assigned, devices::Devices};

/// What became of `masqueradeAddresses`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Pools {
    /// What cannot be used, and the fix.
    pub(super) problems: Vec<String>,
    /// By which devices nothing is masqueraded, for want of an address, and the fix.
    pub(super) closed: Vec<String>,
}

/// The addresses of each device and family (whether it is IPv6); of none: closed.
type Wanted = BTreeMap<(u32, bool), BTreeSet<IpAddr>>;

/// What the node has.
#[derive(Clone, Copy)]
struct Node<'a> {
    config: &'a DeviceConfig,
    assigned: &'a [Assigned],
    devices: &'a Devices,
    uplink: u32,
}

impl Pools {
    /// Gives each device the configured addresses that it has. An address with a network around it is for what leaves by its device.
    /// One that stands alone (/32, /128), on whatever device, leads to the node by a route of others: it is for what leaves by the
    /// uplink.
    ///
    /// A device that should have some and has none lets nothing out that would be masqueraded: its own address is not the one that
    /// the outside was told of.
    pub(super) fn choose(
        config: &DeviceConfig,
        assigned: &[Assigned],
        devices: &Devices,
        uplink: u32,
        values: &mut BTreeMap<u32, Device>,
    ) -> Self {
        let node = Node { config, assigned, devices, uplink };
        let (mut pools, mut wanted) = (Self::default(), Wanted::new());
        for prefix in &config.masquerade_addresses {
            pools.problems.extend(node.find(*prefix, &mut wanted));
        }
        for ((index, is_v6), addresses) in wanted {
            let Some(device) = values.get_mut(&index) else { continue };
            let name = node.name(index);
            if addresses.is_empty() {
                pools.closed.push(closed(name, is_v6));
            }
            pools.problems.extend(too_many(name, &addresses));
            let addresses: Vec<Addr> = addresses.into_iter().map(Addr::from).collect();
            *(if is_v6 { &mut device.pool_v6 } else { &mut device.pool_v4 }) = Pool::of(&addresses);
        }
        pools
    }
}

impl Node<'_> {
    /// Adds what the node has of `prefix`, and tells what is wrong with it.
    fn find(&self, prefix: IpNet, wanted: &mut Wanted) -> Vec<String> {
        let is_v6 = prefix.addr().is_ipv6();
        let (mut problems, mut found) = (Vec::new(), false);
        for own in self.assigned.iter().filter(|own| own.usable && prefix.contains(&own.address)) {
            let index = if own.is_alone() { self.uplink } else { own.ifindex };
            if !self.is_heard(index) {
                continue;
            }
            if let Some(cidr) = self.cluster_cidr(own.address) {
                problems.push(format!(
                    "masqueradeAddresses: {} of the list is of {cidr}, which are pods or Services: it is left out; give the node an \
                     address beyond them",
                    own.address
                ));
                continue;
            }
            found = true;
            wanted.entry((index, is_v6)).or_default().insert(own.address);
        }
        if !found {
            for index in self.awaiting(prefix) {
                wanted.entry((index, is_v6)).or_default();
            }
            problems.push(absent(prefix));
        }
        problems
    }

    /// The devices that an address of `prefix` would be for if it was there: those with a network that has some of it, else the uplink.
    fn awaiting(&self, prefix: IpNet) -> impl Iterator<Item = u32> {
        let overlaps = |own: &Assigned| {
            let network = IpNet::new(own.address, own.prefix_len).ok();
            network.is_some_and(|network| network.contains(&prefix) || prefix.contains(&network))
        };
        let around = self.assigned.iter().filter(|own| !own.is_alone() && self.is_heard(own.ifindex) && overlaps(own));
        let around: BTreeSet<u32> = around.map(|own| own.ifindex).collect();
        let uplink = around.is_empty().then_some(self.uplink);
        around.into_iter().chain(uplink)
    }

    fn is_heard(&self, index: u32) -> bool {
        self.devices.heard.iter().any(|heard| heard.index == index)
    }

    fn cluster_cidr(&self, address: IpAddr) -> Option<&IpNet> {
        self.config.all_pod_cidrs().chain(&self.config.service_cidrs).find(|cidr| cidr.contains(&address))
    }

    fn name(&self, index: u32) -> &str {
        let found = self.devices.heard.iter().find(|heard| heard.index == index);
        found.map_or("the uplink", |heard| &heard.name)
    }
}

fn absent(prefix: IpNet) -> String {
    let alone = prefix.prefix_len() == prefix.max_prefix_len();
    let what = if alone { prefix.addr().to_string() } else { format!("any of {prefix}") };
    format!(
        "masqueradeAddresses: no device that leads out of this node has {what}, fit for use: workloads do without it; give it to one, \
         or take it out of the list"
    )
}

fn closed(device: &str, is_v6: bool) -> String {
    let family = if is_v6 { "IPv6" } else { "IPv4" };
    format!(
        "masqueradeAddresses: none of the {family} addresses for {device} is there: no new connection of a workload leaves by it, rather \
         than with another address; give it one, or take them out of the list"
    )
}

fn too_many(device: &str, addresses: &BTreeSet<IpAddr>) -> Option<String> {
    let most = POOL_ADDRESSES as usize;
    let first = addresses.iter().nth(most)?;
    let more = addresses.len() - most - 1;
    let others = if more == 0 { String::new() } else { format!(" and {more} others") };
    Some(format!(
        "masqueradeAddresses: {device} has more of a family than {most}: {first}{others} are left out; take some out of the list"
    ))
}
