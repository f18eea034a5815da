//! fleetctl's verbs that change units. Units that the cluster does not know are taken from files, or from templates,
//! as fleetctl looked for them. Invariant: all of an order's units are found and checked before anything is changed.

use super::{boolean, failed, told};
use crate::cli::{
    names, output,
    units::{local_file, local_template, restart, want},
    wait::{Ended, Verb, Wait, Why},
};
use anyhow::Result;
use api::{
    Client,
    types::{Unit, UnitChange},
};
use clap::Args;
use model::{DesiredState, UnitName};
use std::{collections::BTreeMap, path::Path, process::ExitCode, time::Duration};

/// What fleetctl called an attempt.
const ATTEMPT: Duration = Duration::from_secs(2);

#[derive(Args)]
pub struct Submit {
    #[command(flatten)]
    source: Source,
    /// Unit files.
    units: Vec<String>,
}

#[derive(Args)]
pub struct Order {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    block: Block,
    /// Units, or their files.
    units: Vec<String>,
}

#[derive(Args)]
pub struct Halt {
    #[command(flatten)]
    block: Block,
    /// Units.
    units: Vec<String>,
}

#[derive(Args)]
pub struct Restart {
    /// Wait for so many attempts of 2 s each; 0 waits for ever.
    #[arg(long, default_value_t = 0)]
    block_attempts: u32,
    /// Units.
    units: Vec<String>,
}

#[derive(Args)]
struct Source {
    /// Replace the old submitted units in the cluster with new versions.
    #[arg(long, value_parser = boolean, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", default_value = "false")]
    replace: bool,
    /// Accepted for old scripts: signing was given up by fleet itself.
    #[arg(long, hide = true, value_parser = boolean, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", default_value = "false")]
    sign: bool,
}

#[derive(Args)]
struct Block {
    /// Wait for so many attempts of 2 s each; 0 waits for ever, unless no machine takes the unit.
    #[arg(long, default_value_t = 0)]
    block_attempts: u32,
    /// Do not wait until the units are where they should be.
    #[arg(long, value_parser = boolean, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", default_value = "false")]
    no_block: bool,
}

/// What the cluster knows.
type Known = BTreeMap<UnitName, Unit>;

async fn known(client: &Client) -> Result<Known, String> {
    let list = client.units().await.map_err(|error| told(&error))?;
    Ok(list.units.into_iter().map(|unit| (unit.name.clone(), unit)).collect())
}

fn desired(known: &Known) -> BTreeMap<UnitName, DesiredState> {
    known.iter().map(|(name, unit)| (name.clone(), unit.desired)).collect()
}

/// The file or the template's file for a unit as it was typed, and what to call it.
fn local(typed: &str, name: &UnitName) -> Result<Option<(String, String)>, String> {
    let path = |name: &str| Path::new(typed).with_file_name(name).display().to_string();
    if let Some(text) = local_file(typed, name).map_err(|error| format!("{error:#}"))? {
        return Ok(Some((text, format!("local unit file {}", path(name.as_str())))));
    }
    let Some(template) = name.template() else { return Ok(None) };
    let text = local_template(typed, name).map_err(|error| format!("{error:#}"))?;
    Ok(text.map(|text| (text, format!("local template unit file {}", path(template.as_str())))))
}

