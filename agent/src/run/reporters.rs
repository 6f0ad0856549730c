// SPDX-License-Identifier: Apache-2.0
//! Who posts the Event of an object that every node sees: a few of the nodes, which each finds out by itself.

use std::collections::{BTreeMap, BTreeSet};

use crate::{model::ObjectKey, plan::Digest};

/// How many post the Event of one object: one of them may have no agent.
const REPORTERS: usize = 2;

/// Which objects this node posts Events of. An object stays with its nodes (rendezvous hashing): where a node comes or goes only its own
/// go to others.
#[derive(Debug, Default)]
pub(super) struct Reporters {
    /// The digest of all nodes' names that `known` is of.
    nodes: u64,
    known: BTreeMap<ObjectKey, bool>,
}

impl Reporters {
    /// Those of `objects` that the node `own` posts Events of.
    pub(super) fn own<'o, 'n>(
        &mut self,
        own: &str,
        nodes: impl Iterator<Item = &'n str>,
        objects: impl Iterator<Item = &'o ObjectKey>,
    ) -> BTreeSet<&'o ObjectKey> {
        let nodes: Vec<u64> = nodes.map(|name| Digest::spread(name.as_bytes())).collect();
        let digest = nodes.iter().copied().fold(0, u64::wrapping_add);
        if self.nodes != digest {
            (self.nodes, self.known) = (digest, BTreeMap::new());
        }
        let own = Digest::spread(own.as_bytes());
        let before = std::mem::take(&mut self.known);
        let mut reported = BTreeSet::new();
        for object in objects {
            let is_own = before.get(object).copied().unwrap_or_else(|| reports(own, &nodes, object));
            self.known.insert(object.clone(), is_own);
            reported.extend(is_own.then_some(object));
        }
        reported
    }
}

/// Whether fewer than [`REPORTERS`] of all nodes come before `own` for this object.
fn reports(own: u64, nodes: &[u64], object: &ObjectKey) -> bool {
    let object = Digest::spread(object.to_string().as_bytes());
    let rank = |node: u64| Digest::spread(&(node ^ object).to_ne_bytes());
    let own = rank(own);
    nodes.iter().filter(|node| rank(**node) < own).take(REPORTERS).count() < REPORTERS
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: [&str; 5] = ["a", "b", "c", "d", "e"];

    fn objects() -> Vec<ObjectKey> {
        (0..200).map(|number| ObjectKey::new("tenant", &format!("web{number}"))).collect()
    }

    /// By object, the nodes of `nodes` that post its Event.
    fn reporters(nodes: &[&'static str]) -> BTreeMap<ObjectKey, Vec<&'static str>> {
        let objects = objects();
        let mut all: BTreeMap<ObjectKey, Vec<&str>> = BTreeMap::new();
        for node in nodes {
            for object in Reporters::default().own(node, nodes.iter().copied(), objects.iter()) {
                all.entry(object.clone()).or_default().push(node);
            }
        }
        all
    }

    #[test]
    fn each_object_has_two_and_keeps_them_where_another_node_goes() {
        let (all, fewer) = (reporters(&NODES), reporters(&NODES[..4]));
        assert!(objects().iter().all(|object| all[object].len() == REPORTERS && fewer[object].len() == REPORTERS));
        for (object, before) in &all {
            assert!(before.iter().filter(|node| **node != "e").all(|node| fewer[object].contains(node)), "{object}");
        }
        for node in NODES {
            let count = all.values().filter(|of| of.contains(&node)).count();
            assert!((50..110).contains(&count), "{node} posts {count} of 200");
        }
        assert_eq!(reporters(&["a"]).len(), 200, "a node alone posts all");
    }

    #[test]
    fn what_is_known_follows_nodes_and_objects() {
        let objects = objects();
        let mut one = Reporters::default();
        for (nodes, count) in [(&NODES[..], 200), (&NODES[..2], 200), (&NODES[..], 20)] {
            let fresh = Reporters::default().own("a", nodes.iter().copied(), objects[..count].iter());
            assert_eq!(one.own("a", nodes.iter().copied(), objects[..count].iter()), fresh);
            assert_eq!(one.known.len(), count);
        }
    }
}
