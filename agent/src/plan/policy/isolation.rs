// SPDX-License-Identifier: Apache-2.0
//! Which policies select which workload of this node.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    model::{Attachment, ObjectKey, Snapshot, objects::PodPort, of_namespace},
    plan::{
        pods::{self, PodEntry},
        policy::{
            peers::NamedPort,
            rules::{Direction, PolicyForm},
        },
    },
};

/// Every policy by its key.
pub(crate) type Forms = BTreeMap<ObjectKey, PolicyForm>;

/// One direction of one combination of selecting policies; shared by all workloads that have it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct PolicySet {
    /// The policies, by key. None at all: everything is denied (the workload's pod is not known).
    pub(crate) policies: Vec<ObjectKey>,
    /// How the selected pod numbers the ports that ingress rules name.
    pub(crate) named: BTreeMap<NamedPort, BTreeSet<u16>>,
}

/// The sets that isolate one workload; none: not isolated that way.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Isolated {
    pub(crate) ingress: Option<SetKey>,
    pub(crate) egress: Option<SetKey>,
}

/// Canonical text of a set, under which it is numbered.
pub(crate) type SetKey = (Direction, String);

/// Who is isolated by what.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Isolation {
    /// Every set that some workload needs.
    pub(crate) sets: BTreeMap<SetKey, PolicySet>,
    /// By the attachment's id as text.
    pub(crate) workloads: BTreeMap<String, Isolated>,
    /// Pods of this node that each policy selects.
    pub(crate) selected: BTreeMap<ObjectKey, BTreeSet<String>>,
}

/// The set of a workload whose pod is not known.
const UNKNOWN_POD: &str = "unknown pod";

/// Finds the sets of every workload.
pub(crate) fn isolate(snapshot: &Snapshot, attachments: &[Attachment], forms: &Forms) -> Isolation {
    let mut by_namespace: BTreeMap<&str, Vec<(&ObjectKey, &PolicyForm)>> = BTreeMap::new();
    // A state that is remembered may lack a policy that selects the pod.
    let is_current = snapshot.synced && snapshot.remembered.is_none();
    let mut isolation = Isolation::default();
    for attachment in attachments {
        let Some(pod) = &attachment.spec.pod else { continue };
        let policies = by_namespace.entry(&pod.namespace);
        let policies = &*policies.or_insert_with(|| of_namespace(forms, &pod.namespace).collect());
        let isolated = match pods::find(snapshot, pod) {
            Some(entry) => isolation.known(entry, policies),
            None if is_current && policies.is_empty() => Isolated::default(),
            None => isolation.unknown(),
        };
        isolation.workloads.insert(attachment.spec.id.to_string(), isolated);
    }
    isolation
}

impl Isolation {
    fn known(&mut self, pod: PodEntry<'_>, policies: &[(&ObjectKey, &PolicyForm)]) -> Isolated {
        let labels = pod.labels();
        let selecting: Vec<_> = policies.iter().filter(|(_, form)| form.selector.matches(labels)).collect();
        for (key, _) in &selecting {
            self.selected.entry((*key).clone()).or_default().insert(pod.key.to_string());
        }
        let mut set = |direction| {
            let isolating: Vec<_> =
                selecting.iter().filter(|(_, form)| form.rules_of(direction).is_some()).map(|entry| **entry).collect();
            (!isolating.is_empty()).then(|| self.set_of(direction, &isolating, pod))
        };
        Isolated { ingress: set(Direction::Ingress), egress: set(Direction::Egress) }
    }

    fn set_of(&mut self, direction: Direction, isolating: &[(&ObjectKey, &PolicyForm)], pod: PodEntry<'_>) -> SetKey {
        let mut set =
            PolicySet { policies: isolating.iter().map(|(key, _)| (*key).clone()).collect(), named: BTreeMap::new() };
        if direction == Direction::Ingress {
            let names: BTreeSet<_> = isolating.iter().flat_map(|(_, form)| ingress_names(form)).collect();
            if !names.is_empty() {
                set.named = names.into_iter().map(|name| (name.clone(), resolve(name, &pod.pod.ports))).collect();
            }
        }
        let key = (direction, set.text());
        self.sets.entry(key.clone()).or_insert(set);
        key
    }

    fn unknown(&mut self) -> Isolated {
        let [ingress, egress] = [Direction::Ingress, Direction::Egress].map(|direction| {
            let key = (direction, UNKNOWN_POD.to_owned());
            self.sets.entry(key.clone()).or_default();
            Some(key)
        });
        Isolated { ingress, egress }
    }

    /// The names of a set's policies, for people.
    pub(crate) fn policy_names(&self, key: Option<&SetKey>) -> Vec<String> {
        let Some(key) = key else { return Vec::new() };
        let policies = self.sets.get(key).map_or(&[][..], |set| set.policies.as_slice());
        if policies.is_empty() {
            return vec!["(closed until the pod is known)".to_owned()];
        }
        policies.iter().map(ToString::to_string).collect()
    }
}

fn ingress_names(form: &PolicyForm) -> impl Iterator<Item = &NamedPort> {
    form.ingress.iter().flatten().flat_map(|rule| &rule.named)
}

/// The numbers that a pod gives to a port's name.
pub(crate) fn resolve(wanted: &NamedPort, ports: &[PodPort]) -> BTreeSet<u16> {
    let matching = ports.iter().filter(|port| port.name == wanted.name && port.protocol == wanted.protocol);
    matching.map(|port| port.number).collect()
}

impl PolicySet {
    fn text(&self) -> String {
        let mut text: Vec<String> = self.policies.iter().map(ToString::to_string).collect();
        text.extend(self.named.iter().map(|(name, numbers)| format!("{name}={numbers:?}")));
        text.join(" ")
    }
}
