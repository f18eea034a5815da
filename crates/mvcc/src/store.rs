//! The store: commands in; responses, durable records and events out.
//!
//! Responsible for the current and the compacted revision, the event log between the two, and the leases. Not
//! responsible for durability or delivery: whoever owns the store writes the records of an [`Applied`] to disk before
//! showing anyone its response or its events. Invariant: the log has exactly one batch for every revision from
//! the compacted one (or 2) up to the current one.

use crate::alarm::Alarm;
use crate::auth::Auth;
use crate::error::Error;
use crate::hash;
use crate::index::Index;
use crate::lease::Leases;
use crate::noun::{Batch, KeyRange, LeaseId, Record, Revision, SharedBatch};
use crate::range;
use crate::request::{
    CompactResponse, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, LeaseGrantResponse,
    LeaseKeepAliveResponse, LeaseRevokeResponse, LeaseTimeToLiveResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, TxnRequest, TxnResponse,
};
use crate::txn::{self, Plan, Write};
use bytes::Bytes;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// What a mutation did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "the records must be durable before the response is shown"]
pub struct Applied<T> {
    /// For the client.
    pub response: T,
    /// For the disk, all or none; empty if nothing changed.
    pub records: Vec<Record>,
    /// For the watchers; none if no key changed.
    pub events: Option<Arc<Batch>>,
}

impl<T> Applied<T> {
    /// The same with another response.
    pub fn map<U>(self, convert: impl FnOnce(T) -> U) -> Applied<U> {
        Applied { response: convert(self.response), records: self.records, events: self.events }
    }
}

