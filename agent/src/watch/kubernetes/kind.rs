// SPDX-License-Identifier: Apache-2.0
//! How the objects of one kind come: from one watch or, where no single watch asks for all that is needed, from several that
//! may have the same objects.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use kube::runtime::watcher::{self, Event};

use super::{object::Object, pods::WatchId};
use crate::model::{Changed as Objects, ObjectKey};

/// Why a watch does not tell.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Fault {
    pub(super) text: String,
    /// No answer at all, as against a refusal.
    pub(super) unreachable: bool,
}

/// What there is to tell.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Changed {
    No,
    Objects,
    /// Listed for the first time, or an error came or went.
    Standing,
}

impl Changed {
    /// At least objects.
    pub(super) const fn or_objects(self) -> Self {
        match self {
            Self::No => Self::Objects,
            Self::Objects | Self::Standing => self,
        }
    }
}

/// How one kind stands.
#[derive(Debug)]
pub(super) struct Kind<K> {
    watches: BTreeMap<WatchId, Watch<K>>,
    /// By object, where there may be several watches.
    holders: Option<HashMap<ObjectKey, Held>>,
}

/// Who has an object.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// A bit for each watch.
    watches: u128,
    /// The newest version that any of them has told; watches do not wait for each other.
    version: u64,
}

/// An object and its version; 0: it has none.
type Versioned<K> = (Arc<K>, u64);

#[derive(Debug)]
struct Watch<K> {
    /// Objects of a list that is not complete yet; until then those of before stay.
    listing: BTreeMap<ObjectKey, Versioned<K>>,
    listed: bool,
    fault: Option<Fault>,
}

impl<K> Default for Watch<K> {
    fn default() -> Self {
        Self { listing: BTreeMap::new(), listed: false, fault: None }
    }
}

/// Of one watch, number 0.
impl<K> Default for Kind<K> {
    fn default() -> Self {
        Self { watches: BTreeMap::from([(0, Watch::default())]), holders: None }
    }
}

impl<K> Kind<K> {
    /// Of several watches; the first is number 0.
    pub(super) fn of_several() -> Self {
        Self { holders: Some(HashMap::new()), ..Self::default() }
    }

    /// One more watch, that has told nothing yet.
    pub(super) fn begin(&mut self, watch: WatchId) {
        self.watches.insert(watch, Watch::default());
    }

    /// A watch less: what no other has is gone.
    pub(super) fn end(&mut self, watch: WatchId, deltas: &mut Objects<K>) {
        self.watches.remove(&watch);
        self.keep(watch, |_| false, deltas);
    }

    pub(super) fn is_listed(&self) -> bool {
        self.watches.values().all(|watch| watch.listed)
    }

    pub(super) fn faults(&mut self) -> impl Iterator<Item = &mut Option<Fault>> {
        self.watches.values_mut().map(|watch| &mut watch.fault)
    }

    /// Of what a watch had before it has only what `keeps` says.
    fn keep(&mut self, watch: WatchId, keeps: impl Fn(&ObjectKey) -> bool, deltas: &mut Objects<K>) {
        let Some(holders) = &mut self.holders else { return };
        let gone = holders.extract_if(|key, held| {
            if !keeps(key) {
                held.watches &= !bit(watch);
            }
            held.watches == 0
        });
        deltas.objects.extend(gone.map(|(key, _)| (key, None)));
    }
}

const fn bit(watch: WatchId) -> u128 {
    1 << watch
}

