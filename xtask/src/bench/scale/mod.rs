// SPDX-License-Identifier: Apache-2.0

//! `scale`: one node's agent under a generated cluster that a fake API server serves.
//!
//! Rows stand beside what is to be reached; `docs/scale.md` says what each means. The agent's word counts for nothing: when
//! something is done is read from the maps, what it costs from `/proc`.

mod adds;
mod change;
mod churn;
mod large;
mod site;
mod start;

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use weft_testbed::apiserver::Population;

use super::{statistic::Pair, table::Row};
use site::Site;

/// Endpoints of each Service.
const ENDPOINTS: usize = 20;

/// What is to be measured.
#[derive(Args)]
pub(super) struct Options {
    /// scale: nodes of the cluster
    #[arg(long, default_value_t = 500, value_name = "N")]
    nodes: usize,
    /// scale: pods of the cluster, evenly on its nodes
    #[arg(long, default_value_t = 15_000, value_name = "N")]
    pods: usize,
    /// scale: Services of the cluster, with 20 endpoints each; `change_50k_p99` takes five times as many
    #[arg(long, default_value_t = 1_000, value_name = "N")]
    services: usize,
    /// scale: policies that select pods of this node; `rss_10k_policies` takes ten times as many
    #[arg(long, default_value_t = 100, value_name = "N")]
    policies: usize,
    /// scale: upstream's limits: 5,000 nodes, 150,000 pods, 10,000 Services, 1,000 policies; minutes
    #[arg(long, conflicts_with_all = ["nodes", "pods", "services", "policies"])]
    full: bool,
    /// scale: one more policy that lets all pods of all namespaces in, so that the agent must know them all
    #[arg(long)]
    everyone: bool,
    /// scale: only these rows, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "ROWS")]
    rows: Vec<String>,
    /// scale: how often each is measured
    #[arg(long, default_value_t = 3, value_name = "N")]
    runs: usize,
}

/// A row: its name, its unit, what is to be reached.
type Promise = (&'static str, &'static str, f64);

const CHANGE: [Promise; 5] = [
    ("change_p50", "ms", 1.0),
    ("change_p99", "ms", 5.0),
    ("change_endpoint_p50", "ms", 1.0),
    ("change_label_p50", "ms", 1.0),
    ("change_policy_p50", "ms", 1.0),
];
const CHANGE_50K: [Promise; 1] = [("change_50k_p99", "ms", 5.0)];
const LARGE: [Promise; 2] = [("large_us_per_entry", "us", 5.0), ("large_delay_p99", "ms", 20.0)];
const START: [Promise; 5] = [
    ("cold_sync", "s", 2.0),
    ("cold_sync_cpu", "s", 0.0),
    ("cold_sync_wall", "s", 0.0),
    ("cold_sync_mb", "MB", 0.0),
    ("rss", "MB", 250.0),
];
const RSS_POLICIES: [Promise; 1] = [("rss_10k_policies", "MB", 350.0)];
const ADOPT: [Promise; 3] = [("adoption", "s", 3.0), ("adoption_add", "s", 0.0), ("adoption_lost", "", 0.0)];
const BYTES: [Promise; 1] = [("api_bytes_per_s", "B/s", 0.0)];
const ADD: [Promise; 2] = [("add_p50", "ms", 10.0), ("add_p99", "ms", 50.0)];

/// What was measured so far.
#[derive(Default)]
struct Rows(Vec<Row>);

impl Rows {
    /// Takes the runs of `promises` in, one array of figures a run.
    fn take<const FIGURES: usize>(&mut self, promises: &[Promise; FIGURES], runs: &[[f64; FIGURES]]) -> Result<()> {
        for (number, (name, unit, reach)) in promises.iter().enumerate() {
            let beside = |run: &[f64; FIGURES]| Pair { value: run[number], baseline: *reach };
            let row = Row::new(name, unit, "reach", &runs.iter().map(beside).collect::<Vec<_>>())?;
            eprintln!("  {name}: {:.3} {unit}", row.value);
            self.0.push(row);
        }
        Ok(())
    }
}

