//! Updates as clients order and see them: a rollout is a record, which the leader carries out; and units' history.
//!
//! Nothing is decided here but whether an order can be taken. Invariant: no unit is in two rollouts that are under way.

use super::{ATTEMPTS, Hub, check, unavailable};
use crate::agent::events;
use api::{
    ApiError,
    rollouts::{Command, History, Rollout, RolloutCommand, RolloutList, RolloutOrder, Rollouts, Version},
};
use model::{
    HistoryRecord, RECORD_VERSION, Revision, RolloutRecord, RolloutState, RolloutUnit, UnitName, keys,
};
use muster_core::rollout;
use registry::{Change, Delta, Guard, KeyValue, Write};
use std::collections::BTreeMap;
use tokio::sync::mpsc;

/// Changes on their way to a client that watches.
const WATCH_BUFFER: usize = 64;

pub(super) type Known = BTreeMap<UnitName, (RolloutRecord, Revision)>;

impl Hub {
    pub(super) async fn known_rollouts(&self) -> Result<Known, ApiError> {
        let listing = self.store.list(keys::ROLLOUTS).await.map_err(unavailable)?;
        Ok(listing
            .items
            .iter()
            .filter_map(|kv| read(kv).map(|(name, r)| (name, (r, kv.mod_revision))))
            .collect())
    }

    /// The text that is ordered: given, or one of the former ones.
    async fn text(&self, order: &RolloutOrder) -> Result<String, ApiError> {
        let name = &order.name;
        if let Some(text) = &order.text {
            return Ok(text.clone());
        }
        let mut versions = self.history(name.clone()).await?.versions;
        let current = versions.pop();
        let found = match order.version {
            None => versions.pop(),
            Some(number) if current.is_some_and(|current| current.number == number) => {
                return Err(ApiError::bad_request(format!("unit {name} has version {number} already")));
            }
            Some(number) => versions.into_iter().find(|version| version.number == number),
        };
        found.map(|version| version.text).ok_or_else(|| {
            let what =
                order.version.map_or_else(|| "no former text".to_owned(), |n| format!("no version {n}"));
            ApiError::not_found(format!("unit {name} has {what} (see `muster history {name}`)"))
        })
    }

    /// Writes a rollout if nobody did meanwhile.
    async fn write_rollout(
        &self,
        name: &UnitName,
        record: &RolloutRecord,
        before: Option<Revision>,
    ) -> Result<bool, ApiError> {
        let key = keys::rollout(name);
        let guard = match before {
            Some(revision) => Guard::Unchanged(key.clone(), revision),
            None => Guard::Absent(key.clone()),
        };
        let value = serde_json::to_vec(record).expect("records always render");
        let outcome = self.store.commit(&[guard], &[Write::put(key, value)]).await.map_err(unavailable)?;
        Ok(outcome.committed)
    }
}

impl Rollouts for Hub {
    async fn history(&self, unit: UnitName) -> Result<History, ApiError> {
        let known = self.known([Some(unit.clone())].into_iter()).await?;
        let Some((record, _)) = known.units.get(&unit) else {
            return Err(ApiError::not_found(format!("unit {unit} does not exist")));
        };
        let listing = self.store.list(&keys::history_of(&unit)).await.map_err(unavailable)?;
        let former = listing.items.iter().filter_map(|kv| {
            let (_, number) = keys::unit_and_version(&kv.key)?;
            let entry: HistoryRecord = serde_json::from_slice(&kv.value).ok()?;
            let (hash, text, by) = (entry.hash, entry.text, entry.by);
            Some(Version { number, hash, text, replaced: Some(entry.at), by })
        });
        let current = Version {
            number: record.version,
            hash: record.hash.clone(),
            text: record.text.clone(),
            replaced: None,
            by: String::new(),
        };
        // One that was replaced between the two readings is not told twice.
        let mut versions: Vec<_> = former.filter(|version| version.number < current.number).collect();
        versions.sort_by_key(|version| version.number);
        versions.push(current);
        Ok(History { unit, versions })
    }

    async fn rollouts(&self) -> Result<RolloutList, ApiError> {
        let known = self.known_rollouts().await?;
        let rollouts = known.into_iter().map(|(name, (record, _))| Rollout::of(name, &record));
        Ok(RolloutList { rollouts: rollouts.collect() })
    }

