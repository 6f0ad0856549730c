// SPDX-License-Identifier: Apache-2.0

//! Namespaces held by a process of their own: they have no name on the machine and end with their holder, and the holder
//! ends with the process that made it, since it waits for the end of a pipe.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::{
    sched::{CloneFlags, setns},
    unistd::Pid,
};

use crate::process::{Outcome, Process, only_child, run};

/// Network, mount, host name and process namespaces of a simulated machine.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    holder: Child,
    /// Process 1 of the namespace, as this process sees it.
    init: Pid,
}

/// What every simulated machine needs: its own view of processes, links and pinned objects, and volatile folders.
const SETUP: &str = "
set -e
mount --make-rprivate /
mount -t tmpfs run /run
mkdir -p /run/netns
mount -t sysfs sysfs /sys
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
hostname \"$1\"
echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
ip link set lo up
";

impl Namespace {
    /// Makes namespaces for a machine called `name`, inside the mounts of `parent` if there is one. `prepare` is a shell
    /// script that runs in them first, with `name` as its first argument.
    ///
    /// # Errors
    /// Not root, or a command of the script failed; the message has its output.
    pub fn new(name: &str, parent: Option<&Namespace>, prepare: &str) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "the testbed makes namespaces: run as root");
        let mut command = Command::new("nsenter");
        if let Some(parent) = parent {
            command.arg(format!("--mount={}", parent.proc("ns/mnt").display()));
        }
        let script = format!("{SETUP}\n{prepare}\necho READY\nexec cat >/dev/null");
        let mut holder = command
            .args(["--", "unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", &script, "sh", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start nsenter")?;
        let mut line = String::new();
        let stdout = holder.stdout.take().context("the holder has no stdout")?;
        BufReader::new(stdout).read_line(&mut line)?;
        if line != "READY\n" {
            let status = holder.wait()?;
            anyhow::bail!("namespace {name}: the preparing script failed ({status}); its message is above");
        }
        let init = only_child(holder.id())?;
        Ok(Self { name: name.to_owned(), holder, init })
    }

    /// The machine's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process 1 of the namespaces.
    #[must_use]
    pub fn init(&self) -> Pid {
        self.init
    }

    /// `/proc/INIT/PATH`.
    #[must_use]
    pub fn proc(&self, path: &str) -> PathBuf {
        format!("/proc/{}/{path}", self.init).into()
    }

    /// A path of the machine as this process reaches it.
    #[must_use]
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        self.proc("root").join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// A command that starts inside, in the network namespace `netns` (a path inside) if one is given.
    #[must_use]
    pub fn enter(&self, netns: Option<&Path>) -> Command {
        let net = netns.map_or_else(|| self.proc("ns/net"), |inside| self.path(inside));
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", net.display()));
        for (option, file) in [("mount", "mnt"), ("uts", "uts"), ("pid", "pid")] {
            command.arg(format!("--{option}={}", self.proc(&format!("ns/{file}")).display()));
        }
        command.arg("--");
        command
    }

    /// Runs a shell script inside, for a minute at most.
    ///
    /// # Errors
    /// It could not be started; what it says itself is in the outcome.
    pub fn sh(&self, netns: Option<&Path>, script: &str) -> Result<Outcome> {
        let mut command = self.enter(netns);
        command.args(["timeout", "-k", "5", "60", "sh", "-c", &format!("exec 2>&1\n{script}")]);
        let (status, output, errors) = run(command, &[])?;
        let output = String::from_utf8_lossy(&output).into_owned() + &String::from_utf8_lossy(&errors);
        Ok(Outcome { status, output })
    }

    /// Starts a process inside that is killed when the result is dropped.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start(&self, name: &str, configure: impl FnOnce(&mut Command)) -> Result<Process> {
        let mut command = self.enter(None);
        configure(&mut command);
        Process::start_entered(command, name)
    }
}

/// Runs `work` in the network namespace `network` (a file of this machine), on a thread of its own, since that stays inside.
///
/// # Errors
/// There is no such namespace, or those of `work`.
pub fn in_network<T: Send>(network: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = File::open(network).with_context(|| format!("open {}", network.display()))?;
    let inside = || -> Result<T> {
        setns(&file, CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
        work()
    };
    thread::scope(|scope| scope.spawn(inside).join()).map_err(|_| anyhow!("the thread in the namespace panicked"))?
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Killing the holder kills process 1 (--kill-child), which ends every process inside.
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}
