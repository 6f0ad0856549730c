// SPDX-License-Identifier: Apache-2.0
//! The pin folder: `<pin_dir>/v<ABI_VERSION>-<LAYOUT>/{maps,links}`.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use weft_abi::{ABI_VERSION, Digest, LAYOUT, MAPS, MapInfo, MapRole, PinFolder};

use crate::{Error, carried::fits, error::Result, layout, options::MapSizes, sys};

/// Where a version pins.
#[derive(Clone, Debug)]
pub(crate) struct PinDir {
    version: PathBuf,
    pub(crate) maps: PathBuf,
    pub(crate) links: PathBuf,
}

/// Whether a map was there already.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// Made now, empty.
    Created,
    /// Pinned by an earlier run, with what it held.
    Adopted,
}

/// How a map came to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MapReport {
    /// Name of the map.
    pub map: &'static str,
    /// Whether it was there already.
    pub origin: Origin,
    /// Entries it has room for.
    pub max_entries: u32,
    /// Entries that were asked for; an adopted map may have more.
    pub wanted: u32,
}

impl PinDir {
    /// The folders in that of one ABI version.
    pub(crate) fn of_version(version: &Path) -> Self {
        Self { version: version.to_owned(), maps: version.join("maps"), links: version.join("links") }
    }

    /// The folders of this build's ABI version and layouts.
    pub(crate) fn of_this_version(pin_dir: &Path) -> Self {
        Self::of_version(&pin_dir.join(PinFolder.to_string()))
    }

    /// The folder that all versions share.
    pub(crate) fn root(&self) -> &Path {
        self.version.parent().unwrap_or(&self.version)
    }

    /// The folder of maps that all layouts share.
    pub(crate) fn carried(&self) -> PathBuf {
        self.root().join("carried")
    }

    /// Makes this version's folders.
    pub(crate) fn prepare(pin_dir: &Path) -> Result<Self> {
        require_bpffs(pin_dir)?;
        let dir = Self::of_this_version(pin_dir);
        dir.make()?;
        Ok(dir)
    }

    /// The folders of other ABI versions or layouts.
    pub(crate) fn others(&self) -> Result<Vec<PathBuf>> {
        let mut versions = version_dirs(self.root())?;
        versions.retain(|version| *version != self.version);
        Ok(versions)
    }

    /// Where maps of this version are pinned in other sizes than are wanted: lets them be another version's, which serves until new ones
    /// are filled, and whose connections are taken over. The folder that they are in then, for [`PinDir::put_back`].
    pub(crate) fn set_aside_other_sizes(&self, sizes: &MapSizes) -> Result<Option<PathBuf>> {
        let found: Vec<Option<u32>> = MAPS.iter().map(|map| self.size_of(map)).collect::<Result<_>>()?;
        let mut maps = MAPS.iter().zip(&found).zip(sizes.entries());
        if maps.all(|((map, found), wanted)| found.is_none_or(|found| fits(map, found, wanted))) {
            return Ok(None);
        }
        let sizes = found.iter().map(|size| u64::from(size.unwrap_or(0)));
        let digest = sizes.fold(Digest::EMPTY.number(LAYOUT), Digest::number);
        // Under a name that is free: those of earlier changes may be there yet.
        let mut attempt = 0;
        let aside = loop {
            let aside = self.root().join(format!("v{ABI_VERSION}-{:016x}", digest.number(attempt).finish()));
            if !exists(&aside)? {
                break aside;
            }
            attempt += 1;
        };
        tracing::info!(aside = %aside.display(), "maps of other sizes are wanted: new ones are made beside those that are there");
        fs::rename(&self.version, &aside).map_err(Error::path("rename folder", &self.version))?;
        match self.make() {
            Ok(()) => Ok(Some(aside)),
            Err(error) => {
                self.put_back(&aside)?;
                Err(error)
            }
        }
    }

    /// Puts back what was set aside, in the place of what no device uses yet.
    pub(crate) fn put_back(&self, aside: &Path) -> Result<()> {
        pins(&self.maps)?.iter().try_for_each(|pin| remove_map(pin))?;
        for path in [&self.maps, &self.links, &self.version] {
            unless_gone(fs::remove_dir(path).map_err(Error::path("remove folder", path)))?;
        }
        fs::rename(aside, &self.version).map_err(Error::path("rename folder", aside))
    }

    /// Of a flow table that is not there whole, what is left is of no use: its parts tell of each other.
    pub(crate) fn forget_parts_of_tables(&self) -> Result<()> {
        for role in [MapRole::Flows4, MapRole::Flows6] {
            let mut there = Vec::new();
            for pin in MAPS.iter().filter(|map| map.role == role).map(|map| self.maps.join(map.name)) {
                if exists(&pin)? {
                    there.push(pin);
                }
            }
            if there.len() < MAPS.iter().filter(|map| map.role == role).count() {
                there.iter().try_for_each(|pin| remove_map(pin))?;
            }
        }
        Ok(())
    }

