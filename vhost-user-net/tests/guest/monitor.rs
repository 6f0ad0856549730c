// SPDX-License-Identifier: Apache-2.0
//! QEMU's monitor (QMP).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::STREAM_PATIENCE;
use crate::peer::host::eventually;

/// A connection to a monitor.
pub struct Monitor(BufReader<UnixStream>);

impl Monitor {
    /// The argument that gives QEMU a monitor at this path.
    pub fn arguments(path: &Path) -> Vec<String> {
        vec!["-qmp".to_owned(), format!("unix:{},server=on,wait=off", path.display())]
    }

    pub fn connect(path: &Path) -> Result<Self> {
        let stream = eventually("the monitor", || Ok(UnixStream::connect(path).ok()))?;
        stream.set_read_timeout(Some(STREAM_PATIENCE))?;
        let mut monitor = Self(BufReader::new(stream));
        monitor.line()?;
        monitor.ask(r#"{"execute":"qmp_capabilities"}"#)?;
        Ok(monitor)
    }

    fn line(&mut self) -> Result<Value> {
        let mut text = String::new();
        self.0.read_line(&mut text)?;
        serde_json::from_str(&text).with_context(|| format!("monitor: {text:?}"))
    }

    /// Sends a command and returns what it returns.
    pub fn ask(&mut self, request: &str) -> Result<Value> {
        self.0.get_mut().write_all(request.as_bytes())?;
        loop {
            let mut answer = self.line()?;
            ensure!(answer.get("error").is_none(), "{request}: {answer}");
            if answer.get("event").is_none() {
                return Ok(answer["return"].take());
            }
        }
    }

    /// Whether the guest is `running`, `paused`, `postmigrate`...
    pub fn status(&mut self) -> Result<String> {
        Ok(self.ask(r#"{"execute":"query-status"}"#)?["status"].as_str().context("status")?.to_owned())
    }

    /// Migrates the guest; returns when its source has stopped and its target has everything.
    pub fn migrate(&mut self, uri: &str) -> Result<()> {
        self.ask(&format!(r#"{{"execute":"migrate","arguments":{{"uri":"{uri}"}}}}"#))?;
        let deadline = Instant::now() + STREAM_PATIENCE;
        loop {
            let answer = self.ask(r#"{"execute":"query-migrate"}"#)?;
            match answer["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed") => bail!("{answer}"),
                _ => ensure!(Instant::now() < deadline, "migration not done: {answer}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
