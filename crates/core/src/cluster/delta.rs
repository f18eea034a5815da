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
    /// What a machine says of a unit.
    State(MachineId, UnitName, Said),
    /// An order to move a unit to a machine.
    Move(UnitName, Option<MachineId>),
}

/// What a machine says of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// It has no such unit.
    Nothing,
    /// Something of it runs.
    Runs,
    /// Nothing of it runs, and this is the start order that was carried out last. A fence that stops a unit takes that
    /// back.
    Stands {
        /// The order's number; 0 for none.
        launch: u64,
    },
}

impl From<&UnitState> for Said {
    fn from(state: &UnitState) -> Self {
        if state.is_running() { Self::Runs } else { Self::Stands { launch: state.launch } }
    }
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
                Self::State(machine, name, state.as_ref().map_or(Said::Nothing, Said::from))
            }
            Place::Move(name) => Self::Move(name, record::<MoveRecord>(value)?.map(|order| order.to)),
            Place::Leader | Place::Other => return Ok(None),
        }))
    }
}
