// SPDX-License-Identifier: Apache-2.0
//! Where answers go: as tables or as JSON.

use std::io::Write;

use anyhow::Result;
use serde::{Serialize, Serializer as _, ser::SerializeSeq as _};

use crate::table::{Table, Widths};

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

    /// A list whose parts come one after the other: one JSON array, or one table; `nothing`: what to say where it is empty.
    pub(crate) fn print_parts<T: Serialize, E: Into<anyhow::Error>>(
        &mut self,
        mut parts: impl Iterator<Item = Result<Vec<T>, E>>,
        show: impl Fn(&[T]) -> Table,
        nothing: &str,
    ) -> Result<()> {
        if self.json {
            let mut serializer = serde_json::Serializer::pretty(&mut self.writer);
            let mut array = serializer.serialize_seq(None)?;
            parts.try_for_each(|part| -> Result<()> {
                let part = part.map_err(Into::into)?;
                Ok(part.iter().try_for_each(|entry| array.serialize_element(entry))?)
            })?;
            array.end()?;
            writeln!(self.writer)?;
        } else {
            let (mut widths, mut empty) = (Widths::default(), true);
            for part in parts {
                let table = show(&part.map_err(Into::into)?);
                if !table.is_empty() {
                    empty = false;
                    write!(self.writer, "{}", table.render_after(&mut widths))?;
                    self.writer.flush()?;
                }
            }
            if empty {
                writeln!(self.writer, "{nothing}")?;
            }
        }
        Ok(self.writer.flush()?)
    }

    /// A remark for people; programs see that there is nothing.
    pub(crate) fn remark(&mut self, text: &str) -> Result<()> {
        if !self.json {
            writeln!(self.writer, "{text}")?;
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use serde_json::{Value, json};

    use super::{Output, Table};

    fn printed(json: bool, parts: &[&[u8]]) -> String {
        let mut written = Vec::new();
        let parts = parts.iter().map(|part| Ok::<_, Infallible>(part.to_vec()));
        let show = |part: &[u8]| {
            let mut table = Table::new(&["NUMBER"]);
            part.iter().for_each(|number| table.row([number.to_string()]));
            table
        };
        Output::new(json, &mut written).print_parts(parts, show, "no number").unwrap();
        String::from_utf8(written).unwrap()
    }

    #[test]
    fn parts_are_one_document_and_one_table() {
        for (parts, table) in
            [(&[&[1_u8, 20][..], &[], &[3]][..], "NUMBER\n1\n20\n3\n"), (&[&[]], "no number\n"), (&[], "no number\n")]
        {
            let value: Value = serde_json::from_str(&printed(true, parts)).unwrap();
            assert_eq!(value, json!(parts.concat()));
            assert_eq!(printed(false, parts), table);
        }
    }

    /// As an agent that knows no pages is shown.
    #[test]
    fn one_part_is_printed_as_one_answer() {
        let mut whole = Vec::new();
        Output::new(true, &mut whole).print(&[1, 2], |_| String::new()).unwrap();
        assert_eq!(printed(true, &[&[1], &[2]]), String::from_utf8(whole).unwrap());
    }

    #[test]
    fn an_error_between_two_parts_is_told() {
        let parts = [Ok(vec![1]), Err(anyhow::anyhow!("lost the weft agent"))];
        let printed = Output::new(true, Vec::new()).print_parts(parts.into_iter(), |_| Table::new(&["NUMBER"]), "");
        assert!(printed.unwrap_err().to_string().contains("lost"));
    }
}
