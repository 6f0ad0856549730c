// SPDX-License-Identifier: Apache-2.0
//! Attaching programs to devices so that they outlive the process: those of workloads' ports by filters (`filter.rs`), the rest
//! by tcx links.
//!
//! Each link is pinned as `links/<ifindex>-<program>`. A program is attached before all others on its hook, so that nobody
//! else's program decides before Weft.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::programs::{
    LinkOrder, SchedClassifier, TcAttachType,
    links::{FdLink, PinnedLink},
    tc::{SchedClassifierLink, TcAttachOptions},
};

use crate::{
    Dataplane, Error, Program,
    error::{Result, Source, chain},
    filter,
    pin::list,
    program::{Anchor, Direction},
    socket::is_socket_pin,
    sys::{self, LinkInfo},
};

/// A program on a device.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Attachment {
    /// Index of the device.
    pub ifindex: u32,
    /// The program.
    pub program: Program,
}

/// What was found pinned, and what became of it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct LinkReport {
    /// What was swapped to this version's programs without a gap.
    pub adopted: Vec<Attachment>,
    /// What was removed, as `<ifindex>-<program>`: its device is gone, or no program has that name.
    pub removed: Vec<String>,
}

impl Attachment {
    fn pin_name(self) -> String {
        format!("{}-{}", self.ifindex, self.program)
    }

    pub(crate) fn from_pin_name(name: &str) -> Option<Self> {
        let (ifindex, program) = name.split_once('-')?;
        let attachment = Self { ifindex: ifindex.parse().ok()?, program: Program::from_name(program)? };
        (attachment.pin_name() == name).then_some(attachment)
    }

    /// Whether a link still does this. The kernel sets a link's index to 0 when its device goes, also if another device
    /// gets the same index later.
    const fn is_done_by(self, link: &LinkInfo) -> bool {
        link.kind == sys::LINK_TCX && link.ifindex == self.ifindex
    }
}

impl Dataplane {
    /// Attaches `program` to a device, given by name and index. Does nothing if it is attached already.
    ///
    /// The name is resolved in the network namespace of the calling thread: call it from a thread that never leaves the
    /// host's (or the node's) namespace.
    ///
    /// # Errors
    /// [`Error::Link`]; [`Error::Interface`] if the name does not have that index there. Then nothing is attached.
    pub fn attach(&mut self, program: Program, ifname: &str, ifindex: u32) -> Result<()> {
        let attachment = Attachment { ifindex, program };
        if program.anchor() == Anchor::Filter {
            named(attachment, ifname)?;
            return self.attach_filter(attachment);
        }
        let pin = self.link_pin(attachment);
        if let Some(link) = open_pin(&pin, attachment)? {
            let info = sys::link_info(link.as_fd()).map_err(Error::link(program, ifindex, "look at the link of"))?;
            if attachment.is_done_by(&info) {
                return Ok(());
            }
            remove_pin(&pin, link.as_fd())?;
        }
        let link = self.create_link(attachment, ifname)?;
        link.pin(&pin).map_err(Error::link(program, ifindex, "pin the link of"))?;
        self.confirm(attachment, ifname, &pin)
    }

    /// Detaches everything from a device, at once, and leaves what is others'. A device without attachments, or that is gone, is
    /// fine.
    ///
    /// # Errors
    /// [`Error::Link`], [`Error::Filters`] or [`Error::Path`]; what is left can be tried again.
    pub fn detach(&mut self, ifindex: u32) -> Result<()> {
        for program in Program::ALL {
            let attachment = Attachment { ifindex, program };
            let pin = self.link_pin(attachment);
            if let Some(link) = open_pin(&pin, attachment)? {
                remove_pin(&pin, link.as_fd())?;
            }
        }
        filter::detach_filters(ifindex)
    }

