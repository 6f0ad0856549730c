// SPDX-License-Identifier: Apache-2.0

//! CNI plugins called at a rate, as a container runtime calls them: a process each, in the node's
//! namespaces, timed from its start to its end. Calls that take longer than the pace overlap.

use std::{
    fs::File,
    io::Write as _,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
};
use serde_json::Value;

use crate::{bed::SHARED, namespace::Namespace, node::Node};

/// A call that takes longer has failed.
const PATIENCE_MS: u16 = 60_000;

/// How often calls start.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// From one start to the next.
    pub interval: Duration,
    /// From now to the first.
    pub delay: Duration,
}

/// One call of a plugin.
#[derive(Clone, Debug)]
pub struct Call {
    /// `CNI_COMMAND`.
    pub verb: &'static str,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`, a path inside the node.
    pub netns: String,
    /// `CNI_ARGS`.
    pub args: String,
    /// The network configuration, with `prevResult` where the verb wants it.
    pub config: Value,
}

/// A plugin and the node that it is called in.
pub struct Caller {
    network: File,
    mounts: File,
    processes: File,
    program: PathBuf,
    /// Where the plugin finds others (`CNI_PATH`).
    folder: PathBuf,
}

impl Caller {
    /// Calls `program`, a path inside `machine`.
    ///
    /// # Errors
    /// The machine is gone.
    pub fn new(machine: &Namespace, program: &Path) -> Result<Self> {
        let open = |file: &str| File::open(machine.proc(file)).with_context(|| format!("open {file}"));
        let folder = program.parent().context("the plugin's path has no folder")?.to_owned();
        let (network, mounts, processes) = (open("ns/net")?, open("ns/mnt")?, open("ns/pid")?);
        Ok(Self { network, mounts, processes, program: program.to_owned(), folder })
    }

    /// Calls Weft's plugin on `node`.
    ///
    /// # Errors
    /// The node is gone.
    pub fn weft(node: &Node) -> Result<Self> {
        Self::new(node.machine(), &Path::new(SHARED).join("bin/weft-cni"))
    }

    /// Makes all `calls` at `pace`; gives the duration of each in milliseconds, and what it answered.
    ///
    /// # Errors
    /// A call failed; all are over then.
    pub fn all(&self, calls: &[Call], pace: Pace) -> Result<Vec<(f64, Value)>> {
        let start = Instant::now() + pace.delay;
        let numbered = (0_u32..).zip(calls);
        thread::scope(|scope| {
            let threads: Vec<_> = numbered
                .map(|(number, call)| scope.spawn(move || self.one(call, start + pace.interval * number)))
                .collect();
            let results: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
            results.into_iter().map(|result| result.unwrap_or_else(|_| bail!("a calling thread panicked"))).collect()
        })
    }

    /// On a thread of its own, since it stays inside.
    fn one(&self, call: &Call, due: Instant) -> Result<(f64, Value)> {
        unshare(CloneFlags::CLONE_FS).context("unshare the file system's attributes")?;
        // Of its children: plugins look themselves up in the node's /proc.
        setns(&self.processes, CloneFlags::CLONE_NEWPID).context("enter the process namespace")?;
        setns(&self.mounts, CloneFlags::CLONE_NEWNS).context("enter the mount namespace")?;
        setns(&self.network, CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
        let input = call.config.to_string();
        let mut command = self.command(call);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let start = Instant::now();
        let mut child = command.spawn().with_context(|| format!("start {}", self.program.display()))?;
        child.stdin.take().context("the plugin has no stdin")?.write_all(input.as_bytes())?;
        await_output(&mut child)?;
        let output = child.wait_with_output()?;
        let duration = start.elapsed().as_secs_f64() * 1000.0;
        let said = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let noise = String::from_utf8_lossy(&output.stderr);
            bail!("{} {} of {}: {said}{noise}", self.program.display(), call.verb, call.container_id);
        }
        let text = if said.trim().is_empty() { "null" } else { &said };
        Ok((duration, serde_json::from_str(text).with_context(|| format!("{} answered: {said}", call.verb))?))
    }

    fn command(&self, call: &Call) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("CNI_PATH", &self.folder);
        command.envs([
            ("CNI_COMMAND", call.verb),
            ("CNI_CONTAINERID", &call.container_id),
            ("CNI_NETNS", &call.netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", &call.args),
        ]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// Waits until a plugin answers, which it does at its end; one that never does is killed.
fn await_output(child: &mut Child) -> Result<()> {
    let stdout = child.stdout.as_ref().context("the plugin has no stdout")?;
    let mut set = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
    if poll(&mut set, PollTimeout::from(PATIENCE_MS)).context("poll")? == 0 {
        child.kill().context("kill the plugin")?;
        bail!("the plugin did not answer within {} s", PATIENCE_MS / 1000);
    }
    Ok(())
}

/// What `part` of 100 values do not exceed, by nearest rank; NaN where there is none.
#[must_use]
pub fn percentile(values: &[f64], part: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get((sorted.len() * part).div_ceil(100).saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let values: Vec<f64> = (1..=20).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 50), 10.0);
        assert_eq!(percentile(&values, 99), 20.0);
        assert!(percentile(&[], 50).is_nan());
    }
}
