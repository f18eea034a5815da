//! What the hub is told of this machine's units: systemd's states, and what the agent knows besides.
//!
//! Invariant: a state is told only when it was read after whatever the agent did last; until then the last one
//! that was told stands.

use super::{
    super::{
        registrar::Local,
        states::{Report, States},
    },
    Units,
};
use model::{Health, RECORD_VERSION, UnitName, UnitState};
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
        self.publish_locals();
    }

    /// Hands what is registered over to the registrar, once every unit of an earlier run has been looked at.
    fn publish_locals(&self) {
        if self.inputs.locals.borrow().is_none() && !self.done.keys().all(|unit| self.seen.contains_key(unit))
        {
            return;
        }
        let local = |unit: &UnitName| {
            let file = self.files.get(unit).filter(|file| !file.registrations.is_empty())?;
            let seen = self.seen.get(unit).filter(|_| !self.clashes.contains_key(unit))?;
            let (active, sub) = (seen.active.clone(), seen.sub.clone());
            let (registrations, text) = (file.registrations.clone(), file.text.clone());
            Some((unit.clone(), Local { registrations, text, active, sub }))
        };
        let locals = self.done.keys().filter_map(local).collect();
        self.inputs.locals.send_if_modified(|before| {
            let changed = before.as_ref() != Some(&locals);
            *before = Some(locals);
            changed
        });
    }

    /// What the registrar knows of a unit that runs and is registered: its health as long as it is not ready.
    fn unready(&self, unit: &UnitName) -> Option<(Health, String)> {
        let ready = self.inputs.ready.borrow();
        let registered = self.files.get(unit).is_some_and(|file| !file.registrations.is_empty());
        let known = ready.as_ref().filter(|_| registered)?;
        known.get(unit).cloned().unwrap_or_else(|| Some((Health::Starting, String::new())))
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
        let active = seen.is_some_and(|state| state.active == "active");
        let unready = self.unready(unit).filter(|_| active);
        let failing = unready.as_ref().filter(|(health, _)| *health == Health::Critical);
        let error = error.or_else(|| failing.map(|(_, why)| format!("its check does not pass: {why}")));
        // Systemd calls it active; we do when its check has passed for the first time.
        let checking = unready.is_some_and(|(health, _)| health == Health::Starting) && !starts;
        let starts = starts || checking;
        Some(UnitState {
            v: RECORD_VERSION,
            load: if done.is_some() { word(|s| &s.load, "loaded") } else { "error".to_owned() },
            active: if starts { "activating".to_owned() } else { word(|s| &s.active, "inactive") },
            sub: if checking { "check".to_owned() } else { word(|s| &s.sub, "dead") },
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
