//! The machine's share of the schedule, carried out: `core::agent` decides what to ask of systemd, this asks.
//!
//! One task owns all state; what takes time (the hub, D-Bus) runs beside it and comes back as an event, so that one
//! slow unit holds up no other. Invariants: nothing is stopped or removed before the schedule was read from the
//! hub; while the hub is away the last schedule stands.

/// A unit file, and what it says that concerns the agent.
mod file;
/// Jobs of systemd's that are under way.
mod jobs;
/// Unit files into systemd and out of it.
mod load;
/// Units that are the machine's own.
mod local;
/// What is written down.
mod notes;
/// What the hub is told.
mod report;

use super::{
    Machine, addresses,
    fence::{self, Fence},
    identity,
    registrar::{Locals, Readiness},
    states::{self, Report},
};
use crate::config::RUN_DIR;
use anyhow::{Context, Result, bail};
use file::File;
use jobs::Jobs;
use load::Order;
use model::{LeaseId, ScheduleRecord, UnitName, keys};
use muster_core::agent::{self, Activity, Ask, Done, Trust, Wanted};
use notes::{Files, Notes, Schedule};
use registry::{Acknowledged, Change, Delta, Follow, Store};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    time::Duration,
};
use systemd::{Event, State, Systemd, SystemdError};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// All states are read anew this often, because signals can be lost.
const RESYNC: Duration = Duration::from_secs(60);
/// After a failed ask: the first and the longest pause before it is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// A process that cannot be run, or that finds its configuration bad, ends within this time. So long a start of a unit
/// that systemd calls active at once is not called so by us.
const SETTLING: Duration = Duration::from_millis(50);
/// So long the hub may take to answer a daemon that has just begun, before the last known schedule is taken.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the task is told from outside.
pub(super) struct Inputs {
    /// Under which lease this machine is in the cluster.
    pub(super) admitted: watch::Receiver<Option<LeaseId>>,
    /// The session's lease: `None` as long as the hub was never reached.
    pub(super) lease: watch::Receiver<Option<LeaseId>>,
    /// Until when it is good.
    pub(super) acknowledged: watch::Receiver<Option<Acknowledged>>,
    /// The machine shuts down.
    pub(super) leaving: watch::Receiver<bool>,
    /// Which registered units are ready.
    pub(super) ready: watch::Receiver<Readiness>,
    /// Told what is registered here.
    pub(super) locals: watch::Sender<Locals>,
    /// Told when nothing is started here any more and the hub has all states that came of it.
    pub(super) quiet: watch::Sender<bool>,
}

pub(super) struct Units {
    machine: Machine,
    store: Store,
    systemd: Systemd,
    /// Where unit files are.
    directory: PathBuf,
    /// This program.
    program: PathBuf,
    notes: Notes,
    /// The schedule, once it was read.
    wanted: Option<BTreeMap<UnitName, Wanted>>,
    /// Under which lease it was read; `None` for one that is only remembered.
    confirmed: Option<LeaseId>,
    /// The last known schedule, on its way to the disk.
    remember: watch::Sender<Option<Schedule>>,
    done: BTreeMap<UnitName, Done>,
    /// The files in `done`.
    files: Files,
    /// Units in `done` whose names a unit of the machine's own has taken since.
    clashes: BTreeMap<UnitName, PathBuf>,
    /// systemd's states of units in `wanted` or `done`.
    seen: BTreeMap<UnitName, State>,
    errors: BTreeMap<UnitName, String>,
    busy: BTreeSet<UnitName>,
    jobs: Jobs,
    /// Units that were just started, and until when it is looked whether they stay.
    settling: BTreeMap<UnitName, Instant>,
    /// Failed asks: how many in a row, and not before when the next.
    failures: BTreeMap<UnitName, (u32, Instant)>,
    /// Units whose state must be read, and those being read whose answer will be the newest.
    stale: BTreeSet<UnitName>,
    reading: BTreeSet<UnitName>,
    /// An answer is awaited, even if nothing in it is wanted any more: a second question would get the first's answer.
    asked: bool,
    /// After a failed reading: not before then.
    read_again: Option<Instant>,
    tasks: JoinSet<Finished>,
    /// The hub is not this machine's, and that was said.
    doubted: bool,
    reports: watch::Sender<Report>,
    fence: Fence,
    /// Whether a fenced unit is alive here.
    fenced: watch::Sender<bool>,
    inputs: Inputs,
}

