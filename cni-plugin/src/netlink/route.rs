// SPDX-License-Identifier: Apache-2.0
//! Routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};

use super::{Netlink, NetlinkError, address::family};

/// A unicast route.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Route {
    /// Destination.
    pub(crate) dst: IpNet,
    /// Next hop; none for an on-link route.
    pub(crate) gateway: Option<IpAddr>,
    /// Index of the outgoing link.
    pub(crate) oif: u32,
    /// Routing table.
    pub(crate) table: u32,
}

impl Netlink {
    /// Adds `route`.
    pub(crate) fn add_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(route.dst.addr());
        message.header.destination_prefix_length = route.dst.prefix_len();
        message.header.table = u8::try_from(route.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        message.header.scope = if route.gateway.is_none() { RouteScope::Link } else { RouteScope::Universe };
        message.attributes.push(RouteAttribute::Destination(route.dst.network().into()));
        message.attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
        message.attributes.push(RouteAttribute::Oif(route.oif));
        message.attributes.push(RouteAttribute::Table(route.table));
        self.execute(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL).map_err(|refusal| {
            let via = route.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
            refusal.during(format!("add the route to {}{via} in table {}", route.dst, route.table))
        })
    }

    /// The unicast routes of both families in all tables.
    pub(crate) fn routes(&mut self) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let answers = self.dump(RouteNetlinkMessage::GetRoute(message));
            let answers = answers.map_err(|refusal| refusal.during("list the routes"))?;
            routes.extend(answers.into_iter().filter_map(observed));
        }
        Ok(routes)
    }
}

fn observed(message: RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let mut dst = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let (mut gateway, mut oif, mut table) = (None, 0, u32::from(message.header.table));
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => dst = plain(address)?,
            RouteAttribute::Gateway(address) => gateway = plain(address),
            RouteAttribute::Oif(index) => oif = index,
            RouteAttribute::Table(number) => table = number,
            _ => {}
        }
    }
    let dst = IpNet::new(dst, message.header.destination_prefix_length).ok()?;
    Some(Route { dst, gateway, oif, table })
}

fn plain(address: RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(address.into()),
        RouteAddress::Inet6(address) => Some(address.into()),
        _ => None,
    }
}