    /// What is attached now, in order. Links whose device is gone are left out. Filters are those of the calling thread's network
    /// namespace.
    ///
    /// # Errors
    /// [`Error::Path`], [`Error::Filters`] or [`Error::Link`].
    pub fn attachments(&self) -> Result<Vec<Attachment>> {
        let mut attachments = live_attachments(&self.pins.links)?;
        attachments.extend(self.attached_filters()?);
        attachments.sort_unstable();
        attachments.dedup();
        Ok(attachments)
    }

    /// Removes the pins of links whose device is gone, and tells their names: those of a device that went while programs were
    /// being attached to it, which nobody detaches any more.
    ///
    /// # Errors
    /// [`Error::Path`] or [`Error::Link`]; what is left can be tried again.
    pub fn remove_defunct_links(&self) -> Result<Vec<String>> {
        let mut removed = Vec::new();
        for name in list(&self.pins.links)? {
            let pin = self.pins.links.join(&name);
            let Some(attachment) = Attachment::from_pin_name(&name) else { continue };
            if !is_live(&pin, attachment)?
                && let Some(link) = open_pin(&pin, attachment)?
            {
                remove_pin(&pin, link.as_fd())?;
                removed.push(name);
            }
        }
        Ok(removed)
    }

    /// Swaps every pinned link and every filter to this version's programs; removes the pins that no longer do anything.
    pub(crate) fn adopt_links(&mut self) -> Result<LinkReport> {
        let mut report = LinkReport::default();
        for name in list(&self.pins.links)?.into_iter().filter(|name| !is_socket_pin(name)) {
            let pin = self.pins.links.join(&name);
            match Attachment::from_pin_name(&name) {
                Some(attachment) if self.swap_if_live(attachment, &pin)? => report.adopted.push(attachment),
                _ => {
                    let link = sys::object_get(&pin).map_err(Error::path("open pinned link", &pin))?;
                    remove_pin(&pin, link.as_fd())?;
                    tracing::info!(pin = name, "removed a link that no longer does anything");
                    report.removed.push(name);
                }
            }
        }
        self.adopt_filters(&mut report)?;
        report.adopted.sort_unstable();
        // A link that became a filter is found as both.
        report.adopted.dedup();
        report.removed.sort_unstable();
        Ok(report)
    }

    /// Swaps the program of a pinned link; `false`: the link is of no use any more. A link on a port, as earlier builds made
    /// them, becomes a filter.
    pub(crate) fn swap_if_live(&mut self, attachment: Attachment, pin: &Path) -> Result<bool> {
        let Attachment { ifindex, program } = attachment;
        if !is_live(pin, attachment)? {
            return Ok(false);
        }
        if program.anchor() == Anchor::Filter {
            return self.exchange(attachment, pin);
        }
        match swap(self.classifier_mut(program)?, pin) {
            Ok(()) => Ok(true),
            // The device went between the look and the swap.
            Err(_) if !is_live(pin, attachment)? => Ok(false),
            Err(error) => Err(Error::link(program, ifindex, "swap")(error)),
        }
    }

    /// Puts a filter in the place of a link: the filter first, so that at no time a packet passes unseen. What `to_workload` is
    /// shown by both in that moment is dropped by the second, since the first takes the mark away.
    fn exchange(&self, attachment: Attachment, pin: &Path) -> Result<bool> {
        match self.attach_filter(attachment) {
            Ok(()) => {}
            Err(_) if !is_live(pin, attachment)? => return Ok(false),
            Err(error) => return Err(error),
        }
        if let Some(link) = open_pin(pin, attachment)? {
            remove_pin(pin, link.as_fd())?;
        }
        Ok(true)
    }

    fn create_link(&mut self, attachment: Attachment, ifname: &str) -> Result<FdLink> {
        let Attachment { ifindex, program } = attachment;
        let direction = match program.direction() {
            Direction::Ingress => TcAttachType::Ingress,
            Direction::Egress => TcAttachType::Egress,
        };
        let classifier = self.classifier_mut(program)?;
        let link = classifier
            .attach_with_options(ifname, direction, TcAttachOptions::TcxOrder(LinkOrder::first()))
            .and_then(|id| classifier.take_link(id));
        let link = link.map_err(|error| {
            let source: Source = format!("interface name {ifname}: {}", chain(&error)).into();
            Error::link(program, ifindex, "attach")(source)
        })?;
        FdLink::try_from(link).map_err(Error::link(program, ifindex, "attach"))
    }

