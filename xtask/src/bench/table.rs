// SPDX-License-Identifier: Apache-2.0

//! What a benchmark says: a table for people, `target/bench/NAME.json` for programs.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::statistic::{Pair, Quartiles, part};
use crate::build::root;

/// One measured value beside the one it is compared with.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) name: String,
    /// The unit of both values.
    pub(crate) unit: &'static str,
    /// Median of all rounds.
    pub(crate) value: f64,
    /// Name of the path, or of the other program, that this one is compared with.
    pub(crate) baseline: String,
    /// Median of the baseline in the same rounds.
    pub(crate) baseline_value: f64,
    /// Median of the ratios that each round has by itself: not the quotient of the two medians.
    pub(crate) ratio: f64,
    /// What a quarter of these ratios do not exceed.
    pub(crate) ratio_q1: f64,
    /// What three quarters of them do not exceed.
    pub(crate) ratio_q3: f64,
    /// How many rounds.
    pub(crate) runs: usize,
    /// Distance of the smallest value from the greatest, as a part of the median.
    pub(crate) spread: f64,
    /// What is to be reached, where that is more than a value to divide by: `ratio <= 1.12`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reach: Option<&'static str>,
}

impl Row {
    /// Compares `name` with `baseline` round by round.
    ///
    /// # Errors
    /// There was no round.
    pub(crate) fn new(name: &str, unit: &'static str, baseline: &str, rounds: &[Pair<f64>]) -> Result<Self> {
        ensure!(!rounds.is_empty(), "{name} was never run");
        let values = || rounds.iter().map(|round| round.value);
        let value = Quartiles::of(values()).median;
        let ratio = Quartiles::of_ratios(rounds);
        let (least, most) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
        Ok(Self {
            name: name.to_owned(),
            unit,
            value,
            baseline: baseline.to_owned(),
            baseline_value: Quartiles::of(rounds.iter().map(|round| round.baseline)).median,
            ratio: ratio.median,
            ratio_q1: ratio.first,
            ratio_q3: ratio.third,
            runs: rounds.len(),
            spread: part(most - least, value),
            reach: None,
        })
    }

    /// The same with what is to be reached.
    pub(crate) fn with_reach(self, reach: &'static str) -> Self {
        Self { reach: Some(reach), ..self }
    }
}

/// A figure that is taken of every path.
pub(crate) struct Figure {
    /// First part of the rows' names.
    pub(crate) name: &'static str,
    /// Its unit.
    pub(crate) unit: &'static str,
}

/// What was measured of one path and its baseline: an array of figures of both a round.
pub(crate) struct Path<const FIGURES: usize> {
    /// Second part of the rows' names.
    pub(crate) name: &'static str,
    /// The same of what it is compared with.
    pub(crate) baseline: &'static str,
    /// The figures of every round.
    pub(crate) rounds: Vec<Pair<[f64; FIGURES]>>,
}

impl<const FIGURES: usize> Path<FIGURES> {
    /// A path of which nothing was measured yet.
    pub(crate) fn new(name: &'static str, baseline: &'static str) -> Self {
        Self { name, baseline, rounds: Vec::new() }
    }

    fn figure(&self, number: usize) -> Vec<Pair<f64>> {
        let of = |round: &Pair<[f64; FIGURES]>| Pair { value: round.value[number], baseline: round.baseline[number] };
        self.rounds.iter().map(of).collect()
    }
}

