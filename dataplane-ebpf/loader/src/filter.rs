// SPDX-License-Identifier: Apache-2.0
//! Programs on the ports of workloads: direct-action filters on the device's `clsact` qdisc, priority 1 and handle 1.
//!
//! Attaching a tcx link waits for an RCU grace period under the RTNL lock, 11 to 13 ms each; a filter is there in a tenth of a
//! millisecond. Nothing of a filter is pinned: it lives as long as its device, and says by its name what it is, so that the next
//! process finds it. tcx programs of others run before it, and so does a filter that somebody puts at priority 1 later.
//!
//! The name is `weft/<program>`, with `/clsact` behind it where Weft made the qdisc: then it goes with the last filter. Whose it
//! is the maps tell that its program uses: this dataplane's, or those of another ABI version, which are filled as long as this
//! one's are not.

use std::{io, os::fd::AsFd};

use aya::programs::{ProgramError, SchedClassifier};

use crate::{
    Dataplane, Error, Program,
    error::{Result, Source},
    link::{Attachment, LinkReport},
    program::{Anchor, Direction},
    sys,
    tc::{Filter, Place, Tc},
};

/// The only place that Weft puts filters at.
const PLACE: Place = Place { priority: 1, handle: 1 };

/// What the name of a filter tells.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Name {
    /// Another version may have others.
    program: String,
    /// Weft made the qdisc.
    made_qdisc: bool,
}

/// A filter of Weft, of any version.
#[derive(Clone, Debug)]
struct Found {
    ifindex: u32,
    direction: Direction,
    name: Name,
    program_id: u32,
}

impl Name {
    fn of(program: Program, made_qdisc: bool) -> Self {
        Self { program: program.name().to_owned(), made_qdisc }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix("weft/")?.split('/');
        let program = parts.next()?.to_owned();
        let made_qdisc = match (parts.next(), parts.next()) {
            (None, _) => false,
            (Some("clsact"), None) => true,
            _ => return None,
        };
        Some(Self { program, made_qdisc })
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { program, made_qdisc } = self;
        write!(f, "weft/{program}{}", if *made_qdisc { "/clsact" } else { "" })
    }
}

impl Found {
    /// `None`: a program that this version has not, or not there.
    fn attachment(&self) -> Option<Attachment> {
        let program = Program::from_name(&self.name.program)?;
        let is_right = program.anchor() == Anchor::Filter && program.direction() == self.direction;
        is_right.then_some(Attachment { ifindex: self.ifindex, program })
    }

    fn describe(&self) -> String {
        format!("{}-{}", self.ifindex, self.name.program)
    }
}

impl Dataplane {
    /// Puts the program on the device's hook, or replaces what an earlier run or another version of Weft has there.
    pub(crate) fn attach_filter(&self, attachment: Attachment) -> Result<()> {
        let Attachment { ifindex, program } = attachment;
        self.put_filter(attachment).map_err(Error::link(program, ifindex, "attach"))
    }

    fn put_filter(&self, Attachment { ifindex, program }: Attachment) -> Result<(), Source> {
        let mut tc = Tc::open()?;
        let hooks = Hooks::read(&mut tc, ifindex)?;
        let made_qdisc = if hooks.found().next().is_some() {
            hooks.found().any(|found| found.name.made_qdisc)
        } else {
            make_qdisc(&mut tc, ifindex)?
        };
        let (classifier, direction) = (self.classifier(program)?, program.direction());
        let name = Name::of(program, made_qdisc).to_string();
        let there =
            hooks.of(direction).iter().find(|filter| filter.place.priority == PLACE.priority && !is_beside(filter));
        match there {
            Some(filter) if Name::parse(&filter.name).is_none() => Err(taken(filter, direction)),
            Some(filter) if filter.name == name && filter.program_id == program_id(classifier)? => Ok(()),
            Some(_) if tc.replace_filter(ifindex, direction, PLACE, classifier.fd()?.as_fd(), &name)? => Ok(()),
            _ => Ok(tc.add_filter(ifindex, direction, PLACE, classifier.fd()?.as_fd(), &name)?),
        }
    }

