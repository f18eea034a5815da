//! The store as everybody sees it.
//!
//! The apply thread alone changes keys; it holds the lock while it executes a turn, and not while the disk syncs. What
//! is executed but not durable is already in the store, under revisions above [`Shared::durable`]; reads are as of that
//! revision, so they neither wait for a sync nor see what a crash could undo. Invariant: nothing above the durable
//! revision is shown, and no revision above it is compacted.

use crate::request::Request;
use mvcc::{KeyRange, LeaseId, LeaseKeepAliveResponse, RangeRequest, Revision, Store};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

#[derive(Debug)]
pub(crate) struct Shared {
    store: RwLock<Store>,
    durable: AtomicI64,
    /// Whether a lease was granted or ended and that is not durable yet.
    leases_pending: AtomicBool,
    /// The zero of the leases' clock.
    started: Instant,
}

impl Shared {
    /// A store all of which is durable.
    pub(crate) fn new(store: Store, started: Instant) -> Self {
        let durable = AtomicI64::new(store.revision().0);
        Self { store: RwLock::new(store), durable, leases_pending: AtomicBool::new(false), started }
    }

    /// A panic elsewhere has been reported; whoever can go on does.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Store> {
        self.store.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Store> {
        self.store.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    pub(crate) fn durable(&self) -> Revision {
        Revision(self.durable.load(Ordering::Acquire))
    }

    /// To be called with the store locked, before anyone can see leases that are not durable.
    pub(crate) fn leases_are_pending(&self) {
        self.leases_pending.store(true, Ordering::Release);
    }

    /// All that was executed is durable.
    pub(crate) fn set_durable(&self, revision: Revision) {
        self.durable.store(revision.0, Ordering::Release);
        self.leases_pending.store(false, Ordering::Release);
    }

    /// How many keys there are. No secret: whoever may see the metrics may know.
    pub(crate) fn keys(&self) -> i64 {
        let mut everything = RangeRequest::new(KeyRange::from_wire(vec![0], vec![0]));
        everything.count_only = true;
        let store = self.read();
        store.range_as_of(&everything, self.durable()).map_or(0, |response| response.count)
    }

    /// Answers at once what needs no turn of the apply thread; gives back what does.
    pub(crate) fn serve(&self, request: Request) -> Option<Request> {
        match request {
            Request::Range(request, reply) => {
                let store = self.read();
                if store.auth().is_enabled() {
                    // Who may read what is known to the apply thread alone.
                    return Some(Request::Range(request, reply));
                }
                // Read under the lock: a compaction is never above what was durable when it was done.
                let response = store.range_as_of(&request, self.durable());
                drop(store);
                let _ = reply.send(response); // the client may be gone
                None
            }
            Request::LeaseKeepAlive { id, arrived, reply } => match self.keep_alive(id, arrived) {
                Some(response) => {
                    let _ = reply.send(Ok(response));
                    None
                }
                None => Some(Request::LeaseKeepAlive { id, arrived, reply }),
            },
            other => Some(other),
        }
    }

    fn keep_alive(&self, id: LeaseId, arrived: Instant) -> Option<LeaseKeepAliveResponse> {
        let now = arrived.saturating_duration_since(self.started);
        let mut store = self.write();
        if self.leases_pending.load(Ordering::Acquire) {
            return None;
        }
        let response = store.lease_keep_alive(now, id);
        Some(LeaseKeepAliveResponse { revision: self.durable(), ..response })
    }
}
