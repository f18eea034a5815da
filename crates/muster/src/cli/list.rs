//! `list-machines`, `list-units`, `list-unit-files`: fleetctl's tables, with the machines' names and subnets added.

use super::output::{self, Format};
use anyhow::{Result, bail};
use api::{
    Client,
    types::{Machine, Unit, UnitOnMachine},
};
use clap::Args;
use std::{net::Ipv4Addr, process::ExitCode};

#[derive(Args)]
pub struct ListMachines {
    #[command(flatten)]
    table: TableArgs,
}

#[derive(Args)]
pub struct ListUnits {
    #[command(flatten)]
    table: TableArgs,
}

#[derive(Args)]
pub struct ListUnitFiles {
    #[command(flatten)]
    table: TableArgs,
}

#[derive(Args)]
struct TableArgs {
    /// The columns to show, in this order, separated by commas.
    #[arg(long, value_delimiter = ',')]
    fields: Vec<String>,
    /// Show ids and hashes whole.
    #[arg(long, short = 'l')]
    full: bool,
    /// Leave out the heading.
    #[arg(long)]
    no_legend: bool,
    /// How to write the list.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

/// A column: its name and what it shows.
type Column<T> = (&'static str, fn(&T, bool) -> String);

impl TableArgs {
    fn print<T>(&self, rows: &[T], columns: &[Column<T>], default: &[&str]) -> Result<()> {
        let wanted: Vec<&str> = match self.fields.is_empty() {
            true => default.to_vec(),
            false => self.fields.iter().map(String::as_str).collect(),
        };
        let mut chosen = Vec::new();
        for name in wanted {
            let Some(column) = columns.iter().find(|(known, _)| *known == name) else {
                let known: Vec<_> = columns.iter().map(|(known, _)| *known).collect();
                bail!("invalid key in output format: {name:?}; there are {}", known.join(", "));
            };
            chosen.push(column);
        }
        let heading: Vec<_> = chosen.iter().map(|(name, _)| name.to_uppercase()).collect();
        let heading: Vec<_> = heading.iter().map(String::as_str).collect();
        let rows = rows.iter().map(|row| chosen.iter().map(|(_, show)| show(row, self.full)).collect());
        output::table((!self.no_legend).then_some(&heading), rows)
    }
}

impl ListMachines {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let mut list = client.machines().await?;
        if self.table.output == Format::Json {
            output::json(&list)?;
            return Ok(ExitCode::SUCCESS);
        }
        list.machines.sort_by(|a, b| a.name.cmp(&b.name));
        let columns: [Column<Machine>; 7] = [
            ("machine", |machine, full| short(machine.id.as_str(), full)),
            ("name", |machine, _| machine.name.clone()),
            ("ip", |machine, _| machine.address.to_string()),
            ("subnet", |machine, _| {
                machine.subnet.map_or_else(|| "-".to_owned(), |subnet| subnet.to_string())
            }),
            ("metadata", |machine, _| {
                let pairs: Vec<_> =
                    machine.metadata.iter().map(|(key, value)| format!("{key}={value}")).collect();
                if pairs.is_empty() { "-".to_owned() } else { pairs.join(",") }
            }),
            ("version", |machine, _| machine.version.clone()),
            ("state", |machine, _| {
                machine.maintenance.as_ref().map_or_else(
                    || "-".to_owned(),
                    |maintenance| match maintenance.reason.as_str() {
                        "" => maintenance.state.to_string(),
                        reason => format!("{} ({reason})", maintenance.state),
                    },
                )
            }),
        ];
        let mut shown = vec!["machine", "name", "ip", "subnet", "metadata"];
        if list.machines.iter().any(|machine| machine.maintenance.is_some()) {
            shown.push("state");
        }
        self.table.print(&list.machines, &columns, &shown)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl ListUnits {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let mut list = client.units().await?;
        for unit in &mut list.units {
            // What has just been scheduled, to begin or to move, is shown although its machine has not spoken yet.
            if unit.machines.iter().any(|on| on.state.is_some()) {
                unit.machines.retain(|on| on.state.is_some());
            }
        }
        list.units.retain(|unit| !unit.machines.is_empty());
        if self.table.output == Format::Json {
            output::json(&list)?;
            return Ok(ExitCode::SUCCESS);
        }
        let on_machines = list.units.iter().flat_map(|unit| unit.machines.iter().map(move |on| (unit, on)));
        let rows: Vec<_> = on_machines.collect();
        type Row<'a> = (&'a Unit, &'a UnitOnMachine);
        fn state(row: &Row<'_>, word: fn(&api::types::State) -> &str) -> String {
            row.1.state.as_ref().map_or("-", word).to_owned()
        }
        let columns: [Column<Row<'_>>; 8] = [
            ("unit", |row, _| row.0.name.to_string()),
            ("machine", |row, full| legend(row.1, full)),
            ("name", |row, _| if row.1.name.is_empty() { "-".to_owned() } else { row.1.name.clone() }),
            ("load", |row, _| state(row, |state| &state.load)),
            ("active", |row, _| state(row, |state| &state.active)),
            ("sub", |row, _| state(row, |state| &state.sub)),
            ("hash", |row, full| hash(&row.0.hash, full)),
            ("error", |row, _| state(row, |state| state.error.as_deref().unwrap_or("-"))),
        ];
        self.table.print(&rows, &columns, &["unit", "machine", "name", "active", "sub"])?;
        Ok(ExitCode::SUCCESS)
    }
}

impl ListUnitFiles {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let list = client.units().await?;
        if self.table.output == Format::Json {
            output::json(&list)?;
            return Ok(ExitCode::SUCCESS);
        }
        let columns: [Column<Unit>; 8] = [
            ("unit", |unit, _| unit.name.to_string()),
            ("why", |unit, _| why(unit)),
            ("hash", |unit, full| hash(&unit.hash, full)),
            ("dstate", |unit, _| unit.desired.to_string()),
            ("state", |unit, _| if unit.global { "-".to_owned() } else { unit.current().to_string() }),
            ("target", |unit, full| match unit.machines.first().filter(|on| on.scheduled) {
                _ if unit.global => "global".to_owned(),
                Some(on) => legend(on, full),
                None => "-".to_owned(),
            }),
            ("global", |unit, _| unit.global.to_string()),
            ("desc", |unit, _| {
                let file = unit::UnitFile::parse(&unit.text).ok();
                file.and_then(|file| file.description().map(str::to_owned)).unwrap_or_else(|| "-".to_owned())
            }),
        ];
        self.table.print(&list.units, &columns, &["unit", "hash", "dstate", "state", "target"])?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Why the unit is where it is, or nowhere.
fn why(unit: &Unit) -> String {
    let refused: Vec<_> = unit.refused.iter().map(|(machine, why)| format!("{machine}: {why}")).collect();
    let placed = unit.machines.first().map(|on| on.why.clone()).filter(|why| !why.is_empty());
    placed.unwrap_or_else(|| if refused.is_empty() { "-".to_owned() } else { refused.join("; ") })
}

/// fleet's way to write a machine: `148a18ff.../10.0.0.1`.
pub fn legend(on: &UnitOnMachine, full: bool) -> String {
    let address = on.address.as_ref().map(Ipv4Addr::to_string);
    let id = short(on.id.as_str(), full);
    address.map_or_else(|| id.clone(), |address| format!("{id}/{address}"))
}

fn short(id: &str, full: bool) -> String {
    if full { id.to_owned() } else { format!("{}...", id.get(..8).unwrap_or(id)) }
}

fn hash(hash: &str, full: bool) -> String {
    if full { hash.to_owned() } else { hash.get(..7).unwrap_or(hash).to_owned() }
}
