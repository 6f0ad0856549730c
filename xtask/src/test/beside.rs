// SPDX-License-Identifier: Apache-2.0

//! Parts of the suite that run beside another one: many of their seconds are waits.

use std::{
    env,
    fs::{self, File},
    io::{self, Write as _},
    path::PathBuf,
    process::{Command, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::minutes;
use crate::build;

/// Parts that run one after the other in processes of their own, whatever becomes of those before.
pub(super) struct Beside(JoinHandle<Vec<Ran>>);

/// A part that has run.
struct Ran {
    part: &'static str,
    time: Duration,
    result: Result<()>,
}

/// Starts them: each is what is behind `cargo xtask test`. What they print goes to files, `target/test/PART.log`.
pub(super) fn start(parts: &'static [&'static str]) -> Beside {
    Beside(thread::spawn(|| parts.iter().map(|part| Ran::of(part)).collect()))
}

impl Beside {
    /// Waits for all of them and prints what each has printed.
    ///
    /// # Errors
    /// Names those that failed.
    pub(super) fn finish(self) -> Result<()> {
        let all = self.0.join().map_err(|_| anyhow!("the thread that runs parts of the suite panicked"))?;
        let mut failed = Vec::new();
        for Ran { part, time, result } in all {
            println!("test: {part}");
            io::stdout().write_all(&fs::read(log(part)?).unwrap_or_default())?;
            match result {
                Ok(()) => println!("test: {part}: passed after {}", minutes(time)),
                Err(error) => {
                    println!("test: {part}: failed after {}: {error:#}", minutes(time));
                    failed.push(part);
                }
            }
        }
        ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
        Ok(())
    }
}

impl Ran {
    fn of(part: &'static str) -> Self {
        let start = Instant::now();
        let result = run(part);
        Self { part, time: start.elapsed(), result }
    }
}

fn run(part: &str) -> Result<()> {
    let log = log(part)?;
    let folder = log.parent().context("the folder of the file")?;
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let file = File::create(&log).with_context(|| format!("make {}", log.display()))?;
    let mut command = Command::new(env::current_exe().context("find the running program")?);
    command.args(["test", "--built"]).args(part.split(' '));
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    if !status.success() {
        bail!("{status}");
    }
    Ok(())
}

/// Where a part's output is.
fn log(part: &str) -> Result<PathBuf> {
    let name = part.split(' ').next().unwrap_or(part);
    Ok(build::target()?.join("test").join(format!("{name}.log")))
}
