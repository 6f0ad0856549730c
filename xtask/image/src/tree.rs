// SPDX-License-Identifier: Apache-2.0

//! The files of a layer or an archive, before they are written.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Mode of folders that nobody asked for by name.
const FOLDER: u32 = 0o755;

/// Files, folders and links by their path, which is relative and has no `.` and no `/` at its end. A folder sorts before what is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree(BTreeMap<String, Entry>);

/// One of a tree's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The permission bits; links have 0o777.
    pub mode: u32,
    /// What it is.
    pub content: Content,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A folder.
    Folder,
    /// A file with these bytes.
    File(Source),
    /// A symbolic link to this path.
    Link(String),
}

/// Where the bytes of a file are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Here.
    Bytes(Vec<u8>),
    /// In this file of the machine; its mode and its times do not count.
    File(PathBuf),
}

impl Tree {
    /// Puts a file at `path`, and folders above it where there are none. What was there is replaced.
    pub fn file(&mut self, path: &str, mode: u32, source: Source) {
        self.insert(path, Entry { mode, content: Content::File(source) });
    }

    /// Whether there is something at `path`.
    #[must_use]
    pub fn contains(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    /// All entries, sorted by the bytes of their paths.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.0.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    /// What is in the folder `root` of the machine, with its modes. Whose it is does not count.
    ///
    /// # Errors
    /// Something cannot be read, is neither file, folder nor link, or has a name that is not UTF-8.
    pub fn of_folder(root: &Path) -> Result<Self> {
        let mut tree = Self::default();
        tree.read_folder(root, "")?;
        Ok(tree)
    }

    /// The same with the modes that a umask of 022 gives, whatever the one was under which its files were made.
    #[must_use]
    pub(crate) fn with_plain_modes(mut self) -> Self {
        for entry in self.0.values_mut() {
            entry.mode = if entry.content == Content::Folder { FOLDER } else { 0o644 };
        }
        self
    }

    fn read_folder(&mut self, folder: &Path, inside: &str) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
            let path = entry.with_context(|| format!("list {}", folder.display()))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.with_context(|| format!("{}: the name is not UTF-8", path.display()))?;
            self.read_entry(&path, &format!("{inside}{name}"))?;
        }
        Ok(())
    }

    fn read_entry(&mut self, path: &Path, inside: &str) -> Result<()> {
        let known = fs::symlink_metadata(path).with_context(|| format!("look at {}", path.display()))?;
        let content = if known.is_dir() {
            Content::Folder
        } else if known.is_file() {
            Content::File(Source::File(path.to_owned()))
        } else if known.is_symlink() {
            let target = fs::read_link(path).with_context(|| format!("read the link {}", path.display()))?;
            Content::Link(target.into_os_string().into_string().ok().context("a link to a name that is not UTF-8")?)
        } else {
            bail!("{} is neither file, folder nor link", path.display());
        };
        let is_folder = content == Content::Folder;
        self.insert(inside, Entry { mode: known.permissions().mode() & 0o7777, content });
        if is_folder { self.read_folder(path, &format!("{inside}/")) } else { Ok(()) }
    }

    fn insert(&mut self, path: &str, entry: Entry) {
        for (end, _) in path.match_indices('/') {
            let folder = Entry { mode: FOLDER, content: Content::Folder };
            self.0.entry(path[..end].to_owned()).or_insert(folder);
        }
        self.0.insert(path.to_owned(), entry);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn folders_come_before_what_is_in_them() {
        let mut tree = Tree::default();
        tree.file("b/c/d", 0o644, Source::Bytes(Vec::new()));
        tree.file("a", 0o644, Source::Bytes(Vec::new()));
        assert_eq!(tree.entries().map(|(path, _)| path).collect::<Vec<_>>(), ["a", "b", "b/c", "b/c/d"]);
    }

    #[test]
    fn a_folder_of_the_machine_is_read_with_its_modes_and_links() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir(root.join("bin")).unwrap();
        fs::write(root.join("bin/program"), "x").unwrap();
        fs::set_permissions(root.join("bin/program"), fs::Permissions::from_mode(0o750)).unwrap();
        symlink("program", root.join("bin/other")).unwrap();
        let tree = Tree::of_folder(root).unwrap();
        assert_eq!(tree.0.keys().collect::<Vec<_>>(), ["bin", "bin/other", "bin/program"]);
        assert_eq!(tree.0["bin/other"].content, Content::Link("program".to_owned()));
        assert_eq!(tree.0["bin/program"].mode, 0o750);
    }
}