/// Rows `FIGURE_PATH`: every figure of every path, beside the same figure of its baseline.
///
/// # Errors
/// A path was never run.
pub(crate) fn compare<const FIGURES: usize>(figures: &[Figure; FIGURES], paths: &[Path<FIGURES>]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (number, figure) in figures.iter().enumerate() {
        for path in paths {
            let [name, baseline] = [path.name, path.baseline].map(|path| format!("{}_{path}", figure.name));
            rows.push(Row::new(&name, figure.unit, &baseline, &path.figure(number))?);
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
            "{:wide$}  {:>9} {:6}  {:base$}  {:>9}  {:>6}  {:>15}  {:>4}\n",
            self.name, "value", "unit", "baseline", "its value", "ratio", "quartiles", "runs"
        );
        for row in &self.rows {
            text += &format!(
                "{:wide$}  {:>9} {:6}  {:base$}  {:>9}  {:>6.3}  {:>15}  {:>4}\n",
                row.name,
                short(row.value),
                row.unit,
                row.baseline,
                short(row.baseline_value),
                row.ratio,
                format!("{:.3} to {:.3}", row.ratio_q1, row.ratio_q3),
                row.runs,
            );
            if let Some(reach) = row.reach {
                text.truncate(text.trim_end().len());
                text += &format!("  to reach: {reach}\n");
            }
        }
        text
    }
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
    use super::{Figure, Pair, Path, Report, Row, compare};

    fn rounds<T: Copy>(values: &[(T, T)]) -> Vec<Pair<T>> {
        values.iter().map(|&(value, baseline)| Pair { value, baseline }).collect()
    }

    #[test]
    fn a_row_compares_round_by_round_and_tells_the_spread() {
        // The ratios are 2, 2 and 0.5; the quotient of the medians would be 4 / 3.
        let row = Row::new("a", "us", "b", &rounds(&[(2.0, 1.0), (4.0, 2.0), (4.5, 9.0)])).unwrap();
        assert_eq!((row.value, row.baseline_value), (4.0, 2.0));
        assert_eq!((row.ratio_q1, row.ratio, row.ratio_q3), (1.25, 2.0, 2.0));
        assert_eq!(row.runs, 3);
        assert!((row.spread - 2.5 / 4.0).abs() < 1e-9);
        Row::new("a", "us", "b", &[]).unwrap_err();
        // What is to be reached may be nothing.
        assert_eq!(Row::new("a", "us", "b", &rounds(&[(2.0, 0.0)])).unwrap().ratio, 0.0);
    }

    #[test]
    fn paths_are_compared_with_their_own_baselines() {
        let figures = [Figure { name: "rr", unit: "us" }, Figure { name: "stream", unit: "Gbit/s" }];
        let mut paths = [Path::new("pod", "veth"), Path::new("cross", "veth_1450")];
        paths[0].rounds = rounds(&[([2.0, 20.0], [1.0, 40.0])]);
        paths[1].rounds = rounds(&[([6.0, 9.0], [2.0, 36.0])]);
        let rows = compare(&figures, &paths).unwrap();
        let told: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.baseline.as_str(), row.ratio)).collect();
        assert_eq!(
            told,
            [
                ("rr_pod", "rr_veth", 2.0),
                ("rr_cross", "rr_veth_1450", 3.0),
                ("stream_pod", "stream_veth", 0.5),
                ("stream_cross", "stream_veth_1450", 0.25)
            ]
        );
    }

    #[test]
    fn a_report_has_the_promised_fields() {
        let row = Row::new("a", "us", "b", &rounds(&[(1.0, 1.0)])).unwrap();
        let value = serde_json::to_value(row).unwrap();
        let mut found: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let mut promised =
            ["name", "unit", "value", "baseline", "baseline_value", "ratio", "ratio_q1", "ratio_q3", "runs", "spread"];
        promised.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, promised);
    }

    #[test]
    fn the_table_shows_ratio_and_quartiles() {
        let row = Row::new("pod", "ns", "bare", &rounds(&[(3.0, 2.0), (2.0, 2.0), (4.0, 2.0)])).unwrap();
        let report = Report { name: "net".to_owned(), commit: String::new(), rows: vec![row] };
        let table = report.table();
        let line = table.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(line, "pod 3.000 ns bare 2.000 1.500 1.250 to 1.750 3");
    }

    #[test]
    fn what_is_to_be_reached_is_in_the_table_and_the_file() {
        let row = Row::new("a", "us", "b", &rounds(&[(3.0, 2.0)])).unwrap().with_reach("ratio <= 1.12");
        assert_eq!(serde_json::to_value(&row).unwrap()["reach"], "ratio <= 1.12");
        let report = Report { name: "services".to_owned(), commit: String::new(), rows: vec![row] };
        assert!(report.table().ends_with("1  to reach: ratio <= 1.12\n"));
    }
}
