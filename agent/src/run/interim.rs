// SPDX-License-Identifier: Apache-2.0
//! Between the start of an agent that comes back and the first word of its API server, which in a large cluster takes seconds to
//! come. Where the one before has left all that it served, packets go by the maps as they stand, whoever looks: so the node is
//! ready, nothing is written, and who asks for a new port waits for the policies that are in force now. Nothing that is remembered
//! of the cluster counts for it, and for as long a source that is merely silent is not stood in for: the maps know it better.
//!
//! That the maps are whole is told by a mark, `runDir/whole.json`: it stands from a pass by what the source has told until one
//! breaks off or goes by what is only remembered, and it names the maps by their key and the configuration, so that it says nothing of
//! others.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use weft_api::{ApiError, AttachmentId, ErrorCode, Request};

use super::{
    asks::{Reply, send},
    memory,
};
use crate::{config::Config, file, model::HashKey};

/// A source that is quicker needs nobody in its place.
const GRACE: Duration = Duration::from_secs(1);
/// How long it may take. Shorter than a plugin waits for its answer.
const LONGEST: Duration = Duration::from_secs(20);

/// Who asked for a port meanwhile; and until when nobody else but the maps says what is served.
#[derive(Debug)]
pub(super) struct Interim {
    /// Whether the maps are whole: else nobody is told that the node is ready, and who asks waits all the same.
    goes_on: bool,
    from: Instant,
    until: Instant,
    held: Vec<(Request, Reply)>,
}

/// Requests that wait, at most; more are answered that the source has not told everything.
const MOST: usize = crate::serve::COMMANDS;

impl Interim {
    /// Of an agent that began to ask its source at `began`, and goes on with what stands, or does not.
    pub(super) fn new(began: Instant, goes_on: bool) -> Self {
        Self { goes_on, from: began + GRACE, until: began + LONGEST, held: Vec::new() }
    }

    /// When it ends at the latest.
    pub(super) const fn until(&self) -> Instant {
        self.until
    }

    /// Whether the node is ready by what stands.
    pub(super) fn is_on(&self, now: Instant) -> bool {
        self.goes_on && self.from <= now && now < self.until
    }

    /// Whether it has taken too long.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.until <= now
    }

    /// When it begins, or ends.
    pub(super) fn next(&self, now: Instant) -> Instant {
        if now < self.from { self.from } else { self.until }
    }

    /// Keeps what asks for a port; gives back everything else. What is released meanwhile is not to come after its release.
    pub(super) fn hold(&mut self, request: Request, reply: Reply) -> Option<(Request, Reply)> {
        if let Request::Release { id } = &request {
            for (_, reply) in self.held.extract_if(.., |(held, _)| id_of(held) == Some(id)) {
                let message = format!("the attachment {id} was released meanwhile");
                send(reply, Err(ApiError { code: ErrorCode::NotReady, message }));
            }
        }
        if self.held.len() >= MOST || id_of(&request).is_none() {
            return Some((request, reply));
        }
        self.held.push((request, reply));
        None
    }

    /// What was held, in order.
    pub(super) fn into_held(self) -> Vec<(Request, Reply)> {
        self.held
    }
}

/// The port that is asked for.
const fn id_of(request: &Request) -> Option<&AttachmentId> {
    match request {
        Request::Allocate(spec) => Some(&spec.id),
        Request::Attach { id, .. } => Some(id),
        _ => None,
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Mark {
    path: PathBuf,
    /// Whether it stands, as far as this agent has seen to it.
    stands: Option<bool>,
}

#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Marked {
    /// Of the configuration that they were filled by: a hash by the key of the maps, which is a secret.
    maps: String,
}

impl Marked {
    fn of(key: HashKey, config: &Config) -> Self {
        Self { maps: format!("{:016x}", key.of("configuration").text(&format!("{config:?}")).finish()) }
    }
}

/// Path of the mark.
pub(super) fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("whole.json")
}

impl Mark {
    pub(super) fn new(run_dir: &Path) -> Self {
        Self { path: path(run_dir), stands: None }
    }

