//! Verbs for operators of machines: `cordon`, `uncordon`, `drain`, `undrain`, `rebalance`.
//!
//! An order is a record in the hub that the engine carries out; the verb follows the units meanwhile. Invariant: what
//! is printed on stdout has happened, but for a plan, which says that it is one.

use super::output::{self, Format};
use anyhow::{Context, Result, bail};
use api::{
    Client,
    operations::{MaintenanceOrder, Move, MovePlan},
    types::{Machine, Unit, Watched},
};
use clap::Args;
use futures_util::StreamExt;
use model::{MachineId, Maintenance, UnitName};
use std::{
    collections::BTreeSet,
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};
use tokio::time::Instant;

/// A drain in which nothing happens for so long has moved what can be moved: the engine decides within milliseconds,
/// and what stops slowly is seen to stop.
const QUIET: Duration = Duration::from_secs(3);
/// Some units are elsewhere, others could not go.
const PARTIAL: u8 = 3;

#[derive(Args)]
pub struct Cordon {
    /// The machine: its name, or the beginning of its id.
    machine: String,
    /// What for; list-machines shows it.
    #[arg(long, default_value = "")]
    reason: String,
}

#[derive(Args)]
pub struct Open {
    /// The machine: its name, or the beginning of its id.
    machine: String,
}

