//! The store as it was at one moment, read piece by piece while it changes.
//!
//! A copy of 100,000 keys held the apply thread for 50 ms; a piece holds it for some hundred microseconds at most.
//! Invariant: all pieces together are the store of that moment; if a compaction came between, there are none.

use crate::shared::Shared;
use crate::storage::GivenUp;
use bytes::Bytes;
use mvcc::{Record, Revision, Store};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Keys read at a time.
const PIECE: usize = 1000;

pub(crate) struct Pieces {
    shared: Arc<Shared>,
    keys: usize,
    cancelled: Arc<AtomicBool>,
    at: Revision,
    compacted: Revision,
    /// Leases, users and roles, alarms, and the compaction; the first piece.
    first: Option<Vec<Record>>,
    after: Option<Bytes>,
    ended: bool,
}

impl Pieces {
    /// Of the store as it is now, which is `shared`'s. After every attempt that was given up the pieces are larger, so
    /// that one succeeds however often clients compact.
    pub(crate) fn new(
        store: &Store,
        shared: &Arc<Shared>,
        attempts: u32,
        cancelled: &Arc<AtomicBool>,
    ) -> Self {
        let (at, compacted) = (store.revision(), store.compacted());
        let mut first = store.lease_records();
        first.push(store.auth_record());
        first.extend(store.alarm_records());
        if compacted.0 >= 0 {
            first.push(Record::Compact { revision: compacted, obsolete: Vec::new() });
        }
        Self {
            shared: Arc::clone(shared),
            keys: PIECE << (3 * attempts.min(10)),
            cancelled: Arc::clone(cancelled),
            at,
            compacted,
            first: Some(first),
            after: None,
            ended: false,
        }
    }

    /// The moment.
    pub(crate) fn revision(&self) -> Revision {
        self.at
    }

    /// The next piece; none after the last.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<Record>>, GivenUp> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(GivenUp);
        }
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        if self.ended {
            return Ok(None);
        }
        let store = self.shared.read();
        if store.compacted() != self.compacted {
            return Err(GivenUp);
        }
        let (records, last) = store.records(self.after.as_ref(), self.keys, self.at);
        drop(store);
        self.ended = last.is_none();
        self.after = last;
        Ok(Some(records))
    }

    /// All of them. Blocks.
    pub(crate) fn gather(mut self) -> Result<Vec<Record>, GivenUp> {
        let mut all = Vec::new();
        while let Some(mut piece) = self.next()? {
            all.append(&mut piece);
        }
        Ok(all)
    }
}
