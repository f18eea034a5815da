//! What the API answers: the hub's records as the wire's types, and orders as transactions on the hub.
//!
//! Invariants: a list is read at one revision; an order is checked as a whole before anything is written. Up to
//! [`CHUNK`] units change in one transaction, and only if nobody changed them meanwhile.

/// Registered services for other programs.
mod discovery;
/// Machines' metadata.
mod metadata;
/// The cluster network, and metrics.
mod network;
/// Maintenance, explanations, moves and events.
mod operations;
/// Updates, and units' history.
mod rollouts;

use super::{Machine, history, metrics::Metrics, overlay::View, run, shell};
use api::{
    ApiError, Place, Service,
    fleet::MetadataChange,
    frames::Frame,
    types::{
        Machine as MachineView, MachineList, MachineMaintenance, Run, Shell, State, Unit, UnitChange,
        UnitChanged, UnitList, UnitOnMachine, UnitsChanged, Watched,
    },
};
use model::{DesiredState, MachineId, MachineRecord, Revision, UnitName, UnitRecord, keys};
use muster_core::{cluster::Cluster, engine::Engine};
use registry::{Change, Delta, Guard, Listing, Store, StoreError, Write};
use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
};
use systemd::Systemd;
use tokio::sync::mpsc;

/// Units in one transaction: each takes a guard and a write, and etcd allows 128 of each.
const CHUNK: usize = 120;
/// Units in one transaction when texts are replaced or their history goes: each takes up to three writes.
const REPLACED: usize = 40;
/// How often an order is tried again when somebody else changes the same units.
const ATTEMPTS: u32 = 5;
/// Changes on their way to a client that watches.
const WATCH_BUFFER: usize = 256;

/// The real service: everything comes from the hub, but for what runs on this very machine.
#[derive(Clone)]
pub(super) struct Hub {
    machine: Machine,
    store: Store,
    systemd: Option<Systemd>,
    networks: Vec<View>,
    metrics: Metrics,
}

impl Hub {
    pub(super) fn new(
        machine: Machine,
        store: Store,
        systemd: Option<Systemd>,
        networks: Vec<View>,
        metrics: Metrics,
    ) -> Self {
        Self { machine, store, systemd, networks, metrics }
    }

    async fn cluster(&self) -> Result<(Cluster, Revision), ApiError> {
        let listing = self.store.list(keys::VIEW).await.map_err(unavailable)?;
        Ok((cluster(&listing), listing.revision))
    }

    /// What `changes` come to on what the hub has now; nothing is written.
    async fn plan(&self, changes: &[UnitChange]) -> Result<(Vec<UnitChanged>, Vec<Guarded>), ApiError> {
        let names = changes.iter().flat_map(|change| [Some(change.name.clone()), change.name.template()]);
        let known = self.known(names).await?;
        let (mut answer, mut planned) = (Vec::new(), Vec::new());
        for change in changes {
            let (changed, write) = plan(change, &known)?;
            answer.push(changed);
            planned.extend(write);
        }
        Ok((answer, planned))
    }

    /// Makes `changes`, few enough for one transaction, as often as somebody else is faster.
    async fn make(&self, changes: &[UnitChange]) -> Result<UnitsChanged, ApiError> {
        for _ in 0..ATTEMPTS {
            let (units, planned) = self.plan(changes).await?;
            let (guards, writes): (Vec<_>, Vec<_>) = planned.into_iter().unzip();
            let writes = writes.concat();
            let outcome = self.store.commit(&guards, &writes).await.map_err(unavailable)?;
            if outcome.committed {
                return Ok(UnitsChanged { revision: outcome.revision, units });
            }
        }
        Err(ApiError::conflict("somebody else keeps changing these units; try again"))
    }