/// etcd's key-value store and lessor, in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    pub(crate) revision: Revision,
    /// -1 before the first compaction, as in etcd: revision 0 may be compacted once.
    pub(crate) compacted: Revision,
    pub(crate) index: Index,
    pub(crate) log: VecDeque<SharedBatch>,
    pub(crate) leases: Leases,
    pub(crate) auth: Auth,
    pub(crate) alarms: BTreeSet<Alarm>,
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// An empty store, at revision 1.
    pub fn new() -> Self {
        Self {
            revision: Revision(1),
            compacted: Revision(-1),
            index: Index::default(),
            log: VecDeque::new(),
            leases: Leases::default(),
            auth: Auth::default(),
            alarms: BTreeSet::new(),
        }
    }

    /// The current revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The lowest revision that can still be read; -1 if nothing was ever compacted.
    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// Bytes that keys, values and their history take, about.
    pub fn size(&self) -> u64 {
        self.index.size()
    }

    /// Bytes of that which only the history takes: what a compaction of all but the present would free, about.
    pub fn history_size(&self) -> u64 {
        self.index.history_size()
    }

    /// Reads keys.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        txn::check_range(request)?;
        let at = self.check_revision(request.revision)?;
        Ok(range::read(&self.index, request, at, self.revision))
    }

    /// Reads keys as they were when `current` was the revision: what an owner shows whose later revisions are not
    /// durable yet. `current` is not below the compacted revision.
    pub fn range_as_of(&self, request: &RangeRequest, current: Revision) -> Result<RangeResponse, Error> {
        txn::check_range(request)?;
        let at = self.check_revision_as_of(request.revision, current)?;
        Ok(range::read(&self.index, request, at, current))
    }

    /// Records of up to `keys` keys after `after` (none: from the first on): their history up to revision `at`, and
    /// the last of those keys. For whoever saves the store piece by piece while it changes: with
    /// [`lease_records`](Self::lease_records) of the moment when `at` was current, and the compaction, the pieces are the
    /// store at `at`, provided that nothing was compacted in between.
    pub fn records(&self, after: Option<&Bytes>, keys: usize, at: Revision) -> (Vec<Record>, Option<Bytes>) {
        self.index.records(after, keys, at)
    }

    /// Records of all leases.
    pub fn lease_records(&self) -> Vec<Record> {
        self.leases.iter().map(|(id, ttl)| Record::LeaseGrant { id, ttl }).collect()
    }

    /// Writes a key.
    pub fn put(&mut self, request: PutRequest) -> Result<Applied<PutResponse>, Error> {
        txn::check_put(&request)?;
        // In a transaction etcd checks the other way round.
        self.check_lease(&request)?;
        self.check_kept(&request)?;
        Ok(self.write(|write| write.put(request)))
    }

    /// Deletes keys.
    pub fn delete_range(
        &mut self,
        request: &DeleteRangeRequest,
    ) -> Result<Applied<DeleteRangeResponse>, Error> {
        txn::check_delete(request)?;
        Ok(self.write(|write| write.delete_range(request)))
    }

    /// Runs a transaction.
    pub fn txn(&mut self, request: TxnRequest) -> Result<Applied<TxnResponse>, Error> {
        txn::check(&request)?;
        let plan = Plan::make(self, &request)?;
        let mut applied = self.write(|write| plan.run(request, write));
        applied.response.revision = self.revision;
        Ok(applied)
    }

    /// Forgets the history below `revision`.
    pub fn compact(&mut self, revision: Revision) -> Result<Applied<CompactResponse>, Error> {
        if revision <= self.compacted {
            return Err(Error::Compacted);
        }
        if revision > self.revision {
            return Err(Error::FutureRevision);
        }
        self.compacted = revision;
        let mut obsolete = Vec::new();
        // Only a key that changed in what the log loses can have versions that nobody reads any more.
        while let Some(batch) = self.log.front()
            && batch.revision < revision
        {
            let batch = Arc::clone(batch);
            self.log.pop_front();
            for event in &batch.events {
                self.index.compact_key(&event.kv.key, revision, &mut obsolete);
            }
        }
        self.settle_first_batch(&mut obsolete);
        obsolete.sort_unstable();
        obsolete.dedup();
        let response = CompactResponse { revision: self.revision };
        Ok(Applied { response, records: vec![Record::Compact { revision, obsolete }], events: None })
    }

    /// The batch at the compacted revision: what its keys were before can no longer be read, so it must not be told.
    pub(crate) fn settle_first_batch(&mut self, obsolete: &mut Vec<crate::noun::RowId>) {
        let Some(first) = self.log.front_mut().filter(|first| first.revision == self.compacted) else {
            return;
        };
        for event in &mut Arc::make_mut(first).events {
            event.prev_kv = None;
            self.index.compact_key(&event.kv.key, self.compacted, obsolete);
        }
    }

    /// Grants a lease.
    pub fn lease_grant(
        &mut self,
        now: Duration,
        request: LeaseGrantRequest,
    ) -> Result<Applied<LeaseGrantResponse>, Error> {
        let id = request.id;
        let ttl = self.leases.grant(now, id, request.ttl)?;
        let response = LeaseGrantResponse { revision: self.revision, id, ttl };
        Ok(Applied { response, records: vec![Record::LeaseGrant { id, ttl }], events: None })
    }

    /// Ends a lease and deletes its keys, in one revision. Also what the owner does with each of
    /// [`expired`](Self::expired).
    pub fn lease_revoke(&mut self, id: LeaseId) -> Result<Applied<LeaseRevokeResponse>, Error> {
        let keys = self.leases.get(id).ok_or(Error::LeaseNotFound)?.keys.clone();
        let mut applied = self.write(|write| {
            for key in keys {
                write.delete_range(&DeleteRangeRequest::new(KeyRange::key(key)));
            }
        });
        self.leases.remove(id);
        applied.records.push(Record::LeaseRevoke { id });
        let revision = self.revision;
        Ok(applied.map(|()| LeaseRevokeResponse { revision }))
    }

    /// Starts a lease's time anew. Leaves no record: a lease that was alive at a restart gets its full time anyway.
    pub fn lease_keep_alive(&mut self, now: Duration, id: LeaseId) -> LeaseKeepAliveResponse {
        let ttl = self.leases.keep_alive(now, id).unwrap_or(0);
        LeaseKeepAliveResponse { revision: self.revision, id, ttl }
    }

    /// How a lease stands, with its keys if `keys`.
    pub fn lease_time_to_live(&self, now: Duration, id: LeaseId, keys: bool) -> LeaseTimeToLiveResponse {
        let revision = self.revision;
        let Some(lease) = self.leases.get(id) else {
            return LeaseTimeToLiveResponse { revision, id, ttl: -1, granted_ttl: 0, keys: Vec::new() };
        };
        let left = lease.deadline.saturating_sub(now).as_secs();
        LeaseTimeToLiveResponse {
            revision,
            id,
            ttl: i64::try_from(left).unwrap_or(i64::MAX),
            granted_ttl: lease.ttl,
            keys: if keys { lease.keys.iter().cloned().collect() } else { Vec::new() },
        }
    }

    /// All leases, soonest to expire first.
    pub fn leases(&self) -> Vec<LeaseId> {
        self.leases.ids().collect()
    }

    /// When the next lease expires, if there is one.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.leases.next_deadline()
    }

    /// Leases whose time is over; the owner revokes each.
    pub fn expired(&self, now: Duration) -> Vec<LeaseId> {
        self.leases.expired(now).collect()
    }

    /// Every batch from revision `from` on, oldest first; none if `from` is in the future. Refused if some of it is
    /// compacted.
    pub fn history(&self, from: Revision) -> Result<impl Iterator<Item = &Arc<Batch>>, Error> {
        if from < self.compacted {
            return Err(Error::Compacted);
        }
        let first = self.log.front().map_or_else(|| self.revision.next(), |batch| batch.revision);
        let skip = usize::try_from(from.0.saturating_sub(first.0)).unwrap_or(0);
        Ok(self.log.range(skip.min(self.log.len())..))
    }

    /// A CRC-32C over everything readable at or below `at` (0 or less: now).
    pub fn hash(&self, at: Revision) -> Result<u32, Error> {
        let at = self.check_revision(at)?;
        Ok(hash::of(&self.index, at))
    }

    /// The revision to read at.
    pub(crate) fn check_revision(&self, asked: Revision) -> Result<Revision, Error> {
        self.check_revision_as_of(asked, self.revision)
    }

    fn check_revision_as_of(&self, asked: Revision, current: Revision) -> Result<Revision, Error> {
        if asked.0 <= 0 {
            return Ok(current);
        }
        if asked > current {
            return Err(Error::FutureRevision);
        }
        if asked < self.compacted {
            return Err(Error::Compacted);
        }
        Ok(asked)
    }

    /// Whether the key is there if the put needs what it has.
    pub(crate) fn check_kept(&self, request: &PutRequest) -> Result<(), Error> {
        let keeps = request.ignore_value || request.ignore_lease;
        if keeps && self.index.get(&request.key, self.revision).is_none() {
            return Err(Error::KeyNotFound);
        }
        Ok(())
    }

    /// Whether the put's lease is there.
    pub(crate) fn check_lease(&self, request: &PutRequest) -> Result<(), Error> {
        if !request.lease.is_none() && self.leases.get(request.lease).is_none() {
            return Err(Error::LeaseNotFound);
        }
        Ok(())
    }

    fn write<T>(&mut self, work: impl FnOnce(&mut Write<'_>) -> T) -> Applied<T> {
        let mut write = Write::new(self);
        let response = work(&mut write);
        let Write { mut events, records, .. } = write;
        if events.is_empty() {
            return Applied { response, records, events: None };
        }
        self.revision = self.revision.next();
        events.shrink_to_fit();
        let batch = Arc::new(Batch { revision: self.revision, events });
        self.log.push_back(Arc::clone(&batch));
        Applied { response, records, events: Some(batch) }
    }
}
