//! Random runs: a seed makes machines, services, faults and rolling updates; rules watch at every step; then the faults end
//! and everything healthy must be served. A run that fails can be replayed, and shrunk to the steps that it needs.
//!
//! Invariant: a seed makes the same scenario, and a scenario the same run, on every machine.

use super::{
    rules::{Rule, Violation},
    world::{Planted, World},
};
use crate::{message::Host, rng::Rng, time::Time, trace::Level};
use std::{fmt, time::Duration};

/// Before it everything starts, undisturbed.
const BEGIN: Duration = Duration::from_secs(6);
/// From then on nothing goes wrong any more.
const FAULTS: Duration = Duration::from_secs(40);
/// Then everything must come to rest within this: an instance that has failed again and again must pass up to 64 checks in
/// a row (`registrar::DAMPED`), a stuck stream is looked after within 60 s, and what vanished together is held for 30 s.
const PATIENCE: Duration = Duration::from_secs(180);

/// What is done to the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// An app's process ends by itself.
    Crash(Host, usize),
    /// An app listens and does not answer, for so long.
    Sicken(Host, usize, Duration),
    /// What all apps need is gone for so long.
    SickenAll(Duration),
    /// A daemon is killed, and starts again after so long.
    KillDaemon(Host, Duration),
    /// A daemon gets no time.
    Freeze(Host),
    /// It gets some again.
    Thaw(Host),
    /// A machine is gone.
    PowerOff(Host),
    /// It boots.
    PowerOn(Host),
    /// A machine reaches nobody, and nobody reaches it.
    Cut(Host),
    /// It does again.
    Heal(Host),
    /// The hub is gone.
    HubDown,
    /// It is back, with all that it had.
    HubUp,
    /// A machine's streams break off.
    BreakStreams(Host),
    /// They carry nothing any more, and nobody notices for a while.
    StallStreams(Host),
    /// A service's instances are restarted one after another.
    Roll(String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crash(host, app) => write!(f, "crash {host} {app}"),
            Self::Sicken(host, app, lasts) => write!(f, "sicken {host} {app} for {lasts:?}"),
            Self::SickenAll(lasts) => write!(f, "sicken all for {lasts:?}"),
            Self::KillDaemon(host, pause) => write!(f, "kill-daemon {host} for {pause:?}"),
            Self::Freeze(host) => write!(f, "freeze {host}"),
            Self::Thaw(host) => write!(f, "thaw {host}"),
            Self::PowerOff(host) => write!(f, "power-off {host}"),
            Self::PowerOn(host) => write!(f, "power-on {host}"),
            Self::Cut(host) => write!(f, "cut {host}"),
            Self::Heal(host) => write!(f, "heal {host}"),
            Self::HubDown => f.write_str("hub-down"),
            Self::HubUp => f.write_str("hub-up"),
            Self::BreakStreams(host) => write!(f, "break-streams {host}"),
            Self::StallStreams(host) => write!(f, "stall-streams {host}"),
            Self::Roll(service) => write!(f, "roll {service}"),
        }
    }
}

/// What is done in a random run.
#[derive(Debug, Clone)]
pub struct Scenario {
    machines: usize,
    /// Copies of each service.
    copies: Vec<usize>,
    seed: u64,
    /// What is done, and when, in order.
    pub steps: Vec<(Time, Step)>,
}

/// A run in which a rule was broken.
#[derive(Debug, Clone)]
pub struct Broken {
    /// What was done.
    pub scenario: Scenario,
    /// What came of it.
    pub violation: Violation,
    /// The trace, if one was asked for.
    pub trace: Vec<String>,
}

/// A run that broke no rule.
#[derive(Debug, Clone, Default)]
pub struct Survived {
    /// Events in it.
    pub events: u64,
    /// Requests in it.
    pub requests: u64,
    /// From the faults' end to rest.
    pub rest: Duration,
    /// The trace, if one was asked for.
    pub trace: Vec<String>,
}

