// SPDX-License-Identifier: Apache-2.0

//! Weft's developer commands, run as `cargo xtask COMMAND`.

mod bench;
mod build;
mod check;
mod cluster;
mod demo;
mod fuzz;
mod image;
mod oracle;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Weft's developer commands")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure, print a table and write `target/bench/NAME.json`.
    Bench(bench::Arguments),
    /// Build the programs that the testbed runs.
    Build,
    /// Check formatting, lints for host and eBPF, layouts and docs.
    Check,
    /// Run a real Kubernetes on this machine.
    Cluster(cluster::Arguments),
    /// Show Weft on two simulated nodes with containers and virtual machines.
    Demo,
    /// Drive a part of Weft with random call sequences.
    Fuzz(fuzz::Arguments),
    /// Make Weft's container image, and with `--tarball` its release archive.
    Image(image::Arguments),
    /// Compare random packets in random clusters with what the oracle says of them.
    Oracle(oracle::Arguments),
    /// Run the whole suite that CI runs, or one part of it.
    Test(test::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Build => build::programs().map(|()| ExitCode::SUCCESS),
        Command::Check => check::run(),
        Command::Cluster(arguments) => cluster::run(arguments),
        Command::Demo => demo::run(),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Image(arguments) => image::run(&arguments),
        Command::Oracle(arguments) => oracle::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