impl Options {
    fn population(&self) -> Population {
        let [nodes, pods, services, policies] = if self.full {
            [5_000, 150_000, 10_000, 1_000]
        } else {
            [self.nodes, self.pods, self.services, self.policies]
        };
        Population {
            here: "node1".to_owned(),
            nodes,
            pods_per_node: pods / nodes.max(1),
            services,
            endpoints: ENDPOINTS,
            policies,
            everyone: self.everyone,
        }
    }

    /// Whether one of `promises` was asked for.
    fn wants(&self, promises: &[Promise]) -> bool {
        self.rows.is_empty() || promises.iter().any(|(name, ..)| self.rows.iter().any(|row| row == name))
    }

    fn check(&self) -> Result<()> {
        let all: Vec<&str> = [&CHANGE[..], &CHANGE_50K, &LARGE, &START, &RSS_POLICIES, &ADOPT, &BYTES, &ADD]
            .concat()
            .into_iter()
            .map(|(name, ..)| name)
            .collect();
        for row in &self.rows {
            ensure!(all.contains(&row.as_str()), "--rows: there is no row '{row}'; there are {}", all.join(", "));
        }
        ensure!(self.runs > 0, "--runs: at least 1");
        Ok(())
    }
}

/// Measures what `options` ask for.
///
/// # Errors
/// The agent does not do what is waited for, or the options do not go together.
pub(super) fn rows(options: &Options) -> Result<Vec<Row>> {
    options.check()?;
    let population = options.population();
    population.check()?;
    let mut rows = Rows::default();
    let at_limits: Vec<Promise> = [&CHANGE[..], &LARGE, &START, &ADOPT, &BYTES, &ADD].concat();
    if options.wants(&at_limits) {
        measure(&Site::new(&population)?, options, &mut rows)?;
    }
    if options.wants(&CHANGE_50K) {
        let site = Site::new(&Population { services: population.services * 5, ..population.clone() })?;
        let runs = repeat(options, "change_50k", || Ok([change::run(&site)?.p99()]))?;
        rows.take(&CHANGE_50K, &runs)?;
    }
    if options.wants(&RSS_POLICIES) {
        let site = Site::new(&Population { policies: population.policies * 10, ..population })?;
        let runs = repeat(options, "rss_10k_policies", || Ok([start::cold(&site)?.rss]))?;
        rows.take(&RSS_POLICIES, &runs)?;
    }
    rows.0.retain(|row| options.rows.is_empty() || options.rows.contains(&row.name));
    Ok(rows.0)
}

/// The rows of one site.
fn measure(site: &Site, options: &Options, rows: &mut Rows) -> Result<()> {
    if options.wants(&START) {
        let runs = repeat(options, "cold_sync", || Ok(start::cold(site)?.figures()))?;
        rows.take(&START, &runs)?;
    }
    if options.wants(&ADOPT) {
        let runs = repeat(options, "adoption", || start::adoption(site))?;
        rows.take(&ADOPT, &runs)?;
    }
    if options.wants(&CHANGE) {
        let runs = repeat(options, "change", || Ok(change::run(site)?.figures()))?;
        rows.take(&CHANGE, &runs)?;
    }
    if options.wants(&LARGE) {
        let large = large::Large::new(site)?;
        let runs = repeat(options, "large", || large.run())?;
        rows.take(&LARGE, &runs)?;
    }
    if options.wants(&BYTES) {
        let runs = repeat(options, "api_bytes_per_s", || Ok([churn::bytes(site, Duration::from_secs(5))?]))?;
        rows.take(&BYTES, &runs)?;
    }
    if options.wants(&ADD) {
        let runs = repeat(options, "add", || adds::run(site))?;
        rows.take(&ADD, &runs)?;
    }
    Ok(())
}

fn repeat<T>(options: &Options, what: &str, mut run: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
    let mut runs = Vec::new();
    for number in 1..=options.runs {
        eprintln!("{what}: run {number} of {}", options.runs);
        runs.push(run()?);
    }
    Ok(runs)
}
