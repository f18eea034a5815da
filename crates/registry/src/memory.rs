//! The hub in memory: the embedded hub's own semantics (`mvcc`) behind the same calls, without a network or a
//! disk. For tests and simulations.
//!
//! Leases end by tokio's clock, which a test may pause and advance.

use crate::store::{Change, Changes, Guard, KeyValue, Keys, Listing, Outcome, StoreError, Write};
use bytes::Bytes;
use model::{LeaseId, Revision};
use mvcc::{
    Compare, CompareOp, CompareTarget, DeleteRangeRequest, EventKind, KeyRange, LeaseGrantRequest,
    PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// A hub in memory. Clones are the same hub.
#[derive(Clone)]
pub struct Memory(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Tells watches that there is something new.
    revision: watch::Sender<i64>,
    start: Instant,
}

struct State {
    store: mvcc::Store,
    next_lease: i64,
}

impl Default for Memory {
    fn default() -> Self {
        let store = mvcc::Store::new();
        let revision = watch::Sender::new(store.revision().0);
        let state = Mutex::new(State { store, next_lease: 0x1000 });
        Self(Arc::new(Shared { state, revision, start: Instant::now() }))
    }
}

impl Memory {
    fn now(&self) -> Duration {
        self.0.start.elapsed()
    }

    /// The state, with every lease ended whose time has come.
    fn state(&self) -> MutexGuard<'_, State> {
        // A panicking test must not turn into a hang or a second panic here.
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        for lease in state.store.expired(self.now()) {
            // It was found in the line above, so it exists.
            let _ = state.store.lease_revoke(lease);
        }
        self.publish(&state);
        state
    }

    fn publish(&self, state: &State) {
        let revision = state.store.revision().0;
        self.0.revision.send_if_modified(|known| std::mem::replace(known, revision) != revision);
    }

    fn range(&self, range: KeyRange) -> Result<Listing, StoreError> {
        let response = self.state().store.range(&RangeRequest::new(range)).map_err(refused)?;
        let items = response.kvs.into_iter().filter_map(key_value).collect();
        Ok(Listing { revision: Revision(response.revision.0), items })
    }

    pub(crate) async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        Ok(self.range(KeyRange::key(key.to_owned()))?.items.pop())
    }

    pub(crate) async fn get_many(&self, keys: &[String]) -> Result<Listing, StoreError> {
        let state = self.state();
        let revision = Revision(state.store.revision().0);
        let mut found = Vec::new();
        for key in keys {
            let request = RangeRequest::new(KeyRange::key(key.clone()));
            found.extend(state.store.range(&request).map_err(refused)?.kvs.into_iter().filter_map(key_value));
        }
        Ok(Listing { revision, items: found })
    }

    pub(crate) async fn list(&self, keys: &Keys) -> Result<Listing, StoreError> {
        self.range(key_range(keys))
    }

    pub(crate) async fn commit(&self, guards: &[Guard], writes: &[Write]) -> Result<Outcome, StoreError> {
        let compare = guards
            .iter()
            .map(|guard| match guard {
                Guard::Absent(key) => Compare::absent(key.clone()),
                Guard::Present(key) => Compare {
                    range: KeyRange::key(key.clone()),
                    op: CompareOp::Greater,
                    target: CompareTarget::Create(mvcc::Revision(0)),
                },
                Guard::Unchanged(key, at) => Compare::unchanged(key.clone(), mvcc::Revision(at.0)),
            })
            .collect();
        let success = writes
            .iter()
            .map(|write| match write {
                Write::Put { key, value, lease } => {
                    let put = PutRequest::new(key.clone(), value.clone());
                    RequestOp::Put(match lease {
                        Some(lease) => put.with_lease(mvcc::LeaseId(lease.0)),
                        None => put,
                    })
                }
                Write::Delete(key) => {
                    RequestOp::DeleteRange(DeleteRangeRequest::new(KeyRange::key(key.clone())))
                }
                Write::DeletePrefix(prefix) => {
                    RequestOp::DeleteRange(DeleteRangeRequest::new(KeyRange::prefix(prefix.clone())))
                }
            })
            .collect();
        let mut state = self.state();
        let request = TxnRequest { compare, success, failure: Vec::new() };
        let response = state.store.txn(request).map_err(refused)?.response;
        self.publish(&state);
        Ok(Outcome { committed: response.succeeded, revision: Revision(response.revision.0) })
    }

    pub(crate) async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let mut state = self.state();
        state.next_lease += 1;
        let id = mvcc::LeaseId(state.next_lease);
        let request = LeaseGrantRequest { id, ttl: ttl.as_secs_f64().ceil() as i64 };
        let granted = state.store.lease_grant(self.now(), request).map_err(refused)?;
        drop(state);
        self.end_in_time();
        Ok(LeaseId(granted.response.id.0))
    }

    /// Wakes when the next lease ends, so that watches see it without anybody asking.
    fn end_in_time(&self) {
        let memory = self.clone();
        tokio::spawn(async move {
            loop {
                let Some(deadline) = memory.state().store.next_deadline() else { return };
                tokio::time::sleep_until(memory.0.start + deadline + Duration::from_millis(1)).await;
            }
        });
    }

    pub(crate) async fn time_left(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        let answer = self.state().store.lease_time_to_live(self.now(), mvcc::LeaseId(lease.0), false);
        Ok(Duration::from_secs(u64::try_from(answer.ttl).unwrap_or(0)))
    }

    pub(crate) async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let mut state = self.state();
        state.store.lease_revoke(mvcc::LeaseId(lease.0)).map(drop).map_err(refused)?;
        self.publish(&state);
        Ok(())
    }

    pub(crate) fn keeper(&self, lease: LeaseId) -> Result<Keeper, StoreError> {
        let mut keeper = Keeper { memory: self.clone(), lease };
        keeper.renewed_for()?;
        Ok(keeper)
    }

    pub(crate) fn watch(&self, keys: &Keys, from: Revision) -> Result<MemoryWatch, StoreError> {
        let range = key_range(keys);
        let next = if from.0 == 0 { Revision(self.state().store.revision().0).next() } else { from };
        Ok(MemoryWatch { memory: self.clone(), range, next, news: self.0.revision.subscribe() })
    }
}

