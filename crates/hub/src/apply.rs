//! The apply thread: the one owner of the store and of the disk.
//!
//! A turn takes what has gathered in the queue, executes it in order in memory, makes all of its records durable with
//! one fsync, and only then answers and notifies watchers. Reads take the same way, so nobody ever sees what a crash
//! could undo. Leases expire and history is compacted here too, as turns of their own. Invariant: between `execute` and
//! `commit` nothing leaves the thread.

use crate::compaction::Compaction;
use crate::guard::{self, Guard};
use crate::request::{Hash, Health, Reply, Request, WatchRequest};
use crate::storage::Storage;
use crate::watchers::Watchers;
use mvcc::{Applied, Batch, Error, Record, RequestOp, Revision, RowId, Store, TxnRequest};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Requests in one turn, so that the first of them does not wait long for the last.
const TURN: usize = crate::request::QUEUE;

/// Obsolete rows dropped per commit: a compaction of many must not stall the writes behind it.
const DROPS_PER_TURN: usize = 1000;

/// While nobody writes, obsolete rows are dropped at this pace.
const DROP_PAUSE: Duration = Duration::from_millis(50);

/// How often watchers that ask for it are told that nothing happened; etcd's.
const PROGRESS: Duration = Duration::from_secs(10 * 60);

/// How much of a turn goes to streams that are behind: about as much as a commit takes, so that they cannot more than
/// double the time of a write.
const CATCH_UP: Duration = Duration::from_millis(1);

/// How late a lease may expire while the queue is full. A queue that takes longer is lost anyway.
const EXPIRY_GRACE: Duration = Duration::from_secs(1);

/// What keys, values and history may take; etcd's default. All of it is in memory.
const QUOTA: u64 = 2 << 30;

/// An answer that waits for the disk.
pub(crate) type Answer = Box<dyn FnOnce() + Send>;

pub(crate) struct Apply {
    store: Store,
    storage: Storage,
    requests: mpsc::Receiver<Request>,
    started: Instant,
    watchers: Watchers,
    guard: Guard,
    compaction: Compaction,
    next_progress: Duration,
    /// Rows to drop from the disk, some with each commit.
    obsolete: VecDeque<RowId>,
    turn: Turn,
}

/// What a turn has to do once it is durable.
#[derive(Default)]
struct Turn {
    records: Vec<Record>,
    batches: Vec<Arc<Batch>>,
    answers: Vec<Answer>,
    watch: Vec<WatchRequest>,
    /// Someone waits for the disk to forget what is obsolete.
    drop_all: bool,
    defragment: Vec<Reply<Revision>>,
}

impl Apply {
    /// `started` is the zero of the store's leases.
    pub(crate) fn new(
        replayed: mvcc::Replayed,
        storage: Storage,
        requests: mpsc::Receiver<Request>,
        started: Instant,
        guard: Guard,
    ) -> Self {
        let mvcc::Replayed { store, obsolete } = replayed;
        let now = started.elapsed();
        Self {
            compaction: Compaction::new(now, store.revision()),
            store,
            storage,
            requests,
            started,
            watchers: Watchers::default(),
            guard,
            next_progress: now + PROGRESS,
            obsolete: obsolete.into(),
            turn: Turn::default(),
        }
    }

