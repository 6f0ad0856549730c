// SPDX-License-Identifier: Apache-2.0
//! Removes everything that the agent made.

use std::{fs, io, path::Path};

use anyhow::{Context as _, Result};

use super::{host, install, interim, lock, memory, remembered, vhost_folder};
use crate::{
    attachment::{Attachments, Settings, pending},
    config::Config,
    device::{self, links},
    file::{self, gone},
    vhost::{self, Cgroups},
};

/// Removes the network configuration and the plugin, the links of workloads, programs, maps, devices, routes and state.
///
/// Workloads lose their network: without programs their links would lead past the dataplane.
///
/// # Errors
/// The agent runs, or something cannot be removed; a second call goes on from there.
pub async fn run(config: &Config) -> Result<()> {
    let _lock = lock(config)?;
    install::remove(config)?;
    let devices = vhost_folder(config);
    vhost::remove_all(&devices, &Cgroups::find())
        .await
        .with_context(|| format!("cannot end the devices in {}", devices.display()))?;
    remove_links(config).await?;
    weft_dataplane::remove_everything(&config.pin_dir).context("cannot remove programs and maps")?;
    device::remove().await.context("cannot remove devices and routes")?;
    let state = &config.state_dir;
    for folder in [state.join(crate::attachment::FOLDER), pending::folder(state), install::plugin_records(config)] {
        absent(&folder, fs::remove_dir_all(&folder))?;
    }
    let run = &config.run_dir;
    let files = [config.socket.clone(), memory::node_path(state), host::state_path(run), interim::path(run)];
    let files = files.into_iter().chain(remembered::paths(state));
    for path in files.chain(memory::left_by_earlier_versions(&config.run_dir)) {
        absent(&path, file::remove(&path))?;
    }
    remove_if_empty(state)?;
    tracing::info!("removed links, programs, maps, devices, routes and the network configuration");
    Ok(())
}

/// Waits for the signal to end, with nothing left to do: for a DaemonSet, whose pods must not end by themselves.
///
/// # Errors
/// Signals cannot be waited for.
pub async fn stay() -> Result<()> {
    tracing::info!("staying until SIGTERM");
    super::ended().await.map(drop)
}

async fn remove_links(config: &Config) -> Result<()> {
    let settings = Settings { mtu: 0, dns: config.dns.clone().into(), socket_dir: config.run_dir.clone() };
    let attachments = Attachments::open(&config.state_dir, &[], settings)?;
    for link in attachments.all().filter_map(|record| record.link.as_ref()) {
        let found = links::find(&link.ifname).await?;
        if found.is_some_and(|found| found.index == link.ifindex) {
            tracing::info!(ifname = link.ifname, "removing the link of a workload");
            links::delete(&link.ifname).await?;
        }
    }
    Ok(())
}

/// What is in it beside the agent's files is not the agent's; in a pod the folder is a mount in what is
/// read-only.
fn remove_if_empty(folder: &Path) -> Result<()> {
    use io::ErrorKind::{DirectoryNotEmpty, ReadOnlyFilesystem, ResourceBusy};
    match fs::remove_dir(folder) {
        Err(error) if matches!(error.kind(), DirectoryNotEmpty | ReadOnlyFilesystem | ResourceBusy) => Ok(()),
        removed => absent(folder, removed),
    }
}

/// What is gone already is fine.
fn absent(path: &Path, result: io::Result<()>) -> Result<()> {
    gone(result).with_context(|| format!("cannot remove {}", path.display()))
}
