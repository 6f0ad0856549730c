// SPDX-License-Identifier: Apache-2.0
//! The node's own devices, addresses and routes: observe, and move closer.
//!
//! The host is a port too. `weft0` is its end of a veth pair (the other, `weft1`, only holds it up); what the host sends to
//! workloads and Services is routed into `weft0`, whose tcx egress runs `from_host`; what workloads send to the host the
//! programs redirect into the ingress of `weft0`. In VXLAN mode one device, `weft_vxlan`, carries packets to other nodes.
//!
//! | What | How it is set | Why |
//! |---|---|---|
//! | `weft0`, `weft1` | veth, NOARP, up, fixed addresses, pod MTU | nothing is to be resolved behind it; TCP of the host learns the right MSS |
//! | `rp_filter` 0, `accept_local` 1 on both | by netlink | the host's own address is the source of what comes back from a hairpin |
//! | `addrgenmode none`, multicast off on all | by netlink | no link-local address, no DAD, router solicitations or MLD reports of the host's own |
//! | `disable_ipv6` 0 on `weft0` | sysctl, only where it differs | nodes that disable IPv6 by default |
//! | `rp_filter` 1, no forwarding, no IPv6 on the ports of workloads | netlink, sysctl | closed also without programs: see [`links::prepare_port`] |
//! | gateway addresses on `weft0` | /32 and /128, no prefix route | the host answers for them; the programs answer ARP and ND |
//! | `weft_vxlan` | external mode, no learning, gateway MAC, pod MTU | remote and VNI come with each packet |
//! | neighbours of protocol 119 (native mode) | the uplink | from which Ethernet address another node's pods are heard |
//! | routes of protocol 119 | main table, `src` = the node's address | the host's own traffic, and reverse path checks at `weft0` |
//!
//! IP forwarding is not needed, the programs forward; it is on for `weft0`, so that they may ask for the host's routes. Nothing
//! outside of these objects is changed, and [`remove`] deletes exactly them. A pass that finds everything right sends no change to the kernel, so a restarted agent disturbs nothing.
//!
//! Order for a caller: [`apply`], load and attach the programs, then [`apply_routes`] whenever the plan changes, and
//! [`next_hops`] whenever the set of nodes does (native mode). Others change devices and routes too: [`Changes`] tells, and
//! [`repair`], [`apply_routes`] and [`next_hops`] compare with what is there.

mod addresses;
mod aggregate;
mod changes;
mod devices;
mod error;
mod facts;
mod host_port;
mod limits;
pub mod links;
mod moves;
mod neighbours;
mod netlink;
mod overlay;
mod pools;
mod ports;
mod routes;
mod sysctl;
#[cfg(test)]
mod tests;
mod uplink;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    sync::Once,
};

use ipnet::IpNet;

pub use self::{
    changes::{Change, Changes, Due},
    devices::{Devices, Heard},
    error::{Error, Result},
    facts::gateway,
    limits::Limits,
    pools::PoolDevices,
    routes::{ROUTE_PROTOCOL, RouteChanges},
};
use self::{
    links::{Framing, Link},
    netlink::Netlink,
};
use crate::model::{HostRoute, Mode, NextHop, NodeFacts, ServiceExposure};

/// The host's own port.
pub const HOST_PORT: &str = "weft0";
/// The other end of its pair.
pub const HOST_PORT_PEER: &str = "weft1";
/// The VXLAN device.
pub const OVERLAY: &str = "weft_vxlan";

