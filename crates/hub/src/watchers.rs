//! The apply thread's side of all watch streams.
//!
//! A watcher is *synced* when everything that concerns it has been put into its stream's queue; new batches are then
//! pushed there. The queue is bounded: when it is full the watchers concerned become unsynced, nothing is pushed to
//! them, and they read on from the store's history once the stream has room. So a slow client costs neither memory nor
//! the apply thread's time. Invariant: per watcher every revision is queued once and in order; an unsynced watcher's
//! `next` is the first revision that has not been.

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use mvcc::{Batch, Revision, Store, WatchIndex, Watcher};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::mpsc;

use crate::dispatch::{Letter, Post};
use crate::request::{WatchKind, WatchRequest};

/// Streams so far.
static STREAMS: AtomicU64 = AtomicU64::new(0);

/// Names a stream for as long as the hub runs. Those of a connection are together in the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StreamId {
    /// 0 is none: the hub's own.
    pub(crate) connection: u64,
    number: u64,
}

impl StreamId {
    pub(crate) fn new(connection: u64) -> Self {
        Self { connection, number: STREAMS.fetch_add(1, Ordering::Relaxed) }
    }
}

/// Messages that may wait for one stream. A message holds all that one group commit has for it, by reference; so
/// this is some milliseconds of a busy hub, and a stream that lags by more is better served from history.
pub(crate) const OUTGOING: usize = 16;

/// Batches that one catch-up step looks at, so that a long history does not keep the apply thread from its work: well
/// under a millisecond.
const CATCH_UP_BATCHES: usize = 4096;

/// Events in one catch-up message; about what gRPC sends in one go.
const CATCH_UP_EVENTS: usize = 1024;

/// How many different deliveries of a turn are looked at to find one that is the same. Machines of one kind watch the
/// same things, so there are few; and where all differ, looking costs little against sending.
const ALIKE: usize = 8;

/// What a stream has to send, in this order.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Created {
        id: i64,
        revision: Revision,
    },
    /// A create that was refused.
    Refused {
        id: i64,
        revision: Revision,
        reason: String,
    },
    Canceled {
        id: i64,
        revision: Revision,
        compacted: Option<Revision>,
    },
    /// Nothing happened up to this revision that was not sent.
    Progress {
        id: i64,
        revision: Revision,
    },
    Events(Arc<Delivery>),
}

/// What a turn has for a stream. Streams whose watchers are alike share one, so that it is encoded once for all.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) revision: Revision,
    pub(crate) shares: Vec<Share>,
    /// What goes out, once a stream has encoded it; none if each had better do that for itself.
    pub(crate) encoded: OnceLock<Option<Bytes>>,
}

/// Batches with something in them for one watcher; the stream picks it out, on its own thread.
#[derive(Debug)]
pub(crate) struct Share {
    pub(crate) id: i64,
    pub(crate) watcher: Arc<Watcher>,
    pub(crate) fragment: bool,
    pub(crate) batches: Vec<Arc<Batch>>,
}

impl Delivery {
    fn new(revision: Revision, shares: Vec<Share>) -> Arc<Self> {
        Arc::new(Self { revision, shares, encoded: OnceLock::new() })
    }
}

/// A place in `slots`.
type Slot = usize;

struct Watch {
    stream: StreamId,
    id: i64,
    watcher: Arc<Watcher>,
    fragment: bool,
    progress_notify: bool,
    synced: bool,
    /// The first revision wanted, and while unsynced the first one not queued yet.
    next: Revision,
    /// What this turn has for it: places among the turn's batches.
    pending: Vec<usize>,
}

struct Stream {
    outgoing: mpsc::Sender<Outgoing>,
    watches: BTreeMap<i64, Slot>,
    next_id: i64,
    /// Waits for room, or for its turn to catch up.
    lagging: bool,
}

/// What a stream tells, beside its requests.
pub(crate) enum StreamEvent {
    Closed(StreamId),
    Room(StreamId, mpsc::OwnedPermit<Outgoing>),
}

