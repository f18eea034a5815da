//! The registrar: which of this machine's instances the hub should have, in which state, and when each is checked.
//!
//! Stepped: events in, effects out, time an argument. What the hub should have is [`Registrar::records`]; whoever
//! writes it says with [`Event::Written`] up to which version that is done. Not here: checking, containers, the hub.
//! Invariants: an instance has an upstream only while its unit is active, its address is known and its check has
//! passed since its start; a drain that was asked for is answered, whatever else fails.

/// Stops that wait until nobody sends requests any more.
mod drain;
/// What the hub should have, against what it has.
pub mod publish;

use drain::Drain;
use model::{
    Health, Instance, MachineId, RECORD_VERSION, Revision, RouterRecord, ServiceConfig, ServiceMeta,
    ServiceName, Timestamp, UnitName, Unknown,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};
use unit::{Check, Registration};

/// So often an instance is checked that has just started: a start shall not wait for its interval.
const EAGER: Duration = Duration::from_millis(50);
/// So long. Then the interval grows to the unit's own.
const EAGER_FOR: Duration = Duration::from_secs(10);
/// How many checks in a row must pass after a failure, if the unit does not say.
const RISE_AGAIN: u32 = 2;
/// Each failure doubles that, up to this factor, and a quiet time takes all of it back.
const DAMPED: u32 = 32;
const QUIET: Duration = Duration::from_secs(300);
/// A stop without a drain waits so long for one: systemd runs ours first, or none.
const UNASKED: Duration = Duration::from_secs(3);
/// So often it is looked whether what was drained runs again.
const AGAIN: Duration = Duration::from_millis(500);

/// A registration of a unit: the service, and the instance.
pub type Id = (ServiceName, Instance);

/// What a unit's main activity is, as systemd says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// It runs.
    Active,
    /// It is being stopped in order: `ExecStop=` runs.
    Stopping,
    /// It does not run, or not yet.
    Inactive,
}

impl Activity {
    /// From systemd's `ActiveState` and `SubState`.
    pub fn of(active: &str, sub: &str) -> Self {
        match (active, sub) {
            ("active" | "reloading" | "refreshing", _) => Self::Active,
            ("deactivating", "stop") => Self::Stopping,
            _ => Self::Inactive,
        }
    }
}

/// Where an instance was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its address.
    pub address: Ipv4Addr,
    /// What makes it another run: the container's id, or the main process. Empty if not known.
    pub run: String,
    /// What the container's own health check says against it.
    pub unhealthy: Option<String>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A unit that has registrations, as it is now. Told again whenever something about it has changed.
    Unit {
        /// Which unit.
        unit: UnitName,
        /// What it wants registered.
        registrations: Arc<[Registration]>,
        /// What systemd says.
        activity: Activity,
        /// The machine's clock.
        at: Timestamp,
    },
    /// A unit is no longer this machine's.
    Gone(UnitName),
    /// Where a unit's instance is, or why that is not known.
    Found(UnitName, Result<Found, String>),
    /// What an earlier run of the daemon has written, with the upstream or without it.
    Adopted(Box<ServiceMeta>, Id, bool),
    /// What came of a check.
    Checked {
        /// Which registration.
        id: Id,
        /// Which run of it, as in [`Effect::Check`].
        generation: u64,
        /// Passed, or why not.
        outcome: Result<(), String>,
    },
    /// A unit is about to stop. `alive` is false if it has ended already.
    Drain {
        /// Which unit.
        unit: UnitName,
        /// Whether there is anything that could finish its requests.
        alive: bool,
    },
    /// The hub has what [`Registrar::records`] gave as this version, as of that revision.
    Written(u64, Revision),
    /// What the live routers serve.
    Routers(BTreeMap<MachineId, RouterRecord>),
    /// Nothing but time.
    Tick,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Find out where the unit's instance is.
    Find(UnitName),
    /// Check it.
    Check {
        /// Which registration.
        id: Id,
        /// Which run of it.
        generation: u64,
        /// How.
        check: Check,
        /// Where.
        address: Ipv4Addr,
        /// The port that it is registered with.
        port: u16,
        /// What it may take.
        timeout: Duration,
    },
    /// Tell who waits for it that the unit's drain is over.
    Drained(UnitName),
    /// Say that an instance's health has changed.
    Told {
        /// Which registration.
        id: Id,
        /// How it is.
        health: Health,
        /// Why.
        reason: Option<String>,
    },
}

