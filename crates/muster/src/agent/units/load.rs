//! Unit files into systemd and out of it again: many at once for speed, and one by one where many fail.
//!
//! Not here: when. Invariant: every unit has an outcome of its own, and what fails for one leaves nothing of it
//! behind and holds up no other.

use super::{
    super::{addresses, write_file},
    file::File,
    local,
};
use model::{UnitName, UnitRecord, keys};
use registry::Store;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Display,
    path::{Path, PathBuf},
    sync::Arc,
};
use systemd::{Systemd, SystemdError};

/// What is to be loaded.
pub(super) struct Order {
    /// Which file.
    pub(super) hash: String,
    /// Its text, if this machine knows it.
    pub(super) text: Option<Arc<str>>,
    /// Whether systemd has a file of ours for the unit already.
    pub(super) replaces: bool,
}

type Outcomes<T> = BTreeMap<UnitName, Result<T, String>>;

/// Writes and links the files, enables those that ask for it, and makes systemd read them: once for all of them.
/// `program` is this one; with `drains` registered units are drained before they stop.
pub(super) async fn load(
    store: Store,
    systemd: Systemd,
    directory: PathBuf,
    program: PathBuf,
    drains: bool,
    orders: BTreeMap<UnitName, Order>,
) -> Outcomes<File> {
    let (mut outcomes, mut texts) = (Outcomes::new(), BTreeMap::new());
    let (taken, fresh) = taken(&systemd, &directory, &orders).await;
    let mut missing = BTreeMap::new();
    for (unit, order) in orders {
        if let Some(why) = taken.get(&unit) {
            outcomes.insert(unit, Err(why.clone()));
        } else if let Some(text) = order.text {
            texts.insert(unit, (order.hash, text));
        } else {
            missing.insert(unit, order.hash);
        }
    }
    for (unit, fetched) in fetch(&store, missing).await {
        match fetched {
            Ok(found) => drop(texts.insert(unit, found)),
            Err(error) => drop(outcomes.insert(unit, Err(error))),
        }
    }
    let mut ready = BTreeMap::new();
    for (unit, (hash, text)) in texts {
        let path = directory.join(unit.as_str());
        // The schedule's word counts, so that both agree in any case.
        let file = File { hash, ..File::new(&unit, text) };
        let program = program.to_str().unwrap_or_default();
        let text = if drains { file.for_systemd(program) } else { file.text.to_string() };
        let beside = match file.own_address {
            true => addresses::install(&unit, program),
            false => addresses::remove(&unit),
        };
        match beside.and_then(|()| write_file(&path, &text)) {
            Ok(()) => {
                ready.insert(unit, file);
            }
            Err(error) => drop(outcomes.insert(unit, Err(format!("{}: {error}", path.display())))),
        }
    }
    let units: BTreeSet<_> = ready.keys().cloned().collect();
    let mut failed = each(&systemd, &Batch::Link(&directory), &units).await;
    let install = |unit: &&UnitName| ready.get(*unit).is_some_and(|file: &File| file.install);
    let enable = units.iter().filter(|unit| !failed.contains_key(*unit)).filter(install).cloned().collect();
    let not_enabled = each(&systemd, &Batch::Enable, &enable).await;
    failed.extend(not_enabled.into_iter().map(|(unit, error)| {
        (unit, format!("its [Install] section cannot be carried out: {error} (see `systemctl enable`)"))
    }));
    if !failed.is_empty() {
        let half: BTreeSet<_> = failed.keys().cloned().collect();
        // Whether there was a link at all is not known; what was there is gone, or was never made.
        let _ = each(&systemd, &Batch::Unlink, &half).await;
        for unit in &half {
            let _ = addresses::remove(unit);
            let _ = std::fs::remove_file(directory.join(unit.as_str()));
        }
    }
    let read = if enable.is_empty() && units.is_subset(&fresh) && are_known(&systemd, &units).await {
        Ok(())
    } else {
        systemd.reload().await
    };
    for (unit, file) in ready {
        let outcome = match (failed.remove(&unit), &read) {
            (Some(error), _) => Err(error),
            (None, Err(error)) => Err(error.to_string()),
            (None, Ok(())) => Ok(file),
        };
        outcomes.insert(unit, outcome);
    }
    outcomes
}

/// Whether systemd has read the files of units that it did not know before: it looks for such files by itself, which spares
/// a reload of everything it has. That takes a tenth of a second, most of it for its generators.
async fn are_known(systemd: &Systemd, units: &BTreeSet<UnitName>) -> bool {
    let known = systemd.states(&units.iter().collect::<Vec<_>>()).await;
    known.is_ok_and(|states| {
        units.iter().all(|unit| states.get(unit).is_some_and(|state| state.load == "loaded"))
    })
}