/// What this room needs of the configuration.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// The node's name in the API.
    pub node_name: String,
    /// Encapsulated or routed.
    pub mode: Mode,
    /// Name of the device that leads out; found by address or default route where absent.
    pub uplink: Option<String>,
    /// The node's addresses as others know them (InternalIP), one per family at most; the uplink's own where absent.
    pub node_addresses: Vec<IpAddr>,
    /// Addresses that the Node object has (InternalIP): of those that the node really has the first of each family counts where
    /// none is configured.
    pub told_addresses: Vec<IpAddr>,
    /// This node's pod CIDRs, one per family at most.
    pub pod_cidrs: Vec<IpNet>,
    /// Pod CIDRs that this node had before: workloads that still have addresses of them go on.
    pub retired_pod_cidrs: Vec<IpNet>,
    /// Service CIDRs.
    pub service_cidrs: Vec<IpNet>,
    /// See [`NodeFacts::exposure`].
    pub exposure: ServiceExposure,
    /// See [`NodeFacts::api_servers`].
    pub api_servers: Option<Vec<IpAddr>>,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
    /// MTU of workloads; the uplink's less the encapsulation where absent.
    pub mtu: Option<u32>,
    /// Whether IPv4 to the outside takes the node's address.
    pub masquerade_v4: bool,
    /// Whether IPv6 to the outside takes the node's address.
    pub masquerade_v6: bool,
    /// Addresses of this node, singly or by prefix, that workloads are masqueraded with; none: those that the host would take.
    pub masquerade_addresses: Vec<IpNet>,
    /// [`Observation::pool_devices`] of the last look.
    pub pool_devices: PoolDevices,
    /// See [`NodeFacts::plain_cidrs`].
    pub plain_cidrs: Vec<IpNet>,
    /// Source ports of masqueraded flows; the most that the node's own settings leave where absent.
    pub masquerade_ports: Option<RangeInclusive<u16>>,
    /// See [`weft_abi::Config::mss_clamp`].
    pub mss_clamp: u16,
    /// When connections are over.
    pub timeouts: weft_abi::Timeouts,
    /// See [`NodeFacts::checks_neighbours`].
    pub checks_neighbours: bool,
    /// What one port may take of what all share.
    pub limits: Limits,
}

/// The node as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// For the plan. `next_hops` is empty here: see [`next_hops`].
    pub facts: NodeFacts,
    /// The device that leads to the other nodes.
    pub uplink: Link,
    /// It and all others by which packets come from outside of the node.
    pub devices: Devices,
    /// The node's IPv4 address.
    pub node_v4: Option<Ipv4Addr>,
    /// The node's IPv6 address.
    pub node_v6: Option<Ipv6Addr>,
    /// A digest of the host's routes, rules, addresses and links that are not Weft's: what packets to the outside depend on.
    pub state: u64,
    /// MTU of workloads and of `weft0`.
    pub pod_mtu: u32,
    /// What does not fit on this node, and the fix; Weft works nevertheless.
    pub problems: Vec<String>,
    /// Those of them that keep workloads from leaving the node.
    pub closed: Vec<String>,
    /// Which devices each prefix of `masqueradeAddresses` is for, or was when it was last there.
    pub pool_devices: PoolDevices,
}

/// What [`repair`] found and did.
#[derive(Clone, Debug, PartialEq)]
pub struct Repaired {
    /// The node afterwards.
    pub observation: Observation,
    /// Changes that the kernel was asked for; 0: everything was right.
    pub changes: usize,
}

impl DeviceConfig {
    /// The pod CIDRs, and those that the node had before.
    pub(crate) fn all_pod_cidrs(&self) -> impl Iterator<Item = &IpNet> {
        self.pod_cidrs.iter().chain(&self.retired_pod_cidrs)
    }

    /// Whether the node can have these pod CIDRs.
    ///
    /// # Errors
    /// Two of one family, or one without room for workloads.
    pub fn check(&self) -> Result<()> {
        facts::check(self)
    }
}

/// Makes or repairs the node's devices and their addresses, and tells what the node is. Routes are for [`apply_routes`].
///
/// # Errors
/// The configuration does not fit the node (nothing was changed then), a name is taken by a foreign device, or the kernel
/// refuses; a later call goes on from there.
pub async fn apply(config: &DeviceConfig) -> Result<Observation> {
    let observation = repair(config).await.map(|repaired| repaired.observation)?;
    if config.mode == Mode::Vxlan {
        // Of an earlier run in another mode.
        neighbours::remove(&Netlink::open()?).await?;
    }
    Ok(observation)
}

