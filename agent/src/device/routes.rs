// SPDX-License-Identifier: Apache-2.0
//! Routes of the host's main table with protocol 119: what the host itself sends to workloads and Services.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::{
    IpVersion, RouteMessageBuilder,
    packet_core::Emitable as _,
    packet_route::route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType, RouteVia,
    },
};

use super::{
    Error, Result,
    aggregate::{aggregate, cover, may_aggregate, may_merge},
    error::to_io,
    netlink::Netlink,
};
use crate::plan::Digest;

/// Marks routes as Weft's.
pub const ROUTE_PROTOCOL: u8 = 119;

/// One route of ours, in kernel terms.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Route {
    pub(super) dst: IpNet,
    pub(super) via: Option<IpAddr>,
    pub(super) ifindex: u32,
    /// Preferred source address.
    pub(super) source: Option<IpAddr>,
}

/// What one pass changed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RouteChanges {
    /// Routes added.
    pub added: usize,
    /// Routes that lead elsewhere now.
    pub replaced: usize,
    /// Routes removed.
    pub removed: usize,
}

impl RouteChanges {
    /// How many routes were changed.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.added + self.replaced + self.removed
    }
}

/// Moves the kernel's routes of protocol 119 to those of `prefixes`, aggregated. A route that fails keeps no other from being applied;
/// the first error is returned beside what was changed.
pub(super) async fn apply(netlink: &Netlink, prefixes: &BTreeMap<IpNet, Route>) -> (RouteChanges, Result<()>) {
    let Found { ours: found, covering } = match list(netlink, prefixes).await {
        Ok(found) => found,
        Err(error) => return (RouteChanges::default(), Err(error)),
    };
    let wanted = aggregate(prefixes, &covering);
    let mut changes = RouteChanges::default();
    let (mut failure, mut refused) = (Ok(()), Vec::new());
    let mut by_dst = BTreeMap::new();
    for (route, _) in &found {
        by_dst.entry(route.dst).or_insert(route);
    }
    for route in wanted.values() {
        let ours = by_dst.get(&route.dst);
        if ours.is_some_and(|found| *found == route) {
            continue;
        }
        match set(netlink, route, ours.is_some()).await {
            Ok(()) if ours.is_some() => changes.replaced += 1,
            Ok(()) => changes.added += 1,
            Err(error) => {
                failure = failure.and(Err(error));
                // Where somebody else has that prefix, none of ours around it leads its addresses anywhere.
                if !covering.contains(&route.dst) {
                    refused.push(route.dst);
                }
            }
        }
    }
    // What stands goes once the route that takes its place does.
    let is_needed = |dst: &IpNet| refused.iter().any(|refused| refused.contains(dst) || dst.contains(refused));
    let stale = |dst: &IpNet| !wanted.contains_key(dst) && !is_needed(dst);
    for (stale, message) in found.into_iter().filter(|(found, _)| stale(&found.dst)) {
        match delete(netlink, &stale, message).await {
            Ok(()) => changes.removed += 1,
            Err(error) => failure = failure.and(Err(error)),
        }
    }
    (changes, failure)
}

/// As [`apply`], where the routes `before` stand: asks the kernel for nothing but what is different. None: a route leads elsewhere
/// now, and whose it is only a look at the kernel's routes can tell; or they are aggregated, as others' routes allow.
pub(super) async fn follow(
    netlink: &Netlink,
    before: &BTreeMap<IpNet, Route>,
    after: &BTreeMap<IpNet, Route>,
) -> Option<(RouteChanges, Result<()>)> {
    let aggregated = may_aggregate(before) || may_aggregate(after);
    let needs_look = |(dst, route): (&IpNet, &Route), there: &BTreeMap<IpNet, Route>| match there.get(dst) {
        Some(other) => other != route,
        None => aggregated && may_merge(dst),
    };
    if after.iter().any(|route| needs_look(route, before)) || before.iter().any(|route| needs_look(route, after)) {
        return None;
    }
    let mut changes = RouteChanges::default();
    let mut failure = Ok(());
    for route in after.iter().filter(|(dst, _)| !before.contains_key(dst)).map(|(_, route)| route) {
        match set(netlink, route, false).await {
            Ok(()) => changes.added += 1,
            Err(error) => failure = failure.and(Err(error)),
        }
    }
    for route in before.iter().filter(|(dst, _)| !after.contains_key(dst)).map(|(_, route)| route) {
        let Ok(message) = route.message() else { continue };
        match delete(netlink, route, message).await {
            Ok(()) => changes.removed += 1,
            Err(error) => failure = failure.and(Err(error)),
        }
    }
    Some((changes, failure))
}

