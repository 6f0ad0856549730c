// SPDX-License-Identifier: Apache-2.0
//! What can go wrong, in words that name the object and the fix.

use std::{io, path::PathBuf};

use crate::Program;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Text of a library error that this crate's API does not name.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// Everything this crate fails with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The pin folder is not on a bpf filesystem.
    #[error("{} is not on a bpf filesystem: mount one (`mount -t bpf bpf /sys/fs/bpf`) and put the pin folder below it", path.display())]
    NotBpffs {
        /// The folder.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("{operation} {}: {source}", path.display())]
    Path {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A size in [`crate::MapSizes`] is out of range.
    #[error("map size `{field}` is {value}, but it must be {requirement}")]
    Size {
        /// Field of [`crate::MapSizes`].
        field: &'static str,
        /// Its value.
        value: u32,
        /// What is allowed.
        requirement: &'static str,
    },
    /// A map does not have the layout that this version of Weft uses.
    #[error(
        "map {map} at {} has {found}, but this version of Weft needs {wanted}: another build with the same ABI version left \
         it; stop the agent, remove that file (what the map holds is lost) and start the agent again", pin.display()
    )]
    Layout {
        /// Name of the map.
        map: &'static str,
        /// Where it is pinned.
        pin: PathBuf,
        /// Type and sizes found.
        found: String,
        /// Type and sizes wanted.
        wanted: String,
    },
    /// The embedded object was refused before any program was given to the kernel.
    #[error("load the eBPF object: {source}")]
    Object {
        /// Why.
        source: Source,
    },
    /// The embedded object lacks something that the ABI names.
    #[error("the eBPF object has no {kind} `{name}`: it was built from other sources than this loader")]
    Missing {
        /// `map` or `program`.
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// The kernel did not accept a program.
    #[error("the kernel refused program {program}: {source}; verifier log:\n{log}")]
    Verifier {
        /// The program.
        program: &'static str,
        /// Answer of `BPF_PROG_LOAD`.
        source: io::Error,
        /// The end of the verifier's log; empty when it never ran.
        log: String,
    },
    /// Another failure around a program.
    #[error("{operation} program {program}: {source}")]
    Program {
        /// The program.
        program: &'static str,
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: Source,
    },
    /// A program could not be attached to, swapped on or detached from a device.
    #[error("{operation} {program} on interface {ifindex}: {source}")]
    Link {
        /// The program.
        program: Program,
        /// Index of the device.
        ifindex: u32,
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: Source,
    },
    /// Filters could not be looked for or removed.
    #[error("{operation} {object}: {source}")]
    Filters {
        /// What was tried.
        operation: &'static str,
        /// Which devices.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A name and an index do not belong to the same device.
    #[error(
        "interface {ifname} has index {found}, not {wanted}, in this network namespace: it was replaced, or this is another namespace"
    )]
    Interface {
        /// Name of the device.
        ifname: String,
        /// Index the caller gave.
        wanted: u32,
        /// Index the name has here.
        found: u32,
    },
    /// A map has no room for another entry.
    #[error("map {map} is full ({max_entries} entries): raise its size in the agent's `mapSizes`")]
    Full {
        /// Name of the map.
        map: &'static str,
        /// Its size.
        max_entries: u32,
    },
    /// An operation on a map failed.
    #[error("{operation} map {map}: {source}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An index past the end of an array.
    #[error("index {index} is past the end of map {map} ({max_entries} entries)")]
    Index {
        /// Name of the map.
        map: &'static str,
        /// The index.
        index: u32,
        /// Size of the array.
        max_entries: u32,
    },
}

impl Error {
    pub(crate) fn path(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Path { operation, path, source }
    }

    pub(crate) fn map(map: &'static str, operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Map { map, operation, source }
    }

    pub(crate) fn link<E: Into<Source>>(
        program: Program,
        ifindex: u32,
        operation: &'static str,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Link { program, ifindex, operation, source: source.into() }
    }

    pub(crate) fn object(source: &dyn std::error::Error) -> Self {
        Self::Object { source: chain(source).into() }
    }
}

/// An error with its causes: the eBPF library's own texts leave them out.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