impl<K: Object> Kind<K> {
    /// Takes in what a watch tells.
    pub(super) fn apply(
        &mut self,
        name: &str,
        watch: WatchId,
        event: watcher::Result<Event<K>>,
        deltas: &mut Objects<K>,
    ) -> Changed {
        let Some(told) = self.watches.get_mut(&watch) else { return Changed::No };
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                let changed = told.fail(name, &error);
                return if is_optional(name) && !told.listed {
                    self.go_without(watch, &error, changed, deltas)
                } else {
                    changed
                };
            }
        };
        let mut first = false;
        match event {
            Event::Init => {
                told.listing.clear();
                // Nothing was answered yet.
                return Changed::No;
            }
            Event::InitApply(object) => {
                let key = object.meta().key();
                told.listing.insert(key, versioned(object));
                return told.answered(false);
            }
            Event::InitDone => {
                first = !std::mem::replace(&mut told.listed, true);
                let listing = std::mem::take(&mut told.listing);
                self.list(watch, listing, deltas);
            }
            // Whether it is another one now the reader sees.
            Event::Apply(object) => self.put(watch, object.meta().key(), versioned(object), deltas),
            Event::Delete(object) => self.remove(watch, object.meta().key(), deltas),
        }
        let answered = self.watches.get_mut(&watch).map_or(Changed::No, |told| told.answered(true));
        if first { Changed::Standing } else { answered }
    }

    /// The server answers, and has nothing of a kind that the agent can do without: what it refuses stays in sight, what it does
    /// not know is nothing wrong. The watch goes on asking.
    fn go_without(
        &mut self,
        watch: WatchId,
        error: &watcher::Error,
        changed: Changed,
        deltas: &mut Objects<K>,
    ) -> Changed {
        let (Some(told), Some(code)) = (self.watches.get_mut(&watch), answered_with(error)) else { return changed };
        told.listed = true;
        if code == NOT_FOUND {
            told.fault = None;
        }
        deltas.extend(Objects::all(BTreeMap::new()));
        Changed::Standing
    }

    fn list(&mut self, watch: WatchId, listing: BTreeMap<ObjectKey, Versioned<K>>, deltas: &mut Objects<K>) {
        if self.holders.is_none() {
            deltas.extend(Objects::all(listing.into_iter().map(|(key, (object, _))| (key, object)).collect()));
            return;
        }
        self.keep(watch, |key| listing.contains_key(key), deltas);
        for (key, object) in listing {
            self.put(watch, key, object, deltas);
        }
    }

    /// What another watch has told of a newer version stays.
    fn put(&mut self, watch: WatchId, key: ObjectKey, (object, version): Versioned<K>, deltas: &mut Objects<K>) {
        if let Some(holders) = &mut self.holders {
            let held = holders.entry(key.clone()).or_default();
            held.watches |= bit(watch);
            if version != 0 && version < held.version {
                return;
            }
            held.version = version;
        }
        deltas.objects.insert(key, Some(object));
    }

    /// It is gone for this watch: it may have gone out of what the watch asks for, and not out of what others do.
    fn remove(&mut self, watch: WatchId, key: ObjectKey, deltas: &mut Objects<K>) {
        if let Some(holders) = &mut self.holders
            && let Some(held) = holders.get_mut(&key)
        {
            held.watches &= !bit(watch);
            if held.watches != 0 {
                return;
            }
            holders.remove(&key);
        }
        deltas.objects.insert(key, None);
    }
}

/// Takes the version out of an object: one that differs in nothing else is no change. Source: KEP-5504.
fn versioned<K: Object>(mut object: K) -> Versioned<K> {
    let version = object.meta_mut().resource_version.take();
    (Arc::new(object), version.and_then(|version| version.parse().ok()).unwrap_or_default())
}

impl<K> Watch<K> {
    fn answered(&mut self, changed: bool) -> Changed {
        match (self.fault.take(), changed) {
            (Some(_), _) => Changed::Standing,
            (None, true) => Changed::Objects,
            (None, false) => Changed::No,
        }
    }

    fn fail(&mut self, name: &str, error: &watcher::Error) -> Changed {
        tracing::debug!(kind = name, %error, "watch failed");
        if self.listed && is_optional(name) && answered_with(error) == Some(NOT_FOUND) {
            // One of several servers that are upgraded one by one may not serve it: the last state stays.
            return self.answered(false);
        }
        let fault = Fault { text: format!("{name}: {}", chain(error)), unreachable: is_unreachable(error) };
        if self.fault.as_ref() == Some(&fault) {
            return Changed::No;
        }
        self.fault = Some(fault);
        Changed::Standing
    }
}

/// Kinds that not every API server has.
fn is_optional(plural: &str) -> bool {
    plural == "servicecidrs"
}

/// Of HTTP.
const NOT_FOUND: u16 = 404;

/// The HTTP status of a refusal.
fn answered_with(error: &watcher::Error) -> Option<u16> {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status))
        | WatchError(status) => Some(status.code),
        InitialListFailed(_) | WatchStartFailed(_) | WatchFailed(_) | NoResourceVersion => None,
    }
}

fn is_unreachable(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => {
            !matches!(error, kube::Error::Api(_))
        }
        WatchError(_) | NoResourceVersion => false,
    }
}

