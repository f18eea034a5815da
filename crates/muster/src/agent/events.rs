//! Events on their way to the hub: written by the leader, for people and programs that ask what happened and why.
//!
//! Not here: what is worth an event. Invariants: no decision waits for an event; at most [`KEPT`] of them are in the
//! hub, each for about a day, and more than the rate allows are counted instead of written.

use model::{EventId, EventKind, EventRecord, LeaseId, Revision, Timestamp, keys};
use registry::{Guard, Store, StoreError, Write};
use std::{collections::VecDeque, time::Duration};
use tokio::{sync::mpsc, time::Instant};
use tracing::debug;

/// Events in the hub at most: every list of the cluster's keys has them in it.
const KEPT: usize = 1000;
/// How long they are kept at least.
const DAY: Duration = Duration::from_secs(24 * 3600);
/// All events of this long share a lease.
const LEASE: Duration = Duration::from_secs(3600);
/// Events that may be written at once, and how many may follow each second.
const BURST: f64 = 500.0;
const RATE: f64 = 2.0;
/// Events under way to the writer; what finds no room is counted as dropped.
const BUFFER: usize = 2 * KEPT;
/// etcd takes 128 operations in a transaction, and each event may push an old one out.
const CHUNK: usize = 50;

/// Hands events to the writer. A clone has a rate of its own, and the same writer.
#[derive(Clone)]
pub(super) struct Events {
    sender: mpsc::Sender<EventRecord>,
    dropped: u64,
    tokens: f64,
    filled: Instant,
}

impl Events {
    /// A writer for one term; it ends with this handle and its clones.
    pub(super) fn new(store: Store, term: Revision) -> Self {
        let (sender, receiver) = mpsc::channel(BUFFER);
        tokio::spawn(write(store, term, receiver));
        Self { sender, dropped: 0, tokens: BURST, filled: Instant::now() }
    }

    pub(super) fn tell(&mut self, event: EventRecord) {
        let now = Instant::now();
        self.tokens = (self.tokens + (now - self.filled).as_secs_f64() * RATE).min(BURST);
        self.filled = now;
        if self.tokens < 1.0 {
            self.dropped += 1;
            return;
        }
        if self.dropped > 0 && self.tokens >= 2.0 {
            let message = format!("{} events were not written: too many at once", self.dropped);
            let dropped = EventRecord::new(event.at, EventKind::Dropped, "rate".to_owned(), message);
            if self.sender.try_send(dropped).is_ok() {
                (self.dropped, self.tokens) = (0, self.tokens - 1.0);
            }
        }
        match self.sender.try_send(event) {
            Ok(()) => self.tokens -= 1.0,
            Err(_) => self.dropped += 1,
        }
    }
}

async fn write(store: Store, term: Revision, mut events: mpsc::Receiver<EventRecord>) {
    let mut lease: Option<(LeaseId, Instant)> = None;
    let mut kept: Option<VecDeque<String>> = None;
    let mut number = 0;
    let mut batch = Vec::new();
    while events.recv_many(&mut batch, CHUNK).await > 0 {
        if let Err(error) = write_batch(&store, term, &batch, &mut number, &mut lease, &mut kept).await {
            // They are a convenience: the journal has what they say, too.
            debug!(%error, events = batch.len(), "events not written");
        }
        batch.clear();
    }
}

async fn write_batch(
    store: &Store,
    term: Revision,
    batch: &[EventRecord],
    number: &mut u32,
    lease: &mut Option<(LeaseId, Instant)>,
    kept: &mut Option<VecDeque<String>>,
) -> Result<(), StoreError> {
    if kept.is_none() {
        *kept = Some(store.list(keys::EVENTS).await?.items.into_iter().map(|kv| kv.key).collect());
    }
    let under = match lease {
        Some((lease, since)) if since.elapsed() < LEASE => *lease,
        _ => {
            let granted = store.grant(DAY + LEASE).await?;
            *lease = Some((granted, Instant::now()));
            granted
        }
    };
    let mut writes = Vec::new();
    let mut written = Vec::new();
    for event in batch {
        *number += 1;
        let key = keys::event(&EventId::new(event.at, term.0, *number));
        let value = serde_json::to_vec(event).expect("records always render");
        writes.push(Write::Put { key: key.clone(), value: value.into(), lease: Some(under) });
        written.push(key);
    }
    let known = kept.get_or_insert_default();
    let spare = (known.len() + written.len()).saturating_sub(KEPT).min(known.len());
    writes.extend(known.drain(..spare).map(Write::Delete));
    known.extend(written);
    // An engine that was deposed tells no tales.
    let guard = Guard::Unchanged(keys::LEADER.to_owned(), term);
    let outcome = store.commit(&[guard], &writes).await;
    if matches!(outcome, Err(StoreError::Refused(_))) {
        // The lease may have been taken away: begin anew.
        *lease = None;
    }
    outcome.map(|_| ())
}

/// Now, by the machine's clock.
pub(super) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
