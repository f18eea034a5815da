//! fleetctl's lists, byte for byte: rows of cells that tabs push to eight-column stops, as Go's tabwriter does it.

use super::{boolean, failed, told};
use crate::cli::{list::legend, output};
use anyhow::Result;
use api::{
    Client,
    types::{Machine, Unit, UnitOnMachine},
};
use clap::Args;
use std::process::ExitCode;

#[derive(Args)]
struct Look {
    /// Do not ellipsize fields on output.
    #[arg(long, short = 'l', alias = "l", value_parser = boolean, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", default_value = "false")]
    full: bool,
    /// Do not print a legend (column headers).
    #[arg(long, value_parser = boolean, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", default_value = "false")]
    no_legend: bool,
}

#[derive(Args)]
pub struct Machines {
    #[command(flatten)]
    look: Look,
    /// Columns to print for each machine: machine, ip, metadata.
    #[arg(long, default_value = "machine,ip,metadata")]
    fields: String,
}

#[derive(Args)]
pub struct Units {
    #[command(flatten)]
    look: Look,
    /// Columns to print for each unit: active, hash, load, machine, sub, unit.
    #[arg(long, default_value = "unit,machine,active,sub")]
    fields: String,
}

#[derive(Args)]
pub struct Files {
    #[command(flatten)]
    look: Look,
    /// Columns to print for each unit: desc, dstate, global, hash, state, target, unit.
    #[arg(long, default_value = "unit,hash,dstate,state,target")]
    fields: String,
}

/// A column: its name and what it shows.
type Column<T> = (&'static str, fn(&T, bool) -> String);

fn print<T>(rows: &[T], columns: &[Column<T>], fields: &str, look: &Look) -> Result<ExitCode> {
    if fields.is_empty() {
        return failed("Must define output format");
    }
    let mut chosen = Vec::new();
    for field in fields.split(',') {
        match columns.iter().find(|(known, _)| *known == field) {
            Some(column) => chosen.push(column),
            None => return failed(format!("Invalid key in output format: {field:?}")),
        }
    }
    let heading = chosen.iter().map(|(name, _)| name.to_uppercase()).collect();
    let mut table = if look.no_legend { Vec::new() } else { vec![heading] };
    table.extend(rows.iter().map(|row| chosen.iter().map(|(_, show)| show(row, look.full)).collect()));
    output::print(tabbed(&table))?;
    Ok(ExitCode::SUCCESS)
}

/// Every cell but a line's last is filled up with tabs to the next eight-column stop behind its column's widest cell,
/// with at least one blank's room.
fn tabbed(table: &[Vec<String>]) -> String {
    const STOP: usize = 8;
    let width = |cell: &String| cell.chars().count();
    let columns = table.first().map_or(0, Vec::len);
    let widest = |column: usize| table.iter().filter_map(|row| row.get(column).map(width)).max().unwrap_or(0);
    let stops: Vec<_> = (0..columns).map(|column| (widest(column) + 1).next_multiple_of(STOP)).collect();
    let mut text = String::new();
    for row in table {
        for (place, cell) in row.iter().enumerate() {
            text.push_str(cell);
            if let (Some(stop), true) = (stops.get(place), place + 1 < row.len()) {
                let tabs = (stop - width(cell)).div_ceil(STOP);
                text.extend(std::iter::repeat_n('\t', tabs));
            }
        }
        text.push('\n');
    }
    text
}

/// What is missing is a dash.
fn or_dash(text: impl Into<String>) -> String {
    let text = text.into();
    if text.is_empty() { "-".to_owned() } else { text }
}

fn hash(hash: &str, full: bool) -> String {
    or_dash(if full { hash } else { hash.get(..7).unwrap_or(hash) })
}

impl Machines {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let list = match client.machines().await {
            Ok(list) => list,
            Err(error) => {
                return failed(format!(
                    "Error retrieving list of active machines from fleet API ({})\nPossible issues:\n  etcd is \
                     unhealthy and/or lost quorum\n  connection cannot be established to any etcd servers",
                    told(&error)
                ));
            }
        };
        let columns: [Column<Machine>; 3] = [
            ("machine", |machine, full| match full {
                true => machine.id.to_string(),
                false => format!("{}...", machine.id.short()),
            }),
            ("ip", |machine, _| machine.address.to_string()),
            ("metadata", |machine, _| {
                let pairs = machine.metadata.iter().map(|(key, value)| format!("{key}={value}"));
                or_dash(pairs.collect::<Vec<_>>().join(","))
            }),
        ];
        print(&list.machines, &columns, &self.fields, &self.look)
    }
}

