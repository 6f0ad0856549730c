// SPDX-License-Identifier: Apache-2.0
//! Files that are there whole or not at all, also when their writer is killed at any moment.
//!
//! A file is written without a name (`O_TMPFILE` of open(2)) and then linked to its place, so that a killed writer leaves
//! nothing. Only where a file is replaced it has another name, `.NAME.tmp`, for the moment between two system calls: rename(2)
//! takes no file without one. The writer holds a lock on the file before it has that name. So whoever can lock a `.NAME.tmp`
//! knows that its writer is dead, and removes it: the next writer of the same file, [`remove`], and [`sweep`].

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag},
    unistd::linkat,
};

/// Another writer of the same file may take the name first; each turn, one of them is done.
const TRIES: u32 = 100;

/// Replaces `path`, whose folder is there, by what `write` writes: readers see the old file or the whole new one. On an error
/// the old one stays and nothing beside it; of two writers at once the last one counts. Not durable, unless `write` syncs the
/// file and the caller its folder.
///
/// # Errors
/// What `write` or the system said, without a path.
pub fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    settle(path)?;
    match nameless(path) {
        Ok(mut file) => {
            write(&mut file)?;
            place(&file, path)
        }
        Err(error) if lacks_nameless_files(&error) => {
            let (mut file, unfinished) = (named(path)?, unfinished(path));
            let replaced = write(&mut file).and_then(|()| fs::rename(&unfinished, path));
            replaced.inspect_err(|_| drop(fs::remove_file(&unfinished)))
        }
        Err(error) => Err(error),
    }
}

/// Removes `path` and what a killed writer may have left beside it; what is gone is fine.
///
/// # Errors
/// What the system said, without a path.
pub fn remove(path: &Path) -> io::Result<()> {
    settle(path)?;
    gone(fs::remove_file(path))
}

/// Removes what a killed writer of `path` may have left beside it.
///
/// # Errors
/// What the system said, without a path.
pub fn settle(path: &Path) -> io::Result<()> {
    discard(&unfinished(path), Live::Keep)
}

/// Removes what killed writers have left in `folder`, which may be absent; files of writers that live stay.
///
/// # Errors
/// What the system said, without a path.
pub fn sweep(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        if name.starts_with(b".") && name.ends_with(b".tmp") && entry.file_type()?.is_file() {
            discard(&entry.path(), Live::Keep)?;
        }
    }
    Ok(())
}

/// The result of a removal: what is gone already is fine.
///
/// # Errors
/// Every other error.
pub fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What to do with an unfinished file whose writer lives.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Live {
    Keep,
    WaitFor,
}

/// The name that a file has for the moment before it replaces another one.
fn unfinished(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

/// A locked file without a name, on the file system of `path`.
fn nameless(path: &Path) -> io::Result<File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = OpenOptions::new().write(true).custom_flags(OFlag::O_TMPFILE.bits()).mode(0o666).open(folder)?;
    file.lock()?;
    Ok(file)
}

/// Source: open(2), O_TMPFILE: file systems without it say so, kernels without it take the folder for a file to be written.
fn lacks_nameless_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR))
}

/// Gives a nameless file its name.
fn place(file: &File, path: &Path) -> io::Result<()> {
    match link(file, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        placed => return placed,
    }
    let unfinished = unfinished(path);
    claim(&unfinished, || link(file, &unfinished))?;
    fs::rename(&unfinished, path).inspect_err(|_| drop(fs::remove_file(&unfinished)))
}

/// Source: open(2), O_TMPFILE: by this path no capability is needed.
fn link(file: &File, path: &Path) -> io::Result<()> {
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(AT_FDCWD, own.as_str(), AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW)?)
}

/// A locked file that has the unfinished name from the start, for file systems that know no nameless ones.
fn named(path: &Path) -> io::Result<File> {
    let unfinished = unfinished(path);
    claim(&unfinished, || {
        let file = OpenOptions::new().write(true).create_new(true).open(&unfinished)?;
        file.lock()?;
        // Somebody may have taken it for left before it was locked.
        if is_at(&file, &unfinished)? { Ok(file) } else { Err(io::ErrorKind::AlreadyExists.into()) }
    })
}

/// Tries `make` until the name `unfinished` is free for it.
fn claim<T>(unfinished: &Path, make: impl Fn() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..TRIES {
        match make() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => discard(unfinished, Live::WaitFor)?,
            made => return made,
        }
    }
    Err(Errno::EBUSY.into())
}