#[derive(Default)]
pub(crate) struct Watchers {
    streams: HashMap<StreamId, Stream>,
    slots: Vec<Option<Watch>>,
    free: Vec<Slot>,
    index: WatchIndex<Slot>,
    touched: Vec<Slot>,
    events: FuturesUnordered<BoxFuture<'static, StreamEvent>>,
    catching_up: VecDeque<(StreamId, mpsc::OwnedPermit<Outgoing>)>,
    /// What was made for the last streams; empty between turns.
    alike: VecDeque<Arc<Delivery>>,
}

impl Watchers {
    /// The next thing that a stream tells; never resolves while there is none.
    pub(crate) async fn event(&mut self) -> StreamEvent {
        match self.events.next().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// How many watchers there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether [`catch_up`](Self::catch_up) has something to do right now.
    pub(crate) fn is_behind(&self) -> bool {
        !self.catching_up.is_empty()
    }

    pub(crate) fn on_event(&mut self, event: StreamEvent) {
        match event {
            StreamEvent::Closed(stream) => self.close(stream),
            StreamEvent::Room(stream, permit) => self.catching_up.push_back((stream, permit)),
        }
    }

    fn close(&mut self, stream: StreamId) {
        let Some(stream) = self.streams.remove(&stream) else { return };
        for slot in stream.watches.into_values() {
            self.release(slot);
        }
    }

    fn release(&mut self, slot: Slot) {
        if let Some(watch) = self.slots[slot].take() {
            self.index.remove(&watch.watcher.range, slot);
            self.free.push(slot);
        }
    }

    /// Queues a turn's batches, which are durable by now. `revision` is the store's.
    pub(crate) fn notify(&mut self, batches: &[Arc<Batch>], revision: Revision, post: &mut Post) {
        for (place, batch) in batches.iter().enumerate() {
            for event in &batch.events {
                let (slots, touched) = (&mut self.slots, &mut self.touched);
                self.index.matching(&event.kv.key, |slot| {
                    let Some(watch) = &mut slots[slot] else { return };
                    if !watch.synced || batch.revision < watch.next {
                        return;
                    }
                    match watch.pending.last() {
                        Some(last) if *last == place => return,
                        Some(_) => {}
                        None => touched.push(slot),
                    }
                    watch.pending.push(place);
                });
            }
        }
        let slots = self.touched.drain(..);
        let mut touched: Vec<(StreamId, i64, Slot)> = slots
            .filter_map(|slot| self.slots[slot].as_ref().map(|watch| (watch.stream, watch.id, slot)))
            .collect();
        // One message per stream, whatever the number of its watchers.
        touched.sort_unstable();
        for of_stream in touched.chunk_by(|a, b| a.0 == b.0) {
            self.push(of_stream, batches, revision, post);
        }
        self.alike.clear();
    }

    /// Queues what is pending for watchers of one stream; without room they become unsynced.
    fn push(
        &mut self,
        touched: &[(StreamId, i64, Slot)],
        batches: &[Arc<Batch>],
        revision: Revision,
        post: &mut Post,
    ) {
        let Some((id, ..)) = touched.first().copied() else { return };
        let Some(stream) = self.streams.get(&id) else { return };
        match stream.outgoing.clone().try_reserve_owned() {
            Ok(place) => {
                let message = Outgoing::Events(self.delivery(touched, batches, revision));
                post.letter(Letter { stream: id, place, message });
            }
            Err(_) => {
                for (.., slot) in touched {
                    let Some(watch) = &mut self.slots[*slot] else { continue };
                    if let Some(first) = watch.pending.first() {
                        watch.synced = false;
                        watch.next = batches[*first].revision;
                    }
                }
                self.wait_for_room(id);
            }
        }
        for (.., slot) in touched {
            if let Some(watch) = &mut self.slots[*slot] {
                watch.pending.clear();
            }
        }
    }

    /// What these watchers of a stream have pending: that of another stream if it is the same.
    fn delivery(
        &mut self,
        touched: &[(StreamId, i64, Slot)],
        batches: &[Arc<Batch>],
        revision: Revision,
    ) -> Arc<Delivery> {
        let watches = || touched.iter().filter_map(|(.., slot)| self.slots[*slot].as_ref());
        let is_same = |delivery: &&Arc<Delivery>| {
            delivery.shares.len() == touched.len()
                && watches().zip(&delivery.shares).all(|(watch, share)| watch.has(share, batches))
        };
        if let Some(same) = self.alike.iter().find(is_same) {
            return Arc::clone(same);
        }
        let shares = watches().map(|watch| {
            watch.share(watch.pending.iter().map(|place| Arc::clone(&batches[*place])).collect())
        });
        let delivery = Delivery::new(revision, shares.collect());
        if self.alike.len() == ALIKE {
            self.alike.pop_back();
        }
        self.alike.push_front(Arc::clone(&delivery));
        delivery
    }

    /// Calls `catch_up` for the stream once it has room.
    fn wait_for_room(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.lagging) else { return };
        stream.lagging = true;
        let outgoing = stream.outgoing.clone();
        self.events.push(Box::pin(async move {
            match outgoing.reserve_owned().await {
                Ok(permit) => StreamEvent::Room(id, permit),
                Err(_) => StreamEvent::Closed(id),
            }
        }));
    }

