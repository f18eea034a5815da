//! The cluster as the hub has it, read from keys and values into types.
//!
//! Only reading: nothing is decided here. Invariant: after the same puts and deletes in the same order, two
//! views are equal, whether they came from a listing or from a watch. A record that cannot be read is kept
//! apart in [`Cluster::unreadable`] and never stops the rest.

use model::{
    MachineId, MachineRecord, MaintenanceRecord, MetadataRecord, Revision, ScheduleRecord, UnitName,
    UnitRecord, UnitState, keys,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use unit::Requirements;

mod delta;
pub use delta::{Delta, Said, UnitDelta};

/// Who leads the cluster: the value of [`keys::LEADER`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderRecord {
    /// Record version.
    pub v: u32,
    /// The machine whose engine leads.
    pub machine: MachineId,
}

/// A unit with what its file asks of the engine.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    /// The hub's record.
    pub record: UnitRecord,
    /// When it was last written.
    pub revision: Revision,
    /// What `[X-Fleet]` asks for, or why it cannot be read.
    pub requirements: Result<Requirements, String>,
}

impl Unit {
    /// True when it runs on every machine that fits.
    pub fn is_global(&self) -> bool {
        self.requirements.as_ref().is_ok_and(|requirements| requirements.global)
    }
}

/// Everything under `/muster/v1/` that concerns machines and units.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cluster {
    /// Machines that are present.
    pub machines: BTreeMap<MachineId, MachineRecord>,
    /// What administrators want of machines.
    pub maintenance: BTreeMap<MachineId, MaintenanceRecord>,
    /// Metadata set on machines from outside.
    pub metadata: BTreeMap<MachineId, MetadataRecord>,
    /// Units that are known.
    pub units: BTreeMap<UnitName, Unit>,
    /// What is to run where.
    pub schedule: BTreeMap<UnitName, BTreeMap<MachineId, ScheduleRecord>>,
    /// What does run where.
    pub states: BTreeMap<UnitName, BTreeMap<MachineId, UnitState>>,
    /// Who leads, and since which revision: the term.
    pub leader: Option<(LeaderRecord, Revision)>,
    /// Keys whose values cannot be read, and why.
    pub unreadable: BTreeMap<String, String>,
}

/// What a change concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    /// A machine's presence, metadata or maintenance.
    Machine(MachineId),
    /// A unit's record.
    Unit(UnitName),
    /// Where a unit is to run.
    Schedule(UnitName),
    /// Where and how a unit runs.
    State(UnitName),
    /// Who leads.
    Leader,
    /// Nothing of ours.
    Other,
}

impl Cluster {
    /// A view from a full listing.
    pub fn from_listing<'a>(items: impl IntoIterator<Item = (&'a str, &'a [u8], Revision)>) -> Self {
        let mut cluster = Self::default();
        for (key, value, revision) in items {
            cluster.put(key, value, revision);
        }
        cluster
    }

    /// Takes in a written key.
    pub fn put(&mut self, key: &str, value: &[u8], revision: Revision) -> Touched {
        self.unreadable.remove(key);
        match Place::of(key) {
            Place::Machine(id) => {
                if let Some(record) = self.read(key, value) {
                    self.machines.insert(id.clone(), record);
                }
                Touched::Machine(id)
            }
            Place::Maintenance(id) => {
                if let Some(record) = self.read(key, value) {
                    self.maintenance.insert(id.clone(), record);
                }
                Touched::Machine(id)
            }
            Place::Metadata(id) => {
                if let Some(record) = self.read(key, value) {
                    self.metadata.insert(id.clone(), record);
                }
                Touched::Machine(id)
            }
            Place::Unit(name) => {
                if let Some(record) = self.read::<UnitRecord>(key, value) {
                    let requirements = match self.units.get(&name) {
                        // The same text asks for the same: parsing is the dear part.
                        Some(known) if known.record.text == record.text => known.requirements.clone(),
                        _ => unit::check(&name, &record.text)
                            .map(|checked| checked.requirements)
                            .map_err(|problem| problem.to_string()),
                    };
                    self.units.insert(name.clone(), Unit { record, revision, requirements });
                }
                Touched::Unit(name)
            }
            Place::Schedule(machine, name) => {
                if let Some(record) = self.read(key, value) {
                    self.schedule.entry(name.clone()).or_default().insert(machine, record);
                }
                Touched::Schedule(name)
            }
            Place::State(machine, name) => {
                if let Some(state) = self.read(key, value) {
                    self.states.entry(name.clone()).or_default().insert(machine, state);
                }
                Touched::State(name)
            }
            Place::Leader => {
                self.leader = self.read(key, value).map(|record| (record, revision));
                Touched::Leader
            }
            Place::Move(_) | Place::Other => Touched::Other,
        }
    }

    /// Takes in a deleted key.
    pub fn delete(&mut self, key: &str) -> Touched {
        self.unreadable.remove(key);
        match Place::of(key) {
            Place::Machine(id) => {
                self.machines.remove(&id);
                Touched::Machine(id)
            }
            Place::Maintenance(id) => {
                self.maintenance.remove(&id);
                Touched::Machine(id)
            }
            Place::Metadata(id) => {
                self.metadata.remove(&id);
                Touched::Machine(id)
            }
            Place::Unit(name) => {
                self.units.remove(&name);
                Touched::Unit(name)
            }
            Place::Schedule(machine, name) => {
                remove_nested(&mut self.schedule, &name, &machine);
                Touched::Schedule(name)
            }
            Place::State(machine, name) => {
                remove_nested(&mut self.states, &name, &machine);
                Touched::State(name)
            }
            Place::Leader => {
                self.leader = None;
                Touched::Leader
            }
            Place::Move(_) | Place::Other => Touched::Other,
        }
    }

    /// A machine's metadata with what was set from outside; empty when the machine is not there.
    pub fn metadata_of(&self, machine: &MachineId) -> model::Metadata {
        let own = self.machines.get(machine).map(|record| record.metadata.clone()).unwrap_or_default();
        self.metadata.get(machine).map_or_else(|| own.clone(), |outside| outside.over(&own))
    }

    /// Everything there is, as changes.
    pub fn deltas(&self) -> Vec<Delta> {
        let mut deltas = Vec::new();
        deltas.extend(self.machines.iter().map(|(id, r)| Delta::Machine(id.clone(), Some(r.clone()))));
        deltas.extend(self.metadata.iter().map(|(id, r)| Delta::Metadata(id.clone(), Some(r.clone()))));
        deltas.extend(self.maintenance.iter().map(|(id, r)| Delta::Maintenance(id.clone(), Some(r.clone()))));
        deltas.extend(self.units.iter().map(|(name, unit)| {
            let delta = UnitDelta {
                hash: unit.record.hash.clone(),
                desired: unit.record.desired,
                launch: unit.record.launch,
                revision: unit.revision,
                requirements: Some(unit.requirements.clone()),
            };
            Delta::Unit(name.clone(), Some(delta))
        }));
        for (name, machines) in &self.schedule {
            let on = machines.iter();
            deltas.extend(on.map(|(id, r)| Delta::Schedule(id.clone(), name.clone(), Some(r.clone()))));
        }
        for (name, machines) in &self.states {
            let on = machines.iter();
            deltas.extend(on.map(|(id, s)| Delta::State(id.clone(), name.clone(), s.into())));
        }
        deltas
    }

    /// The machine that a unit which is not global is scheduled to.
    pub fn machine_of(&self, unit: &UnitName) -> Option<&MachineId> {
        self.schedule.get(unit)?.keys().next()
    }

    fn read<T: DeserializeOwned>(&mut self, key: &str, value: &[u8]) -> Option<T> {
        serde_json::from_slice(value)
            .map_err(|error| self.unreadable.insert(key.to_owned(), error.to_string()))
            .ok()
    }
}