    /// The programs of this process that are on ports, in no order.
    pub(crate) fn attached_filters(&self) -> Result<Vec<Attachment>> {
        let mut attached = Vec::new();
        for found in find_all()? {
            let Some(attachment) = found.attachment() else { continue };
            let id = program_id(self.classifier(attachment.program)?);
            let id = id.map_err(Error::link(attachment.program, attachment.ifindex, "look at"))?;
            if id == found.program_id {
                attached.push(attachment);
            }
        }
        Ok(attached)
    }

    /// Swaps the filters that an earlier run left on this dataplane's maps to the programs that were loaded now.
    pub(crate) fn adopt_filters(&self, report: &mut LinkReport) -> Result<()> {
        self.swap_filters(report, self.find_with(true)?)
    }

    /// Swaps filters of other versions.
    pub(crate) fn take_over_filters(&self, report: &mut LinkReport) -> Result<()> {
        self.swap_filters(report, self.find_with(false)?)
    }

    /// The filters on this dataplane's maps, or those on others.
    fn find_with(&self, own: bool) -> Result<Vec<Found>> {
        let mut found = find_all()?;
        let ours = self.maps.own_ids()?;
        let uses = |id| sys::maps_of_program(id).map(|ids| ids.iter().any(|id| ours.contains(id)));
        let mut result = Ok(());
        found.retain(|found| match uses(found.program_id) {
            Ok(is_ours) => is_ours == own,
            Err(error) => {
                result = Err(failed("look at the program of a filter on", found.ifindex)(error));
                false
            }
        });
        result.map(|()| found)
    }

    fn swap_filters(&self, report: &mut LinkReport, wanted: Vec<Found>) -> Result<()> {
        // What fails keeps no other one from its exchange.
        let mut swapped = Ok(());
        for found in &wanted {
            swapped = swapped.and(self.swap_or_remove(report, found));
        }
        swapped
    }

    fn swap_or_remove(&self, report: &mut LinkReport, found: &Found) -> Result<()> {
        match found.attachment() {
            Some(attachment) => {
                if self.swap_filter(found, attachment)? {
                    report.adopted.push(attachment);
                }
            }
            None => {
                remove_all(found.ifindex, Some(found.direction)).map_err(failed("remove a filter", found.ifindex))?;
                tracing::info!(filter = found.describe(), "removed a filter of a program that is no more");
                report.removed.push(found.describe());
            }
        }
        Ok(())
    }

    /// `false`: it went meanwhile.
    fn swap_filter(&self, found: &Found, Attachment { ifindex, program }: Attachment) -> Result<bool> {
        let classifier = self.classifier(program)?;
        let name = Name::of(program, found.name.made_qdisc).to_string();
        let swapped = classifier
            .fd()
            .map_err(Source::from)
            .and_then(|fd| Ok(Tc::open()?.replace_filter(ifindex, found.direction, PLACE, fd.as_fd(), &name)?));
        swapped.map_err(Error::link(program, ifindex, "swap"))
    }

    /// What other versions have on ports, in no order.
    pub(crate) fn filters_of_other_versions(&self) -> Result<Vec<Attachment>> {
        Ok(self.find_with(false)?.iter().filter_map(Found::attachment).collect())
    }
}

/// The filters of a device, of everybody.
struct Hooks {
    ifindex: u32,
    ingress: Vec<Filter>,
    egress: Vec<Filter>,
}

impl Hooks {
    fn read(tc: &mut Tc, ifindex: u32) -> io::Result<Self> {
        let ingress = tc.filters(ifindex, Direction::Ingress)?;
        Ok(Self { ifindex, ingress, egress: tc.filters(ifindex, Direction::Egress)? })
    }

    fn of(&self, direction: Direction) -> &[Filter] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    fn all(&self) -> impl Iterator<Item = (Direction, &Filter)> {
        let of = |direction| self.of(direction).iter().map(move |filter| (direction, filter));
        of(Direction::Ingress).chain(of(Direction::Egress))
    }