/// A unit on a machine that has a state of it.
type Row<'a> = (&'a Unit, &'a UnitOnMachine);

fn state(row: &Row<'_>, word: fn(&api::types::State) -> &str) -> String {
    or_dash(row.1.state.as_ref().map_or("", word))
}

impl Units {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let list = match client.units().await {
            Ok(list) => list,
            Err(error) => {
                return failed(format!("Error retrieving list of units from repository: {}", told(&error)));
            }
        };
        let on_machines = list.units.iter().flat_map(|unit| unit.machines.iter().map(move |on| (unit, on)));
        let mut rows: Vec<Row<'_>> = on_machines.filter(|(_, on)| on.state.is_some()).collect();
        rows.sort_by_key(|(unit, on)| (&unit.name, &on.id));
        let columns: [Column<Row<'_>>; 6] = [
            ("unit", |row, _| row.0.name.to_string()),
            ("machine", |row, full| legend(row.1, full)),
            ("load", |row, _| state(row, |state| &state.load)),
            ("active", |row, _| state(row, |state| &state.active)),
            ("sub", |row, _| state(row, |state| &state.sub)),
            ("hash", |row, full| hash(row.1.state.as_ref().map_or("", |state| &state.hash), full)),
        ];
        print(&rows, &columns, &self.fields, &self.look)
    }
}

impl Files {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let list = match client.units().await {
            Ok(list) => list,
            Err(error) => {
                return failed(format!("Error retrieving list of units from repository: {}", told(&error)));
            }
        };
        if self.fields.split(',').any(|field| field == "tmachine") {
            eprintln!("WARNING: The \"tmachine\" field is deprecated. Please use \"target\" instead.");
        }
        let target: fn(&Unit, bool) -> String =
            |unit, full| match unit.machines.first().filter(|on| on.scheduled) {
                _ if unit.global => "global".to_owned(),
                Some(on) => legend(on, full),
                None => "-".to_owned(),
            };
        let columns: [Column<Unit>; 8] = [
            ("unit", |unit, _| unit.name.to_string()),
            ("hash", |unit, full| hash(&unit.hash, full)),
            ("dstate", |unit, _| unit.desired.to_string()),
            ("state", |unit, _| if unit.global { "-".to_owned() } else { unit.current().to_string() }),
            ("target", target),
            ("tmachine", target),
            ("global", |unit, _| unit.global.to_string()),
            ("desc", |unit, _| {
                let file = unit::UnitFile::parse(&unit.text).ok();
                or_dash(file.as_ref().and_then(|file| file.description()).unwrap_or_default())
            }),
        ];
        print(&list.units, &columns, &self.fields, &self.look)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_filled_up_as_gos_tabwriter_fills_them() {
        let row = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let table =
            [row("UNIT MACHINE ACTIVE SUB"), row("hello.service 148a18ff.../10.0.0.1 active running")];
        assert_eq!(
            tabbed(&table),
            "UNIT\t\tMACHINE\t\t\tACTIVE\tSUB\nhello.service\t148a18ff.../10.0.0.1\tactive\trunning\n"
        );
        // Seven characters and the blank's room fill a stop; eight need the next one.
        assert_eq!(tabbed(&[row("1234567 x"), row("a b")]), "1234567\tx\na\tb\n");
        assert_eq!(tabbed(&[row("12345678 x"), row("a b")]), "12345678\tx\na\t\tb\n");
        assert_eq!(tabbed(&[row("one"), row("é")]), "one\né\n");
        assert_eq!(tabbed(&[]), "");
    }
}