/// What came of something that took time.
enum Finished {
    Loaded(BTreeMap<UnitName, Result<File, String>>),
    Unloaded(BTreeMap<UnitName, Result<(), String>>),
    Started(UnitName, u64, Result<u32, SystemdError>),
    Stopped(UnitName, Result<u32, SystemdError>),
    Read(Result<HashMap<UnitName, State>, SystemdError>),
    Armed(Result<(), String>),
}

impl Units {
    pub(super) fn new(machine: Machine, store: Store, systemd: Systemd, inputs: Inputs) -> Result<Self> {
        let directory = Path::new(RUN_DIR).join("units");
        std::fs::create_dir_all(&directory)?;
        let program = std::env::current_exe().context("cannot find the running program")?;
        let notes = Notes::new(Path::new(RUN_DIR));
        let remembered = Schedule::remembered(&identity::own().unwrap_or_default());
        let (done, files) = notes.recover(&directory, &remembered);
        notes.write(&done);
        if !done.is_empty() {
            info!(units = done.len(), "units of an earlier run found");
        }
        Ok(Self {
            machine,
            store,
            systemd,
            directory,
            program,
            notes,
            wanted: None,
            confirmed: None,
            remember: watch::Sender::new(None),
            stale: done.keys().cloned().collect(),
            done,
            files,
            clashes: BTreeMap::new(),
            seen: BTreeMap::new(),
            errors: BTreeMap::new(),
            busy: BTreeSet::new(),
            jobs: Jobs::default(),
            settling: BTreeMap::new(),
            failures: BTreeMap::new(),
            reading: BTreeSet::new(),
            asked: false,
            read_again: None,
            tasks: JoinSet::new(),
            doubted: false,
            reports: watch::Sender::new(Report::default()),
            fence: Fence::new(inputs.acknowledged.clone()),
            fenced: watch::Sender::new(false),
            inputs,
        })
    }

    /// Whether a unit with `OnPartition=stop` is alive here.
    pub(super) fn fenced(&self) -> watch::Receiver<bool> {
        self.fenced.subscribe()
    }

