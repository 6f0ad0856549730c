// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask check`: formatting, lints for host and eBPF, layouts, docs. Every warning is an error.

use std::{path::Path, process::ExitCode};

use anyhow::{Context as _, Result, ensure};

use crate::build;

const EBPF: &str = "weft-ebpf";

/// Runs all checks in the order of their cost; the first that fails ends the run.
pub(crate) fn run() -> Result<ExitCode> {
    cargo("formatting", &["fmt", "--all", "--check"], &[])?;
    // The assertions on sizes and padding are in the crate itself: building it with and without the loader's feature checks them.
    cargo("layouts", &["check", "--package", "weft-abi", "--all-features"], &[])?;
    cargo("lints", &["clippy", "--all-targets", "--", "--deny", "warnings"], &[])?;
    lint_programs()?;
    // Private items are documented too, so links to them are right.
    let flags = "--deny warnings --allow rustdoc::private_intra_doc_links";
    cargo("docs", &["doc", "--no-deps", "--document-private-items"], &[("RUSTDOCFLAGS", flags)])?;
    println!("check: all good");
    Ok(ExitCode::SUCCESS)
}

/// The programs cannot be linked for the host, but lints need no linking; the host's `core` does.
fn lint_programs() -> Result<()> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let flags = format!("--cfg=bpf_target_arch=\"{}\" -Cpanic=abort --deny=warnings", std::env::consts::ARCH);
    let dir = Path::new("target").join("ebpf-lints");
    let dir = dir.to_str().context("target folder")?;
    let arguments = ["clippy", "--package", EBPF, "--target", &target, "--target-dir", dir];
    cargo("lints of the programs", &arguments, &[("RUSTFLAGS", &flags)])
}

fn cargo(what: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    println!("check: {what}");
    let mut command = build::cargo();
    command.args(arguments).envs(environment.iter().copied());
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{what}: {command:?} failed ({status})");
    Ok(())
}
