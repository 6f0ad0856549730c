// SPDX-License-Identifier: Apache-2.0

//! Runs the machine's own tools (`ip`, `mount`, `tar`, `go`) and turns a failure into an error that names the command.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// How long `wait_until` rests between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Returns a command with its arguments set.
pub(crate) fn command<I, S>(program: &str, arguments: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Runs a command to its end and returns what it wrote to stdout.
///
/// # Errors
/// The command cannot be started, or it ends with a status other than 0: the error holds its stderr.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let result = command.stdin(Stdio::null()).output().with_context(|| format!("start {}", describe(command)))?;
    finish(command, result)
}

/// Runs a command to its end.
///
/// # Errors
/// As [`output`].
pub(crate) fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Runs a command to its end with `input` on its stdin and returns what it wrote to stdout.
///
/// # Errors
/// As [`output`].
pub(crate) fn output_with_input(command: &mut Command, input: &[u8]) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start {}", describe(command)))?;
    let mut stdin = child.stdin.take().context("the child has no stdin")?;
    let owned = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&owned));
    let result = child.wait_with_output().with_context(|| format!("wait for {}", describe(command)))?;
    let written = writer.join().map_err(|_| anyhow::anyhow!("the writer thread panicked"))?;
    let stdout = finish(command, result)?;
    written.with_context(|| format!("write the input of {}", describe(command)))?;
    Ok(stdout)
}

/// Runs a command to its end with the caller's own stdin, stdout and stderr.
///
/// # Errors
/// The command cannot be started, or it ends with a status other than 0.
pub(crate) fn run_attached(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {}", describe(command)))?;
    ensure!(status.success(), "{} ended with {status}", describe(command));
    Ok(())
}

/// Looks again and again until `look` gives a value.
///
/// # Errors
/// `look` itself fails, or there is still no value when `limit` has passed.
pub(crate) fn wait_until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = look().with_context(|| format!("wait for {what}"))? {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("{what}: not so after {} s", limit.as_secs());
        }
        sleep(POLL_INTERVAL);
    }
}

fn finish(command: &Command, result: Output) -> Result<String> {
    let stderr = String::from_utf8_lossy(&result.stderr);
    ensure!(result.status.success(), "{} ended with {}: {}", describe(command), result.status, stderr.trim());
    String::from_utf8(result.stdout).with_context(|| format!("stdout of {} is not UTF-8", describe(command)))
}

/// The command as a person would type it, without the entry into cgroups and namespaces that [`super::place`] puts before `--`.
fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|argument| argument.to_string_lossy().into_owned()));
    // One mark ends the cgroups to join, the next one the namespaces to enter.
    let entry = words.iter().enumerate().filter(|(_, word)| *word == "--").nth(1).filter(|_| words[0] == "sh");
    let entry = entry.map(|(position, _)| position);
    words[entry.map_or(0, |position| position + 1)..].join(" ")
}
