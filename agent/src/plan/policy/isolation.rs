// SPDX-License-Identifier: Apache-2.0
//! Which policies select which workload of this node.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use crate::{
    model::{Attachment, HashKey, Name, ObjectKey, Snapshot, objects::PodPort, of_namespace},
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

/// What a set is known by.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct SetKey {
    pub(crate) direction: Direction,
    /// Of the policies and of the workloads.
    pub(crate) namespace: Name,
    /// Its policies and their named ports.
    pub(super) text: Arc<str>,
}

impl SetKey {
    /// What it is remembered by.
    pub(crate) fn name(&self, hash: HashKey) -> u64 {
        hash.of("set").text(&self.to_string()).finish()
    }
}

/// One text for one meaning.
impl fmt::Display for SetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { direction, namespace, text } = self;
        write!(f, "{direction} {namespace}: {text}")
    }
}

/// Who is isolated by what, namespace by namespace: a policy selects pods of its own alone.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Isolation(BTreeMap<Name, OfNamespace>);

/// In one namespace that has workloads here.
#[derive(Debug, Default, Eq, PartialEq)]
struct OfNamespace {
    /// Every set that some workload needs.
    sets: BTreeMap<SetKey, PolicySet>,
    /// By the attachment's id as text.
    workloads: BTreeMap<String, Isolated>,
    /// Pods of this node that each policy selects.
    selected: BTreeMap<ObjectKey, Vec<Arc<str>>>,
}

/// The set of a workload whose pod is not known.
const UNKNOWN_POD: &str = "unknown pod";

/// Finds the sets of every workload.
pub(crate) fn isolate(snapshot: &Snapshot, attachments: &[Arc<Attachment>], forms: &Forms) -> Isolation {
    isolate_some(snapshot, attachments, forms, |_| true)
}

/// As [`isolate`], for the namespaces that are `asked` for.
pub(crate) fn isolate_some(
    snapshot: &Snapshot,
    attachments: &[Arc<Attachment>],
    forms: &Forms,
    asked: impl Fn(&str) -> bool,
) -> Isolation {
    let mut by_namespace: BTreeMap<&str, Vec<(&ObjectKey, &PolicyForm)>> = BTreeMap::new();
    // A state that is remembered may lack a policy that selects the pod.
    let is_current = snapshot.synced && snapshot.remembered.is_none();
    let mut isolation = Isolation::default();
    for attachment in attachments {
        let Some(pod) = attachment.spec.pod.as_ref().filter(|pod| asked(&pod.namespace)) else { continue };
        let policies = by_namespace.entry(&pod.namespace);
        let policies = &*policies.or_insert_with(|| of_namespace(forms, &pod.namespace).collect());
        let namespace = Name::shared(&pod.namespace);
        let found = isolation.0.entry(namespace.clone()).or_default();
        let isolated = match pods::find(snapshot, pod) {
            Some(entry) => found.known(entry, policies),
            None if is_current && policies.is_empty() => Isolated::default(),
            None => found.unknown(&namespace),
        };
        found.workloads.insert(attachment.spec.id.to_string(), isolated);
    }
    isolation
}

impl Isolation {
    /// Every set that some workload needs.
    pub(crate) fn sets(&self) -> impl Iterator<Item = (&SetKey, &PolicySet)> {
        self.0.values().flat_map(|found| &found.sets)
    }

    /// The sets of one namespace.
    pub(crate) fn sets_in(&self, namespace: &Name) -> impl Iterator<Item = (&SetKey, &PolicySet)> {
        self.0.get(namespace).into_iter().flat_map(|found| &found.sets)
    }

    /// Namespaces that have workloads here.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &Name> {
        self.0.keys()
    }

    /// Whether a namespace has workloads here.
    pub(crate) fn has(&self, namespace: &Name) -> bool {
        self.0.contains_key(namespace)
    }

    /// One of them.
    pub(crate) fn set(&self, key: &SetKey) -> Option<&PolicySet> {
        self.0.get(&key.namespace)?.sets.get(key)
    }

    /// The policies of a set.
    pub(crate) fn policies_of(&self, key: &SetKey) -> &[ObjectKey] {
        self.set(key).map_or(&[], |set| &set.policies)
    }

    /// Every workload, by the attachment's id as text.
    pub(crate) fn workloads(&self) -> impl Iterator<Item = (&String, &Isolated)> {
        self.0.values().flat_map(|found| &found.workloads)
    }

    /// Pods of this node that a policy selects.
    pub(crate) fn selected(&self, policy: &ObjectKey) -> Option<&[Arc<str>]> {
        self.0.get(&policy.namespace)?.selected.get(policy).map(Vec::as_slice)
    }

    /// Puts these namespaces in the place of what they were; `newer` has them as far as workloads are there.
    pub(crate) fn replace(&mut self, namespaces: &BTreeSet<Name>, newer: Self) {
        self.0.retain(|name, _| !namespaces.contains(name));
        self.0.extend(newer.0);
    }

    /// The sets of some namespaces.
    pub(crate) fn sets_of<'a>(&'a self, namespaces: &'a BTreeSet<Name>) -> impl Iterator<Item = &'a SetKey> {
        namespaces.iter().filter_map(|name| self.0.get(name)).flat_map(|found| found.sets.keys())
    }

    /// The names of a set's policies, for people.
    fn policy_names(&self, key: Option<&SetKey>) -> Vec<String> {
        let Some(key) = key else { return Vec::new() };
        let policies = self.policies_of(key);
        if policies.is_empty() {
            return vec!["(closed until the pod is known)".to_owned()];
        }
        policies.iter().map(ToString::to_string).collect()
    }

    /// The names of the policies that isolate a workload, for ingress and for egress; none: it is not known.
    pub(crate) fn names_of(&self, workload: &str) -> Option<(Vec<String>, Vec<String>)> {
        let Isolated { ingress, egress } = self.0.values().find_map(|found| found.workloads.get(workload))?;
        Some((self.policy_names(ingress.as_ref()), self.policy_names(egress.as_ref())))
    }
}

impl OfNamespace {
    fn known(&mut self, pod: PodEntry<'_>, policies: &[(&ObjectKey, &PolicyForm)]) -> Isolated {
        let labels = pod.labels();
        let selecting: Vec<_> = policies.iter().filter(|(_, form)| form.selector.matches(labels)).collect();
        let name: Arc<str> = pod.key.to_string().into();
        for (key, _) in &selecting {
            let selected = self.selected.entry((*key).clone()).or_insert_with(|| Vec::with_capacity(1));
            if let Err(place) = selected.binary_search(&name) {
                selected.insert(place, name.clone());
            }
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
        let key = SetKey { direction, namespace: pod.key.namespace.clone(), text: set.text().into() };
        self.sets.entry(key.clone()).or_insert(set);
        key
    }

    fn unknown(&mut self, namespace: &Name) -> Isolated {
        let [ingress, egress] = [Direction::Ingress, Direction::Egress].map(|direction| {
            let key = SetKey { direction, namespace: namespace.clone(), text: UNKNOWN_POD.into() };
            self.sets.entry(key.clone()).or_default();
            Some(key)
        });
        Isolated { ingress, egress }
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
        let mut text: Vec<String> = self.policies.iter().map(|policy| policy.name.to_string()).collect();
        text.extend(self.named.iter().map(|(name, numbers)| format!("{name}={numbers:?}")));
        text.join(" ")
    }
}
