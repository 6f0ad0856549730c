// SPDX-License-Identifier: Apache-2.0
//! One process of a device.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::process::ExitStatusExt as _,
    },
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::Signal,
    unistd::{getppid, setsid, write},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::{Child, Command},
    time::timeout,
};

use super::{
    cgroup::Cgroups,
    running,
    spec::{DeviceSpec, record_path},
};
use crate::file;

/// How long a process may take to end after SIGTERM, and then after SIGKILL.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// Memory that a device may have of its own, guest memory aside: heap and stacks, most of it never touched. A device with 16
/// queue pairs has 37 MiB of it, one with one pair 5.
const MEMORY: u64 = 32 << 20;
/// And so much more for each queue pair.
const MEMORY_PER_QUEUE: u64 = 8 << 20;

/// A process of all times since the boot: its number is given again, its start time is not.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Mark {
    pid: u32,
    /// Clock ticks since the boot: field 22 of proc_pid_stat(5).
    start_time: u64,
}

/// A process of a device, whoever started it. Dropping it leaves it running.
#[derive(Debug)]
pub(super) struct DeviceProcess {
    mark: Mark,
    /// Signals through it reach this process or none.
    pidfd: AsyncFd<OwnedFd>,
    /// Where this agent started it.
    child: Option<Child>,
}

impl DeviceProcess {
    /// Starts a device, in control groups of its own, and records it. If the agent is killed in between, [`running::find`]
    /// finds the device.
    ///
    /// # Errors
    /// The binary cannot be run, or the record not be written; no process is left then.
    pub(super) async fn spawn(binary: &Path, spec: &DeviceSpec, cgroups: &Cgroups) -> io::Result<Self> {
        let log = File::options().create(true).append(true).open(spec.log_path()).map_err(naming(&spec.log_path()))?;
        let mut command = Command::new(binary);
        command.args(spec.arguments()).env_clear().current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut child = start(command, spec, cgroups).await.map_err(naming(binary))?;
        let marked = child.id().ok_or_else(|| io::Error::from(Errno::ESRCH)).and_then(|pid| {
            cgroups.confirm(pid, &spec.tap);
            let mark = Mark { pid, start_time: start_time(pid)? };
            file::save(&record_path(spec.folder()), &mark)?;
            Ok((mark, open(pid)?))
        });
        match marked {
            Ok((mark, pidfd)) => Ok(Self { mark, pidfd, child: Some(child) }),
            Err(error) => {
                child.kill().await?;
                Err(error)
            }
        }
    }

    /// The process that the files in `folder` name, if it still runs.
    ///
    /// # Errors
    /// The record cannot be read, or the kernel refuses; a record that does not parse is as good as none.
    pub(super) fn recorded(folder: &Path) -> io::Result<Option<Self>> {
        let text = match fs::read(record_path(folder)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let Ok(mark) = serde_json::from_slice::<Mark>(&text) else { return Ok(None) };
        // First hold on to the process of that number, then see whether it is the one.
        let Some(pidfd) = open_if_alive(mark.pid)? else { return Ok(None) };
        let same = start_time(mark.pid).is_ok_and(|start_time| start_time == mark.start_time);
        Ok(same.then_some(Self { mark, pidfd, child: None }))
    }

    /// The process `pid`, if it still runs and is a device with its files in `folder`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn of(pid: u32, folder: &Path) -> io::Result<Option<Self>> {
        let Some(pidfd) = open_if_alive(pid)? else { return Ok(None) };
        let tap = folder.parent().and_then(|devices| running::tap(pid, devices));
        if tap.as_deref().map(OsStr::new) != folder.file_name() {
            return Ok(None);
        }
        let Ok(start_time) = start_time(pid) else { return Ok(None) };
        Ok(Some(Self { mark: Mark { pid, start_time }, pidfd, child: None }))
    }