    /// One step for one stream that is behind. Bounded work.
    pub(crate) fn catch_up(&mut self, store: &Store, post: &mut Post) {
        let Some((id, permit)) = self.catching_up.pop_front() else { return };
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.lagging = false;
        let behind: Vec<Slot> = stream
            .watches
            .values()
            .copied()
            .filter(|slot| self.slots[*slot].as_ref().is_some_and(|watch| !watch.synced))
            .collect();
        // The one that is furthest behind first: compaction is after it.
        let Some(slot) =
            behind.iter().copied().min_by_key(|slot| self.slots[*slot].as_ref().map(|watch| watch.next))
        else {
            return;
        };
        let more = behind.len() > 1;
        let Some(watch) = &mut self.slots[slot] else { return };
        match watch.read(store) {
            Some(batches) => {
                let caught_up = watch.synced;
                let revision = store.revision();
                let permit = if batches.is_empty() {
                    Some(permit)
                } else {
                    let message = Outgoing::Events(Delivery::new(revision, vec![watch.share(batches)]));
                    post.letter(Letter { stream: id, place: permit, message });
                    None
                };
                if more || !caught_up {
                    self.go_on(id, permit);
                }
            }
            None => {
                let (watch_id, compacted) = (watch.id, Some(store.compacted()));
                let message = Outgoing::Canceled { id: watch_id, revision: store.revision(), compacted };
                post.letter(Letter { stream: id, place: permit, message });
                stream.watches.remove(&watch_id);
                self.release(slot);
                if more {
                    self.go_on(id, None);
                }
            }
        }
    }

    fn go_on(&mut self, id: StreamId, permit: Option<mpsc::OwnedPermit<Outgoing>>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        match permit.map_or_else(|| stream.outgoing.clone().try_reserve_owned().ok(), Some) {
            Some(permit) => {
                stream.lagging = true;
                self.catching_up.push_back((id, permit));
            }
            None => self.wait_for_room(id),
        }
    }

