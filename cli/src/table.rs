// SPDX-License-Identifier: Apache-2.0
//! Aligned columns.

use crate::print::printable;

/// A table: a head and rows of cells. A cell of several lines makes its row as high.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

/// Widths of columns of a table that comes in parts: what stands stays, what comes may be wider.
#[derive(Default)]
pub(crate) struct Widths(Vec<usize>);

impl Table {
    pub(crate) fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|name| (*name).to_owned()).collect()] }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        let cells = cells.map(|cell| cell.split('\n').map(printable).collect::<Vec<_>>().join("\n"));
        self.rows.push(cells.into());
    }

    /// Whether there is nothing below the head.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// Columns two blanks apart; no blanks at the end of a line. An empty cell shows as `-`.
    pub(crate) fn render(&self) -> String {
        self.render_after(&mut Widths::default())
    }

    /// The same below the parts that made `widths`: the head stands above the first one.
    pub(crate) fn render_after(&self, widths: &mut Widths) -> String {
        let rows = &self.rows[usize::from(!widths.0.is_empty())..];
        let cells: Vec<Vec<Vec<&str>>> = rows.iter().map(|row| row.iter().map(|cell| lines(cell)).collect()).collect();
        widths.widen(&cells);
        let mut text = String::new();
        for row in &cells {
            let height = row.iter().map(Vec::len).max().unwrap_or(0);
            for line in 0..height {
                let padded =
                    row.iter().zip(&widths.0).map(|(cell, width)| format!("{:width$}", cell.get(line).unwrap_or(&"")));
                text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
                text.push('\n');
            }
        }
        text
    }
}

impl Widths {
    fn widen(&mut self, rows: &[Vec<Vec<&str>>]) {
        for row in rows {
            self.0.resize(self.0.len().max(row.len()), 0);
            for (width, cell) in self.0.iter_mut().zip(row) {
                *width = cell.iter().map(|line| line.chars().count()).fold(*width, usize::max);
            }
        }
    }
}

fn lines(cell: &str) -> Vec<&str> {
    if cell.is_empty() { vec!["-"] } else { cell.lines().collect() }
}

#[cfg(test)]
mod tests {
    use super::{Table, Widths};

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["NAME", "PORTS", "X"]);
        table.row(["a".into(), "80/TCP\n53/UDP".into(), String::new()]);
        table.row(["long-\u{1b}name".into(), "1".into(), "yes".into()]);
        let expected = "NAME       PORTS   X\n\
                        a          80/TCP  -\n           53/UDP\n\
                        long-name  1       yes\n";
        assert_eq!(table.render(), expected);
    }

    #[test]
    fn a_table_in_parts_has_one_head_and_columns_that_only_widen() {
        let part = |names: [&str; 2]| {
            let mut table = Table::new(&["NAME", "X"]);
            names.into_iter().for_each(|name| table.row([name.into(), "1".into()]));
            table
        };
        let mut widths = Widths::default();
        let parts = [["long-name", "a"], ["longer-name", "b"], ["c", "d"]];
        let text: String = parts.map(|names| part(names).render_after(&mut widths)).concat();
        let expected = "NAME       X\nlong-name  1\na          1\n\
                        longer-name  1\nb            1\n\
                        c            1\nd            1\n";
        assert_eq!(text, expected);
    }
}
