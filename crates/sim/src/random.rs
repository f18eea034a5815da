//! Random runs: a seed makes a cluster, orders and faults; the rules watch; then the faults end and everything must
//! come to rest. A run that fails can be replayed, and shrunk to the few steps that it needs to fail.
//!
//! Invariant: a seed makes the same scenario, and a scenario the same run, on every machine.

use crate::{
    daemon::Mutation,
    message::Host,
    rng::Rng,
    rules::{Rule, Violation},
    step::{Direction, Step},
    time::Time,
    trace::Level,
    world::{Settings, World},
};
use model::UnitName;
use std::{fmt, time::Duration};

/// From its beginning on nothing goes wrong any more.
const FAULTS: Duration = Duration::from_secs(60);
/// Then everything must come to rest within this: the longest hold (60 s), the longest trust in a watch (60 s), the
/// longest stop (30 s) and the longest pause after a failure (30 s), one after another, and room for delays.
const PATIENCE: Duration = Duration::from_secs(240);

/// What is done in a random run.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// How many machines.
    pub machines: usize,
    /// Where the randomness of the run itself begins.
    pub seed: u64,
    /// What is done, and when, in order.
    pub steps: Vec<(Time, Step)>,
    /// When the faults end.
    pub calm: Time,
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

/// What a run was like that broke no rule.
#[derive(Debug, Clone, Default)]
pub struct Survived {
    /// Events in it.
    pub events: u64,
    /// From the faults' end to rest.
    pub rest: Duration,
    /// The trace, if one was asked for.
    pub trace: Vec<String>,
}

impl Scenario {
    /// The scenario that belongs to `seed`.
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let machines = 1 + rng.below(5);
        let units = units(&mut rng);
        let mut steps = Vec::new();
        for (unit, options) in &units {
            steps.push((Time::default(), Step::Submit(unit.clone(), options.clone())));
        }
        for (unit, _) in units.iter().filter(|(unit, _)| !unit.is_template()) {
            steps.push((at(&mut rng, FAULTS / 6), Step::Start(unit.clone())));
        }
        for _ in 0..rng.below(8) {
            let (unit, options) = rng.pick(&units).clone();
            let order = match rng.below(6) {
                0 => Step::Stop(unit),
                1 => Step::Unload(unit),
                2 => Step::Destroy(unit),
                // The same unit with another file.
                3 => Step::Submit(unit, [options, vec!["#".to_owned()]].concat()),
                _ => Step::Start(unit),
            };
            let template =
                matches!(&order, Step::Stop(u) | Step::Unload(u) | Step::Start(u) if u.is_template());
            if !template {
                steps.push((at(&mut rng, FAULTS), order));
            }
        }
        for _ in 0..rng.below(3) {
            let host = Host(rng.below(machines));
            let order = match rng.below(5) {
                0 => Step::Drain(host),
                1 => Step::Cordon(host),
                2 => Step::Uncordon(host),
                _ => Step::Move(rng.pick(&units).0.clone(), host),
            };
            steps.push((at(&mut rng, FAULTS), order));
        }
        for _ in 0..rng.below(9) {
            fault(&mut rng, machines, &mut steps);
        }
        let seed = rng.fork().below(usize::MAX) as u64;
        let calm = Time(FAULTS);
        steps.retain(|(at, _)| *at < calm);
        steps.sort_by_key(|(at, _)| *at);
        Self { machines, seed, steps, calm }
    }

    /// Runs it.
    pub fn run(&self, mutation: Option<Mutation>, level: Level) -> Result<Survived, Box<Broken>> {
        let settings = Settings { machines: self.machines, seed: self.seed, noise: true, mutation, level };
        let mut world = World::new(settings);
        for (at, step) in self.steps.iter().cloned().chain(self.end()) {
            world.plan(at, step);
        }
        let settled = world.run_until(self.calm).and_then(|()| world.settle(PATIENCE));
        let violation = match settled {
            Ok(Ok(())) => {
                let (events, rest) = (world.events(), world.now() - self.calm);
                return Ok(Survived { events, rest, trace: world.trace.take() });
            }
            Ok(Err(missing)) => {
                Violation { at: world.now(), rule: Rule::ComesToRest, what: missing.join("; ") }
            }
            Err(violation) => violation,
        };
        let trace = world.trace.take();
        Err(Box::new(Broken { scenario: self.clone(), violation, trace }))
    }

    /// Whatever is wrong when the faults end is put right.
    fn end(&self) -> impl Iterator<Item = (Time, Step)> {
        let hosts = (0..self.machines).map(Host);
        let each = |host| [Step::Heal(host), Step::Thaw(host), Step::Boot(host)];
        std::iter::once(Step::HubUp).chain(hosts.flat_map(each)).map(|step| (self.calm, step))
    }

    /// Leaves out steps as long as the same rule is broken without them.
    pub fn shrink(&self, rule: Rule, mutation: Option<Mutation>) -> Self {
        let fails = |scenario: &Self| {
            scenario.run(mutation, Level::Off).is_err_and(|broken| broken.violation.rule == rule)
        };
        let mut best = self.clone();
        let mut width = best.steps.len().div_ceil(2).max(1);
        loop {
            let mut from = 0;
            while from < best.steps.len() {
                let mut fewer = best.clone();
                let to = (from + width).min(fewer.steps.len());
                fewer.steps.drain(from..to);
                if fails(&fewer) {
                    best = fewer;
                } else {
                    from += width;
                }
            }
            if width == 1 {
                return best;
            }
            width = width.div_ceil(2);
        }
    }
}