/// As [`apply`], and tells how much there was to do.
///
/// # Errors
/// As [`apply`].
pub async fn repair(config: &DeviceConfig) -> Result<Repaired> {
    let netlink = Netlink::open()?;
    let (uplink, pod_mtu) = requirements(&netlink, config).await?;
    put_devices(&netlink, config, pod_mtu).await?;
    let observation = observe_with(&netlink, config, uplink, pod_mtu).await?;
    Ok(Repaired { observation, changes: netlink.changes() })
}

/// As [`repair`], for a node whose way out cannot be told now: it is the one that the node had `before`.
///
/// # Errors
/// A name is taken by a foreign device, or the kernel refuses.
pub async fn keep(config: &DeviceConfig, before: &Observation) -> Result<Repaired> {
    let netlink = Netlink::open()?;
    put_devices(&netlink, config, before.pod_mtu).await?;
    let uplink = uplink::keep(&netlink, config, before).await?;
    let observation = observe_with(&netlink, config, uplink, before.pod_mtu).await?;
    Ok(Repaired { observation, changes: netlink.changes() })
}

async fn put_devices(netlink: &Netlink, config: &DeviceConfig, pod_mtu: u32) -> Result<()> {
    let gateways: Vec<_> = config.all_pod_cidrs().map(gateway).collect();
    host_port::apply(netlink, pod_mtu, &gateways).await?;
    match config.mode {
        Mode::Vxlan => overlay::apply(netlink, config.vxlan_port, pod_mtu).await.map(drop),
        Mode::Native => overlay::remove(netlink).await,
    }
}

/// Brings the overlay up, where there is one, once `from_overlay` is attached to it; whether it was down.
///
/// # Errors
/// Another process has the UDP port, or the kernel refuses.
pub async fn open_overlay(config: &DeviceConfig) -> Result<bool> {
    match config.mode {
        Mode::Vxlan => overlay::open(&Netlink::open()?, config.vxlan_port).await,
        Mode::Native => Ok(false),
    }
}

/// Tells what the node is, without changing anything; indexes of devices that are not there are 0.
///
/// # Errors
/// As [`apply`].
pub async fn observe(config: &DeviceConfig) -> Result<Observation> {
    let netlink = Netlink::open()?;
    let (uplink, pod_mtu) = requirements(&netlink, config).await?;
    observe_with(&netlink, config, uplink, pod_mtu).await
}

/// Moves the host's routes of protocol 119 to what follows from the node and the plan; others are never touched.
///
/// # Errors
/// The first route that the kernel refused; all the others were applied.
pub async fn apply_routes(observation: &Observation, planned: &[HostRoute]) -> Result<RouteChanges> {
    let (changes, result) = repair_routes(observation, planned).await;
    result.map(|()| changes)
}

/// As [`apply_routes`], and tells what was changed also where a route was refused.
pub async fn repair_routes(observation: &Observation, planned: &[HostRoute]) -> (RouteChanges, Result<()>) {
    match Netlink::open() {
        Ok(netlink) => routes::apply(&netlink, &facts::host_routes(observation, planned)).await,
        Err(error) => (RouteChanges::default(), Err(error)),
    }
}

/// As [`apply_routes`], where the routes of the plan `before` stand: work in proportion to what is different, but where prefixes that are
/// aggregated come or go, which takes a look at all routes of the main table.
///
/// # Errors
/// As [`apply_routes`].
pub async fn follow_routes(
    observation: &Observation,
    before: &[HostRoute],
    planned: &[HostRoute],
) -> Result<RouteChanges> {
    let netlink = Netlink::open()?;
    let [before, after] = [before, planned].map(|routes| facts::host_routes(observation, routes));
    let (changes, result) = match routes::follow(&netlink, &before, &after).await {
        Some(followed) => followed,
        None => routes::apply(&netlink, &after).await,
    };
    result.map(|()| changes)
}

