//! A store out of its durable records.
//!
//! Takes them as they were given out, or as a database keeps them: leases and the compaction first, rows in order, old
//! rows dropped or not. Invariant: both give the same store, and leases start at their full time: nobody loses a
//! lease because the hub was down.

use crate::alarm::Alarm;
use crate::auth::Auth;
use crate::error::ReplayError;
use crate::index::Version;
use crate::noun::{Batch, Event, EventKind, KeyValue, LeaseId, Record, Revision, RowId};
use crate::store::Store;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// No revision or version is greater: at a million a second it takes a hundred thousand years to come here.
const LARGEST: i64 = 1 << 62;

/// A store, and what its storage may drop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// The store.
    pub store: Store,
    /// Rows among the records that nobody can read any more: a compaction whose rows were not all dropped.
    pub obsolete: Vec<RowId>,
}

impl Store {
    /// Rebuilds the store. `now` is the start of every lease.
    pub fn replay(records: impl IntoIterator<Item = Record>, now: Duration) -> Result<Replayed, ReplayError> {
        let mut replay = Replay::default();
        for record in records {
            replay.take(record)?;
        }
        replay.finish(now)
    }
}

#[derive(Default)]
struct Replay {
    rows: Vec<(Bytes, Version)>,
    leases: BTreeMap<LeaseId, i64>,
    compacted: Option<Revision>,
    auth: Auth,
    alarms: BTreeSet<Alarm>,
}

impl Replay {
    fn take(&mut self, record: Record) -> Result<(), ReplayError> {
        match record {
            Record::Put { row, key, value, lease, create_revision, version } => {
                self.row(key, Version { row, create_revision, version, lease, value })?;
            }
            Record::Delete { row, key } => self.row(key, Version::tombstone(row))?,
            Record::LeaseGrant { id, ttl } => {
                self.leases.insert(id, ttl);
            }
            Record::LeaseRevoke { id } => {
                self.leases.remove(&id);
            }
            Record::Compact { revision, .. } => {
                possible(revision.0)?;
                self.compacted = self.compacted.max(Some(revision));
            }
            Record::Alarm { alarm, raised: true } => {
                self.alarms.insert(alarm);
            }
            Record::Alarm { alarm, raised: false } => {
                self.alarms.remove(&alarm);
            }
            Record::Auth { state } => self.auth = Auth::decode(&state).ok_or(ReplayError::Auth)?,
        }
        Ok(())
    }

    fn row(&mut self, key: Bytes, version: Version) -> Result<(), ReplayError> {
        possible(version.row.main.0)?;
        possible(version.version)?;
        if let Some((_, last)) = self.rows.last()
            && last.row >= version.row
        {
            return Err(ReplayError::OutOfOrder { last: last.row, next: version.row });
        }
        self.rows.push((key, version));
        Ok(())
    }

    fn finish(self, now: Duration) -> Result<Replayed, ReplayError> {
        let mut store = Store::new();
        store.auth = self.auth;
        store.alarms = self.alarms;
        if let Some(compacted) = self.compacted {
            store.compacted = compacted;
            store.revision = store.revision.max(compacted);
        }
        for (id, ttl) in self.leases {
            // The map has each id once, and what was granted once is within the bounds.
            let _ = store.leases.grant(now, id, ttl);
        }
        let mut batch: Option<Batch> = None;
        for (key, version) in self.rows {
            let main = version.row.main;
            if main >= store.compacted {
                if batch.as_ref().is_some_and(|open| open.revision != main) {
                    close(&mut store, &mut batch);
                }
                if batch.is_none() {
                    let expected = store.revision.next();
                    if main > store.compacted && main != expected {
                        return Err(ReplayError::Missing { missing: expected, next: version.row });
                    }
                    batch = Some(Batch { revision: main, events: Vec::with_capacity(1) });
                }
                if let Some(open) = &mut batch {
                    open.events.push(event(&store, &key, &version));
                }
            }
            store.index.push(key, version);
        }
        close(&mut store, &mut batch);

        let attached: Vec<(LeaseId, Bytes)> =
            store.index.newest().map(|(key, version)| (version.lease, key.clone())).collect();
        for (lease, key) in attached {
            store.leases.attach(lease, &key);
        }
        let mut obsolete = Vec::new();
        if self.compacted.is_some() {
            store.index.compact_all(store.compacted, &mut obsolete);
            store.settle_first_batch(&mut obsolete);
            obsolete.sort_unstable();
        }
        Ok(Replayed { store, obsolete })
    }
}

fn possible(number: i64) -> Result<(), ReplayError> {
    if number > LARGEST { Err(ReplayError::TooLarge { number }) } else { Ok(()) }
}

fn close(store: &mut Store, batch: &mut Option<Batch>) {
    if let Some(mut batch) = batch.take() {
        batch.events.shrink_to_fit();
        store.revision = store.revision.max(batch.revision);
        store.log.push_back(Arc::new(batch));
    }
}

fn event(store: &Store, key: &Bytes, version: &Version) -> Event {
    let main = version.row.main;
    let prev_kv = store.index.get(key, main.previous()).map(|before| before.key_value(key));
    if version.is_tombstone() {
        let kv = KeyValue { key: key.clone(), mod_revision: main, ..KeyValue::default() };
        Event { kind: EventKind::Delete, kv, prev_kv }
    } else {
        let prev_kv = prev_kv.filter(|_| version.version > 1); // a creation has nothing before it
        Event { kind: EventKind::Put, kv: version.key_value(key), prev_kv }
    }
}