/// A script that does the same.
impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "cluster {} seed {} noise", self.machines, self.seed)?;
        let mut now = Time::default();
        let mut go = |f: &mut fmt::Formatter<'_>, to: Time| {
            let span = to - std::mem::replace(&mut now, to);
            if span.is_zero() { Ok(()) } else { writeln!(f, "advance {}ms", span.as_millis()) }
        };
        for (at, step) in &self.steps {
            go(f, *at)?;
            writeln!(f, "{step}")?;
        }
        go(f, self.calm)?;
        self.end().try_for_each(|(_, step)| writeln!(f, "{step}"))?;
        writeln!(f, "settle")
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "{}", self.violation)?;
        writeln!(f, "as a script:\n{}", self.scenario)
    }
}

/// A whole number of milliseconds, so that a script can say it.
fn at(rng: &mut Rng, before: Duration) -> Time {
    Time(Duration::from_millis(rng.below(usize::try_from(before.as_millis()).unwrap_or(0)) as u64))
}

/// Units with what they ask for: instances of one template, some single ones, perhaps a follower and a global one.
fn units(rng: &mut Rng) -> Vec<(UnitName, Vec<String>)> {
    let name = |text: String| -> UnitName { text.parse().expect("made of valid parts") };
    let option = |text: &str| vec![text.to_owned()];
    let mut units = vec![(
        name("web@.service".to_owned()),
        match rng.below(6) {
            0 => option("Conflicts=web@*.service"),
            1 => option("MachineMetadata=odd=true"),
            2 => option("Replaces=job1.service"),
            3 => option("OnPartition=stop"),
            _ => Vec::new(),
        },
    )];
    for number in 1..=1 + rng.below(3) {
        units.push((name(format!("web@{number}.service")), units[0].1.clone()));
    }
    for number in 1..=rng.below(4) {
        let options = match rng.below(5) {
            0 => option("Global=true"),
            1 => option("MachineOf=web@1.service"),
            2 => option("Conflicts=web@1.service"),
            3 => option("OnPartition=stop"),
            _ => Vec::new(),
        };
        units.push((name(format!("job{number}.service")), options));
    }
    units
}

/// A fault, and mostly its end.
fn fault(rng: &mut Rng, machines: usize, steps: &mut Vec<(Time, Step)>) {
    let host = Host(rng.below(machines));
    let begin = at(rng, FAULTS);
    let lasts = if rng.chance(500) { Duration::from_secs(4) } else { Duration::from_secs(30) };
    let end =
        begin + Duration::from_millis(rng.below(usize::try_from(lasts.as_millis()).unwrap_or(0)) as u64);
    let direction = *rng.pick(&[Direction::Both, Direction::Both, Direction::ToHub, Direction::FromHub]);
    let (fault, over) = match rng.below(14) {
        0 | 1 => (Step::Kill(host), Some(Step::Boot(host))),
        2 => (Step::Reboot(host), None),
        3 => (Step::KillDaemon(host), None),
        4 => (Step::Freeze(host), Some(Step::Thaw(host))),
        5 | 6 => (Step::Cut(host, direction), Some(Step::Heal(host))),
        7 | 8 => (Step::HubDown, Some(Step::HubUp)),
        9 => (Step::BreakWatches(host), None),
        10 => (Step::StallWatches(host), None),
        11 | 12 => {
            // Most of them at once.
            let first = rng.below(machines);
            for host in (0..1 + machines / 2).map(|index| Host((first + index) % machines)) {
                steps.push((begin, Step::Cut(host, direction)));
                steps.push((end, Step::Heal(host)));
            }
            return;
        }
        _ => {
            // Everybody at once: a switch that lost its power.
            for host in (0..machines).map(Host) {
                steps.push((begin, Step::Cut(host, Direction::Both)));
                steps.push((end, Step::Heal(host)));
            }
            return;
        }
    };
    steps.push((begin, fault));
    steps.extend(over.map(|over| (end, over)));
}