/// What the hub should have of an instance.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The rich record.
    pub meta: ServiceMeta,
    /// Whether there is an upstream.
    pub upstream: bool,
    /// Whether its state is `drain`.
    pub draining: bool,
    /// How its unit says that the service is to be balanced.
    pub config: Option<ServiceConfig>,
}

/// This machine's instances.
pub struct Registrar {
    machine: MachineId,
    machine_name: String,
    instances: BTreeMap<Id, One>,
    adopted: BTreeMap<Id, (ServiceMeta, bool)>,
    drains: BTreeMap<UnitName, Drain>,
    routers: BTreeMap<MachineId, RouterRecord>,
    /// Counts changes of what the hub should have.
    version: u64,
    written: u64,
}

struct One {
    unit: UnitName,
    registration: Registration,
    activity: Activity,
    started: Timestamp,
    since: Duration,
    found: Option<Found>,
    health: Health,
    reason: Option<String>,
    passes: u32,
    fails: u32,
    damping: u32,
    failed_at: Option<Duration>,
    checking: bool,
    next: Duration,
    draining: bool,
    stopping: Option<Duration>,
    over: bool,
    /// Since when it is over.
    ended: Option<Duration>,
}

impl Registrar {
    /// A machine without instances.
    pub fn new(machine: MachineId, machine_name: String) -> Self {
        Self {
            machine,
            machine_name,
            instances: BTreeMap::new(),
            adopted: BTreeMap::new(),
            drains: BTreeMap::new(),
            routers: BTreeMap::new(),
            version: 1,
            written: 0,
        }
    }

    /// Takes one event in.
    pub fn step(&mut self, now: Duration, event: Event, out: &mut Vec<Effect>) {
        match event {
            Event::Unit { unit, registrations, activity, at } => {
                self.unit(now, &unit, &registrations, activity, at, out);
            }
            Event::Gone(unit) => {
                self.change(|instances| instances.retain(|_, one| one.unit != unit));
            }
            Event::Found(unit, found) => self.found(now, &unit, found, out),
            Event::Adopted(meta, id, upstream) => drop(self.adopted.insert(id, (*meta, upstream))),
            Event::Checked { id, generation, outcome } => self.checked(now, &id, generation, outcome, out),
            Event::Drain { unit, alive } => self.drain(now, unit, alive),
            Event::Written(version, revision) => {
                self.written = self.written.max(version);
                self.drains_heard(version, revision);
            }
            Event::Routers(routers) => self.routers = routers,
            Event::Tick => {}
        }
        self.run(now, out);
    }

    /// When [`Event::Tick`] is due.
    pub fn due(&self) -> Option<Duration> {
        let timed = |one: &&One| one.may_be_checked() || one.may_have_come_back();
        let checks = self.instances.values().filter(timed).map(|one| one.next);
        let stops = self.instances.values().filter(|one| !one.over).filter_map(|one| one.stopping);
        checks.chain(stops.map(|since| since + UNASKED)).chain(self.drains_due()).min()
    }

    /// What the hub should have, and which version of it this is.
    pub fn records(&self) -> (u64, BTreeMap<Id, Record>) {
        let records = self.instances.iter().filter_map(|(id, one)| {
            let record = one.record(&self.machine, &self.machine_name)?;
            Some((id.clone(), record))
        });
        (self.version, records.collect())
    }

