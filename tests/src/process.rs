// SPDX-License-Identifier: Apache-2.0

//! Child processes, bounded in time and gone with their owner.

use std::{
    fs,
    io::Read as _,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::wait::until;

/// What a command printed, and how it ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outcome {
    /// Exit status; 124 and 137 where it was ended for taking too long.
    pub status: i32,
    /// Both outputs, as they came.
    pub output: String,
}

impl Outcome {
    /// The output of a command that must have worked.
    ///
    /// # Errors
    /// It did not.
    pub fn ok(self) -> Result<String> {
        match self.status {
            0 => Ok(self.output),
            status => bail!("exit status {status}: {}", self.output.trim_end()),
        }
    }
}

/// Runs `command` to its end with `input` on its standard input; it must bound its own time.
pub(crate) fn run(mut command: Command, input: &[u8]) -> Result<(i32, Vec<u8>, Vec<u8>)> {
    let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not read its input says why in its exit status.
        drop(std::io::Write::write_all(&mut stdin, input));
    }
    let mut stderr = child.stderr.take().context("the child has no stderr")?;
    let errors = thread::spawn(move || {
        let mut bytes = Vec::new();
        stderr.read_to_end(&mut bytes).map(|_| bytes)
    });
    let mut output = Vec::new();
    child.stdout.take().context("the child has no stdout")?.read_to_end(&mut output)?;
    let errors = errors.join().unwrap_or_else(|_| Ok(Vec::new()))?;
    let status = child.wait()?;
    Ok((status.code().unwrap_or(137), output, errors))
}

/// A process that goes on while the owner does other things; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// The process itself, where `child` is only the `nsenter` in front of it.
    inner: Pid,
    name: String,
}

impl Process {
    /// Starts `command`, which is `nsenter` with a process namespace: the process that it forks is the one meant.
    pub(crate) fn start_entered(mut command: Command, name: &str) -> Result<Self> {
        let child = command.stdin(Stdio::null()).spawn().with_context(|| format!("start {command:?}"))?;
        let mut process = Self { child, inner: Pid::from_raw(0), name: name.to_owned() };
        process.inner = only_child(process.child.id()).with_context(|| format!("start {name}"))?;
        Ok(process)
    }

    /// Whether it runs still.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its number, as this process sees it.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.inner
    }

    /// Sends `signal` to it.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.inner, signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// Sends `signal` and waits for the end.
    ///
    /// # Errors
    /// It was gone before, or does not end within 10 seconds.
    pub fn stop(mut self, signal: Signal) -> Result<()> {
        self.signal(signal)?;
        let what = format!("{} ends", self.name);
        until(&what, Duration::from_secs(10), || !self.is_running())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() && self.inner.as_raw() > 0 {
            kill(self.inner, Signal::SIGKILL).ok();
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The one process that `parent` forked, once it did.
pub(crate) fn only_child(parent: u32) -> Result<Pid> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let mut found = None;
    until("a child process", Duration::from_secs(10), || {
        let children = fs::read_to_string(&path).unwrap_or_default();
        found = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
        found.is_some()
    })?;
    found.map(Pid::from_raw).context("no child process")
}
