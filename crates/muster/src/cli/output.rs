//! Tables and text on stdout. A reader that goes away (`| head`) ends the program in silence.

use anyhow::{Context, Result};
use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{self, Write};

/// How lists are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Writes to stdout.
pub fn print(text: impl AsRef<[u8]>) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_ref()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.context("cannot write to stdout"),
    }
}

/// A line on stdout.
pub fn line(text: impl std::fmt::Display) -> Result<()> {
    print(format!("{text}\n"))
}

/// Aligned columns, with a heading if one is given.
pub fn table(heading: Option<&[&str]>, rows: impl IntoIterator<Item = Vec<String>>) -> Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if let Some(heading) = heading {
        table.add_row(heading.to_vec());
    }
    table.add_rows(rows);
    // Columns begin at the left edge, and lines end where their text does.
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    if table.is_empty() { Ok(()) } else { line(table.trim_fmt()) }
}

/// The value as JSON, indented.
pub fn json(value: &impl Serialize) -> Result<()> {
    line(serde_json::to_string_pretty(value).context("cannot render the answer")?)
}
