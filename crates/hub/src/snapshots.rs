//! Snapshots in the background, and who waits for them.
//!
//! One at a time, on a thread of its own, which reads the store in [`Pieces`]: a write waits for a piece, never for the
//! whole. Invariant: a snapshot during which the history was compacted is given up and begun anew, in larger
//! pieces, so that one succeeds however often clients compact.

use crate::pieces::Pieces;
use crate::request::Reply;
use crate::shared::Shared;
use crate::storage::{Snapshot, Written};
use mvcc::Revision;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::sync::mpsc;

/// After one that failed (a full disk, most likely).
const RETRY: Duration = Duration::from_secs(10);

type Outcome = io::Result<Option<Written>>;

pub(crate) struct Snapshots {
    outcomes: mpsc::Receiver<Outcome>,
    outcome: mpsc::Sender<Outcome>,
    running: Option<JoinHandle<()>>,
    cancelled: Arc<AtomicBool>,
    given_up: u32,
    not_before: Duration,
    /// Who asked for one, before the one that runs and since.
    waiting: Vec<Reply<Revision>>,
    next: Vec<Reply<Revision>>,
}

impl Default for Snapshots {
    fn default() -> Self {
        let (outcome, outcomes) = mpsc::channel(1); // one at a time
        Self {
            outcomes,
            outcome,
            running: None,
            cancelled: Arc::default(),
            given_up: 0,
            not_before: Duration::ZERO,
            waiting: Vec::new(),
            next: Vec::new(),
        }
    }
}

impl Snapshots {
    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether one should begin, given that the log is long enough for it or not.
    pub(crate) fn should_begin(&self, due: bool, now: Duration) -> bool {
        !self.is_running() && now >= self.not_before && (due || !self.next.is_empty())
    }

    /// When to try again, if someone waits.
    pub(crate) fn next_wake(&self) -> Option<Duration> {
        (!self.is_running() && !self.next.is_empty()).then_some(self.not_before)
    }

    /// Asks for one that has everything up to now.
    pub(crate) fn ask(&mut self, reply: Reply<Revision>) {
        self.next.push(reply);
    }

    /// Begins one of the store as it is, all of which is durable.
    pub(crate) fn begin(&mut self, snapshot: Snapshot, shared: &Arc<Shared>) {
        self.waiting.append(&mut self.next);
        let mut pieces = Pieces::new(&shared.read(), shared, self.given_up, &self.cancelled);
        let outcome = self.outcome.clone();
        let thread = thread::Builder::new().name("hub-snapshot".to_owned()).spawn(move || {
            // The channel has room: there is one snapshot at a time.
            let _ = outcome.try_send(snapshot.write(|| pieces.next()));
        });
        match thread {
            Ok(running) => self.running = Some(running),
            Err(error) => {
                let _ = self.outcome.try_send(Err(error));
            }
        }
    }

    /// The outcome of the one that runs; never resolves while none does.
    pub(crate) async fn outcome(&mut self) -> Outcome {
        match self.outcomes.recv().await {
            Some(outcome) => outcome,
            None => std::future::pending().await, // a sender is kept, so this does not happen
        }
    }

    /// Takes note of an outcome; what was written is to be handed to the storage.
    pub(crate) fn finished(
        &mut self,
        outcome: Outcome,
        revision: Revision,
        now: Duration,
    ) -> Option<Written> {
        if let Some(thread) = self.running.take() {
            let _ = thread.join(); // it has sent its outcome, a panic excluded
        }
        match outcome {
            Ok(Some(written)) => {
                self.given_up = 0;
                for reply in self.waiting.drain(..) {
                    let _ = reply.send(Ok(revision)); // the client may be gone
                }
                Some(written)
            }
            Ok(None) => {
                self.given_up += 1;
                self.next.append(&mut self.waiting);
                None
            }
            Err(error) => {
                tracing::warn!(%error, "could not write a snapshot; the log grows until one succeeds");
                self.not_before = now + RETRY;
                self.next.append(&mut self.waiting);
                None
            }
        }
    }
}

impl Drop for Snapshots {
    /// Nothing writes in the directory afterwards.
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
        if let Some(thread) = self.running.take() {
            let _ = thread.join(); // reported by the panic hook
        }
    }
}
