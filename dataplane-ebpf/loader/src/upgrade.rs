// SPDX-License-Identifier: Apache-2.0
//! Leaving nothing of another ABI version, or nothing at all.

use std::{fs, os::fd::AsFd, path::Path, thread, time::Duration};

use nix::time::{ClockId, clock_gettime};

use crate::{
    Dataplane, Error, carried,
    convert::{self, Others},
    error::Result,
    filter::remove_every_filter,
    link::{Attachment, LinkReport, live_attachments, remove_pin},
    pin::{PinDir, exists, list, pins, remove_map, unless_gone, version_dirs},
    program::Anchor,
    socket::is_socket_pin,
    sys,
};

/// Where connections of another version cannot be taken over: between the exchange of ports' programs and of those that hear other nodes and the
/// outside. An answer that comes to a new program before a packet of who asked has gone by one finds no entry, and would not be
/// translated back.
const UNDER_WAY: Duration = Duration::from_millis(300);

/// Longer than a program runs on one packet, should the kernel not tell when all have ended.
const RUN_TIME: Duration = Duration::from_millis(20);

/// How long packets that no entry is for are held at most, should the agent end while it copies connections.
const HOLD_AT_MOST: Duration = Duration::from_secs(10);

impl Dataplane {
    /// What other ABI versions of Weft still do. Do not attach this version's programs there: they would come first, with
    /// maps that may be empty. [`Dataplane::take_over_other_versions`] swaps them.
    ///
    /// # Errors
    /// [`Error::Path`], [`Error::Filters`] or [`Error::Link`].
    pub fn attachments_of_other_versions(&self) -> Result<Vec<Attachment>> {
        let mut attachments = Vec::new();
        for other in self.pins.others()? {
            attachments.extend(unless_gone(live_attachments(&PinDir::of_version(&other).links))?.unwrap_or_default());
        }
        attachments.extend(self.filters_of_other_versions()?);
        Ok(attachments)
    }

    /// Takes over what other ABI versions of Weft did: swaps their links and filters to this version's programs, then removes
    /// their maps. Until then their programs go on with their own maps, so call it when this version's maps have been filled.
    ///
    /// # Errors
    /// [`Error::Path`], [`Error::Map`], [`Error::Filters`] or [`Error::Link`]; what is left can be tried again.
    pub fn take_over_other_versions(&mut self) -> Result<LinkReport> {
        let others = convert::others(&self.pins, &self.maps)?;
        // Most of them, while their programs go on.
        let mut copied = self.copy_connections(&others, || Ok(()))?;
        let holds = !others.tables.is_empty();
        if holds {
            self.hold_what_is_unknown()?;
        }
        let swapped = self.swap_all(others.some_are_lost);
        if holds {
            if sys::wait_for_programs().is_err() {
                thread::sleep(RUN_TIME);
            }
            let late = self.copy_connections(&others, || self.hold_what_is_unknown());
            self.maps.takeover().set(0, &0)?;
            copied += late?;
            tracing::info!(entries = copied, "took connections of other versions over");
        }
        // Not before: what is exchanged already needs its connections.
        let report = swapped?;
        convert::forget(&self.pins)?;
        for version in self.pins.others()? {
            remove_version(&version)?;
            tracing::info!(dir = %version.display(), "removed what another version had pinned");
        }
        carried::remove_other_layouts(&self.pins)?;
        Ok(report)
    }

    fn copy_connections(&self, others: &Others, progress: impl Fn() -> Result<()>) -> Result<usize> {
        others.tables.iter().try_fold(0, |copied, tables| Ok(copied + tables.copy(&self.maps, &progress)?))
    }

    /// From now on, until the copies are complete: packets that no entry is for may be of a connection that has not come yet.
    fn hold_what_is_unknown(&self) -> Result<()> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        let until = u64::try_from((now + HOLD_AT_MOST).as_nanos()).unwrap_or(0);
        self.maps.takeover().set(0, &until)
    }

    /// Swaps everything that other versions have attached to this version's programs.
    fn swap_all(&mut self, some_are_lost: bool) -> Result<LinkReport> {
        let mut report = LinkReport::default();
        // Before their maps are unpinned. What fails keeps nothing else from its exchange: it is tried again.
        let mut swapped = self.take_over_filters(&mut report);
        if some_are_lost && !report.adopted.is_empty() {
            thread::sleep(UNDER_WAY);
        }
        for version in self.pins.others()? {
            let other = PinDir::of_version(&version);
            let links = unless_gone(list(&other.links))?.unwrap_or_default();
            for name in links.into_iter().filter(|name| !is_socket_pin(name)) {
                let taken = match Attachment::from_pin_name(&name) {
                    Some(attachment) => {
                        self.take_over(attachment, &other.links.join(&name)).map(|is| is.then_some(attachment))
                    }
                    None => Ok(None),
                };
                match taken {
                    Ok(Some(attachment)) => report.adopted.push(attachment),
                    Ok(None) => report.removed.push(name),
                    Err(error) => swapped = swapped.and(Err(error)),
                }
            }
        }
        report.adopted.sort_unstable();
        report.adopted.dedup();
        swapped.map(|()| report)
    }

    /// `false`: the link is of no use, or this version is attached there already.
    fn take_over(&mut self, attachment: Attachment, old: &Path) -> Result<bool> {
        let new = self.link_pin(attachment);
        let taken = !exists(&new)? && self.swap_if_live(attachment, old)?;
        if taken && attachment.program.anchor() == Anchor::Link {
            fs::rename(old, &new).map_err(Error::path("move the pin", old))?;
        }
        Ok(taken)
    }
}

/// Detaches all programs and removes all pins of every ABI version, and `pin_dir` itself. Flows end with it. A folder that is
/// not there is fine. Filters are those of the calling thread's network namespace.
///
/// # Errors
/// [`Error::Path`] or [`Error::Filters`]; what is left can be tried again.
pub fn remove_everything(pin_dir: &Path) -> Result<()> {
    remove_every_filter()?;
    for version in unless_gone(version_dirs(pin_dir))?.unwrap_or_default() {
        remove_version(&version)?;
    }
    let carried = PinDir::of_this_version(pin_dir).carried();
    pins(&carried)?.iter().try_for_each(|pin| remove_map(pin))?;
    remove_dir(&carried)?;
    remove_dir(pin_dir)
}

/// Links first: a program never runs without its maps.
fn remove_version(version: &Path) -> Result<()> {
    let dir = PinDir::of_version(version);
    for pin in pins(&dir.links)? {
        let link = sys::object_get(&pin).map_err(Error::path("open pinned link", &pin))?;
        remove_pin(&pin, link.as_fd())?;
    }
    pins(&dir.maps)?.iter().try_for_each(|pin| remove_map(pin))?;
    [dir.links.as_path(), dir.maps.as_path(), version].into_iter().try_for_each(remove_dir)
}

fn remove_dir(dir: &Path) -> Result<()> {
    unless_gone(fs::remove_dir(dir).map_err(Error::path("remove folder", dir))).map(|_| ())
}
