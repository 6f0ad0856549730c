// SPDX-License-Identifier: Apache-2.0
//! What a list or a watch of pods can ask for, and which of them make up all pods that policies of this node mean.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::Name;
use crate::plan::{Labels, Namespaces as Meant, PodPeer, Selector};

/// Watches of pods at most: beyond that all pods are watched. A watch is a connection to the API server, which in a large cluster
/// costs it less than to send every node every change of every pod.
pub(super) const MOST: usize = 62;
/// A peer of pods with some labels, in more namespaces than these, is one watch of all namespaces.
const FEW: usize = 4;
/// Bytes of a selector at most; a request's line has to pass every proxy.
const LONG: usize = 3000;
/// Selectors that are compared with each other, at most: beyond that all pods are watched.
const COMPARED: usize = 500;

/// Pods that a list or a watch asks for.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(in crate::watch::kubernetes) struct Scope {
    /// None: of all namespaces.
    pub(in crate::watch::kubernetes) namespace: Option<String>,
    /// With these labels.
    labels: Selector,
}

/// Labels of every namespace.
pub(super) type Namespaces = BTreeMap<Name, Labels>;

impl Scope {
    /// Every pod.
    pub(super) fn all() -> Self {
        Self { namespace: None, labels: Selector::everything() }
    }

    /// What to ask for as `labelSelector`; none: nothing.
    pub(in crate::watch::kubernetes) fn query(&self) -> Option<String> {
        self.labels.query().filter(|query| !query.is_empty())
    }

    /// Whether it has all pods of a namespace that `labels` select.
    fn covers(&self, namespace: Option<&str>, labels: &Selector) -> bool {
        let is_wide = self.namespace.is_none() || self.namespace.as_deref() == namespace;
        is_wide && self.labels.covers(labels)
    }
}

/// The namespaces that a peer means; none: all, whichever there are.
fn meant<'n>(peer: &'n PodPeer, namespaces: &'n Namespaces) -> Option<Vec<&'n str>> {
    match &peer.namespaces {
        Meant::Named(name) => Some(vec![name]),
        Meant::Matching(selector) if selector.is_everything() => None,
        Meant::Matching(selector) => {
            let matching = namespaces.iter().filter(|(_, labels)| selector.matches(labels));
            Some(matching.map(|(name, _)| name.as_str()).collect())
        }
    }
}

/// Whether `scopes` have all pods that `peer` means.
pub(super) fn cover<'s>(
    scopes: impl Iterator<Item = &'s Scope> + Clone,
    peer: &PodPeer,
    namespaces: &Namespaces,
) -> bool {
    let have = |namespace| scopes.clone().any(|scope| scope.covers(namespace, &peer.pods));
    have(None) || meant(peer, namespaces).is_some_and(|all| all.into_iter().all(|namespace| have(Some(namespace))))
}

/// Whether `scope` has pods that `peer` means, of a whole namespace at least.
pub(super) fn serves(scope: &Scope, peer: &PodPeer, namespaces: &Namespaces) -> bool {
    scope.labels.covers(&peer.pods)
        && match (&scope.namespace, meant(peer, namespaces)) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(namespace), Some(meant)) => meant.contains(&namespace.as_str()),
        }
}

/// Scopes that have all pods that `peers` mean: few rather than narrow.
pub(super) fn scopes<'p>(peers: impl Iterator<Item = &'p PodPeer>, namespaces: &Namespaces) -> BTreeSet<Scope> {
    let mut wanted = Wanted::default();
    for peer in peers {
        wanted.add(peer, namespaces);
    }
    wanted.into_scopes()
}

/// Selectors by namespace; none: of all.
#[derive(Default)]
struct Wanted(BTreeMap<Option<String>, BTreeSet<Selector>>);

impl Wanted {
    fn add(&mut self, peer: &PodPeer, namespaces: &Namespaces) {
        // What no query can say is asked for without one. Many values of one key become several queries.
        let is_query = |query: String| query.len() <= LONG || peer.pods.values().is_some();
        let can_be_asked = peer.pods.query().is_some_and(is_query);
        let labels = if can_be_asked { peer.pods.clone() } else { Selector::everything() };
        let meant = meant(peer, namespaces);
        let few = meant.filter(|meant| labels.is_everything() || meant.len() <= FEW);
        let places = few.map_or_else(|| vec![None], |few| few.into_iter().map(|name| Some(name.to_owned())).collect());
        for place in places {
            self.0.entry(place).or_default().insert(labels.clone());
        }
    }

