//! Waiting until units are where an order wants them, or until it is clear that they will not get there.
//!
//! Not responsible for giving the order. Invariant: what is printed on stdout has happened.

use super::{list::legend, output};
use anyhow::{Result, bail};
use api::{
    Client,
    types::{Unit, UnitOnMachine, Watched},
};
use clap::ValueEnum;
use futures_util::StreamExt;
use model::{DesiredState, UnitName};
use std::{
    collections::BTreeMap,
    io::{self, IsTerminal},
    time::Duration,
};
use tokio::time::Instant;

/// A refusal or an error that lasts this long is told; a shorter one was only the order of events.
const GRACE: Duration = Duration::from_secs(2);

/// What an order wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Load,
    Start,
    Stop,
    Unload,
    Destroy,
    /// The first half of a restart.
    Halt,
    /// The second half of a restart.
    Again,
    /// No order: somebody else gives it, or gave it.
    Await(Goal),
}

/// What can be waited for without an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Goal {
    /// Started and active, on every machine that it is scheduled to.
    #[default]
    Active,
    /// Started, and ended by itself without an error: a job that is done.
    Ended,
    /// Nothing of it runs anywhere.
    Stopped,
    /// Destroyed, and stopped.
    Gone,
}

impl Verb {
    pub fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Unload => "unload",
            Self::Destroy => "destroy",
            Self::Halt | Self::Again => "restart",
            Self::Await(_) => "wait",
        }
    }

    pub fn desired(self) -> DesiredState {
        match self {
            Self::Start | Self::Again | Self::Await(Goal::Active | Goal::Ended) => DesiredState::Launched,
            Self::Load | Self::Stop | Self::Halt | Self::Await(Goal::Stopped) => DesiredState::Loaded,
            Self::Unload | Self::Destroy | Self::Await(Goal::Gone) => DesiredState::Inactive,
        }
    }
}

/// How to wait.
pub struct Wait<'a> {
    pub client: &'a Client,
    /// How long at most; without it, for ever.
    pub timeout: Option<Duration>,
    /// Whether to wait on for a unit that no machine takes, or that systemd refuses.
    pub stubborn: bool,
    /// Whether each unit that arrives is printed.
    pub aloud: bool,
}

/// Why a unit is not where it should be.
#[derive(Debug)]
pub enum Why {
    /// It will not get there.
    Failed(String),
    /// Something is in its way.
    Stuck(String),
    /// It is still on its way, after so long.
    Late(Duration, String),
}

/// What came of waiting.
#[derive(Debug, Default)]
pub struct Ended {
    /// Units that are where they should be.
    pub done: Vec<UnitName>,
    /// Those that are not.
    pub failed: Vec<(UnitName, Why)>,
}

/// How far a unit is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Progress {
    /// It is where the order wants it; what to print, if anything.
    Done(String),
    /// It will not get there.
    Failed(String),
    /// Something is in its way, which may pass.
    Stuck(String),
    /// It is on its way.
    Waiting(String),
}

