//! What was measured, for the terminal and for docs/performance.md.

use std::fmt;

/// A table with a name.
pub(crate) struct Table {
    name: &'static str,
    head: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

/// One figure, as it is shown.
#[derive(Clone)]
pub(crate) struct Cell(String);

impl Cell {
    pub(crate) fn text(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub(crate) fn count(count: usize) -> Self {
        Self(count.to_string())
    }

    /// Per second.
    pub(crate) fn rate(rate: f64) -> Self {
        let digits = format!("{rate:.0}");
        let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
        Self(groups.join(" "))
    }

    pub(crate) fn number(number: f64, digits: usize) -> Self {
        Self(format!("{number:.digits$}"))
    }

    pub(crate) fn factor(factor: f64) -> Self {
        Self(format!("{factor:.2} x"))
    }
}

impl Table {
    pub(crate) fn new(name: &'static str, head: &[&str]) -> Self {
        Self { name, head: head.iter().map(|&column| column.to_owned()).collect(), rows: Vec::new() }
    }

    /// Shown at once too: a whole table takes minutes.
    pub(crate) fn push(&mut self, row: Vec<Cell>) {
        let text: Vec<&str> = row.iter().map(|cell| cell.0.as_str()).collect();
        eprintln!("{}: {}", self.name, text.join(" | "));
        self.rows.push(row);
    }
}

/// In Markdown, with columns in line.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cell = |row: &Vec<Cell>, column: usize| row.get(column).map_or("", |cell| &cell.0).to_owned();
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| cell(row, column).chars().count());
            cells.chain([self.head[column].chars().count()]).max().unwrap_or(0)
        };
        let line = |cells: Vec<String>| -> String {
            let padded =
                cells.iter().enumerate().map(|(column, text)| format!(" {text:>0$} |", width(column)));
            format!("|{}", padded.collect::<String>())
        };
        writeln!(f, "## {}\n\n{}", self.name, line(self.head.clone()))?;
        let dashes = (0..self.head.len()).map(|column| format!("{}:|", "-".repeat(width(column) + 1)));
        writeln!(f, "|{}", dashes.collect::<String>())?;
        for row in &self.rows {
            writeln!(f, "{}", line((0..self.head.len()).map(|column| cell(row, column)).collect()))?;
        }
        Ok(())
    }
}