    /// Which version of what the hub should have this is.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How units that run are: none where all their instances pass their checks, or are about to stop; else the worst
    /// of them, and why.
    pub fn readiness(&self) -> BTreeMap<UnitName, Option<(Health, String)>> {
        let mut units = BTreeMap::new();
        for one in self.instances.values().filter(|one| one.activity == Activity::Active) {
            let known: &mut Option<(Health, String)> = units.entry(one.unit.clone()).or_default();
            let passes = one.health == Health::Passing && one.found.is_some();
            let worse = one.health == Health::Critical || known.is_none();
            if !passes && !one.draining && !one.over && worse {
                *known =
                    Some((one.health, one.reason.clone().unwrap_or_else(|| "not checked yet".to_owned())));
            }
        }
        units
    }

    /// Whether anything here can be reached through the hub.
    pub fn is_empty(&self) -> bool {
        self.instances.values().all(|one| !one.has_upstream())
    }

    /// Makes a change, and counts it if it changes what the hub should have.
    fn change(&mut self, change: impl FnOnce(&mut BTreeMap<Id, One>)) {
        let before = self.records().1;
        change(&mut self.instances);
        if self.records().1 != before {
            self.version += 1;
        }
    }

    fn unit(
        &mut self,
        now: Duration,
        unit: &UnitName,
        registrations: &[Registration],
        activity: Activity,
        at: Timestamp,
        out: &mut Vec<Effect>,
    ) {
        let wanted: BTreeSet<Id> = registrations.iter().map(id_of).collect();
        let mut adopted = std::mem::take(&mut self.adopted);
        let mut find = false;
        self.change(|instances| {
            instances.retain(|id, one| one.unit != *unit || wanted.contains(id));
            for registration in registrations {
                let id = id_of(registration);
                let one = match instances.remove(&id) {
                    Some(mut one) if one.unit == *unit => {
                        // What was being stopped and runs is another run of it, seen late.
                        if one.activity != Activity::Active && activity == Activity::Active {
                            one = One::new(unit, registration, at, now);
                        }
                        one.registration.clone_from(registration);
                        one
                    }
                    _ => {
                        let mut one = One::new(unit, registration, at, now);
                        if let Some((meta, upstream)) =
                            adopted.remove(&id).filter(|_| activity == Activity::Active)
                        {
                            one.adopt(&meta, upstream);
                        }
                        one
                    }
                };
                let one = instances.entry(id).or_insert(one);
                find |= activity == Activity::Active && one.activity != Activity::Active;
                one.activity = activity;
                match activity {
                    Activity::Active => one.stopping = None,
                    Activity::Stopping => drop(one.stopping.get_or_insert(now)),
                    Activity::Inactive => one.over = true,
                }
            }
        });
        self.adopted = adopted;
        if find {
            out.push(Effect::Find(unit.clone()));
        }
    }

