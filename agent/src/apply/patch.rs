// SPDX-License-Identifier: Apache-2.0
//! What changes of the maps, by key.

use std::collections::BTreeMap;

use weft_abi::{
    AddressKey, BlockKey, CidrKey, Class, Config, Device, Frontend, FrontendKey, List, Owner, Port, Remote, RuleKey,
    Run,
};

use super::{Observed, digests, tables::Known};
use crate::model::{Desired, DesiredBalancer};

/// The new values of some keys of one map; none: the key goes.
pub type Changes<K, V> = BTreeMap<K, Option<V>>;

/// The way from one [`Desired`] to the next. A value that stands already may be among it; it costs a look-up.
#[expect(missing_docs, reason = "named as the fields of Desired are")]
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Patch {
    pub config: Option<Config>,
    pub devices: Changes<u32, Device>,
    pub ports: Changes<u32, Port>,
    pub addresses: Changes<AddressKey, Owner>,
    pub remotes: Changes<CidrKey, Remote>,
    pub frontends: Changes<FrontendKey, Frontend>,
    pub balancers: Changes<u32, DesiredBalancer>,
    pub sources: Changes<CidrKey, u32>,
    pub peers: Changes<AddressKey, u64>,
    pub classes: Changes<u64, Class>,
    pub lists: Changes<u64, List>,
    pub rules: Changes<RuleKey, Run>,
    pub blocks: Changes<BlockKey, u64>,
    pub workload_digests: Changes<u32, u64>,
    pub routes_digest: Option<u64>,
}

impl Patch {
    /// From whatever the maps hold to all of `desired`.
    pub(super) fn whole(observed: &Observed, desired: &Desired) -> Self {
        Self {
            config: Some(desired.config),
            devices: all(&observed.devices, &desired.devices),
            ports: all(&observed.ports, &desired.ports),
            addresses: all(&observed.addresses, &desired.addresses),
            remotes: all(&observed.remotes, &desired.remotes),
            frontends: all(&observed.frontends, &desired.frontends),
            balancers: all(&observed.balancers, &desired.balancers),
            sources: all(&observed.sources, &desired.sources),
            peers: all(&observed.peers, &desired.peers),
            classes: all(&observed.classes, &desired.classes),
            lists: all(&observed.lists, &desired.lists),
            rules: all(&observed.rules, &desired.rules),
            blocks: all(&observed.blocks, &desired.blocks),
            workload_digests: from(digests::of_workloads(&observed.digests), &desired.workload_digests),
            routes_digest: Some(desired.routes_digest),
        }
    }
}

#[cfg(test)]
impl Patch {
    /// What is different between two plans.
    pub(crate) fn between(old: &Desired, new: &Desired) -> Self {
        Self {
            config: (old.config != new.config).then_some(new.config),
            devices: differing(&old.devices, &new.devices),
            ports: differing(&old.ports, &new.ports),
            addresses: differing(&old.addresses, &new.addresses),
            remotes: differing(&old.remotes, &new.remotes),
            frontends: differing(&old.frontends, &new.frontends),
            balancers: differing(&old.balancers, &new.balancers),
            sources: differing(&old.sources, &new.sources),
            peers: differing(&old.peers, &new.peers),
            classes: differing(&old.classes, &new.classes),
            lists: differing(&old.lists, &new.lists),
            rules: differing(&old.rules, &new.rules),
            blocks: differing(&old.blocks, &new.blocks),
            workload_digests: differing(&old.workload_digests, &new.workload_digests),
            routes_digest: (old.routes_digest != new.routes_digest).then_some(new.routes_digest),
        }
    }
}

#[cfg(test)]
fn differing<K: Copy + Ord, V: Clone + PartialEq>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> Changes<K, V> {
    let mut all = changes(old, new);
    all.retain(|key, value| old.get(key) != value.as_ref());
    all
}

fn all<K: Copy + Ord, V: Clone, O>(known: &Known<K, O>, wanted: &BTreeMap<K, V>) -> Changes<K, V> {
    changes(&known.0, wanted)
}

fn changes<K: Copy + Ord, V: Clone, O>(known: &BTreeMap<K, O>, wanted: &BTreeMap<K, V>) -> Changes<K, V> {
    from(known.keys().copied(), wanted)
}

fn from<K: Copy + Ord, V: Clone>(known: impl Iterator<Item = K>, wanted: &BTreeMap<K, V>) -> Changes<K, V> {
    let gone = known.filter(|key| !wanted.contains_key(key)).map(|key| (key, None));
    gone.chain(wanted.iter().map(|(key, value)| (*key, Some(value.clone())))).collect()
}
