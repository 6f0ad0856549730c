// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask cluster`: a real Kubernetes with two nodes on this machine, to install Weft on and run upstream's tests against.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use weft_testbed::cluster::{Binaries, Cluster, Cni, Installation, Programs, REQUIRED, Selection, build_test_images};

use crate::{build, image};

/// Arguments of `cargo xtask cluster`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Name of the cluster: several may exist at the same time.
    #[arg(long, default_value = "dev", global = true)]
    name: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build Kubernetes, containerd and the test images into the cache (seconds when they are there).
    Build,
    /// Make the cluster: control plane and two nodes, without kube-proxy.
    Up {
        /// Network of the pods.
        #[arg(long, value_enum, default_value = "none")]
        cni: CniArgument,
    },
    /// Put Weft on the cluster: import its image, apply its manifest, wait until everything works.
    Install {
        /// Install what `cargo xtask image` makes, which is built first, not the programs of `target/debug`.
        #[arg(long)]
        release: bool,
        /// How packets travel between nodes.
        #[arg(long, default_value = "vxlan", value_parser = ["vxlan", "native"])]
        mode: String,
    },
    /// Run kubectl as the cluster's administrator.
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run a program inside of a node.
    Exec {
        /// `node1` or `node2`.
        node: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        arguments: Vec<String>,
    },
    /// Check that a vhost-user port's device outlives the agent's pod.
    Device,
    /// Run upstream's end-to-end network tests.
    E2e {
        /// Regular expression on the full names of the tests to run (default: the conformance tests that must pass).
        #[arg(long, default_value = REQUIRED, hide_default_value = true)]
        focus: String,
        /// Regular expression on the full names of tests to leave out.
        #[arg(long)]
        skip: Option<String>,
        /// Tests that run at the same time.
        #[arg(long, default_value_t = 6)]
        procs: u16,
        /// Directory of the reports (default: in the cluster's own directory).
        #[arg(long)]
        report_dir: Option<PathBuf>,
    },
    /// Remove Weft from the cluster as its manifests' README says, and look at what it left.
    Uninstall,
    /// End the cluster and remove every trace of it.
    Down,
}

#[derive(Clone, Copy, ValueEnum)]
enum CniArgument {
    /// None: the nodes stay NotReady until Weft is installed.
    None,
    /// The bridge plugin with static routes, and kube-proxy: what Weft is compared with.
    Bridge,
}

/// Runs one of the subcommands.
///
/// # Errors
/// The subcommand fails. Tests of `e2e` that failed, or none that ran, are told by the status alone.
pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let cluster = Cluster::named(&arguments.name)?;
    let start = Instant::now();
    match arguments.command {
        Command::Build => drop(build_test_images(&Binaries::build()?)?),
        Command::Up { cni } => cluster.up(&Binaries::build()?, cni.into())?,
        Command::Install { release, mode } => cluster.install(&Binaries::cached()?, &installation(release, mode)?)?,
        Command::Kubectl { arguments } => {
            return cluster.kubectl(&Binaries::cached()?, &arguments).map(|()| ExitCode::SUCCESS);
        }
        Command::Exec { node, arguments } => {
            return cluster.execute(&node, &arguments).map(|()| ExitCode::SUCCESS);
        }
        Command::Device => device(&cluster)?,
        Command::E2e { focus, skip, procs, report_dir } => {
            return e2e(&cluster, &Selection { focus, skip, processes: procs, report_directory: report_dir });
        }
        Command::Uninstall => uninstall(&cluster)?,
        Command::Down => cluster.down()?,
    }
    eprintln!("done in {:.1} s", start.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

/// A cluster of its own, Weft on it, a device that outlives its agent, the conformance tests that must pass; the cluster goes whatever happens.
///
/// # Errors
/// The cluster does not come up, or Weft does not make it ready.
pub(crate) fn conformance(name: &str) -> Result<ExitCode> {
    let cluster = Cluster::named(name)?;
    cluster.down()?;
    let outcome = raise(&cluster);
    if outcome.is_err() {
        eprintln!("the logs of what failed are in /run/weft-testbed/{name}/logs until the cluster goes");
    }
    let down = cluster.down();
    let code = outcome?;
    down.map(|()| code)
}

fn raise(cluster: &Cluster) -> Result<ExitCode> {
    eprintln!("cluster: its programs");
    let binaries = Binaries::build()?;
    eprintln!("cluster: control plane and two nodes");
    cluster.up(&binaries, CniArgument::None.into())?;
    eprintln!("cluster: Weft on it");
    cluster.install(&binaries, &installation(false, "vxlan".to_owned())?)?;
    eprintln!("cluster: a device outlives its agent");
    device(cluster)?;
    eprintln!("cluster: upstream's conformance tests");
    let selection = Selection { focus: REQUIRED.to_owned(), skip: None, processes: 6, report_directory: None };
    let code = e2e(cluster, &selection)?;
    eprintln!("cluster: Weft off it");
    uninstall(cluster)?;
    Ok(code)
}

fn uninstall(cluster: &Cluster) -> Result<()> {
    cluster.uninstall(&Binaries::cached()?, &installation(false, "vxlan".to_owned())?)?;
    println!("uninstall: nothing of it is left on the nodes");
    Ok(())
}

fn device(cluster: &Cluster) -> Result<()> {
    cluster.device_outlives_agent(&Binaries::cached()?)?;
    println!("device: the same process before and after the agent's pod was replaced, gone at DEL");
    Ok(())
}

/// Runs the tests and prints what failed, then the closing line `N passed, N failed`.
fn e2e(cluster: &Cluster, selection: &Selection) -> Result<ExitCode> {
    let outcome = cluster.e2e(&Binaries::cached()?, selection)?;
    for name in &outcome.failed {
        println!("failed: {name}");
    }
    if outcome.passed == 0 && outcome.failed.is_empty() {
        println!("no test matches the focus {:?}", selection.focus);
    }
    println!("{} passed, {} failed", outcome.passed, outcome.failed.len());
    Ok(if outcome.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn installation(release: bool, mode: String) -> Result<Installation> {
    let root = build::root();
    let programs =
        if release { Programs::Image(image::archive()?) } else { Programs::Built(root.join("target/debug")) };
    Ok(Installation { programs, manifest: root.join("manifests/weft.yaml"), mode })
}

impl From<CniArgument> for Cni {
    fn from(argument: CniArgument) -> Self {
        match argument {
            CniArgument::None => Self::None,
            CniArgument::Bridge => Self::Bridge,
        }
    }
}
