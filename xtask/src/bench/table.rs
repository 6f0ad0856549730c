// SPDX-License-Identifier: Apache-2.0

//! What a benchmark says: a table for people, `target/bench/NAME.json` for programs.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::build::root;

/// One measured value beside the one it is compared with.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) name: String,
    /// The unit of both values.
    pub(crate) unit: &'static str,
    /// Median of all runs.
    pub(crate) value: f64,
    /// Name of the row, or of the other program, that this one is compared with.
    pub(crate) baseline: String,
    /// Median of the baseline's runs, which took turns with this row's.
    pub(crate) baseline_value: f64,
    /// `value / baseline_value`.
    pub(crate) ratio: f64,
    /// How many runs.
    pub(crate) runs: usize,
    /// Distance of the smallest run from the greatest, as a part of the median.
    pub(crate) spread: f64,
}

impl Row {
    /// Compares the runs of `name` with those of `baseline`; a baseline is compared with itself.
    ///
    /// # Errors
    /// There were no runs.
    pub(crate) fn new(name: &str, unit: &'static str, runs: &[f64], baseline: (&str, &[f64])) -> Result<Self> {
        ensure!(!runs.is_empty() && !baseline.1.is_empty(), "{name} was never run");
        let (value, baseline_value) = (median(runs), median(baseline.1));
        let least = runs.iter().copied().fold(f64::INFINITY, f64::min);
        let most = runs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Ok(Self {
            name: name.to_owned(),
            unit,
            value,
            baseline: baseline.0.to_owned(),
            baseline_value,
            ratio: part(value, baseline_value),
            runs: runs.len(),
            spread: part(most - least, value),
        })
    }
}

/// A figure that is taken of every path.
pub(crate) struct Figure {
    /// First part of the rows' names.
    pub(crate) name: &'static str,
    /// Its unit.
    pub(crate) unit: &'static str,
}

/// What was measured of one path: one array of figures a run.
pub(crate) struct Path<const FIGURES: usize> {
    /// Second part of the rows' names.
    pub(crate) name: &'static str,
    /// The figures of every run.
    pub(crate) runs: Vec<[f64; FIGURES]>,
}

impl<const FIGURES: usize> Path<FIGURES> {
    fn figure(&self, number: usize) -> Vec<f64> {
        self.runs.iter().map(|run| run[number]).collect()
    }
}

/// Rows `FIGURE_PATH`: every figure of every path, beside the same figure of the first path.
///
/// # Errors
/// There is no path, or one was never run.
pub(crate) fn compare<const FIGURES: usize>(figures: &[Figure; FIGURES], paths: &[Path<FIGURES>]) -> Result<Vec<Row>> {
    let base = paths.first().context("nothing to compare with")?;
    let mut rows = Vec::new();
    for (number, figure) in figures.iter().enumerate() {
        let baseline = format!("{}_{}", figure.name, base.name);
        for path in paths {
            let name = format!("{}_{}", figure.name, path.name);
            rows.push(Row::new(&name, figure.unit, &path.figure(number), (&baseline, &base.figure(number)))?);
        }
    }
    Ok(rows)
}

/// All rows of one invocation.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    name: String,
    commit: String,
    rows: Vec<Row>,
}

impl Report {
    /// A report of the benchmark `name` on what is checked out.
    ///
    /// # Errors
    /// git does not say what is checked out.
    pub(crate) fn new(name: &str, rows: Vec<Row>) -> Result<Self> {
        let mut git = Command::new("git");
        git.args(["describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"]).current_dir(root());
        let output = git.output().context("start git")?;
        ensure!(output.status.success(), "{git:?}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
        let commit = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Ok(Self { name: name.to_owned(), commit, rows })
    }

    /// Prints the table and writes the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn publish(&self) -> Result<()> {
        print!("{}", self.table());
        let folder = root().join("target/bench");
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let path = folder.join(format!("{}.json", self.name));
        fs::write(&path, serde_json::to_string_pretty(self)? + "\n")
            .with_context(|| format!("write {}", path.display()))?;
        println!("written to target/bench/{}.json", self.name);
        Ok(())
    }

    fn table(&self) -> String {
        let wide = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max(self.name.len());
        let base = self.rows.iter().map(|row| row.baseline.len()).max().unwrap_or(0).max("baseline".len());
        let mut text = format!(
            "{:wide$}  {:>9} {:6}  {:base$}  {:>9}  {:>6}  {:>4}  {:>6}\n",
            self.name, "value", "unit", "baseline", "its value", "ratio", "runs", "spread"
        );
        for row in &self.rows {
            text += &format!(
                "{:wide$}  {:>9} {:6}  {:base$}  {:>9}  {:>6.2}  {:>4}  {:>5.0}%\n",
                row.name,
                short(row.value),
                row.unit,
                row.baseline,
                short(row.baseline_value),
                row.ratio,
                row.runs,
                row.spread * 100.0
            );
        }
        text
    }
}

/// The middle of `values`, or the mean of the two in the middle; NaN where there is none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN);
    if sorted.len() % 2 == 1 || sorted.is_empty() { upper } else { f64::midpoint(upper, sorted[sorted.len() / 2 - 1]) }
}

/// `value / whole`, 0 where there is no whole: JSON has no infinity.
fn part(value: f64, whole: f64) -> f64 {
    if whole == 0.0 { 0.0 } else { value / whole }
}

/// Four significant digits.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 10.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Figure, Path, Row, compare, median};

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_row_compares_medians_and_tells_the_spread() {
        let row = Row::new("a", "us", &[2.0, 4.0, 3.0], ("b", &[1.0, 2.0, 9.0])).unwrap();
        assert_eq!((row.value, row.baseline_value, row.ratio), (3.0, 2.0, 1.5));
        assert_eq!(row.runs, 3);
        assert!((row.spread - 2.0 / 3.0).abs() < 1e-9);
        Row::new("a", "us", &[], ("b", &[1.0])).unwrap_err();
    }

    #[test]
    fn paths_are_compared_with_the_first() {
        let figures = [Figure { name: "rr", unit: "us" }, Figure { name: "stream", unit: "Gbit/s" }];
        let paths = [Path { name: "veth", runs: vec![[1.0, 40.0]] }, Path { name: "pod", runs: vec![[2.0, 20.0]] }];
        let rows = compare(&figures, &paths).unwrap();
        let told: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.baseline.as_str(), row.ratio)).collect();
        assert_eq!(
            told,
            [
                ("rr_veth", "rr_veth", 1.0),
                ("rr_pod", "rr_veth", 2.0),
                ("stream_veth", "stream_veth", 1.0),
                ("stream_pod", "stream_veth", 0.5)
            ]
        );
    }

    #[test]
    fn a_report_has_the_promised_fields() {
        let row = Row::new("a", "us", &[1.0], ("a", &[1.0])).unwrap();
        let value = serde_json::to_value(row).unwrap();
        let fields: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let mut promised = ["name", "unit", "value", "baseline", "baseline_value", "ratio", "runs", "spread"].to_vec();
        promised.sort_unstable();
        let mut found = fields;
        found.sort_unstable();
        assert_eq!(found, promised);
    }
}
