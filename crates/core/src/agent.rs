//! The agent: what to ask of systemd so that this machine runs its share of the schedule, and nothing else.
//!
//! Level-triggered: each decision follows from what is wanted, what was carried out, and what systemd says now;
//! it is made again after every change. Invariants: a unit's file is removed or replaced only when the unit has
//! stopped; one order to start is carried out once, so that a unit which ended on its own stays ended; an old
//! schedule stops and removes nothing; a fenced unit is started only under a lease that the hub has acknowledged.

use model::{DesiredState, ScheduleRecord, UnitName};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// After the end of its machine's lease, a unit with `OnPartition=stop` is dead within this time, whatever state the
/// daemon, the network or the unit itself is in. The engine may start another copy when the lease has been gone for
/// longer than this. It is the sum of: 2 s until systemd has replaced a frozen watcher, [`FENCE_PATIENCE`], and 2 s
/// for killing what is left.
pub const FENCE_STOP: Duration = Duration::from_secs(8);
/// How long a fenced unit may take to stop in order before it is killed.
pub const FENCE_PATIENCE: Duration = Duration::from_secs(4);

/// What the schedule wants of a unit here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Which unit file.
    pub hash: String,
    /// `Loaded` or `Launched`.
    pub desired: DesiredState,
    /// The number of the start order.
    pub launch: u64,
}

impl From<&ScheduleRecord> for Wanted {
    fn from(record: &ScheduleRecord) -> Self {
        Self { hash: record.hash.clone(), desired: record.desired, launch: record.launch }
    }
}

/// What was carried out for a unit since the machine booted. Kept in a file, so that an agent that starts again
/// finds its units.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The unit file that systemd has.
    pub hash: String,
    /// The start order that was carried out last; 0 for none.
    pub launch: u64,
    /// It was seen stopped since, as the schedule wanted. Whatever starts it now (`WantedBy=`, a person) is not
    /// ours to undo.
    #[serde(default)]
    pub rested: bool,
    /// It has `OnPartition=stop`.
    #[serde(default)]
    pub fenced: bool,
}

/// What systemd says about a unit, as far as decisions go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activity {
    /// Nothing of it runs: `inactive` or `failed`.
    #[default]
    Dead,
    /// Something runs or starts: `active`, `activating`, `reloading`.
    Alive,
    /// It stops: `deactivating`.
    Stopping,
}

impl Activity {
    /// From systemd's `ActiveState`.
    pub fn from_active_state(state: &str) -> Self {
        match state {
            "inactive" | "failed" | "" => Self::Dead,
            "deactivating" => Self::Stopping,
            _ => Self::Alive,
        }
    }
}

/// How far what is wanted can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// It is the last known schedule, from before the hub was lost from sight. Units may have moved since.
    Remembered,
    /// The hub said so, but since then the lease has ended or was not renewed in time.
    Known,
    /// The hub said so under the lease that it acknowledges now.
    Leased,
}

/// One thing to do about a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Ask {
    /// Stop it: it is no longer wanted, or its file changes.
    Stop,
    /// Remove its file.
    Unload,
    /// Write its file and make systemd read it.
    Load,
    /// Start it.
    Start,
    /// Ask nothing of systemd, and note that it has stopped: see [`Done::rested`].
    Rest,
}

/// What to do next about a unit, or `None` when it is as it should be or something is still under way.
pub fn next(wanted: Option<&Wanted>, done: Option<&Done>, activity: Activity, trust: Trust) -> Option<Ask> {
    let ask = match (wanted, done) {
        (None, None) => None,
        (None, Some(_)) => match activity {
            Activity::Alive => Some(Ask::Stop),
            Activity::Stopping => None,
            Activity::Dead => Some(Ask::Unload),
        },
        (Some(_), None) => Some(Ask::Load),
        (Some(wanted), Some(done)) if wanted.hash != done.hash => match activity {
            Activity::Alive => Some(Ask::Stop),
            Activity::Stopping => None,
            Activity::Dead => Some(Ask::Load),
        },
        (Some(wanted), Some(done)) if wanted.desired == DesiredState::Launched => match activity {
            _ if done.launch >= wanted.launch => None,
            Activity::Stopping => None,
            Activity::Alive | Activity::Dead => Some(Ask::Start),
        },
        (Some(_), Some(done)) if done.launch > 0 && !done.rested => match activity {
            Activity::Alive => Some(Ask::Stop),
            Activity::Stopping => None,
            Activity::Dead => Some(Ask::Rest),
        },
        (Some(_), Some(_)) => None,
    };
    let fenced = done.is_some_and(|done| done.fenced);
    ask.filter(|ask| match (ask, trust) {
        (_, Trust::Leased) => true,
        (Ask::Start, Trust::Known) => !fenced,
        (_, Trust::Known) => true,
        // What is there is kept; what a reboot has cleared comes up again.
        (Ask::Start, Trust::Remembered) => !fenced,
        (Ask::Load, Trust::Remembered) => done.is_none(),
        (Ask::Stop | Ask::Unload | Ask::Rest, Trust::Remembered) => false,
    })
}

/// What to do next about every unit. A unit in `busy` has something under way and is left alone.
pub fn plan(
    wanted: &BTreeMap<UnitName, Wanted>,
    done: &BTreeMap<UnitName, Done>,
    trust: Trust,
    activity: impl Fn(&UnitName) -> Activity,
    busy: impl Fn(&UnitName) -> bool,
) -> BTreeMap<UnitName, Ask> {
    let names = wanted.keys().chain(done.keys());
    names
        .filter(|name| !busy(name))
        .filter_map(|name| {
            Some((name.clone(), next(wanted.get(name), done.get(name), activity(name), trust)?))
        })
        .collect()
}

#[cfg(test)]
mod tests;
