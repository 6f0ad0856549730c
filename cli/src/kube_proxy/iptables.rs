// SPDX-License-Identifier: Apache-2.0
//! The tools of iptables: two backends, two families.

use std::{
    fmt,
    io::{self, Write as _},
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::kernel::Family;

/// Where rules are in the kernel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Backend {
    /// Tables of iptables' own.
    Legacy,
    /// Tables of nftables.
    Nft,
}

/// One of the four rule sets that iptables may have made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Variant {
    pub(super) backend: Backend,
    pub(super) family: Family,
}

/// How long, in seconds, to wait for others who write rules.
const PATIENCE: &str = "5";

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.family.told(), self.tool(""))
    }
}

impl Variant {
    /// `iptables-nft`, `ip6tables-legacy-save` and so on.
    fn tool(self, ending: &str) -> String {
        let backend = match self.backend {
            Backend::Legacy => "legacy",
            Backend::Nft => "nft",
        };
        format!("{}-{backend}{ending}", self.plain())
    }

    /// The name that stands for the backend which a distribution prefers.
    fn plain(self) -> &'static str {
        match self.family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        }
    }

    /// All rules, as `iptables-save` prints them.
    ///
    /// # Errors
    /// There is no such tool, or it fails.
    pub(super) fn save(self) -> Result<String> {
        let output = self.run("-save", &[], "")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Does what `script` says, all of it or nothing; what it does not name stays.
    ///
    /// # Errors
    /// There is no such tool, or it refuses.
    pub(super) fn restore(self, script: &str) -> Result<()> {
        self.run("-restore", &["--noflush", "-w", PATIENCE], script).map(drop)
    }

    fn run(self, ending: &str, arguments: &[&str], input: &str) -> Result<Output> {
        let tool = self.tool(ending);
        let output = match run(&tool, arguments, input) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.is_plain() => {
                run(&format!("{}{ending}", self.plain()), arguments, input)
            }
            output => output,
        };
        let output = match output {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                bail!("{tool} is not in PATH: install the package iptables")
            }
            output => output.with_context(|| format!("run {tool}"))?,
        };
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{tool}: {}", told.trim().replace('\n', "; "));
        Ok(output)
    }

    /// Whether the tool without a backend in its name is of this one, which it says behind its version. Those that say
    /// nothing are older than the other backend.
    fn is_plain(self) -> bool {
        let version = run(self.plain(), &["--version"], "");
        let version = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        !version.is_empty() && version.contains("nf_tables") == (self.backend == Backend::Nft)
    }
}

fn run(tool: &str, arguments: &[&str], input: &str) -> io::Result<Output> {
    let mut command = Command::new(tool);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    // A tool that does not read says why at its end.
    child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes())).transpose().ok();
    child.wait_with_output()
}