    async fn known(&self, names: impl Iterator<Item = Option<UnitName>>) -> Result<Known, ApiError> {
        let names: BTreeSet<_> = names.flatten().collect();
        let keys: Vec<_> = names.iter().map(keys::unit).collect();
        let found = self.store.get_many(&keys).await.map_err(unavailable)?;
        let read = |kv: registry::KeyValue| {
            let name = kv.key.strip_prefix(keys::UNITS)?.parse().ok()?;
            Some((name, (serde_json::from_slice(&kv.value).ok()?, kv.mod_revision)))
        };
        let units = found.items.into_iter().filter_map(read).collect();
        Ok(Known { units, revision: found.revision })
    }
}

/// Units as they were at a revision, each with when it was written.
struct Known {
    units: HashMap<UnitName, (UnitRecord, Revision)>,
    revision: Revision,
}

/// Writes of one unit, and on what they depend.
type Guarded = (Guard, Vec<Write>);

/// Turns a change into a guarded write; no write where nothing changes.
fn plan(change: &UnitChange, known: &Known) -> Result<(UnitChanged, Option<Guarded>), ApiError> {
    let name = &change.name;
    let key = keys::unit(name);
    let current = known.units.get(name);
    let mut warnings = Vec::new();
    let mut record = match (current, &change.text) {
        (Some((record, _)), None) => record.clone(),
        (Some((record, _)), Some(text)) => {
            let checked = check(name, text)?;
            let hash = checked.file.hash();
            if hash == record.hash {
                record.clone()
            } else if change.replace {
                warnings = render(name, &checked.warnings);
                record.replaced(text.clone(), hash)
            } else {
                warnings.push(format!(
                    "unit {name} in the cluster differs from the file given; add --replace to override it"
                ));
                record.clone()
            }
        }
        (None, text) => {
            let template = name.template().and_then(|template| known.units.get(&template));
            let text =
                text.as_ref().or_else(|| template.map(|(record, _)| &record.text)).ok_or_else(|| {
                    ApiError::not_found(format!(
                        "unable to find unit {name}: neither in the cluster nor as a file here"
                    ))
                })?;
            let checked = check(name, text)?;
            warnings = render(name, &checked.warnings);
            UnitRecord::new(text.clone(), checked.file.hash()).counted_from(known.revision)
        }
    };
    let before = current.map_or(DesiredState::Inactive, |(record, _)| record.desired);
    if let Some(desired) = change.desired {
        if name.is_template() && desired != DesiredState::Inactive {
            return Err(ApiError::bad_request(format!("cannot activate template \"{name}\"")));
        }
        record.desired = desired;
        if desired == DesiredState::Launched {
            record.launch += 1;
        }
    }
    let changed = UnitChanged {
        name: name.clone(),
        created: current.is_none(),
        before,
        desired: record.desired,
        warnings,
    };
    if current.is_some_and(|(current, _)| *current == record) {
        return Ok((changed, None));
    }
    let guard = match current {
        Some((_, revision)) => Guard::Unchanged(key.clone(), *revision),
        None => Guard::Absent(key.clone()),
    };
    let value = serde_json::to_vec(&record).expect("records always render");
    let mut writes = vec![Write::put(key, value)];
    if let Some((former, _)) = current.filter(|(former, _)| former.version != record.version) {
        writes.extend(history::keep(name, former, ""));
    }
    Ok((changed, Some((guard, writes))))
}

fn check(name: &UnitName, text: &str) -> Result<unit::Checked, ApiError> {
    unit::check(name, text).map_err(|problem| ApiError::bad_request(problem.render(name.as_str())))
}

fn render(name: &UnitName, warnings: &[unit::Problem]) -> Vec<String> {
    warnings.iter().map(|warning| warning.render(name.as_str())).collect()
}