    fn into_scopes(mut self) -> BTreeSet<Scope> {
        let others = self.0.values().flatten().filter(|selector| selector.values().is_none());
        if others.count() > COMPARED || self.0.len() > COMPARED {
            return BTreeSet::from([Scope::all()]);
        }
        let narrow = self.merged();
        if narrow.len() <= MOST {
            return narrow;
        }
        // Whole namespaces in place of several selectors in each.
        for (_, selectors) in self.0.iter_mut().filter(|(place, selectors)| place.is_some() && selectors.len() > 1) {
            *selectors = BTreeSet::from([Selector::everything()]);
        }
        let wide = self.merged();
        if wide.len() <= MOST { wide } else { BTreeSet::from([Scope::all()]) }
    }

    /// What is there, without what others have, and with one scope for selectors by values of the same key.
    fn merged(&self) -> BTreeSet<Scope> {
        let mut scopes = BTreeSet::new();
        for (namespace, selectors) in &self.0 {
            let mut values: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
            let mut add = |labels| scopes.insert(Scope { namespace: namespace.clone(), labels });
            for selector in selectors {
                match selector.values() {
                    Some((key, of_key)) => values.entry(key).or_default().extend(of_key.iter()),
                    None => drop(add(selector.clone())),
                }
            }
            for (key, values) in values {
                for values in chunks(values) {
                    add(Selector::of_values(key, values.into_iter().collect()));
                }
            }
        }
        let is_needed = |scope: &&Scope| {
            let others = || scopes.iter().filter(|other| other != scope);
            !others().any(|other| other.covers(scope.namespace.as_deref(), &scope.labels))
        };
        scopes.iter().filter(is_needed).cloned().collect()
    }
}

