//! The registrar: this machine's registered units, checked, and told to the hub. `core::registrar` decides; this runs
//! the checks, finds the containers, and answers whoever waits for a drain.
//!
//! One task owns all state; what takes time runs beside it. Invariants: nothing that an earlier run of the daemon has
//! registered is removed before it is known what runs here; a drain that is asked for is answered.

/// What the hub should have, on its way there.
mod publish;
/// Who waits for a drain.
mod socket;

pub(crate) use socket::ask;

use super::{Machine, addresses, events::now};
use anyhow::{Context, Result};
use containers::{Engine, naming};
use model::{Health, Instance, LeaseId, MachineId, RouterRecord, ServiceName, UnitName, keys};
use muster_core::registrar::{Activity, Effect, Event, Found, Id, Record};
use registry::{Change, Delta, Store};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};
use systemd::Systemd;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use unit::{Registration, UnitFile};

/// All addresses are looked up anew this often: events can be lost.
const RESYNC: Duration = Duration::from_secs(30);
/// An address that is not there yet is looked for so often at first, and at last.
const LOOK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Drains that wait to be taken in; each is a unit's stop.
const DRAINS: usize = 64;

/// A unit that is registered, as its agent sees it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Local {
    /// What it wants registered.
    pub(super) registrations: Arc<[Registration]>,
    /// Its file.
    pub(super) text: Arc<str>,
    /// What systemd says.
    pub(super) active: String,
    /// In more detail.
    pub(super) sub: String,
}

/// The units that are registered; none as long as it is not known what runs here.
pub(super) type Locals = Option<BTreeMap<UnitName, Local>>;

/// Why units that run are not ready, or that they are; nothing as long as nothing is known.
pub(super) type Readiness = Option<BTreeMap<UnitName, Option<(Health, String)>>>;

pub(super) struct Registrar {
    pub(super) machine: Machine,
    pub(super) store: Store,
    pub(super) systemd: Systemd,
    /// The machine's own address, for units without a container.
    pub(super) address: Ipv4Addr,
    pub(super) units: watch::Receiver<Locals>,
    /// Under which lease this machine is in the cluster.
    pub(super) admitted: watch::Receiver<Option<LeaseId>>,
    /// Told whether nothing is registered here any more.
    pub(super) empty: watch::Sender<bool>,
    /// Told which units are ready.
    pub(super) ready: watch::Sender<Readiness>,
}

/// What came of something that took time.
enum Finished {
    Found(UnitName, Result<Found, String>),
    Checked(Id, u64, Result<(), String>),
}

/// What the task has besides its inputs.
struct State {
    core: muster_core::registrar::Registrar,
    start: Instant,
    tasks: JoinSet<Finished>,
    engine: Engine,
    known: BTreeMap<UnitName, Local>,
    /// Units by their container's name, as far as that was found out.
    containers: HashMap<String, UnitName>,
    finding: BTreeSet<UnitName>,
    /// Units whose address is not there yet: how often it was looked for, and when again.
    missing: BTreeMap<UnitName, (u32, Instant)>,
    waiting: HashMap<UnitName, Vec<oneshot::Sender<()>>>,
    wanted: watch::Sender<Option<(u64, BTreeMap<Id, Record>)>>,
    routers: BTreeMap<MachineId, RouterRecord>,
}

