// SPDX-License-Identifier: Apache-2.0

//! The programs under test, as cargo built them.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

/// Where the static builds of `weft-probe` are, below the target folder.
const STATIC: &str = "static/x86_64-unknown-linux-gnu";

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
        let (target, profile) = running()?;
        Self::built(&target, &profile, "debug")
    }

    /// Finds the programs in `target/release/`, whatever profile the running one has.
    ///
    /// # Errors
    /// One is missing: they are built by `cargo xtask bench`.
    pub fn released() -> Result<Self> {
        Self::built(&running()?.0, "release", "release")
    }

    /// Takes agent, plugin and CLI of another build, which is in `folder`; the probe is this build's.
    ///
    /// # Errors
    /// One is missing.
    pub fn beside(folder: &Path) -> Result<Self> {
        let folder = folder.canonicalize().with_context(|| format!("find {}", folder.display()))?;
        let (target, profile) = running()?;
        Ok(Self {
            agent: existing(&folder.join("weft-agent"))?,
            cni: existing(&folder.join("weft-cni"))?,
            cli: existing(&folder.join("weft"))?,
            ..Self::built(&target, &profile, "debug")?
        })
    }

    /// The agent of another version, whose flow tables have another layout.
    ///
    /// # Errors
    /// It is missing: it is built by `cargo xtask build`.
    pub fn other_agent() -> Result<PathBuf> {
        let (target, profile) = running()?;
        existing(&target.join(profile).join("weft-agent-other-layout"))
    }

    /// The operator's command alone, for tests without an agent.
    ///
    /// # Errors
    /// It is missing: it is built by `cargo xtask build`.
    pub fn command() -> Result<PathBuf> {
        let (target, profile) = running()?;
        existing(&target.join(profile).join("weft"))
    }

    fn built(target: &Path, profile: &str, probe_profile: &str) -> Result<Self> {
        let folder = target.join(profile);
        Ok(Self {
            agent: existing(&folder.join("weft-agent"))?,
            cni: existing(&folder.join("weft-cni"))?,
            cli: existing(&folder.join("weft"))?,
            probe: existing(&target.join(STATIC).join(probe_profile).join("weft-probe"))?,
        })
    }
}

/// Cargo's target folder, and the profile in it that the running program was built in.
fn running() -> Result<(PathBuf, String)> {
    let running = env::current_exe().context("find the running program")?;
    let is_target = |folder: &&Path| folder.parent().is_some_and(|target| target.join("CACHEDIR.TAG").exists());
    let not_there = || format!("{} is not in cargo's target folder", running.display());
    let folder = running.ancestors().find(is_target).with_context(not_there)?;
    let profile = folder.file_name().with_context(not_there)?.to_string_lossy().into_owned();
    Ok((folder.parent().with_context(not_there)?.to_owned(), profile))
}

fn existing(path: &Path) -> Result<PathBuf> {
    ensure!(path.exists(), "{} is missing: run `cargo xtask build`", path.display());
    Ok(path.to_owned())
}
