// SPDX-License-Identifier: Apache-2.0
//! Where the plugin's log goes: a file or stderr, never stdout, which is the protocol's.
//!
//! The file is bounded: when it is longer than [`MOST`] it becomes `logFile.1`, in place of an earlier one, and a new one begins.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Mutex,
};

use nix::fcntl::OFlag;
use tracing_subscriber::fmt;

use crate::config::NetworkConfig;

/// Bytes after which a plugin that starts begins a new file.
const MOST: u64 = 4 << 20;

/// Starts logging as `config` asks. A log file that cannot be opened must not stop a pod: stderr takes its place.
pub(crate) fn start(config: &NetworkConfig) {
    let builder = || fmt().with_max_level(config.log_level).with_ansi(false).with_target(false);
    let started = match config.log_file.as_deref().map(open_bounded) {
        None => builder().with_writer(io::stderr).try_init(),
        Some(Ok(file)) => builder().with_writer(Mutex::new(file)).try_init(),
        Some(Err(error)) => {
            let started = builder().with_writer(io::stderr).try_init();
            tracing::warn!(path = ?config.log_file, %error, "cannot open logFile, logging to stderr");
            started
        }
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
}

/// Opens the log, in place of one that has become too long. Plugins that run at the same time go on in the file that they have;
/// of those that find it too long, one at a time looks again and moves it.
fn open_bounded(path: &Path) -> io::Result<File> {
    let log = open(path)?;
    if !is_too_long(&log)? {
        return Ok(log);
    }
    log.lock()?;
    if is_at(&log, path)? {
        fs::rename(path, old(path))?;
    }
    open(path)
}

/// A pipe that nobody reads is an error, not a reason to wait.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)
}

fn is_too_long(log: &File) -> io::Result<bool> {
    let metadata = log.metadata()?;
    Ok(metadata.is_file() && metadata.len() > MOST)
}

/// Whether `path` still names this file; of a link, what it leads to.
fn is_at(log: &File, path: &Path) -> io::Result<bool> {
    let own = log.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn old(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".1");
    name.into()
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        io::Write as _,
        sync::Barrier,
    };

    use super::{MOST, open_bounded};

    #[test]
    fn a_log_that_is_too_long_becomes_the_one_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weft.log");
        for number in 0..3 {
            let mut log = open_bounded(&path).unwrap();
            writeln!(log, "{number}").unwrap();
            log.write_all(&vec![b'x'; MOST as usize]).unwrap();
        }
        assert!(fs::read_to_string(&path).unwrap().starts_with("2\n"));
        assert!(fs::read_to_string(dir.path().join("weft.log.1")).unwrap().starts_with("1\n"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        drop(open_bounded(&path).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    }

    #[test]
    fn of_many_plugins_at_once_one_moves_it_and_no_line_is_lost() {
        const PLUGINS: usize = 16;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weft.log");
        for _ in 0..20 {
            fs::write(&path, vec![b'x'; MOST as usize + 1]).unwrap();
            let barrier = Barrier::new(PLUGINS);
            std::thread::scope(|scope| {
                for number in 0..PLUGINS {
                    let (path, barrier) = (&path, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        writeln!(open_bounded(path).unwrap(), "{number}").unwrap();
                    });
                }
            });
            assert_eq!(fs::metadata(dir.path().join("weft.log.1")).unwrap().len(), MOST + 1, "moved once");
            assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), PLUGINS);
        }
    }

    #[test]
    fn a_pipe_without_a_reader_is_refused_and_a_device_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(open_bounded(&pipe).unwrap_err().raw_os_error(), Some(libc::ENXIO));
        let _null: File = open_bounded("/dev/null".as_ref()).unwrap();
    }
}
