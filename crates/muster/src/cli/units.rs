//! Verbs that change units: `submit`, `load`, `start`, `stop`, `unload`, `destroy`, and `cat`.
//!
//! A verb gives its order to the API, then follows the units until they are where the order wants them, or until it
//! is clear that they will not get there. Invariant: what is printed on stdout has happened.

use super::{list::legend, names, output};
use anyhow::{Context, Result, bail};
use api::{
    Client, ClientError,
    types::{Unit, UnitChange, UnitChanged, Watched},
};
use clap::Args;
use futures_util::StreamExt;
use model::{DesiredState, UnitName};
use std::{
    collections::BTreeMap,
    fs,
    io::{self, IsTerminal},
    path::Path,
    process::ExitCode,
    time::Duration,
};
use tokio::time::Instant;

/// A refusal or an error that lasts this long is told; a shorter one was only the order of events.
const GRACE: Duration = Duration::from_secs(2);
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
}

#[derive(Args)]
pub struct Cat {
    /// The unit.
    unit: String,
}

/// What an order wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Load,
    Start,
    Stop,
    Unload,
    Destroy,
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Unload => "unload",
            Self::Destroy => "destroy",
        }
    }

    fn desired(self) -> DesiredState {
        match self {
            Self::Start => DesiredState::Launched,
            Self::Load | Self::Stop => DesiredState::Loaded,
            Self::Unload | Self::Destroy => DesiredState::Inactive,
        }
    }
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
            return triggered(&names, verb);
        }
        wait(client, &names, verb, self.timeout).await
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
            let change = |name: &UnitName| UnitChange {
                name: name.clone(),
                text: None,
                desired: Some(verb.desired()),
                replace: false,
            };
            client.change(&names.iter().map(change).collect::<Vec<_>>()).await?;
        }
        if self.no_block {
            return triggered(&names, verb);
        }
        wait(client, &names, verb, self.timeout).await
    }
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

