// SPDX-License-Identifier: Apache-2.0
//! All files to one snapshot: what the user wrote, completed by what the agents of the nodes tell.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{Namespace, Node, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    model::ObjectKey,
    watch::dir::{
        derive,
        folder::{File, RUNTIME},
        object::{Name, Object, Written},
    },
};

/// The snapshot of all files together.
pub(crate) fn snapshot(files: &BTreeMap<PathBuf, File>) -> Written {
    let mut snapshot = Written::default();
    let (told, written): (Vec<_>, Vec<_>) = files.iter().partition(|(path, _)| path.starts_with(RUNTIME));
    let mut owners = BTreeMap::new();
    for (path, file) in &written {
        snapshot.problems.extend(file.problems.iter().cloned());
        for object in &file.objects {
            add_written(&mut snapshot, &mut owners, path, object);
        }
    }
    for (path, file) in &told {
        snapshot.problems.extend(file.problems.iter().cloned());
        for object in &file.objects {
            add_told(&mut snapshot, path, object);
        }
    }
    add_namespaces(&mut snapshot);
    for slice in derive::slices(&snapshot) {
        snapshot.slices.insert(crate::watch::key_of(&slice.metadata), Arc::new(slice));
    }
    snapshot
}

/// An object that the user wrote; the first file in order counts where two have the same.
fn add_written<'a>(snapshot: &mut Written, owners: &mut BTreeMap<Name, &'a Path>, path: &'a Path, object: &Object) {
    let name = object.name();
    if let Some(first) = owners.get(&name) {
        let (path, first) = (path.display(), first.display());
        snapshot.problems.push(format!("{path}: {name} is in {first} already, which counts; remove one of them"));
        return;
    }
    object.insert(name.key.clone(), snapshot);
    owners.insert(name, path);
}

/// What an agent tells: labels and the like are the user's, addresses and places the agent's.
fn add_told(snapshot: &mut Written, path: &Path, object: &Object) {
    let key = object.name().key;
    match object {
        Object::Pod(told) => match snapshot.pods.get_mut(&key) {
            Some(pod) => complete_pod(Arc::make_mut(pod), told),
            None => object.insert(key, snapshot),
        },
        Object::Node(told) => match snapshot.nodes.get_mut(&key) {
            Some(node) => complete_node(Arc::make_mut(node), told),
            None => object.insert(key, snapshot),
        },
        _ => {
            let (path, name) = (path.display(), object.name());
            snapshot
                .problems
                .push(format!("{path}: {name}: agents write Pods and Nodes here; move it out of {RUNTIME}"));
        }
    }
}

/// A second node that tells of the same pod (a VM on the move) adds addresses; the place stays the first one's.
fn complete_pod(pod: &mut Pod, told: &Pod) {
    let spec = pod.spec.get_or_insert_default();
    if spec.node_name.is_none() {
        spec.node_name = told.spec.as_ref().and_then(|spec| spec.node_name.clone());
    }
    let status = pod.status.get_or_insert_default();
    let ips = status.pod_ips.get_or_insert_default();
    for ip in told.status.iter().flat_map(|status| status.pod_ips.iter().flatten()) {
        if !ips.contains(ip) {
            ips.push(ip.clone());
        }
    }
}

fn complete_node(node: &mut Node, told: &Node) {
    // The user's come first: they are what the node shall have. What it tells beside them it still has workloads of.
    let cidrs = node.spec.get_or_insert_default().pod_cidrs.get_or_insert_default();
    for cidr in told.spec.iter().flat_map(|spec| spec.pod_cidrs.iter().flatten()) {
        if !cidrs.contains(cidr) {
            cidrs.push(cidr.clone());
        }
    }
    let addresses = told.status.as_ref().and_then(|status| status.addresses.clone());
    node.status.get_or_insert_default().addresses = addresses;
}

/// Namespaces need no manifest; the API server labels each with its name.
fn add_namespaces(snapshot: &mut Written) {
    let Written { pods, services, slices, policies, namespaces, .. } = snapshot;
    let keys = pods.keys().chain(services.keys()).chain(slices.keys()).chain(policies.keys());
    let used: BTreeSet<&str> = keys.map(|key| key.namespace.as_str()).collect();
    for name in used {
        namespaces.entry(ObjectKey::new("", name)).or_insert_with(|| {
            let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
            Arc::new(Namespace { metadata, ..Namespace::default() })
        });
    }
    for (key, namespace) in namespaces {
        let labels = Arc::make_mut(namespace).metadata.labels.get_or_insert_default();
        labels.insert("kubernetes.io/metadata.name".to_owned(), key.name.to_string());
    }
}
