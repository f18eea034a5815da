//! Updates of units: texts that a unit had before, and rollouts, which bring a new text into a unit or into all
//! instances of a template, a few at a time.
//!
//! Here are the records; what a rollout does next is decided in `core::rollout`. Invariant: a unit keeps at most
//! [`KEPT_VERSIONS`] former texts, because the oldest goes in the transaction that adds one.

use crate::{RECORD_VERSION, Timestamp, UnitName, UnitRecord, Unknown};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// Former texts that a unit keeps: as many as anybody goes back, and bounded whatever is replaced by a script.
pub const KEPT_VERSIONS: u64 = 10;

/// A text that a unit had before: the value of [`crate::keys::version`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HistoryRecord {
    /// Record version.
    pub v: u32,
    /// The unit file.
    pub text: String,
    /// Its hash.
    pub hash: String,
    /// When it was replaced.
    pub at: Timestamp,
    /// Who replaced it; empty when nobody said so.
    #[serde(default)]
    pub by: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl HistoryRecord {
    /// What `unit` had until it was replaced.
    pub fn of(unit: &UnitRecord, at: Timestamp, by: &str) -> Self {
        Self {
            v: RECORD_VERSION,
            text: unit.text.clone(),
            hash: unit.hash.clone(),
            at,
            by: by.to_owned(),
            unknown: Unknown::new(),
        }
    }
}

/// How a rollout stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RolloutState {
    /// The next unit is replaced as soon as the last is ready.
    Running,
    /// No further unit is replaced until somebody says so.
    Paused,
    /// It failed or was given up: what it replaced gets its former text back.
    RollingBack,
    /// All units have the new text and were ready with it.
    Done,
    /// It failed and was told to leave things as they are.
    Failed,
    /// What it replaced has its former text again.
    RolledBack,
}

impl RolloutState {
    /// Whether anything is still to be done.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Running | Self::Paused | Self::RollingBack)
    }

    /// The word that the hub, the API and the tables use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::RollingBack => "rolling-back",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::RolledBack => "rolled-back",
        }
    }
}

impl fmt::Display for RolloutState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How far a rollout is with one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Progress {
    /// It has its former text.
    Waiting,
    /// It was given the new text and is not ready yet.
    Updating,
    /// It is ready with the new text.
    Ready,
    /// It was given its former text again and is not ready yet.
    RollingBack,
    /// It has its former text again.
    RolledBack,
    /// It was destroyed or replaced by somebody else: no concern of the rollout any longer.
    Gone,
}

impl Progress {
    /// The word that the hub, the API and the tables use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Updating => "updating",
            Self::Ready => "ready",
            Self::RollingBack => "rolling-back",
            Self::RolledBack => "rolled-back",
            Self::Gone => "gone",
        }
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One unit of a rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RolloutUnit {
    /// Which unit.
    pub unit: UnitName,
    /// How far it is.
    pub progress: Progress,
    /// Hash of the text that this rollout replaced, a key of [`RolloutRecord::former`]; `None` when it replaced none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<String>,
    /// It had ended by itself before it was replaced, so that it may end again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
    /// Units that follow it, ran before it was replaced, and must run again once it does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub followers: Vec<UnitName>,
    /// The name of the machine that it was seen on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub machine: String,
    /// What is to be said about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl RolloutUnit {
    /// A unit that nothing was done to yet.
    pub fn new(unit: UnitName) -> Self {
        Self {
            unit,
            progress: Progress::Waiting,
            former: None,
            ended: false,
            followers: Vec::new(),
            machine: String::new(),
            message: String::new(),
            unknown: Unknown::new(),
        }
    }
}

/// An update of a unit, or of a template and its instances: the value of [`crate::keys::rollout`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RolloutRecord {
    /// Record version.
    pub v: u32,
    /// The new unit file.
    pub text: String,
    /// Its hash.
    pub hash: String,
    /// How many units may be out of service at the same time for it.
    pub at_once: u32,
    /// Milliseconds that a unit may take until it is ready.
    pub ready_timeout: u64,
    /// Milliseconds that a unit must stay ready before it counts as such.
    pub settle: u64,
    /// Whether to give the former text back when it fails.
    pub rollback: bool,
    /// How it stands.
    pub state: RolloutState,
    /// In the order in which they are replaced.
    pub units: Vec<RolloutUnit>,
    /// Texts that were replaced, by their hashes.
    #[serde(default)]
    pub former: BTreeMap<String, String>,
    /// Why it stands so.
    #[serde(default)]
    pub message: String,
    /// Who ordered it.
    #[serde(default)]
    pub by: String,
    /// When it was ordered.
    pub at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub unknown: Unknown,
}
