// SPDX-License-Identifier: Apache-2.0
//! Where the plugin's log goes: a file or stderr, never stdout, which is the protocol's.

use std::{
    fs::{File, OpenOptions},
    io,
    path::Path,
    sync::Mutex,
};

use tracing_subscriber::fmt;

use crate::config::NetworkConfig;

/// Starts logging as `config` asks. A log file that cannot be opened must not stop a pod: stderr takes its place.
pub(crate) fn start(config: &NetworkConfig) {
    let builder = || fmt().with_max_level(config.log_level).with_ansi(false).with_target(false);
    let started = match config.log_file.as_deref().map(open) {
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

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}
