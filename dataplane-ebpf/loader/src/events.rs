// SPDX-License-Identifier: Apache-2.0
//! Reading the event ring.

use std::{
    fmt,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use aya::maps::{Map, MapData, RingBuf};
use weft_abi::{Event, map};
use zerocopy::FromBytes;

use crate::{Error, error::Result, sys::RawMap};

/// Reader of the event ring. The ring has one read position, so there should be one reader.
///
/// Its descriptor is readable while events wait: use it with `poll` or tokio's `AsyncFd`, and after each readiness take
/// events until there is none, or the ring gives no further signal.
pub struct Events {
    ring: RingBuf<MapData>,
}

impl Events {
    pub(crate) fn open(map: &RawMap) -> Result<Self> {
        let fd = map.fd().try_clone_to_owned().map_err(Error::map(map::EVENTS, "duplicate the descriptor of"))?;
        let ring = MapData::from_fd(fd).and_then(|data| RingBuf::try_from(Map::RingBuf(data)));
        Ok(Self {
            ring: ring.map_err(|error| Error::map(map::EVENTS, "map into memory")(std::io::Error::other(error)))?,
        })
    }

    /// The next event, or `None` when all are read. Never waits. Records that are no [`Event`] are skipped.
    #[expect(clippy::should_implement_trait, reason = "None is not the end: more may come")]
    pub fn next(&mut self) -> Option<Event> {
        while let Some(record) = self.ring.next() {
            match Event::read_from_bytes(&record) {
                Ok(event) => return Some(event),
                Err(_) => tracing::warn!(map = map::EVENTS, bytes = record.len(), "record is not an event"),
            }
        }
        None
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("fd", &self.as_raw_fd()).finish()
    }
}