/// Renews one lease.
pub struct Keeper {
    memory: Memory,
    lease: LeaseId,
}

impl Keeper {
    pub(crate) fn renewed_for(&mut self) -> Result<Duration, StoreError> {
        let now = self.memory.now();
        let answer = self.memory.state().store.lease_keep_alive(now, mvcc::LeaseId(self.lease.0));
        if answer.ttl > 0 {
            Ok(Duration::from_secs(answer.ttl.unsigned_abs()))
        } else {
            Err(StoreError::LeaseEnded(self.lease))
        }
    }
}

/// A watch that reads the store's own history.
pub struct MemoryWatch {
    memory: Memory,
    range: KeyRange,
    next: Revision,
    news: watch::Receiver<i64>,
}

impl MemoryWatch {
    pub(crate) async fn next(&mut self) -> Result<Changes, StoreError> {
        loop {
            self.news.borrow_and_update();
            if let Some(changes) = self.read()? {
                return Ok(changes);
            }
            if self.news.changed().await.is_err() {
                return Err(StoreError::WatchEnded("the hub is gone".to_owned()));
            }
        }
    }

    fn read(&mut self) -> Result<Option<Changes>, StoreError> {
        let state = self.memory.state();
        let history = state
            .store
            .history(mvcc::Revision(self.next.0))
            .map_err(|_| StoreError::Compacted(Revision(state.store.compacted().0)))?;
        let (mut revision, mut changes) = (self.next, Vec::new());
        for event in history.flat_map(|batch| &batch.events) {
            if self.range.contains(&event.kv.key) {
                revision = Revision(event.kv.mod_revision.0);
                changes.extend(change(event));
            }
        }
        // Not back to the present, if this watch begins in the future.
        self.next = self.next.max(Revision(state.store.revision().0).next());
        Ok((!changes.is_empty()).then_some(Changes { revision, changes }))
    }
}

fn change(event: &mvcc::Event) -> Option<Change> {
    match event.kind {
        EventKind::Put => key_value(event.kv.clone()).map(Change::Put),
        EventKind::Delete => Some(Change::Delete { key: text(&event.kv.key)? }),
    }
}

fn key_range(keys: &Keys) -> KeyRange {
    match keys {
        Keys::Prefix(prefix) => KeyRange::prefix(prefix.clone()),
        Keys::Between(first, end) => KeyRange::from_wire(first.clone(), end.clone()),
    }
}

fn refused(error: mvcc::Error) -> StoreError {
    StoreError::Refused(error.to_string())
}

fn text(bytes: &Bytes) -> Option<String> {
    str::from_utf8(bytes).ok().map(str::to_owned)
}

fn key_value(kv: mvcc::KeyValue) -> Option<KeyValue> {
    Some(KeyValue {
        key: text(&kv.key)?,
        value: kv.value,
        create_revision: Revision(kv.create_revision.0),
        mod_revision: Revision(kv.mod_revision.0),
        lease: (kv.lease.0 != 0).then_some(LeaseId(kv.lease.0)),
    })
}
