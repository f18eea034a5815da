//! Verbs that bring another text into units: `update`, `rollback`, `history`, `rollouts`, `rollout`.
//!
//! The leader carries an update out; here is the order, and waiting for what comes of it. Invariant: what is printed on
//! stdout has happened.

use super::{
    names,
    output::{self, Format},
    units::{local_file, local_template},
};
use anyhow::{Context, Result, bail};
use api::{
    Client,
    rollouts::{Command, Rollout, RolloutCommand, RolloutOrder, RolloutUnit},
};
use clap::Args;
use futures_util::StreamExt;
use model::{Progress, RolloutState, Timestamp, UnitName};
use std::{
    collections::BTreeMap,
    process::ExitCode,
    time::{Duration, SystemTime},
};

#[derive(Args)]
pub struct Update {
    /// Unit files, e.g. someapp@.service: a template is brought into all its instances.
    #[arg(required = true)]
    units: Vec<String>,
    #[command(flatten)]
    how: How,
}

#[derive(Args)]
pub struct Rollback {
    /// Units; a template is rolled back with all its instances.
    #[arg(required = true)]
    units: Vec<String>,
    /// To which version (see `muster history`); without it, to the one before.
    #[arg(long)]
    to: Option<u64>,
    #[command(flatten)]
    how: How,
}

#[derive(Args)]
struct How {
    /// How many units may be out of service at the same time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    at_once: u32,
    /// How long a unit may take until it is active.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    ready_timeout: Duration,
    /// How long a unit must stay active before the next one is replaced.
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    settle: Duration,
    /// If a unit does not become ready, stop there, and leave things as they are.
    #[arg(long)]
    no_rollback: bool,
    /// Give the order and do not wait.
    #[arg(long)]
    no_block: bool,
}

#[derive(Args)]
pub struct History {
    /// The unit or the template.
    unit: String,
    /// Print the file of this version.
    #[arg(long)]
    show: Option<u64>,
    /// How to write the list.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

#[derive(Args)]
pub struct Rollouts {
    /// Do not print the heading.
    #[arg(long)]
    no_legend: bool,
    /// How to write the list.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

#[derive(clap::Subcommand)]
pub enum Direct {
    /// Replace no further unit for now.
    ///
    /// Example: muster rollout pause someapp@
    Pause(Named),
    /// Go on.
    ///
    /// Example: muster rollout resume someapp@
    Resume(Named),
    /// Give what was replaced its former text back.
    ///
    /// Example: muster rollout abort someapp@
    Abort(Named),
}

#[derive(Args)]
pub struct Named {
    /// The unit or the template that is updated.
    unit: String,
}

impl How {
    fn order(&self, name: UnitName, text: Option<String>, version: Option<u64>) -> RolloutOrder {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        RolloutOrder {
            name,
            text,
            version,
            at_once: self.at_once,
            ready_timeout: milliseconds(self.ready_timeout),
            settle: milliseconds(self.settle),
            rollback: !self.no_rollback,
            by: by(),
        }
    }
}

impl Update {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let mut orders = Vec::new();
        // All files are read before anything is ordered.
        for (path, name) in names(&self.units)? {
            let text = match local_file(&path, &name)? {
                Some(text) => text,
                None => local_template(&path, &name)?.with_context(|| format!("there is no file {path}"))?,
            };
            orders.push(self.how.order(name, Some(text), None));
        }
        carry_out(client, &orders, &self.how).await
    }
}

impl Rollback {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let orders: Vec<_> =
            names(&self.units)?.into_iter().map(|(_, name)| self.how.order(name, None, self.to)).collect();
        carry_out(client, &orders, &self.how).await
    }
}

