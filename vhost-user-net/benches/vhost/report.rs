// SPDX-License-Identifier: Apache-2.0
//! Rows: printed as they come, written in the form of the project's other benches.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::frames::Kind;

/// Frames moved, in what time, and the processor time that took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) frames: u64,
    pub(crate) wall: f64,
    pub(crate) cpu: f64,
}

impl Rate {
    fn per_second(self) -> f64 {
        self.frames as f64 / self.wall
    }

    fn per_cpu(self) -> f64 {
        self.frames as f64 / self.cpu.max(1e-9)
    }
}

/// One measurement and the one beside it, made right before or right after.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pair<T> {
    pub(crate) baseline: T,
    pub(crate) value: T,
}

/// All rows.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: BTreeMap<String, Value>,
}

impl Report {
    /// A row of rates, with the name of what it is beside.
    pub(crate) fn rates(&mut self, name: &str, kind: Kind, baseline: &str, pairs: &[Pair<Rate>]) {
        let of = |pick: &dyn Fn(&Pair<Rate>) -> f64| median(pairs.iter().map(pick));
        let (bare, device) = (of(&|pair| pair.baseline.per_second()), of(&|pair| pair.value.per_second()));
        let (bare_cpu, device_cpu) = (of(&|pair| pair.baseline.per_cpu()), of(&|pair| pair.value.per_cpu()));
        let ratio = quartiles(pairs.iter().map(|pair| pair.value.per_cpu() / pair.baseline.per_cpu()));
        let gbit = |rate: f64| rate * kind.len as f64 * 8.0 / 1e9;
        let show = |rate: f64| format!("{:7.3} Mpps {:6.1} Gbit/s", rate / 1e6, gbit(rate));
        println!(
            "{name:14} device {} ({} per cpu)  {baseline} {} ({} per cpu)  {}",
            show(device),
            show(device_cpu),
            show(bare),
            show(bare_cpu),
            show_ratio(ratio),
        );
        let spread = spread(pairs.iter().map(|pair| pair.value.per_cpu()));
        let row = json!({
            "unit": "frames per cpu-second", "value": device_cpu, "baseline": baseline, "baseline_value": bare_cpu,
            "ratio": ratio[1], "ratio_q1": ratio[0], "ratio_q3": ratio[2], "runs": pairs.len(), "spread": spread,
            "gbit_per_cpu": gbit(device_cpu), "wall": device, "wall_gbit": gbit(device), "baseline_wall": bare,
        });
        self.rows.insert(name.to_owned(), row);
    }

    /// A row of microseconds.
    pub(crate) fn times(&mut self, name: &str, baseline: &str, pairs: &[Pair<f64>]) {
        let value = median(pairs.iter().map(|pair| pair.value));
        let beside = median(pairs.iter().map(|pair| pair.baseline));
        let ratio = quartiles(pairs.iter().map(|pair| pair.value / pair.baseline));
        println!("{name:14} device {value:7.1} us  {baseline} {beside:7.1} us  {}", show_ratio(ratio));
        let row = json!({
            "unit": "us", "value": value, "baseline": baseline, "baseline_value": beside,
            "ratio": ratio[1], "ratio_q1": ratio[0], "ratio_q3": ratio[2],
            "runs": pairs.len(), "spread": spread(pairs.iter().map(|pair| pair.value)),
        });
        self.rows.insert(name.to_owned(), row);
    }

    /// A row that has nothing to be compared with.
    pub(crate) fn alone(&mut self, name: &str, unit: &str, values: &[f64]) {
        let value = median(values.iter().copied());
        println!("{name:14} {value:.1} {unit}");
        let row = json!({
            "unit": unit, "value": value, "baseline": null, "baseline_value": null, "ratio": null,
            "runs": values.len(), "spread": spread(values.iter().copied()),
        });
        self.rows.insert(name.to_owned(), row);
    }

    /// Writes all rows, if there is a place for them.
    pub(crate) fn write(self, path: Option<&str>) -> Result<()> {
        let Some(path) = path else { return Ok(()) };
        let named = |(name, mut row): (String, Value)| {
            row["name"] = name.into();
            row
        };
        let rows: Vec<_> = self.rows.into_iter().map(named).collect();
        let report = json!({ "name": "vhost", "commit": commit(), "rows": rows });
        std::fs::write(path, serde_json::to_string_pretty(&report)?).with_context(|| path.to_owned())
    }
}

/// The commit that was measured; empty outside a checkout.
fn commit() -> String {
    let output = std::process::Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

/// First quartile, median and third quartile, linear between two neighbours.
fn quartiles(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len() - 1;
    [1, 2, 3].map(|quarters| {
        let (index, rest) = (last * quarters / 4, (last * quarters % 4) as f64 / 4.0);
        sorted[index] + (sorted[(index + 1).min(last)] - sorted[index]) * rest
    })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    quartiles(values)[1]
}

fn show_ratio([first, median, third]: [f64; 3]) -> String {
    format!("ratio {median:.3} ({first:.3} to {third:.3})")
}

/// Distance of the least from the greatest, as a part of the median.
fn spread(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (most - least) / median(values.into_iter())
}
