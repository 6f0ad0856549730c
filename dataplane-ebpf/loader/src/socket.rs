// SPDX-License-Identifier: Apache-2.0
//! Programs on the root of the control groups, by which sockets of the host reach ports of the host.
//!
//! Each link is pinned as `links/socket-<program>`. It sees the sockets of all network namespaces of the machine and minds those of
//! one: several nodes can share a machine. Others' programs there stay, and run before or after.

use std::{fs::File, os::fd::AsFd as _, path::Path};

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSockAddr, links::FdLink},
};
use weft_abi::program;

use crate::{
    Dataplane, Error,
    error::{Result, Source},
    link::remove_pin,
    missing,
    pin::unless_gone,
    sys, wrong_type,
};

/// Before a program's name, in the name of the pin of its link.
const PREFIX: &str = "socket-";

/// Whether a link's pin is one of these.
pub(crate) fn is_socket_pin(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Loads the programs.
pub(crate) fn load(ebpf: &mut Ebpf) -> Result<()> {
    for name in program::SOCKETS {
        let loaded = socket_program(ebpf, name)?.load();
        loaded.map_err(|error| Error::Program { program: name, operation: "load", source: error.into() })?;
    }
    Ok(())
}

fn socket_program<'e>(ebpf: &'e mut Ebpf, name: &'static str) -> Result<&'e mut CgroupSockAddr> {
    ebpf.program_mut(name).ok_or_else(|| missing(name))?.try_into().map_err(wrong_type(name))
}

impl Dataplane {
    /// Lets sockets of the network namespace that [`Dataplane::open`] was called in reach ports of the host and NodePorts at the host's own
    /// addresses. `cgroup`: the root of the control groups (version 2). In place of what an earlier run attached there: both are there
    /// for a moment, and the second finds nothing left to do.
    ///
    /// # Errors
    /// [`Error::Path`], [`Error::Program`] or [`Error::Missing`]; what is attached stays, and the rest can be tried again. Kernel minimum
    /// 5.8.
    pub(crate) fn attach_sockets(&mut self, cgroup: &Path) -> Result<()> {
        let root = File::open(cgroup).map_err(Error::path("open control group", cgroup))?;
        program::SOCKETS.into_iter().try_for_each(|name| self.attach_socket(name, &root))
    }

    fn attach_socket(&mut self, name: &'static str, root: &File) -> Result<()> {
        let failed = |operation, source: Source| Error::Program { program: name, operation, source };
        let program = socket_program(&mut self.ebpf, name)?;
        // Links stand beside others' always, and take no flag that says so.
        let link = program.attach(root, CgroupAttachMode::Single).and_then(|id| program.take_link(id));
        let link = link.map_err(|error| failed("attach", error.into()))?;
        let link = FdLink::try_from(link).map_err(|error| failed("attach", error.into()))?;
        let pin = self.pins.links.join(format!("{PREFIX}{name}"));
        if let Some(old) = unless_gone(sys::object_get(&pin).map_err(Error::path("open pinned link", &pin)))? {
            remove_pin(&pin, old.as_fd())?;
        }
        link.pin(&pin).map_err(|error| failed("pin", error.into()))?;
        Ok(())
    }
}