impl Service for Hub {
    async fn machines(&self) -> Result<MachineList, ApiError> {
        let (cluster, revision) = self.cluster().await?;
        let machine = |(id, record): (&MachineId, &MachineRecord)| MachineView {
            id: id.clone(),
            name: record.name.clone(),
            address: record.address,
            subnet: record.subnet,
            metadata: cluster.metadata_of(id),
            version: record.version.clone(),
            maintenance: cluster.maintenance.get(id).map(|record| MachineMaintenance {
                state: record.state,
                since: record.since,
                by: record.by.clone(),
                reason: record.reason.clone(),
            }),
        };
        Ok(MachineList { revision, machines: cluster.machines.iter().map(machine).collect() })
    }

    async fn units(&self) -> Result<UnitList, ApiError> {
        let (cluster, revision) = self.cluster().await?;
        let engine = OnceCell::new();
        let units = cluster.units.keys().filter_map(|name| view(&cluster, name, &engine)).collect();
        Ok(UnitList { revision, units })
    }

    /// Reads what concerns this unit only: fleetctl asks for each of its units four times a second.
    async fn unit(&self, unit: &UnitName) -> Result<Option<Unit>, ApiError> {
        let machines = self.store.list(keys::MACHINES).await.map_err(unavailable)?;
        let ids: Vec<MachineId> = machines
            .items
            .iter()
            .filter_map(|kv| kv.key.strip_prefix(keys::MACHINES)?.parse().ok())
            .collect();
        let on = ids.iter().flat_map(|id| [keys::schedule(id, unit), keys::state(id, unit)]);
        let wanted: Vec<_> = on.chain([keys::unit(unit)]).collect();
        let found = self.store.get_many(&wanted).await.map_err(unavailable)?;
        let items = found.items.into_iter().chain(machines.items).collect();
        Ok(brief(&cluster(&Listing { revision: machines.revision, items }), unit))
    }

    async fn change_metadata(&self, changes: Vec<MetadataChange>) -> Result<(), ApiError> {
        self.write_metadata(changes).await
    }

    async fn change(&self, changes: Vec<UnitChange>) -> Result<UnitsChanged, ApiError> {
        let mut seen = BTreeSet::new();
        if let Some(twice) = changes.iter().find(|change| !seen.insert(&change.name)) {
            return Err(ApiError::bad_request(format!("unit {} is given twice", twice.name)));
        }
        // A mistake in the last of them must not come up after the first was written.
        self.plan(&changes).await?;
        let mut changed = UnitsChanged { revision: Revision(0), units: Vec::new() };
        let replaces = changes.iter().any(|change| change.replace);
        for chunk in changes.chunks(if replaces { REPLACED } else { CHUNK }) {
            let made = self.make(chunk).await?;
            changed.revision = made.revision;
            changed.units.extend(made.units);
        }
        Ok(changed)
    }

    async fn destroy(&self, units: Vec<UnitName>) -> Result<UnitsChanged, ApiError> {
        let units: BTreeSet<_> = units.into_iter().collect();
        let known = self.known(units.iter().cloned().map(Some)).await?;
        if let Some(unknown) = units.iter().find(|unit| !known.units.contains_key(*unit)) {
            return Err(ApiError::not_found(format!("unit {unknown} does not exist")));
        }
        let units: Vec<_> = units.into_iter().collect();
        let mut revision = Revision(0);
        let rolled = self.known_rollouts().await?;
        let forget = |unit: &UnitName| {
            let mut writes = vec![Write::Delete(keys::unit(unit))];
            writes.extend(rolled.contains_key(unit).then(|| Write::Delete(keys::rollout(unit))));
            if known.units.get(unit).is_some_and(|(record, _)| record.version > 1) {
                writes.push(Write::DeletePrefix(keys::history_of(unit)));
            }
            writes
        };
        let plain = units.iter().all(|unit| forget(unit).len() == 1);
        for chunk in units.chunks(if plain { CHUNK } else { REPLACED }) {
            let writes: Vec<_> = chunk.iter().flat_map(forget).collect();
            revision = self.store.commit(&[], &writes).await.map_err(unavailable)?.revision;
        }
        let gone = |name: UnitName| {
            let before = known.units.get(&name).map_or(DesiredState::Inactive, |(record, _)| record.desired);
            UnitChanged {
                name,
                created: false,
                before,
                desired: DesiredState::Inactive,
                warnings: Vec::new(),
            }
        };
        Ok(UnitsChanged { revision, units: units.into_iter().map(gone).collect() })
    }