/// How each address is reached over the device `uplink`: [`NodeFacts::next_hops`] of native mode. The kernel is asked to keep
/// the Ethernet addresses of neighbours; of one that does not answer now the address that it had `before` stands. Where the
/// uplink has no Ethernet header, every node is a router.
/// Addresses without a route are left out (and logged): their packets have nowhere to go.
///
/// # Errors
/// The kernel does not answer at all, or keeps no neighbours.
pub async fn next_hops(
    uplink: &Link,
    nodes: &[IpAddr],
    before: &BTreeMap<IpAddr, NextHop>,
) -> Result<BTreeMap<IpAddr, NextHop>> {
    let netlink = Netlink::open()?;
    let (mut hops, mut neighbours, mut unreachable) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
    for node in nodes {
        match routes::lookup(&netlink, *node).await {
            Ok((_, Some(gateway))) => drop(hops.insert(*node, NextHop::Router(gateway))),
            Ok((device, None)) if device == uplink.index && uplink.framing == Framing::Ethernet => {
                neighbours.insert(*node);
            }
            Ok((device, None)) if device == uplink.index => drop(hops.insert(*node, NextHop::Router(*node))),
            // This node itself.
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%node, %error, "no route to a node");
                unreachable.push(*node);
            }
        }
    }
    if let Some(first) = unreachable.first() {
        tracing::warn!(nodes = unreachable.len(), %first, "no route to nodes");
    }
    let known = neighbours::apply(&netlink, uplink.index, &neighbours).await?;
    hops.extend(neighbours.into_iter().map(|node| {
        let had = match before.get(&node) {
            Some(NextHop::Neighbour(mac)) => *mac,
            _ => None,
        };
        (node, NextHop::Neighbour(known.get(&node).copied().or(had)))
    }));
    Ok(hops)
}

/// Deletes everything that [`apply`] and [`apply_routes`] made, and nothing else. Calling it twice is fine.
///
/// # Errors
/// The first refusal of the kernel, or a foreign device under one of our names; the rest was removed.
pub async fn remove() -> Result<()> {
    let netlink = Netlink::open()?;
    let routes = routes::apply(&netlink, &BTreeMap::new()).await.1;
    let neighbours = neighbours::remove(&netlink).await;
    let overlay = overlay::remove(&netlink).await;
    let host = host_port::remove(&netlink).await;
    routes.and(neighbours).and(overlay).and(host)
}

async fn requirements(netlink: &Netlink, config: &DeviceConfig) -> Result<(uplink::Uplink, u32)> {
    facts::check(config)?;
    let uplink = uplink::observe(netlink, config).await?;
    let pod_mtu = facts::pod_mtu(config, &uplink.link, uplink.v4.is_some())?;
    if sysctl::strict_rp_filter_everywhere()? {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            tracing::warn!(
                "net.ipv4.conf.all.rp_filter=1 may drop what remote pods send to this host (mode native), and what is larger than \
                 the way out of the node and may be cut; set it to 0 or 2"
            );
        });
    }
    Ok((uplink, pod_mtu))
}

async fn observe_with(
    netlink: &Netlink,
    config: &DeviceConfig,
    uplink: uplink::Uplink,
    pod_mtu: u32,
) -> Result<Observation> {
    let host = links::find_with(netlink, HOST_PORT).await?;
    let overlay = match config.mode {
        Mode::Vxlan => links::find_with(netlink, OVERLAY).await?,
        Mode::Native => None,
    };
    let devices = facts::Devices { uplink: &uplink, host: host.as_ref(), overlay: overlay.as_ref(), pod_mtu };
    let ports = ports::choose(config.masquerade_ports.as_ref(), &sysctl::local_ports()?, &sysctl::reserved_ports()?);
    let facts = facts::facts(config, &devices, &ports.range);
    let masquerades = config.masquerade_v4 || config.masquerade_v6;
    let uplink::Uplink { link, around, state, v4: node_v4, v6: node_v6, .. } = uplink;
    let uplink::Around { devices, pools, .. } = around;
    let problems = ports.problem.into_iter().filter(|_| masquerades).chain(pools.problems);
    let problems = problems.chain(pools.closed.iter().cloned()).collect();
    let (closed, pool_devices) = (pools.closed, pools.devices);
    Ok(Observation { facts, node_v4, node_v6, uplink: link, devices, state, pod_mtu, problems, closed, pool_devices })
}