/// What must be changed so that all units exist and are to be `verb`'s state: fleetctl's `lazyCreateUnits`.
fn plan(
    typed: &[String],
    known: &Known,
    goal: Option<DesiredState>,
    replace: bool,
) -> Result<Vec<UnitChange>, String> {
    let mut changes = Vec::new();
    for (typed, name) in names(typed).map_err(|error| format!("{error:#}"))? {
        let found = local(&typed, &name)?;
        let mut change = UnitChange { name: name.clone(), text: None, desired: goal, replace: false };
        match (known.get(&name), found) {
            (Some(_), None) => {}
            (Some(unit), Some((text, place))) => {
                let same = unit::UnitFile::parse(&text).is_ok_and(|file| file.hash() == unit.hash);
                match (same, replace) {
                    (true, true) => {
                        output::line(format!("Found same Unit({name}) in Registry, nothing to do"))
                            .map_err(|error| error.to_string())?;
                    }
                    (true, false) => {}
                    (false, true) if unit.desired > goal.unwrap_or_default() => eprintln!(
                        "Warning: can not replace Unit({name}) in state '{}', use the appropriate command",
                        unit.desired
                    ),
                    (false, true) => {
                        change.text = Some(text);
                        change.replace = true;
                    }
                    (false, false) => eprintln!(
                        "WARNING: Unit {name} in registry differs from {place}. Add --replace to override."
                    ),
                }
            }
            // The file of that name, but the cluster's template rather than a template's file.
            (None, found) => {
                let template = name.template().filter(|template| known.contains_key(template));
                let own = found.as_ref().is_some_and(|(_, place)| place.starts_with("local unit file"));
                change.text = match (own, template) {
                    (false, Some(_)) => None,
                    _ => Some(
                        found
                            .ok_or_else(|| {
                                format!("unable to find Unit({name}) in Registry or on filesystem")
                            })?
                            .0,
                    ),
                };
            }
        }
        changes.push(change);
    }
    Ok(changes)
}

/// Gives the order; says which units are new.
async fn order(client: &Client, changes: &[UnitChange]) -> Result<Vec<UnitName>, String> {
    let changed = client.change(changes).await.map_err(|error| told(&error))?;
    for warning in changed.units.iter().flat_map(|unit| &unit.warnings) {
        eprintln!("{warning}");
    }
    for unit in changed.units.iter().filter(|unit| unit.created) {
        output::line(format!("Unit {} inactive", unit.name)).map_err(|error| error.to_string())?;
    }
    Ok(changed.units.into_iter().map(|unit| unit.name).collect())
}

impl Submit {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        if self.units.is_empty() {
            eprintln!("No units given");
            return Ok(ExitCode::SUCCESS);
        }
        let submitted = async {
            let changes = plan(&self.units, &known(client).await?, None, self.source.replace)?;
            order(client, &changes).await
        };
        match submitted.await {
            Ok(_) => Ok(ExitCode::SUCCESS),
            Err(error) => failed(format!("Error creating units: {error}")),
        }
    }
}

impl Order {
    pub async fn run(self, client: &Client, verb: Verb) -> Result<ExitCode> {
        if self.units.is_empty() {
            eprintln!("No units given");
            return Ok(ExitCode::SUCCESS);
        }
        let ordered = async {
            let known = known(client).await?;
            let mut changes = plan(&self.units, &known, Some(verb.desired()), self.source.replace)?;
            if verb == Verb::Load {
                let launched = |name: &UnitName| {
                    known.get(name).is_some_and(|unit| unit.desired == DesiredState::Launched)
                };
                // To load is to bring it to a machine; it is on one.
                changes.retain(|change| !launched(&change.name));
            }
            order(client, &changes).await
        };
        match ordered.await {
            Ok(names) => self.block.finish(client, &names, verb).await,
            Err(error) => failed(format!("Error creating units: {error}")),
        }
    }
}

impl Halt {
    pub async fn run(self, client: &Client, verb: Verb) -> Result<ExitCode> {
        if self.units.is_empty() {
            eprintln!("No units given");
            return Ok(ExitCode::SUCCESS);
        }
        let typed = match names(&self.units) {
            Ok(names) => names,
            Err(error) => return failed(format!("{error:#}")),
        };
        let known = match known(client).await {
            Ok(known) => known,
            Err(error) => return failed(format!("Error retrieving units: {error}")),
        };
        let mut names: Vec<_> =
            typed.into_iter().map(|(_, name)| name).filter(|name| known.contains_key(name)).collect();
        if names.is_empty() {
            eprintln!("Units not found in registry");
            return Ok(ExitCode::SUCCESS);
        }
        let inactive =
            |name: &UnitName| known.get(name).is_some_and(|unit| unit.desired == DesiredState::Inactive);
        let given = match verb {
            Verb::Destroy => client.destroy(&names).await.map(|_| ()),
            Verb::Stop if names.iter().any(inactive) => {
                let name = names.iter().find(|name| inactive(name)).map_or("", UnitName::as_str);
                return failed(format!("Unable to stop unit {name} in state inactive"));
            }
            _ => {
                names.retain(|name| !inactive(name));
                want(client, &names, verb.desired()).await
            }
        };
        match given {
            Ok(()) => self.block.finish(client, &names, verb).await,
            Err(error) => failed(format!("Error {} units: {}", gerund(verb), told(&error))),
        }
    }
}

