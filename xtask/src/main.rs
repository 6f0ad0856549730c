// SPDX-License-Identifier: Apache-2.0

//! Weft's developer commands, run as `cargo xtask COMMAND`.

mod check;
mod cluster;

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
    /// Check formatting, lints for host and eBPF, layouts and docs.
    Check,
    /// Run a real Kubernetes on this machine.
    Cluster(cluster::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Check => check::run(),
        Command::Cluster(arguments) => cluster::run(arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
