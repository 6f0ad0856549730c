// SPDX-License-Identifier: Apache-2.0
//! The files of the folder, and the last good form of what they say.

use std::{
    collections::BTreeMap,
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use crate::watch::dir::{manifest, object::Object};

/// Folders within folders, at most.
const DEPTH: usize = 8;

/// A file larger than this is no manifest.
const LONGEST: u64 = 16 << 20;

/// A file changed this short a time ago is read again even if it looks the same: time stamps are coarse.
const FRESH: Duration = Duration::from_secs(2);

/// Where the agents write (see [`crate::watch::dir::publish()`]).
pub(crate) const RUNTIME: &str = ".weft";

/// One file, by its path within the folder.
#[derive(Debug, Default)]
pub(crate) struct File {
    stamp: Option<Stamp>,
    text: String,
    /// The last good form of each of its objects.
    pub(crate) objects: Vec<Object>,
    /// What is wrong with it now.
    pub(crate) problems: Vec<String>,
}

#[derive(Debug, Eq, PartialEq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        Self { inode: metadata.ino(), size: metadata.size(), modified }
    }
}

/// The folder cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot {call} {path}: {source}")]
pub(crate) struct FolderError {
    call: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The folder as it was last seen.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
    files: BTreeMap<PathBuf, File>,
    seen: bool,
}

impl Folder {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root, files: BTreeMap::new(), seen: false }
    }

    /// The files by their paths within the folder.
    pub(crate) fn files(&self) -> &BTreeMap<PathBuf, File> {
        &self.files
    }

    /// Reads what has changed; true where anything has (the first time: always).
    ///
    /// # Errors
    /// [`FolderError`] where a folder cannot be listed; everything stays as it was.
    pub(crate) fn scan(&mut self) -> Result<bool, FolderError> {
        let mut found = BTreeMap::new();
        list(&self.root, Path::new(""), DEPTH, &mut found)?;
        let before = self.files.len();
        self.files.retain(|path, _| found.contains_key(path));
        let mut changed = !std::mem::replace(&mut self.seen, true) || self.files.len() != before;
        for (path, metadata) in found {
            let file = self.files.entry(path.clone()).or_default();
            changed |= file.refresh(&self.root, &path, &metadata);
        }
        Ok(changed)
    }
}

/// Manifests and, among the hidden folders, the agents' own.
fn list(root: &Path, within: &Path, depth: usize, found: &mut BTreeMap<PathBuf, Metadata>) -> Result<(), FolderError> {
    let folder = root.join(within);
    let failed = |call, source| FolderError { call, path: folder.clone(), source };
    for entry in fs::read_dir(&folder).map_err(|source| failed("list", source))? {
        let name = entry.map_err(|source| failed("list", source))?.file_name();
        let path = within.join(&name);
        let name = name.to_string_lossy();
        let own = within.as_os_str().is_empty() && name == RUNTIME;
        if name.starts_with('.') && !own {
            continue;
        }
        let metadata = match fs::metadata(root.join(&path)) {
            Ok(metadata) => metadata,
            // Gone since it was listed, or a link to nowhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(failed("look into", source)),
        };
        let manifest = matches!(path.extension().and_then(|e| e.to_str()), Some("yaml" | "yml" | "json"));
        if metadata.is_dir() && depth > 0 {
            list(root, &path, depth - 1, found)?;
        } else if metadata.is_file() && manifest {
            found.insert(path, metadata);
        }
    }
    Ok(())
}

impl File {
    fn refresh(&mut self, root: &Path, path: &Path, metadata: &Metadata) -> bool {
        let stamp = Some(Stamp::of(metadata));
        let age = metadata.modified().ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
        if self.stamp == stamp && age.is_some_and(|age| age > FRESH) {
            return false;
        }
        let first = self.stamp.is_none();
        self.stamp = stamp;
        let name = path.display().to_string();
        let text = match read(&root.join(path), metadata.len()) {
            Ok(text) => text,
            Err(error) => return self.keep(format!("{name}: {error}")),
        };
        if !first && text == self.text && !text.is_empty() {
            return false;
        }
        self.text = text;
        self.take(&name)
    }

    /// Takes over what is good; of what is not, the last good form stays.
    fn take(&mut self, name: &str) -> bool {
        let manifest = manifest::read(name, &self.text);
        if let Some(broken) = manifest.broken {
            return self.keep(broken);
        }
        let mut objects = manifest.objects;
        let mut problems = Vec::new();
        for (refused, why) in manifest.refused {
            let good = self.objects.iter().find(|object| refused.as_ref() == Some(&object.name()));
            let stays = if good.is_some() { "; its last good form stays" } else { "" };
            objects.extend(good.cloned());
            problems.push(format!("{why}{stays}"));
        }
        let changed = objects != self.objects || problems != self.problems;
        (self.objects, self.problems) = (objects, problems);
        changed
    }

    fn keep(&mut self, why: String) -> bool {
        let stays = if self.objects.is_empty() { "" } else { "; the last good form of its objects stays" };
        let problems = vec![format!("{why}{stays}")];
        let changed = problems != self.problems;
        self.problems = problems;
        changed
    }
}

fn read(path: &Path, size: u64) -> io::Result<String> {
    if size > LONGEST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{size} bytes; {LONGEST} at most")));
    }
    fs::read_to_string(path)
}
