//! Alarms: what is wrong with a member, until somebody says that it no longer is.
//!
//! Not responsible for finding out what is wrong, nor for what is refused meanwhile: whoever owns the store does.
//! Invariant: an alarm is raised once per member and kind, and only [`Store::alarm_disarm`] ends it.

use crate::noun::Record;
use crate::store::{Applied, Store};

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AlarmKind {
    /// The quota is used up: nothing may be added.
    NoSpace,
    /// Members have different data: nothing may be changed.
    Corrupt,
}

/// An alarm, sorted as etcd lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Alarm {
    /// What is wrong.
    pub kind: AlarmKind,
    /// With whom.
    pub member: u64,
}

impl Store {
    /// Alarms that nobody disarmed yet.
    pub fn alarms(&self) -> impl Iterator<Item = Alarm> {
        self.alarms.iter().copied()
    }

    /// Whether there is an alarm of this kind, with any member.
    pub fn has_alarm(&self, kind: AlarmKind) -> bool {
        // Asked before every write: nearly always there are none.
        self.alarms.iter().any(|alarm| alarm.kind == kind)
    }

    /// Raises an alarm; one that is there already stays.
    pub fn alarm_raise(&mut self, alarm: Alarm) -> Applied<()> {
        let records =
            if self.alarms.insert(alarm) { vec![Record::Alarm { alarm, raised: true }] } else { Vec::new() };
        Applied { response: (), records, events: None }
    }

    /// Ends an alarm; the response is whether there was one.
    pub fn alarm_disarm(&mut self, alarm: Alarm) -> Applied<bool> {
        let was = self.alarms.remove(&alarm);
        let records = if was { vec![Record::Alarm { alarm, raised: false }] } else { Vec::new() };
        Applied { response: was, records, events: None }
    }

    /// Records of all alarms.
    pub fn alarm_records(&self) -> Vec<Record> {
        self.alarms().map(|alarm| Record::Alarm { alarm, raised: true }).collect()
    }
}
