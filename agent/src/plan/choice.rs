// SPDX-License-Identifier: Apache-2.0
//! How new connections of a Service are given to its backends, and which part of them a backend gets.

use std::{collections::BTreeMap, sync::Arc};

use weft_abi::{Algorithm, DEFAULT_WEIGHT};

use crate::model::{
    DesiredChoice, HashKey, Name, ObjectKey, algorithm,
    objects::{ALGORITHM_ANNOTATION, PENALTY_ANNOTATION, Pod, Service, Uid, WEIGHT_LABEL},
};

/// The most that [`WEIGHT_LABEL`] may be: a backend has so many arcs on a ring.
const MAX_WEIGHT: u16 = 1000;

/// Of the hash of uids: no secret, since every node has to come to the same; the uids are.
const SEEDING: HashKey = HashKey([0; 2]);

/// What a Service asks for, else `usual`; and what is wrong with it.
pub(crate) fn of(key: &ObjectKey, service: &Service, usual: Algorithm) -> (DesiredChoice, Option<String>) {
    let (algorithm, problem) = match service.metadata.annotation(ALGORITHM_ANNOTATION) {
        None => (usual, None),
        Some(text) => match algorithm::named(text) {
            Ok(algorithm) => (algorithm, None),
            Err(why) => {
                let used = algorithm::name(usual);
                (usual, Some(format!("metadata.annotations[{ALGORITHM_ANNOTATION}]: {why}; {used} is used")))
            }
        },
    };
    let seed = if algorithm == Algorithm::Consistent { seed_of(key, service) } else { 0 };
    (DesiredChoice { algorithm, seed }, problem)
}

/// One for all ports and families of a Service, which those who may not read it do not know.
fn seed_of(key: &ObjectKey, service: &Service) -> u64 {
    let uid = service.metadata.uid.as_ref().map(Uid::to_string).unwrap_or_default();
    let names = [&uid, &*key.namespace, &*key.name];
    names.into_iter().fold(SEEDING.of("service choice"), |hash, text| hash.text(text)).finish()
}

/// What a Pod tells of its part of new connections.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Weight {
    /// 0: it gets none, as long as another backend does.
    pub(crate) parts: u16,
    /// It is a VM that is being migrated.
    pub(crate) is_migrating: bool,
}

impl Weight {
    /// Of a backend of which nobody tells anything.
    pub(crate) const USUAL: Self = Self { parts: DEFAULT_WEIGHT, is_migrating: false };

    /// What label and annotation of a Pod say; what of them is invalid is left out, and reported. None: it has no weight.
    fn of(pod: &Pod, problems: &mut Vec<String>) -> Option<Self> {
        let weight = pod.metadata.labels.as_deref()?.get(WEIGHT_LABEL)?;
        let mut wrong = |field, key, text, what| {
            problems.push(format!("Pod {}: metadata.{field}[{key}]: '{text}' is no {what}", pod.metadata.key()));
        };
        let mut parts = weight.parse::<u16>().ok().filter(|parts| *parts <= MAX_WEIGHT).unwrap_or_else(|| {
            wrong("labels", WEIGHT_LABEL, weight, "number between 0 and 1000; 100 is used");
            DEFAULT_WEIGHT
        });
        let Some(text) = pod.metadata.annotation(PENALTY_ANNOTATION) else {
            return Some(Self { parts, is_migrating: false });
        };
        match text.parse::<f64>().ok().filter(|penalty| penalty.is_finite() && *penalty >= 0.0) {
            Some(penalty) => parts = penalised(parts, penalty),
            None => wrong("annotations", PENALTY_ANNOTATION, text, "number from 0 on; it does not count"),
        }
        Some(Self { parts, is_migrating: true })
    }
}

/// A weight times 1 / (1 + penalty); who had some keeps one.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the weight that it was")]
fn penalised(parts: u16, penalty: f64) -> u16 {
    ((f64::from(parts) / (1.0 + penalty)).round() as u16).max(parts.min(1))
}

/// The weights of Pods that have one, and what is wrong with each: few do.
#[derive(Debug, Default)]
pub(crate) struct Weights(BTreeMap<ObjectKey, (Weight, Vec<String>)>);

impl Weights {
    /// Those of these Pods.
    #[cfg(test)]
    pub(crate) fn of(pods: &BTreeMap<ObjectKey, Arc<Pod>>) -> Self {
        let mut weights = Self::default();
        for (key, pod) in pods {
            weights.follow(key, Some(pod));
        }
        weights
    }

    /// A Pod is this now; whether its backends get another part by that.
    pub(crate) fn follow(&mut self, key: &ObjectKey, pod: Option<&Arc<Pod>>) -> bool {
        let mut problems = Vec::new();
        let weight = pod.and_then(|pod| Weight::of(pod, &mut problems));
        let before = match weight {
            Some(weight) => self.0.insert(key.clone(), (weight, problems)),
            None => self.0.remove(key),
        };
        before.map(|(weight, _)| weight) != weight
    }