/// Removes an unfinished file whose writer is dead.
fn discard(unfinished: &Path, live: Live) -> io::Result<()> {
    let file = match OpenOptions::new().read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(unfinished) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    match live {
        Live::WaitFor => file.lock()?,
        Live::Keep => match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Ok(()),
            locked => locked?,
        },
    }
    // Its writer may have renamed it meanwhile, and another one have taken the name.
    if is_at(&file, unfinished)? { gone(fs::remove_file(unfinished)) } else { Ok(()) }
}

/// Whether `path` still names this file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (open.dev(), open.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        ffi::OsString,
        fs::{self, File},
        io::{self, Write as _},
        path::Path,
    };

    use super::{Live, discard, link, nameless, place, remove, replace, settle, sweep, unfinished};

    fn names(folder: &Path) -> BTreeSet<OsString> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    fn only(name: &str) -> BTreeSet<OsString> {
        BTreeSet::from([OsString::from(name)])
    }

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.json");
        for content in ["first", "second"] {
            replace(&path, |file| {
                file.write_all(content.as_bytes())?;
                // What a kill would leave here.
                assert!(!names(dir.path()).contains(&OsString::from(".f.json.tmp")));
                Ok(())
            })
            .unwrap();
            assert_eq!((fs::read(&path).unwrap(), names(dir.path())), (content.into(), only("f.json")));
        }
        let failed = replace(&path, |file| {
            file.write_all(b"thi")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!((fs::read(&path).unwrap(), names(dir.path())), (b"second".into(), only("f.json")));
    }

    #[test]
    fn what_cannot_be_replaced_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::create_dir(&path).unwrap();
        assert_eq!(replace(&path, |_| Ok(())).unwrap_err().kind(), io::ErrorKind::IsADirectory);
        assert_eq!(names(dir.path()), only("f"));
        assert_eq!(replace(&dir.path().join("none/f"), |_| Ok(())).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    /// A writer that is killed between the two names of a file: the only moment in which it leaves one.
    fn killed_while_replacing(path: &Path) {
        let file = nameless(path).unwrap();
        link(&file, &unfinished(path)).unwrap();
    }

    #[test]
    fn what_a_killed_writer_has_left_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.json");
        let write = |path: &Path| replace(path, |file| file.write_all(b"{}"));
        write(&path).unwrap();
        killed_while_replacing(&path);
        write(&path).unwrap();
        assert_eq!(names(dir.path()), only("f.json"));
        killed_while_replacing(&path);
        settle(&path).unwrap();
        assert_eq!(names(dir.path()), only("f.json"));
        killed_while_replacing(&path);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(names(dir.path()).is_empty());
        killed_while_replacing(&path);
        write(&dir.path().join("other")).unwrap();
        fs::write(dir.path().join(".keep"), b"").unwrap();
        sweep(dir.path()).unwrap();
        assert_eq!(names(dir.path()), BTreeSet::from([".keep".into(), "other".into()]));
        sweep(&dir.path().join("none")).unwrap();
    }

    #[test]
    fn a_writer_that_lives_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let file = nameless(&path).unwrap();
        link(&file, &unfinished(&path)).unwrap();
        sweep(dir.path()).unwrap();
        settle(&path).unwrap();
        assert_eq!(names(dir.path()), only(".f.tmp"));
        drop(file);
        sweep(dir.path()).unwrap();
        assert!(names(dir.path()).is_empty());
    }

    /// The name may have been taken by another writer between the look and the lock.
    #[test]
    fn a_name_that_was_taken_anew_is_another_writers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let old = nameless(&path).unwrap();
        place(&old, &path).unwrap();
        assert!(!super::is_at(&File::open(&path).unwrap(), &unfinished(&path)).unwrap());
        killed_while_replacing(&path);
        discard(&unfinished(&path), Live::WaitFor).unwrap();
        assert_eq!(names(dir.path()), only("f"));
    }

    /// Where the file system knows no nameless files; two writers at once, and one that was killed.
    #[test]
    fn a_named_file_is_claimed_by_one_writer_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        drop(super::named(&path).unwrap());
        let mut first = super::named(&path).unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| super::named(&path).map(drop));
            first.write_all(b"whole").unwrap();
            fs::rename(unfinished(&path), &path).unwrap();
            drop(first);
            second.join().unwrap().unwrap();
        });
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        settle(&path).unwrap();
        assert_eq!(names(dir.path()), only("f"));
    }

    #[test]
    fn writers_at_once_leave_one_whole_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let content = |writer: u8| vec![b'a' + writer; 10_000];
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..50 {
                        replace(path, |file| file.write_all(&content(writer))).unwrap();
                    }
                });
            }
        });
        let found = fs::read(&path).unwrap();
        assert!((0..4).any(|writer| found == content(writer)), "{} bytes", found.len());
        assert_eq!(names(dir.path()), only("f"));
    }
}
