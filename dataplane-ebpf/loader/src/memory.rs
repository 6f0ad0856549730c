// SPDX-License-Identifier: Apache-2.0
//! What the maps cost.

use std::{
    fs, io,
    os::fd::{AsRawFd, BorrowedFd},
};

use crate::{Error, error::Result, maps::Maps};

/// Memory of one map.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MapMemory {
    /// Name of the map.
    pub map: &'static str,
    /// Most entries it can hold; bytes for the event ring.
    pub max_entries: u32,
    /// Bytes of kernel memory it has now, as the kernel reckons them (`memlock` of its fdinfo). For maps that take memory
    /// as entries come, that is the table and the entries there are now.
    pub bytes: u64,
}

impl Maps {
    /// Memory of every map, in the order of [`weft_abi::map::ALL`].
    ///
    /// # Errors
    /// [`Error::Map`] if fdinfo cannot be read (no `/proc`).
    pub fn memory(&self) -> Result<Vec<MapMemory>> {
        self.all()
            .map(|(map, raw)| {
                let bytes = memlock(raw.fd()).map_err(Error::map(map, "read the fdinfo of"))?;
                Ok(MapMemory { map, max_entries: raw.max_entries(), bytes })
            })
            .collect()
    }
}

fn memlock(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let text = fs::read_to_string(&path)?;
    let value = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    value
        .and_then(|value| value.trim().parse().ok())
        .ok_or_else(|| io::Error::other(format!("{path} has no memlock line")))
}
