// SPDX-License-Identifier: Apache-2.0
//! Route aggregation (RFC 4632): prefixes that make a wider one together are one route. The kernel walks its IPv6 routes
//! whenever a device comes or goes (`fib6_ifdown`), and other nodes' pods are some routes instead of thousands.
//! Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use ipnet::IpNet;

use super::routes::Route;

/// Whether a route of ours may become a part of a wider one: single addresses, of which Services have thousands that come and go, have
/// each their own.
pub(super) fn may_merge(dst: &IpNet) -> bool {
    dst.prefix_len() < dst.max_prefix_len()
}

/// Whether routes like these are aggregated: none has a gateway.
pub(super) fn may_aggregate(routes: &BTreeMap<IpNet, Route>) -> bool {
    routes.values().all(|route| route.via.is_none())
}

/// Routes that lead the addresses of `routes` there, and no others: two halves of a prefix are one route, and what they make may be half of
/// the next. [`may_merge`] and [`may_aggregate`] say of which.
///
/// A route of somebody else that stands by now wins over no address that it did not win over before: no aggregate is as wide as one of
/// `covering`, or wider, the destinations of others' routes that [`cover`] one of ours.
pub(super) fn aggregate(routes: &BTreeMap<IpNet, Route>, covering: &BTreeSet<IpNet>) -> BTreeMap<IpNet, Route> {
    if !may_aggregate(routes) {
        return routes.clone();
    }
    let mut by_length: BTreeMap<u8, BTreeMap<IpNet, Route>> = BTreeMap::new();
    for (dst, route) in routes {
        by_length.entry(dst.prefix_len()).or_default().insert(*dst, route.clone());
    }
    let mut aggregated = BTreeMap::new();
    while let Some((length, of_length)) = by_length.pop_last() {
        let mut of_length = of_length.into_iter().peekable();
        while let Some((dst, route)) = of_length.next() {
            let sibling = of_length.peek().map(|(sibling, _)| *sibling).filter(may_merge);
            match sibling.and_then(|sibling| merge_siblings(dst, sibling, covering)) {
                Some(supernet) => {
                    of_length.next();
                    by_length.entry(length - 1).or_default().insert(supernet, Route { dst: supernet, ..route });
                }
                None => drop(aggregated.insert(dst, route)),
            }
        }
    }
    aggregated
}

/// Whether `dst` is the prefix of one of these routes, or contains one.
pub(super) fn cover(dst: &IpNet, routes: &BTreeMap<IpNet, Route>) -> bool {
    routes.range(starting_in(dst)).any(|(part, _)| dst.contains(part))
}

/// The prefix that two make, unless it contains one of `covering`.
fn merge_siblings(dst: IpNet, sibling: IpNet, covering: &BTreeSet<IpNet>) -> Option<IpNet> {
    let supernet = dst.supernet().filter(|supernet| sibling.supernet() == Some(*supernet))?;
    (!covering.range(starting_in(&supernet)).any(|foreign| supernet.contains(foreign))).then_some(supernet)
}

/// Prefixes that begin within `dst`, in their order: those that it contains, and wider ones that begin as it does.
fn starting_in(dst: &IpNet) -> RangeInclusive<IpNet> {
    let at = |address, length| IpNet::new_assert(address, length);
    at(dst.network(), 0)..=at(dst.broadcast(), dst.max_prefix_len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(prefixes: &str) -> BTreeSet<IpNet> {
        prefixes.split_whitespace().map(|prefix| prefix.parse().unwrap()).collect()
    }

    fn routes(prefixes: &str) -> BTreeMap<IpNet, Route> {
        set(prefixes).into_iter().map(|dst| (dst, Route { dst, via: None, ifindex: 7, source: None })).collect()
    }

    fn check(prefixes: &str, foreign: &str, expected: &str) {
        let routes = routes(prefixes);
        let covering = set(foreign).into_iter().filter(|dst| cover(dst, &routes)).collect();
        let found = aggregate(&routes, &covering);
        assert_eq!(found.keys().copied().collect::<BTreeSet<_>>(), set(expected), "{prefixes} beside {foreign}");
        assert!(found.iter().all(|(dst, route)| route.dst == *dst && route.ifindex == 7), "{found:?}");
    }

    #[test]
    fn halves_of_a_prefix_are_one_route_of_either_family() {
        check("10.0.0.0/24 10.0.1.0/24 10.0.2.0/23", "", "10.0.0.0/22");
        check("10.0.1.0/24 10.0.2.0/24", "", "10.0.1.0/24 10.0.2.0/24");
        check("10.0.0.0/24 10.0.2.0/24 10.0.3.0/24", "", "10.0.0.0/24 10.0.2.0/23");
        check(
            "fd00::/64 fd00:0:0:1::/64 10.0.0.0/32 fd01::/32 10.0.0.1/32",
            "",
            "fd00::/63 10.0.0.0/32 fd01::/32 10.0.0.1/32",
        );
        check("0.0.0.0/1 128.0.0.0/1", "", "0.0.0.0/0");
    }

    #[test]
    fn a_prefix_inside_of_another_one_stays() {
        check("10.0.0.0/16 10.0.1.0/24 10.1.0.0/16", "", "10.0.0.0/15 10.0.1.0/24");
        check("10.0.0.0/23 10.0.0.0/24 10.0.1.0/24", "", "10.0.0.0/23");
    }

    #[test]
    fn no_route_of_somebody_else_wins_over_what_it_did_not_win_over_before() {
        let nodes = "10.0.0.0/24 10.0.1.0/24 10.0.2.0/24 10.0.3.0/24";
        // As one of them, as both of two, as all.
        check(nodes, "10.0.0.0/24", "10.0.0.0/24 10.0.1.0/24 10.0.2.0/23");
        check(nodes, "10.0.0.0/23", "10.0.0.0/24 10.0.1.0/24 10.0.2.0/23");
        check(nodes, "10.0.0.0/22", "10.0.0.0/23 10.0.2.0/23");
        // Of what is wider than all, or longer than one of them, as much wins as before.
        check(nodes, "0.0.0.0/0 10.0.0.0/16 10.0.1.128/25 10.0.3.7/32 fd00::/8", "10.0.0.0/22");
        check("fd00::/64 fd00:0:0:1::/64", "fd00::/63", "fd00::/64 fd00:0:0:1::/64");
    }

    #[test]
    fn routes_by_gateways_stay_as_they_are() {
        let mut nodes = routes("10.0.0.0/24 10.0.1.0/24");
        nodes.get_mut(&"10.0.1.0/24".parse().unwrap()).unwrap().via = Some("192.0.2.1".parse().unwrap());
        assert_eq!(aggregate(&nodes, &BTreeSet::new()), nodes);
    }
}
