// SPDX-License-Identifier: Apache-2.0

//! The kinds that are served.

/// A kind of object.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// Pods.
    Pods,
    /// Namespaces.
    Namespaces,
    /// Nodes.
    Nodes,
    /// Services.
    Services,
    /// EndpointSlices.
    EndpointSlices,
    /// NetworkPolicies.
    NetworkPolicies,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Pods, Self::Namespaces, Self::Nodes, Self::Services, Self::EndpointSlices, Self::NetworkPolicies];

    /// As in `kind` of an object.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pods => "Pod",
            Self::Namespaces => "Namespace",
            Self::Nodes => "Node",
            Self::Services => "Service",
            Self::EndpointSlices => "EndpointSlice",
            Self::NetworkPolicies => "NetworkPolicy",
        }
    }

    /// As in `apiVersion` of an object.
    #[must_use]
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::EndpointSlices => "discovery.k8s.io/v1",
            Self::NetworkPolicies => "networking.k8s.io/v1",
            _ => "v1",
        }
    }

    /// As in a path.
    #[must_use]
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Namespaces => "namespaces",
            Self::Nodes => "nodes",
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::NetworkPolicies => "networkpolicies",
        }
    }

    /// What a path asks for: kind, namespace, name. `None` for what is not served.
    pub(super) fn of_path(path: &str) -> Option<(Self, Option<&str>, Option<&str>)> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (version, rest) = match parts.as_slice() {
            ["api", "v1", rest @ ..] => ("v1".to_owned(), rest),
            ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
            _ => return None,
        };
        let (namespace, plural, name) = match *rest {
            [plural] => (None, plural, None),
            ["namespaces", namespace, plural] => (Some(namespace), plural, None),
            ["namespaces", namespace, plural, name] => (Some(namespace), plural, Some(name)),
            [plural, name] => (None, plural, Some(name)),
            _ => return None,
        };
        let kind = Self::ALL.into_iter().find(|kind| kind.plural() == plural && kind.api_version() == version)?;
        Some((kind, namespace, name))
    }
}

#[cfg(test)]
mod tests {
    use super::Kind;

    #[test]
    fn paths_name_kind_namespace_and_object() {
        let of = Kind::of_path;
        assert_eq!(of("/api/v1/pods"), Some((Kind::Pods, None, None)));
        assert_eq!(of("/api/v1/namespaces/a/pods"), Some((Kind::Pods, Some("a"), None)));
        assert_eq!(of("/api/v1/namespaces/a"), Some((Kind::Namespaces, None, Some("a"))));
        assert_eq!(of("/apis/discovery.k8s.io/v1/endpointslices"), Some((Kind::EndpointSlices, None, None)));
        assert_eq!(of("/apis/discovery.k8s.io/v2/endpointslices"), None);
        assert_eq!(of("/api/v1/namespaces/a/pods/p"), Some((Kind::Pods, Some("a"), Some("p"))));
        assert_eq!(of("/version"), None);
    }
}
