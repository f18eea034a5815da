//! The apply thread: the one that changes keys, and the one owner of the disk.
//!
//! A turn takes what has gathered in the queue, executes it in order in memory, makes all of its records durable with
//! one sync, and only then answers and notifies watchers. Plain reads do not come here (see [`Shared`]); whatever
//! depends on a turn's place in the order does. Leases expire, history is compacted and snapshots begin here too.
//! Invariant: between `execute` and `commit` nothing leaves the thread.

use crate::compaction::Compaction;
use crate::dispatch::{Answer, Parcels, Post};
use crate::guard::{self, Guard};
use crate::pieces::Pieces;
use crate::request::{AlarmRequest, Alarms, Hash, Health, Reply, Request, WatchRequest};
use crate::shared::Shared;
use crate::snapshots::Snapshots;
use crate::space::Space;
use crate::storage::Storage;
use crate::watchers::Watchers;
use mvcc::{Alarm, Applied, Batch, Error, Record, Store};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Requests in one turn, so that the first of them does not wait long for the last.
const TURN: usize = crate::request::QUEUE;

/// How often watchers that ask for it are told that nothing happened; etcd's.
const PROGRESS: Duration = Duration::from_secs(10 * 60);

/// How much of a turn goes to streams that are behind: about as much as a commit takes, so that they cannot more than
/// double the time of a write.
const CATCH_UP: Duration = Duration::from_millis(1);

/// How late a lease may expire while the queue is full. A queue that takes longer is lost anyway.
const EXPIRY_GRACE: Duration = Duration::from_secs(1);

pub(crate) struct Apply {
    shared: Arc<Shared>,
    storage: Storage,
    requests: mpsc::Receiver<Request>,
    post: Post,
    started: Instant,
    watchers: Watchers,
    guard: Guard,
    compaction: Compaction,
    snapshots: Snapshots,
    next_progress: Duration,
    space: Space,
    turn: Turn,
}

/// What a turn has to do once it is durable.
#[derive(Default)]
struct Turn {
    records: Vec<Record>,
    batches: Vec<Arc<Batch>>,
    answers: Vec<Answer>,
    watch: Vec<WatchRequest>,
}

