// SPDX-License-Identifier: Apache-2.0
//! Checks type and sizes of a map that was found: programs compiled for another one would read garbage. What two layouts of one
//! size differ in the name of the folder tells, see [`weft_abi::PinFolder`].

use std::{os::fd::BorrowedFd, path::Path};

use weft_abi::{MapInfo as Wanted, MapKind};

use crate::{
    Error,
    error::Result,
    sys::{self, MapInfo},
};

/// Checks the map behind a descriptor; `pin` is where it is pinned, for the error.
pub(crate) fn check(wanted: &Wanted, fd: BorrowedFd<'_>, pin: &Path) -> Result<MapInfo> {
    let info = sys::map_info(fd).map_err(Error::map(wanted.name, "ask the kernel about"))?;
    let of_wanted = (wanted.kind.number(), wanted.key_size, wanted.value_size);
    let found = (info.kind, info.key_size, info.value_size);
    if found != of_wanted {
        let (found, wanted_shape) = (shape(found), shape(of_wanted));
        return Err(Error::Layout { map: wanted.name, pin: pin.to_owned(), found, wanted: wanted_shape });
    }
    Ok(info)
}

fn shape((kind, key_size, value_size): (u32, u32, u32)) -> String {
    let name = MapKind::ALL.into_iter().find(|known| known.number() == kind);
    let name = name.map_or_else(|| format!("map type {kind}"), |kind| format!("type {kind:?}"));
    format!("{name}, keys of {key_size} and values of {value_size} bytes")
}
