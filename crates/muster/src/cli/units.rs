//! Verbs that change units: `submit`, `load`, `start`, `stop`, `restart`, `unload`, `destroy`; `wait` and `cat`.
//!
//! A verb gives its order to the API, then [waits](super::wait) until the units are where the order wants them.
//! Invariant: what is printed on stdout has happened.

use super::{
    names,
    output::{self, Format},
    wait::{Ended, Goal, Verb, Wait, Why},
};
use anyhow::{Context, Result, bail};
use api::{
    Client, ClientError,
    types::{UnitChange, UnitChanged},
};
use clap::Args;
use model::{DesiredState, UnitName};
use serde::Serialize;
use std::{collections::BTreeMap, fs, path::Path, process::ExitCode, time::Duration};

/// Some units reached their goal, others did not.
const PARTIAL: u8 = 3;

#[derive(Args)]
pub struct Submit {
    /// Unit files, e.g. someapp@.service.
    #[arg(required = true)]
    units: Vec<String>,
    /// Replace files that the cluster knows with other contents.
    #[arg(long)]
    replace: bool,
}

#[derive(Args)]
pub struct Order {
    /// Units, e.g. someapp@1; one that is not known yet is taken from the file of that name, or from its template.
    #[arg(required = true)]
    units: Vec<String>,
    /// Replace files that the cluster knows with other contents (load and start).
    #[arg(long)]
    replace: bool,
    /// Give the order and do not wait.
    #[arg(long)]
    no_block: bool,
    /// How long to wait.
    #[arg(long, default_value = "2m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// How to say what came of it.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

#[derive(Args)]
pub struct Halt {
    /// Units.
    #[arg(required = true)]
    units: Vec<String>,
    /// Give the order and do not wait.
    #[arg(long)]
    no_block: bool,
    /// How long to wait.
    #[arg(long, default_value = "2m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// How to say what came of it.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

#[derive(Args)]
pub struct Restart {
    /// Units.
    #[arg(required = true)]
    units: Vec<String>,
    /// How long to wait, for the stop and for the start each.
    #[arg(long, default_value = "2m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// How to say what came of it.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

#[derive(Args)]
pub struct Await {
    /// Units.
    #[arg(required = true)]
    units: Vec<String>,
    /// What to wait for.
    #[arg(long = "for", value_enum, default_value_t)]
    goal: Goal,
    /// How long to wait.
    #[arg(long, default_value = "2m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// How to say what came of it.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

/// What came of an order, for programs.
#[derive(Serialize)]
struct Outcome<'a> {
    /// Units that are where the order wants them.
    done: &'a [UnitName],
    /// Those that are not, and why.
    failed: Vec<Failure<'a>>,
    /// Those whose order was given and not waited for.
    triggered: &'a [UnitName],
}

#[derive(Serialize)]
struct Failure<'a> {
    unit: &'a UnitName,
    why: String,
}

#[derive(Args)]
pub struct Cat {
    /// The unit.
    unit: String,
}

impl Submit {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let mut changes = Vec::new();
        for (path, name) in names(&self.units)? {
            let text = local_file(&path, &name)?;
            // An instance may come from a template that the cluster knows.
            if text.is_none() && name.instance().is_none() {
                bail!("there is no file {path}");
            }
            changes.push(UnitChange { name, text, desired: None, replace: self.replace });
        }
        for unit in order(client, &self.units, changes).await? {
            if unit.created || self.replace {
                output::line(format!("Unit {} {}", unit.name, unit.desired))?;
            } else if unit.warnings.is_empty() {
                eprintln!("Unit {} is known with the same contents, nothing to do.", unit.name);
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Order {
    pub async fn run(self, client: &Client, verb: Verb) -> Result<ExitCode> {
        let mut chosen = names(&self.units)?;
        if verb == Verb::Load {
            let launched = desired(client).await?;
            chosen.retain(|(_, name)| {
                let running = launched.get(name) == Some(&DesiredState::Launched);
                if running {
                    eprintln!("Unit {name} is loaded and launched already.");
                }
                !running
            });
        }
        let mut changes = Vec::new();
        for (path, name) in &chosen {
            let mut text = local_file(path, name)?;
            if self.replace && text.is_none() {
                text = local_template(path, name)?;
            }
            changes.push(UnitChange {
                name: name.clone(),
                text,
                desired: Some(verb.desired()),
                replace: self.replace,
            });
        }
        let changed = order(client, &self.units, changes).await?;
        let names: Vec<_> = changed.into_iter().map(|unit| unit.name).collect();
        if self.no_block {
            return triggered(&names, verb, self.output);
        }
        let wait = patient(client, self.timeout, self.output);
        finish(verb, &wait.until(&names, verb, tell).await?, self.output)
    }
}

impl Halt {
    pub async fn run(self, client: &Client, verb: Verb) -> Result<ExitCode> {
        let mut names: Vec<_> = names(&self.units)?.into_iter().map(|(_, name)| name).collect();
        if verb == Verb::Destroy {
            client.destroy(&names).await?;
        } else {
            let known = desired(client).await?;
            if let Some(unknown) = names.iter().find(|name| !known.contains_key(*name)) {
                bail!("unit {unknown} does not exist (see `muster list-unit-files`)");
            }
            let inactive = |name: &UnitName| known.get(name) == Some(&DesiredState::Inactive);
            if let Some(name) = names.iter().find(|name| verb == Verb::Stop && inactive(name)) {
                bail!("unable to stop unit {name} in state inactive");
            }
            names.retain(|name| !inactive(name));
            want(client, &names, verb.desired()).await?;
        }
        if self.no_block {
            return triggered(&names, verb, self.output);
        }
        let wait = patient(client, self.timeout, self.output);
        finish(verb, &wait.until(&names, verb, tell).await?, self.output)
    }
}

impl Restart {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let names: Vec<_> = names(&self.units)?.into_iter().map(|(_, name)| name).collect();
        let known = desired(client).await?;
        for name in &names {
            match known.get(name) {
                None => bail!("unit {name} does not exist (see `muster list-unit-files`)"),
                Some(DesiredState::Inactive) => bail!("unable to restart unit {name} in state inactive"),
                Some(_) => {}
            }
        }
        let ended =
            restart(client, &names, &known, &patient(client, self.timeout, self.output), tell).await?;
        finish(Verb::Again, &ended, self.output)
    }
}

impl Await {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let names: Vec<_> = names(&self.units)?.into_iter().map(|(_, name)| name).collect();
        let known = desired(client).await?;
        let ends = matches!(self.goal, Goal::Stopped | Goal::Gone);
        if let Some(unknown) = names.iter().find(|name| !ends && !known.contains_key(*name)) {
            bail!("unit {unknown} does not exist (see `muster list-unit-files`)");
        }
        let wait = Wait { stubborn: true, ..patient(client, self.timeout, self.output) };
        let verb = Verb::Await(self.goal);
        finish(verb, &wait.until(&names, verb, tell).await?, self.output)
    }
}

/// Stops those of the units that run, on all their machines, then starts all that have stopped.
pub async fn restart(
    client: &Client,
    names: &[UnitName],
    known: &BTreeMap<UnitName, DesiredState>,
    wait: &Wait<'_>,
    tell: impl Fn(&UnitName, &Why) + Copy,
) -> Result<Ended> {
    let launched = |name: &&UnitName| known.get(*name) == Some(&DesiredState::Launched);
    let running: Vec<_> = names.iter().filter(launched).cloned().collect();
    want(client, &running, DesiredState::Loaded).await?;
    let halted = wait.until(&running, Verb::Halt, tell).await?;
    let stuck = |name: &UnitName| halted.failed.iter().any(|(failed, _)| failed == name);
    // What does not stop is wanted as before: it is not left to stop later.
    want(client, names, DesiredState::Launched).await?;
    let rest: Vec<_> = names.iter().filter(|name| !stuck(name)).cloned().collect();
    let mut ended = wait.until(&rest, Verb::Again, tell).await?;
    ended.failed.extend(halted.failed);
    Ok(ended)
}

/// Orders one desired state for all.
pub async fn want(client: &Client, names: &[UnitName], desired: DesiredState) -> Result<(), ClientError> {
    let change = |name: &UnitName| UnitChange {
        name: name.clone(),
        text: None,
        desired: Some(desired),
        replace: false,
    };
    if !names.is_empty() {
        client.change(&names.iter().map(change).collect::<Vec<_>>()).await?;
    }
    Ok(())
}

/// What is wanted of every unit.
async fn desired(client: &Client) -> Result<BTreeMap<UnitName, DesiredState>> {
    Ok(client.units().await?.units.into_iter().map(|unit| (unit.name, unit.desired)).collect())
}

impl Cat {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let unit = client.unit(&UnitName::from_argument(&self.unit)?).await?;
        output::print(&unit.text)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn patient(client: &Client, timeout: Duration, output: Format) -> Wait<'_> {
    Wait { client, timeout: Some(timeout), stubborn: false, aloud: output == Format::Table }
}

fn tell(name: &UnitName, why: &Why) {
    eprintln!("Unit {name} {}", said(why));
}

fn said(why: &Why) -> String {
    match why {
        Why::Failed(why) => format!("failed: {why}"),
        Why::Stuck(why) => format!("is not where it should be: {why}"),
        Why::Late(after, seen) => {
            format!("is not there after {}: {seen}", humantime::format_duration(*after))
        }
    }
}

fn finish(verb: Verb, ended: &Ended, format: Format) -> Result<ExitCode> {
    if format == Format::Json {
        let failed = ended.failed.iter().map(|(unit, why)| Failure { unit, why: said(why) }).collect();
        output::json(&Outcome { done: &ended.done, failed, triggered: &[] })?;
    }
    let done = ended.done.iter().map(UnitName::as_str).collect::<Vec<_>>().join(" ");
    match verb {
        Verb::Stop if !done.is_empty() => eprintln!("Successfully stopped units [{done}]."),
        Verb::Unload if !done.is_empty() => eprintln!("Successfully unloaded units [{done}]."),
        _ => {}
    }
    Ok(match (ended.done.is_empty(), ended.failed.is_empty()) {
        (_, true) => ExitCode::SUCCESS,
        (true, false) => ExitCode::FAILURE,
        (false, false) => ExitCode::from(PARTIAL),
    })
}

fn triggered(names: &[UnitName], verb: Verb, format: Format) -> Result<ExitCode> {
    if format == Format::Json {
        output::json(&Outcome { done: &[], failed: Vec::new(), triggered: names })?;
        return Ok(ExitCode::SUCCESS);
    }
    for name in names {
        output::line(format!("Triggered unit {name} {}", verb.name()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The unit's file, if there is one: at the path that was typed, or at that path with the unit's type added.
/// A file with an error is refused here, by its own name.
pub fn local_file(typed: &str, name: &UnitName) -> Result<Option<String>> {
    let candidates = [typed.to_owned(), Path::new(typed).with_file_name(name.as_str()).display().to_string()];
    for path in candidates {
        if Path::new(&path).is_file() {
            return read(&path, name).map(Some);
        }
    }
    Ok(None)
}

/// The file of the template that `name` is an instance of, beside the path that was typed.
pub fn local_template(typed: &str, name: &UnitName) -> Result<Option<String>> {
    let Some(template) = name.template() else { return Ok(None) };
    let path = Path::new(typed).with_file_name(template.as_str());
    if path.is_file() { read(&path.display().to_string(), name).map(Some) } else { Ok(None) }
}

fn read(path: &str, name: &UnitName) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    match unit::check(name, &text) {
        Ok(_) => Ok(text),
        Err(problem) => {
            bail!("nothing was submitted, because of an error in a unit file\n{}", problem.render(path))
        }
    }
}

/// Gives the order. What neither the cluster nor a file knows may still come from a template's file.
async fn order(client: &Client, typed: &[String], mut changes: Vec<UnitChange>) -> Result<Vec<UnitChanged>> {
    let mut outcome = client.change(&changes).await;
    if matches!(&outcome, Err(ClientError::Refused(error)) if error.code == 404) {
        let typed: BTreeMap<_, _> = names(typed)?.into_iter().map(|(typed, name)| (name, typed)).collect();
        let mut found = false;
        for change in changes.iter_mut().filter(|change| change.text.is_none()) {
            if let Some(typed) = typed.get(&change.name) {
                change.text = local_template(typed, &change.name)?;
                found |= change.text.is_some();
            }
        }
        if found {
            outcome = client.change(&changes).await;
        }
    }
    let changed = outcome?;
    for warning in changed.units.iter().flat_map(|unit| &unit.warnings) {
        eprintln!("warning: {warning}");
    }
    Ok(changed.units)
}
