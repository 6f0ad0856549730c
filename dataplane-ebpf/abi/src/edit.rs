// SPDX-License-Identifier: Apache-2.0
//! How user space writes to the flow table: never by itself. A thread that is preempted would hold the lock of a set for as long, so
//! that a program does it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Flow, FlowKey6};

/// What the program [`crate::program::EDIT_FLOWS`] is asked for: it begins a "packet", in which `count` [`FlowEdit`]s follow. Only
/// programs and user space of one layout speak it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
pub struct EditRequest {
    /// [`EditKind`].
    pub kind: u32,
    /// Not 0: entries of IPv6.
    pub v6: u32,
    /// How many.
    pub count: u32,
    /// Reserved, zero.
    pub reserved: u32,
}

impl EditRequest {
    /// Most edits of a request: what a kernel with pages of 4 KiB takes as a packet, with room for its own headers.
    pub const MOST: usize = 3072 / size_of::<FlowEdit>();
}

/// What is done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum EditKind {
    /// A new entry where there is none.
    Add = 0,
    /// An entry, new or not.
    Put = 1,
    /// The entry is removed.
    Remove = 2,
    /// The entry is removed if its last packet is the one that [`FlowEdit::flow`] tells of.
    RemoveUnseen = 3,
}

/// One of them, and what became of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
pub struct FlowEdit {
    /// The entry's key; addresses of IPv4 are mapped.
    pub key: FlowKey6,
    /// `weft_logic::set::Written`, written by the program.
    pub answer: u32,
    /// The entry.
    pub flow: Flow,
}

crate::pod!(EditRequest, FlowEdit);

const _: () = assert!(size_of::<EditRequest>() == 16);
