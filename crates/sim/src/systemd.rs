//! A machine's systemd: units are loaded, started and stopped, which takes time; some fail, some end by themselves,
//! some are slow to stop.
//!
//! Invariant: a unit is in one state at a time, and every change is either a job's or the unit's own end.

use crate::{message::File, rng::Rng};
use model::UnitName;
use std::{collections::BTreeMap, time::Duration};

/// `ActiveState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Active {
    /// Nothing of it runs.
    Inactive,
    /// It starts.
    Activating,
    /// It runs.
    Active,
    /// It stops.
    Deactivating,
    /// It ended badly.
    Failed,
}

impl Active {
    /// systemd's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Activating => "activating",
            Self::Active => "active",
            Self::Deactivating => "deactivating",
            Self::Failed => "failed",
        }
    }

    /// True when something of the unit runs.
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Activating | Self::Active | Self::Deactivating)
    }
}

/// How a unit behaves each time it is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behaviour {
    /// How long it takes to be active.
    pub start: Duration,
    /// It never gets there.
    pub fails: bool,
    /// After how long it ends by itself.
    pub ends: Option<Duration>,
    /// How long it takes to stop.
    pub stop: Duration,
}

impl Default for Behaviour {
    /// Quick and well behaved.
    fn default() -> Self {
        Self { start: Duration::from_millis(100), fails: false, ends: None, stop: Duration::from_millis(100) }
    }
}

impl Behaviour {
    /// Mostly quick; sometimes slow, failing, or ending by itself.
    pub fn random(rng: &mut Rng) -> Self {
        let ms = Duration::from_millis;
        let slow = |rng: &mut Rng, most| if rng.chance(50) { ms(most) } else { ms(500) };
        let (start, stop) = (slow(rng, 8_000), slow(rng, 30_000));
        Self {
            start: rng.span(ms(5), start),
            fails: rng.chance(30),
            ends: rng.chance(50).then(|| rng.span(ms(100), ms(20_000))),
            stop: rng.span(ms(5), stop),
        }
    }
}

/// A unit that systemd knows.
#[derive(Debug, Clone)]
pub struct Unit {
    /// Which file.
    pub hash: String,
    /// Whether that has `OnPartition=stop`.
    pub fenced: bool,
    /// What it does.
    pub active: Active,
    /// The start order that it was last started by; 0 for none.
    pub launch: u64,
    behaviour: Behaviour,
    /// Numbers the changes that are planned: an older plan is void.
    plan: u64,
    /// A start that waits for the stop to end.
    again: bool,
}

/// What will become of a unit, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Which unit.
    pub unit: UnitName,
    /// In how long.
    pub after: Duration,
    /// The plan's number: if the unit has a newer one, this is void.
    pub plan: u64,
}

/// A change that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed {
    /// What it does now.
    pub active: Active,
    /// A job ended with it.
    pub job: bool,
}

/// systemd, from one boot to the next.
#[derive(Debug, Default)]
pub struct Systemd {
    /// What is loaded.
    pub units: BTreeMap<UnitName, Unit>,
    plans: u64,
}

impl Systemd {
    /// Links a file and reads it.
    pub fn load(&mut self, name: &UnitName, file: &File) {
        let fresh = Unit {
            hash: String::new(),
            fenced: false,
            active: Active::Inactive,
            launch: 0,
            behaviour: Behaviour::default(),
            plan: 0,
            again: false,
        };
        let unit = self.units.entry(name.clone()).or_insert(fresh);
        (unit.hash, unit.fenced) = (file.hash.clone(), file.fenced);
    }

    /// Forgets a unit. Tells whether something of it was still running.
    pub fn unload(&mut self, name: &UnitName) -> bool {
        self.units.remove(name).is_some_and(|unit| unit.active.is_alive())
    }

    /// Queues a start.
    pub fn start(
        &mut self,
        name: &UnitName,
        launch: u64,
        behaviour: Behaviour,
    ) -> Result<Option<(Changed, Planned)>, String> {
        let plan = self.next_plan();
        let Some(unit) = self.units.get_mut(name) else { return Err(format!("Unit {name} not found.")) };
        unit.launch = launch;
        match unit.active {
            Active::Active | Active::Activating => Ok(None),
            Active::Deactivating => {
                unit.again = true;
                unit.behaviour = behaviour;
                Ok(None)
            }
            Active::Inactive | Active::Failed => {
                (unit.active, unit.behaviour, unit.plan) = (Active::Activating, behaviour, plan);
                let planned = Planned { unit: name.clone(), after: behaviour.start, plan };
                Ok(Some((Changed { active: Active::Activating, job: false }, planned)))
            }
        }
    }

    /// Queues a stop.
    pub fn stop(&mut self, name: &UnitName) -> Option<(Changed, Planned)> {
        let plan = self.next_plan();
        let unit = self.units.get_mut(name)?;
        unit.again = false;
        match unit.active {
            Active::Inactive | Active::Failed | Active::Deactivating => None,
            Active::Active | Active::Activating => {
                (unit.active, unit.plan) = (Active::Deactivating, plan);
                let planned = Planned { unit: name.clone(), after: unit.behaviour.stop, plan };
                Some((Changed { active: Active::Deactivating, job: false }, planned))
            }
        }
    }

    /// Kills what runs of a unit, at once.
    pub fn kill(&mut self, name: &UnitName) -> Option<Changed> {
        let plan = self.next_plan();
        let unit = self.units.get_mut(name).filter(|unit| unit.active.is_alive())?;
        (unit.active, unit.plan, unit.again) = (Active::Failed, plan, false);
        Some(Changed { active: Active::Failed, job: true })
    }

    /// The time of a plan has come: what changed, and what is planned next. None if the plan is void.
    pub fn proceed(&mut self, name: &UnitName, plan: u64) -> Option<(Changed, Option<Planned>)> {
        let next = self.next_plan();
        let unit = self.units.get_mut(name).filter(|unit| unit.plan == plan)?;
        unit.plan = next;
        let planned = |after| Some(Planned { unit: name.clone(), after, plan: next });
        let behaviour = unit.behaviour;
        let (active, job, then) = match unit.active {
            Active::Activating if behaviour.fails => (Active::Failed, true, None),
            Active::Activating => (Active::Active, true, behaviour.ends.and_then(planned)),
            Active::Deactivating if std::mem::take(&mut unit.again) => {
                (Active::Activating, true, planned(behaviour.start))
            }
            Active::Deactivating | Active::Active => (Active::Inactive, unit.active != Active::Active, None),
            Active::Inactive | Active::Failed => return None,
        };
        unit.active = active;
        Some((Changed { active, job }, then))
    }

    /// What a unit does.
    pub fn active(&self, name: &UnitName) -> Active {
        self.units.get(name).map_or(Active::Inactive, |unit| unit.active)
    }

    fn next_plan(&mut self) -> u64 {
        self.plans += 1;
        self.plans
    }
}
