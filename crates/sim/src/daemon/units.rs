//! The agent's driver: `core::agent` decides what to ask of systemd, this asks, as `muster`'s driver does.
//!
//! Invariants: nothing is stopped or removed before the schedule was read from the hub; while the hub is away the
//! last schedule stands.

use super::{Mutation, Notes, Purpose, follow::Delta, records::States};
use crate::{
    message::{self, Answer, Context, Failure, File, Note, Output, Request, Said, Schedule, Timer},
    time::Time,
};
use model::{LeaseId, RECORD_VERSION, ScheduleRecord, UnitName, UnitRecord, UnitState, keys};
use muster_core::agent::{self, Activity, Ask, Done, Trust, Wanted};
use mvcc::{EventKind, KeyValue};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use unit::OnPartition;

/// All states are read anew this often, as in `muster`.
const RESYNC: Duration = Duration::from_secs(60);
/// After a failed ask: the first and the longest pause, as in `muster`.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// With less time than this left of the lease nothing fenced is started, as in `muster`.
const MARGIN: Duration = Duration::from_millis(500);
/// So long the hub may take to answer a daemon that has just begun, as in `muster`.
const PATIENCE: Duration = Duration::from_secs(10);

/// A machine's share of the schedule, carried out.
#[derive(Debug)]
pub struct Units {
    mutation: Option<Mutation>,
    /// The schedule, once it was read.
    wanted: Option<BTreeMap<UnitName, Wanted>>,
    /// Under which lease it was read; `None` for one that is only remembered.
    confirmed: Option<LeaseId>,
    /// The last schedule that is on disk.
    remembered: Schedule,
    done: BTreeMap<UnitName, Done>,
    files: BTreeMap<UnitName, File>,
    /// `ActiveState` of units in `wanted` or `done`.
    seen: BTreeMap<UnitName, String>,
    errors: BTreeMap<UnitName, String>,
    busy: BTreeSet<UnitName>,
    /// Units that were asked to start: since when, and whether the job has ended.
    starting: BTreeMap<UnitName, (Time, bool)>,
    failures: BTreeMap<UnitName, (u32, Time)>,
    stale: BTreeSet<UnitName>,
    reading: BTreeSet<UnitName>,
    /// An answer is awaited.
    asked: bool,
    /// The fence's note as it was written last, and whether the watcher runs.
    note: Note,
    watcher: Watcher,
    /// What the hub should have.
    pub states: States,
}

#[derive(Debug, PartialEq, Eq)]
enum Watcher {
    Off,
    Starting,
    Runs,
}

impl Units {
    pub fn new(notes: Notes, mutation: Option<Mutation>) -> Self {
        Self {
            mutation,
            wanted: None,
            confirmed: None,
            stale: notes.done.keys().cloned().collect(),
            done: notes.done,
            files: notes.files,
            remembered: notes.schedule,
            seen: BTreeMap::new(),
            errors: BTreeMap::new(),
            busy: BTreeSet::new(),
            starting: BTreeMap::new(),
            failures: BTreeMap::new(),
            reading: BTreeSet::new(),
            asked: false,
            note: notes.fence,
            watcher: Watcher::Off,
            states: States::new(),
        }
    }

    pub fn start(&mut self, ctx: &mut Context<'_>) {
        ctx.after(RESYNC, Timer::Resync);
        ctx.after(PATIENCE, Timer::Patience);
    }

    /// Takes the last known schedule, if the hub was never reached.
    pub fn recall(&mut self) {
        if self.wanted.is_some() {
            return;
        }
        let known = self
            .remembered
            .iter()
            .filter_map(|(unit, (wanted, file))| Some((unit.clone(), (wanted.clone(), file.clone()?))));
        let known: BTreeMap<_, _> = known.collect();
        self.stale.extend(known.keys().cloned());
        for (unit, (_, file)) in &known {
            self.files.entry(unit.clone()).or_insert_with(|| file.clone());
        }
        self.wanted = Some(known.into_iter().map(|(unit, (wanted, _))| (unit, wanted)).collect());
    }

    fn known(&self) -> impl Iterator<Item = &UnitName> {
        self.wanted.iter().flat_map(BTreeMap::keys).chain(self.done.keys())
    }

