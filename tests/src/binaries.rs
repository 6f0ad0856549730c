// SPDX-License-Identifier: Apache-2.0

//! The programs under test, as cargo built them.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

/// Where the static build of `weft-probe` is, below the target folder.
const PROBE: &str = "static/x86_64-unknown-linux-gnu/debug/weft-probe";

/// Paths of the programs.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `weft-agent`.
    pub agent: PathBuf,
    /// `weft-cni`.
    pub cni: PathBuf,
    /// `weft`.
    pub cli: PathBuf,
    /// `weft-probe`, linked statically.
    pub probe: PathBuf,
}

impl Binaries {
    /// Finds the programs beside the running one (`target/PROFILE/`).
    ///
    /// # Errors
    /// One is missing: they are built by `cargo xtask build`.
    pub fn locate() -> Result<Self> {
        let running = env::current_exe().context("find the running program")?;
        let profile = running
            .ancestors()
            .find(|folder| folder.parent().is_some_and(|target| target.join("CACHEDIR.TAG").exists()))
            .with_context(|| format!("{} is not in cargo's target folder", running.display()))?;
        let target = profile.parent().context("the profile folder has no parent")?;
        Ok(Self {
            agent: existing(&profile.join("weft-agent"))?,
            cni: existing(&profile.join("weft-cni"))?,
            cli: existing(&profile.join("weft"))?,
            probe: existing(&target.join(PROBE))?,
        })
    }
}

fn existing(path: &Path) -> Result<PathBuf> {
    ensure!(path.exists(), "{} is missing: run `cargo xtask build`", path.display());
    Ok(path.to_owned())
}
