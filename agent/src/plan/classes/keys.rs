// SPDX-License-Identifier: Apache-2.0
//! Labels that controllers give each pod, or each revision or run, by itself. They tell no classes apart unless some selector
//! asks for them: a StatefulSet of a thousand pods is one class, and not a thousand.

use crate::plan::policy::peers::PeerTerm;

/// Sources: `k8s.io/api/apps/v1`, `k8s.io/api/batch/v1` and the controllers of `kube-controller-manager`; `kubevirt.io/api/core/v1`.
const OF_CONTROLLERS: [&str; 13] = [
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-completion-index",
    "batch.kubernetes.io/job-name",
    "controller-revision-hash",
    "controller-uid",
    "job-name",
    "kubevirt.io/created-by",
    "kubevirt.io/nodeName",
    "pod-template-generation",
    "pod-template-hash",
    "statefulset.kubernetes.io/pod-name",
    "vm.kubevirt.io/name",
];

/// Those of these keys that selectors ask for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Asked(u16);

impl Asked {
    /// The keys that some of these terms ask for.
    pub(crate) fn of<'t>(terms: impl Iterator<Item = &'t PeerTerm>) -> Self {
        let keys = terms.flat_map(|term| term.peer.pods.keys());
        Self(keys.filter_map(place).fold(0, |all, place| all | 1 << place))
    }

    /// Those and these.
    pub(crate) const fn and(self, Self(others): Self) -> Self {
        Self(self.0 | others)
    }

    /// Whether a label of this key makes another class.
    pub(super) fn tells(self, key: &str) -> bool {
        place(key).is_none_or(|place| self.0 >> place & 1 != 0)
    }
}

fn place(key: &str) -> Option<usize> {
    OF_CONTROLLERS.binary_search(&key).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found() {
        assert!(OF_CONTROLLERS.is_sorted());
        assert!(OF_CONTROLLERS.iter().all(|key| !Asked::default().tells(key)));
        assert!(Asked::default().tells("app"));
    }
}
