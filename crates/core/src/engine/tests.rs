//! The engine in a cluster that a test makes up: machines come and go, units are started, effects are carried out.

mod property;
mod rules;
mod scale;

use super::*;
use model::{Capacity, MachineRecord, Maintenance, MaintenanceRecord, MetadataRecord, UnitState, keys};
use std::collections::BTreeMap;

pub(super) fn id(n: u32) -> MachineId {
    format!("{n:08x}{n:024x}").parse().expect("valid")
}

pub(super) fn name(text: &str) -> UnitName {
    text.parse().expect("valid")
}

/// A hub, a clock, and the engine that leads.
pub(super) struct World {
    pub(super) cluster: Cluster,
    pub(super) engine: Engine,
    pub(super) now: Timestamp,
    pub(super) overdue: BTreeSet<MachineId>,
    pub(super) timer: Option<Timestamp>,
    pub(super) notices: Vec<Notice>,
    revision: i64,
}

/// What the schedule lost and gained.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Done {
    pub(super) scheduled: Vec<Placement>,
    pub(super) unscheduled: Vec<(UnitName, MachineId, Removal)>,
}

impl Done {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            cluster: Cluster::default(),
            engine: Engine::new(Revision(7), Timestamp(0)),
            now: Timestamp(1_000),
            overdue: BTreeSet::new(),
            timer: None,
            notices: Vec::new(),
            revision: 10,
        }
    }

    pub(super) fn with_machines(machines: u32) -> Self {
        let mut world = Self::new();
        (1..=machines).for_each(|n| {
            world.boot(n, &[]);
        });
        world
    }

    pub(super) fn boot(&mut self, n: u32, metadata: &[(&str, &str)]) -> Done {
        self.boot_with(n, metadata, None)
    }

    pub(super) fn boot_with(
        &mut self,
        n: u32,
        metadata: &[(&str, &str)],
        capacity: Option<Capacity>,
    ) -> Done {
        let mut record = MachineRecord::new(format!("m{n}"), [10, 0, 0, 1].into(), "0".into());
        record.metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        record.capacity = capacity;
        self.put(&keys::machine(&id(n)), &record)
    }

    /// The machine says that it shuts down.
    pub(super) fn leave(&mut self, n: u32) -> Done {
        let mut record = self.cluster.machines[&id(n)].clone();
        record.leaving = true;
        self.put(&keys::machine(&id(n)), &record)
    }

    /// The lease ends: presence and states go together.
    pub(super) fn kill(&mut self, n: u32) -> Done {
        let states: Vec<_> = self
            .cluster
            .states
            .iter()
            .filter(|(_, on)| on.contains_key(&id(n)))
            .map(|(unit, _)| keys::state(&id(n), unit))
            .collect();
        let mut keys = states;
        keys.push(keys::machine(&id(n)));
        self.delete(&keys)
    }

    pub(super) fn set(&mut self, unit: &str, fleet: &str, desired: &str) -> Done {
        let (service, fleet) = fleet.split_once('|').unwrap_or(("", fleet));
        let text = format!("[Service]\nExecStart=/bin/true\n{service}\n[X-Fleet]\n{fleet}\n");
        let hash = format!("{service}|{fleet}");
        let record = serde_json::json!({"v": 1, "text": text, "hash": hash, "desired": desired, "launch": 1});
        self.put(&keys::unit(&name(unit)), &record)
    }

    pub(super) fn start(&mut self, unit: &str, fleet: &str) -> Done {
        self.set(unit, fleet, "launched")
    }

    pub(super) fn destroy(&mut self, unit: &str) -> Done {
        self.delete(&[keys::unit(&name(unit))])
    }

    pub(super) fn maintain(&mut self, n: u32, state: Option<Maintenance>) -> Done {
        let key = keys::maintenance(&id(n));
        match state {
            None => self.delete(&[key]),
            Some(state) => {
                let record = MaintenanceRecord {
                    v: 1,
                    state,
                    since: self.now,
                    by: "test".to_owned(),
                    reason: String::new(),
                    unknown: Default::default(),
                };
                self.put(&key, &record)
            }
        }
    }

    pub(super) fn set_metadata(&mut self, n: u32, pairs: &[(&str, Option<&str>)]) -> Done {
        let mut record = MetadataRecord::new();
        let owned = |(k, v): &(&str, Option<&str>)| ((*k).to_owned(), v.map(str::to_owned));
        record.metadata = pairs.iter().map(owned).collect();
        self.put(&keys::metadata(&id(n)), &record)
    }

    pub(super) fn report(&mut self, unit: &str, n: u32, active: &str) -> Done {
        self.report_launch(unit, n, active, 1)
    }

    pub(super) fn report_launch(&mut self, unit: &str, n: u32, active: &str, launch: u64) -> Done {
        let state = UnitState {
            v: 1,
            load: "loaded".into(),
            active: active.into(),
            sub: String::new(),
            hash: String::new(),
            launch,
            error: None,
        };
        self.put(&keys::state(&id(n), &name(unit)), &state)
    }

    pub(super) fn put(&mut self, key: &str, record: &impl Serialize) -> Done {
        let value = serde_json::to_vec(record).expect("renders");
        self.revision += 1;
        let revision = Revision(self.revision);
        self.cluster.put(key, &value, revision);
        let engine = &self.engine;
        let delta = Delta::read(key, Some(&value), revision, |unit, hash| engine.has_file(unit, hash));
        self.step(Event::Hub(delta.expect("readable").into_iter().collect()))
    }

    pub(super) fn delete(&mut self, keys: &[String]) -> Done {
        let mut deltas = Vec::new();
        for key in keys {
            self.cluster.delete(key);
            deltas.extend(Delta::read(key, None, Revision(0), |_, _| false).expect("readable"));
        }
        self.step(Event::Hub(deltas))
    }

    pub(super) fn advance(&mut self, time: Duration) -> Done {
        self.now = self.now.after(time);
        self.step(Event::Tick)
    }

    /// Steps, carries out what the engine says and tells it so, as a watch would.
    pub(super) fn step(&mut self, event: Event) -> Done {
        let mut done = Done::default();
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let mut out = Vec::new();
            self.engine.step(self.now, event, &mut out);
            let mut echo = Vec::new();
            for effect in out {
                match effect {
                    Effect::Schedule(placement) => {
                        let Placement { unit, machine, record, .. } = placement.clone();
                        let value = serde_json::to_vec(&record).expect("renders");
                        self.cluster.put(&keys::schedule(&machine, &unit), &value, Revision(9));
                        echo.push(Delta::Schedule(machine, unit, Some(record)));
                        done.scheduled.push(placement);
                    }
                    Effect::Unschedule { unit, machine, why } => {
                        self.cluster.delete(&keys::schedule(&machine, &unit));
                        echo.push(Delta::Schedule(machine.clone(), unit.clone(), None));
                        done.unscheduled.push((unit, machine, why));
                    }
                    Effect::Forget(_) => {}
                    Effect::ForgetMachine(machine) => {
                        self.cluster.maintenance.remove(&machine);
                        self.cluster.metadata.remove(&machine);
                        echo.push(Delta::Maintenance(machine.clone(), None));
                        echo.push(Delta::Metadata(machine, None));
                    }
                    Effect::Probe => events.push(Event::Overdue(self.overdue.clone())),
                    Effect::SetTimer(at) => self.timer = Some(at),
                    Effect::Tell(notice) => self.notices.push(notice),
                }
            }
            if !echo.is_empty() {
                let mut more = Vec::new();
                self.engine.step(self.now, Event::Hub(echo), &mut more);
                more.retain(|effect| matches!(effect, Effect::Schedule(_) | Effect::Unschedule { .. }));
                assert_eq!(more, [], "hearing of its own writes changes nothing");
            }
        }
        done
    }

    pub(super) fn at(&self, unit: &str) -> Option<u32> {
        let machine = self.cluster.machine_of(&name(unit))?;
        u32::from_str_radix(machine.short(), 16).ok()
    }

    pub(super) fn schedule(&self) -> BTreeMap<UnitName, BTreeSet<MachineId>> {
        let on = |(unit, machines): (&UnitName, &BTreeMap<MachineId, ScheduleRecord>)| {
            (unit.clone(), machines.keys().cloned().collect())
        };
        self.cluster.schedule.iter().map(on).collect()
    }

    pub(super) fn why(&self, unit: &str, n: u32) -> String {
        let why = self.engine.why(&name(unit)).expect("known");
        let verdict = why.verdicts.iter().find(|verdict| verdict.machine == id(n)).expect("present");
        verdict.refused.as_ref().map_or_else(String::new, |(_, refusal)| refusal.to_string())
    }
}
