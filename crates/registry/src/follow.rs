//! Some of the hub's keys, followed: listed, then watched from the revision after, and listed again every
//! [`RELIST`] and after any doubt, because streams of events lose things.
//!
//! Invariant: a consumer that applies every [`Delta`] in order holds what the hub held at the last revision it
//! was given. While the hub is away it is told once, and keeps what it has.

use crate::{Changes, Keys, Listing, Store, StoreError};
use std::time::Duration;
use tokio::{sync::mpsc, task::JoinHandle};
use tracing::{debug, info, warn};

/// How long a watch is trusted on its own.
const RELIST: Duration = Duration::from_secs(60);
/// Deltas under way to a consumer. Each is a few kilobytes; a consumer that is further behind holds up the
/// watch, and the hub buffers.
const BUFFER: usize = 64;
/// The first and the longest pause between attempts to reach the hub.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What a follower learns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// Everything there is. What is not in it is gone.
    Reset(Listing),
    /// What changed since.
    Changes(Changes),
    /// The hub is away: keep what you have. A [`Delta::Reset`] comes when it is back.
    Lost,
}

/// What is followed. Stops following when dropped.
pub struct Follow {
    deltas: mpsc::Receiver<Delta>,
    task: JoinHandle<()>,
}

impl Store {
    /// Follows all of `keys`: a text stands for every key that begins with it.
    pub fn follow(&self, keys: impl Into<Keys>) -> Follow {
        let (sender, deltas) = mpsc::channel(BUFFER);
        let task = tokio::spawn(run(self.clone(), keys.into(), sender));
        Follow { deltas, task }
    }
}

impl Follow {
    /// The next delta; waits for it. `None` only when the runtime shuts down.
    pub async fn next(&mut self) -> Option<Delta> {
        self.deltas.recv().await
    }

    /// A delta that is there already.
    pub fn try_next(&mut self) -> Option<Delta> {
        self.deltas.try_recv().ok()
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(store: Store, keys: Keys, sender: mpsc::Sender<Delta>) {
    let mut pause = BACKOFF.0;
    let mut lost = false;
    loop {
        match once(&store, &keys, &sender, &mut lost).await {
            // The consumer is gone.
            Ok(()) if sender.is_closed() => return,
            Ok(()) => pause = BACKOFF.0,
            Err(error) => {
                if matches!(error, StoreError::Compacted(_)) {
                    debug!(from = keys.first(), %error, "listing again");
                } else if !lost {
                    warn!(from = keys.first(), %error, "hub lost, keeping what is known");
                    lost = true;
                    pause = BACKOFF.0;
                    if sender.send(Delta::Lost).await.is_err() {
                        return;
                    }
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(BACKOFF.1);
            }
        }
    }
}

/// Lists, then watches until it is time to list again.
async fn once(
    store: &Store,
    keys: &Keys,
    sender: &mpsc::Sender<Delta>,
    lost: &mut bool,
) -> Result<(), StoreError> {
    let listing = store.list(keys.clone()).await?;
    let mut watch = store.watch(keys.clone(), listing.revision.next()).await?;
    if std::mem::take(lost) {
        info!(from = keys.first(), revision = %listing.revision, "hub is back");
    }
    if sender.send(Delta::Reset(listing)).await.is_err() {
        return Ok(());
    }
    let relist = tokio::time::sleep(RELIST);
    tokio::pin!(relist);
    loop {
        tokio::select! {
            () = sender.closed() => return Ok(()),
            () = &mut relist => return Ok(()),
            changes = watch.next() => if sender.send(Delta::Changes(changes?)).await.is_err() {
                return Ok(());
            },
        }
    }
}
