// SPDX-License-Identifier: Apache-2.0
//! Maps that programs of other layouts go by as well ([`MapRole::Carried`]): the connections that are known outlive an upgrade, and a
//! way back, that changes other maps.
//!
//! Beside its pin in the folder of a version such a map has one in `<pin_dir>/carried`, whose name tells its layout. A version that
//! begins takes up those of its own layouts, and lets its generations begin beyond those of the versions before: whatever stands in an
//! entry was decided by other maps, and is decided again, but what a connection is translated to stays.

use std::{
    fs,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use weft_abi::{ABI_VERSION, CarriedPin, MAPS, MapInfo, MapKind, MapRole, map};

use crate::{
    Error, Maps,
    error::Result,
    maps::open_pinned,
    options::MapSizes,
    pin::{PinDir, exists, list, unless_gone},
    sys,
    table::Array,
};

fn carried() -> impl Iterator<Item = &'static MapInfo> {
    MAPS.iter().filter(|map| map.role == MapRole::Carried)
}

/// Where another version of the same meaning has pinned.
fn forerunners(pins: &PinDir) -> Result<Vec<PinDir>> {
    let version = format!("v{ABI_VERSION}-");
    let mut others = pins.others()?;
    others.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&version)));
    Ok(others.iter().map(|path| PinDir::of_version(path)).collect())
}

/// Where this version begins: pins the maps of versions before that have the layout that they have here. Names of those.
///
/// Only of one whose generations are known, and which has the map itself: an entry that was left by an earlier one names numbers that
/// may come again.
pub(crate) fn take_up(pins: &PinDir, sizes: &MapSizes) -> Result<Vec<&'static str>> {
    let mut taken = Vec::new();
    if exists(&pins.maps.join(map::GENERATIONS))? {
        return Ok(taken);
    }
    let mut known = forerunners(pins)?;
    known.retain(|version| [map::GENERATIONS, map::SERVICE_GENERATIONS].iter().all(|name| is_pinned(version, name)));
    for (map, wanted) in MAPS.iter().zip(sizes.entries()).filter(|(map, _)| map.role == MapRole::Carried) {
        let (from, to) = (pin_of(pins, map), pins.maps.join(map.name));
        let Some(fd) = open_pin(&from)? else { continue };
        let info = crate::layout::check(map, fd.as_fd(), &from)?;
        // A table of connections serves in any size. The others have a place for each port, reason or counter.
        let fits = map.kind == MapKind::LruHashMap || info.max_entries >= wanted;
        if !fits || !has_map(&known, map, info.id)? {
            continue;
        }
        if !exists(&to)? {
            sys::object_pin(fd.as_fd(), &to).map_err(Error::path("pin a map at", &to))?;
        }
        taken.push(map.name);
    }
    Ok(taken)
}

fn is_pinned(version: &PinDir, map: &str) -> bool {
    version.maps.join(map).symlink_metadata().is_ok()
}

/// Whether one of these versions goes by the map of that number.
fn has_map(versions: &[PinDir], map: &MapInfo, number: u32) -> Result<bool> {
    for version in versions {
        let Some(fd) = open_pin(&version.maps.join(map.name))? else { continue };
        if id(map, &fd)? == number {
            return Ok(true);
        }
    }
    Ok(false)
}

fn open_pin(pin: &Path) -> Result<Option<OwnedFd>> {
    unless_gone(sys::object_get(pin).map_err(Error::path("open pinned map", pin)))
}

/// The kernel's number of a map.
fn id(map: &MapInfo, fd: &OwnedFd) -> Result<u32> {
    Ok(sys::map_info(fd.as_fd()).map_err(Error::map(map.name, "ask the kernel about"))?.id)
}

/// Pins this version's maps where others find them.
pub(crate) fn offer(pins: &PinDir) -> Result<()> {
    for map in carried() {
        let (own, pin) = (pins.maps.join(map.name), pin_of(pins, map));
        let own = sys::object_get(&own).map_err(Error::path("open pinned map", &own))?;
        if let Some(offered) = open_pin(&pin)? {
            if id(map, &own)? == id(map, &offered)? {
                continue;
            }
            fs::remove_file(&pin).map_err(Error::path("remove the pin", &pin))?;
        }
        sys::object_pin(own.as_fd(), &pin).map_err(Error::path("pin a map at", &pin))?;
    }
    Ok(())
}

/// Lets generations begin beyond those of other versions, whose programs go on with theirs: an entry that one of them made stands by
/// none of these.
pub(crate) fn raise_generations(pins: &PinDir, maps: &Maps) -> Result<()> {
    for version in forerunners(pins)? {
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
pub(crate) fn forget_others(pins: &PinDir) -> Result<()> {
    let own: Vec<String> = carried().map(|map| CarriedPin(map).to_string()).collect();
    let names = unless_gone(list(&pins.carried()))?.unwrap_or_default();
    for name in names.iter().filter(|name| !own.contains(name)) {
        let pin = pins.carried().join(name);
        fs::remove_file(&pin).map_err(Error::path("remove the pin", &pin))?;
    }
    Ok(())
}

fn pin_of(pins: &PinDir, map: &MapInfo) -> PathBuf {
    pins.carried().join(CarriedPin(map).to_string())
}
