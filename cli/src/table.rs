// SPDX-License-Identifier: Apache-2.0
//! Aligned columns.

use crate::print::printable;

/// A table: a head and rows of cells. A cell of several lines makes its row as high.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

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
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cells: Vec<Vec<Vec<&str>>> =
            self.rows.iter().map(|row| row.iter().map(|cell| lines(cell)).collect()).collect();
        let width = |column: usize| {
            let column = cells.iter().filter_map(|row| row.get(column)).flatten();
            column.map(|line| line.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &cells {
            let height = row.iter().map(Vec::len).max().unwrap_or(0);
            for line in 0..height {
                let padded =
                    row.iter().zip(&widths).map(|(cell, width)| format!("{:width$}", cell.get(line).unwrap_or(&"")));
                text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
                text.push('\n');
            }
        }
        text
    }
}

fn lines(cell: &str) -> Vec<&str> {
    if cell.is_empty() { vec!["-"] } else { cell.lines().collect() }
}

#[cfg(test)]
mod tests {
    use super::Table;

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
}
