// SPDX-License-Identifier: Apache-2.0
//! What a restarted agent goes on with.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::install;
use crate::{
    apply::Tables,
    attachment::pending,
    config::Config,
    file,
    model::{Attachment, HashKey, Numbers},
};

/// `stateDir/node.json`: lets pods start on a node that boots while the API server is away; `remembered` has the rest.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct NodeMemory {
    /// The Node's pod CIDRs, as they were last known.
    pub pod_cidrs: Vec<IpNet>,
    /// Those that it had before and that workloads still have addresses of.
    #[serde(default)]
    pub retired: Vec<IpNet>,
    /// The internal addresses of the Node object, as they were last known.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// The numbers that an earlier agent gave out, by what the maps hold; where there are new maps, a new key to number by.
pub(super) fn recover(tables: &dyn Tables, attachments: &[Arc<Attachment>]) -> Result<Numbers> {
    let mut key = tables.numbering().get(0)?;
    if key == [0; 2] {
        let random = || getrandom::u64().context("cannot get random numbers (getrandom)");
        key = [random()?, random()?];
        tables.numbering().set(0, &key)?;
    }
    let frontends = tables.frontends().entries()?;
    let (backends, sources) = (tables.backends().entries()?, tables.sources().entries()?);
    let (classes, ports) = (tables.classes().entries()?, tables.ports().entries()?);
    Ok(Numbers::recovered(HashKey(key), &frontends, (&backends, &sources), &classes, &ports, attachments))
}

/// Where earlier versions kept numbers. They live in the maps now.
pub(super) fn left_by_earlier_versions(run_dir: &Path) -> [PathBuf; 2] {
    ["numbers.json", "services.json"].map(|name| run_dir.join(name))
}

/// Path of [`NodeMemory`].
#[must_use]
pub(super) fn node_path(state_dir: &Path) -> PathBuf {
    state_dir.join("node.json")
}

/// Removes what agents and plugins that were killed have half written, and what nobody reads any more. What cannot be removed
/// harms nobody.
pub(super) fn sweep(config: &Config) {
    let state = &config.state_dir;
    for folder in [&config.run_dir, state, &pending::folder(state), &install::plugin_records(config)] {
        if let Err(error) = file::sweep(folder) {
            tracing::warn!(folder = %folder.display(), %error, "cannot remove half-written files");
        }
    }
    for path in left_by_earlier_versions(&config.run_dir) {
        if let Err(error) = file::remove(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove what an earlier version has left");
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

    use super::{recover, sweep};
    use crate::{apply::tests::fake::Fake, config::Config};

    #[test]
    fn the_key_of_numbers_lives_as_long_as_the_maps_do() {
        let (fake, other) = (Fake::new(), Fake::new());
        let first = recover(&*fake, &[]).unwrap();
        assert_eq!(recover(&*fake, &[]).unwrap().key, first.key);
        assert_ne!(recover(&*other, &[]).unwrap().key, first.key);
        assert_ne!(first.key, Default::default());
    }

    #[test]
    fn half_written_files_and_those_of_earlier_versions_go() {
        let dir = tempfile::tempdir().unwrap();
        let config =
            Config { run_dir: dir.path().join("run"), state_dir: dir.path().join("state"), ..Config::default() };
        let left = [
            "run/.numbers.json.tmp",
            "run/numbers.json",
            "run/services.json",
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
