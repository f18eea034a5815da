//! Why: every placement, every removal and every refusal, as data and in words.
//!
//! Nothing is decided here. Invariant: whatever the engine does or does not do has one of these.

use model::{MachineId, Maintenance, UnitName};
use serde::Serialize;
use std::{collections::BTreeSet, fmt};

/// Why a unit leaves a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Removal {
    /// It was destroyed.
    Destroyed,
    /// Nobody wants it to run.
    Inactive,
    /// The machine is gone.
    MachineLost,
    /// It may no longer run there.
    Refused(Refusal),
    /// It runs on another machine already.
    Duplicate,
    /// The machine is drained.
    Drained,
    /// It moves to even out the load.
    Rebalanced,
    /// A unit that replaces it comes.
    Replaced(UnitName),
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Destroyed => f.write_str("destroyed"),
            Self::Inactive => f.write_str("no longer wanted"),
            Self::MachineLost => f.write_str("its machine is gone"),
            Self::Refused(refusal) => write!(f, "may no longer run there: {refusal}"),
            Self::Duplicate => f.write_str("scheduled to another machine too"),
            Self::Drained => f.write_str("its machine is drained"),
            Self::Rebalanced => f.write_str("moves to even out the load"),
            Self::Replaced(by) => write!(f, "{by} takes its place (Replaces)"),
        }
    }
}

/// Why a machine was chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It had the fewest units of those that fit.
    LeastLoaded {
        /// How many it had.
        units: u32,
    },
    /// It is the only one that fits.
    OnlyFit,
    /// The unit follows another one.
    Follows(UnitName),
    /// The unit is global.
    Global,
    /// The unit was there before, and its file or its desired state changed.
    Updated,
    /// The unit takes the place of another one.
    Replaces(UnitName),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeastLoaded { units } => write!(f, "fewest units ({units}) of the machines that fit"),
            Self::OnlyFit => f.write_str("the only machine that fits"),
            Self::Follows(peer) => write!(f, "where {peer} runs (MachineOf)"),
            Self::Global => f.write_str("global unit"),
            Self::Updated => f.write_str("updated in place"),
            Self::Replaces(victim) => write!(f, "takes the place of {victim} (Replaces)"),
        }
    }
}

/// The rule by which a machine cannot run a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// `MachineID=` names another machine.
    MachineId(String),
    /// `MachineMetadata=` asks for what the machine has not.
    Metadata {
        /// Which key.
        key: String,
        /// The values that would do.
        wanted: BTreeSet<String>,
        /// What the machine has.
        has: Option<String>,
    },
    /// `MachineOf=` names a unit that is not there.
    PeerElsewhere {
        /// Which unit.
        peer: UnitName,
        /// Where it is.
        machine: Option<MachineId>,
    },
    /// Units that follow each other in a circle, each behind the one that it follows.
    Circle(Vec<UnitName>),
    /// `Conflicts=`, of this unit or of the other.
    Conflict(UnitName),
    /// A unit there replaces this one.
    ReplacedBy(UnitName),
    /// This unit would replace one that cannot run elsewhere.
    CannotDisplace(UnitName),
    /// The machine shuts down.
    Leaving,
    /// Nothing new may come to the machine.
    Maintenance(Maintenance),
    /// Limits on memory of the units there leave too little, in bytes.
    Memory {
        /// What the unit may use.
        needs: u64,
        /// What is left.
        free: u64,
    },
    /// Limits on processors of the units there leave too little, in thousandths of one.
    Cpu {
        /// What the unit may use.
        needs: u64,
        /// What is left.
        free: u64,
    },
    /// `OnPartition=stop`: it may still run on that machine.
    Fenced(MachineId),
    /// Its own file cannot be read.
    Unreadable(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MachineId(wanted) => write!(f, "MachineID={wanted} is another machine"),
            Self::Metadata { key, wanted, has } => {
                let wanted = wanted.iter().map(String::as_str).collect::<Vec<_>>().join(" or ");
                match has {
                    Some(has) => write!(f, "MachineMetadata {key}={wanted} is asked for, it has {key}={has}"),
                    None => write!(f, "MachineMetadata {key}={wanted} is asked for, it has no {key}"),
                }
            }
            Self::PeerElsewhere { peer, machine: Some(machine) } => {
                write!(f, "MachineOf={peer} runs on {}", machine.short())
            }
            Self::PeerElsewhere { peer, machine: None } => {
                write!(f, "MachineOf={peer} is not scheduled anywhere (start it first)")
            }
            Self::Circle(units) => {
                let units = units.iter().map(UnitName::as_str).collect::<Vec<_>>().join(" → ");
                write!(f, "MachineOf goes round in a circle: {units} (remove one of them)")
            }
            Self::Conflict(other) => write!(f, "conflicts with {other}, which runs there"),
            Self::ReplacedBy(other) => write!(f, "{other}, which runs there, replaces it"),
            Self::CannotDisplace(other) => {
                write!(f, "it would replace {other}, which no other machine can run")
            }
            Self::Leaving => f.write_str("the machine shuts down"),
            Self::Maintenance(state) => write!(f, "the machine is {state}"),
            Self::Memory { needs, free } => {
                write!(f, "MemoryMax is {}, {} left", Bytes(*needs), Bytes(*free))
            }
            Self::Cpu { needs, free } => {
                write!(f, "CPUQuota is {}%, {}% left", needs / 10, free / 10)
            }
            Self::Fenced(machine) => {
                write!(f, "it may still run on {} (OnPartition=stop)", machine.short())
            }
            Self::Unreadable(problem) => write!(f, "its unit file cannot be read: {problem}"),
        }
    }
}

struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mebibytes = self.0 / (1 << 20);
        if mebibytes >= 10 * 1024 {
            write!(f, "{} GiB", mebibytes / 1024)
        } else {
            write!(f, "{mebibytes} MiB")
        }
    }
}