/// Routes of the main table.
#[derive(Default)]
struct Found {
    /// Of protocol 119, with the message that deletes it.
    ours: Vec<(Route, RouteMessage)>,
    /// Destinations of those others that cover some of ours.
    covering: BTreeSet<IpNet>,
}

/// Routes of the main table, where these are to be ours.
async fn list(netlink: &Netlink, prefixes: &BTreeMap<IpNet, Route>) -> Result<Found> {
    let mut found = Found::default();
    for request in [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()] {
        let mut answers = netlink.route().get(request).execute();
        while let Some(message) = answers.try_next().await.map_err(Error::netlink("list", "routes"))? {
            let is_main = message.header.table == RouteHeader::RT_TABLE_MAIN;
            let Some(route) = is_main.then(|| Route::read(&message)).flatten() else { continue };
            if message.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL) {
                found.ours.push((route, message));
            } else if cover(&route.dst, prefixes) {
                found.covering.insert(route.dst);
            }
        }
    }
    Ok(found)
}

async fn set(netlink: &Netlink, route: &Route, replace: bool) -> Result<()> {
    tracing::info!(dst = %route.dst, via = ?route.via, ifindex = route.ifindex, replace, "setting route");
    let message = route.message().map_err(|problem| Error::config("route", format!("{}: {problem}", route.dst)))?;
    let request = netlink.route().add(message);
    let request = if replace { request.replace() } else { request };
    request.execute().await.map_err(to_io).map_err(|source| match source.raw_os_error() {
        Some(libc::EEXIST) => Error::config(
            "route",
            format!("a route to {0} that is not Weft's exists: delete it (ip route show {0})", route.dst),
        ),
        _ => Error::Netlink { action: "set", object: format!("route to {}", route.dst), source },
    })
}

async fn delete(netlink: &Netlink, route: &Route, message: RouteMessage) -> Result<()> {
    tracing::info!(dst = %route.dst, via = ?route.via, "removing route");
    match netlink.route().del(message).execute().await.map_err(to_io) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
            Err(Error::Netlink { action: "delete", object: format!("route to {}", route.dst), source: error })
        }
        // Gone already, as the routes of a device that went down are.
        _ => Ok(()),
    }
}

/// How the kernel reaches an address: the device, and the gateway where there is one (`ip route get`).
pub(super) async fn lookup(netlink: &Netlink, address: IpAddr) -> Result<(u32, Option<IpAddr>)> {
    let object = format!("route to {address}");
    let wrong = |problem: &str| Error::config("route", format!("{address}: {problem}"));
    let length = if address.is_ipv4() { 32 } else { 128 };
    let request = RouteMessageBuilder::<IpAddr>::new().destination_prefix(address, length);
    let request = request.map_err(|error| wrong(&error.to_string()))?.build();
    let answer = netlink.route().get(request).execute().try_next().await.map_err(Error::netlink("look up", object))?;
    let answer = answer.ok_or_else(|| wrong("the kernel gave no answer"))?;
    let device = attribute(&answer, |attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    let gateway = attribute(&answer, |attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        _ => None,
    });
    Ok((device.ok_or_else(|| wrong("the kernel's route has no device"))?, gateway))
}

/// A way that a default route has.
#[derive(Clone, Copy, Debug)]
pub(super) struct DefaultWay {
    is_ipv6: bool,
    metric: u32,
    pub(super) device: u32,
    pub(super) gateway: Option<IpAddr>,
}