    pub fn schedule_said(&mut self, delta: Delta, lease: Option<LeaseId>, ctx: &mut Context<'_>) {
        match delta {
            Delta::Lost if self.mutation == Some(Mutation::ForgetsWithoutHub) => {
                self.wanted = Some(BTreeMap::new());
            }
            Delta::Lost => return,
            Delta::Reset(_, items) => {
                let wanted: BTreeMap<_, _> = items.iter().filter_map(read).collect();
                let new = wanted.keys().filter(|unit| !self.seen.contains_key(*unit));
                self.stale.extend(new.cloned());
                (self.wanted, self.confirmed) = (Some(wanted), lease);
            }
            Delta::Changes(events) => {
                let wanted = self.wanted.get_or_insert_default();
                for event in &events {
                    let key = std::str::from_utf8(&event.kv.key).unwrap_or_default();
                    let Some((_, unit)) = keys::machine_and_unit(keys::SCHEDULE, key) else { continue };
                    self.failures.remove(&unit);
                    self.errors.remove(&unit);
                    match event.kind {
                        EventKind::Put => wanted.extend(read(&event.kv)),
                        EventKind::Delete => {
                            wanted.remove(&unit);
                        }
                    }
                }
            }
        }
        self.note_schedule(ctx);
    }

    fn note_schedule(&mut self, ctx: &mut Context<'_>) {
        let (Some(wanted), Some(_)) = (&self.wanted, self.confirmed) else { return };
        let entry = |(unit, wanted): (&UnitName, &Wanted)| {
            let file = self.files.get(unit).filter(|file| file.hash == wanted.hash);
            (unit.clone(), (wanted.clone(), file.cloned()))
        };
        let schedule: Schedule = wanted.iter().map(entry).collect();
        if schedule != self.remembered {
            self.remembered = schedule.clone();
            ctx.out.push(Output::Remember(schedule));
        }
    }

    fn activity(&self, unit: &UnitName) -> Activity {
        let seen = self.seen.get(unit).map_or(Activity::Dead, |state| Activity::from_active_state(state));
        // Until its state was read after a start, "inactive" is from before that.
        if seen == Activity::Dead && self.starting.contains_key(unit) { Activity::Alive } else { seen }
    }

    /// Whether anything runs here that may not outlive the lease.
    pub fn fenced_alive(&self) -> bool {
        self.done.iter().any(|(unit, done)| done.fenced && self.activity(unit) != Activity::Dead)
    }

    fn trust(&self, acknowledged: Option<(LeaseId, Time)>, now: Time) -> Trust {
        let good = |lease| {
            let good = acknowledged.is_some_and(|(of, until)| of == lease && until > now + MARGIN);
            good && self.watcher == Watcher::Runs
        };
        match self.confirmed {
            None => Trust::Remembered,
            Some(lease) if good(lease) => Trust::Leased,
            Some(_) => Trust::Known,
        }
    }

    /// Decides, and asks for what was decided; nothing but states while the machine shuts down.
    pub fn act(&mut self, acknowledged: Option<(LeaseId, Time)>, leaving: bool, ctx: &mut Context<'_>) {
        let trust = self.mind_the_fence(acknowledged, ctx);
        if let Some(wanted) = self.wanted.as_ref().filter(|_| !leaving) {
            let waits = |unit: &UnitName| {
                self.busy.contains(unit)
                    || self.stale.contains(unit)
                    || self.reading.contains(unit)
                    || self.failures.get(unit).is_some_and(|(_, at)| *at > ctx.now)
            };
            let asks = agent::plan(wanted, &self.done, trust, |unit| self.activity(unit), waits);
            self.perform(asks, ctx);
        }
        if !self.asked && !self.stale.is_empty() {
            self.asked = true;
            self.reading = std::mem::take(&mut self.stale);
            ctx.out.push(Output::Systemd(message::Ask::States(self.reading.clone())));
        }
        self.publish();
    }

    /// Keeps the fence's note in step, and counts the order of what the fence has stopped as not carried out.
    fn mind_the_fence(&mut self, acknowledged: Option<(LeaseId, Time)>, ctx: &mut Context<'_>) -> Trust {
        let fenced = self.done.iter().filter(|(_, done)| done.fenced).map(|(unit, _)| unit.clone());
        let units: BTreeSet<_> = fenced.collect();
        let until = acknowledged.map_or(self.note.until, |(_, until)| until);
        if (until, &units) != (self.note.until, &self.note.units) {
            self.note = Note { until, units: units.clone() };
            ctx.out.push(Output::NoteFence(self.note.clone()));
        }
        if self.watcher == Watcher::Off && !units.is_empty() {
            self.watcher = Watcher::Starting;
            ctx.out.push(Output::Arm);
        }
        let trust = self.trust(acknowledged, ctx.now);
        let mut stopped = false;
        for unit in units {
            if self.activity(&unit) == Activity::Dead && ctx.marks.remove(&unit) {
                stopped = true;
                if let Some(done) = self.done.get_mut(&unit) {
                    done.launch = 0;
                }
            }
        }
        if stopped {
            ctx.out.push(Output::Note(self.done.clone()));
        }
        trust
    }