/// Values in pieces that fit into a request.
fn chunks(values: BTreeSet<&str>) -> Vec<Vec<&str>> {
    let mut chunks: Vec<Vec<&str>> = Vec::new();
    let mut length = LONG;
    for value in values {
        length += value.len() + 1;
        if length > LONG {
            chunks.push(Vec::new());
            length = value.len();
        }
        if let Some(chunk) = chunks.last_mut() {
            chunk.push(value);
        }
    }
    chunks
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, from_value, json};

    use super::*;
    use crate::plan::PolicyForm;

    fn namespaces() -> Namespaces {
        let labels = |number: usize| {
            let team = ["red", "blue"][number % 2];
            let all = [("team", team.to_owned()), ("kubernetes.io/metadata.name", format!("n{number}"))];
            all.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Labels>()
        };
        (0..8).map(|number| (Name::shared(&format!("n{number}")), labels(number))).collect()
    }

    fn peers(from: Value) -> BTreeSet<PodPeer> {
        let spec = from_value(json!({"podSelector": {}, "ingress": [{"from": from}]})).unwrap();
        PolicyForm::read(Some(&spec), "n0").pod_peers()
    }

    fn told(scopes: &BTreeSet<Scope>) -> Vec<String> {
        let namespace = |scope: &Scope| scope.namespace.clone().unwrap_or_else(|| "*".to_owned());
        scopes.iter().map(|scope| format!("{} {}", namespace(scope), scope.query().unwrap_or_default())).collect()
    }

    fn with_app(app: &str) -> Value {
        json!({"podSelector": {"matchLabels": {"app": app}}})
    }

    #[rstest]
    #[case::own_namespace(json!([{"podSelector": {}}]), &["n0 "])]
    #[case::blocks(json!([{"ipBlock": {"cidr": "10.0.0.0/8"}}]), &[])]
    #[case::values_of_one_key(json!([with_app("b"), with_app("a")]), &["n0 app in (a,b)"])]
    #[case::covered(json!([with_app("b"), {"podSelector": {}}]), &["n0 "])]
    #[case::every_pod_is_told_from_where_it_lies(json!([with_app("b"), {"namespaceSelector": {}}]), &["n0 app in (b)"])]
    #[case::team(json!([{"namespaceSelector": {"matchLabels": {"team": "red"}}}]), &["n0 ", "n2 ", "n4 ", "n6 "])]
    #[case::labels_in_few_namespaces(
        json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "n3"}}, "podSelector": {"matchLabels": {"app": "a"}}}]),
        &["n3 app in (a)"]
    )]
    #[case::labels_in_many_namespaces(
        json!([{"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "Exists"}]}, "podSelector": {"matchLabels": {"app": "a"}}}]),
        &["* app in (a)"]
    )]
    #[case::no_such_namespace(json!([{"namespaceSelector": {"matchLabels": {"team": "green"}}}]), &[])]
    fn few_scopes_have_all_that_peers_mean(#[case] from: Value, #[case] expected: &[&str]) {
        let (peers, namespaces) = (peers(from), namespaces());
        let scopes = scopes(peers.iter(), &namespaces);
        assert_eq!(told(&scopes), expected);
        assert!(peers.iter().all(|peer| cover(scopes.iter(), peer, &namespaces)));
        // Without one of them something is missing.
        for scope in &scopes {
            let others = scopes.iter().filter(|other| *other != scope);
            assert!(!peers.iter().all(|peer| cover(others.clone(), peer, &namespaces)), "{scope:?}");
        }
    }

    #[test]
    fn an_egress_rule_by_a_port_name_means_every_pod() {
        let spec = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": "http"}]}]});
        let peers = PolicyForm::read(Some(&from_value(spec).unwrap()), "n0").pod_peers();
        assert_eq!(told(&scopes(peers.iter(), &namespaces())), ["* "]);
        let spec = json!({"podSelector": {}, "ingress": [{"ports": [{"port": "http"}]}]});
        let peers = PolicyForm::read(Some(&from_value(spec).unwrap()), "n0").pod_peers();
        assert!(peers.is_empty(), "the pod itself numbers it");
    }

    #[test]
    fn many_become_few() {
        let namespaces = Namespaces::new();
        let peer = |namespace: String, pods: &Value| {
            let pods = Selector::parse(&from_value(pods.clone()).unwrap()).unwrap();
            PodPeer { namespaces: Meant::Named(namespace), pods }
        };
        let key = |key: usize| json!({"matchExpressions": [{"key": format!("k{key}"), "operator": "Exists"}]});
        let several: Vec<PodPeer> = (0..MOST / 2)
            .flat_map(|n| (0..3).map(move |k| (n, k)))
            .map(|(n, k)| peer(format!("n{n}"), &key(k)))
            .collect();
        let found = scopes(several.iter(), &namespaces);
        assert_eq!((found.len(), found.first().unwrap().query()), (MOST / 2, None), "whole namespaces");
        let many: Vec<PodPeer> = (0..=MOST).map(|n| peer(format!("n{n}"), &key(0))).collect();
        assert_eq!(told(&scopes(many.iter(), &namespaces)), ["* "]);
        let apps = |app: usize| json!({"matchLabels": {"app": format!("application-{app}")}});
        let long: Vec<PodPeer> = (0..500).map(|n| peer("n".to_owned(), &apps(n))).collect();
        let found = scopes(long.iter(), &namespaces);
        assert!(found.len() > 1 && found.len() < 5, "{}", found.len());
        assert!(found.iter().all(|scope| scope.query().unwrap().len() <= LONG + 20));
        assert!(long.iter().all(|peer| cover(found.iter(), peer, &namespaces)));
        let values: Vec<String> = (0..100).map(|number| format!("{number:060}")).collect();
        let unlike = json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": values}]});
        assert_eq!(told(&scopes([peer("n".to_owned(), &unlike)].iter(), &namespaces)), ["n "], "too long to ask for");
        let keys: Vec<PodPeer> = (0..=COMPARED).map(|number| peer("n".to_owned(), &key(number))).collect();
        assert_eq!(told(&scopes(keys.iter(), &namespaces)), ["* "], "too many to compare");
    }
}
