// SPDX-License-Identifier: Apache-2.0
//! Where answers go: as tables or as JSON.

use std::io::Write;

use anyhow::Result;
use serde::Serialize;

/// A line for a terminal, which nobody whose text is shown (a guest, say) may steer: without control characters.
pub(crate) fn printable(line: &str) -> String {
    line.chars().filter(|c| !c.is_control()).collect()
}

/// Standard output in the format that was asked for.
pub(crate) struct Output<W> {
    json: bool,
    writer: W,
}

impl<W: Write> Output<W> {
    pub(crate) const fn new(json: bool, writer: W) -> Self {
        Self { json, writer }
    }

    /// One answer: its value as JSON, or what `show` makes of it.
    pub(crate) fn print<T: Serialize>(&mut self, value: &T, show: impl FnOnce(&T) -> String) -> Result<()> {
        if self.json {
            serde_json::to_writer_pretty(&mut self.writer, value)?;
            writeln!(self.writer)?;
        } else {
            write!(self.writer, "{}", show(value))?;
        }
        Ok(self.writer.flush()?)
    }

    /// One line per value, at once.
    pub(crate) fn print_lines<T: Serialize>(&mut self, values: &[T], show: impl Fn(&T) -> String) -> Result<()> {
        for value in values {
            let line = if self.json { serde_json::to_string(value)? } else { show(value) };
            writeln!(self.writer, "{line}")?;
        }
        Ok(self.writer.flush()?)
    }
}
