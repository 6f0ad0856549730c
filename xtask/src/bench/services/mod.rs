// SPDX-License-Identifier: Apache-2.0

//! `services`: what Services cost, beside kube-proxy in nftables and in iptables mode.
//!
//! kube-proxy is the real program of the version that the testbed's cluster has, on a node of its own whose pods are routed veth
//! pairs, under the same fake API server as Weft's agent. Both have their own defaults. Weft's pods have a policy with a rule each
//! way; kube-proxy enforces none, and nothing stands in for that.
//!
//! | Part | Rows |
//! |---|---|
//! | `choice` | `consistent_moved`, `balance_*`: what the programs choose, by `BPF_PROG_TEST_RUN` |
//! | `nodeport` | `nodeport_crr`: from beyond the cluster to a pod of another node |
//! | `crr` | `crr_N`, `crr_N_nftables`, `crr_N_iptables`: short connections of a pod to a ClusterIP among so many Services |
//! | `endpoint` | `endpoint_10k_*`, `endpoint_50k_*`: from the event until a client meets the new backend |
//! | `cold` | `cold_sync`: from the start until everything is in force |
//!
//! Some 15 minutes. What was left out is printed.

mod choice;
mod cold;
mod crr;
mod endpoint;
mod nodeport;
mod objects;
mod peer;
mod site;
mod wire;

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use super::table::Row;

/// What is to be measured.
#[derive(Args)]
pub(super) struct Parts {
    /// services: only these parts, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PARTS")]
    parts: Vec<Part>,
    /// services: seconds that kube-proxy may take until all Services of a size are in its rules; else its rows are left out
    #[arg(long, default_value_t = 90, value_name = "SECONDS")]
    patience: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Part {
    /// Which backends are chosen.
    Choice,
    /// Short connections by a NodePort.
    Nodeport,
    /// Short connections by a ClusterIP.
    Crr,
    /// A change of one endpoint among 10,000 and 50,000 Services.
    Endpoint,
    /// A start with 10,000 Services of 20 endpoints.
    Cold,
}

/// What was measured, and what was not.
#[derive(Default)]
struct Found {
    rows: Vec<Row>,
    left_out: Vec<String>,
}

impl Found {
    fn add(&mut self, row: Row) {
        eprintln!("  {}: {:.3} {}, {:.3} of {}", row.name, row.value, row.unit, row.ratio, row.baseline);
        self.rows.push(row);
    }

    fn leave_out(&mut self, what: String) {
        eprintln!("  left out: {what}");
        self.left_out.push(what);
    }
}

/// Measures what `options` ask for.
///
/// # Errors
/// kube-proxy is not in the cache, or a path does not work.
pub(super) fn rows(rounds: usize, options: &Parts) -> Result<Vec<Row>> {
    let mut found = Found::default();
    let wanted = |part| options.parts.is_empty() || options.parts.contains(&part);
    if wanted(Part::Choice) {
        choice::measure(rounds, &mut found).context("what is chosen")?;
    }
    if wanted(Part::Nodeport) {
        nodeport::measure(rounds, &mut found).context("by a NodePort")?;
        found.leave_out("xdp_nodeport_*: there is no XDP path and no direct server return yet".to_owned());
    }
    let patience = Duration::from_secs(options.patience);
    let of_clusters = crr::Wanted { crr: wanted(Part::Crr), endpoint: wanted(Part::Endpoint), patience };
    crr::measure(rounds, of_clusters, &mut found).context("by a ClusterIP")?;
    if wanted(Part::Cold) {
        cold::measure(rounds, &mut found).context("a start")?;
    }
    for what in &found.left_out {
        println!("left out: {what}");
    }
    Ok(found.rows)
}
