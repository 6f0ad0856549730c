// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask oracle`: what must become of a packet, beside what becomes of it.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, ValueEnum};
use weft_testbed::{OracleOptions, OracleReport, oracle, oracle_replay};

use crate::build;

/// Arguments of `cargo xtask oracle`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// How many packets.
    #[arg(long, default_value_t = 10_000)]
    cases: u64,
    /// Which sequence.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How packets go.
    #[arg(long, value_enum, default_value_t = Path::Run)]
    path: Path,
    /// Nodes that work at the same time.
    #[arg(long, default_value_t = 4)]
    jobs: usize,
    /// Agent, plugin and CLI of another build, which are in this folder.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Do again what this file of a failure says.
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Path {
    /// `BPF_PROG_TEST_RUN` of the programs that an agent has loaded.
    Run,
}

/// Runs what `arguments` ask for. The closing line stands alone, for those who read it by program.
///
/// # Errors
/// Nothing could be compared.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    build::programs()?;
    let report = match &arguments.replay {
        Some(file) => oracle_replay(file, arguments.programs.as_deref())?,
        None => compare(arguments)?,
    };
    Ok(tell(&report))
}

fn compare(arguments: &Arguments) -> Result<OracleReport> {
    let Path::Run = arguments.path;
    oracle(&OracleOptions {
        cases: arguments.cases,
        seed: arguments.seed,
        jobs: arguments.jobs,
        programs: arguments.programs.clone(),
        failures: Some(build::root().join("target/oracle")),
    })
}

/// Prints what came of it.
pub(crate) fn tell(report: &OracleReport) -> ExitCode {
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