impl Scenario {
    /// The scenario that belongs to `seed`.
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let machines = 1 + rng.below(4);
        let copies: Vec<usize> = (0..1 + rng.below(2)).map(|_| 1 + rng.below(5)).collect();
        let mut steps = Vec::new();
        for _ in 0..rng.below(8) {
            fault(&mut rng, machines, copies.len(), &mut steps);
        }
        if rng.chance(600) {
            let service = ["web", "api"][rng.below(copies.len())];
            steps.push((at(&mut rng), Step::Roll(service.to_owned())));
        }
        steps.sort_by_key(|(at, _)| *at);
        let seed = rng.fork().below(usize::MAX) as u64;
        Self { machines, copies, seed, steps }
    }

    /// Runs it.
    pub fn run(&self, planted: Option<Planted>, level: Level) -> Result<Survived, Box<Broken>> {
        let mut world = World::new(self.machines, &self.copies, self.seed, planted, level);
        for (at, step) in self.steps.iter().cloned().chain(self.end()) {
            world.plan(at, step);
        }
        let calm = Time(FAULTS);
        let settled = world.run_until(calm).and_then(|()| world.settle(PATIENCE));
        let trace = world.trace.take();
        match settled {
            Ok(()) => Ok(Survived {
                events: world.events,
                requests: world.requests,
                rest: world.now() - calm,
                trace,
            }),
            Err(violation) => Err(Box::new(Broken { scenario: self.clone(), violation, trace })),
        }
    }

    /// Whatever is wrong when the faults end is put right.
    fn end(&self) -> impl Iterator<Item = (Time, Step)> {
        let each = |host| [Step::Heal(host), Step::Thaw(host), Step::PowerOn(host)];
        let all = (0..self.machines).map(Host).flat_map(each);
        std::iter::once(Step::HubUp).chain(all).map(|step| (Time(FAULTS), step))
    }

    /// Leaves out steps as long as the same rule is broken without them.
    pub fn shrink(&self, rule: Rule, planted: Option<Planted>) -> Self {
        let fails = |scenario: &Self| {
            scenario.run(planted, Level::Off).is_err_and(|broken| broken.violation.rule == rule)
        };
        let mut best = self.clone();
        let mut at = 0;
        while at < best.steps.len() {
            let mut fewer = best.clone();
            fewer.steps.remove(at);
            if fails(&fewer) {
                best = fewer;
            } else {
                at += 1;
            }
        }
        best
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} machines, copies of services: {:?}", self.machines, self.copies)?;
        self.steps.iter().try_for_each(|(at, step)| writeln!(f, "{at:>10} {step}"))
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "{}", self.violation)?;
        write!(f, "{}", self.scenario)
    }
}

fn at(rng: &mut Rng) -> Time {
    Time(rng.span(BEGIN, FAULTS))
}

/// A fault, and its end.
fn fault(rng: &mut Rng, machines: usize, services: usize, steps: &mut Vec<(Time, Step)>) {
    let (host, app) = (Host(rng.below(machines)), rng.below(4));
    let begin = at(rng);
    let lasts = if rng.chance(500) { Duration::from_secs(3) } else { Duration::from_secs(25) };
    let lasts = rng.span(Duration::from_millis(50), lasts);
    let end = Time((begin + lasts).0.min(FAULTS));
    let all = |from: fn(Host) -> Step, to: fn(Host) -> Step| {
        (0..machines).map(Host).flat_map(move |host| [(begin, from(host)), (end, to(host))])
    };
    match rng.below(17) {
        0..=2 => steps.push((begin, Step::Crash(host, app))),
        3 | 4 => steps.push((begin, Step::Sicken(host, app, lasts.min(Duration::from_secs(12))))),
        5 => steps.push((begin, Step::KillDaemon(host, rng.span(Duration::from_millis(200), lasts)))),
        6 => steps.extend([(begin, Step::Freeze(host)), (end, Step::Thaw(host))]),
        7 => steps.extend([(begin, Step::PowerOff(host)), (end, Step::PowerOn(host))]),
        8 => steps.extend([(begin, Step::Cut(host)), (end, Step::Heal(host))]),
        9 | 10 => steps.extend([(begin, Step::HubDown), (end, Step::HubUp)]),
        11 => steps.push((begin, Step::BreakStreams(host))),
        12 => steps.push((begin, Step::StallStreams(host))),
        // All leases end at once, and nothing that stands under them.
        13 => steps.extend(all(Step::Freeze, Step::Thaw)),
        14 => steps.extend(all(Step::Cut, Step::Heal)),
        15 => steps.push((begin, Step::SickenAll(end - begin))),
        _ => {
            let service = ["web", "api"][rng.below(services)];
            steps.push((begin, Step::Roll(service.to_owned())));
        }
    }
}
