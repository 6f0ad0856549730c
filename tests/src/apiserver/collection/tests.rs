// SPDX-License-Identifier: Apache-2.0

use std::{sync::atomic::AtomicU64, time::Duration};

use serde_json::json;

use super::{Arc, Collection, Cursor, Generate, Head, Key, Next, Selection};

struct Ten;

impl Generate for Ten {
    fn count(&self) -> usize {
        10
    }

    fn head(&self, index: usize) -> Head {
        let labels = vec![("even".to_owned(), index.is_multiple_of(2).to_string())];
        Head { key: Key::new("a", &format!("g{index}")), labels, node: None, cluster_ip: None }
    }

    fn text(&self, index: usize) -> String {
        let head = self.head(index);
        json!({"metadata": {"namespace": "a", "name": head.key.name, "labels": {"even": head.labels[0].1}}}).to_string()
    }

    fn find(&self, key: &Key) -> Option<usize> {
        key.name.strip_prefix('g')?.parse().ok().filter(|index| *index < 10)
    }
}

fn collection() -> (Collection, AtomicU64) {
    let collection = Collection::default();
    collection.generate(Arc::new(Ten));
    (collection, AtomicU64::new(10))
}

fn object(name: &str, even: &str) -> serde_json::Value {
    json!({"metadata": {"namespace": "a", "name": name, "labels": {"even": even}}})
}

fn listed(collection: &Collection, selection: &Selection, limit: usize) -> Vec<String> {
    let mut from = Some(Cursor::Generated(0));
    let mut names = Vec::new();
    while let Some(cursor) = from {
        let page = collection.page(selection, &cursor, limit, false);
        assert!(page.items.len() <= limit);
        names.extend(page.items.iter().map(|text| {
            let object: serde_json::Value = serde_json::from_str(text).unwrap();
            object["metadata"]["name"].as_str().unwrap().to_owned()
        }));
        from = page.next;
    }
    names.sort();
    names
}

#[test]
fn pages_of_any_size_have_every_object_once() {
    let (collection, versions) = collection();
    for name in ["g3", "x", "y"] {
        collection.put(&versions, object(name, "false")).unwrap();
    }
    collection.delete(&versions, &Key::new("a", "g4")).unwrap();
    let all = listed(&collection, &Selection::default(), usize::MAX);
    assert_eq!(all, ["g0", "g1", "g2", "g3", "g5", "g6", "g7", "g8", "g9", "x", "y"]);
    for limit in 1..13 {
        assert_eq!(listed(&collection, &Selection::default(), limit), all, "{limit}");
    }
    let even = Selection::new(None, "even=true", "").unwrap();
    for limit in 1..6 {
        assert_eq!(listed(&collection, &even, limit), ["g0", "g2", "g6", "g8"], "{limit}");
    }
}

#[test]
fn a_page_that_was_rendered_shows_what_was_put_and_deleted_since() {
    let (collection, versions) = collection();
    let all = || listed(&collection, &Selection::default(), 4);
    assert_eq!(all().len(), 10);
    assert_eq!(all().len(), 10, "the same pages once more");
    collection.mark(10);
    collection.delete(&versions, &Key::new("a", "g4")).unwrap();
    assert!(!all().contains(&"g4".to_owned()));
    collection.put(&versions, object("g4", "true")).unwrap();
    assert_eq!(all().iter().filter(|name| *name == "g4").count(), 1);
    collection.fall_back();
    assert_eq!(all().len(), 10, "as it was");
}

#[test]
fn a_watch_sees_objects_enter_and_leave_its_selection() {
    let (collection, versions) = collection();
    let mut place = collection.begin(10).unwrap();
    let key = Key::new("a", "g2");
    collection.put(&versions, object("g2", "false")).unwrap();
    collection.put(&versions, object("g2", "true")).unwrap();
    collection.put(&versions, object("g2", "true")).unwrap();
    collection.delete(&versions, &key).unwrap();
    collection.delete(&versions, &key).unwrap_err();
    let Next::Tell(entries) = collection.next(&mut place, Duration::ZERO) else { panic!("nothing to tell") };
    let events = |selection: &str| {
        let selection = Selection::new(None, selection, "").unwrap();
        entries.iter().map(|entry| entry.event(&selection)).collect::<Vec<_>>()
    };
    assert_eq!(events("even=true"), [Some("DELETED"), Some("ADDED"), Some("MODIFIED"), Some("DELETED")]);
    assert_eq!(events("even=false"), [Some("ADDED"), Some("DELETED"), None, None]);
    assert_eq!(entries.iter().map(|entry| entry.version).collect::<Vec<_>>(), [11, 12, 13, 14]);
    let mut late = collection.begin(13).unwrap();
    assert!(matches!(collection.next(&mut late, Duration::ZERO), Next::Tell(entries) if entries.len() == 1));
}

#[test]
fn what_is_forgotten_is_refused_and_what_is_frozen_is_old() {
    let (collection, versions) = collection();
    let mut place = collection.begin(10).unwrap();
    collection.mark(10);
    collection.put(&versions, object("new", "true")).unwrap();
    collection.fall_back();
    assert!(matches!(collection.next(&mut place, Duration::ZERO), Next::Silence));
    assert_eq!((collection.version(&versions, false), listed(&collection, &Selection::default(), 99).len()), (10, 10));
    assert_eq!(collection.version(&versions, true), 11);
    collection.thaw();
    assert!(matches!(collection.next(&mut place, Duration::ZERO), Next::Tell(_)));
    assert_eq!((collection.version(&versions, false), listed(&collection, &Selection::default(), 99).len()), (11, 11));
    collection.expire(11);
    assert!(matches!(collection.next(&mut place, Duration::ZERO), Next::Expired));
    assert!(collection.begin(10).is_none() && collection.begin(11).is_some());
}
