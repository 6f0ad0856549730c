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

use weft_abi::{ABI_VERSION, CarriedPin, MAPS, MapInfo, MapRole, map};

use crate::{
    Error, Maps,
    error::Result,
    maps::open_pinned,
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

/// Where this version begins and another one's generations are known: pins the maps that both have the same layout of. Names of those.
pub(crate) fn take_up(pins: &PinDir) -> Result<Vec<&'static str>> {
    let has_begun = exists(&pins.maps.join(map::GENERATIONS))?;
    if has_begun || forerunners(pins)?.is_empty() {
        return Ok(Vec::new());
    }
    let mut taken = Vec::new();
    for map in carried() {
        let (from, to) = (pin_of(pins, map), pins.maps.join(map.name));
        let Some(fd) = unless_gone(sys::object_get(&from).map_err(Error::path("open pinned map", &from)))? else {
            continue;
        };
        crate::layout::check(map, fd.as_fd(), &from)?;
        if !exists(&to)? {
            sys::object_pin(fd.as_fd(), &to).map_err(Error::path("pin a map at", &to))?;
        }
        taken.push(map.name);
    }
    Ok(taken)
}

/// Pins this version's maps where others find them.
pub(crate) fn offer(pins: &PinDir) -> Result<()> {
    for map in carried() {
        let (own, pin) = (pins.maps.join(map.name), pin_of(pins, map));
        let own = sys::object_get(&own).map_err(Error::path("open pinned map", &own))?;
        let offered = unless_gone(sys::object_get(&pin).map_err(Error::path("open pinned map", &pin)))?;
        if let Some(offered) = offered {
            let id = |fd: &OwnedFd| sys::map_info(fd.as_fd()).map(|info| info.id);
            let ids = id(&own).and_then(|own| Ok((own, id(&offered)?)));
            let (own, offered) = ids.map_err(Error::map(map.name, "ask the kernel about"))?;
            if own == offered {
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
