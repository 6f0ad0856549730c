// SPDX-License-Identifier: Apache-2.0
//! Tells what changes in the cluster, from the API server or from a folder of manifests. After this room
//! nobody knows which of the two it was.

use std::{fmt, net::IpAddr, path::PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::ObjectKey;

pub mod dir;
mod feed;
pub mod kubernetes;

pub use feed::Feed;
#[cfg(test)]
pub(crate) use feed::Reader;
pub(crate) use feed::{Teller, channel};

/// Where objects come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Source {
    /// The Kubernetes API server.
    Kubernetes(ApiServer),
    /// A folder of manifests that all agents share.
    Dir(PathBuf),
}

/// `kubernetes` or `dir:PATH`, as in the configuration.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubernetes(_) => f.write_str("kubernetes"),
            Self::Dir(path) => write!(f, "dir:{}", path.display()),
        }
    }
}

/// How to reach the API server.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ApiServer {
    /// `https://ADDR:PORT`; replaces what the kubeconfig or the environment says.
    pub server: Option<String>,
    /// Credentials; without it the service account's files.
    pub kubeconfig: Option<PathBuf>,
}

/// What a node tells the others of itself where no API server does (see [`dir::publish()`]).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct NodeRecord {
    /// Name.
    pub name: String,
    /// Pod CIDRs, one per family.
    pub pod_cidrs: Vec<IpNet>,
    /// Underlay addresses (`InternalIP`).
    pub addresses: Vec<IpAddr>,
}

/// Starts to watch; must be called within a tokio runtime. It ends when the feed is dropped.
///
/// What goes wrong never ends it: [`crate::model::Standing::error`] says why the source does not answer,
/// [`crate::model::Standing::problems`] which objects were refused, and the last good state stays.
#[must_use]
pub fn start(source: Source, node: &str) -> Feed {
    let (teller, feed) = channel();
    tracing::info!(%source, node, "watching");
    match source {
        Source::Kubernetes(server) => drop(tokio::spawn(kubernetes::run(server, node.to_owned(), teller))),
        Source::Dir(path) => drop(tokio::spawn(dir::run(path, teller))),
    }
    feed
}

/// The key of an object with this metadata.
fn key_of(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> ObjectKey {
    ObjectKey::new(metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}
