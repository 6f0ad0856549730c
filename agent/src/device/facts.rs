// SPDX-License-Identifier: Apache-2.0
//! Pure: from configuration and observation to what the other rooms need.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use ipnet::IpNet;
use weft_abi::{Addr, Config, ConfigFlags, HAIRPIN_V4, HAIRPIN_V6};

use super::{DeviceConfig, Error, Observation, Result, links::Link, routes::Route};
use crate::model::{HostRoute, Mode, NodeFacts};

/// Outer headers of VXLAN: Ethernet 14, IPv4 20 or IPv6 40, UDP 8, VXLAN 8 (RFC 7348, section 5).
const OVERHEAD_V4: u32 = 50;
const OVERHEAD_V6: u32 = 70;
/// RFC 8200, section 5.
const MIN_MTU_V6: u32 = 1280;
/// RFC 791.
const MIN_MTU_V4: u32 = 576;

/// The gateway that workloads of a pod CIDR are told: its first address after the network's own. The host has it on `weft0`.
#[must_use]
pub fn gateway(pod_cidr: &IpNet) -> IpAddr {
    match pod_cidr.network() {
        IpAddr::V4(network) => Ipv4Addr::from_bits(network.to_bits().wrapping_add(1)).into(),
        IpAddr::V6(network) => Ipv6Addr::from_bits(network.to_bits().wrapping_add(1)).into(),
    }
}

/// What the configuration alone can get wrong.
pub(super) fn check(config: &DeviceConfig) -> Result<()> {
    for v4 in [true, false] {
        let of_family = config.pod_cidrs.iter().filter(|cidr| cidr.addr().is_ipv4() == v4);
        let of_family: Vec<_> = of_family.map(ToString::to_string).collect();
        if of_family.len() > 1 {
            let problem = format!("{} are of one family: give one per family at most", of_family.join(" and "));
            return Err(Error::config("podCIDRs", problem));
        }
    }
    if let Some(cidr) = config.pod_cidrs.iter().find(|cidr| cidr.max_prefix_len() - cidr.prefix_len() < 2) {
        return Err(Error::config("podCIDRs", format!("{cidr} has no room for workloads: give a shorter prefix")));
    }
    if config.mode == Mode::Vxlan && config.vni >= 1 << 24 {
        return Err(Error::config("vni", format!("{} does not fit 24 bits: give one below 16777216", config.vni)));
    }
    if config.masquerade_ports.as_ref().is_some_and(|ports| ports.is_empty() || *ports.start() == 0) {
        return Err(Error::config(
            "masqueradePorts",
            "the range is empty or begins with port 0: give one such as 61000-65535",
        ));
    }
    Ok(())
}

/// The largest packet that a workload may send: the uplink's MTU less the encapsulation, or what is configured.
pub(super) fn pod_mtu(config: &DeviceConfig, uplink: &Link, has_v4_underlay: bool) -> Result<u32> {
    let overhead = match (config.mode, has_v4_underlay) {
        (Mode::Native, _) => 0,
        (Mode::Vxlan, true) => OVERHEAD_V4,
        (Mode::Vxlan, false) => OVERHEAD_V6,
    };
    let most = uplink.mtu.saturating_sub(overhead);
    let mtu = config.mtu.unwrap_or(most);
    let least = if config.pod_cidrs.iter().any(|cidr| cidr.addr().is_ipv6()) { MIN_MTU_V6 } else { MIN_MTU_V4 };
    if mtu > most || mtu < least {
        let uplink =
            format!("the uplink '{}' has {} bytes, {overhead} of them for encapsulation", uplink.name, uplink.mtu);
        return Err(Error::config("mtu", format!("{mtu} is not within {least} to {most}: {uplink}")));
    }
    Ok(mtu)
}

/// What is on this node, for [`facts`].
pub(super) struct Devices<'a> {
    pub(super) uplink: &'a super::uplink::Uplink,
    pub(super) host: Option<&'a Link>,
    pub(super) overlay: Option<&'a Link>,
    /// MTU of workloads: the uplink takes so much.
    pub(super) pod_mtu: u32,
}

