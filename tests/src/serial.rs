// SPDX-License-Identifier: Apache-2.0

//! The guest's serial line: commands in, output and exit status out.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use weft_probe::line::{escape, unescape};

use crate::{process::Outcome, wait::until_ok};

/// The other end of a guest's `ttyS0`.
pub(crate) struct Serial {
    stream: BufReader<UnixStream>,
    sent: u64,
}

impl Serial {
    /// Connects to the socket that QEMU serves, and waits until the guest says that it is there.
    pub(crate) fn connect(socket: &Path, patience: Duration) -> Result<Self> {
        let stream = until_ok("the guest's serial line", Duration::from_secs(10), || Ok(UnixStream::connect(socket)?))?;
        let mut serial = Self { stream: BufReader::new(stream), sent: 0 };
        serial.line_with("GUEST-READY", patience)?;
        Ok(serial)
    }

    /// Runs a shell script in the guest, to its end.
    pub(crate) fn run(&mut self, script: &str, patience: Duration) -> Result<Outcome> {
        self.sent += 1;
        let request = format!("{} {}\n", self.sent, escape(script));
        self.stream.get_mut().write_all(request.as_bytes()).context("write to the guest")?;
        let mark = format!("@{} ", self.sent);
        let line = self.line_with(&mark, patience)?;
        let answer = line.split_once(&mark).map_or("", |(_, answer)| answer);
        let (status, output) = answer.split_once(' ').unwrap_or((answer, ""));
        let status = status.parse().with_context(|| format!("not an exit status: {line}"))?;
        Ok(Outcome { status, output: unescape(output) })
    }

    /// Reads on to a line that has `mark` in it.
    fn line_with(&mut self, mark: &str, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        let mut seen = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("the guest did not say {mark} within {} s; it said: {seen}", patience.as_secs());
            }
            self.stream.get_ref().set_read_timeout(Some(left))?;
            let start = seen.len();
            match self.stream.read_line(&mut seen) {
                Ok(0) => bail!("the guest is gone; it said: {seen}"),
                Ok(_) if seen[start..].contains(mark) => return Ok(seen[start..].trim().to_owned()),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("read from the guest"),
            }
        }
    }
}
