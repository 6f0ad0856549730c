// SPDX-License-Identifier: Apache-2.0
//! Events that come late or twice take nothing back.

use kube::{Resource, runtime::watcher::Event};

/// A `resourceVersion`, where it is a number. Source: KEP-5504, comparable resource versions.
type Version = Option<u64>;

/// The newest version of an object of one kind that was told since the last list began, by the list or by the watch after it:
/// the events of a watch come in the order of versions.
#[derive(Debug, Default)]
pub(super) struct Order(Version);

impl Order {
    /// Whether an event is of a newer state than all before it. A list is what it is, also from a cache that is behind.
    pub(super) fn is_next<K: Resource>(&mut self, event: &Event<K>) -> bool {
        match event {
            Event::Init => self.0 = None,
            Event::InitApply(object) => self.0 = self.0.max(version(object)),
            Event::InitDone => {}
            Event::Apply(object) | Event::Delete(object) => {
                let version = version(object);
                let next = version.is_none() || version > self.0;
                self.0 = self.0.max(version);
                return next;
            }
        }
        true
    }
}

fn version<K: Resource>(object: &K) -> Version {
    object.meta().resource_version.as_deref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Namespace;
    use kube::runtime::watcher::Event;

    use super::Order;

    fn object(version: &str) -> Namespace {
        let mut namespace = Namespace::default();
        namespace.metadata.resource_version = Some(version.to_owned());
        namespace
    }

    #[test]
    fn what_comes_late_or_twice_is_not_next() {
        let mut order = Order::default();
        let taken = [
            Event::Init,
            Event::InitApply(object("10")),
            Event::InitApply(object("7")),
            Event::InitDone,
            Event::Apply(object("9")),
            Event::Apply(object("12")),
            Event::Apply(object("12")),
            Event::Delete(object("11")),
            Event::Delete(object("100")),
            // Nothing is known of the order of these.
            Event::Apply(object("x")),
            Event::Apply(object("101")),
            // A list from a cache that is behind, and what follows it.
            Event::Init,
            Event::InitApply(object("20")),
            Event::InitDone,
            Event::Apply(object("21")),
        ]
        .map(|event| order.is_next(&event));
        let expected = [true, true, true, true, false, true, false, false, true, true, true, true, true, true, true];
        assert_eq!(taken, expected);
    }
}