fn triggered(names: &[UnitName], verb: Verb) -> Result<ExitCode> {
    for name in names {
        output::line(format!("Triggered unit {name} {}", verb.name()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The unit's file, if there is one: at the path that was typed, or at that path with the unit's type added.
/// A file with an error is refused here, by its own name.
fn local_file(typed: &str, name: &UnitName) -> Result<Option<String>> {
    let candidates = [typed.to_owned(), Path::new(typed).with_file_name(name.as_str()).display().to_string()];
    for path in candidates {
        if Path::new(&path).is_file() {
            return read(&path, name).map(Some);
        }
    }
    Ok(None)
}

/// The file of the template that `name` is an instance of, beside the path that was typed.
fn local_template(typed: &str, name: &UnitName) -> Result<Option<String>> {
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

/// How far a unit is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Progress {
    /// It is where the order wants it; what to print.
    Done(String),
    /// It will not get there.
    Failed(String),
    /// Something is in its way, which may pass.
    Stuck(String),
    /// It is on its way.
    Waiting(String),
}

/// Follows the units until each has arrived or failed.
async fn wait(client: &Client, names: &[UnitName], verb: Verb, timeout: Duration) -> Result<ExitCode> {
    if names.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let mut watch = client.watch(names).await?;
    let deadline = Instant::now() + timeout;
    let talk = io::stderr().is_terminal();
    let mut pending: BTreeMap<UnitName, Progress> =
        names.iter().map(|name| (name.clone(), Progress::Waiting("not seen yet".to_owned()))).collect();
    let mut stuck: BTreeMap<UnitName, Instant> = BTreeMap::new();
    let (mut done, mut failed) = (Vec::new(), 0_usize);
    while !pending.is_empty() {
        let patience = stuck.values().map(|since| *since + GRACE).min();
        let watched = tokio::select! {
            watched = watch.next() => match watched {
                Some(watched) => watched?,
                None => bail!("the connection broke while waiting; the order stands, see `muster list-units`"),
            },
            () = tokio::time::sleep_until(deadline) => break,
            () = sleep_until(patience), if patience.is_some() => {
                for (name, _) in stuck.extract_if(.., |_, since| since.elapsed() >= GRACE) {
                    if let Some(Progress::Stuck(why)) = pending.remove(&name) {
                        eprintln!("Unit {name} is not where it should be: {why}");
                        failed += 1;
                    }
                }
                continue;
            }
        };
        let name = watched.name.clone();
        let Some(before) = pending.get_mut(&name) else { continue };
        let progress = judge(verb, &watched);
        if *before == progress {
            continue;
        }
        match &progress {
            Progress::Done(text) => {
                output::line(text)?;
                done.push(name.clone());
                pending.remove(&name);
                stuck.remove(&name);
            }
            Progress::Failed(why) => {
                eprintln!("Unit {name} failed: {why}");
                failed += 1;
                pending.remove(&name);
                stuck.remove(&name);
            }
            Progress::Stuck(_) => {
                stuck.entry(name).or_insert_with(Instant::now);
                *before = progress;
            }
            Progress::Waiting(text) => {
                if talk {
                    eprintln!("  {name}: {text}");
                }
                stuck.remove(&name);
                *before = progress;
            }
        }
    }
    for (name, progress) in &pending {
        let (Progress::Waiting(text) | Progress::Stuck(text) | Progress::Done(text) | Progress::Failed(text)) =
            progress;
        eprintln!("Unit {name} is not there after {}: {text}", humantime::format_duration(timeout));
        failed += 1;
    }
    let list = |names: &[UnitName]| names.iter().map(UnitName::as_str).collect::<Vec<_>>().join(" ");
    match verb {
        Verb::Stop if !done.is_empty() => eprintln!("Successfully stopped units [{}].", list(&done)),
        Verb::Unload if !done.is_empty() => eprintln!("Successfully unloaded units [{}].", list(&done)),
        _ => {}
    }
    Ok(match (done.is_empty(), failed) {
        (_, 0) => ExitCode::SUCCESS,
        (true, _) => ExitCode::FAILURE,
        (false, _) => ExitCode::from(PARTIAL),
    })
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// How far the unit is on the way that the verb wants it to go.
fn judge(verb: Verb, watched: &Watched) -> Progress {
    let name = &watched.name;
    let Some(unit) = &watched.unit else {
        return match verb {
            Verb::Destroy if watched.leftover.is_empty() => Progress::Done(format!("Destroyed {name}")),
            Verb::Destroy => Progress::Waiting(format!("stopping on {}", watched.leftover.join(", "))),
            _ => Progress::Failed("it was destroyed meanwhile".to_owned()),
        };
    };
    if verb == Verb::Destroy {
        return Progress::Failed("it was submitted again meanwhile".to_owned());
    }
    if unit.global {
        return Progress::Done(format!("Triggered global unit {name} {}", verb.name()));
    }
    if verb == Verb::Unload {
        return match unit.machines.first() {
            None => Progress::Done(format!("Unit {name} inactive")),
            Some(on) => Progress::Waiting(format!("stopping on {}", on.name)),
        };
    }
    let Some(on) = unit.machines.first().filter(|on| on.scheduled) else {
        return if unit.refused.is_empty() {
            Progress::Waiting("waiting for a machine".to_owned())
        } else {
            Progress::Stuck(refusal(unit))
        };
    };
    let Some(state) = on.state.as_ref() else {
        return Progress::Waiting(format!("waiting for {}", on.name));
    };
    if let Some(error) = &state.error {
        return Progress::Stuck(format!("{error} (on {}; see `muster status {name}`)", on.name));
    }
    if state.hash != unit.hash {
        return Progress::Waiting(format!("loading on {}", on.name));
    }
    let here = legend(on, false);
    let seen = format!("{} ({}) on {}", state.active, state.sub, on.name);
    match verb {
        Verb::Start if state.launch < unit.launch => Progress::Waiting(format!("starting on {}", on.name)),
        Verb::Start => match state.active.as_str() {
            "active" | "reloading" => Progress::Done(format!("Unit {name} launched on {here}")),
            "failed" => {
                Progress::Failed(format!("{seen}; see `muster status {name}` and `muster journal {name}`"))
            }
            "inactive" => Progress::Done(format!("Unit {name} launched on {here}, and has ended")),
            _ => Progress::Waiting(seen),
        },
        _ if state.is_running() => Progress::Waiting(seen),
        _ => Progress::Done(format!("Unit {name} loaded on {here}")),
    }
}

/// Why no machine takes it, machine by machine.
fn refusal(unit: &Unit) -> String {
    let mut text = "no machine fits; it starts as soon as one does".to_owned();
    for (machine, why) in &unit.refused {
        text.push_str(&format!("\n  {machine}: {why}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::types::{State, UnitOnMachine};

    fn unit(active: &str, launch: u64) -> Unit {
        let state = State {
            load: "loaded".to_owned(),
            active: active.to_owned(),
            sub: "x".to_owned(),
            hash: "h".to_owned(),
            launch,
            error: None,
        };
        let on = UnitOnMachine {
            id: "0123456789abcdef0123456789abcdef".parse().expect("valid"),
            name: "m1".to_owned(),
            address: Some([10, 0, 0, 1].into()),
            scheduled: true,
            why: String::new(),
            state: Some(state),
        };
        Unit {
            name: "a.service".parse().expect("valid"),
            hash: "h".to_owned(),
            text: String::new(),
            desired: DesiredState::Launched,
            launch: 2,
            global: false,
            machines: vec![on],
            refused: BTreeMap::new(),
        }
    }

    fn judged(verb: Verb, unit: Option<Unit>) -> Progress {
        judge(verb, &Watched { name: "a.service".parse().expect("valid"), unit, leftover: Vec::new() })
    }

    #[test]
    fn a_start_is_done_when_the_new_order_is_active() {
        let done = Progress::Done("Unit a.service launched on 01234567.../10.0.0.1".to_owned());
        assert_eq!(judged(Verb::Start, Some(unit("active", 2))), done);
        assert!(matches!(judged(Verb::Start, Some(unit("active", 1))), Progress::Waiting(_)));
        assert!(matches!(judged(Verb::Start, Some(unit("activating", 2))), Progress::Waiting(_)));
        assert!(matches!(judged(Verb::Start, Some(unit("failed", 2))), Progress::Failed(_)));
        assert!(matches!(judged(Verb::Start, None), Progress::Failed(_)));
    }

    #[test]
    fn a_stop_is_done_when_nothing_runs() {
        assert!(matches!(judged(Verb::Stop, Some(unit("deactivating", 2))), Progress::Waiting(_)));
        assert!(matches!(judged(Verb::Stop, Some(unit("failed", 2))), Progress::Done(_)));
        assert_eq!(judged(Verb::Destroy, None), Progress::Done("Destroyed a.service".to_owned()));
    }

    #[test]
    fn a_unit_that_no_machine_takes_says_why() {
        let refused = [("m1".to_owned(), "conflicts with b".to_owned())].into();
        let unit = Unit { machines: Vec::new(), refused, ..unit("active", 2) };
        let Progress::Stuck(why) = judged(Verb::Start, Some(unit)) else { panic!("not stuck") };
        assert!(why.contains("no machine fits") && why.contains("m1: conflicts with b"), "{why}");
    }
}