    /// Undoes an attachment to a device that has the name but not the index.
    fn confirm(&self, attachment: Attachment, ifname: &str, pin: &Path) -> Result<()> {
        let Attachment { ifindex: wanted, program } = attachment;
        let link = sys::object_get(pin).map_err(Error::path("open pinned link", pin))?;
        let info = sys::link_info(link.as_fd()).map_err(Error::link(program, wanted, "look at the link of"))?;
        if attachment.is_done_by(&info) {
            return Ok(());
        }
        remove_pin(pin, link.as_fd())?;
        Err(Error::Interface { ifname: ifname.to_owned(), wanted, found: info.ifindex })
    }

    pub(crate) fn link_pin(&self, attachment: Attachment) -> PathBuf {
        self.pins.links.join(attachment.pin_name())
    }
}

/// Checks that a device has both name and index.
fn named(Attachment { ifindex: wanted, program }: Attachment, ifname: &str) -> Result<()> {
    let found = nix::net::if_::if_nametoindex(ifname).map_err(|error| {
        let source: Source = format!("interface name {ifname}: {error}").into();
        Error::link(program, wanted, "attach")(source)
    })?;
    let same = found == wanted;
    if same { Ok(()) } else { Err(Error::Interface { ifname: ifname.to_owned(), wanted, found }) }
}

/// Replaces the program of a pinned link atomically: each packet sees the old program or the new one.
fn swap(classifier: &mut SchedClassifier, pin: &Path) -> Result<(), Source> {
    let link = SchedClassifierLink::try_from(FdLink::from(PinnedLink::from_pin(pin)?))?;
    let id = classifier.attach_to_link(link)?;
    // The pin keeps the link; aya need not.
    drop(classifier.take_link(id)?);
    Ok(())
}

/// What is attached by the links of a folder, in order.
pub(crate) fn live_attachments(links: &Path) -> Result<Vec<Attachment>> {
    let mut attachments = Vec::new();
    for name in list(links)? {
        let Some(attachment) = Attachment::from_pin_name(&name) else { continue };
        if is_live(&links.join(&name), attachment)? {
            attachments.push(attachment);
        }
    }
    attachments.sort_unstable();
    Ok(attachments)
}

fn is_live(pin: &Path, attachment: Attachment) -> Result<bool> {
    let Attachment { ifindex, program } = attachment;
    let Some(link) = open_pin(pin, attachment)? else { return Ok(false) };
    let info = sys::link_info(link.as_fd()).map_err(Error::link(program, ifindex, "look at the link of"))?;
    Ok(attachment.is_done_by(&info))
}

fn open_pin(pin: &Path, attachment: Attachment) -> Result<Option<OwnedFd>> {
    match sys::object_get(pin) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::link(attachment.program, attachment.ifindex, "open the pinned link of")(error)),
    }
}

/// Detaches first: a pin that is left after a crash in between is defunct, and the next start removes it.
pub(crate) fn remove_pin(pin: &Path, link: BorrowedFd<'_>) -> Result<()> {
    sys::link_detach(link).map_err(Error::path("detach the link pinned at", pin))?;
    fs::remove_file(pin).map_err(Error::path("remove the pin", pin))
}

#[cfg(test)]
mod tests {
    use super::{Attachment, Program};

    #[test]
    fn pin_names_are_read_back_and_nothing_else_is() {
        for program in Program::ALL {
            let attachment = Attachment { ifindex: 4_294_967_295, program };
            assert_eq!(Attachment::from_pin_name(&attachment.pin_name()), Some(attachment));
        }
        for name in
            ["7", "7-", "-from_host", "x-from_host", "07-from_host", "+7-from_host", "7-from_nowhere", "7-from_host-"]
        {
            assert_eq!(Attachment::from_pin_name(name), None, "{name}");
        }
    }
}
