//! The agent: what to ask of systemd so that this machine runs its share of the schedule, and nothing else.
//!
//! Level-triggered: each decision follows from what is wanted, what was carried out, and what systemd says now;
//! it is made again after every change. Invariants: a unit's file is removed or replaced only when the unit has
//! stopped; one order to start is carried out once, so that a unit which ended on its own stays ended.

use model::{DesiredState, ScheduleRecord, UnitName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The unit file that systemd has.
    pub hash: String,
    /// The start order that was carried out last; 0 for none.
    pub launch: u64,
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

/// One thing to ask of systemd.
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
}

/// What to do next about a unit, or `None` when it is as it should be or something is still under way.
pub fn next(wanted: Option<&Wanted>, done: Option<&Done>, activity: Activity) -> Option<Ask> {
    match (wanted, done) {
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
        (Some(wanted), Some(done)) => match (wanted.desired, activity) {
            (DesiredState::Launched, _) if done.launch < wanted.launch => Some(Ask::Start),
            (DesiredState::Launched, _) => None,
            (_, Activity::Alive) => Some(Ask::Stop),
            _ => None,
        },
    }
}

/// What to do next about every unit. A unit in `busy` has something under way and is left alone.
pub fn plan(
    wanted: &BTreeMap<UnitName, Wanted>,
    done: &BTreeMap<UnitName, Done>,
    activity: impl Fn(&UnitName) -> Activity,
    busy: impl Fn(&UnitName) -> bool,
) -> BTreeMap<UnitName, Ask> {
    let names = wanted.keys().chain(done.keys());
    names
        .filter(|name| !busy(name))
        .filter_map(|name| Some((name.clone(), next(wanted.get(name), done.get(name), activity(name))?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use Activity::{Alive, Dead, Stopping};
    use proptest::prelude::*;

    fn wanted(hash: &str, desired: DesiredState, launch: u64) -> Wanted {
        Wanted { hash: hash.to_owned(), desired, launch }
    }

    fn done(hash: &str, launch: u64) -> Done {
        Done { hash: hash.to_owned(), launch }
    }

    #[test]
    fn a_unit_is_loaded_then_started_once() {
        let want = wanted("a", DesiredState::Launched, 1);
        assert_eq!(next(Some(&want), None, Dead), Some(Ask::Load));
        assert_eq!(next(Some(&want), Some(&done("a", 0)), Dead), Some(Ask::Start));
        assert_eq!(next(Some(&want), Some(&done("a", 1)), Alive), None);
        assert_eq!(next(Some(&want), Some(&done("a", 1)), Dead), None, "it ended on its own");
        let again = wanted("a", DesiredState::Launched, 2);
        assert_eq!(next(Some(&again), Some(&done("a", 1)), Dead), Some(Ask::Start), "it was ordered again");
    }

    #[test]
    fn files_go_and_change_only_when_the_unit_has_stopped() {
        assert_eq!(next(None, Some(&done("a", 1)), Alive), Some(Ask::Stop));
        assert_eq!(next(None, Some(&done("a", 1)), Stopping), None);
        assert_eq!(next(None, Some(&done("a", 1)), Dead), Some(Ask::Unload));
        let changed = wanted("b", DesiredState::Launched, 1);
        assert_eq!(next(Some(&changed), Some(&done("a", 1)), Alive), Some(Ask::Stop));
        assert_eq!(next(Some(&changed), Some(&done("a", 1)), Stopping), None);
        assert_eq!(next(Some(&changed), Some(&done("a", 1)), Dead), Some(Ask::Load));
    }

    #[test]
    fn stopping_a_unit_keeps_it_loaded() {
        let want = wanted("a", DesiredState::Loaded, 1);
        assert_eq!(next(Some(&want), Some(&done("a", 1)), Alive), Some(Ask::Stop));
        assert_eq!(next(Some(&want), Some(&done("a", 1)), Dead), None);
    }

    proptest! {
        /// Carried out faithfully, the asks lead from anywhere to what is wanted within a few steps.
        #[test]
        fn decisions_converge(
            want in prop::option::of((0_u8..2, prop::bool::ANY, 1_u64..3)),
            have in prop::option::of((0_u8..2, 0_u64..3)),
            alive in prop::bool::ANY,
        ) {
            let state = |launched| if launched { DesiredState::Launched } else { DesiredState::Loaded };
            let want = want.map(|(hash, launched, launch)| wanted(&hash.to_string(), state(launched), launch));
            let mut have = have.map(|(hash, launch)| done(&hash.to_string(), launch));
            let mut activity = if alive && have.is_some() { Alive } else { Dead };
            for _ in 0..4 {
                match next(want.as_ref(), have.as_ref(), activity) {
                    None => break,
                    Some(Ask::Stop) => activity = Dead,
                    Some(Ask::Unload) => have = None,
                    Some(Ask::Load) => have = want.as_ref().map(|w| done(&w.hash, 0)),
                    Some(Ask::Start) => {
                        activity = Alive;
                        have = want.as_ref().map(|w| done(&w.hash, w.launch));
                    }
                }
            }
            prop_assert_eq!(next(want.as_ref(), have.as_ref(), activity), None);
            prop_assert_eq!(want.is_none(), have.is_none());
        }
    }
}
