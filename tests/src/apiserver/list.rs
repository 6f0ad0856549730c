// SPDX-License-Identifier: Apache-2.0

//! Lists: whole or in pages, written as they are generated.

use std::{io, sync::atomic::Ordering, thread, time::Duration};

use super::{
    Shared,
    answer::{Asked, status},
    collection::{Cursor, Page},
    http::Connection,
    object::Key,
};

/// Objects that are generated before they are written.
const AT_ONCE: usize = 500;
/// How often a list that is held looks whether it still is.
const HELD: Duration = Duration::from_millis(5);

/// Answers a list. As from a watch cache, `limit` counts only where the client wants the latest version: with
/// `resourceVersion=0`, or any other of which newer ones will do too, the list comes whole.
pub(super) fn answer(shared: &Shared, connection: &mut Connection, asked: &Asked<'_>) -> io::Result<()> {
    while shared.held.load(Ordering::SeqCst) && !shared.ended.load(Ordering::SeqCst) {
        thread::sleep(HELD);
    }
    let collection = shared.collection(asked.kind);
    let token = asked.option("continue");
    let of_cache = token.is_empty() && !asked.option("resourceVersion").is_empty();
    let (from, version) = if token.is_empty() {
        (Cursor::Generated(0), collection.version(&shared.version, !of_cache))
    } else {
        let refused = collection.takes_expired_page();
        match parse(token).filter(|_| !refused) {
            Some(found) => found,
            None => {
                return connection.answer(410, &status(410, "Expired", "The provided continue parameter is too old"));
            }
        }
    };
    if of_cache && asked.option("resourceVersion").parse().is_ok_and(|wanted: u64| wanted > version) {
        return connection.answer(504, &status(504, "Timeout", "Too large resource version"));
    }
    let limit: usize = asked.option("limit").parse().unwrap_or(0);
    let limit = if limit == 0 || of_cache { usize::MAX } else { limit };
    let first = collection.page(&asked.selection, &from, limit.min(AT_ONCE), !of_cache);
    write(shared, connection, asked, first, &Rest { limit, version, latest: !of_cache })
}

/// What of a list is still to be written.
struct Rest {
    limit: usize,
    version: u64,
    latest: bool,
}

fn write(
    shared: &Shared,
    connection: &mut Connection,
    asked: &Asked<'_>,
    mut page: Page,
    Rest { limit, version, latest }: &Rest,
) -> io::Result<()> {
    let (collection, bytes) = (shared.collection(asked.kind), &shared.counts(asked.kind).list_bytes);
    let cut = collection.takes_cut();
    connection.begin()?;
    // Metadata comes last: only then is known where the next page begins. Clients read either order.
    let mut text =
        format!(r#"{{"kind":"{}List","apiVersion":"{}","items":["#, asked.kind.name(), asked.kind.api_version());
    let mut count = 0;
    loop {
        if cut {
            page.items.truncate(page.items.len().div_ceil(2));
        }
        for item in &page.items {
            text += if count == 0 { "" } else { "," };
            text += item;
            count += 1;
        }
        if cut {
            text.truncate(text.floor_char_boundary(text.len().saturating_sub(20)));
            connection.part(text.as_bytes(), || ())?;
            return Err(connection.cut());
        }
        let left = limit - count;
        let Some(next) = page.next.as_ref().filter(|_| left > 0) else { break };
        bytes.fetch_add(text.len() as u64, Ordering::Relaxed);
        connection.part(text.as_bytes(), || ())?;
        text.clear();
        page = collection.page(&asked.selection, next, left.min(AT_ONCE), *latest);
    }
    let next = page.next.map_or_else(String::new, |next| encode(&next, *version));
    text += &format!(r#"],"metadata":{{"resourceVersion":"{version}","continue":"{next}"}}}}"#);
    bytes.fetch_add(text.len() as u64, Ordering::Relaxed);
    connection.part(text.as_bytes(), || ())?;
    connection.finish()?;
    if next.is_empty() {
        collection.list_ended();
    }
    Ok(())
}

fn encode(cursor: &Cursor, version: u64) -> String {
    match cursor {
        Cursor::Generated(index) => format!("{version}.g.{index}"),
        Cursor::After(key) => format!("{version}.k.{}/{}", key.namespace, key.name),
    }
}

fn parse(token: &str) -> Option<(Cursor, u64)> {
    let mut parts = token.splitn(3, '.');
    let version = parts.next()?.parse().ok()?;
    let cursor = match (parts.next()?, parts.next()?) {
        ("g", index) => Cursor::Generated(index.parse().ok()?),
        ("k", key) => {
            let (namespace, name) = key.split_once('/')?;
            Cursor::After(Key::new(namespace, name))
        }
        _ => return None,
    };
    Some((cursor, version))
}

#[cfg(test)]
mod tests {
    use super::{Cursor, Key, encode, parse};

    #[test]
    fn a_token_is_read_as_it_was_written() {
        for cursor in [Cursor::Generated(7), Cursor::After(Key::new("a", "b.c")), Cursor::After(Key::new("", "n"))] {
            assert_eq!(parse(&encode(&cursor, 12)), Some((cursor, 12)));
        }
        assert_eq!(parse("12.x.y"), None);
        assert_eq!(parse("garbage"), None);
    }
}
