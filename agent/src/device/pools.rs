// SPDX-License-Identifier: Apache-2.0
//! Which addresses of the node workloads are masqueraded with beside its own. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use weft_abi::{Addr, Device, POOL_ADDRESSES, Pool};

use super::{DeviceConfig, addresses::Assigned, devices::Devices, links::Link};

/// Which devices each of the configured prefixes was for when it was last there.
pub type PoolDevices = BTreeMap<IpNet, BTreeSet<u32>>;

/// What became of `masqueradeAddresses`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Pools {
    /// See [`super::Observation::pool_devices`].
    pub(super) devices: PoolDevices,
    /// What cannot be used, and the fix.
    pub(super) problems: Vec<String>,
    /// By which devices nothing is masqueraded, for want of an address, and the fix.
    pub(super) closed: Vec<String>,
}

/// The addresses of each device and family (whether it is IPv6); of none: closed.
type Wanted = BTreeMap<(u32, bool), BTreeSet<IpAddr>>;

/// What the node has.
#[derive(Clone, Copy)]
pub(super) struct Node<'a> {
    pub(super) config: &'a DeviceConfig,
    pub(super) links: &'a [Link],
    pub(super) assigned: &'a [Assigned],
    pub(super) devices: &'a Devices,
    pub(super) uplink: u32,
    /// The uplink, and what else default routes lead by.
    pub(super) ways: &'a BTreeSet<u32>,
}

impl Pools {
    /// Gives each device the configured addresses that it has. An address with a network around it is for what leaves by its device.
    /// One that stands alone (/32, /128), on whatever device, leads to the node by a route of others: it is for whatever leaves by a
    /// default route.
    ///
    /// A device that should have some and has none lets nothing out that would be masqueraded: its own address is not the one that
    /// the outside was told of.
    pub(super) fn choose(node: Node<'_>, values: &mut BTreeMap<u32, Device>) -> Self {
        let (mut pools, mut wanted) = (Self::default(), Wanted::new());
        for prefix in &node.config.masquerade_addresses {
            pools.find(node, *prefix, &mut wanted);
        }
        close_uplink(node, &mut wanted);
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

    /// Adds what the node has of `prefix`, or the devices that are without it now.
    fn find(&mut self, node: Node<'_>, prefix: IpNet, wanted: &mut Wanted) {
        let is_v6 = prefix.addr().is_ipv6();
        let mut devices = BTreeSet::new();
        for own in node.assigned.iter().filter(|own| own.usable && prefix.contains(&own.address)) {
            if let Some(cidr) = node.cluster_cidr(own.address) {
                self.problems.push(of_cluster(own.address, cidr));
                continue;
            }
            for index in node.serves(prefix, own) {
                wanted.entry((index, is_v6)).or_default().insert(own.address);
                devices.insert(index);
            }
        }
        if devices.is_empty() {
            self.problems.push(absent(prefix));
            for index in node.awaiting(prefix) {
                wanted.entry((index, is_v6)).or_default();
            }
            devices = node.known(prefix);
        }
        self.devices.insert(prefix, devices);
    }
}

/// Where the node has nothing of the whole list, and nothing says what that is for, it is for the uplink.
fn close_uplink(node: Node<'_>, wanted: &mut Wanted) {
    for prefix in &node.config.masquerade_addresses {
        let is_v6 = prefix.addr().is_ipv6();
        if !wanted.keys().any(|(_, of_v6)| *of_v6 == is_v6) {
            wanted.insert((node.uplink, is_v6), BTreeSet::new());
        }
    }
}

impl Node<'_> {
    /// The devices by which others are heard that an address of `prefix` is for.
    fn serves(&self, prefix: IpNet, own: &Assigned) -> BTreeSet<u32> {
        let devices = if own.is_alone() {
            // Of a default route that has just gone as well: connections may come back to its device.
            self.ways.union(&self.known(prefix)).copied().collect()
        } else {
            BTreeSet::from([own.ifindex])
        };
        devices.into_iter().filter(|index| self.is_heard(*index)).collect()
    }

    /// The devices that an address of `prefix` would be for if it was there: those that it was for before, else those with a network
    /// that has some of it, whether they are heard or not.
    fn awaiting(&self, prefix: IpNet) -> BTreeSet<u32> {
        let known = self.known(prefix);
        if !known.is_empty() {
            return known;
        }
        let overlaps = |own: &&Assigned| {
            let network = IpNet::new(own.address, own.prefix_len).ok();
            let overlaps = network.is_some_and(|network| network.contains(&prefix) || prefix.contains(&network));
            !own.is_alone() && overlaps
        };
        self.assigned.iter().filter(overlaps).map(|own| own.ifindex).collect()
    }

    /// The devices of the node that `prefix` was for at the last look.
    fn known(&self, prefix: IpNet) -> BTreeSet<u32> {
        let known = self.config.pool_devices.get(&prefix).into_iter().flatten().copied();
        known.filter(|index| self.links.iter().any(|link| link.index == *index)).collect()
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

fn of_cluster(address: IpAddr, cidr: &IpNet) -> String {
    format!(
        "masqueradeAddresses: {address} of the list is of {cidr}, which are pods or Services: it is left out; give the node an address \
         beyond them"
    )
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
