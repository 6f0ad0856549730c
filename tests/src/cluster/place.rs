// SPDX-License-Identifier: Apache-2.0

//! Where a process of a cluster runs: the cgroups it joins and the namespaces it enters.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::command::command;

/// Joins the cgroups given before `--`, then becomes the command given behind it.
const JOIN_AND_EXEC: &str =
    r#"while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs" || exit 1; shift; done; shift; exec "$@""#;

/// A set of cgroups and namespaces.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    cgroups: Vec<PathBuf>,
    enter: Vec<String>,
}

impl Place {
    /// A network namespace made with `ip netns`, everything else as the machine has it.
    pub(crate) fn network_namespace(name: &str, cgroups: Vec<PathBuf>) -> Self {
        Self { cgroups, enter: vec!["nsenter".into(), format!("--net=/run/netns/{name}")] }
    }

    /// All namespaces of a node, held by the process `anchor`.
    pub(crate) fn node(anchor: i32, cgroups: Vec<PathBuf>) -> Self {
        let enter = ["nsenter", "--mount", "--uts", "--cgroup", "--net", "--target"].map(str::to_owned);
        Self { cgroups, enter: enter.into_iter().chain([anchor.to_string()]).collect() }
    }

    /// Returns the command that runs `program` here; arguments and environment are added by the caller.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = command("sh", ["-c", JOIN_AND_EXEC, "sh"]);
        command.args(&self.cgroups).arg("--").args(&self.enter).arg("--").arg(program.as_ref());
        command
    }
}