impl Registrar {
    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<()> {
        let (sender, mut drains) = mpsc::channel(DRAINS);
        let mut tasks = JoinSet::new();
        tasks.spawn(socket::serve(sender).context("the drains' socket cannot be made")?);
        let wanted = watch::Sender::new(None);
        let (written, mut told) = watch::channel((0, model::Revision(0)));
        tasks.spawn(publish::publish(self.store.clone(), self.admitted.clone(), wanted.subscribe(), written));
        let engine = Engine::new(&self.machine.config.registrar.container_socket);
        let mut events = engine.events();
        let mut state = State {
            core: muster_core::registrar::Registrar::new(self.machine.id.clone(), self.machine.name.clone()),
            start: Instant::now(),
            tasks: JoinSet::new(),
            engine,
            known: BTreeMap::new(),
            containers: HashMap::new(),
            finding: BTreeSet::new(),
            missing: BTreeMap::new(),
            waiting: HashMap::new(),
            wanted,
            routers: BTreeMap::new(),
        };
        let mut routers = self.store.follow(keys::ROUTERS);
        let mut resync = tokio::time::interval(RESYNC);
        let mut adoption =
            Box::pin(publish::adopt(self.store.clone(), self.admitted.clone(), self.machine.id.clone()));
        let mut adopted = false;
        loop {
            let due = state.core.due().map(|due| state.start + due);
            let missing = state.missing.values().map(|(_, at)| *at).min();
            tokio::select! {
                () = stop.cancelled() => break,
                found = &mut adoption, if !adopted => {
                    adopted = true;
                    if !found.is_empty() {
                        info!(instances = found.len(), "registered by an earlier run");
                    }
                    for (id, meta, upstream) in found {
                        self.step(&mut state, Event::Adopted(Box::new(meta), id, upstream));
                    }
                    self.look(&mut state);
                }
                Ok(()) = self.units.changed() => if adopted { self.look(&mut state) },
                Some(Ok(finished)) = state.tasks.join_next() => self.finished(&mut state, finished),
                Some((unit, alive, answer)) = drains.recv() => {
                    info!(%unit, alive, "drain");
                    state.waiting.entry(unit.clone()).or_default().push(answer);
                    self.step(&mut state, Event::Drain { unit, alive });
                }
                Ok(()) = told.changed() => {
                    let (version, revision) = *told.borrow_and_update();
                    self.step(&mut state, Event::Written(version, revision));
                }
                Some(event) = events.recv() => self.container(&mut state, event),
                Some(delta) = routers.next() => {
                    routers_said(&mut state.routers, delta);
                    let routers = state.routers.clone();
                    self.step(&mut state, Event::Routers(routers));
                }
                _ = resync.tick() => {
                    let active = |(_, local): &(&UnitName, &Local)| activity(local) == Activity::Active;
                    let units: Vec<_> = state.known.iter().filter(active).map(|(unit, _)| unit.clone()).collect();
                    units.into_iter().for_each(|unit| self.find(&mut state, unit));
                }
                () = sleep_until(due), if due.is_some() => self.step(&mut state, Event::Tick),
                () = sleep_until(missing), if missing.is_some() => {
                    let due = state.missing.iter().filter(|(_, (_, at))| *at <= Instant::now());
                    let units: Vec<_> = due.map(|(unit, _)| unit.clone()).collect();
                    for unit in units {
                        if let Some((_, at)) = state.missing.get_mut(&unit) {
                            // Until the answer comes.
                            *at = Instant::now() + RESYNC;
                        }
                        self.find(&mut state, unit);
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes in what has changed about the units.
    fn look(&mut self, state: &mut State) {
        let Some(units) = self.units.borrow_and_update().clone() else { return };
        let before = std::mem::replace(&mut state.known, units.clone());
        for unit in before.keys().filter(|unit| !units.contains_key(*unit)) {
            state.containers.retain(|_, known| known != unit);
            state.missing.remove(unit);
            self.step(state, Event::Gone(unit.clone()));
        }
        for (unit, local) in units {
            if before.get(&unit) == Some(&local) && state.wanted.borrow().is_some() {
                continue;
            }
            let (registrations, activity) = (local.registrations.clone(), activity(&local));
            if activity != Activity::Active {
                state.missing.remove(&unit);
            }
            self.step(state, Event::Unit { unit, registrations, activity, at: now() });
        }
        if state.wanted.borrow().is_none() {
            state.wanted.send_replace(Some(state.core.records()));
            self.tell_readiness(state);
        }
    }

    fn step(&mut self, state: &mut State, event: Event) {
        let mut effects = Vec::new();
        state.core.step(state.start.elapsed(), event, &mut effects);
        for effect in effects {
            match effect {
                Effect::Find(unit) => self.find(state, unit),
                Effect::Check { id, generation, check, address, port, timeout } => {
                    drop(state.tasks.spawn(async move {
                        Finished::Checked(id, generation, checks::run(&check, address, port, timeout).await)
                    }));
                }
                Effect::Drained(unit) => {
                    info!(%unit, "drained");
                    for answer in state.waiting.remove(&unit).into_iter().flatten() {
                        // Whoever waited may have been killed.
                        let _ = answer.send(());
                    }
                }
                Effect::Told { id: (service, instance), health, reason } => {
                    info!(%service, %instance, ?health, reason, "health");
                }
            }
        }
        let version = state.core.version();
        state.wanted.send_if_modified(|wanted| match wanted {
            Some((known, _)) if *known != version => {
                *wanted = Some(state.core.records());
                true
            }
            _ => false,
        });
        let empty = state.core.is_empty();
        self.empty.send_if_modified(|before| std::mem::replace(before, empty) != empty);
        self.tell_readiness(state);
    }

    fn tell_readiness(&self, state: &State) {
        let ready = state.wanted.borrow().is_some().then(|| state.core.readiness());
        self.ready.send_if_modified(|before| {
            let changed = *before != ready;
            *before = ready;
            changed
        });
    }

    fn find(&self, state: &mut State, unit: UnitName) {
        let Some(local) = state.known.get(&unit) else { return };
        if !state.finding.insert(unit.clone()) {
            return;
        }
        let (text, systemd, engine, own) =
            (local.text.clone(), self.systemd.clone(), state.engine.clone(), self.address);
        state.tasks.spawn(async move {
            let found = find(&unit, &text, &systemd, &engine, own).await;
            Finished::Found(unit, found)
        });
    }

    fn finished(&mut self, state: &mut State, finished: Finished) {
        match finished {
            Finished::Checked(id, generation, outcome) => {
                self.step(state, Event::Checked { id, generation, outcome });
            }
            Finished::Found(unit, found) => {
                state.finding.remove(&unit);
                let active = state.known.get(&unit).is_some_and(|local| activity(local) == Activity::Active);
                match &found {
                    Ok(_) => drop(state.missing.remove(&unit)),
                    Err(why) if active => {
                        let count = state.missing.get(&unit).map_or(0, |(count, _)| *count);
                        let pause = (LOOK.0 * 2_u32.saturating_pow(count)).min(LOOK.1);
                        debug!(%unit, why, "no address yet");
                        state.missing.insert(unit.clone(), (count + 1, Instant::now() + pause));
                    }
                    Err(_) => {}
                }
                self.step(state, Event::Found(unit, found));
            }
        }
    }

    fn container(&mut self, state: &mut State, event: containers::Event) {
        match event {
            containers::Event::Begins => {
                let units: Vec<_> = state.known.keys().cloned().collect();
                units.into_iter().for_each(|unit| self.find(state, unit));
            }
            containers::Event::Died { name } => {
                if let Some(unit) = self.unit_of(state, &name) {
                    debug!(%unit, name, "container ended");
                    self.step(state, Event::Found(unit.clone(), Err("its container has ended".to_owned())));
                    // What is being looked at may be the one that has ended.
                    state.missing.insert(unit, (0, Instant::now() + LOOK.0));
                }
            }
            containers::Event::Started { name } | containers::Event::Health { name } => {
                if let Some(unit) = self.unit_of(state, &name) {
                    self.find(state, unit);
                }
            }
        }
    }

    /// The unit whose container has that name.
    fn unit_of(&self, state: &mut State, name: &str) -> Option<UnitName> {
        if let Some(unit) = state.containers.get(name) {
            return Some(unit.clone());
        }
        let owns = |(unit, local): &(&UnitName, &Local)| {
            let candidates =
                UnitFile::parse(&local.text).ok().and_then(|file| naming::candidates(unit, &file));
            candidates.is_some_and(|candidates| candidates.names.iter().any(|known| known == name))
        };
        let unit = state.known.iter().find(owns).map(|(unit, _)| unit.clone())?;
        state.containers.insert(name.to_owned(), unit.clone());
        Some(unit)
    }
}

fn activity(local: &Local) -> Activity {
    Activity::of(&local.active, &local.sub)
}

/// Where a unit's instance is. A unit that runs no container is at the machine's own address.
async fn find(
    unit: &UnitName,
    text: &str,
    systemd: &Systemd,
    engine: &Engine,
    own: Ipv4Addr,
) -> Result<Found, String> {
    let file = UnitFile::parse(text).map_err(|problem| problem.to_string())?;
    let pid = systemd.main_pid(unit).await.ok().flatten();
    if unit::check(unit, text).is_ok_and(|checked| checked.requirements.own_address) {
        let address = addresses::held(unit).ok_or("it has no address of its own yet")?;
        let run = pid.map_or_else(String::new, |pid| pid.to_string());
        return Ok(Found { address, run, unhealthy: None });
    }
    let client = pid.and_then(crate::container::of);
    let mut candidates = naming::candidates(unit, &file);
    if let Some(client) = client {
        candidates.get_or_insert_default().names.insert(0, client.name);
    }
    let Some(candidates) = candidates else {
        let run = pid.map_or_else(String::new, |pid| pid.to_string());
        return Ok(Found { address: own, run, unhealthy: None });
    };
    let mut names = candidates.names;
    if let Some(id) = candidates.cidfile.and_then(|path| std::fs::read_to_string(path).ok()) {
        names.insert(0, id.trim().to_owned());
    }
    if let Ok(Some(id)) = engine.labelled("muster.unit", unit.as_str()).await {
        names.insert(0, id);
    }
    for name in &names {
        let container = match engine.inspect(name).await {
            Ok(Some(container)) => container,
            Ok(None) => continue,
            Err(error) => return Err(format!("{:#}", anyhow::Error::new(error))),
        };
        if !container.running {
            return Err(format!("its container {} does not run", container.name));
        }
        let address = if container.host_network { Some(own) } else { container.address };
        let Some(address) = address else {
            return Err(format!("its container {} has no address", container.name));
        };
        let unhealthy = container.health.as_deref().and_then(|health| match health {
            "unhealthy" => Some("the container's own health check says unhealthy".to_owned()),
            "starting" => Some("the container's own health check has not passed yet".to_owned()),
            _ => None,
        });
        return Ok(Found { address, run: container.id, unhealthy });
    }
    Err(format!("its container is not found: there is none named {}", names.join(", ")))
}

fn routers_said(routers: &mut BTreeMap<MachineId, RouterRecord>, delta: Delta) {
    let read = |kv: &registry::KeyValue| match serde_json::from_slice::<RouterRecord>(&kv.value) {
        Ok(record) => Some((record.machine.clone(), record)),
        Err(error) => {
            warn!(key = kv.key, %error, "router passed over");
            None
        }
    };
    match delta {
        Delta::Lost => {}
        Delta::Reset(listing) => *routers = listing.items.iter().filter_map(read).collect(),
        Delta::Changes(changes) => {
            for change in &changes.changes {
                match change {
                    Change::Put(kv) => routers.extend(read(kv)),
                    Change::Delete { key } => routers.retain(|machine, _| keys::router(machine) != *key),
                }
            }
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// A service and an instance, as people write them.
pub(super) fn named(service: &ServiceName, instance: &Instance) -> String {
    format!("{service}/{instance}")
}