    async fn roll(&self, order: RolloutOrder) -> Result<Rollout, ApiError> {
        let name = order.name.clone();
        if order.at_once == 0 {
            return Err(ApiError::bad_request("at least one unit must be replaced at a time"));
        }
        let text = self.text(&order).await?;
        let checked = check(&name, &text)?;
        for _ in 0..ATTEMPTS {
            let known = self.known_rollouts().await?;
            if let Some(other) =
                known.iter().find(|(other, (r, _))| r.state.is_active() && meet(other, &name))
            {
                let other = other.0;
                return Err(ApiError::conflict(format!(
                    "an update of {other} is under way (see `muster rollouts`; `muster rollout abort {other}` ends it)"
                )));
            }
            let (cluster, _) = self.cluster().await?;
            let units = rollout::units_of(&cluster, &name);
            if !cluster.units.contains_key(&name) && (units.is_empty() || !name.is_template()) {
                return Err(ApiError::not_found(format!(
                    "unit {name} does not exist; there is nothing to update (`muster submit`, `muster start`)"
                )));
            }
            let record = RolloutRecord {
                v: RECORD_VERSION,
                text: text.clone(),
                hash: checked.file.hash(),
                at_once: order.at_once,
                ready_timeout: order.ready_timeout,
                settle: order.settle,
                rollback: order.rollback,
                state: RolloutState::Running,
                units: units.into_iter().map(RolloutUnit::new).collect(),
                former: BTreeMap::new(),
                message: String::new(),
                by: order.by.clone(),
                at: events::now(),
                unknown: Default::default(),
            };
            let before = known.get(&name).map(|(_, revision)| *revision);
            if self.write_rollout(&name, &record, before).await? {
                return Ok(Rollout::of(name, &record));
            }
        }
        Err(ApiError::conflict("somebody else keeps updating this unit; try again"))
    }

    async fn direct(&self, name: UnitName, order: RolloutCommand) -> Result<Rollout, ApiError> {
        for _ in 0..ATTEMPTS {
            let mut known = self.known_rollouts().await?;
            let Some((mut record, revision)) = known.remove(&name) else {
                return Err(ApiError::not_found(format!("unit {name} was never updated")));
            };
            record.state = match (order.command, record.state) {
                (Command::Pause, RolloutState::Running | RolloutState::Paused) => RolloutState::Paused,
                (Command::Resume, RolloutState::Running | RolloutState::Paused) => RolloutState::Running,
                (Command::Abort, RolloutState::Running | RolloutState::Paused) => {
                    record.message = format!("given up by {}", order.by);
                    RolloutState::RollingBack
                }
                (_, state) => {
                    return Err(ApiError::conflict(format!("the update of {name} is {state} already")));
                }
            };
            if self.write_rollout(&name, &record, Some(revision)).await? {
                return Ok(Rollout::of(name, &record));
            }
        }
        Err(ApiError::conflict("the update goes on too fast; try again"))
    }

    async fn watch_rollout(&self, name: UnitName) -> Result<mpsc::Receiver<Rollout>, ApiError> {
        // Asked first, so that a hub that is away is an error and not a silence.
        if !self.known_rollouts().await?.contains_key(&name) {
            return Err(ApiError::not_found(format!("unit {name} was never updated")));
        }
        let (sender, receiver) = mpsc::channel(WATCH_BUFFER);
        let mut follow = self.store.follow(keys::ROLLOUTS);
        tokio::spawn(async move {
            let mut told: Option<Rollout> = None;
            loop {
                let delta = tokio::select! {
                    delta = follow.next() => delta,
                    () = sender.closed() => return,
                };
                let news: Vec<KeyValue> = match delta {
                    None => return,
                    Some(Delta::Lost) => continue,
                    Some(Delta::Reset(listing)) => listing.items,
                    Some(Delta::Changes(changes)) => {
                        let put = |change| match change {
                            Change::Put(kv) => Some(kv),
                            Change::Delete { .. } => None,
                        };
                        changes.changes.into_iter().filter_map(put).collect()
                    }
                };
                for (_, record) in news.iter().filter_map(read).filter(|(other, _)| *other == name) {
                    let rollout = Rollout::of(name.clone(), &record);
                    if told.as_ref() == Some(&rollout) {
                        continue;
                    }
                    let over = !rollout.state.is_active();
                    told = Some(rollout.clone());
                    if sender.send(rollout).await.is_err() || over {
                        return;
                    }
                }
            }
        });
        Ok(receiver)
    }
}

/// Whether rollouts of these would write to the same units.
fn meet(one: &UnitName, other: &UnitName) -> bool {
    one == other || one.template().as_ref() == Some(other) || other.template().as_ref() == Some(one)
}

fn read(kv: &KeyValue) -> Option<(UnitName, RolloutRecord)> {
    let name = kv.key.strip_prefix(keys::ROLLOUTS)?.parse().ok()?;
    Some((name, serde_json::from_slice(&kv.value).ok()?))
}