    /// Runs until `stop`. Units go on running afterwards.
    pub(super) async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        stop: CancellationToken,
    ) -> Result<()> {
        // Both end with this task.
        let mut writers = JoinSet::new();
        let (machine, store) = (self.machine.clone(), self.store.clone());
        let (admitted, quiet) = (self.inputs.admitted.clone(), self.inputs.quiet.clone());
        writers.spawn(states::publish(machine, store, admitted, self.reports.subscribe(), quiet));
        writers.spawn(notes::remember(self.remember.subscribe()));
        let mut schedule: Option<(Follow, LeaseId)> = None;
        let mut resync = tokio::time::interval(RESYNC);
        let patience = Instant::now() + PATIENCE;
        loop {
            // Everything that is there already is one decision.
            while let Some(finished) = self.tasks.try_join_next() {
                self.finished(finished?);
            }
            while let Ok(event) = events.try_recv() {
                self.systemd_said(event);
            }
            // Only a machine that is in the cluster has a share of the schedule. Under a new lease all is asked
            // anew: the engine may have taken this machine for lost meanwhile.
            let admitted = *self.inputs.admitted.borrow_and_update();
            if schedule.as_ref().map(|(_, lease)| *lease) != admitted {
                let follow = |lease| (self.store.follow(keys::schedule_of(&self.machine.id)), lease);
                schedule = admitted.map(follow);
            }
            // One time for all of a turn: what falls due while it acts is due in the next one, and wakes it.
            let now = Instant::now();
            let forlorn = self.wanted.is_none() && self.inputs.lease.borrow().is_none();
            if forlorn && now >= patience {
                self.recall();
            }
            self.settling.retain(|_, at| *at > now);
            self.act();
            let later = |at: &Instant| *at > now;
            let retries = self.failures.values().map(|(_, at)| *at).chain(self.fence.retry());
            let retries = retries
                .chain(self.settling.values().copied())
                .chain(self.read_again)
                .chain(forlorn.then_some(patience));
            let retry = retries.filter(later).min();
            tokio::select! {
                () = stop.cancelled() => break,
                delta = next(&mut schedule) => match delta {
                    Some((delta, lease)) => if !self.schedule_said(delta, lease).await {
                        tokio::time::sleep(BACKOFF.0).await;
                        schedule = None;
                    },
                    None => break,
                },
                event = events.recv() => match event {
                    Some(event) => self.systemd_said(event),
                    None => bail!("the connection to systemd was lost"),
                },
                Some(finished) = self.tasks.join_next() => self.finished(finished?),
                _ = resync.tick() => {
                    self.stale.extend(self.known().cloned().collect::<Vec<_>>());
                    self.jobs.give_up(RESYNC);
                    self.look_for_clashes();
                }
                () = sleep_until(retry), if retry.is_some() => {}
                () = self.fence.news() => {}
                Ok(()) = self.inputs.admitted.changed() => {}
                Ok(()) = self.inputs.leaving.changed() => {}
                Ok(()) = self.inputs.ready.changed() => {}
            }
        }
        Ok(())
    }

    /// Takes the last known schedule, because the hub is away.
    fn recall(&mut self) {
        let cluster = identity::own().unwrap_or_default();
        let (wanted, files) = Schedule::remembered(&cluster).wanted();
        info!(units = wanted.len(), "the hub is away: going by the last known schedule");
        for (unit, file) in files {
            self.files.entry(unit).or_insert(file);
        }
        self.stale.extend(wanted.keys().cloned());
        self.wanted = Some(wanted);
    }

    fn known(&self) -> impl Iterator<Item = &UnitName> {
        let wanted = self.wanted.iter().flat_map(BTreeMap::keys);
        wanted.chain(self.done.keys())
    }

    /// False when the hub's word cannot be taken: it must be asked anew.
    async fn schedule_said(&mut self, delta: Delta, lease: LeaseId) -> bool {
        let read = |kv: &registry::KeyValue| {
            let (_, unit) = keys::machine_and_unit(keys::SCHEDULE, &kv.key)?;
            match serde_json::from_slice::<ScheduleRecord>(&kv.value) {
                Ok(record) => Some((unit, Wanted::from(&record))),
                Err(error) => {
                    warn!(%unit, %error, "unreadable schedule entry left alone");
                    None
                }
            }
        };
        match delta {
            Delta::Lost => {}
            Delta::Reset(listing) => {
                match identity::confirm(&self.store).await {
                    Ok(()) => self.doubted = false,
                    Err(error) => {
                        if !std::mem::replace(&mut self.doubted, true) {
                            error!(
                                error = format!("{:#}", anyhow::Error::new(error)),
                                "schedule not followed"
                            );
                        }
                        return false;
                    }
                }
                let known = self.wanted.take().unwrap_or_default();
                // An entry that cannot be read leaves its unit as it was.
                let entry = |kv: &registry::KeyValue| {
                    read(kv).or_else(|| {
                        let (_, unit) = keys::machine_and_unit(keys::SCHEDULE, &kv.key)?;
                        known.get(&unit).cloned().map(|wanted| (unit, wanted))
                    })
                };
                let wanted: BTreeMap<_, _> = listing.items.iter().filter_map(entry).collect();
                self.stale.extend(wanted.keys().filter(|unit| !self.seen.contains_key(*unit)).cloned());
                self.wanted = Some(wanted);
                self.confirmed = Some(lease);
            }
            Delta::Changes(changes) => {
                let wanted = self.wanted.get_or_insert_default();
                for change in &changes.changes {
                    match change {
                        Change::Put(kv) => {
                            if let Some((unit, entry)) = read(kv) {
                                // A new order deserves a new try at once.
                                self.failures.remove(&unit);
                                self.errors.remove(&unit);
                                wanted.insert(unit, entry);
                            }
                        }
                        Change::Delete { key } => {
                            if let Some((_, unit)) = keys::machine_and_unit(keys::SCHEDULE, key) {
                                self.failures.remove(&unit);
                                self.errors.remove(&unit);
                                wanted.remove(&unit);
                            }
                        }
                    }
                }
            }
        }
        self.note_schedule();
        true
    }

    /// Has the schedule written down, with the files as far as they are here.
    fn note_schedule(&self) {
        if let (Some(wanted), Some(_), Some(cluster)) = (&self.wanted, self.confirmed, identity::own()) {
            let schedule = Schedule::new(cluster, wanted, &self.files);
            self.remember.send_if_modified(|known| {
                let changed = known.as_ref() != Some(&schedule);
                *known = Some(schedule);
                changed
            });
        }
    }

    fn systemd_said(&mut self, event: Event) {
        let ours = |units: &Self, unit: &UnitName| units.known().any(|known| known == unit);
        match event {
            Event::State { unit, load, active, sub } if ours(self, &unit) => {
                // It may be older than what was read last, so it is asked, and not taken over.
                let same = |word: Option<String>, seen: &str| word.is_none_or(|word| word == seen);
                let known = self.seen.get(&unit).is_some_and(|seen| {
                    same(load, &seen.load) && same(active, &seen.active) && same(sub, &seen.sub)
                });
                if self.reading.remove(&unit) || !known {
                    self.stale.insert(unit);
                }
            }
            Event::Job { id, unit, result } if ours(self, &unit) => {
                match result.as_str() {
                    "dependency" => {
                        let own = self.files.get(&unit).is_some_and(|file| file.own_address);
                        let text = match addresses::failure(&unit).filter(|_| own) {
                            Some(why) => format!("it gets no address of its own: {why}"),
                            None => "a unit that it requires did not start (Requires=, BindsTo=)".to_owned(),
                        };
                        self.errors.insert(unit.clone(), text);
                    }
                    "timeout" => {
                        self.errors
                            .insert(unit.clone(), "its job waited too long in systemd's queue".to_owned());
                    }
                    "done" => {
                        self.errors.remove(&unit);
                    }
                    _ => {}
                }
                if self.jobs.ended(&unit, id) && self.files.get(&unit).is_some_and(|file| file.hasty) {
                    self.settling.insert(unit.clone(), Instant::now() + SETTLING);
                }
                // The answer under way may be from before.
                self.reading.remove(&unit);
                self.stale.insert(unit);
            }
            Event::Gone { unit } if ours(self, &unit) => {
                self.stale.insert(unit);
            }
            Event::Reloaded => self.look_for_clashes(),
            _ => {}
        }
    }

    fn activity(&self, unit: &UnitName) -> Activity {
        // A unit of the machine's own under that name is not ours to stop.
        let seen = self.seen.get(unit).filter(|_| !self.clashes.contains_key(unit));
        let seen = seen.map_or(Activity::Dead, |state| Activity::from_active_state(&state.active));
        self.jobs.activity(unit, seen)
    }

    /// Units whose names the machine's owner has taken since they were loaded.
    fn look_for_clashes(&mut self) {
        let find = |unit: &UnitName| Some((unit.clone(), local::find(unit, &self.directory)?));
        let clashes: BTreeMap<_, _> = self.done.keys().filter_map(find).collect();
        for (unit, local) in clashes.iter().filter(|(unit, _)| !self.clashes.contains_key(*unit)) {
            warn!(%unit, local = %local.display(), "the machine has a unit of that name now: it is left alone");
        }
        self.clashes = clashes;
    }

    /// Decides, and asks for what was decided.
    fn act(&mut self) {
        self.mind_the_fence();
        // While the machine shuts down, systemd stops everything by itself.
        if let Some(wanted) = self.wanted.as_ref().filter(|_| !*self.inputs.leaving.borrow()) {
            let now = Instant::now();
            let waits = |unit: &UnitName| {
                self.busy.contains(unit)
                    || self.stale.contains(unit)
                    || self.reading.contains(unit)
                    || (self.clashes.contains_key(unit) && wanted.contains_key(unit))
                    || self.failures.get(unit).is_some_and(|(_, at)| *at > now)
            };
            let asks = agent::plan(wanted, &self.done, self.trust(), |unit| self.activity(unit), waits);
            self.perform(asks);
        }
        let may_read = self.read_again.is_none_or(|at| at <= Instant::now());
        if !self.asked && !self.stale.is_empty() && may_read {
            (self.read_again, self.asked) = (None, true);
            self.reading = std::mem::take(&mut self.stale);
            let (systemd, units) = (self.systemd.clone(), self.reading.clone());
            self.tasks.spawn(async move {
                Finished::Read(systemd.states(&units.iter().collect::<Vec<_>>()).await)
            });
        }
        self.publish();
    }

    fn trust(&self) -> Trust {
        match self.confirmed {
            None => Trust::Remembered,
            Some(lease) if self.fence.leased(Some(lease)) => Trust::Leased,
            Some(_) => Trust::Known,
        }
    }

    /// Keeps the fence's note in step. The order of what the fence has stopped counts as not carried out from the first
    /// time on that the hub is told of it: it may start here again, as soon as the lease is good.
    fn mind_the_fence(&mut self) {
        let fenced = self.done.iter().filter(|(_, done)| done.fenced);
        let fenced: BTreeSet<_> = fenced.map(|(unit, _)| unit.clone()).collect();
        if self.fence.update(&fenced) {
            let arm = Fence::arm(self.systemd.clone());
            self.tasks.spawn(async move { Finished::Armed(arm.await) });
        }
        let alive = fenced.iter().any(|unit| self.activity(unit) != Activity::Dead);
        self.fenced.send_if_modified(|before| std::mem::replace(before, alive) != alive);
        let dead = fenced.into_iter().filter(|unit| self.activity(unit) == Activity::Dead);
        let stopped: Vec<_> = dead.filter(fence::was_stopped).collect();
        for unit in &stopped {
            if let Some(done) = self.done.get_mut(unit) {
                info!(%unit, "was stopped by the fence: its order counts as not carried out");
                done.launch = 0;
            }
        }
        if !stopped.is_empty() {
            self.notes.write(&self.done);
        }
    }

    fn perform(&mut self, asks: BTreeMap<UnitName, Ask>) {
        let (mut load, mut unload) = (BTreeMap::new(), BTreeSet::new());
        let mut rested = false;
        for (unit, ask) in asks {
            let wanted = self.wanted.as_ref().and_then(|wanted| wanted.get(&unit));
            self.busy.insert(unit.clone());
            match (ask, wanted) {
                (Ask::Load, Some(wanted)) => {
                    let hash = wanted.hash.clone();
                    let file = self.files.get(&unit).filter(|file| file.hash == hash);
                    let text = file.map(|file| file.text.clone());
                    let replaces = self.done.contains_key(&unit);
                    load.insert(unit, Order { hash, text, replaces });
                }
                (Ask::Start, Some(wanted)) => {
                    let launch = wanted.launch;
                    self.jobs.start(&unit);
                    info!(%unit, "start");
                    let systemd = self.systemd.clone();
                    self.tasks.spawn(async move {
                        let outcome = systemd.start(&unit).await;
                        Finished::Started(unit, launch, outcome)
                    });
                }
                (Ask::Stop, wanted) => {
                    // Wanted again before it has stopped, it is to be started again.
                    if let (None, Some(done)) = (wanted, self.done.get_mut(&unit)) {
                        done.launch = 0;
                        rested = true;
                    }
                    self.jobs.stop(&unit);
                    info!(%unit, "stop");
                    let systemd = self.systemd.clone();
                    self.tasks.spawn(async move {
                        let outcome = systemd.stop(&unit).await;
                        Finished::Stopped(unit, outcome)
                    });
                }
                (Ask::Unload, _) => drop(unload.insert(unit)),
                (Ask::Rest, _) => {
                    self.busy.remove(&unit);
                    if let Some(done) = self.done.get_mut(&unit) {
                        done.rested = true;
                    }
                    rested = true;
                }
                // `core::agent` asks these only of wanted units.
                (Ask::Load | Ask::Start, None) => {
                    self.busy.remove(&unit);
                }
            }
        }
        if rested {
            self.notes.write(&self.done);
        }
        if !load.is_empty() {
            info!(units = load.len(), "load");
            let (store, systemd, directory) =
                (self.store.clone(), self.systemd.clone(), self.directory.clone());
            let program = self.program.clone();
            let drains = self.machine.config.registrar.enabled;
            let task = load::load(store, systemd, directory, program, drains, load);
            self.tasks.spawn(async move { Finished::Loaded(task.await) });
        }
        if !unload.is_empty() {
            info!(units = unload.len(), "unload");
            let task = load::unload(self.systemd.clone(), self.directory.clone(), unload);
            self.tasks.spawn(async move { Finished::Unloaded(task.await) });
        }
    }

    fn finished(&mut self, finished: Finished) {
        match finished {
            Finished::Loaded(outcomes) => {
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
                        Err(error) => self.failed(unit, &error),
                    }
                }
                self.notes.write(&self.done);
                self.note_schedule();
            }
            Finished::Unloaded(outcomes) => {
                for (unit, outcome) in outcomes {
                    self.busy.remove(&unit);
                    match outcome {
                        Ok(()) => {
                            self.succeeded(&unit);
                            fence::was_stopped(&unit);
                            self.done.remove(&unit);
                            self.files.remove(&unit);
                            self.clashes.remove(&unit);
                            self.seen.remove(&unit);
                            self.jobs.forget(&unit);
                            self.stale.remove(&unit);
                        }
                        Err(error) => self.failed(unit, &error),
                    }
                }
                self.notes.write(&self.done);
            }
            Finished::Started(unit, launch, outcome) => {
                self.busy.remove(&unit);
                match outcome {
                    Ok(job) => {
                        self.succeeded(&unit);
                        if let Some(done) = self.done.get_mut(&unit) {
                            (done.launch, done.rested) = (launch, false);
                        }
                        self.notes.write(&self.done);
                        if self.jobs.queued(&unit, job) {
                            self.stale.insert(unit);
                        }
                    }
                    Err(error) => {
                        self.jobs.forget(&unit);
                        self.stale.insert(unit.clone());
                        self.failed(unit, &error.to_string());
                    }
                }
            }
            Finished::Stopped(unit, outcome) => {
                self.busy.remove(&unit);
                match outcome {
                    Ok(job) => {
                        self.succeeded(&unit);
                        self.jobs.queued(&unit, job);
                        self.stale.insert(unit);
                    }
                    Err(error) => {
                        self.jobs.forget(&unit);
                        self.stale.insert(unit.clone());
                        self.failed(unit, &error.to_string());
                    }
                }
            }
            Finished::Armed(outcome) => self.fence.armed(outcome),
            Finished::Read(outcome) => {
                self.asked = false;
                let asked = std::mem::take(&mut self.reading);
                match outcome {
                    Ok(mut states) => {
                        self.jobs.read(&asked);
                        let states = asked.into_iter().filter_map(|unit| {
                            let state = states.remove(&unit)?;
                            Some((unit, state))
                        });
                        self.seen.extend(states);
                    }
                    Err(error) => {
                        warn!(%error, "states not read");
                        self.stale.extend(asked);
                        self.read_again = Some(Instant::now() + BACKOFF.0);
                    }
                }
            }
        }
    }

    fn succeeded(&mut self, unit: &UnitName) {
        self.failures.remove(unit);
        self.errors.remove(unit);
    }

    fn failed(&mut self, unit: UnitName, error: &str) {
        warn!(%unit, error, "failed, trying again later");
        let (count, _) = self.failures.get(&unit).copied().unwrap_or_else(|| (0, Instant::now()));
        let pause = (BACKOFF.0 * 2_u32.saturating_pow(count)).min(BACKOFF.1);
        self.errors.insert(unit.clone(), error.to_owned());
        self.failures.insert(unit, (count.saturating_add(1), Instant::now() + pause));
    }
}

/// The next of the schedule that is followed; for ever when none is.
async fn next(schedule: &mut Option<(Follow, LeaseId)>) -> Option<(Delta, LeaseId)> {
    match schedule {
        Some((follow, lease)) => Some((follow.next().await?, *lease)),
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
