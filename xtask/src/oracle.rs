// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask oracle`: what must become of a packet, beside what becomes of it.

mod mutants;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, ValueEnum};
use weft_testbed::{OracleOptions, OraclePath, OracleReport, oracle, oracle_replay, oracle_wire};

use crate::build;

/// Arguments of `cargo xtask oracle`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// How many packets; for each mutant, 100000.
    #[arg(long)]
    cases: Option<u64>,
    /// Which sequence.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How packets go.
    #[arg(long, value_enum, default_value_t = Path::Run)]
    path: Path,
    /// Nodes that work at the same time, by default one for 2500 packets, and 2 to 16: each starts for seconds, and then waits more
    /// than it works.
    #[arg(long)]
    jobs: Option<usize>,
    /// Agent, plugin and CLI of another build, which are in this folder.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Do again what this file of a failure says.
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Build each fault of this file into a copy of the sources, and see whether it is found.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "tests/mutants.json")]
    mutants: Option<PathBuf>,
    /// Only mutants whose name has one of these in it.
    #[arg(long, value_name = "TEXT,...", value_delimiter = ',', requires = "mutants")]
    only: Vec<String>,
    /// Where the copy is made and built, by default `target/mutants`.
    #[arg(long, value_name = "DIR", requires = "mutants")]
    target_dir: Option<PathBuf>,
}

/// Packets of a run, and of one mutant's.
const CASES: u64 = 10_000;
const MUTANT_CASES: u64 = 100_000;

#[derive(Clone, Copy, ValueEnum)]
enum Path {
    /// `BPF_PROG_TEST_RUN` of the programs that an agent has loaded.
    Run,
    /// Real packets between containers of two nodes.
    Veth,
    /// Real packets between guests on taps and containers.
    Tap,
    /// Real packets between guests on vhost-user sockets, through their rings, and containers.
    Vhost,
}

/// Runs what `arguments` ask for. The closing line stands alone, for those who read it by program.
///
/// # Errors
/// Nothing could be compared.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    build::programs()?;
    if let Some(file) = &arguments.mutants {
        mutants::check(arguments)?;
        return mutants::run(file, arguments);
    }
    let report = match &arguments.replay {
        Some(file) => oracle_replay(file, arguments.programs.as_deref())?,
        None => compare(arguments)?,
    };
    Ok(tell(&report))
}

fn compare(arguments: &Arguments) -> Result<OracleReport> {
    let cases = arguments.cases.unwrap_or(CASES);
    let options = OracleOptions {
        cases,
        seed: arguments.seed,
        jobs: arguments.jobs.unwrap_or_else(|| jobs_for(cases)),
        programs: arguments.programs.clone(),
        failures: Some(failures()),
    };
    match arguments.path {
        Path::Run => oracle(&options),
        Path::Veth => oracle_wire(&options, OraclePath::Veth),
        Path::Tap => oracle_wire(&options, OraclePath::Tap),
        Path::Vhost => oracle_wire(&options, OraclePath::Vhost),
    }
}

fn jobs_for(cases: u64) -> usize {
    usize::try_from(cases / 2500).map_or(16, |jobs| jobs.clamp(2, 16))
}

/// The suite's part of it. The programs are built.
///
/// # Errors
/// As [`run`].
pub(crate) fn part() -> Result<ExitCode> {
    let options = OracleOptions { cases: 2000, seed: 1, jobs: 2, programs: None, failures: Some(failures()) };
    let loaded = tell(&oracle(&options)?);
    let taps = tell(&oracle_wire(&OracleOptions { cases: 100, ..options.clone() }, OraclePath::Tap)?);
    let rings = tell(&oracle_wire(&OracleOptions { cases: 60, ..options }, OraclePath::Vhost)?);
    let failed = [loaded, taps, rings].into_iter().find(|part| *part != ExitCode::SUCCESS);
    Ok(failed.unwrap_or(ExitCode::SUCCESS))
}

/// The folder of failures' files.
fn failures() -> PathBuf {
    build::root().join("target/oracle")
}

/// Prints what came of it.
fn tell(report: &OracleReport) -> ExitCode {
    for (verdict, count) in &report.verdicts {
        println!("{count:8} {verdict}");
    }
    for (name, count) in &report.known {
        println!("known, {count} times: {name}");
    }
    for failure in &report.failures {
        println!("FAILED {failure}");
    }
    println!("{} passed, {} failed", report.passed, report.failed);
    if report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
