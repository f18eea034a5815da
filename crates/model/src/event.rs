//! What happened in the cluster and why, as the hub keeps it for a day.
//!
//! Here are the record and its id; who writes events, and when, is the engine's driver. Invariant: ids sort by
//! time, and no two events of one writer share one.

use crate::{MachineId, RECORD_VERSION, UnitName, Unknown};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, time::Duration};

/// A point in time: milliseconds since 1970, as the clock of whoever writes it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The time `later` after this one.
    pub fn after(self, later: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(later.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long `earlier` was before this one; zero when it was not before.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// The last part of an event's key: time, the writer's term, and a number, in hexadecimal of fixed width, so that
/// texts sort as events happened.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EventId(String);

impl EventId {
    /// The id of a writer's `number`th event. `writer` is what no two writers share: the term of a leader.
    pub fn new(at: Timestamp, writer: i64, number: u32) -> Self {
        Self(format!("{:012x}-{writer:x}-{number:06x}", at.0))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is no event's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no id of an event: they look like `019aaf3c5e10-2a-000001`")]
pub struct EventIdError(String);

impl FromStr for EventId {
    type Err = EventIdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<_> = text.split('-').collect();
        let hex = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_hexdigit());
        if parts.len() == 3 && parts.iter().all(hex) {
            Ok(Self(text.to_owned()))
        } else {
            Err(EventIdError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for EventId {
    type Error = EventIdError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<EventId> for String {
    fn from(id: EventId) -> Self {
        id.0
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What kind of thing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A unit was put on a machine, or what it must do there changed.
    Scheduled,
    /// A unit was taken off a machine.
    Unscheduled,
    /// No machine can run a unit now.
    Waiting,
    /// A unit cannot leave the machine that is drained.
    Stuck,
    /// A machine came.
    MachineJoined,
    /// A machine is gone.
    MachineLost,
    /// Too many machines are gone at once: nothing is moved.
    Holding,
    /// What was held is decided again.
    Released,
    /// What is wanted of a machine changed: cordoned, draining, or open again.
    Maintenance,
    /// An update began, went on or ended.
    Rollout,
    /// Two say different things of one service, or claim one host and path; or that is over.
    Conflict,
    /// An engine began to lead.
    Leading,
    /// More happened than is written down.
    Dropped,
    /// A kind that this version does not know.
    #[serde(other)]
    Other,
}

impl EventKind {
    /// The word that the hub, the API and the tables use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Unscheduled => "unscheduled",
            Self::Waiting => "waiting",
            Self::Stuck => "stuck",
            Self::MachineJoined => "machine-joined",
            Self::MachineLost => "machine-lost",
            Self::Holding => "holding",
            Self::Released => "released",
            Self::Maintenance => "maintenance",
            Self::Rollout => "rollout",
            Self::Conflict => "conflict",
            Self::Leading => "leading",
            Self::Dropped => "dropped",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The value of [`crate::keys::event`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventRecord {
    /// Record version.
    pub v: u32,
    /// When.
    pub at: Timestamp,
    /// What kind.
    pub kind: EventKind,
    /// The unit that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<UnitName>,
    /// The machine that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineId>,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// The whole, as a sentence for people.
    pub message: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl EventRecord {
    /// An event about no unit and no machine yet.
    pub fn new(at: Timestamp, kind: EventKind, reason: String, message: String) -> Self {
        Self {
            v: RECORD_VERSION,
            at,
            kind,
            unit: None,
            machine: None,
            reason,
            message,
            unknown: Unknown::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_number() {
        let ids: Vec<_> = [(5, 1), (16, 0), (16, 10), (16, 11), (1_900_000_000_000, 0)]
            .map(|(at, number)| EventId::new(Timestamp(at), 42, number))
            .into();
        let mut sorted = ids.clone();
        sorted.sort();
        assert_eq!(ids, sorted);
        for id in ids {
            assert_eq!(id.as_str().parse(), Ok(id));
        }
        assert!("a/b".parse::<EventId>().is_err());
    }

    #[test]
    fn a_kind_of_a_newer_version_is_read() {
        let text = r#"{"v":1,"at":7,"kind":"eclipse","message":"dark"}"#;
        let record: EventRecord = serde_json::from_str(text).expect("parses");
        assert_eq!((record.kind, record.at), (EventKind::Other, Timestamp(7)));
    }
}
