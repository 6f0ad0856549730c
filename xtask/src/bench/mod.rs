// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask bench NAME`: measurements, never assertions.
//!
//! On a machine that others use too, ratios are what holds: each is the median of the ratios that rounds have by themselves
//! ([`statistic`]). Agent, plugin, CLI and load are built as a release is.

mod cni;
mod datapath;
mod net;
mod scale;
mod services;
mod statistic;
mod table;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::build;
use table::Report;

/// Arguments of `cargo xtask bench`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// What to measure.
    #[arg(value_enum)]
    name: Name,
    /// Measure the programs that are in `target/release` already.
    #[arg(long)]
    no_build: bool,
    /// datapath, policy, net, services, vm, cni: how often each path is measured beside its baseline.
    #[arg(long, value_name = "N", default_value_t = statistic::ROUNDS, value_parser = parse_rounds)]
    rounds: usize,
    #[command(flatten)]
    scale: scale::Options,
    #[command(flatten)]
    services: services::Parts,
}

#[derive(Clone, Copy, ValueEnum)]
enum Name {
    /// Nanoseconds per packet in the eBPF programs.
    Datapath,
    /// Nanoseconds of a first packet by the policies of the node, and what they take.
    Policy,
    /// TCP between pods, beside a bare veth pair.
    Net,
    /// Services beside kube-proxy in nftables and in iptables mode.
    Services,
    /// TCP between a pod and a guest, beside the same guest on a bare tap.
    Vm,
    /// ADD and DEL at 1 and 20 per second, beside the bridge plugin with host-local.
    Cni,
    /// One node's agent in a large cluster that a fake API server serves, beside what is to be reached.
    Scale,
    /// The vhost-user-net device, beside bare system calls on the same tap.
    Vhost,
}

/// Runs one benchmark.
///
/// # Errors
/// It could not be set up, or a run failed.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    // The programs of the data path are in this one, the device brings its own bench.
    if !arguments.no_build && !matches!(arguments.name, Name::Datapath | Name::Policy | Name::Vhost) {
        build::released_programs()?;
    }
    let rounds = arguments.rounds;
    let (name, rows) = match arguments.name {
        Name::Datapath => ("datapath", datapath::rows(rounds)?),
        Name::Policy => ("policy", datapath::policy::rows(rounds)?),
        Name::Net => ("net", net::rows(rounds)?),
        Name::Services => ("services", services::rows(rounds, &arguments.services)?),
        Name::Vm => ("vm", vm::rows(rounds)?),
        Name::Cni => ("cni", cni::rows(rounds)?),
        Name::Scale => ("scale", scale::rows(&arguments.scale)?),
        Name::Vhost => return vhost(),
    };
    Report::new(name, rows)?.publish()?;
    Ok(ExitCode::SUCCESS)
}

fn parse_rounds(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|rounds| *rounds > 0).ok_or_else(|| "a number of rounds, 1 at least".to_owned())
}

/// The device stands alone, and so does its bench; it writes the same form.
fn vhost() -> Result<ExitCode> {
    let directory = build::root().join("target/bench");
    std::fs::create_dir_all(&directory)?;
    let mut bench = build::cargo();
    bench
        .args(["bench", "--package", "weft-vhost", "--bench", "vhost", "--", "--json"])
        .arg(directory.join("vhost.json"));
    build::run(&mut bench)?;
    Ok(ExitCode::SUCCESS)
}
