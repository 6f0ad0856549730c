// SPDX-License-Identifier: Apache-2.0
//! `weft-agent`: Weft's node agent.

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use weft_agent::{
    config::{Config, Overrides},
    heap, run,
};

/// Weft's node agent: programs the dataplane of this node and serves CNI.
///
/// Without a subcommand it runs until SIGTERM; the dataplane then goes on without it. The log's level is set by RUST_LOG.
#[derive(Debug, Parser)]
#[command(name = "weft-agent", version)]
struct Arguments {
    #[command(flatten)]
    overrides: Overrides,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent (the default)
    Run,
    /// Put the CNI plugin into the runtime's folder, atomically
    InstallCni {
        /// The plugin [default: weft-cni beside this executable]
        #[arg(long, value_name = "FILE")]
        binary: Option<PathBuf>,
    },
    /// Check the configuration and print it in full
    CheckConfig,
    /// Remove everything the agent made; workloads of this node lose their network
    Cleanup {
        /// Then wait for SIGTERM, as a pod of a DaemonSet must
        #[arg(long)]
        stay: bool,
    },
}

pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_log();
    heap::adjust();
    match execute(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(std::io::stderr().is_terminal()).init();
}

fn execute(arguments: Arguments) -> Result<()> {
    let config = Config::load(&arguments.overrides)?;
    match arguments.command.unwrap_or(Command::Run) {
        Command::Run => runtime()?.block_on(run::run(config)),
        Command::Cleanup { stay } => runtime()?.block_on(async {
            run::cleanup::run(&config).await?;
            if stay { run::cleanup::stay().await } else { Ok(()) }
        }),
        Command::InstallCni { binary } => {
            let path = run::install::install_plugin(&config, binary.as_deref())?;
            tracing::info!(path = %path.display(), "installed the CNI plugin");
            Ok(())
        }
        Command::CheckConfig => {
            print!("{}", serde_yaml::to_string(&config).context("cannot print the configuration")?);
            Ok(())
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    // The engine blocks a thread while it writes maps: others must be there to answer readers.
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(4).enable_all().build().context("cannot start the runtime")
}
