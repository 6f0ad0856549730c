// SPDX-License-Identifier: Apache-2.0
//! Whose each address is, following the changes of pods, nodes and attachments.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use weft_api::PodRef;

use crate::{
    model::{Attachment, NodeFacts, ObjectKey, Snapshot},
    plan::{
        places::Places,
        pods::{self, Owners, PodEntry},
    },
};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    places: Places,
    /// Pods that say that an address is their own, believed or not.
    claims: BTreeSet<(IpAddr, ObjectKey)>,
    /// What this node attached itself, whatever the API says.
    certain: BTreeMap<IpAddr, Option<PodRef>>,
    /// Claims that are not believed.
    foreign: BTreeSet<(ObjectKey, IpAddr)>,
    dirty: BTreeSet<IpAddr>,
}

impl Addresses {
    /// A pod has changed.
    pub(super) fn touch(&mut self, key: &ObjectKey, before: Option<PodEntry<'_>>, after: Option<PodEntry<'_>>) {
        let claims = |pod: Option<PodEntry<'_>>| pod.map(PodEntry::claims).unwrap_or_default();
        let (before, after) = (claims(before), claims(after));
        for address in before.difference(&after) {
            self.claims.remove(&(*address, key.clone()));
        }
        for address in after.difference(&before) {
            self.claims.insert((*address, key.clone()));
        }
        for address in before {
            self.foreign.remove(&(key.clone(), address));
            self.dirty.insert(address);
        }
        self.dirty.extend(after);
    }

    /// What a pod that attachments name has may be another's now.
    pub(super) fn touch_attached(&mut self, key: &ObjectKey) {
        let of_pod = |pod: &Option<PodRef>| {
            pod.as_ref().is_some_and(|pod| key.namespace == pod.namespace && key.name == pod.name)
        };
        self.dirty.extend(self.certain.iter().filter(|(_, pod)| of_pod(pod)).map(|(address, _)| *address));
    }

    /// Nodes, or this node's pod CIDRs, have changed.
    pub(super) fn follow_nodes(&mut self, snapshot: &Snapshot, facts: &NodeFacts) {
        let places = Places::new(snapshot, facts);
        for net in places.differing(&self.places) {
            let claims = self.claims.range((net.network(), ObjectKey::default())..);
            self.dirty.extend(claims.map(|(address, _)| *address).take_while(|address| *address <= net.broadcast()));
        }
        self.places = places;
    }

    /// See [`super::Planner::pack`].
    pub(super) fn pack(&mut self) {
        self.claims = std::mem::take(&mut self.claims).into_iter().collect();
    }

    /// Attachments have changed.
    pub(super) fn follow_attachments(&mut self, attachments: &[Arc<Attachment>]) {
        let mut certain = BTreeMap::new();
        for attachment in pods::in_order(attachments) {
            for assigned in &attachment.allocation.addresses {
                certain.entry(assigned.address.addr()).or_insert_with(|| attachment.spec.pod.clone());
            }
        }
        let differs = |address: &IpAddr| certain.get(address) != self.certain.get(address);
        let all = certain.keys().chain(self.certain.keys()).copied();
        self.dirty.extend(all.filter(differs).collect::<Vec<_>>());
        self.certain = certain;
    }

    /// The pods that say that an address is their own.
    fn claims_to(&self, address: IpAddr) -> impl Iterator<Item = &ObjectKey> {
        let claims = self.claims.range((address, ObjectKey::default())..);
        claims.take_while(move |(claimed, _)| *claimed == address).map(|(_, key)| key)
    }

    /// Whose an address is; none within: a workload here without a known pod.
    pub(super) fn owner<'s>(&self, snapshot: &'s Snapshot, address: IpAddr) -> Option<Option<PodEntry<'s>>> {
        if let Some(pod) = self.certain.get(&address) {
            return Some(pod.as_ref().and_then(|pod| pods::find(snapshot, pod)));
        }
        let entries = self
            .claims_to(address)
            .filter_map(|key| snapshot.pods.get_key_value(key))
            .map(|(key, pod)| PodEntry { key, pod });
        let believed = entries.filter(|entry| entry.is_at_home(address, &self.places));
        believed.max_by(|one, other| one.precedence().cmp(&other.precedence())).map(Some)
    }

    /// The name of the pod that has an address.
    pub(super) fn name(&self, snapshot: &Snapshot, address: IpAddr) -> Option<String> {
        let known = self.owner(snapshot, address)?.map(|entry| entry.key.to_string());
        let told = || self.certain.get(&address)?.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name));
        known.or_else(told)
    }

    /// Every address.
    pub(super) fn owners<'s>(&self, snapshot: &'s Snapshot) -> Owners<'s> {
        let claimed = self.claims.iter().map(|(address, _)| *address);
        let all: BTreeSet<IpAddr> = claimed.chain(self.certain.keys().copied()).collect();
        all.into_iter().filter_map(|address| Some((address, self.owner(snapshot, address)?))).collect()
    }

    /// The addresses that may have other owners, or owners of other labels, than at the last call.
    pub(super) fn take_dirty(&mut self, snapshot: &Snapshot) -> BTreeSet<IpAddr> {
        let dirty = std::mem::take(&mut self.dirty);
        for address in &dirty {
            let claims: Vec<ObjectKey> = self.claims_to(*address).cloned().collect();
            for key in &claims {
                let Some(pod) = snapshot.pods.get(key) else { continue };
                if (PodEntry { key, pod }).is_at_home(*address, &self.places) {
                    self.foreign.remove(&(key.clone(), *address));
                } else {
                    self.foreign.insert((key.clone(), *address));
                }
            }
        }
        dirty
    }

    /// Claims that are not believed.
    pub(super) fn problems(&self, snapshot: &Snapshot, problems: &mut Vec<String>) {
        let is_owner = |key: &ObjectKey, address| {
            self.owner(snapshot, address).is_some_and(|owner| owner.is_some_and(|owner| owner.key == key))
        };
        let entry = |(key, address): &(ObjectKey, IpAddr)| {
            let (key, pod) = snapshot.pods.get_key_value(key)?;
            (!is_owner(key, *address)).then_some((PodEntry { key, pod }, *address))
        };
        let foreign: Vec<_> = self.foreign.iter().filter_map(entry).collect();
        pods::tell_foreign(foreign.into_iter(), problems);
    }
}
