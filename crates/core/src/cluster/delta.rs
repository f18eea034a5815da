//! One change of the hub, read into what the engine needs of it.
//!
//! Only reading. Invariant: a value that cannot be read concerns its own entry only: it counts as if the key were as
//! it was before.

use super::Place;
use model::{
    DesiredState, MachineId, MachineRecord, MaintenanceRecord, MetadataRecord, MoveRecord, Revision,
    ScheduleRecord, UnitName, UnitRecord, UnitState,
};
use serde::de::DeserializeOwned;
use unit::Requirements;

/// What changed. `None` where a key is gone.
#[derive(Debug, Clone, PartialEq)]
pub enum Delta {
    /// A machine's presence.
    Machine(MachineId, Option<MachineRecord>),
    /// A machine's metadata from outside.
    Metadata(MachineId, Option<MetadataRecord>),
    /// What is wanted of a machine.
    Maintenance(MachineId, Option<MaintenanceRecord>),
    /// A unit's record.
    Unit(UnitName, Option<UnitDelta>),
    /// What a machine must do with a unit.
    Schedule(MachineId, UnitName, Option<ScheduleRecord>),
    /// Whether anything of a unit runs on a machine.
    State(MachineId, UnitName, bool),
    /// An order to move a unit to a machine.
    Move(UnitName, Option<MachineId>),
}

/// A unit's record without its text.
#[derive(Debug, Clone, PartialEq)]
pub struct UnitDelta {
    /// Hash of the file's meaning.
    pub hash: String,
    /// What is wanted of it.
    pub desired: DesiredState,
    /// The number of its last start order.
    pub launch: u64,
    /// When the record was written.
    pub revision: Revision,
    /// What `[X-Fleet]` asks for, or why it cannot be read; `None` when the file is as before.
    pub requirements: Option<Result<Requirements, String>>,
}

impl Delta {
    /// Reads a key that was written, or is gone (`value` is `None`). Gives `None` for keys that the engine does not
    /// need, and an error for values that cannot be read. `same_file` says whether a unit's file is known with that
    /// hash already: reading files is the dear part.
    pub fn read(
        key: &str,
        value: Option<&[u8]>,
        revision: Revision,
        same_file: impl Fn(&UnitName, &str) -> bool,
    ) -> Result<Option<Self>, serde_json::Error> {
        fn record<T: DeserializeOwned>(value: Option<&[u8]>) -> Result<Option<T>, serde_json::Error> {
            value.map(serde_json::from_slice).transpose()
        }
        Ok(Some(match Place::of(key) {
            Place::Machine(id) => Self::Machine(id, record(value)?),
            Place::Metadata(id) => Self::Metadata(id, record(value)?),
            Place::Maintenance(id) => Self::Maintenance(id, record(value)?),
            Place::Unit(name) => {
                let unit = record::<UnitRecord>(value)?.map(|record| UnitDelta {
                    requirements: (!same_file(&name, &record.hash)).then(|| {
                        unit::check(&name, &record.text)
                            .map(|checked| checked.requirements)
                            .map_err(|problem| problem.to_string())
                    }),
                    hash: record.hash,
                    desired: record.desired,
                    launch: record.launch,
                    revision,
                });
                Self::Unit(name, unit)
            }
            Place::Schedule(machine, name) => Self::Schedule(machine, name, record(value)?),
            Place::State(machine, name) => {
                let state = record::<UnitState>(value)?;
                Self::State(machine, name, state.is_some_and(|state| state.is_running()))
            }
            Place::Move(name) => Self::Move(name, record::<MoveRecord>(value)?.map(|order| order.to)),
            Place::Leader | Place::Other => return Ok(None),
        }))
    }
}
