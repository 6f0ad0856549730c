// SPDX-License-Identifier: Apache-2.0
//! `console`: runs what comes over a guest's serial line.
//!
//! A program and no shell loop: a shell's `read` that is interrupted by the end of a background job begins anew and has
//! forgotten what it had read of the line.

use std::{
    fs::File,
    io::{self, BufRead as _, Write as _},
    os::unix::process::ExitStatusExt as _,
    process::{Command, ExitStatus, Stdio},
};

use weft_probe::line::{escape, unescape};

use crate::arguments::Arguments;

const OUTPUT: &str = "/tmp/console.output";

/// Reads `NUMBER SCRIPT` a line, the script escaped; answers each with `@NUMBER STATUS OUTPUT`.
pub(crate) fn run(arguments: &mut Arguments) -> Result<(), String> {
    arguments.finish()?;
    let mut console = io::stdout();
    writeln!(console, "GUEST-READY").map_err(|error| format!("console: {error}"))?;
    for line in io::stdin().lock().lines() {
        let line = line.map_err(|error| format!("console: {error}"))?;
        let (number, script) = line.split_once(' ').unwrap_or((&line, ""));
        let (status, output) =
            execute(&unescape(script)).unwrap_or_else(|error| (127, format!("{OUTPUT}, or sh: {error}")));
        writeln!(console, "@{number} {status} {}", escape(&output)).map_err(|error| format!("console: {error}"))?;
    }
    Ok(())
}

/// Runs a shell script to its end. Its output goes to a file: a pipe would stay open as long as its background jobs run.
fn execute(script: &str) -> io::Result<(i32, String)> {
    let file = File::create(OUTPUT)?;
    let errors = file.try_clone()?;
    let status = Command::new("sh").args(["-c", script]).stdin(Stdio::null()).stdout(file).stderr(errors).status()?;
    Ok((code(status), String::from_utf8_lossy(&std::fs::read(OUTPUT)?).into_owned()))
}

/// As a shell tells it: 128 and the signal's number where a signal ended the script.
fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