/// The ways of the default routes, IPv4 before IPv6, lower metrics first; a route may have several of equal cost. Beside them a
/// digest of all routes that are neither Weft's nor of one of the devices that `is_own`.
pub(super) async fn default_ways(netlink: &Netlink, is_own: impl Fn(u32) -> bool) -> Result<(Vec<DefaultWay>, u64)> {
    let (mut found, mut digest) = (Vec::new(), 0_u64);
    let requests = [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
    for request in requests {
        let mut answers = netlink.route().get(request).execute();
        while let Some(message) = answers.try_next().await.map_err(Error::netlink("list", "routes"))? {
            let header = &message.header;
            let is_default = header.destination_prefix_length == 0
                && header.table == RouteHeader::RT_TABLE_MAIN
                && header.kind == RouteType::Unicast;
            if is_default {
                found.extend(ways_of(&message));
            }
            digest = digest.wrapping_add(digest_of(message, &is_own));
        }
    }
    // Those of one route stay in their order.
    found.sort_by_key(|way| (way.is_ipv6, way.metric));
    Ok((found, digest))
}

fn digest_of(mut message: RouteMessage, is_own: impl Fn(u32) -> bool) -> u64 {
    let is_ours = message.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
        || attribute(&message, |attribute| match attribute {
            RouteAttribute::Oif(index) => Some(is_own(*index)),
            _ => None,
        }) == Some(true);
    if is_ours {
        return 0;
    }
    // How often it was used, and how long it lasts yet.
    message.attributes.retain(|attribute| !matches!(attribute, RouteAttribute::CacheInfo(_)));
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    Digest::spread(&bytes)
}

/// A digest of the rules that choose among tables.
pub(super) async fn rules_digest(netlink: &Netlink) -> Result<u64> {
    let mut digest = 0_u64;
    for family in [IpVersion::V4, IpVersion::V6] {
        let mut answers = netlink.rule().get(family).execute();
        while let Some(message) = answers.try_next().await.map_err(Error::netlink("list", "rules"))? {
            let mut bytes = vec![0; message.buffer_len()];
            message.emit(&mut bytes);
            digest = digest.wrapping_add(Digest::spread(&bytes));
        }
    }
    Ok(digest)
}

fn ways_of(message: &RouteMessage) -> Vec<DefaultWay> {
    let is_ipv6 = message.header.address_family == rtnetlink::packet_route::AddressFamily::Inet6;
    let metric = attribute(message, |attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    let way = |device, attributes: &[RouteAttribute]| DefaultWay {
        is_ipv6,
        metric: metric.unwrap_or(0),
        device,
        gateway: attributes.iter().find_map(gateway_of),
    };
    let mut ways = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(device) => ways.push(way(*device, &message.attributes)),
            RouteAttribute::MultiPath(hops) => {
                ways.extend(hops.iter().map(|hop| way(hop.interface_index, &hop.attributes)));
            }
            _ => {}
        }
    }
    ways
}

/// A next hop, which may be of the other family (RFC 5549).
fn gateway_of(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => Some((*address).into()),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
        _ => None,
    }
}

fn attribute<T>(message: &RouteMessage, pick: impl Fn(&RouteAttribute) -> Option<T>) -> Option<T> {
    message.attributes.iter().find_map(pick)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

impl Route {
    fn read(message: &RouteMessage) -> Option<Self> {
        let mut dst = None;
        let mut route = (None, 0, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => dst = ip(address),
                RouteAttribute::Gateway(address) => route.0 = ip(address),
                RouteAttribute::Oif(index) => route.1 = *index,
                RouteAttribute::PrefSource(address) => route.2 = ip(address),
                _ => {}
            }
        }
        let unspecified = match message.header.address_family {
            rtnetlink::packet_route::AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let dst = IpNet::new(dst.unwrap_or(unspecified), message.header.destination_prefix_length).ok()?;
        let (via, ifindex, source) = route;
        Some(Self { dst, via, ifindex, source })
    }

    fn message(&self) -> std::result::Result<RouteMessage, String> {
        let mut builder = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(self.dst.network(), self.dst.prefix_len())
            .map_err(|error| error.to_string())?
            .output_interface(self.ifindex)
            .protocol(RouteProtocol::Other(ROUTE_PROTOCOL));
        if let Some(via) = self.via {
            builder = builder.gateway(via).map_err(|error| error.to_string())?;
        } else if self.dst.addr().is_ipv4() {
            builder = builder.scope(RouteScope::Link);
        }
        if let Some(source) = self.source {
            builder = builder.pref_source(source).map_err(|error| error.to_string())?;
        }
        Ok(builder.build())
    }
}
