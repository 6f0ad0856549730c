// SPDX-License-Identifier: Apache-2.0

//! Processes of a cluster that outlive the command that started them: recorded by process id and start time, ended by exactly
//! that.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::command::wait_until;

/// How long the kernel may take to end a process.
const LIMIT: Duration = Duration::from_secs(10);

/// The recorded processes of one cluster.
#[derive(Clone, Debug)]
pub(crate) struct Daemons {
    /// Holds one file per process: its id and its start time.
    pub(crate) records: PathBuf,
    /// Holds one file per process: its stdout and stderr.
    pub(crate) logs: PathBuf,
}

impl Daemons {
    /// Starts `command` in a process group of its own, its output in the log `name`, and returns its process id.
    ///
    /// # Errors
    /// It cannot be started or recorded.
    pub(crate) fn start(&self, name: &str, command: &mut Command) -> Result<i32> {
        let log = File::create(self.log(name)).with_context(|| format!("create the log of {name}"))?;
        let errors = log.try_clone().with_context(|| format!("duplicate the log of {name}"))?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        let process = i32::try_from(child.id()).context("a process id beyond i32")?;
        let started =
            start_time(process).with_context(|| format!("{name} ended at once, see {}", self.log(name).display()))?;
        let record = self.records.join(name);
        fs::write(&record, format!("{process} {started}\n")).with_context(|| format!("write {}", record.display()))?;
        Ok(process)
    }

    /// Process id of `name` while it lives.
    ///
    /// # Errors
    /// Its record is damaged.
    pub(crate) fn running(&self, name: &str) -> Result<Option<i32>> {
        let record = self.records.join(name);
        let Ok(text) = fs::read_to_string(&record) else { return Ok(None) };
        let parsed = text.split_once(' ').and_then(|(id, time)| Some((id.parse().ok()?, time.trim().parse().ok()?)));
        let (process, started): (i32, u64) = parsed.with_context(|| format!("{} is damaged", record.display()))?;
        Ok((start_time(process) == Some(started)).then_some(process))
    }

    /// Fails with the end of its log when `name` does not run any more.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn ensure_running(&self, name: &str) -> Result<()> {
        if self.running(name)?.is_some() {
            return Ok(());
        }
        let log = fs::read_to_string(self.log(name)).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(5)..].join("\n");
        bail!("{name} has ended, see {}:\n{tail}", self.log(name).display())
    }

    /// Ends `name` with SIGKILL (what it might save is removed anyway) and forgets it. Nothing happens when it does not run.
    ///
    /// # Errors
    /// It outlives the signal.
    pub(crate) fn stop(&self, name: &str) -> Result<()> {
        if let Some(process) = self.running(name)? {
            signal(process, Signal::SIGKILL);
            wait_until(&format!("the end of {name} (process {process})"), LIMIT, || {
                Ok(self.running(name)?.is_none().then_some(()))
            })?;
        }
        let record = self.records.join(name);
        if record.exists() {
            fs::remove_file(&record).with_context(|| format!("remove {}", record.display()))?;
        }
        Ok(())
    }

    /// The names of all recorded processes.
    ///
    /// # Errors
    /// The records cannot be listed.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        if !self.records.is_dir() {
            return Ok(Vec::new());
        }
        let entries = fs::read_dir(&self.records).with_context(|| format!("list {}", self.records.display()))?;
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry.context("list the records")?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Path of the log of `name`.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }
}

/// Sends a signal; a process that is gone already is as good as signalled.
pub(crate) fn signal(process: i32, number: Signal) {
    if let Err(error) = kill(Pid::from_raw(process), number)
        && error != nix::errno::Errno::ESRCH
    {
        eprintln!("could not send {number} to process {process}: {error}");
    }
}

/// Start time of a living process in clock ticks since boot (proc(5), `stat` field 22); `None` for a zombie or no process.
fn start_time(process: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in field 2 may hold spaces and brackets: count from its last bracket, behind which field 3 follows.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_daemon_is_known_while_it_lives_and_ended_exactly() {
        let directory = tempfile::tempdir().unwrap();
        let daemons = Daemons { records: directory.path().into(), logs: directory.path().into() };
        let process = daemons.start("sleeper", Command::new("sleep").arg("1000")).unwrap();
        assert_eq!(daemons.running("sleeper").unwrap(), Some(process));
        daemons.stop("sleeper").unwrap();
        assert_eq!(start_time(process), None);
        assert_eq!(daemons.running("sleeper").unwrap(), None);
    }

    #[test]
    fn a_record_of_a_reused_process_id_is_not_taken_for_the_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let daemons = Daemons { records: directory.path().into(), logs: directory.path().into() };
        fs::write(directory.path().join("other"), format!("{} 1\n", std::process::id())).unwrap();
        assert_eq!(daemons.running("other").unwrap(), None);
        daemons.stop("other").unwrap();
    }
}
