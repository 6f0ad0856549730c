// SPDX-License-Identifier: Apache-2.0
//! Which source ports masqueraded flows get. Pure.
//!
//! Masqueraded flows and the host's own connections share an address, so they had better not share ports. The programs look for
//! a socket of the host before they give a port to a flow, but the kernel asks nobody before it gives one to a socket.

use std::ops::RangeInclusive;

/// Ports that connections are masqueraded with where nothing stands against it: from the first user port (RFC 6335) to the
/// API server's default range for NodePorts, 28,976 of them.
const DEFAULT: RangeInclusive<u16> = 1024..=29_999;

/// The API server's default `--service-node-port-range`.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// With fewer ports than these, a node could hold too few connections to one destination.
const LEAST: u16 = 4096;

/// The range, and what does not fit.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Choice {
    pub(super) range: RangeInclusive<u16>,
    /// Why masqueraded flows and the host's connections may meet, and the fix.
    pub(super) problem: Option<String>,
}

/// The configured range, else the longest one that the kernel does not give to the host's own connections (`local` without
/// `reserved`); where that is too short, the default one beside them.
pub(super) fn choose(
    configured: Option<&RangeInclusive<u16>>,
    local: &RangeInclusive<u16>,
    reserved: &[RangeInclusive<u16>],
) -> Choice {
    let is_the_hosts = |port: u16| local.contains(&port) && !reserved.iter().any(|range| range.contains(&port));
    let longest = || longest(|port| !is_the_hosts(port) && !NODE_PORTS.contains(&port));
    let range = match configured {
        Some(range) => range.clone(),
        None => longest().filter(|range| range.end() - range.start() >= LEAST - 1).unwrap_or(DEFAULT),
    };
    let problem = range.clone().any(is_the_hosts).then(|| {
        let (first, last) = (range.start(), range.end());
        format!(
            "masqueradePorts: {first}-{last} overlaps net.ipv4.ip_local_port_range {}-{}: a connection of the host may take the \
             port of a workload's, which then fails; set net.ipv4.ip_local_reserved_ports={first}-{last}, or make \
             ip_local_port_range smaller",
            local.start(),
            local.end()
        )
    });
    Choice { range, problem }
}

/// The longest run of user ports that are free.
fn longest(free: impl Fn(u16) -> bool) -> Option<RangeInclusive<u16>> {
    let (mut best, mut run): (Option<RangeInclusive<u16>>, Option<RangeInclusive<u16>>) = (None, None);
    for port in *DEFAULT.start()..=u16::MAX {
        run = free(port).then(|| run.map_or(port, |run| *run.start())..=port);
        if let Some(run) = &run
            && best.as_ref().is_none_or(|best| best.end() - best.start() < run.end() - run.start())
        {
            best = Some(run.clone());
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(local: RangeInclusive<u16>, reserved: &[RangeInclusive<u16>]) -> (RangeInclusive<u16>, bool) {
        let choice = choose(None, &local, reserved);
        (choice.range, choice.problem.is_some())
    }

    #[test]
    fn the_most_that_the_node_leaves_is_chosen() {
        assert_eq!(chosen(32_768..=60_999, &[]), (1024..=29_999, false));
        assert_eq!(chosen(15_000..=60_999, &[]), (1024..=14_999, false));
        assert_eq!(chosen(1024..=32_767, &[]), (32_768..=65_535, false));
        assert_eq!(chosen(1024..=60_999, &[]), (61_000..=65_535, false));
        assert_eq!(chosen(1024..=65_535, &[40_000..=59_999]), (40_000..=59_999, false));
    }

    #[test]
    fn a_node_that_leaves_none_works_and_says_so() {
        assert_eq!(chosen(1024..=65_535, &[]), (1024..=29_999, true));
        let problem = choose(None, &(1024..=65_535), &[]).problem.unwrap();
        assert!(problem.contains("net.ipv4.ip_local_reserved_ports=1024-29999"), "{problem}");
    }

    #[test]
    fn what_is_configured_is_taken_and_told_where_it_overlaps() {
        assert_eq!(choose(Some(&(61_000..=65_535)), &(32_768..=60_999), &[]).problem, None);
        let choice = choose(Some(&(60_000..=65_535)), &(32_768..=60_999), &[]);
        assert_eq!(choice.range, 60_000..=65_535);
        let problem = choice.problem.unwrap();
        assert!(problem.starts_with("masqueradePorts: 60000-65535 overlaps"), "{problem}");
        assert_eq!(choose(Some(&(60_000..=65_535)), &(32_768..=60_999), &[60_000..=60_999]).problem, None);
    }
}
