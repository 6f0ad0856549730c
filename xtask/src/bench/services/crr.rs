// SPDX-License-Identifier: Apache-2.0

//! Short connections of a pod to a ClusterIP, among few and many Services.

use std::time::Duration;

use anyhow::{Context as _, Result};
use weft_testbed::load::{self, BarePair, ProxyMode};

use super::{
    super::{statistic::Pair, table::Row},
    Found, endpoint,
    objects::Size,
    peer::Peer,
    site::Site,
    wire::{End, TURNS, short_connections},
};

/// Services of a node, by the rows' names.
const SIZES: [(&str, usize); 4] = [("1", 1), ("1k", 1_000), ("10k", 10_000), ("50k", 50_000)];
/// Among so many an endpoint changes.
const CHANGING: [&str; 2] = ["10k", "50k"];
/// Of the Services that are not measured.
const ENDPOINTS: usize = 2;
const MODES: [ProxyMode; 2] = [ProxyMode::Nftables, ProxyMode::Iptables];
const PORT: u16 = 5201;
/// What is to be reached at every size.
const REACH: &str = "ratio <= 1.12";

/// What is wanted.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) crr: bool,
    pub(super) endpoint: bool,
    /// How long kube-proxy may take until all Services are in its rules.
    pub(super) patience: Duration,
}

/// Measures all sizes, one after the other, and changes of an endpoint among the most Services.
pub(super) fn measure(rounds: usize, wanted: Wanted, found: &mut Found) -> Result<()> {
    for (name, services) in SIZES {
        let changes = wanted.endpoint && CHANGING.contains(&name);
        if !wanted.crr && !changes {
            continue;
        }
        let size = Size { services: services - 1, endpoints: ENDPOINTS };
        let site = Site::new(size)?;
        let modes = if wanted.crr { &MODES[..] } else { &MODES[..1] };
        let peers = peers(name, size, modes, &site, wanted.patience, found)?;
        if wanted.crr {
            rows(rounds, name, &site, &peers, found)?;
        }
        if changes {
            endpoint::measure(rounds, name, &site, peers.iter().find(|peer| peer.mode == ProxyMode::Nftables), found)?;
        }
    }
    Ok(())
}

/// The nodes of kube-proxy that have all Services in their rules in time.
fn peers(
    name: &str,
    size: Size,
    modes: &[ProxyMode],
    site: &Site,
    patience: Duration,
    found: &mut Found,
) -> Result<Vec<Peer>> {
    let mut peers = Vec::new();
    for (number, mode) in (1..).zip(modes) {
        let peer = Peer::new(&site.bed, number, *mode, size, site.mtu)?;
        let there = peer.grow(patience)?;
        if there > size.services {
            peers.push(peer);
            continue;
        }
        let (mode, patience) = (mode.name(), patience.as_secs());
        found.leave_out(format!("*_{name}_{mode}: kube-proxy had {there} Services in its rules after {patience} s"));
    }
    Ok(peers)
}

/// One size, round by round: each path right beside the bare pair.
fn rows(rounds: usize, name: &str, site: &Site, peers: &[Peer], found: &mut Found) -> Result<()> {
    let pair = BarePair::new(&site.bed, site.mtu)?;
    load::serve(&pair.right, PORT, TURNS)?;
    let bare = End { client: &pair.left, to: pair.right_socket(PORT) };
    let mut ends = vec![(format!("crr_{name}"), End { client: &site.client, to: site.to() })];
    for peer in peers {
        ends.push((format!("crr_{name}_{}", peer.mode.name()), End { client: &peer.client, to: peer.to() }));
    }
    let mut measured: Vec<Vec<Pair<f64>>> = ends.iter().map(|_| Vec::new()).collect();
    for round in 1..=rounds {
        eprintln!("crr_{name}: round {round} of {rounds}");
        for ((path, end), measured) in ends.iter().zip(&mut measured) {
            let both = Pair { value: *end, baseline: bare };
            measured.push(short_connections(round, both).with_context(|| path.clone())?);
        }
    }
    for (number, ((path, _), measured)) in ends.iter().zip(&measured).enumerate() {
        let row = Row::new(path, "us", "crr_veth", measured)?;
        found.add(if number == 0 { row.with_reach(REACH) } else { row });
    }
    Ok(())
}
