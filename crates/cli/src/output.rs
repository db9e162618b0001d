//! Writing results and messages.

use std::io::{self, IsTerminal, Write};

use anyhow::Context;
use serde::Serialize;

use crate::{advice, units};

/// What went wrong if standard output takes no more, a full disk for one.
pub const CANNOT_WRITE: &str = "cannot write to standard output";
/// Letters of an error that are printed: at its start, which says what it is about, and at its end, which says what to do.
const HEAD: usize = 600;
const TAIL: usize = 300;

/// Prints one JSON object, followed by a line feed, on standard output.
///
/// # Errors
/// Standard output cannot be written.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string(value)?;
    text.push('\n');
    text_out(&text)
}

/// Prints text on standard output at once.
///
/// # Errors
/// Standard output cannot be written.
pub fn text_out(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context(CANNOT_WRITE)
}

/// Prints a line on standard error; there is nothing to be done if that fails.
pub fn complain(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", line.trim_end());
}

/// The error and its causes, each said once: some errors print what caused them, and some leave it to us. Then what helps.
pub fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text.extend(error.chain().find_map(advice::after));
    shortened(&one_line(&text))
}

/// A line with the middle left out if it is longer than anybody reads: values out of files may have any length.
pub fn shortened(line: &str) -> String {
    let letters = line.chars().count();
    if letters <= HEAD + TAIL {
        return line.to_owned();
    }
    let head: String = line.chars().take(HEAD).collect();
    let tail: String = line.chars().skip(letters - TAIL).collect();
    let cut = units::count((letters - HEAD - TAIL) as u64);
    format!("{head} ... ({cut} letters left out) ... {tail}")
}

/// Whether the reader of standard output went away, as `head` does when it has enough.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// The text with line breaks and other control characters replaced, so that it stays one line whatever a file name or
/// a server put into it.
pub fn one_line(text: &str) -> String {
    let printable = text.replace(char::is_control, " ");
    printable.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether messages on standard error may carry colors and move the cursor.
pub fn fancy_stderr() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// A table of text. The first column is set to the left, numbers to the right.
pub struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these column names.
    pub fn new(head: &[&str]) -> Self {
        Table {
            head: head.iter().map(|&name| name.to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row with as many cells as there are columns.
    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.head.len(), "cells in a row of a table");
        self.rows.push(cells);
    }

    /// Columns padded with spaces, for a terminal.
    pub fn aligned(&self) -> String {
        let widths = self.widths();
        let mut text = String::new();
        for row in std::iter::once(&self.head).chain(&self.rows) {
            let cells = self.pad(row, &widths);
            text.push_str(cells.join("  ").trim_end());
            text.push('\n');
        }
        text
    }

    /// A Markdown table.
    pub fn markdown(&self) -> String {
        // A rule under a heading needs two characters.
        let widths: Vec<usize> = self.widths().iter().map(|&width| width.max(2)).collect();
        let mut text = format!("| {} |\n", self.pad(&self.head, &widths).join(" | "));
        for (column, width) in widths.iter().enumerate() {
            let end = if self.is_number(column) { ":" } else { "-" };
            text.push_str(&format!("| {}{end} ", "-".repeat(width.saturating_sub(1))));
        }
        text.push_str("|\n");
        for row in &self.rows {
            text.push_str(&format!("| {} |\n", self.pad(row, &widths).join(" | ")));
        }
        text
    }

    /// Comma-separated values with a header line; cells that need quotes get them.
    pub fn csv(&self) -> String {
        let quote = |cell: &str| {
            if cell.contains([',', '"', '\n']) {
                format!("\"{}\"", cell.replace('"', "\"\""))
            } else {
                cell.to_owned()
            }
        };
        let mut text = self.head.join(",") + "\n";
        for row in &self.rows {
            let cells: Vec<String> = row.iter().map(|cell| quote(cell)).collect();
            text.push_str(&cells.join(","));
            text.push('\n');
        }
        text
    }

    fn widths(&self) -> Vec<usize> {
        let column = |index: usize| {
            let cells = self.rows.iter().map(|row| row[index].chars().count());
            cells
                .max()
                .unwrap_or(0)
                .max(self.head[index].chars().count())
        };
        (0..self.head.len()).map(column).collect()
    }

    /// A column is one of numbers if every filled cell begins with a digit.
    fn is_number(&self, column: usize) -> bool {
        let begins = |cell: &String| {
            cell.is_empty() || cell == "-" || cell.starts_with(|first: char| first.is_ascii_digit())
        };
        !self.rows.is_empty() && self.rows.iter().all(|row| begins(&row[column]))
    }

    fn pad(&self, row: &[String], widths: &[usize]) -> Vec<String> {
        let cell = |(column, text): (usize, &String)| {
            let fill = " ".repeat(widths[column] - text.chars().count());
            if self.is_number(column) {
                fill + text
            } else {
                text.clone() + &fill
            }
        };
        row.iter().enumerate().map(cell).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_stays_one_line() {
        assert_eq!(
            one_line("no\r\nsuch  file\u{1b}[31m: a\tb "),
            "no such file [31m: a b"
        );
    }

    #[test]
    fn long_lines_lose_their_middle() {
        let line = "ä".repeat(30_000) + "; give another";
        let short = shortened(&line);
        assert!(short.chars().count() < 1000, "{short}");
        assert!(short.starts_with("ää") && short.ends_with("ä; give another"));
        assert!(short.contains("(29,114 letters left out)"), "{short}");
        assert_eq!(shortened("short"), "short");
    }

    #[test]
    fn causes_are_said_once() {
        let error = anyhow::anyhow!("disk full")
            .context("cannot write a")
            .context("pack: cannot write a");
        assert_eq!(describe(&error), "pack: cannot write a: disk full");
    }

    #[test]
    fn tables_are_written_in_three_ways() {
        let mut short = Table::new(&["M"]);
        short.row(vec!["1".to_owned()]);
        assert_eq!(short.markdown(), "|  M |\n| -: |\n|  1 |\n");
        let mut table = Table::new(&["name", "t/s"]);
        table.row(vec!["a,b".to_owned(), "1.5".to_owned()]);
        table.row(vec!["c".to_owned(), "10.25".to_owned()]);
        assert_eq!(table.aligned(), "name    t/s\na,b     1.5\nc     10.25\n");
        assert_eq!(
            table.markdown(),
            "| name |   t/s |\n| ---- | ----: |\n| a,b  |   1.5 |\n| c    | 10.25 |\n"
        );
        assert_eq!(table.csv(), "name,t/s\n\"a,b\",1.5\nc,10.25\n");
    }
}