    fn found(&mut self, now: Duration, unit: &UnitName, found: Result<Found, String>, out: &mut Vec<Effect>) {
        let mut told = Vec::new();
        self.change(|instances| {
            for (id, one) in instances.iter_mut().filter(|(_, one)| one.unit == *unit) {
                match &found {
                    Ok(found) => {
                        let mut found = found.clone();
                        found.address = one.registration.address.unwrap_or(found.address);
                        let before = one.found.replace(found.clone());
                        let other = before.as_ref().is_some_and(|before| {
                            before.address != found.address
                                || (before.run != found.run
                                    && !before.run.is_empty()
                                    && !found.run.is_empty())
                        });
                        // Drained, and yet not stopped for so long: whoever asked for it has gone, and it runs.
                        let left =
                            one.may_have_come_back() && one.ended.is_some_and(|at| now >= at + UNASKED);
                        let other = other || left;
                        if other {
                            // Another container: it has to show itself again.
                            let at = Timestamp(one.started.0 + 1);
                            let fresh = One::new(unit, &one.registration, at, now);
                            let (activity, damping, failed_at) = (one.activity, one.damping, one.failed_at);
                            *one = One { activity, damping, failed_at, found: Some(found), ..fresh };
                            told.push((id.clone(), one.health, Some("another run of it".to_owned())));
                        } else if before.is_none() {
                            one.next = now;
                        }
                        let unhealthy = one.found.as_ref().and_then(|found| found.unhealthy.clone());
                        if let Some(why) = unhealthy.filter(|_| one.health == Health::Passing) {
                            one.fail(now, &why);
                            told.push((id.clone(), one.health, one.reason.clone()));
                        }
                    }
                    Err(why) => {
                        if one.found.take().is_some() {
                            // Whatever it was, it is gone; it may come back.
                            let fresh = One::new(unit, &one.registration, Timestamp(one.started.0 + 1), now);
                            let (activity, draining, over) = (one.activity, one.draining, one.over);
                            let (damping, failed_at) = (one.damping, one.failed_at);
                            *one = One { activity, draining, over, damping, failed_at, ..fresh };
                        }
                        one.reason = Some(why.clone());
                    }
                }
            }
        });
        out.extend(told.into_iter().map(|(id, health, reason)| Effect::Told { id, health, reason }));
    }

    fn checked(
        &mut self,
        now: Duration,
        id: &Id,
        generation: u64,
        outcome: Result<(), String>,
        out: &mut Vec<Effect>,
    ) {
        let mut told = None;
        self.change(|instances| {
            let Some(one) = instances.get_mut(id).filter(|one| one.started.0 == generation) else { return };
            one.checking = false;
            let unhealthy = one.found.as_ref().and_then(|found| found.unhealthy.clone());
            let before = one.health;
            match outcome.and_then(|()| unhealthy.map_or(Ok(()), Err)) {
                Ok(()) => one.pass(now),
                Err(why) => one.miss(now, why),
            }
            one.next = now + one.pause(now);
            told = (one.health != before).then(|| (one.health, one.reason.clone()));
        });
        if let Some((health, reason)) = told {
            out.push(Effect::Told { id: id.clone(), health, reason });
        }
    }

    /// What follows from the time, and from what is known by now.
    fn run(&mut self, now: Duration, out: &mut Vec<Effect>) {
        self.end_drains(now, out);
        let late =
            |one: &One| !one.over && !one.draining && one.stopping.is_some_and(|at| now >= at + UNASKED);
        if self.instances.values().any(late) {
            self.change(|instances| {
                instances.values_mut().filter(|one| late(one)).for_each(|one| one.over = true)
            });
        }
        for (id, one) in &mut self.instances {
            one.ended = if one.over { one.ended.or(Some(now)) } else { None };
            if one.may_have_come_back() && now >= one.next {
                one.next = now + AGAIN;
                out.push(Effect::Find(one.unit.clone()));
            }
            if !one.may_be_checked() || now < one.next {
                continue;
            }
            let Some(found) = &one.found else { continue };
            one.checking = true;
            out.push(Effect::Check {
                id: id.clone(),
                generation: one.started.0,
                check: one.registration.check.clone(),
                address: found.address,
                port: one.registration.port,
                timeout: one.registration.timeout,
            });
        }
    }
}

fn id_of(registration: &Registration) -> Id {
    (registration.service.clone(), registration.instance.clone())
}

impl One {
    fn new(unit: &UnitName, registration: &Registration, started: Timestamp, now: Duration) -> Self {
        Self {
            unit: unit.clone(),
            registration: registration.clone(),
            activity: Activity::Inactive,
            started,
            since: now,
            found: None,
            health: Health::Starting,
            reason: None,
            passes: 0,
            fails: 0,
            damping: 1,
            failed_at: None,
            checking: false,
            next: now,
            draining: false,
            stopping: None,
            over: false,
            ended: None,
        }
    }

