// SPDX-License-Identifier: Apache-2.0

//! Which sources it is made from.

use std::{
    collections::BTreeMap,
    env, fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::build;

/// Of what is in image and archive: Weft's own parts, and the eBPF programs.
pub(super) const LICENCES: &str = "Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)";
/// Reproducible builds' variable: seconds since 1970.
const TIME: &str = "SOURCE_DATE_EPOCH";

/// Version, commit and time of the sources.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) version: &'static str,
    /// The commit, with `-dirty` behind it where something is not committed.
    pub(super) revision: Option<String>,
    pub(super) source: Option<String>,
    /// Seconds since 1970.
    pub(super) modified: u64,
}

impl Origin {
    /// Asks git and the environment.
    ///
    /// # Errors
    /// Neither tells a time, or the environment's is no number.
    pub(super) fn find(source: Option<String>, revision: Option<String>) -> Result<Self> {
        let modified = match env::var(TIME) {
            Ok(text) => text.parse().with_context(|| format!("{TIME}={text}: not a number of seconds"))?,
            Err(_) => git(&["log", "-1", "--format=%ct"])
                .with_context(|| format!("no time to give the image: set {TIME}"))?
                .parse()
                .context("the time of the commit")?,
        };
        let revision = revision.or_else(|| commit().ok());
        if revision.as_ref().is_none_or(|revision| revision.ends_with("-dirty")) {
            eprintln!("image: of sources that are no commit");
        }
        let source = source.or_else(|| option_env!("CARGO_PKG_REPOSITORY").map(str::to_owned));
        let source = source.filter(|source| !source.is_empty());
        Ok(Self { version: env!("CARGO_PKG_VERSION"), revision, source, modified })
    }

    /// Annotations of the image, by the names of the OCI image specification.
    pub(super) fn annotations(&self) -> BTreeMap<String, String> {
        let known = [
            ("title", Some("Weft")),
            ("description", Some("One eBPF dataplane for containers and virtual machines in Kubernetes")),
            ("version", Some(self.version)),
            ("revision", self.revision.as_deref()),
            ("source", self.source.as_deref()),
            ("licenses", Some(LICENCES)),
        ];
        let created = ("created", weft_image::rfc3339(self.modified));
        let known = known.into_iter().filter_map(|(name, value)| Some((name, value?.to_owned())));
        known.chain([created]).map(|(name, value)| (format!("org.opencontainers.image.{name}"), value)).collect()
    }

    /// Puts the files of the commit into `folder`, and nothing else.
    ///
    /// # Errors
    /// Something is not committed, or git or tar fails.
    pub(super) fn copy_sources(&self, folder: &Path) -> Result<()> {
        let clean = self.revision.as_ref().is_some_and(|revision| !revision.ends_with("-dirty"));
        ensure!(clean, "sources that are not committed cannot be built a second time elsewhere: commit them first");
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
        }
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let mut pack = Command::new("git");
        pack.current_dir(build::root()).args(["archive", "--format=tar", "HEAD"]).stdout(Stdio::piped());
        let mut pack = pack.spawn().context("start git archive")?;
        let packed = pack.stdout.take().context("git archive has no output")?;
        build::run(Command::new("tar").arg("--extract").arg("--directory").arg(folder).stdin(packed))?;
        ensure!(pack.wait().context("wait for git archive")?.success(), "git archive failed");
        Ok(())
    }
}

fn commit() -> Result<String> {
    let commit = git(&["rev-parse", "HEAD"])?;
    let changes = git(&["status", "--porcelain"])?;
    Ok(if changes.is_empty() { commit } else { format!("{commit}-dirty") })
}

fn git(arguments: &[&str]) -> Result<String> {
    let output = Command::new("git").current_dir(build::root()).args(arguments).output().context("start git")?;
    ensure!(output.status.success(), "git {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8(output.stdout).context("git's output")?.trim().to_owned())
}