    async fn watch(&self, units: Vec<UnitName>) -> Result<mpsc::Receiver<Watched>, ApiError> {
        // Asked first, so that a hub that is away is an error and not a silence.
        let (first, _) = self.cluster().await?;
        let (sender, receiver) = mpsc::channel(WATCH_BUFFER);
        tokio::spawn(watch(self.store.clone(), units, first, sender));
        Ok(receiver)
    }

    async fn locate(&self, unit: &UnitName) -> Result<Place, ApiError> {
        let (cluster, _) = self.cluster().await?;
        if !cluster.units.contains_key(unit) {
            return Err(ApiError::not_found(format!("unit {unit} does not exist")));
        }
        let Some(scheduled) = cluster.schedule.get(unit) else {
            return Err(ApiError::conflict(format!(
                "unit {unit} does not appear to be loaded on any machine"
            )));
        };
        if scheduled.contains_key(&self.machine.id) {
            return Ok(Place::Here);
        }
        let mut reachable = scheduled.keys().filter_map(|id| cluster.machines.get(id)).peekable();
        if reachable.peek().is_none() {
            return Err(ApiError::unavailable(format!(
                "{unit} is on a machine that is gone just now; try again"
            )));
        }
        let mut addresses =
            reachable.filter_map(|record| Some(SocketAddr::new(record.address.into(), record.api_port?)));
        addresses.next().map(Place::There).ok_or_else(|| {
            ApiError::unavailable(format!(
                "{unit} is on a machine whose API does not listen on the network; set [api] listen there"
            ))
        })
    }

    async fn place(&self, machine: &MachineId) -> Result<Place, ApiError> {
        if *machine == self.machine.id {
            return Ok(Place::Here);
        }
        let found = self.store.get_many(&[keys::machine(machine)]).await.map_err(unavailable)?;
        let Some(record) = found.items.first() else {
            return Err(ApiError::not_found(format!("machine {machine} is not present")));
        };
        let record: MachineRecord = serde_json::from_slice(&record.value)
            .map_err(|error| ApiError::unavailable(format!("machine {machine} cannot be read: {error}")))?;
        let port = record.api_port.ok_or_else(|| {
            ApiError::unavailable(format!(
                "the API of {} does not listen on the network; set [api] listen there",
                record.name
            ))
        })?;
        Ok(Place::There(SocketAddr::new(record.address.into(), port)))
    }

    async fn shell(
        &self,
        what: Shell,
        input: mpsc::Receiver<Frame>,
    ) -> Result<mpsc::Receiver<Frame>, ApiError> {
        shell::start(what, input)
    }

    async fn run(&self, unit: UnitName, run: Run) -> Result<mpsc::Receiver<Frame>, ApiError> {
        match &self.systemd {
            Some(systemd) => run::start(systemd, &unit, run).await,
            None => Err(ApiError::conflict("this machine runs no units ([agent] enabled = false)")),
        }
    }
}