impl Block {
    /// Waits, unless it is not to, and says what came of it.
    async fn finish(&self, client: &Client, names: &[UnitName], verb: Verb) -> Result<ExitCode> {
        if self.no_block {
            for name in names {
                output::line(match verb {
                    Verb::Destroy => format!("Destroyed {name}"),
                    _ => format!("Triggered unit {name} {}", verb.name()),
                })?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let ended = wait(client, self.block_attempts).until(names, verb, |_, _| {}).await;
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) => return failed(format!("Error waiting for units: {error:#}")),
        };
        let done = ended.done.iter().map(UnitName::as_str).collect::<Vec<_>>().join(" ");
        match verb {
            Verb::Stop if !done.is_empty() => eprintln!("Successfully stopped units [{done}]."),
            Verb::Unload if !done.is_empty() => eprintln!("Successfully unloaded units [{done}]."),
            _ => {}
        }
        finished(verb, &ended)
    }
}

impl Restart {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        if self.units.is_empty() {
            eprintln!("No units given");
            return Ok(ExitCode::SUCCESS);
        }
        let known = match known(client).await {
            Ok(known) => known,
            Err(error) => return failed(format!("Error retrieving units: {error}")),
        };
        let mut chosen = Vec::new();
        let typed = match names(&self.units) {
            Ok(names) => names,
            Err(error) => return failed(format!("{error:#}")),
        };
        for (_, name) in typed {
            match known.get(&name).map(|unit| unit.desired) {
                None => {
                    return failed(format!(
                        "Error creating units: unable to find Unit({name}) in Registry or on filesystem"
                    ));
                }
                Some(DesiredState::Inactive) => eprintln!("Unable to restart unit {name} in state inactive"),
                Some(_) => chosen.push(name),
            }
        }
        let wait = wait(client, self.block_attempts);
        let ended = match restart(client, &chosen, &desired(&known), &wait, |_, _| {}).await {
            Ok(ended) => ended,
            Err(error) => return failed(format!("Error waiting for units: {error:#}")),
        };
        for name in &ended.done {
            eprintln!("Unit({name}) was restarted.");
        }
        finished(Verb::Again, &ended)
    }
}

/// For ever, unless it says how often; then also for units that no machine takes just now.
fn wait(client: &Client, attempts: u32) -> Wait<'_> {
    Wait { client, timeout: (attempts > 0).then(|| ATTEMPT * attempts), stubborn: attempts > 0, aloud: true }
}

fn finished(verb: Verb, ended: &Ended) -> Result<ExitCode> {
    for (name, why) in &ended.failed {
        match why {
            Why::Late(_, seen) => eprintln!(
                "Error waiting for units: timed out waiting for unit {name} to report state {} ({seen})",
                verb.desired()
            ),
            Why::Failed(why) | Why::Stuck(why) => eprintln!("Error waiting for units: unit {name}: {why}"),
        }
    }
    Ok(if ended.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn gerund(verb: Verb) -> &'static str {
    match verb {
        Verb::Load => "loading",
        Verb::Start => "starting",
        Verb::Stop => "stopping",
        Verb::Unload => "unloading",
        Verb::Destroy => "destroying",
        Verb::Halt | Verb::Again => "restarting",
        Verb::Await(_) => "waiting for",
    }
}
