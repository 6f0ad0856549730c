// SPDX-License-Identifier: Apache-2.0

//! Watches.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    Shared,
    answer::{Asked, status},
    change::Entry,
    collection::{Collection, Cursor, Next, Place},
    http::Connection,
    kind::Kind,
};

/// Between two bookmarks of a silent watch.
const BOOKMARK: Duration = Duration::from_secs(10);
/// How often a watch that nothing happens to looks whether the server has ended.
const LOOK: Duration = Duration::from_millis(500);
/// A watch that names no time.
const LONGEST: u64 = 1800;
/// Objects of a beginning watch that are generated before they are written.
const AT_ONCE: usize = 500;

/// What a bookmark has in place of an object.
pub(super) fn bookmark(kind: Kind, version: u64) -> Value {
    json!({
        "kind": kind.name(), "apiVersion": kind.api_version(),
        "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null},
    })
}

/// Counted as long as it lives.
struct Watching<'a>(&'a Collection);

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Answers a watch.
pub(super) fn answer(shared: &Shared, connection: &mut Connection, asked: &Asked<'_>) -> io::Result<()> {
    let collection = shared.collection(asked.kind);
    let whole = asked.is_set("sendInitialEvents");
    let version = match asked.option("resourceVersion") {
        "" | "0" => collection.version(&shared.version, false),
        _ if whole => collection.version(&shared.version, false),
        text => match text.parse() {
            Ok(version) => version,
            Err(_) => return connection.answer(400, &status(400, "BadRequest", "invalid resource version")),
        },
    };
    let Some(place) = collection.begin(version) else {
        return connection.answer(410, &expired());
    };
    let watching = Watching(collection);
    connection.begin()?;
    let without_list = whole || matches!(asked.option("resourceVersion"), "" | "0");
    if without_list {
        begin_whole(shared, connection, asked)?;
    }
    if whole {
        let mut object = bookmark(asked.kind, version);
        object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        tell(shared, connection, asked.kind, &line("BOOKMARK", &object.to_string()), &[])?;
        collection.list_ended();
    }
    follow(shared, connection, asked, place)?;
    drop(watching);
    connection.finish()
}

fn expired() -> Value {
    status(410, "Expired", "too old resource version")
}

fn line(event: &str, object: &str) -> String {
    format!("{{\"type\":\"{event}\",\"object\":{object}}}\n")
}

/// All there is, as events.
fn begin_whole(shared: &Shared, connection: &mut Connection, asked: &Asked<'_>) -> io::Result<()> {
    let mut from = Some(Cursor::Generated(0));
    while let Some(cursor) = from {
        let page = shared.collection(asked.kind).page(&asked.selection, &cursor, AT_ONCE, false);
        let text: String = page.items.iter().map(|item| line("ADDED", item)).collect();
        tell(shared, connection, asked.kind, &text, &[])?;
        from = page.next;
    }
    Ok(())
}

/// Tells what happens until the watch's time is over.
fn follow(shared: &Shared, connection: &mut Connection, asked: &Asked<'_>, mut place: Place) -> io::Result<()> {
    let collection = shared.collection(asked.kind);
    let seconds = asked.option("timeoutSeconds").parse().unwrap_or(LONGEST);
    let end = Instant::now() + Duration::from_secs(seconds);
    let bookmarks = asked.is_set("allowWatchBookmarks");
    let mut spoken = Instant::now();
    while Instant::now() < end {
        let version = collection.version(&shared.version, false);
        let next = collection.next(&mut place, LOOK);
        if shared.ended.load(Ordering::SeqCst) {
            return Err(connection.cut());
        }
        match next {
            Next::Tell(entries) => {
                let (text, told) = lines(&entries, asked, bookmarks);
                tell(shared, connection, asked.kind, &text, &told)?;
                spoken = Instant::now();
            }
            Next::Silence if bookmarks && spoken.elapsed() >= BOOKMARK => {
                let text = line("BOOKMARK", &bookmark(asked.kind, version).to_string());
                tell(shared, connection, asked.kind, &text, &[])?;
                spoken = Instant::now();
            }
            Next::Silence => {}
            Next::Expired => return tell(shared, connection, asked.kind, &line("ERROR", &expired().to_string()), &[]),
            Next::Broken => return Err(connection.cut()),
        }
    }
    Ok(())
}

/// The events of `entries` for this watch, and those entries that there are events of.
fn lines(entries: &[Arc<Entry>], asked: &Asked<'_>, bookmarks: bool) -> (String, Vec<Arc<Entry>>) {
    let mut text = String::new();
    let mut told = Vec::new();
    for entry in entries {
        let Some(event) = entry.event(&asked.selection).filter(|event| bookmarks || *event != "BOOKMARK") else {
            continue;
        };
        text += &line(event, &entry.text);
        told.push(Arc::clone(entry));
    }
    (text, told)
}

fn tell(
    shared: &Shared,
    connection: &mut Connection,
    kind: Kind,
    text: &str,
    entries: &[Arc<Entry>],
) -> io::Result<()> {
    shared.counts(kind).watch_bytes.fetch_add(text.len() as u64, Ordering::Relaxed);
    connection.part(text.as_bytes(), || entries.iter().for_each(|entry| entry.about_to_be_written()))
}