    /// Works until `stop`, or until nobody can ask any more. Runs on a thread and a runtime of its own: nothing that
    /// the services do can delay it, and it delays nothing of theirs while it waits for the disk.
    pub(crate) fn run(mut self, stop: CancellationToken) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        runtime.block_on(async {
            let mut gathered = Vec::with_capacity(TURN);
            loop {
                let wake = self.started + self.next_wake();
                tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    event = self.watchers.event() => self.watchers.on_event(event),
                    taken = self.requests.recv_many(&mut gathered, TURN) => {
                        if taken == 0 {
                            break;
                        }
                    }
                    () = tokio::time::sleep_until(wake.into()) => {}
                    () = std::future::ready(()), if self.watchers.is_behind() => {}
                }
                self.turn(&mut gathered);
            }
        });
        debug!(revision = self.store.revision().0, "apply thread stopped");
        Ok(())
    }

    /// When to act even if nobody asks anything.
    fn next_wake(&self) -> Duration {
        let mut wake = self.compaction.next(self.store.compacted()).min(self.next_progress);
        if let Some(deadline) = self.store.next_deadline() {
            wake = wake.min(deadline);
        }
        if !self.obsolete.is_empty() {
            wake = wake.min(self.started.elapsed() + DROP_PAUSE);
        }
        wake
    }

    fn turn(&mut self, requests: &mut Vec<Request>) {
        let now = self.started.elapsed();
        let idle = requests.is_empty();
        let more_waits = requests.len() == TURN;
        for request in requests.drain(..) {
            self.execute(now, request);
        }
        self.expire(now, more_waits);
        if let Some(revision) = self.compaction.due(now, self.store.revision(), self.store.compacted()) {
            self.compact_by_itself(revision);
        }
        self.commit(idle);
        self.publish(now);
    }

    /// Ends the leases whose time is over, after the requests of the turn: among those may be the keepalive that came
    /// in time while the thread waited for the disk. While more waits in the queue they get some grace.
    fn expire(&mut self, now: Duration, more_waits: bool) {
        let now = if more_waits { now.saturating_sub(EXPIRY_GRACE) } else { now };
        for id in self.store.expired(now) {
            // It expired, so it exists.
            if let Ok(applied) = self.store.lease_revoke(id) {
                let keys = applied.events.as_ref().map_or(0, |batch| batch.events.len());
                if keys > 0 {
                    info!(lease = %id, keys, "lease expired");
                }
                self.turn.take(applied);
            }
        }
    }

    fn compact_by_itself(&mut self, revision: Revision) {
        match self.store.compact(revision) {
            Ok(applied) => {
                debug!(revision = revision.0, "history compacted");
                self.take_obsolete(&applied.records);
                self.turn.take(applied);
            }
            Err(error) => warn!(revision = revision.0, %error, "could not compact the history"),
        }
    }

    fn take_obsolete(&mut self, records: &[Record]) {
        for record in records {
            if let Record::Compact { obsolete, .. } = record {
                self.obsolete.extend(obsolete);
            }
        }
    }

    fn execute(&mut self, now: Duration, request: Request) {
        let (credentials, request) = match request {
            Request::As(credentials, request) => (Some(credentials), *request),
            request => (None, request),
        };
        if let Err(error) = self.guard.admit(&self.store, now, credentials.as_deref(), &request) {
            self.turn.answers.push(guard::refuse(request, error, self.store.revision()));
            return;
        }
        match request {
            Request::Range(request, reply) => self.turn.answer(reply, self.store.range(&request)),
            Request::Put(request, reply) => {
                let result = self.check_space().and_then(|()| self.store.put(request));
                self.turn.mutated(reply, result);
            }
            Request::DeleteRange(request, reply) => {
                self.turn.mutated(reply, self.store.delete_range(&request));
            }
            Request::Txn(request, reply) => {
                let space = if puts(&request) { self.check_space() } else { Ok(()) };
                self.turn.mutated(reply, space.and_then(|()| self.store.txn(request)));
            }
            Request::Compact { revision, physical, reply } => {
                let result = self.store.compact(revision);
                if let Ok(applied) = &result {
                    self.take_obsolete(&applied.records);
                    self.turn.drop_all |= physical;
                }
                self.turn.mutated(reply, result);
            }
            Request::LeaseGrant(request, reply) => {
                let result = self.check_space().and_then(|()| self.store.lease_grant(now, request));
                self.turn.mutated(reply, result);
            }
            Request::LeaseRevoke(id, reply) => self.turn.mutated(reply, self.store.lease_revoke(id)),
            Request::LeaseKeepAlive { id, arrived, reply } => {
                let arrived = arrived.saturating_duration_since(self.started);
                self.turn.answer(reply, Ok(self.store.lease_keep_alive(arrived, id)));
            }
            Request::LeaseTimeToLive { id, keys, reply } => {
                self.turn.answer(reply, Ok(self.store.lease_time_to_live(now, id, keys)));
            }
            Request::Leases(reply) => {
                self.turn.answer(reply, Ok((self.store.revision(), self.store.leases())));
            }
            Request::Hash { revision, reply } => {
                let hash = self.store.hash(revision).map(|hash| Hash {
                    revision: self.store.revision(),
                    hash,
                    compacted: self.store.compacted(),
                });
                self.turn.answer(reply, hash);
            }
            Request::Status(reply) => {
                let health = Health {
                    revision: self.store.revision(),
                    disk: self.storage.size(),
                    memory: self.store.size(),
                    out_of_space: self.check_space().is_err(),
                    compacted: self.store.compacted(),
                    watchers: self.watchers.len(),
                };
                self.turn.answer(reply, Ok(health));
            }
            // Keys and values are shared; what is copied is the index.
            Request::Snapshot(reply) => self.turn.answer(reply, Ok(Box::new(self.store.clone()))),
            Request::Defragment(reply) => self.turn.defragment.push(reply),
            Request::Root(reply) => self.turn.answer(reply, Ok(self.store.revision())),
            Request::Auth(request, reply) => {
                let result = self.guard.execute(&mut self.store, now, request);
                self.turn.mutated(reply, result);
            }
            Request::As(..) => {} // refused above
            Request::Watch(request) => self.turn.watch.push(request),
        }
    }

    fn check_space(&self) -> Result<(), Error> {
        if self.store.size() > QUOTA { Err(Error::NoSpace) } else { Ok(()) }
    }

    /// One fsync for all of the turn's records; none if it has none. `idle` turns have time for the obsolete rows.
    fn commit(&mut self, idle: bool) {
        let drop_all = std::mem::take(&mut self.turn.drop_all);
        let records = std::mem::take(&mut self.turn.records);
        let tidy = drop_all || (idle && !self.obsolete.is_empty());
        if records.is_empty() && !tidy {
            return;
        }
        let drops = if drop_all { self.obsolete.len() } else { self.obsolete.len().min(DROPS_PER_TURN) };
        let drops: Vec<RowId> = self.obsolete.drain(..drops).collect();
        self.storage.commit(records.iter(), &drops);
    }

    /// Answers and notifies: everything of the turn is durable.
    fn publish(&mut self, now: Duration) {
        let revision = self.store.revision();
        let batches = std::mem::take(&mut self.turn.batches);
        for answer in self.turn.answers.drain(..) {
            answer();
        }
        self.watchers.notify(&batches, revision);
        for request in self.turn.watch.drain(..) {
            self.watchers.on_request(request, &self.store);
        }
        if now >= self.next_progress {
            self.next_progress = now + PROGRESS;
            self.watchers.progress(revision);
        }
        let catching_up = Instant::now();
        while self.watchers.is_behind() && catching_up.elapsed() < CATCH_UP {
            self.watchers.catch_up(&self.store);
        }
        if !self.turn.defragment.is_empty() {
            self.storage.defragment();
            for reply in self.turn.defragment.drain(..) {
                let _ = reply.send(Ok(revision)); // the client may be gone
            }
        }
    }
}

impl Turn {
    fn take<T>(&mut self, applied: Applied<T>) -> T {
        self.records.extend(applied.records);
        self.batches.extend(applied.events);
        applied.response
    }

    fn mutated<T: Send + 'static>(&mut self, reply: Reply<T>, result: Result<Applied<T>, Error>) {
        let result = result.map(|applied| self.take(applied));
        self.answer(reply, result);
    }

    fn answer<T: Send + 'static>(&mut self, reply: Reply<T>, result: Result<T, Error>) {
        self.answers.push(Box::new(move || {
            let _ = reply.send(result); // the client may be gone
        }));
    }
}

/// Whether a transaction could need space.
fn puts(txn: &TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match op {
        RequestOp::Put(_) => true,
        RequestOp::Txn(nested) => puts(nested),
        RequestOp::Range(_) | RequestOp::DeleteRange(_) | RequestOp::Refused(_) => false,
    })
}