    /// Of an endpoint that is this Pod.
    pub(crate) fn find(&self, namespace: &Name, pod: Option<&Name>) -> Weight {
        let found = pod
            .filter(|_| !self.0.is_empty())
            .and_then(|name| self.0.get(&ObjectKey { namespace: namespace.clone(), name: name.clone() }));
        found.map_or(Weight::USUAL, |(weight, _)| *weight)
    }

    /// What is wrong.
    pub(crate) fn problems(&self) -> impl Iterator<Item = &String> {
        self.0.values().flat_map(|(_, problems)| problems)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case::nothing(json!({}), json!({}), None, &[])]
    #[case::a_weight(json!({"weft.dev/weight": "250"}), json!({}), Some((250, false)), &[])]
    #[case::drained(json!({"weft.dev/weight": "0"}), json!({"weft.dev/migration-penalty": "1"}), Some((0, true)), &[])]
    #[case::a_penalty(json!({"weft.dev/weight": "100"}), json!({"weft.dev/migration-penalty": "3"}), Some((25, true)), &[])]
    #[case::a_part(json!({"weft.dev/weight": "10"}), json!({"weft.dev/migration-penalty": "0.5"}), Some((7, true)), &[])]
    #[case::little(json!({"weft.dev/weight": "9"}), json!({"weft.dev/migration-penalty": "1e9"}), Some((1, true)), &[])]
    #[case::a_penalty_alone(json!({}), json!({"weft.dev/migration-penalty": "3"}), None, &[])]
    #[case::too_much(
        json!({"weft.dev/weight": "1001"}), json!({}), Some((100, false)),
        &["Pod x/a: metadata.labels[weft.dev/weight]: '1001' is no number between 0 and 1000; 100 is used"]
    )]
    #[case::no_penalty(
        json!({"weft.dev/weight": "50"}), json!({"weft.dev/migration-penalty": "-1"}), Some((50, true)),
        &["Pod x/a: metadata.annotations[weft.dev/migration-penalty]: '-1' is no number from 0 on; it does not count"]
    )]
    fn labels_and_annotations_are_weights(
        #[case] labels: serde_json::Value,
        #[case] annotations: serde_json::Value,
        #[case] expected: Option<(u16, bool)>,
        #[case] problems: &[&str],
    ) {
        let pod = json!({"metadata": {"namespace": "x", "name": "a", "labels": labels, "annotations": annotations}});
        let pod = Arc::new(serde_json::from_value::<Pod>(pod).unwrap());
        let (mut weights, key) = (Weights::default(), pod.metadata.key());
        assert_eq!(weights.follow(&key, Some(&pod)), expected.is_some());
        assert!(!weights.follow(&key, Some(&pod)), "nothing has changed");
        let (parts, is_migrating) = expected.unwrap_or((100, false));
        assert_eq!(weights.find(&key.namespace, Some(&key.name)), Weight { parts, is_migrating });
        assert_eq!(weights.find(&key.namespace, None), Weight::USUAL);
        assert_eq!(weights.problems().collect::<Vec<_>>(), problems);
        assert_eq!(weights.follow(&key, None), expected.is_some());
        assert_eq!(weights.problems().count(), 0);
    }

    #[rstest]
    #[case(json!({}), Algorithm::Random, None)]
    #[case(json!({"weft.dev/algorithm": "least-loaded"}), Algorithm::LeastLoaded, None)]
    #[case(json!({"weft.dev/algorithm": "Maglev"}), Algorithm::Random,
        Some("metadata.annotations[weft.dev/algorithm]: 'Maglev' is none of random, consistent, least-loaded; random is used"))]
    fn a_service_says_how(
        #[case] annotations: serde_json::Value,
        #[case] algorithm: Algorithm,
        #[case] problem: Option<&str>,
    ) {
        let service = json!({"metadata": {"namespace": "x", "name": "a", "annotations": annotations}});
        let service: Service = serde_json::from_value(service).unwrap();
        let (choice, why) = of(&service.metadata.key(), &service, Algorithm::Random);
        assert_eq!((choice, why.as_deref()), (DesiredChoice { algorithm, seed: 0 }, problem));
    }

    #[test]
    fn a_seed_is_of_a_service_and_of_no_other_of_its_name() {
        let seed = |name: &str, uid: &str| {
            let service = json!({"metadata": {"namespace": "x", "name": name, "uid": uid}});
            let service: Service = serde_json::from_value(service).unwrap();
            of(&service.metadata.key(), &service, Algorithm::Consistent).0.seed
        };
        assert_eq!(seed("a", "1"), seed("a", "1"));
        assert_ne!(seed("a", "1"), seed("a", "2"));
        assert_ne!(seed("a", "1"), seed("b", "1"));
    }
}
