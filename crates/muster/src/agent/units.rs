//! The machine's share of the schedule, carried out: `core::agent` decides what to ask of systemd, this asks.
//!
//! One task owns all state; what takes time (the hub, D-Bus) runs beside it and comes back as an event, so that one
//! slow unit holds up no other. Invariants: nothing is stopped or removed before the schedule was read from the
//! hub; while the hub is away the last schedule stands.

use super::{
    Machine, identity,
    states::{self, States},
    write_file,
};
use crate::config::RUN_DIR;
use anyhow::{Result, bail};
use model::{LeaseId, RECORD_VERSION, ScheduleRecord, UnitName, UnitRecord, UnitState, keys};
use muster_core::agent::{self, Activity, Ask, Done, Wanted};
use registry::{Change, Delta, Store};
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
/// Where a local unit of the same name would be.
const LOCAL: [&str; 4] = [
    "/etc/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

pub(super) struct Units {
    machine: Machine,
    store: Store,
    systemd: Systemd,
    /// Where unit files are.
    directory: PathBuf,
    /// Where `done` is kept.
    notes: PathBuf,
    /// The schedule, once it was read.
    wanted: Option<BTreeMap<UnitName, Wanted>>,
    done: BTreeMap<UnitName, Done>,
    /// systemd's states of units in `wanted` or `done`.
    seen: BTreeMap<UnitName, State>,
    errors: BTreeMap<UnitName, String>,
    busy: BTreeSet<UnitName>,
    /// Units that were asked to start, and whether the job has ended. Until their state was read after that, an
    /// "inactive" is from before the start.
    starting: BTreeMap<UnitName, bool>,
    /// Failed asks: how many in a row, and not before when the next.
    failures: BTreeMap<UnitName, (u32, Instant)>,
    /// Units whose state must be read, and those being read.
    stale: BTreeSet<UnitName>,
    reading: BTreeSet<UnitName>,
    tasks: JoinSet<Finished>,
    /// The hub is not this machine's, and that was said.
    doubted: bool,
    states: watch::Sender<States>,
    lease: watch::Receiver<Option<LeaseId>>,
}

/// What came of something that took time.
enum Finished {
    Loaded(BTreeMap<UnitName, Result<String, String>>),
    Unloaded(BTreeMap<UnitName, Result<(), String>>),
    Started(UnitName, u64, Result<(), SystemdError>),
    Stopped(UnitName, Result<(), SystemdError>),
    Read(Result<HashMap<UnitName, State>, SystemdError>),
}

impl Units {
    pub(super) fn new(
        machine: Machine,
        store: Store,
        systemd: Systemd,
        lease: watch::Receiver<Option<LeaseId>>,
    ) -> Result<Self> {
        let directory = Path::new(RUN_DIR).join("units");
        std::fs::create_dir_all(&directory)?;
        let notes = Path::new(RUN_DIR).join("units.json");
        let done = recover(&directory, &notes);
        if !done.is_empty() {
            info!(units = done.len(), "units of an earlier run found");
        }
        let (states, _) = watch::channel(States::new());
        Ok(Self {
            machine,
            store,
            systemd,
            directory,
            notes,
            wanted: None,
            stale: done.keys().cloned().collect(),
            done,
            seen: BTreeMap::new(),
            errors: BTreeMap::new(),
            busy: BTreeSet::new(),
            starting: BTreeMap::new(),
            failures: BTreeMap::new(),
            reading: BTreeSet::new(),
            tasks: JoinSet::new(),
            doubted: false,
            states,
            lease,
        })
    }

    /// Runs until `stop`. Units go on running afterwards.
    pub(super) async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        stop: CancellationToken,
    ) -> Result<()> {
        let publisher = states::publish(
            self.machine.clone(),
            self.store.clone(),
            self.lease.clone(),
            self.states.subscribe(),
        );
        let publisher = tokio::spawn(publisher);
        let mut schedule = self.store.follow(keys::schedule_of(&self.machine.id));
        let mut resync = tokio::time::interval(RESYNC);
        loop {
            // Everything that is there already is one decision.
            while let Some(finished) = self.tasks.try_join_next() {
                self.finished(finished?);
            }
            while let Ok(event) = events.try_recv() {
                self.systemd_said(event);
            }
            self.act();
            let retry = self.failures.values().map(|(_, at)| *at).filter(|at| *at > Instant::now()).min();
            tokio::select! {
                () = stop.cancelled() => break,
                delta = schedule.next() => match delta {
                    Some(delta) => if !self.schedule_said(delta).await {
                        tokio::time::sleep(BACKOFF.0).await;
                        schedule = self.store.follow(keys::schedule_of(&self.machine.id));
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
                    self.starting.values_mut().for_each(|ended| *ended = true);
                }
                () = sleep_until(retry), if retry.is_some() => {}
            }
        }
        publisher.abort();
        Ok(())
    }

    fn known(&self) -> impl Iterator<Item = &UnitName> {
        let wanted = self.wanted.iter().flat_map(BTreeMap::keys);
        wanted.chain(self.done.keys())
    }

    /// False when the hub's word cannot be taken: it must be asked anew.
    async fn schedule_said(&mut self, delta: Delta) -> bool {
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
                                wanted.remove(&unit);
                            }
                        }
                    }
                }
            }
        }
        true
    }

    fn systemd_said(&mut self, event: Event) {
        let ours = |units: &Self, unit: &UnitName| units.known().any(|known| known == unit);
        match event {
            Event::State { unit, load, active, sub } if ours(self, &unit) => {
                self.distrust_reading(&unit);
                let state = self.seen.entry(unit).or_insert_with(|| State {
                    load: "loaded".to_owned(),
                    active: "inactive".to_owned(),
                    sub: "dead".to_owned(),
                });
                state.load = load.unwrap_or_else(|| state.load.clone());
                state.active = active.unwrap_or_else(|| state.active.clone());
                state.sub = sub.unwrap_or_else(|| state.sub.clone());
            }
            Event::Job { unit, result } if ours(self, &unit) => {
                match result.as_str() {
                    "dependency" => {
                        let text = "a unit that it requires did not start (Requires=, BindsTo=)";
                        self.errors.insert(unit.clone(), text.to_owned());
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
                if let Some(ended) = self.starting.get_mut(&unit) {
                    *ended = true;
                }
                self.distrust_reading(&unit);
                self.stale.insert(unit);
            }
            Event::Gone { unit } if ours(self, &unit) => {
                self.stale.insert(unit);
            }
            _ => {}
        }
    }

    /// The answer under way may be older than what systemd just said.
    fn distrust_reading(&mut self, unit: &UnitName) {
        if self.reading.remove(unit) {
            self.stale.insert(unit.clone());
        }
    }

    /// Decides, and asks for what was decided.
    fn act(&mut self) {
        if let Some(wanted) = &self.wanted {
            let now = Instant::now();
            let activity = |unit: &UnitName| {
                self.seen.get(unit).map_or(Activity::Dead, |state| Activity::from_active_state(&state.active))
            };
            let waits = |unit: &UnitName| {
                self.busy.contains(unit)
                    || self.stale.contains(unit)
                    || self.reading.contains(unit)
                    || self.failures.get(unit).is_some_and(|(_, at)| *at > now)
            };
            let asks = agent::plan(wanted, &self.done, activity, waits);
            self.perform(asks);
        }
        if self.reading.is_empty() && !self.stale.is_empty() {
            self.reading = std::mem::take(&mut self.stale);
            let (systemd, units) = (self.systemd.clone(), self.reading.clone());
            self.tasks.spawn(async move {
                Finished::Read(systemd.states(&units.iter().collect::<Vec<_>>()).await)
            });
        }
        self.publish();
    }

    fn perform(&mut self, asks: BTreeMap<UnitName, Ask>) {
        let (mut load, mut unload) = (BTreeMap::new(), Vec::new());
        for (unit, ask) in asks {
            let wanted = self.wanted.as_ref().and_then(|wanted| wanted.get(&unit));
            self.busy.insert(unit.clone());
            match (ask, wanted) {
                (Ask::Load, Some(wanted)) => {
                    load.insert(unit, wanted.hash.clone());
                }
                (Ask::Start, Some(wanted)) => {
                    let launch = wanted.launch;
                    self.starting.insert(unit.clone(), false);
                    info!(%unit, "start");
                    let systemd = self.systemd.clone();
                    self.tasks.spawn(async move {
                        let outcome = systemd.start(&unit).await;
                        Finished::Started(unit, launch, outcome)
                    });
                }
                (Ask::Stop, _) => {
                    // Until systemd says so itself, so that it is not asked twice.
                    if let Some(state) = self.seen.get_mut(&unit) {
                        state.active = "deactivating".to_owned();
                    }
                    info!(%unit, "stop");
                    let systemd = self.systemd.clone();
                    self.tasks.spawn(async move {
                        let outcome = systemd.stop(&unit).await;
                        Finished::Stopped(unit, outcome)
                    });
                }
                (Ask::Unload, _) => unload.push(unit),
                // `core::agent` asks these only of wanted units.
                (Ask::Load | Ask::Start, None) => {
                    self.busy.remove(&unit);
                }
            }
        }
        if !load.is_empty() {
            info!(units = load.len(), "load");
            let task = load_units(self.store.clone(), self.systemd.clone(), self.directory.clone(), load);
            self.tasks.spawn(async move { Finished::Loaded(task.await) });
        }
        if !unload.is_empty() {
            info!(units = unload.len(), "unload");
            let task = unload_units(self.systemd.clone(), self.directory.clone(), unload);
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
                        Ok(hash) => {
                            self.succeeded(&unit);
                            self.done.insert(unit, Done { hash, launch: 0 });
                        }
                        Err(error) => self.failed(unit, &error),
                    }
                }
                self.note();
            }
            Finished::Unloaded(outcomes) => {
                for (unit, outcome) in outcomes {
                    self.busy.remove(&unit);
                    match outcome {
                        Ok(()) => {
                            self.succeeded(&unit);
                            self.done.remove(&unit);
                            self.seen.remove(&unit);
                            self.starting.remove(&unit);
                            self.stale.remove(&unit);
                        }
                        Err(error) => self.failed(unit, &error),
                    }
                }
                self.note();
            }
            Finished::Started(unit, launch, outcome) => {
                self.busy.remove(&unit);
                match outcome {
                    Ok(()) => {
                        self.succeeded(&unit);
                        if let Some(done) = self.done.get_mut(&unit) {
                            done.launch = launch;
                        }
                        self.note();
                    }
                    Err(error) => {
                        self.starting.remove(&unit);
                        self.stale.insert(unit.clone());
                        self.failed(unit, &error.to_string());
                    }
                }
            }
            Finished::Stopped(unit, outcome) => {
                self.busy.remove(&unit);
                match outcome {
                    Ok(()) => self.succeeded(&unit),
                    Err(error) => {
                        self.stale.insert(unit.clone());
                        self.failed(unit, &error.to_string());
                    }
                }
            }
            Finished::Read(outcome) => {
                let asked = std::mem::take(&mut self.reading);
                match outcome {
                    Ok(mut states) => {
                        self.starting.retain(|unit, ended| !(*ended && asked.contains(unit)));
                        let states = asked.into_iter().filter_map(|unit| {
                            let state = states.remove(&unit)?;
                            Some((unit, state))
                        });
                        self.seen.extend(states);
                    }
                    Err(error) => {
                        warn!(%error, "states not read");
                        self.stale = asked;
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

    /// Keeps `done` for the next run of this daemon.
    fn note(&self) {
        let text = serde_json::to_string(&self.done).expect("names and numbers always render");
        if let Err(error) = write_file(&self.notes, &text) {
            warn!(%error, "what was done is not noted: a restarted daemon may start ended units again");
        }
    }

    fn publish(&self) {
        let state = |unit: &UnitName| {
            let (done, seen, error) = (self.done.get(unit), self.seen.get(unit), self.errors.get(unit));
            if done.is_none() && error.is_none() {
                return None;
            }
            let word = |word: fn(&State) -> &String, otherwise: &str| {
                seen.map_or_else(|| otherwise.to_owned(), |state| word(state).clone())
            };
            let dead = seen.is_none_or(|state| Activity::from_active_state(&state.active) == Activity::Dead);
            let active = if dead && self.starting.contains_key(unit) {
                "activating".to_owned()
            } else {
                word(|s| &s.active, "inactive")
            };
            Some((
                unit.clone(),
                UnitState {
                    v: RECORD_VERSION,
                    load: if done.is_some() { word(|s| &s.load, "loaded") } else { "error".to_owned() },
                    active,
                    sub: word(|s| &s.sub, "dead"),
                    hash: done.map(|done| done.hash.clone()).unwrap_or_default(),
                    launch: done.map_or(0, |done| done.launch),
                    error: error.cloned(),
                },
            ))
        };
        // What was loaded and not looked at yet has no state worth telling.
        let told = |unit: &&UnitName| !self.stale.contains(*unit) && !self.reading.contains(*unit);
        let mut states: States = self.known().filter(told).filter_map(state).collect();
        self.states.send_if_modified(|current| {
            for unit in self.stale.iter().chain(&self.reading) {
                if let Some(before) = current.get(unit) {
                    states.insert(unit.clone(), before.clone());
                }
            }
            let changed = *current != states;
            *current = states;
            changed
        });
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What an earlier run did: from its notes, or where they are lost from the files themselves.
fn recover(directory: &Path, notes: &Path) -> BTreeMap<UnitName, Done> {
    let noted = std::fs::read_to_string(notes).ok();
    let noted: Option<BTreeMap<UnitName, Done>> = noted.and_then(|text| serde_json::from_str(&text).ok());
    let mut done = noted.unwrap_or_default();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let Some(unit) = entry.file_name().to_str().and_then(|name| name.parse::<UnitName>().ok()) else {
            continue;
        };
        let Ok(text) = std::fs::read_to_string(entry.path()) else { continue };
        let hash = unit::UnitFile::parse(&text).map(|file| file.hash()).unwrap_or_default();
        done.entry(unit).or_insert(Done { hash, launch: 0 });
    }
    done
}

/// Fetches, writes and links the files, then makes systemd read them: once for all of them.
async fn load_units(
    store: Store,
    systemd: Systemd,
    directory: PathBuf,
    units: BTreeMap<UnitName, String>,
) -> BTreeMap<UnitName, Result<String, String>> {
    let keys: Vec<_> = units.keys().map(keys::unit).collect();
    let found = match store.get_many(&keys).await {
        Ok(found) => found,
        Err(error) => return all_failed(units.into_keys(), &error),
    };
    let mut records: HashMap<String, UnitRecord> =
        found.into_iter().filter_map(|kv| Some((kv.key, serde_json::from_slice(&kv.value).ok()?))).collect();
    let mut outcomes = BTreeMap::new();
    let mut paths = Vec::new();
    for (unit, hash) in units {
        let path = directory.join(unit.as_str());
        let outcome = match records.remove(&keys::unit(&unit)) {
            None => Err("its unit file is not in the hub".to_owned()),
            Some(record) if record.hash != hash => Err("its unit file is being replaced".to_owned()),
            Some(record) => match local_unit(&unit) {
                Some(local) => {
                    Err(format!("this machine has a unit of that name already: {}", local.display()))
                }
                None => {
                    write_file(&path, &record.text).map_err(|error| format!("{}: {error}", path.display()))
                }
            },
        };
        if outcome.is_ok() {
            paths.push(path);
        }
        outcomes.insert(unit, outcome.map(|()| hash));
    }
    if paths.is_empty() {
        return outcomes;
    }
    let linked = async {
        systemd.link(&paths.iter().map(PathBuf::as_path).collect::<Vec<_>>()).await?;
        systemd.reload().await
    };
    if let Err(error) = linked.await {
        for outcome in outcomes.values_mut().filter(|outcome| outcome.is_ok()) {
            *outcome = Err(error.to_string());
        }
    }
    outcomes
}

/// A unit that the machine's owner or its packages put there.
fn local_unit(unit: &UnitName) -> Option<PathBuf> {
    LOCAL.iter().map(|directory| Path::new(directory).join(unit.as_str())).find(|path| path.exists())
}

async fn unload_units(
    systemd: Systemd,
    directory: PathBuf,
    units: Vec<UnitName>,
) -> BTreeMap<UnitName, Result<(), String>> {
    let unlinked = async {
        for unit in &units {
            systemd.reset_failed(unit).await?;
        }
        systemd.unlink(&units.iter().collect::<Vec<_>>()).await?;
        for unit in &units {
            // Gone already is as good as removed.
            let _ = std::fs::remove_file(directory.join(unit.as_str()));
        }
        systemd.reload().await
    };
    match unlinked.await {
        Ok(()) => units.into_iter().map(|unit| (unit, Ok(()))).collect(),
        Err(error) => all_failed(units, &error),
    }
}

fn all_failed<T>(
    units: impl IntoIterator<Item = UnitName>,
    error: &dyn std::fmt::Display,
) -> BTreeMap<UnitName, Result<T, String>> {
    units.into_iter().map(|unit| (unit, Err(error.to_string()))).collect()
}
