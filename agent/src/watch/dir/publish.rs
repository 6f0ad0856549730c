// SPDX-License-Identifier: Apache-2.0
//! What this node tells the others where no API server does it: its Node, and status and place of its Pods.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{Node, NodeAddress, NodeSpec, NodeStatus, Pod, PodIP, PodSpec, PodStatus},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    file,
    model::{Attachment, ObjectKey},
    watch::{NodeRecord, dir::folder::RUNTIME},
};

/// The shared folder cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {call} {path}: {source}")]
pub struct PublishError {
    /// What was tried.
    pub call: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

/// Tells the other agents of this node and its workloads: writes `DIR/.weft/NODE/node.yaml` and `pods.yaml`, each
/// atomically and only where it says something new. Labels are not told: they are in the user's manifests. A workload
/// without a pod stays unknown to the others.
///
/// # Errors
/// [`PublishError`] where the folder cannot be written; the next call does the rest.
pub fn publish(dir: &Path, node: &NodeRecord, attachments: &[Arc<Attachment>]) -> Result<(), PublishError> {
    let folder = dir.join(RUNTIME).join(&node.name);
    let failed = |call, source| PublishError { call, path: folder.clone(), source };
    if node.name.is_empty() || node.name.starts_with('.') || node.name.contains('/') {
        return Err(failed("use the node's name as a folder", io::ErrorKind::InvalidInput.into()));
    }
    fs::create_dir_all(&folder).map_err(|source| failed("create", source))?;
    write(&folder.join("node.yaml"), &yaml(&[node_object(node)]))?;
    write(&folder.join("pods.yaml"), &yaml(&pod_objects(&node.name, attachments)))
}

fn node_object(node: &NodeRecord) -> Node {
    let address = |address: &IpAddr| NodeAddress { address: address.to_string(), type_: "InternalIP".to_owned() };
    let cidrs: Vec<String> = node.pod_cidrs.iter().map(|net| net.trunc().to_string()).collect();
    Node {
        metadata: ObjectMeta { name: Some(node.name.clone()), ..ObjectMeta::default() },
        spec: Some(NodeSpec { pod_cidr: cidrs.first().cloned(), pod_cidrs: Some(cidrs), ..NodeSpec::default() }),
        status: Some(NodeStatus {
            addresses: Some(node.addresses.iter().map(address).collect()),
            ..NodeStatus::default()
        }),
    }
}

fn pod_objects(node: &str, attachments: &[Arc<Attachment>]) -> Vec<Pod> {
    let mut pods: BTreeMap<ObjectKey, Vec<&Attachment>> = BTreeMap::new();
    for attachment in attachments {
        if let Some(pod) = &attachment.spec.pod {
            pods.entry(ObjectKey::new(&pod.namespace, &pod.name)).or_default().push(attachment);
        }
    }
    pods.into_iter().map(|(key, attachments)| pod_object(node, key, attachments)).collect()
}

/// The first interface's addresses come first: they are the ones that Services lead to.
fn pod_object(node: &str, key: ObjectKey, mut attachments: Vec<&Attachment>) -> Pod {
    attachments.sort_by_key(|attachment| (attachment.spec.id.ifname != "eth0", &attachment.spec.id));
    let addresses = attachments.iter().flat_map(|attachment| &attachment.allocation.addresses);
    let ips: Vec<PodIP> = addresses.map(|address| PodIP { ip: address.address.addr().to_string() }).collect();
    Pod {
        metadata: ObjectMeta {
            name: Some(key.name.to_string()),
            namespace: Some(key.namespace.to_string()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec { node_name: Some(node.to_owned()), ..PodSpec::default() }),
        status: Some(PodStatus {
            pod_ip: ips.first().map(|ip| ip.ip.clone()),
            pod_ips: Some(ips),
            ..PodStatus::default()
        }),
    }
}

fn yaml<K: serde::Serialize>(objects: &[K]) -> String {
    let documents = objects.iter().filter_map(|object| serde_yaml::to_string(object).ok());
    documents.map(|document| format!("---\n{document}")).collect()
}

fn write(path: &Path, text: &str) -> Result<(), PublishError> {
    let failed = |source| PublishError { call: "write", path: path.to_owned(), source };
    if fs::read_to_string(path).is_ok_and(|known| known == text) {
        return file::settle(path).map_err(failed);
    }
    file::replace(path, |file| file.write_all(text.as_bytes())).map_err(failed)
}
