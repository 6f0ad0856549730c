// SPDX-License-Identifier: Apache-2.0
//! What an allocation becomes inside a sandbox. Pure: no I/O.
//!
//! A sandbox may hold several attachments (`eth0`, `net1`, `net2`). Per family, the first one that brings a default
//! route gets it in the main table. A later one keeps its routes in a table of its own, chosen by a rule on its source
//! address: what is sent from `net1`'s address leaves by `net1`, where the source check of its port expects it, and the
//! first attachment's routes stay as they are.

use std::net::IpAddr;

use ipnet::IpNet;
use weft_api::Allocation;

use crate::netlink::{Route, SourceRule};

/// The kernel's main routing table.
pub(crate) const MAIN_TABLE: u32 = libc::RT_TABLE_MAIN as u32;
/// The table of a later attachment is this plus the index of its link in the sandbox.
const OWN_TABLE_BASE: u32 = 30_000;

/// Addresses, routes and rules, in the order to add them.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct SandboxPlan {
    pub(crate) addresses: Vec<IpNet>,
    pub(crate) routes: Vec<Route>,
    pub(crate) rules: Vec<SourceRule>,
}

/// The table of the link at `index` where it is not the sandbox's first.
pub(crate) fn own_table(index: u32) -> u32 {
    OWN_TABLE_BASE.saturating_add(index)
}

/// Is `table` one that [`own_table`] gives?
pub(crate) fn is_own_table(table: u32) -> bool {
    table > OWN_TABLE_BASE
}

/// Plans for `allocation` on the link at `index` of a sandbox that has `existing` routes.
pub(crate) fn plan(allocation: &Allocation, index: u32, existing: &[Route]) -> SandboxPlan {
    let taken = |v4: bool| existing.iter().any(|route| route.table == MAIN_TABLE && is_default(route.dst, v4));
    let asked = |v4: bool| allocation.routes.iter().any(|route| is_default(route.dst, v4));
    let later = |v4: bool| asked(v4) && taken(v4);
    let (later_v4, later_v6) = (later(true), later(false));
    let table_of = |address: IpAddr| {
        let later = if address.is_ipv4() { later_v4 } else { later_v6 };
        if later { own_table(index) } else { MAIN_TABLE }
    };
    let routes = allocation.routes.iter().map(|route| {
        let table = table_of(route.dst.addr());
        Route { dst: route.dst, gateway: route.gateway, oif: index, table }
    });
    let addresses: Vec<_> = allocation.addresses.iter().map(|assigned| assigned.address).collect();
    let rules = addresses.iter().map(|address| SourceRule { source: address.addr(), table: table_of(address.addr()) });
    SandboxPlan { routes: routes.collect(), rules: rules.filter(|rule| rule.table != MAIN_TABLE).collect(), addresses }
}

fn is_default(dst: IpNet, v4: bool) -> bool {
    dst.prefix_len() == 0 && dst.addr().is_ipv4() == v4
}

#[cfg(test)]
mod tests {
    use weft_api::{Allocation, AssignedAddress, DnsSettings, Mac, Route as ApiRoute};

    use super::{MAIN_TABLE, own_table, plan};
    use crate::netlink::{Route, SourceRule};

    fn allocation() -> Allocation {
        let route = |dst: &str, gateway: Option<&str>| ApiRoute {
            dst: dst.parse().unwrap(),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        };
        let assigned = |address: &str, gateway: &str| AssignedAddress {
            address: address.parse().unwrap(),
            gateway: gateway.parse().unwrap(),
        };
        Allocation {
            addresses: vec![assigned("10.1.0.5/32", "10.1.0.1"), assigned("fd00::5/128", "fe80::1")],
            mac: Mac([2, 0, 0, 0, 0, 5]),
            gateway_mac: Mac([2, 0, 0, 0, 0, 1]),
            host_ifname: "weft0".to_owned(),
            mtu: 1450,
            routes: vec![
                route("10.1.0.1/32", None),
                route("0.0.0.0/0", Some("10.1.0.1")),
                route("::/0", Some("fe80::1")),
            ],
            dns: DnsSettings::default(),
            socket_path: None,
        }
    }

    fn default_v4(table: u32) -> Route {
        Route { dst: "0.0.0.0/0".parse().unwrap(), gateway: None, oif: 2, table }
    }

    #[test]
    fn the_first_attachment_gets_the_main_table() {
        let plan = plan(&allocation(), 7, &[]);
        assert!(plan.rules.is_empty());
        assert!(plan.routes.iter().all(|route| route.table == MAIN_TABLE && route.oif == 7));
        assert_eq!(plan.routes.len(), 3);
    }

    #[test]
    fn a_later_attachment_has_its_own_table_for_the_family_that_is_taken() {
        let plan = plan(&allocation(), 7, &[default_v4(MAIN_TABLE)]);
        let tables: Vec<_> = plan.routes.iter().map(|route| route.table).collect();
        assert_eq!(tables, [own_table(7), own_table(7), MAIN_TABLE]);
        assert_eq!(plan.rules, [SourceRule { source: "10.1.0.5".parse().unwrap(), table: own_table(7) }]);
    }

    #[test]
    fn a_default_route_of_another_table_takes_nothing() {
        assert!(plan(&allocation(), 7, &[default_v4(own_table(3))]).rules.is_empty());
    }

    #[test]
    fn without_a_default_route_nothing_needs_a_table() {
        let mut allocation = allocation();
        allocation.routes.retain(|route| route.dst.prefix_len() > 0);
        assert!(plan(&allocation, 7, &[default_v4(MAIN_TABLE)]).rules.is_empty());
    }
}
