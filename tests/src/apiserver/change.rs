// SPDX-License-Identifier: Apache-2.0

//! One change of an object: what the watches are told.

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use super::{lock, object::Head, selector::Selection};

/// A change that was made; tells when it went out.
#[derive(Clone, Debug)]
pub struct Change(pub(super) Arc<Entry>);

impl Change {
    /// When the last byte of its event was about to be written, to the watch that was told last; `None`: to none yet.
    ///
    /// The moment is taken before the write: the agent may run as soon as the bytes are there, and before the server again.
    #[must_use]
    pub fn written(&self) -> Option<Instant> {
        *lock(&self.0.written)
    }
}

/// A line of the history.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) version: u64,
    pub(super) told: Told,
    /// The object after the change; before it, where it was deleted.
    pub(super) text: String,
    written: Mutex<Option<Instant>>,
}

/// What kind of line.
#[derive(Debug)]
pub(super) enum Told {
    /// What the object was and is to selectors.
    Change { old: Option<Box<Head>>, new: Option<Box<Head>> },
    /// An event as it is, to every watch.
    Verbatim(&'static str),
}

impl Entry {
    pub(super) fn new(version: u64, told: Told, text: String) -> Arc<Self> {
        Arc::new(Self { version, told, text, written: Mutex::new(None) })
    }

    /// The event's type for a watch of `selection`; `None`: no event.
    pub(super) fn event(&self, selection: &Selection) -> Option<&'static str> {
        let (old, new) = match &self.told {
            Told::Verbatim(event) => return Some(event),
            Told::Change { old, new } => (old, new),
        };
        let [was, is] = [old, new].map(|head| head.as_ref().is_some_and(|head| selection.allows(head)));
        match (was, is) {
            (false, false) => None,
            (false, true) => Some("ADDED"),
            (true, true) => Some("MODIFIED"),
            (true, false) => Some("DELETED"),
        }
    }

    pub(super) fn about_to_be_written(&self) {
        *lock(&self.written) = Some(Instant::now());
    }
}