/// Sends each unit as it is, then again at every change.
async fn watch(store: Store, units: Vec<UnitName>, first: Cluster, sender: mpsc::Sender<Watched>) {
    let mut told: HashMap<UnitName, Watched> = HashMap::new();
    let mut current = first;
    let mut follow = store.follow(keys::VIEW);
    loop {
        let watched = |name: &UnitName, engine: &OnceCell<Engine>| Watched {
            name: name.clone(),
            unit: view(&current, name, engine),
            leftover: leftover(&current, name),
        };
        let seen: Vec<_> = {
            let engine = OnceCell::new();
            units.iter().map(|name| watched(name, &engine)).collect()
        };
        for watched in seen {
            let name = &watched.name;
            if told.get(name) != Some(&watched) {
                told.insert(name.clone(), watched.clone());
                if sender.send(watched).await.is_err() {
                    return;
                }
            }
        }
        let delta = tokio::select! {
            delta = follow.next() => delta,
            () = sender.closed() => return,
        };
        match delta {
            None => return,
            Some(Delta::Lost) => {}
            Some(Delta::Reset(listing)) => current = cluster(&listing),
            Some(Delta::Changes(changes)) => {
                for change in &changes.changes {
                    match change {
                        Change::Put(kv) => current.put(&kv.key, &kv.value, kv.mod_revision),
                        Change::Delete { key } => current.delete(key),
                    };
                }
            }
        }
    }
}

fn cluster(listing: &Listing) -> Cluster {
    Cluster::from_listing(listing.items.iter().map(|kv| (kv.key.as_str(), &*kv.value, kv.mod_revision)))
}

/// `engine` is made when the first unit waits: only then somebody has to say why.
fn view(cluster: &Cluster, name: &UnitName, engine: &OnceCell<Engine>) -> Option<Unit> {
    let mut unit = brief(cluster, name)?;
    let placed = cluster.schedule.contains_key(name);
    if unit.desired != DesiredState::Inactive && !placed && !unit.global {
        let refusals = engine.get_or_init(|| Engine::of(cluster)).refusals(name);
        let refused = refusals.into_iter().map(|(id, refusal)| {
            let machine = cluster.machines.get(&id);
            (machine.map_or_else(|| id.to_string(), |machine| machine.name.clone()), refusal.to_string())
        });
        unit.refused = refused.collect();
    }
    Some(unit)
}

/// A unit without what machines have against it.
fn brief(cluster: &Cluster, name: &UnitName) -> Option<Unit> {
    let unit = cluster.units.get(name)?;
    let (schedule, states) = (cluster.schedule.get(name), cluster.states.get(name));
    let on: BTreeSet<_> = schedule
        .into_iter()
        .flat_map(BTreeMap::keys)
        .chain(states.into_iter().flat_map(BTreeMap::keys))
        .collect();
    let mut machines: Vec<_> = on
        .into_iter()
        .map(|id| {
            let machine = cluster.machines.get(id);
            let scheduled = schedule.and_then(|schedule| schedule.get(id));
            let state = states.and_then(|states| states.get(id)).map(|state| State {
                load: state.load.clone(),
                active: state.active.clone(),
                sub: state.sub.clone(),
                hash: state.hash.clone(),
                launch: state.launch,
                error: state.error.clone(),
            });
            UnitOnMachine {
                id: id.clone(),
                name: machine.map(|machine| machine.name.clone()).unwrap_or_default(),
                address: machine.map(|machine| machine.address),
                scheduled: scheduled.is_some(),
                why: scheduled.map(|record| record.why.clone()).unwrap_or_default(),
                state,
            }
        })
        .collect();
    // Where it is to run comes first; where it only still stops, behind.
    machines.sort_by_key(|on| !on.scheduled);
    Some(Unit {
        name: name.clone(),
        hash: unit.record.hash.clone(),
        text: unit.record.text.clone(),
        desired: unit.record.desired,
        launch: unit.record.launch,
        global: unit.is_global(),
        machines,
        refused: BTreeMap::new(),
    })
}

/// Names of machines that still have a unit which is no longer known.
fn leftover(cluster: &Cluster, name: &UnitName) -> Vec<String> {
    if cluster.units.contains_key(name) {
        return Vec::new();
    }
    let machines = cluster.states.get(name).into_iter().flat_map(BTreeMap::keys);
    machines.map(|id| cluster.machines.get(id).map_or_else(|| id.to_string(), |m| m.name.clone())).collect()
}

fn unavailable(error: StoreError) -> ApiError {
    ApiError::unavailable(error)
}