fn remove_nested<V>(
    map: &mut BTreeMap<UnitName, BTreeMap<MachineId, V>>,
    unit: &UnitName,
    machine: &MachineId,
) {
    if let Some(inner) = map.get_mut(unit) {
        inner.remove(machine);
        if inner.is_empty() {
            map.remove(unit);
        }
    }
}

/// Where a key belongs.
enum Place {
    Machine(MachineId),
    Maintenance(MachineId),
    Metadata(MachineId),
    Move(UnitName),
    Unit(UnitName),
    Schedule(MachineId, UnitName),
    State(MachineId, UnitName),
    Leader,
    Other,
}

impl Place {
    fn of(key: &str) -> Self {
        if key == keys::LEADER {
            return Self::Leader;
        }
        let place = if let Some(id) = key.strip_prefix(keys::MACHINES) {
            id.parse().ok().map(Self::Machine)
        } else if let Some(id) = key.strip_prefix(keys::MAINTENANCE) {
            id.parse().ok().map(Self::Maintenance)
        } else if let Some(id) = key.strip_prefix(keys::METADATA) {
            id.parse().ok().map(Self::Metadata)
        } else if let Some(name) = key.strip_prefix(keys::MOVES) {
            name.parse().ok().map(Self::Move)
        } else if let Some(name) = key.strip_prefix(keys::UNITS) {
            name.parse().ok().map(Self::Unit)
        } else if key.starts_with(keys::SCHEDULE) {
            keys::machine_and_unit(keys::SCHEDULE, key).map(|(machine, unit)| Self::Schedule(machine, unit))
        } else {
            keys::machine_and_unit(keys::STATES, key).map(|(machine, unit)| Self::State(machine, unit))
        };
        place.unwrap_or(Self::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn puts_and_deletes_cancel_out() {
        let id = "0123456789abcdef0123456789abcdef";
        let unit = r#"{"v":1,"text":"[Service]\nExecStart=/bin/true\n","hash":"x","desired":"launched"}"#;
        let mut cluster = Cluster::default();
        let name: UnitName = "a.service".parse().expect("valid");
        assert_eq!(
            cluster.put("/muster/v1/units/a.service", unit.as_bytes(), Revision(2)),
            Touched::Unit(name.clone())
        );
        assert!(cluster.units[&name].requirements.is_ok());
        let state = r#"{"v":1,"load":"loaded","active":"active","sub":"running","hash":"x"}"#;
        cluster.put(&format!("/muster/v1/states/{id}/a.service"), state.as_bytes(), Revision(3));
        assert_eq!(cluster.states[&name].len(), 1);
        cluster.delete("/muster/v1/units/a.service");
        cluster.delete(&format!("/muster/v1/states/{id}/a.service"));
        assert_eq!(cluster, Cluster::default());
    }

    #[test]
    fn what_cannot_be_read_is_kept_apart() {
        let mut cluster = Cluster::default();
        cluster.put("/muster/v1/units/a.service", b"rubbish", Revision(2));
        assert!(cluster.units.is_empty());
        assert_eq!(cluster.unreadable.len(), 1);
        cluster.delete("/muster/v1/units/a.service");
        assert_eq!(cluster, Cluster::default());
    }
}
