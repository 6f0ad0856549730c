// SPDX-License-Identifier: Apache-2.0
//! What a restarted agent goes on with.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::install;
use crate::{apply::Digests, attachment::pending, config::Config, file, model::Numbers};

/// `runDir/numbers.json`: it lives as long as the maps do.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Memory {
    /// Numbers that the plan gave out.
    pub numbers: Numbers,
    /// What the generations in the maps stand for.
    pub digests: Digests,
}

/// `stateDir/node.json`: lets pods start on a node that boots while the API server is away; `remembered` has the rest.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct NodeMemory {
    /// The Node's pod CIDRs, as they were last known.
    pub pod_cidrs: Vec<IpNet>,
    /// Those that it had before and that workloads still have addresses of.
    #[serde(default)]
    pub retired: Vec<IpNet>,
}

/// Path of [`Memory`].
#[must_use]
pub(super) fn numbers_path(run_dir: &Path) -> PathBuf {
    run_dir.join("numbers.json")
}

/// Path of [`NodeMemory`].
#[must_use]
pub(super) fn node_path(state_dir: &Path) -> PathBuf {
    state_dir.join("node.json")
}

/// Removes what agents and plugins that were killed have half written. What cannot be removed harms nobody.
pub(super) fn sweep(config: &Config) {
    let state = &config.state_dir;
    for folder in [&config.run_dir, state, &pending::folder(state), &install::plugin_records(config)] {
        if let Err(error) = file::sweep(folder) {
            tracing::warn!(folder = %folder.display(), %error, "cannot remove half-written files");
        }
    }
}

/// Reads a file; one that is absent or torn is as none: everything in it can be found anew, with more work.
pub(super) fn load<T: Default + DeserializeOwned>(path: &Path) -> T {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return T::default(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read what an earlier run has left");
            return T::default();
        }
    };
    serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "what an earlier run has left does not parse");
        T::default()
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::sweep;
    use crate::config::Config;

    #[test]
    fn half_written_files_of_agents_and_plugins_go() {
        let dir = tempfile::tempdir().unwrap();
        let config =
            Config { run_dir: dir.path().join("run"), state_dir: dir.path().join("state"), ..Config::default() };
        let left = [
            "run/.numbers.json.tmp",
            "state/.node.json.tmp",
            "state/pending-del/.weft.c1.eth0.json.tmp",
            "state/attachments/.weft.c1.eth0.json.tmp",
        ]
        .map(|name| dir.path().join(name));
        for path in &left {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"{").unwrap();
        }
        let record = dir.path().join("state/attachments/weft.c2.eth0.json");
        fs::write(&record, b"{}").unwrap();
        sweep(&config);
        assert!(record.exists());
        for path in left {
            assert!(!path.exists(), "{}", path.display());
        }
    }
}
