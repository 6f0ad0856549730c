// SPDX-License-Identifier: Apache-2.0
//! What a restarted agent goes on with.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::install;
use crate::{attachment::pending, config::Config, file, model::Numbers, plan::NumbersChanged};

/// `runDir/numbers.json` and, since they are many and change seldom, the numbers of Services beside it in `services.json`: they
/// live as long as the maps do.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Memory {
    /// Numbers that the plan gave out, without those of Services.
    pub numbers: Numbers,
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

/// `runDir/services.json`.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Services {
    /// See [`Numbers::services`].
    services: BTreeMap<String, u32>,
    /// See [`Numbers::refused`].
    refused: BTreeSet<String>,
}

impl Memory {
    /// What an earlier run has left: and all numbers that it gave out.
    pub(super) fn load(run_dir: &Path) -> (Self, Numbers) {
        let mut memory: Self = load(&numbers_path(run_dir));
        let numbers = std::mem::take(&mut memory.numbers);
        let services = services_path(run_dir);
        // An earlier version had all numbers in one file.
        if !numbers.services.is_empty() || !services.exists() {
            return (memory, numbers);
        }
        let Services { services, refused } = load(&services);
        (memory, Numbers { services, refused, ..numbers })
    }

    /// Writes the numbers that have changed.
    pub(super) fn keep_numbers(
        &mut self,
        run_dir: &Path,
        numbers: &Numbers,
        changed: NumbersChanged,
    ) -> anyhow::Result<()> {
        if changed.services {
            let (services, refused) = (numbers.services.clone(), numbers.refused.clone());
            file::save(&services_path(run_dir), &Services { services, refused })?;
        }
        if changed.others {
            let Numbers { services: _, workloads, policies, peers, identities, next, refused: _ } = numbers;
            let kept = Numbers {
                services: BTreeMap::new(),
                refused: BTreeSet::new(),
                workloads: workloads.clone(),
                policies: policies.clone(),
                peers: peers.clone(),
                identities: identities.clone(),
                next: next.clone(),
            };
            if kept != self.numbers {
                let next = Self { numbers: kept };
                file::save(&numbers_path(run_dir), &next)?;
                *self = next;
            }
        }
        Ok(())
    }
}

/// Path of [`Memory`].
pub(super) fn numbers_path(run_dir: &Path) -> PathBuf {
    run_dir.join("numbers.json")
}

/// Path of the numbers of Services.
pub(super) fn services_path(run_dir: &Path) -> PathBuf {
    run_dir.join("services.json")
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