    /// How many entries the pinned map has room for; `None`: there is none.
    fn size_of(&self, info: &MapInfo) -> Result<Option<u32>> {
        let pin = self.maps.join(info.name);
        let Some(fd) = unless_gone(open_map(&pin))? else { return Ok(None) };
        Ok(Some(layout::check(info, fd.as_fd(), &pin)?.max_entries))
    }

    fn make(&self) -> Result<()> {
        for path in [&self.maps, &self.links, &self.carried()] {
            fs::create_dir_all(path).map_err(Error::path("create folder", path))?;
        }
        Ok(())
    }

    /// Says aloud what it means that there are others.
    pub(crate) fn tell_of_others(&self, carried: &[&str]) -> Result<()> {
        let is_lost = |map: &&MapInfo| !carried.contains(&map.name) && !map.role.is_flows();
        let begins_empty: Vec<&str> = MapInfo::carried().filter(is_lost).map(|map| map.name).collect();
        for dir in self.others()? {
            tracing::warn!(
                dir = %dir.display(), this = %PinFolder, ?carried, ?begins_empty,
                "maps of another layout or other sizes are there: their programs serve until this version's maps are filled, then \
                 connections are taken over"
            );
        }
        Ok(())
    }

    /// Looks at what is pinned and decides the size of each map; changes nothing.
    pub(crate) fn plan_maps(&self, sizes: &MapSizes) -> Result<Vec<MapReport>> {
        MAPS.iter().zip(sizes.entries()).map(|(map, wanted)| self.plan_map(map, wanted)).collect()
    }

    fn plan_map(&self, info: &MapInfo, wanted: u32) -> Result<MapReport> {
        let map = info.name;
        Ok(match self.size_of(info)? {
            None => MapReport { map, origin: Origin::Created, max_entries: wanted, wanted },
            Some(max_entries) => MapReport { map, origin: Origin::Adopted, max_entries, wanted },
        })
    }
}

/// The folders of all ABI versions and layouts, this one's included. Earlier builds had no layout in the name.
pub(crate) fn version_dirs(pin_dir: &Path) -> Result<Vec<PathBuf>> {
    let is_version = |name: &str| {
        let (version, layout) = name.split_once('-').unwrap_or((name, "0"));
        version.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok())
            && u64::from_str_radix(layout, 16).is_ok()
    };
    let names = list(pin_dir)?.into_iter().filter(|name| is_version(name));
    Ok(names.map(|name| pin_dir.join(name)).collect())
}

/// Names in a folder of pins.
pub(crate) fn list(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).map_err(Error::path("list folder", dir))?;
    entries
        .map(|entry| {
            let name = entry.map_err(Error::path("list folder", dir))?.file_name();
            Ok(name.to_string_lossy().into_owned())
        })
        .collect()
}

/// The pins in a folder; none where there is no folder.
pub(crate) fn pins(dir: &Path) -> Result<Vec<PathBuf>> {
    let names = unless_gone(list(dir))?.unwrap_or_default();
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}

/// Opens a pinned map.
pub(crate) fn open_map(pin: &Path) -> Result<OwnedFd> {
    sys::object_get(pin).map_err(Error::path("open pinned map", pin))
}

/// Removes the pin of a map.
pub(crate) fn remove_map(pin: &Path) -> Result<()> {
    fs::remove_file(pin).map_err(Error::path("remove the pin", pin))
}

/// Whether there is something, if only a link to nowhere.
pub(crate) fn exists(path: &Path) -> Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::path("look at", path)(error)),
    }
}

/// `None` where something is not there.
pub(crate) fn unless_gone<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::Path { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes the pins of maps that were made by a run that then failed.
#[derive(Debug)]
pub(crate) struct UndoPins {
    pins: Vec<PathBuf>,
}

impl UndoPins {
    pub(crate) fn new(dir: &PinDir, plan: &[MapReport]) -> Self {
        let created = plan.iter().filter(|report| report.origin == Origin::Created);
        Self { pins: created.map(|report| dir.maps.join(report.map)).collect() }
    }

    /// All went well: keeps them.
    pub(crate) fn disarm(mut self) {
        self.pins.clear();
    }
}

impl Drop for UndoPins {
    fn drop(&mut self) {
        for pin in &self.pins {
            match fs::remove_file(pin) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(pin = %pin.display(), %error, "pin of a failed start stays"),
            }
        }
    }
}

/// The folder itself need not exist yet; then its nearest ancestor counts.
fn require_bpffs(path: &Path) -> Result<()> {
    for ancestor in path.ancestors() {
        match statfs(ancestor) {
            Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => return Ok(()),
            Ok(_) => return Err(Error::NotBpffs { path: path.to_owned() }),
            Err(nix::Error::ENOENT) => {}
            Err(error) => return Err(Error::path("look at folder", ancestor)(error.into())),
        }
    }
    Err(Error::NotBpffs { path: path.to_owned() })
}