/// `ports`: those that are masqueraded with.
pub(super) fn facts(config: &DeviceConfig, devices: &Devices<'_>, ports: &RangeInclusive<u16>) -> NodeFacts {
    let Devices { uplink, host, overlay, pod_mtu } = devices;
    let mut host_addresses: Vec<_> =
        config.all_pod_cidrs().map(gateway).chain(uplink.around.host_addresses.iter().copied()).collect();
    host_addresses.sort_unstable();
    host_addresses.dedup();
    let plain = |wanted: bool, flag: u16| if wanted { 0 } else { flag };
    let masquerade =
        |address: Option<IpAddr>, wanted: bool| address.filter(|_| wanted).map_or(Addr::UNSPECIFIED, Addr::from);
    let mut facts = NodeFacts {
        name: config.node_name.clone(),
        mode: config.mode,
        config: Config {
            masquerade_v4: masquerade(uplink.v4.map(IpAddr::from), config.masquerade_v4),
            masquerade_v6: masquerade(uplink.v6.map(IpAddr::from), config.masquerade_v6),
            uplink_ifindex: uplink.link.index,
            host_ifindex: host.map_or(0, |link| link.index),
            overlay_ifindex: overlay.map_or(0, |link| link.index),
            vni: if config.mode == Mode::Vxlan { config.vni } else { 0 },
            masquerade_first: *ports.start(),
            masquerade_count: (ports.end() - ports.start()).saturating_add(1),
            host_mac: host.and_then(|link| link.mac).map_or([0; 6], |mac| mac.0),
            vxlan_port: if config.mode == Mode::Vxlan { config.vxlan_port.to_be() } else { 0 },
            node_v4: uplink.v4.map_or(Addr::UNSPECIFIED, |address| IpAddr::from(address).into()),
            node_v6: uplink.v6.map_or(Addr::UNSPECIFIED, |address| IpAddr::from(address).into()),
            flags: plain(config.masquerade_v4, ConfigFlags::PLAIN_V4)
                | plain(config.masquerade_v6, ConfigFlags::PLAIN_V6),
            mtu: every_way_takes(&uplink.around.devices, *pod_mtu),
            workload_mtu: config.mtu.map_or(0, |mtu| u16::try_from(mtu).unwrap_or(u16::MAX)),
            mss_clamp: config.mss_clamp,
            timeouts: config.timeouts,
            ..Config::default()
        },
        pod_cidrs: config.all_pod_cidrs().copied().collect(),
        devices: uplink.around.device_values.clone(),
        host_addresses,
        reserved: uplink.reserved.clone(),
        service_cidrs: config.service_cidrs.clone(),
        plain_cidrs: config.plain_cidrs.clone(),
        next_hops: BTreeMap::new(),
        checks_neighbours: config.checks_neighbours,
        exposure: config.exposure.clone(),
        api_servers: config.api_servers.clone(),
    };
    config.limits.put(&mut facts.config);
    facts
}

/// Bytes of an IP packet that every device takes, and the tunnel.
pub(super) fn every_way_takes(devices: &super::Devices, pod_mtu: u32) -> u16 {
    let least = devices.heard.iter().map(|heard| heard.mtu).fold(pod_mtu, u32::min);
    u16::try_from(least).unwrap_or(u16::MAX)
}

/// Every route the host needs, by destination: those of the plan and those that follow from the node alone (its own pod
/// CIDRs, Service CIDRs, the hairpin addresses).
pub(super) fn host_routes(observation: &Observation, planned: &[HostRoute]) -> BTreeMap<IpNet, Route> {
    let facts = &observation.facts;
    let hairpins = [HAIRPIN_V4, HAIRPIN_V6].map(|addr| IpNet::from(IpAddr::from(addr)));
    let own = facts.pod_cidrs.iter().chain(&facts.service_cidrs).chain(&hairpins);
    let own = own.map(|dst| HostRoute { dst: dst.trunc(), via: None });
    let all = own.chain(planned.iter().map(|route| HostRoute { dst: route.dst.trunc(), via: route.via }));
    all.map(|route| (route.dst, kernel_route(observation, &route))).collect()
}

fn kernel_route(observation: &Observation, route: &HostRoute) -> Route {
    let config = &observation.facts.config;
    let node_address = match route.dst {
        IpNet::V4(_) => observation.node_v4.map(IpAddr::from),
        IpNet::V6(_) => observation.node_v6.map(IpAddr::from),
    };
    Route {
        dst: route.dst,
        via: route.via,
        ifindex: if route.via.is_some() { config.uplink_ifindex } else { config.host_ifindex },
        source: node_address,
    }
}
