//! What the hub is told of this machine's units: systemd's states, and what the agent knows besides.
//!
//! Invariant: a state is told only when it was read after whatever the agent did last; until then the last one
//! that was told stands.

use super::{
    super::states::{Report, States},
    Units,
};
use model::{RECORD_VERSION, UnitName, UnitState};
use muster_core::agent::Activity;
use systemd::State;

impl Units {
    /// Hands the states over to whoever publishes them.
    pub(super) fn publish(&self) {
        // What was loaded and not looked at yet has no state worth telling.
        let told = |unit: &&UnitName| !self.stale.contains(*unit) && !self.reading.contains(*unit);
        let state = |unit: &UnitName| Some((unit.clone(), self.state(unit)?));
        let mut states: States = self.known().filter(told).filter_map(state).collect();
        let last = *self.inputs.leaving.borrow();
        self.reports.send_if_modified(|current| {
            for unit in self.stale.iter().chain(&self.reading) {
                if let Some(before) = current.states.get(unit) {
                    states.insert(unit.clone(), before.clone());
                }
            }
            let report = Report { states, last };
            let changed = *current != report;
            *current = report;
            changed
        });
    }

    fn state(&self, unit: &UnitName) -> Option<UnitState> {
        let (done, seen) = (self.done.get(unit), self.seen.get(unit));
        let clash = self.clashes.get(unit).map(|local| super::local::complaint(local));
        let error = clash.or_else(|| self.errors.get(unit).cloned()).or_else(|| self.held_back(unit));
        if done.is_none() && error.is_none() {
            return None;
        }
        let word = |word: fn(&State) -> &String, otherwise: &str| {
            seen.map_or_else(|| otherwise.to_owned(), |state| word(state).clone())
        };
        let dead = seen.is_none_or(|state| Activity::from_active_state(&state.active) == Activity::Dead);
        // Not "active" and a moment later something else: the job has to be over, and the process has to stay.
        let starts = self.jobs.starts(unit) || (!dead && self.settling.contains_key(unit));
        Some(UnitState {
            v: RECORD_VERSION,
            load: if done.is_some() { word(|s| &s.load, "loaded") } else { "error".to_owned() },
            active: if starts { "activating".to_owned() } else { word(|s| &s.active, "inactive") },
            sub: word(|s| &s.sub, "dead"),
            hash: done.map(|done| done.hash.clone()).unwrap_or_default(),
            launch: done.map_or(0, |done| done.launch),
            error,
        })
    }

    /// Why a fenced unit is not started.
    fn held_back(&self, unit: &UnitName) -> Option<String> {
        let error = self.fence.error()?;
        let fenced = self.done.get(unit).is_some_and(|done| done.fenced);
        fenced.then(|| format!("not started, because OnPartition=stop cannot be kept: {error}"))
    }
}
