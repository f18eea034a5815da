//! What must hold at every step, whatever breaks.
//!
//! The rules see what the hub has really written and what systemd was really asked, and judge both by the truth, not
//! by what a daemon believes. Invariant: a rule that is broken stays broken: the first violation is kept.

use crate::{time::Time, trace::Trace, world::Machine};
use model::{DesiredState, MachineId, ScheduleRecord, UnitName, keys};
use muster_core::cluster::{Cluster, Touched};
use mvcc::{Batch, EventKind};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

/// For how long a decision may follow from something that was true and is no longer: a message's way there and back,
/// many times.
const LAG: Duration = Duration::from_secs(15);
/// The same when watches may carry nothing without anybody's noticing: until the next full list.
const LAG_STALLED: Duration = Duration::from_secs(75);

/// The longest from a decision to its writing: what leads cannot be longer without a renewal.
const DECISION: Duration = Duration::from_secs(6);

/// Machines that go within this time go at once: an engine that asks sees that the others are late.
const TOGETHER: Duration = Duration::from_secs(2);

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// A unit that is not global is scheduled to one machine at most.
    OneOwner,
    /// A unit with `OnPartition=stop` runs on one machine at most, whatever the network does.
    OneFencedCopy,
    /// Whoever was deposed writes nothing.
    OnlyTheLeaderWrites,
    /// Every decision has a reason, and the reason was true.
    DecidedWithReason,
    /// While most machines are gone at once nothing is taken off those that are gone.
    HoldsStill,
    /// A unit is loaded or started because the schedule said so, and each order to start is carried out once.
    StartedWithReason,
    /// A unit is stopped or unloaded because the schedule said so: an outage of the hub stops nothing.
    StoppedWithReason,
    /// A file goes only when nothing of its unit runs.
    UnloadedWhenStopped,
    /// Once the faults are over, everything comes to be as it should.
    ComesToRest,
}

/// A rule was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// When.
    pub at: Time,
    /// Which rule.
    pub rule: Rule,
    /// How.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}: {}", self.rule, self.at, self.what)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OneOwner => "two owners",
            Self::OneFencedCopy => "two copies of a fenced unit",
            Self::OnlyTheLeaderWrites => "written by whoever does not lead",
            Self::DecidedWithReason => "decided without a reason",
            Self::HoldsStill => "moved while most machines were gone",
            Self::StartedWithReason => "started without a reason",
            Self::StoppedWithReason => "stopped without a reason",
            Self::UnloadedWhenStopped => "unloaded while it ran",
            Self::ComesToRest => "does not come to rest",
        })
    }
}

/// What a machine was to do with a unit from some revision on; `None`: nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    what: Option<(String, DesiredState, u64)>,
}

/// The rules, and what they have seen.
#[derive(Debug)]
pub struct Rules {
    violation: Option<Violation>,
    /// The hub's keys, read.
    truth: Cluster,
    /// Each unit's schedule on each machine, oldest first.
    history: BTreeMap<(MachineId, UnitName), Vec<Wanted>>,
    /// When each unit was last unwanted, and each machine last gone, of those that are not so now.
    unwanted: BTreeMap<UnitName, Time>,
    wanted: BTreeMap<UnitName, Time>,
    gone: BTreeMap<MachineId, Time>,
    present: BTreeMap<MachineId, Time>,
    /// Orders to start that were carried out, with the boot and the daemon's run they were carried out in.
    started: BTreeMap<(MachineId, UnitName), (u64, u32, u32)>,
    /// Machines that are gone now, and since when.
    gone_since: BTreeMap<MachineId, Time>,
    /// When each unit was last ordered to move, and each machine last under maintenance.
    moved: BTreeMap<UnitName, Time>,
    maintained: BTreeMap<MachineId, Time>,
    /// Machines that said that they shut down, and whose word that was until now.
    left: BTreeSet<MachineId>,
    stalled: bool,
}

impl Rules {
    pub(crate) fn new() -> Self {
        Self {
            violation: None,
            truth: Cluster::default(),
            history: BTreeMap::new(),
            unwanted: BTreeMap::new(),
            wanted: BTreeMap::new(),
            gone: BTreeMap::new(),
            present: BTreeMap::new(),
            started: BTreeMap::new(),
            gone_since: BTreeMap::new(),
            moved: BTreeMap::new(),
            maintained: BTreeMap::new(),
            left: BTreeSet::new(),
            stalled: false,
        }
    }