    /// Records it as the device of `spec`, for the next agent.
    ///
    /// # Errors
    /// The record cannot be written.
    pub(super) fn record(&self, spec: &DeviceSpec) -> io::Result<()> {
        file::save(&record_path(spec.folder()), &self.mark)
    }

    pub(super) const fn pid(&self) -> u32 {
        self.mark.pid
    }

    /// Whether it runs with these arguments.
    pub(super) fn runs(&self, spec: &DeviceSpec) -> bool {
        let line = fs::read(format!("/proc/{}/cmdline", self.mark.pid)).unwrap_or_default();
        let running = line.split(|byte| *byte == 0).skip(1).filter(|argument| !argument.is_empty());
        running.eq(spec.arguments().iter().map(String::as_bytes))
    }

    /// Waits for its end; tells how it ended. Safe to cancel.
    pub(super) async fn ended(&mut self) -> String {
        match &mut self.child {
            Some(child) => child.wait().await.map_or_else(|error| error.to_string(), describe),
            // Its status goes to its parent, which is not this agent.
            None => self.pidfd.readable().await.map_or_else(|error| error.to_string(), |_| "ended".to_owned()),
        }
    }

    /// Ends it: SIGTERM, and where that does not help SIGKILL.
    pub(super) async fn end(mut self) {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            if let Err(error) = self.signal(signal) {
                tracing::debug!(pid = self.pid(), %signal, %error, "signalling a device");
            }
            if timeout(END_PATIENCE, self.ended()).await.is_ok() {
                return;
            }
            tracing::warn!(pid = self.pid(), %signal, "a device did not end");
        }
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        let nothing = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is open, and without a siginfo the call reads no memory.
        let result = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd(), signal as libc::c_int, nothing, 0)
        };
        Ok(Errno::result(result).map(drop)?)
    }
}

/// Starts the command in a session and control groups of its own and with bounded memory. Not on a thread of the runtime:
/// to move a process to another group takes the kernel up to 20 ms, in each hierarchy.
async fn start(mut command: Command, spec: &DeviceSpec, cgroups: &Cgroups) -> io::Result<Child> {
    let limit = MEMORY + MEMORY_PER_QUEUE * u64::from(spec.queues);
    let (tap, cgroups) = (spec.tap.clone(), cgroups.clone());
    let agent = nix::unistd::getpid();
    let start = move || {
        let groups = cgroups.open(&tap);
        let prepare = move || {
            setsid()?;
            let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
            // SAFETY: the call reads the limits, which are there.
            Errno::result(unsafe { libc::setrlimit(libc::RLIMIT_DATA, &raw const limit) })?;
            for group in &groups {
                // Whether it has moved is looked at from outside.
                write(group.as_fd(), b"0").ok();
            }
            // Without its agent nobody would know of it.
            if getppid() == agent { Ok(()) } else { Err(io::Error::from(Errno::ECANCELED)) }
        };
        // SAFETY: these calls are async-signal-safe, and nothing else runs between fork and exec.
        unsafe { command.pre_exec(prepare) };
        command.spawn()
    };
    tokio::task::spawn_blocking(start).await.map_err(io::Error::other)?
}

/// Source: pidfd_open(2). None: no process has the number.
fn open_if_alive(pid: u32) -> io::Result<Option<AsyncFd<OwnedFd>>> {
    match open(pid) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EINVAL)) => Ok(None),
        pidfd => pidfd.map(Some),
    }
}

/// Source: pidfd_open(2). Readable once the process has ended.
fn open(pid: u32) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: pidfd_open takes numbers only.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it, for nobody else.
    let pidfd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: an OwnedFd gives the same open descriptor for as long as it lives, and only this AsyncFd has it.
    Ok(unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?)
}

fn start_time(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Field 2 is the name in brackets, which may hold anything; the third follows its last bracket.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace());
    let field = fields.and_then(|mut fields| fields.nth(22 - 3)).and_then(|field| field.parse().ok());
    field.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has no start time")))
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => {
            Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |name| name.to_string())
        }
        (None, None) => status.to_string(),
    }
}

fn naming(path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
