// SPDX-License-Identifier: Apache-2.0

//! A start from nothing with 10,000 Services of 20 endpoints: from the program's start until all of them are written.
//!
//! Of Weft that is read from the maps: each Service port is there, and the last one's backends. kube-proxy writes all of its rules in
//! one transaction, so that a client that meets one Service could meet them all.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use weft_testbed::{Shell as _, Tables, load::ProxyMode};

use super::{
    super::{
        statistic::{Pair, Side, in_turn},
        table::Row,
    },
    Found,
    objects::Size,
    peer::Peer,
    site::Site,
};

const FULL: Size = Size { services: 9_999, endpoints: 20 };
const SMALL: Size = Size { services: 999, endpoints: 20 };
/// Seconds.
const REACH: f64 = 2.0;
/// For kube-proxy at full size, whose one transaction takes the kernel a time that grows with the square of its Services.
const PATIENCE: Duration = Duration::from_secs(150);
const LOOK: Duration = Duration::from_millis(5);
/// At each size: kube-proxy takes a minute for each at the first.
const MOST_ROUNDS: [usize; 2] = [2, 5];
/// Everything that an agent could go on with, but for the attachments.
const FORGET: &str = "rm -rf /sys/fs/bpf/weft /mnt/node1/state/cluster.json /mnt/node1/state/policies.json";

/// Seconds of a start of the agent.
fn weft(site: &Site) -> Result<f64> {
    let node = site.bed.node(1);
    node.stop_agent(Signal::SIGKILL)?;
    node.sh(FORGET)?.ok()?;
    let (start, mut tables) = (Instant::now(), None);
    node.start_agent()?;
    loop {
        // They are made in the course of the start.
        tables = tables.or_else(|| Tables::of(node).ok());
        if let Some(tables) = &tables
            && site.is_complete(tables)?
        {
            break;
        }
        ensure!(start.elapsed() < PATIENCE, "Services are missing:\n{}", node.agent_log());
        thread::sleep(LOOK);
    }
    Ok(start.elapsed().as_secs_f64())
}

/// Seconds of a start of kube-proxy over nothing.
fn proxy(peer: &Peer) -> Result<f64> {
    peer.node.forget()?;
    let took = peer.start(PATIENCE)?;
    took.with_context(|| format!("kube-proxy does not get ready:\n{}", peer.node.log()))
}

/// Measures both at full size, and at a tenth of it.
pub(super) fn measure(rounds: usize, found: &mut Found) -> Result<()> {
    both(("cold_sync", "cold_sync_nftables"), FULL, rounds.min(MOST_ROUNDS[0]), found)?;
    both(("cold_sync_1k", "cold_sync_1k_nftables"), SMALL, rounds.min(MOST_ROUNDS[1]), found)
}

/// One size, in turn; Weft alone where kube-proxy takes too long.
fn both((name, beside): (&str, &str), size: Size, rounds: usize, found: &mut Found) -> Result<()> {
    let site = Site::new(size)?;
    let peer = Peer::new(&site.bed, 1, ProxyMode::Nftables, size, site.mtu)?;
    peer.install(size.services)?;
    // The first start of each is not measured: the server renders what it serves once.
    let is_ready = peer.start(PATIENCE)?.is_some();
    if !is_ready {
        found.leave_out(format!("{beside}: kube-proxy has written no rules within {} s", PATIENCE.as_secs()));
    }
    let mut measured = Vec::new();
    for round in 1..=rounds {
        eprintln!("{name}: round {round} of {rounds}");
        measured.push(in_turn(round, |side| match side {
            Side::Path => weft(&site),
            Side::Baseline if is_ready => proxy(&peer),
            Side::Baseline => Ok(REACH),
        })?);
    }
    let turned: Vec<_> = measured.iter().map(|pair| Pair { value: pair.baseline, baseline: pair.value }).collect();
    let row = Row::new(name, "s", if is_ready { beside } else { "reach" }, &measured)?;
    found.add(if size.services == FULL.services { row.with_reach("value < 2") } else { row });
    if is_ready {
        found.add(Row::new(beside, "s", name, &turned)?);
    }
    Ok(())
}
