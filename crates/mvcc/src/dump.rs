//! A store as the records that make it: what a snapshot holds.
//!
//! The other way round is [`Store::replay`]. Invariant: replaying what is given out here gives the same store, its
//! leases at their full time.

use crate::auth::Auth;
use crate::noun::{Record, RowId};
use crate::store::Store;

impl Store {
    /// Everything that is readable: the compaction, if there was one; users and roles, if there ever were any; alarms;
    /// the leases by id; the rows in order.
    pub fn dump(&self) -> Vec<Record> {
        let mut rows: Vec<(RowId, Record)> = self
            .index
            .versions()
            .map(|(key, version)| {
                let (row, key) = (version.row, key.clone());
                let record = if version.is_tombstone() {
                    Record::Delete { row, key }
                } else {
                    Record::Put {
                        row,
                        key,
                        value: version.value.clone(),
                        lease: version.lease,
                        create_revision: version.create_revision,
                        version: version.version,
                    }
                };
                (row, record)
            })
            .collect();
        rows.sort_unstable_by_key(|(row, _)| *row);
        let compacted = self.compacted;
        let compact =
            (compacted.0 >= 0).then_some(Record::Compact { revision: compacted, obsolete: Vec::new() });
        let leases = self.leases.granted().map(|(id, ttl)| Record::LeaseGrant { id, ttl });
        let auth = (self.auth != Auth::default()).then(|| self.auth_record());
        let first = compact.into_iter().chain(auth).chain(self.alarm_records());
        first.chain(leases).chain(rows.into_iter().map(|(_, record)| record)).collect()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::{
        Alarm, AlarmKind, AuthCommand, DeleteRangeRequest, KeyRange, LeaseGrantRequest, LeaseId, PutRequest,
        Revision,
    };
    use std::time::Duration;

    #[test]
    fn a_store_survives_its_records() {
        let mut store = Store::new();
        assert_eq!(store.dump(), []);
        let grant = LeaseGrantRequest { id: LeaseId(7), ttl: 60 };
        let _ = store.lease_grant(Duration::ZERO, grant).unwrap();
        for key in ["b", "a", "c", "a"] {
            let _ = store.put(PutRequest { lease: LeaseId(7), ..PutRequest::new(key, "1") }).unwrap();
        }
        let _ = store.delete_range(&DeleteRangeRequest::new(KeyRange::from_key("b"))).unwrap();
        let role = AuthCommand::RoleAdd { name: "r".to_owned() };
        assert_eq!(store.auth_change(role).unwrap().records, [store.auth_record()]);
        let alarm = |member| Alarm { kind: AlarmKind::NoSpace, member };
        for member in [3, 4] {
            assert_eq!(store.alarm_raise(alarm(member)).records.len(), 1);
            assert_eq!(store.alarm_raise(alarm(member)).records, []);
        }
        assert!(store.alarm_disarm(alarm(4)).response && !store.alarm_disarm(alarm(4)).response);
        assert!(store.has_alarm(AlarmKind::NoSpace) && !store.has_alarm(AlarmKind::Corrupt));
        for compacted in [0, 4, 5, 6] {
            if compacted > 0 {
                let _ = store.compact(Revision(compacted)).unwrap();
            }
            let replayed = Store::replay(store.dump(), Duration::ZERO).unwrap();
            assert_eq!(replayed.store, store, "compacted at {compacted}");
            assert_eq!(replayed.obsolete, [], "compacted at {compacted}");
        }
    }
}