    /// The hub's keys, read.
    pub fn truth(&self) -> &Cluster {
        &self.truth
    }

    /// The first violation.
    pub fn violation(&self) -> Option<Violation> {
        self.violation.clone()
    }

    /// From now on decisions may follow from what was true long ago.
    pub(crate) fn stalled(&mut self) {
        self.stalled = true;
    }

    fn broken(&mut self, at: Time, rule: Rule, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(Violation { at, rule, what: what() });
        }
    }

    fn recently(&self, now: Time, then: Option<&Time>) -> bool {
        let lag = if self.stalled { LAG_STALLED } else { LAG };
        then.is_some_and(|then| now - *then <= lag)
    }

    fn is_wanted(&self, unit: &UnitName) -> bool {
        self.truth.units.get(unit).is_some_and(|unit| unit.record.desired != DesiredState::Inactive)
    }

    /// Judges what the hub has written.
    pub(crate) fn batch(&mut self, now: Time, batch: &Batch, trace: &mut Trace) {
        let mut changed = BTreeSet::new();
        for event in &batch.events {
            let key = std::str::from_utf8(&event.kv.key).unwrap_or_default();
            if let Some((machine, unit)) = keys::machine_and_unit(keys::SCHEDULE, key) {
                self.scheduled(now, &machine, &unit, event, trace);
                changed.insert(unit);
            }
            if let Some(unit) = key.strip_prefix(keys::MOVES).and_then(|name| name.parse().ok()) {
                self.moved.insert(unit, now);
            }
            if let Some(machine) = key.strip_prefix(keys::MAINTENANCE).and_then(|id| id.parse().ok()) {
                self.maintained.insert(machine, now);
            }
            let before = self.summary(key);
            let touched = match event.kind {
                EventKind::Put => {
                    let revision = model::Revision(batch.revision.0);
                    self.truth.put(key, &event.kv.value, revision)
                }
                EventKind::Delete => self.truth.delete(key),
            };
            if let Touched::Machine(id) = &touched
                && let Some(record) = self.truth.machines.get(id)
            {
                if record.leaving {
                    self.left.insert(id.clone())
                } else {
                    self.left.remove(id)
                };
            }
            self.remember(now, &touched, before, trace);
        }
        for unit in changed {
            let global = self.truth.units.get(&unit).is_some_and(|unit| unit.is_global());
            let owners: Vec<_> =
                self.truth.schedule.get(&unit).into_iter().flat_map(|on| on.keys()).collect();
            if !global && owners.len() > 1 && self.truth.units.contains_key(&unit) {
                let owners: Vec<_> = owners.into_iter().map(|id| id.short().to_owned()).collect();
                self.broken(now, Rule::OneOwner, || {
                    format!("{unit} is scheduled to {}", owners.join(" and "))
                });
            }
        }
    }

    /// Whether what the key is about is there, as far as the rules want to know.
    fn summary(&self, key: &str) -> bool {
        if let Some(id) = key.strip_prefix(keys::MACHINES).and_then(|id| id.parse().ok()) {
            return self.truth.machines.contains_key::<MachineId>(&id);
        }
        match key.strip_prefix(keys::UNITS).and_then(|name| name.parse().ok()) {
            Some(unit) => self.is_wanted(&unit),
            None => false,
        }
    }

    fn remember(&mut self, now: Time, touched: &Touched, before: bool, trace: &mut Trace) {
        match touched {
            Touched::Machine(id) => {
                let there = self.truth.machines.contains_key(id);
                if before != there {
                    let name = Machine::name_of(id);
                    trace.story(now, || format!("{name} is {}", if there { "present" } else { "gone" }));
                    if there {
                        self.gone_since.remove(id);
                        self.gone.insert(id.clone(), now);
                    } else {
                        self.gone_since.insert(id.clone(), now);
                        self.present.insert(id.clone(), now);
                    }
                }
            }
            Touched::Unit(unit) => {
                let wanted = self.is_wanted(unit);
                if before != wanted {
                    let (map, unit) =
                        (if wanted { &mut self.unwanted } else { &mut self.wanted }, unit.clone());
                    map.insert(unit, now);
                }
            }
            _ => {}
        }
    }

    /// A decision was written: it must be the leader's, and it must have a reason.
    fn scheduled(
        &mut self,
        now: Time,
        machine: &MachineId,
        unit: &UnitName,
        event: &mvcc::Event,
        trace: &mut Trace,
    ) {
        let name = Machine::name_of(machine);
        let what = match event.kind {
            EventKind::Delete => {
                trace.story(now, || format!("{unit} off {name}"));
                if !self.may_leave(now, machine, unit) {
                    let what =
                        || format!("{unit} was taken off {name}, where it was wanted and which was there");
                    self.broken(now, Rule::DecidedWithReason, what);
                } else if !self.may_move(now, machine, unit) {
                    self.broken(now, Rule::HoldsStill, || format!("{unit} was taken off {name}"));
                }
                None
            }
            EventKind::Put => {
                let Ok(record) = serde_json::from_slice::<ScheduleRecord>(&event.kv.value) else { return };
                trace.story(now, || format!("{unit} on {name}, {}: {}", record.desired, record.why));
                let term = self.truth.leader.as_ref().map(|(_, term)| *term);
                if term != Some(record.term) {
                    let what = || format!("{unit} on {name} in term {}, while {term:?} leads", record.term);
                    self.broken(now, Rule::OnlyTheLeaderWrites, what);
                }
                let wanted = self.is_wanted(unit) || self.recently(now, self.wanted.get(unit));
                let there = self.truth.machines.contains_key(machine)
                    || self.recently(now, self.present.get(machine));
                if record.why.is_empty() || !wanted || !there {
                    let what = || {
                        format!(
                            "{unit} on {name}: wanted {wanted}, machine there {there}, why {:?}",
                            record.why
                        )
                    };
                    self.broken(now, Rule::DecidedWithReason, what);
                }
                Some((record.hash, record.desired, record.launch))
            }
        };
        let history = self.history.entry((machine.clone(), unit.clone())).or_default();
        history.push(Wanted { what });
    }

    /// Whether a unit may leave a machine: nobody wants it, the machine is gone or leaves, or the unit is particular about
    /// where it runs.
    fn may_leave(&self, now: Time, machine: &MachineId, unit: &UnitName) -> bool {
        let unwanted = !self.is_wanted(unit) || self.recently(now, self.unwanted.get(unit));
        let gone = !self.truth.machines.contains_key(machine) || self.recently(now, self.gone.get(machine));
        let particular = self.truth.units.get(unit).is_some_and(|unit| match &unit.requirements {
            Ok(wants) => {
                !wants.conflicts.is_empty() || !wants.machine_of.is_empty() || !wants.metadata.is_empty()
            }
            Err(_) => true,
        });
        let disliked = self.truth.units.values().any(|other| {
            other.requirements.as_ref().is_ok_and(|wants| {
                wants.machine_of.contains(unit)
                    || wants.conflicts.iter().chain(&wants.replaces).any(|glob| glob.matches(unit.as_str()))
            })
        });
        let moved =
            self.recently(now, self.moved.get(unit)) || self.recently(now, self.maintained.get(machine));
        let leaves = self.left.contains(machine);
        unwanted
            || gone
            || leaves
            || particular
            || disliked
            || moved
            || self.truth.maintenance.contains_key(machine)
    }

    /// Whether a unit may be taken off a machine that is gone: not while most are, for longer than a decision takes.
    fn may_move(&self, now: Time, machine: &MachineId, unit: &UnitName) -> bool {
        let leaves = self.left.contains(machine);
        if !self.is_wanted(unit) || self.truth.machines.contains_key(machine) || leaves {
            return true;
        }
        // Whoever went alone is given up at once, whatever happens later to the others.
        let alone = self.gone_since.get(machine).map_or(now, |since| *since + TOGETHER);
        let long = |id: &&MachineId| {
            self.gone_since.get(*id).is_some_and(|since| now - *since > DECISION && *since <= alone)
        };
        let scheduled: BTreeSet<_> = self.truth.schedule.values().flat_map(|on| on.keys()).collect();
        // Whoever went later was there then, with units or without.
        let later = self.gone_since.values().filter(|since| **since > alone);
        let left = self.truth.machines.len() + later.count();
        let gone = scheduled.into_iter().filter(|id| !self.left.contains(*id)).filter(long).count();
        gone <= 1 || gone <= left
    }

    /// Something of a unit changed on some machine.
    pub(crate) fn ran(&mut self, now: Time, unit: &UnitName, machines: &[Machine]) {
        let global = self.truth.units.get(unit).is_some_and(|unit| unit.is_global());
        let runs = |machine: &&Machine| {
            machine.systemd.units.get(unit).is_some_and(|unit| unit.fenced && unit.active.is_alive())
        };
        let hosts: Vec<_> = machines.iter().filter(runs).map(|machine| machine.host.to_string()).collect();
        if hosts.len() > 1 && !global {
            self.broken(now, Rule::OneFencedCopy, || format!("{unit} runs on {}", hosts.join(" and ")));
        }
    }

    /// The fence stops a unit.
    pub(crate) fn fences(&mut self, now: Time, machine: &Machine, unit: &UnitName) {
        let other =
            machine.systemd.units.get(unit).is_some_and(|unit| !unit.fenced && unit.active.is_alive());
        if other {
            let what = || format!("the fence of {} stops {unit}, which may run on", machine.host);
            self.broken(now, Rule::StoppedWithReason, what);
        }
        // Under a good lease the order counts as not carried out.
        self.started.remove(&(machine.id.clone(), unit.clone()));
    }

    pub(crate) fn loads(&mut self, now: Time, machine: &Machine, unit: &UnitName) {
        if !self.history.contains_key(&(machine.id.clone(), unit.clone())) {
            let what = || format!("{} loads {unit}, which was never scheduled to it", machine.host);
            self.broken(now, Rule::StartedWithReason, what);
        }
        if machine.systemd.active(unit).is_alive() {
            let what = || format!("{} replaces the file of {unit}", machine.host);
            self.broken(now, Rule::UnloadedWhenStopped, what);
        }
    }

    pub(crate) fn starts(&mut self, now: Time, machine: &Machine, unit: UnitName, launch: u64) {
        let key = (machine.id.clone(), unit);
        let history = self.history.get(&key).map_or(&[][..], Vec::as_slice);
        let ordered = history.iter().any(|wanted| {
            wanted
                .what
                .as_ref()
                .is_some_and(|(_, desired, number)| *desired == DesiredState::Launched && *number == launch)
        });
        let (boot, run) = machine.generation();
        let again = self.started.get(&key) == Some(&(launch, boot, run));
        // An unload between two starts begins anew.
        let loaded_anew = machine.systemd.units.get(&key.1).is_none_or(|unit| unit.launch == 0);
        if !ordered || (again && !loaded_anew) {
            let what = || {
                let why = if ordered { "was carried out before" } else { "was never given to it" };
                format!("{} starts {} by order {launch}, which {why}", machine.host, key.1)
            };
            self.broken(now, Rule::StartedWithReason, what);
        }
        self.started.insert(key, (launch, boot, run));
    }

    pub(crate) fn stops(&mut self, now: Time, machine: &Machine, unit: &UnitName) {
        let Some(running) = machine.systemd.units.get(unit) else { return };
        if !self.may_stop(machine, unit, &running.hash, running.launch) {
            let what = || format!("{} stops {unit}, which its schedule wants launched", machine.host);
            self.broken(now, Rule::StoppedWithReason, what);
        }
    }

    /// Whether the schedule has wanted something else of a unit since the order that it was started by.
    fn may_stop(&self, machine: &Machine, unit: &UnitName, hash: &str, launch: u64) -> bool {
        let Some(history) = self.history.get(&(machine.id.clone(), unit.clone())) else { return true };
        let same = |wanted: &Wanted| {
            wanted
                .what
                .as_ref()
                .is_some_and(|(file, desired, _)| *desired == DesiredState::Launched && file == hash)
        };
        let ordered = |wanted: &Wanted| {
            same(wanted) && wanted.what.as_ref().is_some_and(|(_, _, number)| *number == launch)
        };
        // Since the first record that ordered this start: an agent may learn of what came next much later.
        let since = history.iter().position(ordered).unwrap_or(0);
        history[since..].iter().any(|wanted| !same(wanted))
    }

    pub(crate) fn unloads(&mut self, now: Time, machine: &Machine, unit: &UnitName) {
        let history = self.history.get(&(machine.id.clone(), unit.clone()));
        let ever_gone = history.is_none_or(|history| history.iter().any(|wanted| wanted.what.is_none()));
        if !ever_gone {
            let what = || format!("{} unloads {unit}, which is scheduled to it", machine.host);
            self.broken(now, Rule::StoppedWithReason, what);
        }
        if machine.systemd.active(unit).is_alive() {
            let what = || format!("{} unloads {unit}", machine.host);
            self.broken(now, Rule::UnloadedWhenStopped, what);
        }
    }
}
