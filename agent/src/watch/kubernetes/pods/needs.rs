// SPDX-License-Identifier: Apache-2.0
//! Which pods policies of this node ask for.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::scope::{self, Namespaces, Scope};
use crate::{
    model::{
        Changed, Deltas, Name, ObjectKey,
        objects::{Namespace, NetworkPolicy, Pod},
        of_namespace,
    },
    plan::{Labels, PodPeer, PolicyForm, Selector},
};

/// Peers of one policy that are told apart: with more it is taken to mean all pods, so that nobody's policy is much work.
const MANY: usize = 200;

/// See the module.
#[derive(Debug)]
pub(super) struct Needs {
    node: String,
    namespaces: Namespaces,
    /// Labels of this node's pods.
    local: BTreeMap<ObjectKey, Option<Arc<Labels>>>,
    policies: BTreeMap<ObjectKey, Policy>,
}

/// What a policy asks for.
#[derive(Debug)]
struct Policy {
    selector: Selector,
    peers: Box<[PodPeer]>,
    /// It selects a pod of this node.
    selects: bool,
}

impl Needs {
    pub(super) fn new(node: &str) -> Self {
        let (namespaces, local, policies) = (Namespaces::new(), BTreeMap::new(), BTreeMap::new());
        Self { node: node.to_owned(), namespaces, local, policies }
    }

    pub(super) const fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// Takes note of changes; the peers that are asked for now, and that are not `covered`.
    pub(super) fn update(
        &mut self,
        deltas: &Deltas,
        covered: impl Fn(&PodPeer, &Namespaces) -> bool,
    ) -> BTreeSet<PodPeer> {
        let namespaces = self.update_namespaces(&deltas.namespaces);
        let pods = self.update_pods(&deltas.pods);
        let mut touched = self.update_policies(&deltas.policies);
        for pod in &pods {
            touched.extend(of_namespace(&self.policies, &pod.namespace).map(|(key, _)| key.clone()));
        }
        for key in &touched {
            let selects = self.policies.get(key).is_some_and(|policy| self.selects(key, policy));
            self.policies.entry(key.clone()).and_modify(|policy| policy.selects = selects);
        }
        let of_touched = touched.iter().flat_map(|key| self.peers_of(key));
        let mean = |peer: &&PodPeer| {
            let labels = |name: &Name| self.namespaces.get(name);
            namespaces.iter().any(|name| peer.namespaces.matches(name, labels(name)))
        };
        // Most changes are not of namespaces.
        let of_namespaces = (!namespaces.is_empty()).then(|| self.peers().filter(mean)).into_iter().flatten();
        let all = of_touched.chain(of_namespaces);
        all.filter(|peer| !covered(peer, &self.namespaces)).cloned().collect()
    }

    /// Peers that are asked for and not `covered`.
    pub(super) fn uncovered(&self, covered: impl Fn(&PodPeer) -> bool) -> BTreeSet<PodPeer> {
        self.peers().filter(|peer| !covered(peer)).cloned().collect()
    }

    /// Whether a pod is of this node.
    pub(super) fn is_local(&self, pod: &ObjectKey) -> bool {
        self.local.contains_key(pod)
    }

    /// Scopes that have all pods that are asked for.
    pub(super) fn scopes(&self) -> BTreeSet<Scope> {
        scope::scopes(self.peers(), &self.namespaces)
    }

    /// Scopes that have all pods that `peers` mean.
    pub(super) fn scopes_of(&self, peers: &BTreeSet<PodPeer>) -> BTreeSet<Scope> {
        scope::scopes(peers.iter(), &self.namespaces)
    }

    /// Whether a scope has pods that are asked for.
    pub(super) fn use_of(&self, scope: &Scope) -> bool {
        self.peers().any(|peer| scope::serves(scope, peer, &self.namespaces))
    }

    /// The peers of a policy, where it selects a pod of this node.
    pub(super) fn peers_of(&self, policy: &ObjectKey) -> impl Iterator<Item = &PodPeer> {
        self.policies.get(policy).filter(|policy| policy.selects).into_iter().flat_map(|policy| &policy.peers)
    }

    /// The policies that select a pod of this node.
    pub(super) fn selecting<'a>(&'a self, pod: &'a ObjectKey) -> impl Iterator<Item = &'a ObjectKey> {
        let labels = self.local.get(pod);
        let selecting = labels.into_iter().flat_map(|labels| {
            let selected = move |policy: &Policy| matches(&policy.selector, labels.as_ref());
            of_namespace(&self.policies, &pod.namespace).filter(move |(_, policy)| selected(policy))
        });
        selecting.map(|(key, _)| key)
    }

    fn peers(&self) -> impl Iterator<Item = &PodPeer> {
        self.policies.values().filter(|policy| policy.selects).flat_map(|policy| &policy.peers)
    }

    fn selects(&self, key: &ObjectKey, policy: &Policy) -> bool {
        let mut pods = of_namespace(&self.local, &key.namespace);
        pods.any(|(_, labels)| matches(&policy.selector, labels.as_ref()))
    }

    /// The namespaces with other labels than before.
    fn update_namespaces(&mut self, changed: &Changed<Namespace>) -> BTreeSet<Name> {
        let mut touched = BTreeSet::new();
        if changed.all {
            self.namespaces.retain(|name, _| changed.objects.contains_key(&ObjectKey::new("", name)));
        }
        for (key, namespace) in &changed.objects {
            let labels = namespace.as_ref().map(|namespace| namespace.selected_labels());
            if self.namespaces.get(&key.name) != labels.as_ref() {
                touched.insert(key.name.clone());
            }
            match labels {
                Some(labels) => drop(self.namespaces.insert(key.name.clone(), labels)),
                None => drop(self.namespaces.remove(&key.name)),
            }
        }
        touched
    }

    /// The pods of this node that came, went, or have other labels.
    fn update_pods(&mut self, changed: &Changed<Pod>) -> BTreeSet<ObjectKey> {
        let mut touched = BTreeSet::new();
        for (key, pod) in &changed.objects {
            let here = pod.as_ref().filter(|pod| pod.node.as_deref() == Some(&*self.node));
            let Some(pod) = here else {
                touched.extend(self.local.remove(key).map(|_| key.clone()));
                continue;
            };
            if self.local.get(key) != Some(&pod.metadata.labels) {
                self.local.insert(key.clone(), pod.metadata.labels.clone());
                touched.insert(key.clone());
            }
        }
        touched
    }

    fn update_policies(&mut self, changed: &Changed<NetworkPolicy>) -> BTreeSet<ObjectKey> {
        if changed.all {
            self.policies.retain(|key, _| changed.objects.contains_key(key));
        }
        for (key, policy) in &changed.objects {
            let Some(policy) = policy else {
                self.policies.remove(key);
                continue;
            };
            let form = PolicyForm::read(policy.spec().as_ref(), &key.namespace);
            let mut peers = form.pod_peers();
            if peers.len() > MANY {
                peers = BTreeSet::from([PodPeer::all()]);
            }
            let peers = peers.into_iter().collect();
            self.policies.insert(key.clone(), Policy { selector: form.selector, peers, selects: false });
        }
        changed.objects.keys().cloned().collect()
    }
}

fn matches(selector: &Selector, labels: Option<&Arc<Labels>>) -> bool {
    static NONE: Labels = Labels::new();
    selector.matches(labels.map_or(&NONE, |labels| labels))
}