    /// Whether an earlier agent of this configuration has left the maps with this key whole.
    pub(super) fn is_of(&self, key: HashKey, config: &Config) -> bool {
        key != HashKey::default() && memory::load::<Option<Marked>>(&self.path) == Some(Marked::of(key, config))
    }

    /// Sets it, or takes it back. One that cannot be set is no harm: the next agent waits for its source.
    ///
    /// # Errors
    /// It cannot be taken back.
    pub(super) fn set(&mut self, is_whole: bool, key: HashKey, config: &Config) -> io::Result<()> {
        if self.stands == Some(is_whole) {
            return Ok(());
        }
        self.stands = None;
        if is_whole {
            file::save(&self.path, &Marked::of(key, config))?;
        } else {
            file::gone(file::remove(&self.path))?;
        }
        self.stands = Some(is_whole);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;
    use weft_api::PortLink;

    use super::*;

    #[test]
    fn a_mark_is_of_the_maps_that_it_was_set_for_and_of_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let configured =
            |cidrs: &str| serde_json::from_value::<Config>(serde_json::json!({"nonMasqueradeCIDRs": [cidrs]})).unwrap();
        let config = configured("192.0.2.0/24");
        let (key, other) = (HashKey([1, 2]), HashKey([1, 3]));
        let mut mark = Mark::new(dir.path());
        assert!(!mark.is_of(key, &config), "there is none");
        mark.set(true, key, &config).unwrap();
        let next = || Mark::new(dir.path());
        assert!(next().is_of(key, &config) && !next().is_of(other, &config));
        let another = configured("198.51.100.0/24");
        assert!(!next().is_of(key, &another), "packets of pods would leave otherwise");
        let text = std::fs::read_to_string(path(dir.path())).unwrap();
        std::fs::write(path(dir.path()), &text[..text.len() / 2]).unwrap();
        assert!(!next().is_of(key, &config), "torn");
        std::fs::write(path(dir.path()), text).unwrap();
        assert!(next().is_of(key, &config));
        // An agent whose first pass breaks off takes back what the one before has set.
        next().set(false, key, &config).unwrap();
        assert!(!next().is_of(key, &config));
        next().set(false, key, &config).unwrap();
        mark.set(true, key, &config).unwrap();
        assert!(!next().is_of(key, &config), "it is not written again and again");
        mark.set(false, key, &config).unwrap();
        mark.set(true, HashKey::default(), &config).unwrap();
        assert!(!next().is_of(HashKey::default(), &config), "maps that nobody has numbered");
    }

    #[tokio::test]
    async fn who_asks_for_a_port_is_held_in_order_and_nobody_else_is() {
        let now = Instant::now();
        let waits = Interim::new(now, false);
        assert!(!waits.is_on(now + GRACE) && !waits.is_over(now + GRACE), "what stands is not whole");
        let mut interim = Interim::new(now, true);
        assert!(!interim.is_on(now) && interim.next(now) == now + GRACE, "the source may be quick");
        assert!(interim.is_on(now + GRACE) && interim.next(now + GRACE) == now + LONGEST);
        assert!(!interim.is_on(now + LONGEST) && interim.is_over(now + LONGEST));
        let id = |name: &str| AttachmentId { network: "weft".into(), container_id: name.into(), ifname: "eth0".into() };
        let (reply, _answer) = oneshot::channel();
        assert!(interim.hold(Request::Release { id: id("a") }, reply).is_some(), "a release waits for nobody");
        let mut answers = Vec::new();
        for name in ["a", "b", "c"] {
            let (reply, answer) = oneshot::channel();
            let link = PortLink { ifindex: 1, ifname: "weft1".into() };
            assert!(interim.hold(Request::Attach { id: id(name), link }, reply).is_none());
            answers.push(answer);
        }
        let (reply, _answer) = oneshot::channel();
        assert!(interim.hold(Request::Release { id: id("b") }, reply).is_some());
        answers.remove(1).try_recv().unwrap().unwrap_err();
        let held = interim.into_held();
        let held: Vec<&AttachmentId> = held.iter().filter_map(|(request, _)| id_of(request)).collect();
        assert_eq!(held, [&id("a"), &id("c")], "one that was released does not come after its release");
    }
}