    /// Does what a stream asks, after the turn's batches were queued.
    pub(crate) fn on_request(&mut self, request: WatchRequest, store: &Store, post: &mut Post) {
        let WatchRequest { stream: id, outgoing, permit, kind } = request;
        if !self.streams.contains_key(&id) {
            let closed = outgoing.clone();
            self.events.push(Box::pin(async move {
                closed.closed().await;
                StreamEvent::Closed(id)
            }));
            self.streams
                .insert(id, Stream { outgoing, watches: BTreeMap::new(), next_id: 0, lagging: false });
        }
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let revision = store.revision();
        match kind {
            WatchKind::Create { id: wanted, watcher, start, progress_notify, fragment } => {
                // A refused watcher uses up no id.
                let watch_id = if watcher.range.is_empty() {
                    Err("mvcc: watcher range is empty".to_owned())
                } else if start.0 < 0 {
                    Err(mvcc::Error::Compacted.to_string())
                } else {
                    stream.choose_id(wanted)
                };
                let watch_id = match watch_id {
                    Ok(watch_id) => watch_id,
                    Err(reason) => {
                        let message = Outgoing::Refused { id: -1, revision, reason };
                        post.letter(Letter { stream: id, place: permit, message });
                        return;
                    }
                };
                let next = if start.0 == 0 { revision.next() } else { start };
                let synced = next > revision;
                // Watchers that are alike share what they want, and are then told apart at a glance.
                let other = self.index.any_with(&watcher.range).and_then(|slot| self.slots[slot].as_ref());
                let watcher = match other {
                    Some(other) if *other.watcher == watcher => Arc::clone(&other.watcher),
                    _ => Arc::new(watcher),
                };
                let slot = self.free.pop().unwrap_or_else(|| {
                    self.slots.push(None);
                    self.slots.len() - 1
                });
                self.index.insert(&watcher.range, slot);
                stream.watches.insert(watch_id, slot);
                self.slots[slot] = Some(Watch {
                    stream: id,
                    id: watch_id,
                    watcher,
                    fragment,
                    progress_notify,
                    synced,
                    next,
                    pending: Vec::new(),
                });
                let message = Outgoing::Created { id: watch_id, revision };
                post.letter(Letter { stream: id, place: permit, message });
                if !synced && !stream.lagging {
                    self.go_on(id, None);
                }
            }
            WatchKind::Cancel { id: watch_id } => {
                if let Some(slot) = stream.watches.remove(&watch_id) {
                    self.release(slot);
                    let message = Outgoing::Canceled { id: watch_id, revision, compacted: None };
                    post.letter(Letter { stream: id, place: permit, message });
                }
            }
            WatchKind::Progress => {
                // Whoever waits for progress believes to have seen everything up to it: silence is better than a lie.
                if self.is_synced(id) {
                    let message = Outgoing::Progress { id: -1, revision };
                    post.letter(Letter { stream: id, place: permit, message });
                }
            }
        }
    }

    fn is_synced(&self, id: StreamId) -> bool {
        let Some(stream) = self.streams.get(&id) else { return false };
        stream.watches.values().all(|slot| self.slots[*slot].as_ref().is_some_and(|watch| watch.synced))
    }

    /// Tells every synced watcher that asked for it how far it has come.
    pub(crate) fn progress(&mut self, revision: Revision, post: &mut Post) {
        for watch in self.slots.iter().flatten().filter(|watch| watch.progress_notify && watch.synced) {
            if let Some(stream) = self.streams.get(&watch.stream) {
                // Without room there is something better to send.
                if let Ok(place) = stream.outgoing.clone().try_reserve_owned() {
                    let message = Outgoing::Progress { id: watch.id, revision };
                    post.letter(Letter { stream: watch.stream, place, message });
                }
            }
        }
    }
}

impl Stream {
    fn choose_id(&mut self, wanted: i64) -> Result<i64, String> {
        if wanted != 0 {
            if self.watches.contains_key(&wanted) {
                return Err("mvcc: duplicate watch ID provided on the WatchStream".to_owned());
            }
            return Ok(wanted);
        }
        while self.watches.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Ok(self.next_id - 1)
    }
}

impl Watch {
    fn share(&self, batches: Vec<Arc<Batch>>) -> Share {
        Share { id: self.id, watcher: Arc::clone(&self.watcher), fragment: self.fragment, batches }
    }

    /// Whether what is pending is this share.
    fn has(&self, share: &Share, batches: &[Arc<Batch>]) -> bool {
        self.id == share.id
            && self.fragment == share.fragment
            && (Arc::ptr_eq(&self.watcher, &share.watcher) || self.watcher == share.watcher)
            && self.pending.len() == share.batches.len()
            && self.pending.iter().zip(&share.batches).all(|(place, of)| Arc::ptr_eq(&batches[*place], of))
    }

    /// Reads on in history; none if that is compacted.
    fn read(&mut self, store: &Store) -> Option<Vec<Arc<Batch>>> {
        let mut batches = Vec::new();
        let mut events = 0;
        for batch in store.history(self.next).ok()?.take(CATCH_UP_BATCHES) {
            self.next = batch.revision.next();
            if batch.events.iter().any(|event| self.watcher.range.contains(&event.kv.key)) {
                batches.push(Arc::clone(batch));
                events += batch.events.len();
                if events >= CATCH_UP_EVENTS {
                    break;
                }
            }
        }
        self.synced = self.next > store.revision();
        Some(batches)
    }
}