    /// Goes on where an earlier run of the daemon was.
    fn adopt(&mut self, meta: &ServiceMeta, upstream: bool) {
        let Some(address) = meta.addr.split(':').next().and_then(|ip| ip.parse().ok()) else { return };
        self.found = Some(Found { address, run: String::new(), unhealthy: None });
        (self.started, self.reason) = (meta.started, meta.reason.clone());
        self.health = match (meta.health, upstream) {
            (Health::Passing | Health::Warning, true) => Health::Passing,
            (Health::Critical, _) => Health::Critical,
            _ => Health::Starting,
        };
    }

    fn may_be_checked(&self) -> bool {
        self.activity == Activity::Active
            && !self.over
            && !self.draining
            && !self.checking
            && self.found.is_some()
    }

    /// It was drained, and the unit is called active: it was started again so soon that nobody saw it stopped.
    fn may_have_come_back(&self) -> bool {
        self.activity == Activity::Active && self.over
    }

    fn has_upstream(&self) -> bool {
        self.found.is_some() && self.health == Health::Passing && !self.over
    }

    fn record(&self, machine: &MachineId, machine_name: &str) -> Option<Record> {
        let found = self.found.as_ref().filter(|_| !self.over && self.activity != Activity::Inactive)?;
        let of = &self.registration;
        let meta = ServiceMeta {
            v: RECORD_VERSION,
            addr: format!("{}:{}", found.address, of.port),
            proto: of.proto,
            weight: of.weight,
            machine: machine.clone(),
            machine_name: machine_name.to_owned(),
            unit: self.unit.clone(),
            generation: self.started.0,
            started: self.started,
            health: self.health,
            reason: self.reason.clone(),
            conflict: None,
            slow_start: of.slow_start,
            tags: of.tags.clone(),
            metrics: of.metrics.clone(),
            unknown: Unknown::new(),
        };
        let config = of.config.clone();
        Some(Record { meta, upstream: self.has_upstream(), draining: self.draining, config })
    }

    fn pass(&mut self, now: Duration) {
        (self.passes, self.fails) = (self.passes + 1, 0);
        if self.failed_at.is_some_and(|at| now >= at + QUIET) {
            (self.damping, self.failed_at) = (1, None);
        }
        let needed = match self.health {
            Health::Starting => self.registration.rise.unwrap_or(1),
            Health::Critical => self.registration.rise.unwrap_or(RISE_AGAIN).saturating_mul(self.damping),
            Health::Passing | Health::Warning => 0,
        };
        if self.passes >= needed {
            (self.health, self.reason) = (Health::Passing, None);
        }
    }

    fn miss(&mut self, now: Duration, why: String) {
        (self.passes, self.fails) = (0, self.fails + 1);
        match self.health {
            Health::Starting if now >= self.since + self.registration.start_grace => {
                let grace = self.registration.start_grace;
                (self.health, self.reason) =
                    (Health::Critical, Some(format!("not ready within StartGrace={grace:?}: {why}")));
            }
            Health::Passing | Health::Warning if self.fails >= self.registration.fall => self.fail(now, &why),
            Health::Passing | Health::Warning => {}
            Health::Starting | Health::Critical => self.reason = Some(why),
        }
    }

    /// From passing to critical.
    fn fail(&mut self, now: Duration, why: &str) {
        if self.failed_at.is_some_and(|at| now < at + QUIET) {
            self.damping = (self.damping * 2).min(DAMPED);
        }
        (self.failed_at, self.passes) = (Some(now), 0);
        (self.health, self.reason) = (Health::Critical, Some(why.to_owned()));
    }

    /// Until the next check.
    fn pause(&self, now: Duration) -> Duration {
        let interval = self.registration.interval;
        if self.health != Health::Starting {
            return interval;
        }
        let age = now.saturating_sub(self.since);
        if age < EAGER_FOR { interval.min(EAGER.max(age / 20)) } else { interval }
    }
}

#[cfg(test)]
mod tests;