/// Orders one after another, because one that fails is a reason not to begin the next.
async fn carry_out(client: &Client, orders: &[RolloutOrder], how: &How) -> Result<ExitCode> {
    for order in orders {
        let begun = client.roll(order).await?;
        if how.no_block {
            output::line(format!("Triggered update of {}", begun.name))?;
            continue;
        }
        if !follow(client, &begun).await? {
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints how an update goes on until it is over; gives whether it succeeded.
async fn follow(client: &Client, begun: &Rollout) -> Result<bool> {
    let name = &begun.name;
    let goes_on = || format!("the connection broke; the update of {name} goes on, see `muster rollouts`");
    let mut watch = client.watch_rollout(name).await?;
    let mut told: BTreeMap<UnitName, RolloutUnit> = BTreeMap::new();
    let mut state = RolloutState::Running;
    while let Some(rollout) = watch.next().await {
        let rollout = rollout.with_context(goes_on)?;
        if rollout.at != begun.at {
            bail!("another update of {name} was begun meanwhile (see `muster rollouts`)");
        }
        if rollout.state != state && rollout.state.is_active() {
            let why =
                if rollout.message.is_empty() { String::new() } else { format!(": {}", rollout.message) };
            eprintln!("Update of {name} is {}{why}", rollout.state);
            state = rollout.state;
        }
        for unit in &rollout.units {
            if told.get(&unit.unit).is_none_or(|before| before.progress != unit.progress) {
                told.insert(unit.unit.clone(), unit.clone());
                tell(&rollout, unit)?;
            }
        }
        if rollout.state.is_active() {
            continue;
        }
        let message = &rollout.message;
        return Ok(match rollout.state {
            RolloutState::Done => {
                output::line(format!("Update of {name} done: {message}"))?;
                true
            }
            RolloutState::RolledBack => {
                eprintln!("Update of {name} was rolled back: {message}");
                false
            }
            _ => {
                eprintln!("Update of {name} failed, and was left as it is: {message}");
                false
            }
        });
    }
    bail!(goes_on())
}

fn tell(rollout: &Rollout, unit: &RolloutUnit) -> Result<()> {
    let at = if unit.machine.is_empty() { String::new() } else { format!(" on {}", unit.machine) };
    let why = if unit.message.is_empty() { String::new() } else { format!(" ({})", unit.message) };
    let name = &unit.unit;
    match unit.progress {
        Progress::Waiting => Ok(()),
        Progress::Updating | Progress::RollingBack => {
            eprintln!("Unit {name} {}{at}", unit.progress);
            Ok(())
        }
        Progress::Ready => {
            let ready = rollout.units.iter().filter(|unit| unit.progress == Progress::Ready).count();
            output::line(format!("Unit {name} updated{at}{why} ({ready} of {})", rollout.units.len()))
        }
        Progress::RolledBack => output::line(format!("Unit {name} rolled back{at}{why}")),
        Progress::Gone => {
            eprintln!("Unit {name} left alone{why}");
            Ok(())
        }
    }
}

impl History {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let history = client.history(&UnitName::from_argument(&self.unit)?).await?;
        if let Some(number) = self.show {
            print_version(&history, number)?;
        } else if self.output == Format::Json {
            output::json(&history)?;
        } else {
            let rows = history.versions.iter().rev().map(|version| {
                let replaced = version.replaced.map_or_else(|| "current".to_owned(), time);
                vec![version.number.to_string(), short(&version.hash), replaced, dash(&version.by)]
            });
            output::table(Some(&["VERSION", "HASH", "REPLACED", "BY"]), rows)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints one of a unit's texts.
fn print_version(history: &api::rollouts::History, number: u64) -> Result<()> {
    let found = history.versions.iter().find(|version| version.number == number);
    let unit = &history.unit;
    let version = found
        .with_context(|| format!("unit {unit} has no version {number} (see `muster history {unit}`)"))?;
    output::print(&version.text)
}

impl Rollouts {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let list = client.rollouts().await?;
        if self.output == Format::Json {
            output::json(&list)?;
            return Ok(ExitCode::SUCCESS);
        }
        let rows = list.rollouts.iter().map(|rollout| {
            let over = |unit: &&RolloutUnit| unit.progress == Progress::Ready;
            let ready = rollout.units.iter().filter(over).count();
            vec![
                rollout.name.to_string(),
                rollout.state.to_string(),
                format!("{ready}/{}", rollout.units.len()),
                short(&rollout.hash),
                time(rollout.at),
                dash(&rollout.by),
                dash(&rollout.message),
            ]
        });
        let heading: &[&str] = &["NAME", "STATE", "READY", "HASH", "BEGUN", "BY", "MESSAGE"];
        output::table((!self.no_legend).then_some(heading), rows)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Direct {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let (command, named) = match self {
            Self::Pause(named) => (Command::Pause, named),
            Self::Resume(named) => (Command::Resume, named),
            Self::Abort(named) => (Command::Abort, named),
        };
        let name = UnitName::from_argument(&named.unit)?;
        let rollout = client.direct(&name, &RolloutCommand { command, by: by() }).await?;
        if command == Command::Abort {
            return Ok(if follow(client, &rollout).await? { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        }
        output::line(format!("Update of {name} is {}", rollout.state))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Who gives the order.
fn by() -> String {
    let by = ["SUDO_USER", "USER"].iter().find_map(|name| std::env::var(name).ok());
    by.unwrap_or_else(|| "root".to_owned())
}

fn time(at: Timestamp) -> String {
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(at.0);
    humantime::format_rfc3339_seconds(at).to_string()
}

fn short(hash: &str) -> String {
    hash.chars().take(7).collect()
}

fn dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}
