// SPDX-License-Identifier: Apache-2.0

//! The objects of one kind, their history, and how they are lied about.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    change::{Change, Entry, Told},
    lock,
    object::{Generate, Head, Key},
    rendered::{Rendered, RenderedPage},
    selector::Selection,
};

/// Lines of history that are kept.
const HISTORY: usize = 5_000;

/// Objects of one kind.
#[derive(Default)]
pub(super) struct Collection {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    generated: Option<Arc<dyn Generate>>,
    /// Which of them are of a namespace, in order: as an API server, it lists one without a look at the others.
    by_namespace: BTreeMap<String, Vec<usize>>,
    rendered: Rendered,
    replaced: Replaced,
    history: VecDeque<Arc<Entry>>,
    /// Position of the first line of `history`, counted from the first ever.
    first: u64,
    /// What is at this version or before it is forgotten.
    forgotten: u64,
    /// A watch that began in an earlier life is told 410.
    life: u64,
    /// A watch that began before the last break ends without a word.
    breaks: u64,
    watches: usize,
    lists: usize,
    cut_lists: usize,
    expired_pages: usize,
    mark: Option<Frozen>,
    frozen: Option<Frozen>,
}

/// What was put or deleted, over what is generated.
#[derive(Clone, Default)]
struct Replaced {
    objects: BTreeMap<Key, (Head, Arc<str>)>,
    /// Generated ones that are not to be seen any more.
    hidden: BTreeSet<usize>,
}

/// How a collection was at a moment.
struct Frozen {
    replaced: Replaced,
    version: u64,
    /// The end of the history then.
    end: u64,
}

/// Where a list goes on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Cursor {
    Generated(usize),
    After(Key),
}

/// A part of a list.
#[derive(Default)]
pub(super) struct Page {
    pub(super) items: Vec<Arc<str>>,
    pub(super) next: Option<Cursor>,
}

/// Where a watch is.
pub(super) struct Place {
    position: u64,
    life: u64,
    breaks: u64,
}

/// What a watch is to do next.
pub(super) enum Next {
    Tell(Vec<Arc<Entry>>),
    Silence,
    Expired,
    Broken,
}

impl Collection {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    pub(super) fn wake(&self) {
        self.changed.notify_all();
    }

    pub(super) fn generate(&self, objects: Arc<dyn Generate>) {
        let mut by_namespace: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for index in 0..objects.count() {
            by_namespace.entry(objects.head(index).key.namespace).or_default().push(index);
        }
        let mut inner = self.lock();
        (inner.generated, inner.by_namespace, inner.rendered) = (Some(objects), by_namespace, Rendered::default());
    }

    pub(super) fn get(&self, key: &Key) -> Option<Value> {
        let (_, text) = self.lock().current(key)?;
        serde_json::from_str(&text).ok()
    }

    pub(super) fn put(&self, versions: &AtomicU64, mut object: Value) -> Result<Change> {
        let new = Head::of(&object)?;
        let mut inner = self.lock();
        let version = versions.fetch_add(1, Ordering::SeqCst) + 1;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let old = inner.current(&new.key).map(|(head, _)| head);
        let text = object.to_string();
        inner.hide(&new.key);
        inner.replaced.objects.insert(new.key.clone(), (new.clone(), text.as_str().into()));
        let change =
            inner.record(Entry::new(version, Told::Change { old: old.map(Box::new), new: Some(Box::new(new)) }, text));
        drop(inner);
        self.wake();
        Ok(change)
    }

    pub(super) fn delete(&self, versions: &AtomicU64, key: &Key) -> Result<Change> {
        let mut inner = self.lock();
        let (old, text) = inner.current(key).with_context(|| format!("{}/{} is not there", key.namespace, key.name))?;
        let version = versions.fetch_add(1, Ordering::SeqCst) + 1;
        let mut object: Value = serde_json::from_str(&text)?;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        inner.hide(key);
        inner.replaced.objects.remove(key);
        let told = Told::Change { old: Some(Box::new(old)), new: None };
        let change = inner.record(Entry::new(version, told, object.to_string()));
        drop(inner);
        self.wake();
        Ok(change)
    }

