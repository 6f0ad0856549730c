// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask test`: the whole suite that CI runs, or one part of it.

mod beside;

use std::{
    path::PathBuf,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, Subcommand};
use weft_testbed::{
    Selection, churn,
    cluster::{Binaries, build_test_images},
    equivalence, hostile, hostile_names,
};

use crate::{build, check, cluster, demo, oracle};

/// Arguments of `cargo xtask test`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Without one: all of them.
    #[command(subcommand)]
    part: Option<Part>,
    /// Build nothing: the programs are there.
    #[arg(long, hide = true)]
    built: bool,
}

/// A part of the suite.
#[derive(Clone, Subcommand)]
enum Part {
    /// Unit and integration tests of every crate, on simulated nodes and in QEMU guests.
    Crates,
    /// Simulated nodes with containers and guests: the testbed's own tests.
    Bed,
    /// Agents killed under running TCP and UDP streams: nothing may be lost.
    Restart,
    /// Services by every kind of frontend, with containers, guests on a tap and on a vhost-user socket, hosts and the outside as clients
    /// and as backends.
    Services,
    /// Flow tables of another layout and the way back, and of other sizes, under streams and while connections are opened: nothing
    /// may be lost or moved.
    Upgrade,
    /// Random ADD, DEL, CHECK and GC, with killed plugins and agents in between: nothing may be left.
    Churn {
        /// How many operations.
        #[arg(long, default_value_t = 1000)]
        ops: usize,
        /// Which sequence.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// A guest and a container get the same answers to generated Services, policies and packets.
    Equivalence {
        /// How many cases.
        #[arg(long, default_value_t = 500)]
        cases: usize,
        /// Which sequence.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Attacks by pods, guests and neighbours on the wire, each a named case: nobody speaks for another, and no tenant stops
    /// a node.
    Hostile {
        /// Only the cases whose name this regular expression matches.
        #[arg(long, value_name = "REGEX")]
        case: Option<String>,
        /// Print the names of the cases and run none.
        #[arg(long)]
        list: bool,
        /// Attack agent, plugin and CLI of another build, which are in this folder.
        #[arg(long, value_name = "DIR")]
        programs: Option<PathBuf>,
    },
    /// Random packets in random clusters do as the oracle says: some thousands through the loaded programs, some on wires.
    Oracle,
    /// The vhost-user-net device with every front end, in the agent's care, and behind a Service.
    Vhost,
    /// A real Kubernetes with Weft on it must pass the upstream conformance tests that are Weft's.
    Cluster,
}

impl Part {
    /// Whether it runs agents, plugins and the CLI.
    const fn needs_programs(&self) -> bool {
        !matches!(self, Self::Vhost | Self::Hostile { list: true, .. })
    }
}

/// Parts that run beside the tests of the crates. Attacks do not: floods are to come faster than a busy machine sends them.
const BESIDE: [&str; 3] = ["churn --ops 150 --seed 1", "oracle", "equivalence --cases 100 --seed 1"];

/// Runs what `arguments` ask for.
///
/// # Errors
/// A part that failed; the others after it do not run.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.part.as_ref().is_some_and(Part::needs_programs) && !arguments.built {
        build::programs()?;
    }
    match arguments.part.clone() {
        None => suite(),
        Some(Part::Crates) => crates().map(|()| ExitCode::SUCCESS),
        Some(Part::Bed) => bed("*").map(|()| ExitCode::SUCCESS),
        Some(Part::Restart) => bed("restart").map(|()| ExitCode::SUCCESS),
        Some(Part::Services) => {
            ["services", "guest_services", "host_ports"].into_iter().try_for_each(bed).map(|()| ExitCode::SUCCESS)
        }
        Some(Part::Upgrade) => bed("upgrade").map(|()| ExitCode::SUCCESS),
        Some(Part::Churn { ops, seed }) => churning(ops, seed).map(|()| ExitCode::SUCCESS),
        Some(Part::Equivalence { cases, seed }) => equivalent(cases, seed).map(|()| ExitCode::SUCCESS),
        Some(Part::Hostile { case, list, programs }) => attacked(&Selection { case, programs }, list),
        Some(Part::Oracle) => oracle::part(),
        Some(Part::Vhost) => vhost().map(|()| ExitCode::SUCCESS),
        Some(Part::Cluster) => on_cluster(),
    }
}

/// Everything, the cheap parts first. Kubernetes is built beside them: on a fresh machine that takes minutes.
fn suite() -> Result<ExitCode> {
    let kubernetes = thread::spawn(|| build_test_images(&Binaries::build()?).map(drop));
    step("check", || check::run().map(drop))?;
    // Before two of them run: none may find a program that is being replaced.
    step("programs and tests", build_tests)?;
    let beside = beside::start(&BESIDE);
    let crates = step("tests of the crates", crates);
    let beside = beside.finish();
    crates.and(beside)?;
    build::programs()?;
    step("hostile", || succeeded(attacked(&Selection::default(), false)?))?;
    step("Kubernetes for the cluster", || {
        kubernetes.join().map_err(|_| anyhow!("the thread that builds Kubernetes panicked"))?
    })?;
    step("cluster", || succeeded(on_cluster()?))?;
    step("demo", || succeeded(demo::run()?))?;
    println!("test: all parts passed");
    Ok(ExitCode::SUCCESS)
}

fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("test: {name}");
    let start = Instant::now();
    work().with_context(|| name.to_owned())?;
    println!("test: {name}: passed after {}", minutes(start.elapsed()));
    Ok(())
}

fn minutes(time: Duration) -> String {
    format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
}

fn succeeded(code: ExitCode) -> Result<()> {
    if code != ExitCode::SUCCESS {
        bail!("its own output says what failed");
    }
    Ok(())
}

/// Programs first: the tests run them.
fn build_tests() -> Result<()> {
    build::programs()?;
    build::run(build::cargo().args(TESTS).arg("--no-run"))
}

/// The tests of all crates that run on the host.
const TESTS: [&str; 4] = ["test", "--workspace", "--exclude", "weft-ebpf"];

fn crates() -> Result<()> {
    build::run(build::cargo().args(TESTS).arg("--no-fail-fast"))
}

fn bed(tests: &str) -> Result<()> {
    let testbed = ["test", "-p", "weft-testbed", "--no-fail-fast", "--test", tests];
    build::run(build::cargo().args(testbed).args(["--", "--test-threads=2"]))
}

fn vhost() -> Result<()> {
    build::run(build::cargo().args(["test", "--package", "weft-vhost", "--package", "weft-test-vmm"]))
}

fn churning(ops: usize, seed: u64) -> Result<()> {
    let counts = churn(ops, seed)?;
    println!("churn: {ops} operations of seed {seed}, nothing is left: {counts:?}");
    Ok(())
}

/// The closing line stands alone, for those who read it by program.
fn attacked(selection: &Selection, list: bool) -> Result<ExitCode> {
    if list {
        hostile_names(selection)?.iter().for_each(|name| println!("{name}"));
        return Ok(ExitCode::SUCCESS);
    }
    let tally = hostile(selection)?;
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn equivalent(cases: usize, seed: u64) -> Result<()> {
    let answers = equivalence(cases, seed)?;
    println!("equivalence: {cases} cases of seed {seed}, none differs: {answers:?}");
    Ok(())
}

fn on_cluster() -> Result<ExitCode> {
    cluster::conformance("test")
}