impl Wait<'_> {
    /// Follows the units until each has arrived or failed. `tell` is given each failure as it happens.
    pub async fn until(
        &self,
        names: &[UnitName],
        verb: Verb,
        tell: impl Fn(&UnitName, &Why),
    ) -> Result<Ended> {
        let mut ended = Ended::default();
        if names.is_empty() {
            return Ok(ended);
        }
        let mut watch = self.client.watch(names).await?;
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        let talk = io::stderr().is_terminal();
        let mut pending: BTreeMap<UnitName, Progress> =
            names.iter().map(|name| (name.clone(), Progress::Waiting("not seen yet".to_owned()))).collect();
        let mut stuck: BTreeMap<UnitName, Instant> = BTreeMap::new();
        let mut fail = |name: UnitName, why: Why| {
            tell(&name, &why);
            ended.failed.push((name, why));
        };
        while !pending.is_empty() {
            let patience = stuck.values().map(|since| *since + GRACE).min();
            let watched = tokio::select! {
                watched = watch.next() => match watched {
                    Some(watched) => watched?,
                    None => bail!("the connection broke while waiting; the order stands, see `muster list-units`"),
                },
                () = sleep_until(deadline) => break,
                () = sleep_until(patience), if !self.stubborn => {
                    for (name, _) in stuck.extract_if(.., |_, since| since.elapsed() >= GRACE) {
                        if let Some(Progress::Stuck(why)) = pending.remove(&name) {
                            fail(name, Why::Stuck(why));
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
            if !matches!(progress, Progress::Stuck(_)) {
                stuck.remove(&name);
            }
            match progress {
                Progress::Done(text) => {
                    if self.aloud && !text.is_empty() {
                        output::line(text)?;
                    }
                    ended.done.push(name.clone());
                    pending.remove(&name);
                }
                Progress::Failed(why) => {
                    pending.remove(&name);
                    fail(name, Why::Failed(why));
                }
                Progress::Stuck(_) => {
                    stuck.entry(name).or_insert_with(Instant::now);
                    *before = progress;
                }
                Progress::Waiting(ref text) => {
                    if talk {
                        eprintln!("  {name}: {text}");
                    }
                    *before = progress;
                }
            }
        }
        for (name, progress) in pending {
            let (Progress::Waiting(seen)
            | Progress::Stuck(seen)
            | Progress::Done(seen)
            | Progress::Failed(seen)) = progress;
            fail(name, Why::Late(self.timeout.unwrap_or_default(), seen));
        }
        // In the order in which they were named, whichever was first.
        ended.done.sort_by_key(|done| names.iter().position(|name| name == done));
        Ok(ended)
    }
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
    if let Verb::Await(goal) = verb {
        return awaited(goal, watched);
    }
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
    if verb == Verb::Halt {
        let running = |on: &&UnitOnMachine| on.state.as_ref().is_some_and(|state| state.is_running());
        return match unit.machines.iter().find(running) {
            None => Progress::Done(String::new()),
            Some(on) => Progress::Waiting(format!("stopping on {}", on.name)),
        };
    }
    if unit.global && verb != Verb::Again {
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
    if !unit.global {
        return on_machine(verb, unit, on);
    }
    // Everywhere it has to be: the slowest machine tells how far it is.
    let on = unit.machines.iter().filter(|on| on.scheduled).map(|on| on_machine(verb, unit, on));
    let mut done = 0;
    for progress in on {
        match progress {
            Progress::Done(_) => done += 1,
            other => return other,
        }
    }
    let machines = if done == 1 { "machine" } else { "machines" };
    Progress::Done(format!("Global unit {name} launched on {done} {machines}"))
}

/// How far the unit is from what is waited for, whoever brings it there.
fn awaited(goal: Goal, watched: &Watched) -> Progress {
    let name = &watched.name;
    let Some(unit) = &watched.unit else {
        return match (goal, watched.leftover.first()) {
            (Goal::Gone | Goal::Stopped, Some(machine)) => {
                Progress::Waiting(format!("stopping on {machine}"))
            }
            (Goal::Gone | Goal::Stopped, None) => Progress::Done(format!("Unit {name} is gone")),
            (Goal::Active | Goal::Ended, _) => Progress::Failed("it was destroyed".to_owned()),
        };
    };
    let running = unit.machines.iter().find(|on| on.state.as_ref().is_some_and(|state| state.is_running()));
    match (goal, running) {
        (Goal::Gone, _) => return Progress::Waiting("it is there".to_owned()),
        (Goal::Stopped, Some(on)) => return Progress::Waiting(format!("runs on {}", on.name)),
        (Goal::Stopped, None) => return Progress::Done(format!("Unit {name} is stopped")),
        (Goal::Active | Goal::Ended, _) => {}
    }
    if unit.desired != DesiredState::Launched {
        return Progress::Waiting(format!("nobody has started it, it is {}", unit.desired));
    }
    let scheduled: Vec<_> = unit.machines.iter().filter(|on| on.scheduled).collect();
    if scheduled.is_empty() {
        return match unit.refused.is_empty() {
            true => Progress::Waiting("waiting for a machine".to_owned()),
            false => Progress::Stuck(refusal(unit)),
        };
    }
    for on in &scheduled {
        match (goal, on_machine(Verb::Start, unit, on)) {
            (Goal::Active, Progress::Done(_))
                if !on.state.as_ref().is_some_and(|state| state.is_running()) =>
            {
                return Progress::Failed(format!("it has ended on {}", on.name));
            }
            (Goal::Ended, Progress::Done(_)) if on.state.as_ref().is_some_and(|state| state.is_running()) => {
                return Progress::Waiting(format!("runs on {}", on.name));
            }
            (_, Progress::Done(_)) => {}
            (_, other) => return other,
        }
    }
    let machines = scheduled.iter().map(|on| on.name.as_str()).collect::<Vec<_>>().join(", ");
    let what = if goal == Goal::Active { "is active" } else { "has ended" };
    Progress::Done(format!("Unit {name} {what} on {machines}"))
}

/// How far the unit is on one machine.
fn on_machine(verb: Verb, unit: &Unit, on: &UnitOnMachine) -> Progress {
    let name = &unit.name;
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
        Verb::Start | Verb::Again if state.launch < unit.launch => {
            Progress::Waiting(format!("starting on {}", on.name))
        }
        Verb::Start | Verb::Again => match state.active.as_str() {
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
    use api::types::State;

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
    fn a_global_unit_is_restarted_when_it_is_everywhere() {
        let two = |first: &str, second: &str| {
            let mut both = Unit { global: true, ..unit(first, 2) };
            both.machines.extend(unit(second, 2).machines);
            Some(both)
        };
        assert!(matches!(judged(Verb::Halt, two("inactive", "deactivating")), Progress::Waiting(_)));
        assert_eq!(judged(Verb::Halt, two("inactive", "failed")), Progress::Done(String::new()));
        assert!(matches!(judged(Verb::Again, two("active", "activating")), Progress::Waiting(_)));
        let done = Progress::Done("Global unit a.service launched on 2 machines".to_owned());
        assert_eq!(judged(Verb::Again, two("active", "active")), done);
        let triggered = Progress::Done("Triggered global unit a.service start".to_owned());
        assert_eq!(judged(Verb::Start, two("active", "activating")), triggered);
    }

    #[test]
    fn what_others_order_is_waited_for() {
        let judged = |goal, unit| judged(Verb::Await(goal), unit);
        let done = |progress| matches!(progress, Progress::Done(_));
        let waits = |progress| matches!(progress, Progress::Waiting(_));
        let failed = |progress| matches!(progress, Progress::Failed(_));
        assert!(done(judged(Goal::Active, Some(unit("active", 2)))));
        assert!(waits(judged(Goal::Active, Some(unit("active", 1)))), "of the start before");
        assert!(waits(judged(Goal::Active, Some(unit("activating", 2)))));
        assert!(failed(judged(Goal::Active, Some(unit("failed", 2)))));
        assert!(
            failed(judged(Goal::Active, Some(unit("inactive", 2)))),
            "it will not become active by itself"
        );
        let loaded = Unit { desired: DesiredState::Loaded, ..unit("inactive", 2) };
        assert!(
            waits(judged(Goal::Active, Some(loaded.clone()))) && waits(judged(Goal::Ended, Some(loaded)))
        );
        assert!(waits(judged(Goal::Ended, Some(unit("active", 2)))));
        assert!(done(judged(Goal::Ended, Some(unit("inactive", 2)))));
        assert!(failed(judged(Goal::Ended, Some(unit("failed", 2)))));
        assert!(failed(judged(Goal::Ended, None)));
        assert!(waits(judged(Goal::Stopped, Some(unit("deactivating", 2)))));
        assert!(done(judged(Goal::Stopped, Some(unit("failed", 2)))));
        assert!(waits(judged(Goal::Gone, Some(unit("inactive", 2)))) && done(judged(Goal::Gone, None)));
    }

    #[test]
    fn a_unit_that_no_machine_takes_says_why() {
        let refused = [("m1".to_owned(), "conflicts with b".to_owned())].into();
        let unit = Unit { machines: Vec::new(), refused, ..unit("active", 2) };
        let Progress::Stuck(why) = judged(Verb::Start, Some(unit)) else { panic!("not stuck") };
        assert!(why.contains("no machine fits") && why.contains("m1: conflicts with b"), "{why}");
    }
}