    pub(super) fn inject(&self, event: &'static str, object: &Value) -> Change {
        let change = self.lock().record(Entry::new(0, Told::Verbatim(event), object.to_string()));
        self.wake();
        change
    }

    pub(super) fn expire(&self, version: u64) {
        let mut inner = self.lock();
        inner.first += u64::try_from(inner.history.len()).unwrap_or_default();
        inner.history.clear();
        inner.forgotten = version;
        inner.life += 1;
        drop(inner);
        self.wake();
    }

    pub(super) fn break_watches(&self) {
        self.lock().breaks += 1;
        self.wake();
    }

    pub(super) fn cut_lists(&self, count: usize) {
        self.lock().cut_lists = count;
    }

    pub(super) fn expire_pages(&self, count: usize) {
        self.lock().expired_pages = count;
    }

    pub(super) fn mark(&self, version: u64) {
        let mut inner = self.lock();
        let (replaced, end) = (inner.replaced.clone(), inner.end());
        inner.mark = Some(Frozen { replaced, version, end });
    }

    pub(super) fn fall_back(&self) {
        let mut inner = self.lock();
        inner.frozen = inner.mark.take();
    }

    pub(super) fn thaw(&self) {
        self.lock().frozen = None;
        self.wake();
    }

    pub(super) fn watches(&self) -> usize {
        self.lock().watches
    }

    pub(super) fn lists(&self) -> usize {
        self.lock().lists
    }

    /// Whether this answer to a list is to be cut.
    pub(super) fn takes_cut(&self) -> bool {
        take_one(&mut self.lock().cut_lists)
    }

    /// Whether this further page is to be refused.
    pub(super) fn takes_expired_page(&self) -> bool {
        take_one(&mut self.lock().expired_pages)
    }

    /// A list is out to its last byte.
    pub(super) fn list_ended(&self) {
        self.lock().lists += 1;
    }

    /// The version of what is served; the latest where that is asked for.
    pub(super) fn version(&self, versions: &AtomicU64, latest: bool) -> u64 {
        let inner = self.lock();
        let behind = inner.frozen.as_ref().filter(|_| !latest);
        behind.map_or_else(|| versions.load(Ordering::SeqCst), |frozen| frozen.version)
    }

    /// Up to `limit` objects of `selection` from `from` on, as they are served or, where that is asked for, as they are.
    pub(super) fn page(&self, selection: &Selection, from: &Cursor, limit: usize, latest: bool) -> Page {
        let mut inner = self.lock();
        let mut page = Page::default();
        if let Cursor::Generated(index) = from
            && let Some(next) = inner.rendered_page(selection, (*index, limit), latest, &mut page.items)
        {
            page.next = Some(Cursor::Generated(next));
            return page;
        }
        let replaced = inner.served(latest);
        let (after, mut last) = match from {
            Cursor::Generated(_) => (Bound::Unbounded, Cursor::Generated(inner.count())),
            Cursor::After(key) => (Bound::Excluded(key), from.clone()),
        };
        for (key, (head, text)) in replaced.objects.range::<Key, _>((after, Bound::Unbounded)) {
            if !selection.allows(head) {
                continue;
            }
            if page.items.len() == limit {
                page.next = Some(last);
                break;
            }
            page.items.push(Arc::clone(text));
            last = Cursor::After(key.clone());
        }
        page
    }

    /// Begins a watch after `version`; `None`: that is forgotten.
    pub(super) fn begin(&self, version: u64) -> Option<Place> {
        let mut inner = self.lock();
        if version < inner.forgotten {
            return None;
        }
        let position = inner.history.iter().position(|entry| entry.version > version);
        let position = position.unwrap_or(inner.history.len());
        inner.watches += 1;
        let position = inner.first + u64::try_from(position).unwrap_or_default();
        Some(Place { position, life: inner.life, breaks: inner.breaks })
    }

    pub(super) fn end(&self) {
        self.lock().watches -= 1;
    }

