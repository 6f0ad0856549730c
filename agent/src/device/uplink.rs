// SPDX-License-Identifier: Apache-2.0
//! Which device leads out of the node, and which of its addresses are the node's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use weft_abi::Device;

use super::{
    DeviceConfig, Error, Observation, Result,
    addresses::{self, Assigned},
    devices::Devices,
    links::{self, Link, NAME_PREFIX},
    netlink::Netlink,
    pools::{self, Pools},
    routes::{self, DefaultWay},
};
use crate::plan::Digest;

/// The way out of the node.
#[derive(Clone, Debug)]
pub(super) struct Uplink {
    pub(super) link: Link,
    pub(super) around: Around,
    pub(super) v4: Option<Ipv4Addr>,
    pub(super) v6: Option<Ipv6Addr>,
    /// See [`super::Observation::state`].
    pub(super) state: u64,
    /// See [`crate::model::NodeFacts::reserved`].
    pub(super) reserved: Vec<IpAddr>,
}

/// What follows from the node's links and addresses, once its uplink is known.
#[derive(Clone, Debug)]
pub(super) struct Around {
    pub(super) devices: Devices,
    /// `DEVICES`.
    pub(super) device_values: BTreeMap<u32, Device>,
    pub(super) pools: Pools,
    /// Every address of the node that others can reach it by, Weft's own devices left out.
    pub(super) host_addresses: Vec<IpAddr>,
}

/// Links and addresses of the node.
struct Seen {
    links: Vec<Link>,
    /// Those that others can reach, without Weft's own devices.
    assigned: Vec<Assigned>,
    /// A digest of all that are not Weft's own.
    digest: u64,
}

impl Seen {
    async fn look(netlink: &Netlink) -> Result<Self> {
        let links = links::list_with(netlink).await?;
        let mut assigned = addresses::list(netlink).await?;
        assigned.retain(|address| !links.iter().any(|link| link.index == address.ifindex && is_own(link)));
        let parts = links.iter().filter(|link| !is_own(link)).map(digest_of_link);
        let digest = parts.chain(assigned.iter().map(Assigned::digest)).fold(0, u64::wrapping_add);
        assigned.retain(|address| address.global && !address.address.is_loopback());
        Ok(Self { links, assigned, digest })
    }

    /// `ways`: the devices that default routes lead by.
    fn around(&self, config: &DeviceConfig, uplink: u32, ways: impl Iterator<Item = u32>) -> Around {
        let devices = Devices::choose(&self.links, uplink);
        let mut device_values = devices.with_addresses(&self.assigned, &config.masquerade_addresses);
        let ways = ways.chain([uplink]).collect();
        let Self { links, assigned, .. } = self;
        let node = pools::Node { config, links, assigned, devices: &devices, uplink, ways: &ways };
        let pools = Pools::choose(node, &mut device_values);
        let host_addresses = self.assigned.iter().map(|assigned| assigned.address).collect();
        Around { devices, device_values, pools, host_addresses }
    }
}

fn is_own(link: &Link) -> bool {
    link.name.starts_with(NAME_PREFIX)
}

pub(super) async fn observe(netlink: &Netlink, config: &DeviceConfig) -> Result<Uplink> {
    let seen = Seen::look(netlink).await?;
    let is_own = |index: u32| seen.links.iter().any(|link| link.index == index && is_own(link));
    let (ways, routes) = routes::default_ways(netlink, is_own).await?;
    let state = [routes, routes::rules_digest(netlink).await?].into_iter().fold(seen.digest, u64::wrapping_add);
    let link = find(config, &seen.links, &seen.assigned, &ways)?;
    let (v4, v6) = node_addresses(config, &link, &seen.assigned)?;
    let known = v4.map(IpAddr::from).into_iter().chain(v6.map(IpAddr::from));
    // One that stands alone is nobody's way to the node; it may be a Service's, which something on the node serves, unless
    // workloads are to be masqueraded with that one.
    let is_listed = |address: IpAddr| config.masquerade_addresses.contains(&IpNet::from(address));
    let is_taken = |own: &&Assigned| !own.is_alone() || is_listed(own.address);
    let taken = seen.assigned.iter().filter(is_taken).map(|assigned| assigned.address);
    let all = known.chain(taken).chain(ways.iter().filter_map(|way| way.gateway));
    let reserved: BTreeSet<IpAddr> = all.collect();
    let around = seen.around(config, link.index, ways.iter().map(|way| way.device));
    Ok(Uplink { link, around, v4, v6, state, reserved: reserved.into_iter().collect() })
}