impl Apply {
    pub(crate) fn new(
        shared: Arc<Shared>,
        storage: Storage,
        requests: mpsc::Receiver<Request>,
        parcels: Parcels,
        guard: Guard,
        space: Space,
    ) -> Self {
        let started = shared.started();
        let now = started.elapsed();
        let revision = shared.read().revision();
        Self {
            compaction: Compaction::new(now, revision, space.quota()),
            shared,
            storage,
            requests,
            post: Post::new(parcels),
            started,
            watchers: Watchers::default(),
            guard,
            snapshots: Snapshots::default(),
            next_progress: now + PROGRESS,
            space,
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
                    outcome = self.snapshots.outcome() => {
                        let (revision, now) = (self.shared.durable(), self.started.elapsed());
                        if let Some(written) = self.snapshots.finished(outcome, revision, now) {
                            self.storage.truncate(written);
                        }
                    }
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
        debug!(revision = self.shared.durable().0, "apply thread stopped");
        Ok(())
    }

    /// When to act even if nobody asks anything.
    fn next_wake(&self) -> Duration {
        let store = self.shared.read();
        // A compaction would undo the snapshot that runs.
        let compaction = self.compaction.next(store.compacted());
        let mut wake = if self.snapshots.is_running() { self.next_progress } else { compaction };
        wake = wake.min(self.next_progress);
        if let Some(deadline) = store.next_deadline() {
            wake = wake.min(deadline);
        }
        if let Some(again) = self.snapshots.next_wake() {
            wake = wake.min(again);
        }
        wake
    }

    fn turn(&mut self, requests: &mut Vec<Request>) {
        let now = self.started.elapsed();
        let more_waits = requests.len() == TURN;
        self.space.disk_full = self.storage.is_full();
        let shared = Arc::clone(&self.shared);
        let mut store = shared.write();
        for request in requests.drain(..) {
            if let Request::Compact { revision, .. } = &request
                && *revision > shared.durable()
            {
                // What is compacted must be durable: readers still see the store as of the durable revision.
                drop(store);
                self.commit();
                store = shared.write();
            }
            self.execute(&mut store, now, request);
        }
        self.expire(&mut store, now, more_waits);
        if (!self.snapshots.is_running() || self.compaction.is_urgent(&store))
            && let Some(revision) = self.compaction.due(now, shared.durable(), &store)
        {
            self.compact_by_itself(&mut store, revision);
        }
        drop(store);
        self.commit();
        self.publish(now);
        if self.snapshots.should_begin(self.storage.is_snapshot_due(), now) {
            self.snapshots.begin(self.storage.snapshot(), &self.shared);
        }
    }

    /// Ends the leases whose time is over, after the requests of the turn: among those may be the keepalive that came
    /// in time while the thread waited for the disk. While more waits in the queue they get some grace.
    fn expire(&mut self, store: &mut Store, now: Duration, more_waits: bool) {
        let now = if more_waits { now.saturating_sub(EXPIRY_GRACE) } else { now };
        for id in store.expired(now) {
            // It expired, so it exists.
            if let Ok(applied) = store.lease_revoke(id) {
                let keys = applied.events.as_ref().map_or(0, |batch| batch.events.len());
                if keys > 0 {
                    info!(lease = %id, keys, "lease expired");
                }
                self.shared.leases_are_pending();
                self.turn.take(applied);
            }
        }
    }

    fn compact_by_itself(&mut self, store: &mut Store, revision: mvcc::Revision) {
        match store.compact(revision) {
            Ok(applied) => {
                debug!(revision = revision.0, "history compacted");
                self.turn.take(applied);
            }
            Err(error) => warn!(revision = revision.0, %error, "could not compact the history"),
        }
    }

    fn execute(&mut self, store: &mut Store, now: Duration, request: Request) {
        let (credentials, request) = match request {
            Request::As(credentials, request) => (Some(credentials), *request),
            request => (None, request),
        };
        let admitted = self
            .guard
            .admit(store, now, credentials.as_deref(), &request)
            .and_then(|()| self.space.admit(store, &request, &mut self.turn.records));
        if let Err(error) = admitted {
            self.turn.answers.push(guard::refuse(request, error, store.revision()));
            return;
        }
        match request {
            Request::Range(request, reply) => self.turn.answer(reply, store.range(&request)),
            Request::Put(request, reply) => self.turn.mutated(reply, store.put(request)),
            Request::DeleteRange(request, reply) => {
                self.turn.mutated(reply, store.delete_range(&request));
            }
            Request::Txn(request, reply) => self.turn.mutated(reply, store.txn(request)),
            // What nobody can read any more leaves the disk with the next snapshot, so there is nothing to wait for.
            Request::Compact { revision, reply } => {
                self.turn.mutated(reply, store.compact(revision));
            }
            Request::LeaseGrant(request, reply) => {
                self.shared.leases_are_pending();
                self.turn.mutated(reply, store.lease_grant(now, request));
            }
            Request::LeaseRevoke(id, reply) => {
                self.shared.leases_are_pending();
                self.turn.mutated(reply, store.lease_revoke(id));
            }
            Request::LeaseKeepAlive { id, arrived, reply } => {
                let arrived = arrived.saturating_duration_since(self.started);
                self.turn.answer(reply, Ok(store.lease_keep_alive(arrived, id)));
            }
            Request::LeaseTimeToLive { id, keys, reply } => {
                self.turn.answer(reply, Ok(store.lease_time_to_live(now, id, keys)));
            }
            Request::Leases(reply) => {
                self.turn.answer(reply, Ok((store.revision(), store.leases())));
            }
            Request::Hash { revision, reply } => {
                let hash = store.hash(revision).map(|hash| Hash {
                    revision: store.revision(),
                    hash,
                    compacted: store.compacted(),
                });
                self.turn.answer(reply, hash);
            }
            Request::Status(reply) => {
                let health = Health {
                    revision: store.revision(),
                    disk: self.storage.size(),
                    memory: store.size(),
                    quota: self.space.quota(),
                    alarms: self.space.alarms(store),
                    commits: self.storage.commits(),
                    compacted: store.compacted(),
                    watchers: self.watchers.len(),
                };
                self.turn.answer(reply, Ok(health));
            }
            // The turn is durable before it is given out.
            Request::Snapshot { attempts, reply } => {
                let pieces = Pieces::new(store, &self.shared, attempts, &Arc::default());
                self.turn.answer(reply, Ok(pieces));
            }
            Request::Alarm(request, reply) => {
                let alarms = self.alarm(store, request);
                self.turn.answer(reply, Ok(Alarms { revision: store.revision(), alarms }));
            }
            Request::Defragment(reply) => self.snapshots.ask(reply),
            Request::Root(reply) => self.turn.answer(reply, Ok(store.revision())),
            Request::Auth(request, reply) => {
                let result = self.guard.execute(store, now, request);
                self.turn.mutated(reply, result);
            }
            Request::As(..) => {} // refused above
            Request::Watch(request) => self.turn.watch.push(request),
        }
    }

    /// The alarms that there are, or the one that was raised or disarmed.
    fn alarm(&mut self, store: &mut Store, request: AlarmRequest) -> Vec<Alarm> {
        match request {
            AlarmRequest::List => self.space.alarms(store),
            AlarmRequest::Raise(alarm) => {
                self.turn.take(store.alarm_raise(alarm));
                vec![alarm]
            }
            AlarmRequest::Disarm(alarm) => {
                let was = self.turn.take(store.alarm_disarm(alarm));
                if was { vec![alarm] } else { Vec::new() }
            }
        }
    }

    /// One sync for all of the turn's records; none if it has none.
    fn commit(&mut self) {
        if !self.turn.records.is_empty() {
            self.storage.append(&self.turn.records);
            self.turn.records.clear();
        }
        self.shared.set_durable(self.shared.read().revision());
    }

    /// Answers and notifies: everything of the turn is durable.
    fn publish(&mut self, now: Duration) {
        let batches = std::mem::take(&mut self.turn.batches);
        let post = &mut self.post;
        post.answers(&mut self.turn.answers);
        let store = self.shared.read();
        let revision = store.revision();
        self.watchers.notify(&batches, revision, post);
        for request in self.turn.watch.drain(..) {
            self.watchers.on_request(request, &store, post);
        }
        if now >= self.next_progress {
            self.next_progress = now + PROGRESS;
            self.watchers.progress(revision, post);
        }
        let catching_up = Instant::now();
        while self.watchers.is_behind() && catching_up.elapsed() < CATCH_UP {
            self.watchers.catch_up(&store, post);
        }
        post.send();
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
