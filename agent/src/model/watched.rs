// SPDX-License-Identifier: Apache-2.0
//! The kinds that are watched, and how their changes travel. A kind is declared in [`watched_kinds`] and nowhere else: the
//! store, the changes, the watchers, the folder and the state on disk follow from it.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use super::{
    ObjectKey,
    objects::{EndpointSlice, Namespace, NetworkPolicy, Node, Pod, Service, ServiceCidr},
};

/// Hands the list of kinds to the macro `$then`: field, variant, the type here and the one of the API, name of the kind, plural
/// of the API.
macro_rules! watched_kinds {
    ($then:ident) => {
        $then! {
            /// Pods with what the plan needs: labels, phase, addresses, node, hostNetwork.
            pods, Pod: Pod = k8s_openapi::api::core::v1::Pod, "Pod", "pods";
            /// Namespaces, for their labels.
            namespaces, Namespace: Namespace = k8s_openapi::api::core::v1::Namespace, "Namespace", "namespaces";
            /// Nodes, for pod CIDRs and addresses.
            nodes, Node: Node = k8s_openapi::api::core::v1::Node, "Node", "nodes";
            /// Services.
            services, Service: Service = k8s_openapi::api::core::v1::Service, "Service", "services";
            /// EndpointSlices.
            slices, Slice: EndpointSlice = k8s_openapi::api::discovery::v1::EndpointSlice, "EndpointSlice", "endpointslices";
            /// NetworkPolicies.
            policies, Policy: NetworkPolicy = k8s_openapi::api::networking::v1::NetworkPolicy, "NetworkPolicy", "networkpolicies";
            /// ServiceCIDRs; an API server older than 1.33 has none.
            service_cidrs, ServiceCidr: ServiceCidr = k8s_openapi::api::networking::v1::ServiceCIDR, "ServiceCIDR", "servicecidrs";
        }
    };
}
pub(crate) use watched_kinds;

/// Objects of one kind that changed.
#[derive(Clone, Debug)]
pub struct Changed<T> {
    /// These are all that there are: others have gone.
    pub all: bool,
    /// What each object is now; none: it has gone.
    pub objects: BTreeMap<ObjectKey, Option<Arc<T>>>,
}

impl<T> Default for Changed<T> {
    fn default() -> Self {
        Self { all: false, objects: BTreeMap::new() }
    }
}

impl<T> Changed<T> {
    /// All objects that there are.
    #[must_use]
    pub fn all(objects: BTreeMap<ObjectKey, Arc<T>>) -> Self {
        Self { all: true, objects: objects.into_iter().map(|(key, object)| (key, Some(object))).collect() }
    }

    /// Takes what came later.
    pub fn extend(&mut self, later: Self) {
        if later.all {
            *self = later;
        } else {
            self.objects.extend(later.objects);
        }
    }

    fn is_empty(&self) -> bool {
        !self.all && self.objects.is_empty()
    }
}

impl<T: PartialEq> Changed<T> {
    /// Brings `known` up to date; tells what is different now, with what was before.
    pub(crate) fn put(self, known: &mut BTreeMap<ObjectKey, Arc<T>>) -> Vec<(ObjectKey, Option<Arc<T>>)> {
        let mut differing = Vec::new();
        if self.all {
            let gone: Vec<ObjectKey> = known.keys().filter(|key| !self.objects.contains_key(key)).cloned().collect();
            differing.extend(gone.into_iter().map(|key| {
                let old = known.remove(&key);
                (key, old)
            }));
        }
        for (key, object) in self.objects {
            if known.get(&key).map(Arc::as_ref) == object.as_deref() {
                continue;
            }
            let old = match object {
                Some(object) => known.insert(key.clone(), object),
                None => known.remove(&key),
            };
            differing.push((key, old));
        }
        differing
    }
}

macro_rules! declare {
    ($($(#[$doc:meta])* $field:ident, $Variant:ident: $Type:ty = $Api:ty, $kind:literal, $plural:literal;)*) => {
        /// The cluster as the source knows it: always the last good form of every object.
        #[derive(Clone, Debug, Default)]
        pub struct Snapshot {
            $($(#[$doc])* pub $field: BTreeMap<ObjectKey, Arc<$Type>>,)*
            /// Every kind was listed once: until then nothing is planned.
            pub synced: bool,
            /// Objects that were refused, each a sentence that names file or object, line or field, and the fix.
            pub problems: Vec<String>,
            /// Why the source does not answer now.
            pub error: Option<String>,
            /// These are objects that an earlier run has left, because the source has not told anything yet: since when (Unix
            /// time in seconds) nobody has told more.
            pub remembered: Option<u64>,
        }

        /// What changed of all kinds.
        #[derive(Clone, Debug, Default)]
        pub struct Deltas {
            $($(#[$doc])* pub $field: Changed<$Type>,)*
        }

        impl Snapshot {
            /// See [`crate::heap::pack`].
            pub(crate) fn pack(&mut self) {
                $(crate::heap::pack(&mut self.$field);)*
            }
        }

        impl Deltas {
            /// Takes what came later.
            pub fn extend(&mut self, later: Self) {
                $(self.$field.extend(later.$field);)*
            }

            /// Whether nothing changed.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                $(self.$field.is_empty())&&*
            }

            /// The whole of `snapshot`, in place of whatever was before.
            #[must_use]
            pub fn whole(snapshot: &Snapshot) -> Self {
                Self { $($field: Changed::all(snapshot.$field.clone()),)* }
            }
        }
    };
}
watched_kinds!(declare);

/// How the source stands.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Standing {
    /// See [`Snapshot::synced`].
    pub synced: bool,
    /// See [`Snapshot::problems`].
    pub problems: Vec<String>,
    /// See [`Snapshot::error`].
    pub error: Option<String>,
    /// See [`Snapshot::remembered`].
    pub remembered: Option<u64>,
}

/// What the source has told since it was asked last.
#[derive(Clone, Debug, Default)]
pub struct News {
    /// Objects.
    pub deltas: Deltas,
    /// How it stands now.
    pub standing: Standing,
    /// When the first change of these was read.
    pub since: Option<Instant>,
}

impl Snapshot {
    /// How the source stands.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let Self { synced, problems, error, remembered, .. } = self;
        Standing { synced: *synced, problems: problems.clone(), error: error.clone(), remembered: *remembered }
    }
}
