// SPDX-License-Identifier: Apache-2.0
//! An object of a manifest.

use std::sync::Arc;

use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
};

use crate::{
    model::{ObjectKey, Snapshot, watched_kinds},
    watch::key_of,
};

/// Kind and key of an object.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Name {
    pub(crate) kind: &'static str,
    pub(crate) key: ObjectKey,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind, self.key)
    }
}

macro_rules! declare {
    ($($(#[$doc:meta])* $field:ident, $Variant:ident: $Type:ty, $kind:literal, $plural:literal;)*) => {
        /// An object of a kind that Weft reads.
        #[derive(Clone, Debug, PartialEq)]
        #[expect(clippy::large_enum_variant, reason = "a folder has few objects, most of them pods")]
        pub(crate) enum Object {
            $($Variant($Type),)*
        }

        impl Object {
            /// Kind and key.
            pub(crate) fn name(&self) -> Name {
                let (kind, metadata) = match self {
                    $(Self::$Variant(object) => ($kind, &object.metadata),)*
                };
                Name { kind, key: key_of(metadata) }
            }

            /// Puts it into a snapshot.
            pub(crate) fn insert(&self, key: ObjectKey, snapshot: &mut Snapshot) {
                match self.clone() {
                    $(Self::$Variant(object) => drop(snapshot.$field.insert(key, Arc::new(object))),)*
                }
            }
        }
    };
}
watched_kinds!(declare);