/// Removes the files of units that have stopped, and all links to them.
pub(super) async fn unload(systemd: Systemd, directory: PathBuf, units: BTreeSet<UnitName>) -> Outcomes<()> {
    for unit in &units {
        // A failure that systemd still remembers would keep the unit listed; that is all.
        if let Err(error) = systemd.reset_failed(unit).await {
            tracing::debug!(%unit, %error, "not reset");
        }
    }
    let mut failed = each(&systemd, &Batch::Unlink, &units).await;
    for unit in units.iter().filter(|unit| !failed.contains_key(*unit)).cloned().collect::<Vec<_>>() {
        // Gone already is as good as removed.
        if let Err(error) = std::fs::remove_file(directory.join(unit.as_str()))
            && error.kind() != std::io::ErrorKind::NotFound
        {
            failed.insert(unit, format!("its file is not removed: {error}"));
        } else if let Err(error) = addresses::remove(&unit) {
            failed.insert(unit, format!("its drop-in is not removed: {error}"));
        }
    }
    let read = systemd.reload().await;
    let mut outcome = |unit: &UnitName| match (failed.remove(unit), &read) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(error.to_string()),
        (None, Ok(())) => Ok(()),
    };
    units.iter().map(|unit| (unit.clone(), outcome(unit))).collect()
}

/// What systemd can do for many units at once, and refuses for all of them if one is bad.
enum Batch<'a> {
    /// Link the files in this directory.
    Link(&'a Path),
    Enable,
    Unlink,
}

impl Batch<'_> {
    async fn ask(&self, systemd: &Systemd, units: &[&UnitName]) -> Result<(), SystemdError> {
        match self {
            Self::Link(directory) => {
                let paths: Vec<_> = units.iter().map(|unit| directory.join(unit.as_str())).collect();
                systemd.link(&paths.iter().map(PathBuf::as_path).collect::<Vec<_>>()).await
            }
            Self::Enable => systemd.enable(units).await,
            Self::Unlink => systemd.unlink(units).await,
        }
    }
}

/// Asks for all of `units` at once; if that fails, for each of them. Gives the failures.
async fn each(
    systemd: &Systemd,
    batch: &Batch<'_>,
    units: &BTreeSet<UnitName>,
) -> BTreeMap<UnitName, String> {
    let mut failed = BTreeMap::new();
    if units.is_empty() {
        return failed;
    }
    let all: Vec<_> = units.iter().collect();
    match batch.ask(systemd, &all).await {
        Ok(()) => {}
        Err(error) if all.len() == 1 => drop(failed.insert(all[0].clone(), error.to_string())),
        Err(_) => {
            for unit in all {
                if let Err(error) = batch.ask(systemd, &[unit]).await {
                    failed.insert(unit.clone(), error.to_string());
                }
            }
        }
    }
    failed
}

/// Units whose names belong to something of this machine's own, and why.
async fn taken(
    systemd: &Systemd,
    directory: &Path,
    orders: &BTreeMap<UnitName, Order>,
) -> (BTreeMap<UnitName, String>, BTreeSet<UnitName>) {
    let (mut taken, mut fresh) = (BTreeMap::new(), BTreeSet::new());
    let mut free = Vec::new();
    for (unit, order) in orders {
        match local::find(unit, directory) {
            Some(local) => drop(taken.insert(unit.clone(), local::complaint(&local))),
            None if !order.replaces && !local::linked(unit, directory) => free.push(unit),
            None => {}
        }
    }
    // An instance of the machine's own template has no file of its own, but may run.
    match systemd.states(&free).await {
        Ok(states) => {
            let unknown = states.iter().filter(|(_, state)| state.load == "not-found");
            fresh.extend(unknown.map(|(unit, _)| unit.clone()));
            let runs = |state: &systemd::State| !matches!(state.active.as_str(), "inactive" | "failed");
            taken.extend(states.into_iter().filter(|(_, state)| runs(state)).map(|(unit, _)| {
                (unit, "this machine runs a unit of that name already: see `systemctl status`".to_owned())
            }));
        }
        Err(error) => tracing::warn!(%error, "not looked whether units run here already"),
    }
    (taken, fresh)
}

async fn fetch(store: &Store, units: BTreeMap<UnitName, String>) -> Outcomes<(String, Arc<str>)> {
    if units.is_empty() {
        return Outcomes::new();
    }
    let keys: Vec<_> = units.keys().map(keys::unit).collect();
    let found = match store.get_many(&keys).await {
        Ok(found) => found.items,
        Err(error) => return all_failed(units.into_keys(), &error),
    };
    let mut records: HashMap<String, UnitRecord> =
        found.into_iter().filter_map(|kv| Some((kv.key, serde_json::from_slice(&kv.value).ok()?))).collect();
    let read = |(unit, hash): (UnitName, String)| {
        let fetched = match records.remove(&keys::unit(&unit)) {
            None => Err("its unit file is not in the hub".to_owned()),
            Some(record) if record.hash != hash => Err("its unit file is being replaced".to_owned()),
            Some(record) => Ok((hash, record.text.into())),
        };
        (unit, fetched)
    };
    units.into_iter().map(read).collect()
}

fn all_failed<T>(units: impl IntoIterator<Item = UnitName>, error: &dyn Display) -> Outcomes<T> {
    units.into_iter().map(|unit| (unit, Err(error.to_string()))).collect()
}
