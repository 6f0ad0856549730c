// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask fuzz`: drives a part of Weft with call sequences made of random bytes, guided by coverage.

use std::{fs, path::Path, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use crate::build;

/// Coverage for libFuzzer by the stable compiler, as `cargo fuzz` sets it up for a nightly.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table";
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Arguments of `cargo xtask fuzz`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// What to fuzz.
    #[arg(value_enum)]
    name: Name,
    /// How long, all targets together.
    #[arg(long, default_value_t = 10)]
    minutes: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum Name {
    /// The vhost-user-net device: call sequences on rings, message sequences of a front end.
    Vhost,
}

/// Runs every target for its share of the time; findings stay in `target/fuzz`.
///
/// # Errors
/// A finding, or the targets do not build.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Name::Vhost = arguments.name;
    let package = build::root().join("vhost-user-net/fuzz");
    let targets = ["rings", "messages"];
    build::run(
        build::cargo()
            .current_dir(&package)
            .args(["build", "--release", "--target", TARGET, "--target-dir"])
            .arg(build::root().join("target/fuzz"))
            .env("RUSTFLAGS", COVERAGE),
    )?;
    let seconds = arguments.minutes * 60 / u32::try_from(targets.len())?;
    targets.iter().try_for_each(|target| fuzz(target, seconds))?;
    Ok(ExitCode::SUCCESS)
}

fn fuzz(target: &str, seconds: u32) -> Result<()> {
    let directory = build::root().join("target/fuzz");
    let corpus = directory.join("corpus").join(target);
    fs::create_dir_all(&corpus).with_context(|| format!("create {}", corpus.display()))?;
    let program: &Path = &directory.join(TARGET).join("release").join(target);
    let mut command = std::process::Command::new(program);
    command.arg(&corpus).arg(format!("-max_total_time={seconds}")).arg("-max_len=4096");
    command.arg(format!("-artifact_prefix={}/{target}-", directory.display())).arg("-print_final_stats=1");
    build::run(&mut command)
}
