// SPDX-License-Identifier: Apache-2.0
//! Maps that are shared with programs of other layouts ([`weft_abi::MapRole::Carried`]): connections outlive an upgrade, and a
//! rollback, that changes other maps.
//!
//! Beside its pin in the folder of a version such a map has one in `<pin_dir>/carried`, whose name tells its layout. A version that
//! starts adopts the maps of its own layouts, and starts its generations above those of the versions before: whatever stands in an
//! entry was decided by other maps, and is decided again, but what a connection is translated to stays.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use weft_abi::{ABI_VERSION, CarriedPin, MAPS, MapInfo, MapKind, MapRole, map};

use crate::{
    Error, Maps,
    error::Result,
    layout,
    maps::{id, open_pinned},
    options::MapSizes,
    pin::{PinDir, exists, open_map, pins as pins_in, remove_map, unless_gone},
    sys,
    table::Array,
};

/// Where other layouts of this ABI version have pinned.
fn other_layouts(pins: &PinDir) -> Result<Vec<PinDir>> {
    let version = format!("v{ABI_VERSION}-");
    let mut others = pins.others()?;
    others.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&version)));
    Ok(others.iter().map(|path| PinDir::of_version(path)).collect())
}

/// Those of them whose generations are known.
fn with_generations(pins: &PinDir) -> Result<Vec<PinDir>> {
    let mut known = Vec::new();
    for other in other_layouts(pins)? {
        if exists(&other.maps.join(map::GENERATIONS))? && exists(&other.maps.join(map::SERVICE_GENERATIONS))? {
            known.push(other);
        }
    }
    Ok(known)
}

/// Where this version has no maps yet: pins the maps of other versions that have the layout that they have here. Their names.
///
/// Only of a version whose generations are known, and which uses the map itself: an entry that an earlier one left names numbers that
/// may have been used again.
pub(crate) fn adopt(pins: &PinDir, sizes: &MapSizes) -> Result<Vec<&'static str>> {
    let mut adopted = Vec::new();
    if exists(&pins.maps.join(map::GENERATIONS))? {
        return Ok(adopted);
    }
    let versions = with_generations(pins)?;
    // An entry whose Service port has no generation here could stand by a sum without it.
    let mut incomplete =
        if knows_services(&versions, sizes)? { Vec::new() } else { vec![MapRole::Flows4, MapRole::Flows6] };
    let mut found = Vec::new();
    for (map, wanted) in MAPS.iter().zip(sizes.entries()).filter(|(map, _)| map.role.is_shared()) {
        match usable(pins, &versions, map, wanted)? {
            Some(fd) => found.push((map, fd)),
            None if map.role.is_flows() => incomplete.push(map.role),
            None => {}
        }
    }
    for (map, fd) in found.iter().filter(|(map, _)| !incomplete.contains(&map.role)) {
        let to = pins.maps.join(map.name);
        if !exists(&to)? {
            pin(fd, &to)?;
        }
        adopted.push(map.name);
    }
    Ok(adopted)
}

/// The map of these versions, if it serves where that size is wanted.
fn usable(pins: &PinDir, versions: &[PinDir], map: &MapInfo, wanted: u32) -> Result<Option<OwnedFd>> {
    let from = pin_of(pins, map);
    let Some(fd) = unless_gone(open_map(&from))? else { return Ok(None) };
    let info = layout::check(map, fd.as_fd(), &from)?;
    let is_usable = fits(map, info.max_entries, wanted) && is_used(versions, map, info.id)?;
    Ok(is_usable.then_some(fd))
}

/// Whether every number of a Service port of these versions has a generation here.
fn knows_services(versions: &[PinDir], sizes: &MapSizes) -> Result<bool> {
    let map = &MapInfo::SERVICE_GENERATIONS;
    let wanted =
        MAPS.iter().zip(sizes.entries()).find(|(line, _)| line.name == map.name).map_or(0, |(_, wanted)| wanted);
    for version in versions {
        let found = unless_gone(open_pinned(map, &version.maps))?;
        if found.is_some_and(|found| Array::<u32>::of(found).capacity() > wanted) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a map of that size serves where another one is wanted. Tables of connections and what is filled anew are made again as large as
/// they are wanted; the others have a place for each port, reason or counter, and may have more, and so may a ring, whose size is rounded
/// up to pages.
pub(crate) const fn fits(map: &MapInfo, max_entries: u32, wanted: u32) -> bool {
    let grows = matches!(map.role, MapRole::Carried) && !matches!(map.kind, MapKind::LruHashMap)
        || matches!(map.kind, MapKind::RingBuf);
    max_entries == wanted || grows && max_entries > wanted
}

/// Whether one of these versions uses the map of that number.
fn is_used(versions: &[PinDir], map: &MapInfo, number: u32) -> Result<bool> {
    for version in versions {
        let Some(fd) = unless_gone(open_map(&version.maps.join(map.name)))? else { continue };
        if id(map.name, fd.as_fd())? == number {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Pins this version's maps where builds of other layouts find them.
pub(crate) fn pin_by_layout(pins: &PinDir) -> Result<()> {
    for map in MapInfo::carried() {
        let (own, by_layout) = (open_map(&pins.maps.join(map.name))?, pin_of(pins, map));
        if let Some(found) = unless_gone(open_map(&by_layout))? {
            if id(map.name, own.as_fd())? == id(map.name, found.as_fd())? {
                continue;
            }
            remove_map(&by_layout)?;
        }
        pin(&own, &by_layout)?;
    }
    Ok(())
}

/// Starts this version's generations above those of other layouts, whose programs keep their own: no entry that one of them decided
/// stands by these.
pub(crate) fn raise_generations(pins: &PinDir, maps: &Maps) -> Result<()> {
    for version in other_layouts(pins)? {
        raise(&version.maps, &MapInfo::GENERATIONS, maps.generations())?;
        raise(&version.maps, &MapInfo::SERVICE_GENERATIONS, maps.service_generations())?;
    }
    Ok(())
}

fn raise(dir: &Path, map: &MapInfo, own: &Array<u32>) -> Result<()> {
    let Some(before) = unless_gone(open_pinned(map, dir))?.map(Array::<u32>::of) else { return Ok(()) };
    for index in 0..own.capacity().min(before.capacity()) {
        let before = before.get(index)?;
        if own.get(index)? <= before {
            own.set(index, &before.wrapping_add(1))?;
        }
    }
    Ok(())
}

/// Removes the pins of other layouts, whose versions are gone.
pub(crate) fn remove_other_layouts(pins: &PinDir) -> Result<()> {
    let own: Vec<PathBuf> = MapInfo::carried().map(|map| pin_of(pins, map)).collect();
    pins_in(&pins.carried())?.iter().filter(|pin| !own.contains(pin)).try_for_each(|pin| remove_map(pin))
}

fn pin_of(pins: &PinDir, map: &MapInfo) -> PathBuf {
    pins.carried().join(CarriedPin(map).to_string())
}

fn pin(map: &OwnedFd, path: &Path) -> Result<()> {
    sys::object_pin(map.as_fd(), path).map_err(Error::path("pin a map at", path))
}