#[derive(Args)]
pub struct Drain {
    /// The machine: its name, or the beginning of its id.
    machine: String,
    /// What for; list-machines shows it.
    #[arg(long, default_value = "")]
    reason: String,
    /// Give the order and do not wait.
    #[arg(long)]
    no_block: bool,
    /// How long to wait.
    #[arg(long, default_value = "5m", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

#[derive(Args)]
pub struct Rebalance {
    /// Print the plan and do nothing.
    #[arg(long)]
    plan: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// How to write the plan.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
    /// How long to wait.
    #[arg(long, default_value = "5m", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

impl Cordon {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let machine = find(client, &self.machine).await?;
        client.maintain(&machine.id, Some(&order(Maintenance::Cordoned, self.reason))).await?;
        output::line(format!("Machine {} cordoned: nothing new comes, what runs there stays", machine.name))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Open {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let machine = find(client, &self.machine).await?;
        client.maintain(&machine.id, None).await?;
        output::line(format!("Machine {} takes units again", machine.name))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Drain {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let machine = find(client, &self.machine).await?;
        client.maintain(&machine.id, Some(&order(Maintenance::Draining, self.reason))).await?;
        if self.no_block {
            output::line(format!("Machine {} draining", machine.name))?;
            return Ok(ExitCode::SUCCESS);
        }
        let (global, names): (Vec<Unit>, Vec<Unit>) = client
            .units()
            .await?
            .units
            .into_iter()
            .filter(|unit| on(unit, &machine.id))
            .partition(|u| u.global);
        for unit in &global {
            eprintln!("Unit {} is global and stays", unit.name);
        }
        let names: Vec<UnitName> = names.into_iter().map(|unit| unit.name).collect();
        let left = follow(client, &names, self.timeout, |watched| {
            watched.unit.as_ref().is_none_or(|unit| !on(unit, &machine.id))
        })
        .await?;
        for unit in &left {
            let why = client.why(unit).await?;
            let mut reasons: Vec<_> = why
                .verdicts
                .iter()
                .filter(|verdict| !verdict.here)
                .filter_map(|verdict| Some((&verdict.machine.name, verdict.refused.as_ref()?)))
                .map(|(name, refused)| format!("{name}: {}", refused.text))
                .collect();
            reasons.truncate(3);
            let why = if reasons.is_empty() { "it has not stopped".to_owned() } else { reasons.join("; ") };
            eprintln!("Unit {unit} stays on {}: {why} (see `muster why {unit}`)", machine.name);
        }
        if left.is_empty() {
            output::line(format!("Machine {} drained", machine.name))?;
            return Ok(ExitCode::SUCCESS);
        }
        eprintln!("{} of {} units could not leave {}", left.len(), names.len(), machine.name);
        Ok(ExitCode::from(PARTIAL))
    }
}

impl Rebalance {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let plan = client.rebalance().await?;
        match self.output {
            Format::Json => output::json(&plan)?,
            Format::Table => show(&plan)?,
        }
        if plan.moves.is_empty() {
            eprintln!("The load is even: nothing to move.");
            return Ok(ExitCode::SUCCESS);
        }
        if self.plan {
            return Ok(ExitCode::SUCCESS);
        }
        if !self.yes && !confirmed(plan.moves.len())? {
            eprintln!("Nothing was moved.");
            return Ok(ExitCode::FAILURE);
        }
        client.relocate(&plan).await?;
        let target = |name: &UnitName| {
            let step: Option<&Move> = plan.moves.iter().rfind(|step| step.units.contains(name));
            step.map(|step| step.to.id.clone())
        };
        let names: BTreeSet<UnitName> = plan.moves.iter().flat_map(|step| step.units.clone()).collect();
        let names: Vec<UnitName> = names.into_iter().collect();
        let left = follow(client, &names, self.timeout, |watched| {
            let there =
                |unit: &Unit| target(&watched.name).is_none_or(|to| unit.machines.iter().all(|m| m.id == to));
            watched.unit.as_ref().is_none_or(there)
        })
        .await?;
        for unit in &left {
            eprintln!("Unit {unit} was not moved (see `muster events --unit {unit}`)");
        }
        Ok(if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(PARTIAL) })
    }
}

fn order(state: Maintenance, reason: String) -> MaintenanceOrder {
    // Whoever ran sudo, not root.
    let by = ["SUDO_USER", "USER"].iter().find_map(|name| std::env::var(name).ok());
    MaintenanceOrder { state, by: by.unwrap_or_else(|| "root".to_owned()), reason }
}

/// Whether the unit is scheduled there or still runs there.
fn on(unit: &Unit, machine: &MachineId) -> bool {
    let runs = |on: &&api::types::UnitOnMachine| on.state.as_ref().is_some_and(api::types::State::is_running);
    unit.machines.iter().filter(|on| on.id == *machine).any(|on| on.scheduled || runs(&on))
}

/// The machine that is meant.
pub(super) async fn find(client: &Client, text: &str) -> Result<Machine> {
    let machines = client.machines().await?.machines;
    if let Some(machine) = machines.iter().find(|machine| machine.name == text) {
        return Ok(machine.clone());
    }
    let fits: Vec<_> = machines.iter().filter(|machine| machine.id.as_str().starts_with(text)).collect();
    match fits[..] {
        [machine] if !text.is_empty() => Ok(machine.clone()),
        [] => bail!("there is no machine {text} (see `muster list-machines`)"),
        _ => bail!("more than one machine begins with `{text}`; give more of its id, or its name"),
    }
}

/// Follows units until all have `arrived`, or nothing happens any longer; gives the ones that have not. Says of each
/// where it is when it has.
async fn follow(
    client: &Client,
    names: &[UnitName],
    timeout: Duration,
    arrived: impl Fn(&Watched) -> bool,
) -> Result<Vec<UnitName>> {
    let mut left: BTreeSet<UnitName> = names.iter().cloned().collect();
    if left.is_empty() {
        return Ok(Vec::new());
    }
    let mut watch = client.watch(names).await?;
    let deadline = Instant::now() + timeout;
    let mut moving = BTreeSet::new();
    while !left.is_empty() {
        // A unit that stops may take as long as its stop takes.
        let patience = if moving.is_empty() { deadline.min(Instant::now() + QUIET) } else { deadline };
        let watched = tokio::select! {
            watched = watch.next() => watched.context("the connection broke while waiting; the order stands")??,
            () = tokio::time::sleep_until(patience) => break,
        };
        let stops = watched
            .unit
            .as_ref()
            .is_some_and(|unit| unit.machines.iter().any(|on| !on.scheduled && on.state.is_some()));
        if stops {
            moving.insert(watched.name.clone())
        } else {
            moving.remove(&watched.name)
        };
        if arrived(&watched) && left.remove(&watched.name) {
            moving.remove(&watched.name);
            let place = watched.unit.as_ref().and_then(|unit| unit.machines.first());
            let place = place.map_or_else(|| "nowhere".to_owned(), |on| on.name.clone());
            output::line(format!(
                "Unit {} → {place} ({} of {})",
                watched.name,
                names.len() - left.len(),
                names.len()
            ))?;
        }
    }
    Ok(left.into_iter().collect())
}

fn show(plan: &MovePlan) -> Result<()> {
    let rows = plan.moves.iter().map(|step| {
        let units: Vec<_> = step.units.iter().map(UnitName::as_str).collect();
        let machine = |name: &str, units: u32| format!("{name} ({units})");
        vec![
            units.join(" "),
            machine(&step.from.name, step.from_units),
            machine(&step.to.name, step.to_units),
        ]
    });
    output::table((!plan.moves.is_empty()).then_some(&["UNITS", "FROM", "TO"]), rows)
}

fn confirmed(moves: usize) -> Result<bool> {
    if !io::stdin().is_terminal() {
        bail!(
            "nobody can be asked whether to make these {moves} moves; add --yes, or --plan to only see them"
        );
    }
    eprint!("Make these {moves} moves? Each unit stops on one machine and starts on the other. [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "yes"))
}
