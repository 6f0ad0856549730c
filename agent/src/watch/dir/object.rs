// SPDX-License-Identifier: Apache-2.0
//! An object of a manifest.

use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
};

use crate::{model::ObjectKey, watch::key_of};

/// An object of a kind that Weft reads.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "a folder has few objects, most of them pods")]
pub(crate) enum Object {
    Pod(Pod),
    Namespace(Namespace),
    Node(Node),
    Service(Service),
    Slice(EndpointSlice),
    Policy(NetworkPolicy),
}

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

impl Object {
    /// Kind and key.
    pub(crate) fn name(&self) -> Name {
        let (kind, metadata) = match self {
            Self::Pod(object) => ("Pod", &object.metadata),
            Self::Namespace(object) => ("Namespace", &object.metadata),
            Self::Node(object) => ("Node", &object.metadata),
            Self::Service(object) => ("Service", &object.metadata),
            Self::Slice(object) => ("EndpointSlice", &object.metadata),
            Self::Policy(object) => ("NetworkPolicy", &object.metadata),
        };
        Name { kind, key: key_of(metadata) }
    }
}