    fn perform(&mut self, asks: BTreeMap<UnitName, Ask>, ctx: &mut Context<'_>) {
        let (mut load, mut here, mut unload) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let mut rested = false;
        for (unit, ask) in asks {
            let wanted = self.wanted.as_ref().and_then(|wanted| wanted.get(&unit));
            self.busy.insert(unit.clone());
            match (ask, wanted) {
                (Ask::Load, Some(wanted)) => match self.files.get(&unit) {
                    Some(file) if file.hash == wanted.hash => {
                        here.insert(unit, file.clone());
                    }
                    _ => {
                        load.insert(unit, wanted.hash.clone());
                    }
                },
                (Ask::Start, Some(wanted)) => {
                    self.starting.insert(unit.clone(), (ctx.now, false));
                    ctx.out.push(Output::Systemd(message::Ask::Start(unit, wanted.launch)));
                }
                (Ask::Stop, _) => {
                    self.starting.remove(&unit);
                    if let Some(state) = self.seen.get_mut(&unit) {
                        "deactivating".clone_into(state);
                    }
                    ctx.out.push(Output::Systemd(message::Ask::Stop(unit)));
                }
                (Ask::Unload, _) => unload.push(unit),
                (Ask::Rest, _) => {
                    self.busy.remove(&unit);
                    if let Some(done) = self.done.get_mut(&unit) {
                        done.rested = true;
                    }
                    rested = true;
                }
                (Ask::Load | Ask::Start, None) => {
                    self.busy.remove(&unit);
                }
            }
        }
        if rested {
            ctx.out.push(Output::Note(self.done.clone()));
        }
        if !here.is_empty() {
            ctx.out.push(Output::Systemd(message::Ask::Load(here)));
        }
        if !load.is_empty() {
            let keys = load.keys().map(keys::unit).collect();
            ctx.call(Purpose::Files(load), Request::Get(keys));
        }
        if !unload.is_empty() {
            ctx.out.push(Output::Systemd(message::Ask::Unload(unload)));
        }
    }

    /// The unit files came, or did not.
    pub fn fetched(
        &mut self,
        units: BTreeMap<UnitName, String>,
        answer: Result<Answer, Failure>,
        ctx: &mut Context<'_>,
    ) {
        let items = match answer {
            Ok(Answer::Listing { items, .. }) => items,
            Ok(_) => Vec::new(),
            Err(error) => {
                for unit in units.into_keys() {
                    self.busy.remove(&unit);
                    self.failed(unit, &error.to_string(), ctx);
                }
                return;
            }
        };
        let record = |kv: &KeyValue| {
            let name: UnitName =
                std::str::from_utf8(&kv.key).ok()?.strip_prefix(keys::UNITS)?.parse().ok()?;
            let record = serde_json::from_slice::<UnitRecord>(&kv.value).ok()?;
            let checked = unit::check(&name, &record.text);
            let fenced = checked.is_ok_and(|unit| unit.requirements.on_partition == OnPartition::Stop);
            Some((name, File { hash: record.hash, fenced }))
        };
        let found: BTreeMap<UnitName, File> = items.iter().filter_map(record).collect();
        let mut load = BTreeMap::new();
        for (unit, hash) in units {
            match found.get(&unit) {
                Some(file) if file.hash == hash => {
                    load.insert(unit, file.clone());
                }
                there => {
                    let problem = if there.is_some() {
                        "its unit file is being replaced"
                    } else {
                        "it is not in the hub"
                    };
                    self.busy.remove(&unit);
                    self.failed(unit, problem, ctx);
                }
            }
        }
        if !load.is_empty() {
            ctx.out.push(Output::Systemd(message::Ask::Load(load)));
        }
    }

