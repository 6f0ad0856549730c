// SPDX-License-Identifier: Apache-2.0
//! Which pod has which address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use weft_api::PodRef;

use crate::{
    model::{
        Attachment, Labels, ObjectKey, Snapshot,
        objects::{Pod, Uid},
    },
    plan::places::Places,
};

/// Pods whose addresses are not believed and that are named, at most.
const NAMED: usize = 10;

/// A pod with its key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PodEntry<'a> {
    pub(crate) key: &'a ObjectKey,
    pub(crate) pod: &'a Pod,
}

/// Addresses and whose they are; none: a local workload without a (known) pod, which no selector matches but those that mean all pods.
pub(crate) type Owners<'a> = BTreeMap<IpAddr, Option<PodEntry<'a>>>;

impl<'a> PodEntry<'a> {
    /// The pod's labels.
    pub(crate) fn labels(self) -> &'a Labels {
        static NONE: Labels = Labels::new();
        self.pod.metadata.labels.as_deref().unwrap_or(&NONE)
    }

    /// The addresses that it says are its own, each once; none where pod selectors of policies may not mean them.
    pub(crate) fn claims(self) -> BTreeSet<IpAddr> {
        if self.is_peer() { self.pod.addresses.iter().copied().collect() } else { BTreeSet::new() }
    }

    /// Whether what it says of an address is believed.
    pub(crate) fn is_at_home(self, address: IpAddr, places: &Places) -> bool {
        let node = self.pod.node.as_deref();
        node.is_some() && places.node_of(address) == node
    }

    /// Whether pod selectors of policies may mean its addresses: not on the host's network, and not over.
    fn is_peer(self) -> bool {
        !self.pod.host_network && !self.pod.is_over
    }

    /// Which of two claims to an address is the later one: the kubelet gives an address away only after its last owner has
    /// stopped, but the API may still show that one.
    pub(crate) fn precedence(self) -> impl Ord + use<'a> {
        let metadata = &self.pod.metadata;
        (metadata.deletion_timestamp.is_none(), metadata.creation_timestamp.as_ref(), self.key)
    }
}

/// The pod that an attachment names, if the snapshot has exactly this one; a pod of the same name with another uid is its
/// predecessor or successor.
pub(crate) fn find<'a>(snapshot: &'a Snapshot, wanted: &PodRef) -> Option<PodEntry<'a>> {
    let key = ObjectKey::new(&wanted.namespace, &wanted.name);
    let (key, pod) = snapshot.pods.get_key_value(&key)?;
    let metadata = &pod.metadata;
    let same = match (&wanted.uid, &metadata.uid) {
        (Some(wanted), Some(uid)) => *uid == Uid::from(&**wanted) || metadata.mirrored() == Some(wanted),
        _ => true,
    };
    same.then_some(PodEntry { key, pod })
}

/// Attachments by id: where two claim the same, the first counts.
pub(crate) fn in_order(attachments: &[Arc<Attachment>]) -> Vec<&Attachment> {
    let mut ordered: Vec<&Attachment> = attachments.iter().map(|attachment| &**attachment).collect();
    ordered.sort_by(|a, b| a.spec.id.cmp(&b.spec.id));
    ordered
}

/// Addresses that pods claim outside of their node's pod CIDRs.
pub(crate) fn tell_foreign<'a>(
    foreign: impl ExactSizeIterator<Item = (PodEntry<'a>, IpAddr)>,
    problems: &mut Vec<String>,
) {
    let all = foreign.len();
    for (entry, address) in foreign.take(NAMED) {
        let node = entry.pod.node.as_deref().unwrap_or("(none)");
        problems.push(format!(
            "Pod {}: status.podIPs {address} is in no pod CIDR of its node {node}: policies do not take it for this pod's; see \
             spec.podCIDRs of the Node, and who writes the pod's status",
            entry.key
        ));
    }
    if all > NAMED {
        problems.push(format!("{} more addresses of pods are in no pod CIDR of the pod's node", all - NAMED));
    }
}
