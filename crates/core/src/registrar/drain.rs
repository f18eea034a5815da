//! Drains: a unit's stop waits until every router has stopped sending requests there, `Drain=` is over, or nobody can be
//! told.
//!
//! Invariant: a drain that was asked for comes to its end, whatever else fails: `Drain=`, [`UNHEARD`] and [`FAREWELL`]
//! together are the longest it takes.

use super::{Effect, One, Registrar};
use model::{Revision, UnitName};
use std::time::Duration;

/// A drain that the hub does not hear of within this time helps nobody: the unit stops without.
pub(super) const UNHEARD: Duration = Duration::from_secs(2);
/// What is still under way when a drain has taken as long as it may is ended in order by routers that can; so long it is
/// waited for them before the unit gets SIGTERM.
pub(super) const FAREWELL: Duration = Duration::from_millis(1500);

pub(super) struct Drain {
    since: Duration,
    limit: Duration,
    /// The version that says so, and as of which revision the hub has it.
    marked: (u64, Option<Revision>),
    /// Something was under way when it was over.
    cut: bool,
    /// The version without the instances, once it is over, and as of which revision the hub has it.
    removed: Option<(u64, Duration)>,
    gone: Option<Revision>,
}

impl Registrar {
    pub(super) fn drain(&mut self, now: Duration, unit: UnitName, alive: bool) {
        let mine = |one: &&One| one.unit == unit && one.has_upstream() && !one.over;
        let limits = self.instances.values().filter(mine).map(|one| one.registration.drain);
        // Nothing that anybody could be sent to, or nobody who could answer: no reason to wait for routers.
        let limit = limits.max().filter(|_| alive);
        self.change(|instances| {
            for one in instances.values_mut().filter(|one| one.unit == unit) {
                (one.draining, one.over) = (one.draining || limit.is_some(), one.over || limit.is_none());
            }
        });
        let removed = limit.is_none().then_some((self.version, now));
        let drain = Drain {
            since: now,
            limit: limit.unwrap_or_default(),
            marked: (self.version, None),
            cut: false,
            removed,
            gone: None,
        };
        self.drains.entry(unit).or_insert(drain);
    }

    /// The hub has a version, as of a revision.
    pub(super) fn drains_heard(&mut self, version: u64, revision: Revision) {
        for drain in self.drains.values_mut() {
            if version >= drain.marked.0 {
                drain.marked.1.get_or_insert(revision);
            }
            if drain.removed.is_some_and(|(removed, _)| version >= removed) {
                drain.gone.get_or_insert(revision);
            }
        }
    }

    /// When something about drains is due.
    pub(super) fn drains_due(&self) -> impl Iterator<Item = Duration> {
        let due = self.drains.values().flat_map(|drain| {
            let unheard = drain.marked.1.is_none().then(|| drain.since + UNHEARD);
            let last = if drain.gone.is_some() { FAREWELL } else { UNHEARD };
            let removed = drain.removed.map(|(_, at)| at + last);
            [
                Some(drain.since + drain.limit).filter(|_| removed.is_none()),
                unheard.filter(|_| removed.is_none()),
                removed,
            ]
        });
        due.flatten()
    }

    pub(super) fn end_drains(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let over: Vec<(UnitName, bool)> = self
            .drains
            .iter()
            .filter(|(_, drain)| drain.removed.is_none())
            .filter_map(|(unit, drain)| Some((unit.clone(), self.end_of(now, unit, drain)?)))
            .collect();
        for (unit, cut) in over {
            self.change(|instances| {
                for one in instances.values_mut().filter(|one| one.unit == unit) {
                    one.over = true;
                }
            });
            if let Some(drain) = self.drains.get_mut(&unit) {
                (drain.cut, drain.removed) = (cut, Some((self.version, now)));
            }
        }
        let done: Vec<UnitName> = self
            .drains
            .iter()
            .filter(|(unit, drain)| self.is_over(now, unit, drain))
            .map(|(unit, _)| unit.clone())
            .collect();
        for unit in done {
            self.drains.remove(&unit);
            out.push(Effect::Drained(unit));
        }
    }

    /// Whether the instances are to go now, and if so whether something is still under way there.
    fn end_of(&self, now: Duration, unit: &UnitName, drain: &Drain) -> Option<bool> {
        let Some(revision) = drain.marked.1 else {
            return (now >= drain.since + UNHEARD.min(drain.limit)).then_some(false);
        };
        match self.is_let_go(unit, revision) {
            true => Some(false),
            false => (now >= drain.since + drain.limit).then_some(true),
        }
    }

    /// Whether the unit may be stopped: its instances are gone, and what was cut short has ended or was waited for.
    fn is_over(&self, now: Duration, unit: &UnitName, drain: &Drain) -> bool {
        let Some((version, at)) = drain.removed else { return false };
        if self.written < version {
            return now >= at + UNHEARD;
        }
        let let_go = || drain.gone.is_some_and(|revision| self.is_let_go(unit, revision));
        !drain.cut || now >= at + FAREWELL || let_go()
    }

    /// Whether every router has come to that revision and has nothing under way at the unit's instances.
    fn is_let_go(&self, unit: &UnitName, revision: Revision) -> bool {
        let mut ids = self.instances.iter().filter(|(_, one)| one.unit == *unit).map(|(id, _)| id);
        ids.all(|(service, instance)| {
            self.routers.values().all(|router| router.is_done_with(service, instance, revision))
        })
    }
}