/// The error with its causes; those that the text before them has said already are left out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::objects::Pod;

    fn pod(name: &str, label: &str) -> Pod {
        serde_json::from_value(
            serde_json::json!({"metadata": {"namespace": "x", "name": name, "labels": {"l": label}}}),
        )
        .unwrap()
    }

    /// What was told of each object: its label, or that it is gone.
    fn told(deltas: &mut Objects<Pod>) -> Vec<(String, Option<String>)> {
        let label = |pod: Arc<Pod>| pod.metadata.labels.as_ref().unwrap()["l"].to_owned();
        let objects = std::mem::take(&mut deltas.objects).into_iter();
        objects.map(|(key, pod)| (key.name.to_string(), pod.map(label))).collect()
    }

    fn gone(name: &str) -> (String, Option<String>) {
        (name.to_owned(), None)
    }

    fn is(name: &str, label: &str) -> (String, Option<String>) {
        (name.to_owned(), Some(label.to_owned()))
    }

    struct Several(Kind<Pod>, Objects<Pod>);

    impl Several {
        fn new() -> Self {
            let mut kind = Kind::of_several();
            kind.begin(1);
            Self(kind, Objects::default())
        }

        fn apply(&mut self, watch: WatchId, event: Event<Pod>) -> Vec<(String, Option<String>)> {
            self.0.apply("pods", watch, Ok(event), &mut self.1);
            told(&mut self.1)
        }

        fn list(&mut self, watch: WatchId, pods: &[(&str, &str)]) -> Vec<(String, Option<String>)> {
            self.apply(watch, Event::Init);
            for (name, label) in pods {
                assert!(self.apply(watch, Event::InitApply(pod(name, label))).is_empty(), "a list is told whole");
            }
            self.apply(watch, Event::InitDone)
        }
    }

    #[test]
    fn an_object_is_there_as_long_as_one_watch_has_it() {
        let mut kind = Several::new();
        assert_eq!(kind.list(0, &[("a", "1"), ("b", "1")]), [is("a", "1"), is("b", "1")]);
        assert!(!kind.0.is_listed());
        assert_eq!(kind.list(1, &[("b", "1"), ("c", "1")]), [is("b", "1"), is("c", "1")]);
        assert!(kind.0.is_listed());
        assert_eq!(kind.apply(0, Event::Apply(pod("b", "2"))), [is("b", "2")]);
        assert_eq!(kind.apply(0, Event::Delete(pod("b", "2"))), [], "the other has it");
        assert_eq!(kind.apply(1, Event::Delete(pod("b", "2"))), [gone("b")]);
        assert_eq!(kind.apply(1, Event::Apply(pod("a", "3"))), [is("a", "3")]);
        assert_eq!(kind.list(0, &[("d", "1")]), [is("d", "1")], "watch 1 has a");
        assert_eq!(kind.list(1, &[("d", "1")]), [gone("a"), gone("c"), is("d", "1")]);
        kind.0.end(1, &mut kind.1);
        assert_eq!(told(&mut kind.1), []);
        kind.0.end(0, &mut kind.1);
        assert_eq!(told(&mut kind.1), [gone("d")]);
        assert_eq!(kind.apply(1, Event::Apply(pod("e", "1"))), [], "the watch has ended");
    }

    #[test]
    fn a_watch_that_is_late_takes_nothing_back() {
        let at = |label: &str, version: u64| {
            let mut pod = pod("a", label);
            pod.metadata.resource_version = Some(version.to_string());
            pod
        };
        let mut kind = Several::new();
        kind.list(1, &[]);
        assert_eq!(kind.apply(0, Event::Apply(at("client", 5))), [is("a", "client")]);
        assert_eq!(kind.apply(0, Event::Apply(at("none", 7))), [is("a", "none")]);
        assert_eq!(kind.apply(1, Event::Apply(at("client", 6))), []);
        assert_eq!(kind.apply(1, Event::Delete(at("client", 7))), []);
        assert_eq!(kind.apply(0, Event::Apply(at("more", 8))), [is("a", "more")]);
        assert_eq!(kind.apply(0, Event::Delete(at("more", 9))), [gone("a")]);
        assert_eq!(kind.apply(1, Event::Apply(at("new", 1))), [is("a", "new")], "another pod of its name");
    }

    #[test]
    fn one_watch_alone_tells_what_there_is_in_all() {
        let mut kind = Several(Kind::default(), Objects::default());
        for name in ["a", "b"] {
            kind.0.apply("pods", 0, Ok(Event::InitApply(pod(name, "1"))), &mut kind.1);
        }
        assert_eq!(kind.0.apply("pods", 0, Ok(Event::InitDone), &mut kind.1), Changed::Standing);
        assert!(kind.1.all && kind.1.objects.len() == 2);
    }
}