/// As [`observe`], where the way out cannot be told now: it is the one that the node had `before`, under its addresses.
pub(super) async fn keep(netlink: &Netlink, config: &DeviceConfig, before: &Observation) -> Result<Uplink> {
    let around = Seen::look(netlink).await?.around(config, before.uplink.index, std::iter::empty());
    let Observation { uplink, node_v4, node_v6, state, facts, .. } = before.clone();
    Ok(Uplink { link: uplink, around, v4: node_v4, v6: node_v6, state, reserved: facts.reserved })
}

/// Of what packets out of it depend on.
fn digest_of_link(link: &Link) -> u64 {
    let numbers = [link.index, link.mtu, link.up.into(), link.running.into(), link.controller.unwrap_or(0)];
    let mac = link.mac.iter().flat_map(|mac| mac.0);
    Digest::spread(&numbers.into_iter().flat_map(u32::to_ne_bytes).chain(mac).collect::<Vec<u8>>())
}

/// The configured device; else the one that has the configured node address, or that of the Node object; else the one of the
/// default route.
fn find(config: &DeviceConfig, links: &[Link], assigned: &[Assigned], ways: &[DefaultWay]) -> Result<Link> {
    let by_index = |index: u32| links.iter().find(|link| link.index == index).cloned();
    if let Some(name) = &config.uplink {
        let found = links.iter().find(|link| link.name == *name).cloned();
        return found.ok_or_else(|| {
            Error::config("uplink", format!("this node has no link '{name}': give one of {}", names(links)))
        });
    }
    if let Some(address) = config.node_addresses.first() {
        return of_address(assigned, *address)
            .and_then(|assigned| by_index(assigned.ifindex))
            .ok_or_else(|| absent_address(*address));
    }
    let told = config.told_addresses.iter().find_map(|address| of_address(assigned, *address));
    if let Some(link) = told.and_then(|assigned| by_index(assigned.ifindex)) {
        return Ok(link);
    }
    let default = ways.iter().find_map(|way| by_index(way.device));
    default.ok_or_else(|| {
        Error::config("uplink", format!("the node has no default route to find it by: give one of {}", names(links)))
    })
}

fn of_address(assigned: &[Assigned], address: IpAddr) -> Option<&Assigned> {
    assigned.iter().find(|assigned| assigned.address == address)
}

fn names(links: &[Link]) -> String {
    let names: Vec<_> = links
        .iter()
        .map(|link| link.name.as_str())
        .filter(|name| *name != "lo" && !name.starts_with(NAME_PREFIX))
        .collect();
    if names.is_empty() { "(the node has only 'lo')".to_owned() } else { names.join(", ") }
}

fn absent_address(address: IpAddr) -> Error {
    Error::config(
        "nodeAddresses",
        format!("no device of this node has the address {address}: give the node's own addresses"),
    )
}

/// One address per family: the configured one, which must be there; else that of the Node object, where it is there; else the
/// uplink's first that is fit for use.
fn node_addresses(
    config: &DeviceConfig,
    uplink: &Link,
    assigned: &[Assigned],
) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>)> {
    for address in &config.node_addresses {
        if !assigned.iter().any(|assigned| assigned.address == *address) {
            return Err(absent_address(*address));
        }
    }
    let mut of_uplink: Vec<IpAddr> = assigned
        .iter()
        .filter(|address| address.ifindex == uplink.index && address.preferred)
        .map(|address| address.address)
        .collect();
    // The kernel has an address of IPv6 that is added before those that are there: none of a pool is meant.
    of_uplink.sort_by_key(|address| config.masquerade_addresses.iter().any(|pool| pool.contains(address)));
    let told = config.told_addresses.iter().copied().filter(|address| of_address(assigned, *address).is_some());
    let candidates: Vec<_> = config.node_addresses.iter().copied().chain(told).chain(of_uplink).collect();
    let v4 = candidates.iter().find_map(|address| match address {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    });
    let v6 = candidates.iter().find_map(|address| match address {
        IpAddr::V6(v6) => Some(*v6),
        IpAddr::V4(_) => None,
    });
    if v4.is_none() && v6.is_none() {
        let problem = format!("the uplink '{}' has no global address and none is configured: give one", uplink.name);
        return Err(Error::config("nodeAddresses", problem));
    }
    Ok((v4, v6))
}