    pub fn systemd_said(&mut self, said: Said, ctx: &mut Context<'_>) {
        match said {
            Said::Loaded(outcomes) => {
                for (unit, outcome) in outcomes {
                    self.busy.remove(&unit);
                    self.stale.insert(unit.clone());
                    match outcome {
                        Ok(file) => {
                            self.succeeded(&unit);
                            let (hash, fenced) = (file.hash.clone(), file.fenced);
                            self.files.insert(unit.clone(), file);
                            self.done.insert(unit, Done { hash, fenced, ..Done::default() });
                        }
                        Err(error) => self.failed(unit, &error, ctx),
                    }
                }
                ctx.out.push(Output::Note(self.done.clone()));
                self.note_schedule(ctx);
            }
            Said::Unloaded(units) => {
                for unit in units {
                    self.busy.remove(&unit);
                    self.succeeded(&unit);
                    ctx.marks.remove(&unit);
                    self.done.remove(&unit);
                    self.files.remove(&unit);
                    self.seen.remove(&unit);
                    self.starting.remove(&unit);
                    self.stale.remove(&unit);
                }
                ctx.out.push(Output::Note(self.done.clone()));
            }
            Said::Started(unit, launch, outcome) => {
                self.busy.remove(&unit);
                match outcome {
                    Ok(()) => {
                        self.succeeded(&unit);
                        if self.mutation != Some(Mutation::ForgetsStarts)
                            && let Some(done) = self.done.get_mut(&unit)
                        {
                            (done.launch, done.rested) = (launch, false);
                        }
                        ctx.out.push(Output::Note(self.done.clone()));
                    }
                    Err(error) => {
                        self.starting.remove(&unit);
                        self.stale.insert(unit.clone());
                        self.failed(unit, &error, ctx);
                    }
                }
            }
            Said::Stopped(unit, outcome) => {
                self.busy.remove(&unit);
                match outcome {
                    Ok(()) => self.succeeded(&unit),
                    Err(error) => {
                        self.stale.insert(unit.clone());
                        self.failed(unit, &error, ctx);
                    }
                }
            }
            Said::States(states) => {
                self.asked = false;
                let asked = std::mem::take(&mut self.reading);
                self.starting.retain(|unit, (_, ended)| !(*ended && asked.contains(unit)));
                self.seen.extend(states.into_iter().filter(|(unit, _)| asked.contains(unit)));
            }
            Said::State(unit, active) => {
                if self.known().any(|known| *known == unit) {
                    self.distrust_reading(&unit);
                    self.seen.insert(unit, active);
                }
            }
            Said::Armed => self.watcher = Watcher::Runs,
            Said::JobEnded(unit) => {
                if self.known().any(|known| *known == unit) {
                    if let Some((_, ended)) = self.starting.get_mut(&unit) {
                        *ended = true;
                    }
                    self.distrust_reading(&unit);
                    self.stale.insert(unit);
                }
            }
        }
    }

    /// The answer under way may be older than what systemd just said.
    fn distrust_reading(&mut self, unit: &UnitName) {
        if self.reading.remove(unit) {
            self.stale.insert(unit.clone());
        }
    }

    pub fn resync(&mut self, ctx: &mut Context<'_>) {
        self.stale.extend(self.known().cloned().collect::<Vec<_>>());
        // systemd's word that a job has ended can be lost as well.
        self.starting.values_mut().for_each(|(since, ended)| *ended |= ctx.now - *since >= RESYNC);
        ctx.after(RESYNC, Timer::Resync);
    }

    fn succeeded(&mut self, unit: &UnitName) {
        self.failures.remove(unit);
        self.errors.remove(unit);
    }

    fn failed(&mut self, unit: UnitName, error: &str, ctx: &mut Context<'_>) {
        let count = self.failures.get(&unit).map_or(0, |(count, _)| *count);
        let pause = (BACKOFF.0 * 2_u32.saturating_pow(count)).min(BACKOFF.1);
        self.errors.insert(unit.clone(), error.to_owned());
        self.failures.insert(unit, (count.saturating_add(1), ctx.now + pause));
        ctx.after(pause, Timer::Retry);
    }

    fn publish(&mut self) {
        let mut states = States::new();
        for unit in self.known() {
            if self.stale.contains(unit) || self.reading.contains(unit) {
                if let Some(before) = self.states.get(unit) {
                    states.insert(unit.clone(), before.clone());
                }
                continue;
            }
            let (done, error) = (self.done.get(unit), self.errors.get(unit));
            if done.is_none() && error.is_none() {
                continue;
            }
            let seen = self.seen.get(unit).map_or("inactive", String::as_str);
            let dead = Activity::from_active_state(seen) == Activity::Dead;
            let active = if dead && self.starting.contains_key(unit) { "activating" } else { seen };
            let state = UnitState {
                v: RECORD_VERSION,
                load: if done.is_some() { "loaded" } else { "error" }.to_owned(),
                active: active.to_owned(),
                sub: active.to_owned(),
                hash: done.map(|done| done.hash.clone()).unwrap_or_default(),
                launch: done.map_or(0, |done| done.launch),
                error: error.cloned(),
            };
            states.insert(unit.clone(), state);
        }
        self.states = states;
    }
}

fn read(kv: &KeyValue) -> Option<(UnitName, Wanted)> {
    let (_, unit) = keys::machine_and_unit(keys::SCHEDULE, std::str::from_utf8(&kv.key).ok()?)?;
    Some((unit, Wanted::from(&serde_json::from_slice::<ScheduleRecord>(&kv.value).ok()?)))
}