    fn found(&self) -> impl Iterator<Item = Found> {
        self.all().filter(|(_, filter)| is_at_our_place(filter)).filter_map(|(direction, filter)| {
            let name = Name::parse(&filter.name)?;
            Some(Found { ifindex: self.ifindex, direction, name, program_id: filter.program_id })
        })
    }

    fn has_others(&self) -> bool {
        self.all().any(|(_, filter)| !is_at_our_place(filter) || Name::parse(&filter.name).is_none())
    }
}

fn is_at_our_place(filter: &Filter) -> bool {
    filter.place == PLACE && filter.kind == "bpf"
}

/// At the same priority, and not in the way.
fn is_beside(filter: &Filter) -> bool {
    filter.kind == "bpf" && filter.place.handle != PLACE.handle
}

/// Whether the qdisc was not there before. In the place of `clsact` a device may have an `ingress` qdisc, whose filters see
/// only one direction, whichever they were meant for.
fn make_qdisc(tc: &mut Tc, ifindex: u32) -> Result<bool, Source> {
    let made = tc.add_qdisc(ifindex)?;
    if !made && !tc.devices_with("clsact")?.contains(&ifindex) {
        return Err("it has an `ingress` qdisc of somebody else's; remove that (`tc qdisc del dev ... ingress`)".into());
    }
    Ok(made)
}

fn taken(filter: &Filter, direction: Direction) -> Source {
    let Filter { kind, name, .. } = filter;
    format!(
        "its {direction:?} hook has a {kind} filter '{name}' of somebody else's at priority 1, which is Weft's; move that to another priority"
    )
    .into()
}

fn program_id(classifier: &SchedClassifier) -> Result<u32, ProgramError> {
    Ok(classifier.info()?.id())
}

/// All filters of Weft in the network namespace of the calling thread.
fn find_all() -> Result<Vec<Found>> {
    let find = || {
        let mut tc = Tc::open()?;
        let mut found = Vec::new();
        for ifindex in tc.devices_with("clsact")? {
            found.extend(Hooks::read(&mut tc, ifindex)?.found());
        }
        Ok(found)
    };
    find().map_err(|source| Error::Filters {
        operation: "look for filters on",
        object: "all devices".to_owned(),
        source,
    })
}

fn failed(operation: &'static str, ifindex: u32) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Filters { operation, object: format!("interface {ifindex}"), source }
}

/// Removes Weft's filters from a device, of one hook or both, and the qdisc if Weft made it and nobody has filters on it.
fn remove_all(ifindex: u32, only: Option<Direction>) -> io::Result<()> {
    let mut tc = Tc::open()?;
    let hooks = Hooks::read(&mut tc, ifindex)?;
    let made_qdisc = hooks.found().any(|found| found.name.made_qdisc);
    let is_meant = |found: &Found| only.is_none_or(|direction| direction == found.direction);
    if made_qdisc && !hooks.has_others() && hooks.found().all(|found| is_meant(&found)) {
        return tc.delete_qdisc(ifindex).map(drop);
    }
    hooks.found().filter(is_meant).try_for_each(|found| tc.delete_filter(ifindex, found.direction, PLACE).map(drop))
}

/// Removes Weft's filters from a device; one that has none, or is gone, is fine.
pub(crate) fn detach_filters(ifindex: u32) -> Result<()> {
    remove_all(ifindex, None).map_err(failed("remove filters from", ifindex))
}

/// Removes the filters of every version of Weft.
pub(crate) fn remove_every_filter() -> Result<()> {
    find_all()?.iter().try_for_each(|found| detach_filters(found.ifindex))
}

#[cfg(test)]
mod tests {
    use super::{Name, Program};

    #[test]
    fn names_are_read_back_and_nothing_else_is() {
        for (program, made_qdisc) in [(Program::FromWorkload, true), (Program::ToWorkload, false)] {
            let name = Name::of(program, made_qdisc);
            assert_eq!(Name::parse(&name.to_string()), Some(name));
        }
        for other in ["", "from_workload", "weft", "weft/x/ingress", "weft/x/clsact/y"] {
            assert_eq!(Name::parse(other), None, "{other}");
        }
    }
}
