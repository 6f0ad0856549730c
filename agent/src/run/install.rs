// SPDX-License-Identifier: Apache-2.0
//! The CNI plugin's binary and network configuration, each put in place whole: a runtime never sees half of one.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::{attachment::pending, config::Config, file};

/// Name of the plugin's binary; also the `type` in the network configuration.
pub const PLUGIN: &str = "weft-cni";
/// Name of the network configuration: runtimes take the first in alphabetical order.
pub const CONFLIST: &str = "05-weft.conflist";

/// Copies the plugin into the runtime's folder: `binary`, or the one beside this executable. Returns where it is now.
///
/// # Errors
/// It is not there, or the folder cannot be written.
pub fn install_plugin(config: &Config, binary: Option<&Path>) -> Result<PathBuf> {
    let source = match binary {
        Some(path) => path.to_owned(),
        None => std::env::current_exe().context("cannot tell the path of this executable")?.with_file_name(PLUGIN),
    };
    let content = fs::read(&source)
        .with_context(|| format!("cannot read the CNI plugin {}; name it with --binary", source.display()))?;
    let target = config.cni.bin_dir.join(PLUGIN);
    replace(&target, &content, 0o755).with_context(|| format!("cni.binDir: cannot install {}", target.display()))?;
    Ok(target)
}

/// Writes the network configuration, from which on the runtime takes the node as ready.
///
/// # Errors
/// The folder cannot be written.
pub fn install_conflist(config: &Config) -> Result<PathBuf> {
    let target = conflist(config);
    let mut content = serde_json::to_vec_pretty(&network(config)).context("cannot write the network configuration")?;
    content.push(b'\n');
    if fs::read(&target).is_ok_and(|old| old == content) {
        file::settle(&target).with_context(|| format!("cni.confDir: beside {}", target.display()))?;
    } else {
        replace(&target, &content, 0o644).with_context(|| format!("cni.confDir: cannot write {}", target.display()))?;
    }
    announce(&target, &content).with_context(|| format!("cni.confDir: cannot write {}", target.display()))?;
    Ok(target)
}

/// Writes the first byte of a file that is in place once more, so that whoever watches its folder reads it: containerd does so
/// after a write, a rename or a removal, not after a file was made there. Also an unchanged file is announced, since an agent
/// that was killed may not have come to it.
/// Source: containerd, `internal/cri/server/cni_conf_syncer.go`.
fn announce(target: &Path, content: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).open(target)?.write_all_at(&content[..1], 0)
}

/// Removes what [`install_conflist`] and [`install_plugin`] made; what is gone is fine.
///
/// # Errors
/// A file is there and cannot be removed.
pub fn remove(config: &Config) -> Result<()> {
    for path in [conflist(config), config.cni.bin_dir.join(PLUGIN)] {
        file::remove(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

fn conflist(config: &Config) -> PathBuf {
    config.cni.conf_dir.join(CONFLIST)
}

/// Where the plugin keeps a record of each attachment.
pub(super) fn plugin_records(config: &Config) -> PathBuf {
    config.state_dir.join("attachments")
}

/// The list for runtimes. One that knows `cniVersions` takes the latest version it supports: from 1.1.0 on it calls STATUS and
/// GC, and ADD's result has `socketPath`. One that does not takes `cniVersion`, and would fail with a version it does not know.
/// Source: CNI spec 1.1.0, "Section 1", `cniVersions`.
fn network(config: &Config) -> serde_json::Value {
    json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": config.cni.name,
        "plugins": [{
            "type": PLUGIN,
            "agentSocket": config.socket,
            "pendingDir": pending::folder(&config.state_dir),
            "stateDir": plugin_records(config),
            "capabilities": {"ips": true, "mac": true, "portMappings": true},
        }],
    })
}

fn replace(target: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let folder = target.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    file::replace(target, |file| {
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

    use super::{CONFLIST, install_conflist, install_plugin, remove};
    use crate::config::Config;

    #[test]
    fn files_are_replaced_whole_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.cni.bin_dir = dir.path().join("bin");
        config.cni.conf_dir = dir.path().join("net.d");
        let binary = dir.path().join("plugin");
        fs::write(&binary, b"#!/bin/false\n").unwrap();
        let installed = install_plugin(&config, Some(&binary)).unwrap();
        assert_eq!(installed.metadata().unwrap().permissions().mode() & 0o777, 0o755);
        let conflist = install_conflist(&config).unwrap();
        let list: serde_json::Value = serde_json::from_slice(&fs::read(&conflist).unwrap()).unwrap();
        assert_eq!(list["plugins"][0]["agentSocket"], "/run/weft/agent.sock");
        // Runtimes take the latest version they know, those before 1.1.0 the single one.
        assert_eq!(list["cniVersions"], serde_json::json!(["0.4.0", "1.0.0", "1.1.0"]));
        assert_eq!(list["cniVersion"], "1.0.0");
        // Without it the runtime keeps the pods' hostPorts to itself.
        assert_eq!(list["plugins"][0]["capabilities"]["portMappings"], true);
        assert_eq!(fs::read_dir(&config.cni.conf_dir).unwrap().count(), 1);
        remove(&config).unwrap();
        remove(&config).unwrap();
        assert!(!conflist.exists() && !installed.exists());
    }

    /// As containerd watches it: what it reads while the file is being made has no network yet, and of the making it hears nothing.
    #[test]
    fn a_runtime_is_told_of_the_network_when_it_is_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.cni.conf_dir = dir.path().to_owned();
        let watch = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
        let heard = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_DELETE;
        watch.add_watch(dir.path(), heard).unwrap();
        for _ in 0..2 {
            install_conflist(&config).unwrap();
            let events = watch.read_events().unwrap();
            let last = events.last().and_then(|event| event.name.clone());
            assert_eq!(last.as_deref(), Some(CONFLIST.as_ref()), "{events:?}");
        }
    }

    #[test]
    fn a_plugin_that_is_not_there_is_named() {
        let error = install_plugin(&Config::default(), Some("/nonexistent/weft-cni".as_ref())).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/weft-cni"), "{error}");
    }
}