    /// Waits for something to do, `patience` at most.
    pub(super) fn next(&self, place: &mut Place, patience: Duration) -> Next {
        let inner = self.lock();
        let idle = |inner: &mut Inner| {
            inner.life == place.life && inner.breaks == place.breaks && inner.visible_end() <= place.position
        };
        let waited = self.changed.wait_timeout_while(inner, patience, idle);
        let (inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if inner.breaks != place.breaks {
            return Next::Broken;
        }
        if inner.life != place.life || place.position < inner.first {
            return Next::Expired;
        }
        let skip = usize::try_from(place.position - inner.first).unwrap_or_default();
        let take = usize::try_from(inner.visible_end().saturating_sub(place.position)).unwrap_or_default();
        let entries: Vec<_> = inner.history.iter().skip(skip).take(take).cloned().collect();
        if entries.is_empty() {
            return Next::Silence;
        }
        place.position += u64::try_from(entries.len()).unwrap_or_default();
        Next::Tell(entries)
    }
}

fn take_one(count: &mut usize) -> bool {
    let some = *count > 0;
    *count = count.saturating_sub(1);
    some
}

impl Inner {
    /// How many are generated.
    fn count(&self) -> usize {
        self.generated.as_ref().map_or(0, |objects| objects.count())
    }

    fn end(&self) -> u64 {
        self.first + u64::try_from(self.history.len()).unwrap_or_default()
    }

    /// The end of what watches may be told.
    fn visible_end(&self) -> u64 {
        self.frozen.as_ref().map_or_else(|| self.end(), |frozen| frozen.end)
    }

    fn seen(&self) -> &Replaced {
        self.frozen.as_ref().map_or(&self.replaced, |frozen| &frozen.replaced)
    }

    /// As it is seen or, where that is asked for, as it is.
    fn served(&self, latest: bool) -> &Replaced {
        if latest { &self.replaced } else { self.seen() }
    }

    fn current(&self, key: &Key) -> Option<(Head, Arc<str>)> {
        if let Some(found) = self.replaced.objects.get(key) {
            return Some(found.clone());
        }
        let generated = self.generated.as_ref()?;
        let index = generated.find(key).filter(|index| !self.replaced.hidden.contains(index))?;
        Some((generated.head(index), generated.text(index).into()))
    }

    fn hide(&mut self, key: &Key) {
        if let Some(index) = self.generated.as_ref().and_then(|objects| objects.find(key)) {
            self.replaced.hidden.insert(index);
        }
    }

    fn record(&mut self, entry: Arc<Entry>) -> Change {
        self.history.push_back(Arc::clone(&entry));
        if self.history.len() > HISTORY
            && let Some(gone) = self.history.pop_front()
        {
            self.first += 1;
            self.forgotten = self.forgotten.max(gone.version);
        }
        Change(entry)
    }

    /// As [`Inner::generated_page`], written anew only where objects of the collection were hidden since.
    fn rendered_page(
        &mut self,
        selection: &Selection,
        (index, limit): (usize, usize),
        latest: bool,
        items: &mut Vec<Arc<str>>,
    ) -> Option<usize> {
        let replaced = self.served(latest);
        let (key, hidden) = ((selection.clone(), index, limit), replaced.hidden.len());
        if let Some(page) = self.rendered.get(&key, hidden) {
            items.extend_from_slice(&page.items);
            return page.next;
        }
        let next = self.generated_page(selection, index, limit, replaced, items);
        self.rendered.keep(key, RenderedPage { hidden, items: items.clone(), next });
        next
    }

    /// Fills `items` up to `limit` with generated objects from `index` on; where it goes on, if there are more.
    fn generated_page(
        &self,
        selection: &Selection,
        index: usize,
        limit: usize,
        replaced: &Replaced,
        items: &mut Vec<Arc<str>>,
    ) -> Option<usize> {
        let generated = self.generated.as_ref()?;
        let of_namespace = |namespace| {
            let all = self.by_namespace.get(namespace).map_or(&[][..], Vec::as_slice);
            all[all.partition_point(|found| *found < index)..].iter().copied()
        };
        let some = selection.namespace.as_deref().map(of_namespace);
        let all = some.is_none().then(|| index..generated.count());
        for index in some.into_iter().flatten().chain(all.into_iter().flatten()) {
            if replaced.hidden.contains(&index) || !selection.allows(&generated.head(index)) {
                continue;
            }
            if items.len() == limit {
                return Some(index);
            }
            items.push(generated.text(index).into());
        }
        None
    }
}

#[cfg(test)]
mod tests;
