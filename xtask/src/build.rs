// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask build`: the programs under test, where the testbed looks for them.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};

/// The probe runs in guests that have no libraries.
const STATIC: &str = "-Ctarget-feature=+crt-static -Cstrip=symbols";
const STATIC_TARGET: &str = "x86_64-unknown-linux-gnu";

/// A second version of the agent, beside the first.
const OTHER_LAYOUT: &str = "weft-agent-other-layout";

/// The workspace's folder.
pub(crate) fn root() -> PathBuf {
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    package.parent().map_or_else(|| package.clone(), PathBuf::from)
}

/// Cargo's target folder: the one that this program is in.
pub(crate) fn target() -> Result<PathBuf> {
    let running = env::current_exe().context("find the running program")?;
    running.ancestors().nth(2).map(PathBuf::from).context("the running program is not in a target folder")
}

/// The cargo that runs this, without the variables that it set for this program's own package: build scripts that depend on them
/// (ring's) would be run again, and all that uses them compiled again, whenever this and a plain `cargo` take turns.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    command.current_dir(root());
    command
}

/// Runs `command` with its output shown.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// Builds agent, plugin, CLI and device, and the static probe.
pub(crate) fn programs() -> Result<()> {
    programs_with(&[])
}

/// Builds the same as a release.
pub(crate) fn released_programs() -> Result<()> {
    eprintln!("build: a release, which takes minutes unless it is there already");
    programs_with(&["--release"])
}

/// Cargo tells what it compiles: from nothing it is some hundred crates.
fn programs_with(options: &[&str]) -> Result<()> {
    if options.is_empty() {
        other_layout()?;
    }
    eprintln!("build: weft-agent, weft-cni, weft, weft-vhost");
    run(cargo().args(["build", "-p", "weft-agent", "-p", "weft-cni", "-p", "weft", "-p", "weft-vhost"]).args(options))?;
    eprintln!("build: weft-probe, linked statically");
    run(cargo()
        .args(["build", "-p", "weft-probe", "--target", STATIC_TARGET, "--target-dir"])
        .arg(target()?.join("static"))
        .args(options)
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", STATIC))
}

/// Builds a second version of the agent, whose flow tables have another layout, for tests of upgrades.
fn other_layout() -> Result<()> {
    eprintln!("build: weft-agent with another layout");
    run(cargo().args(["build", "-p", "weft-agent", "--features", "other-layout", "--bin", OTHER_LAYOUT]))
}
