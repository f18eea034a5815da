//! What the v2 API did lately, and how often.
//!
//! v3's events do not say by which v2 action they came about; this does, for the last thousand, as many as etcd's v2
//! store remembers. Older ones are told from v3's events alone. Invariant: whoever has waited for
//! [`settled`](History::settled) finds every v2 write that v3's watchers have seen.

use super::node::Event;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use tokio::sync::{RwLock, RwLockReadGuard};

/// As many as etcd's.
const LENGTH: usize = 1000;

/// An event, and whether watchers do not hear of it.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) event: Event,
    pub(crate) silent: bool,
}

/// The events by index.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Shared by writers between transaction and record.
    gate: RwLock<()>,
    events: Mutex<BTreeMap<i64, Record>>,
    /// Successes and failures by [`COUNTED`].
    counts: [[AtomicU64; 2]; COUNTED.len()],
    watchers: AtomicU64,
}

/// What `/v2/stats/store` counts, in its order.
pub(crate) const COUNTED: [&str; 7] =
    ["get", "set", "delete", "update", "create", "compareAndSwap", "compareAndDelete"];

impl History {
    /// Taken before a write and kept until it is recorded.
    pub(crate) async fn writing(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().await
    }

    /// Waits until all writes on their way are recorded.
    pub(crate) async fn settled(&self) {
        drop(self.gate.write().await);
    }

    /// Remembers an event.
    pub(crate) fn record(&self, index: i64, event: Event, silent: bool) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.insert(index, Record { event, silent });
        while events.len() > LENGTH {
            events.pop_first();
        }
    }

    /// The event of an index, if this API made it.
    pub(crate) fn at(&self, index: i64) -> Option<Record> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).get(&index).cloned()
    }

    /// Counts an action.
    pub(crate) fn count(&self, action: &str, success: bool) {
        if let Some(at) = COUNTED.iter().position(|counted| *counted == action) {
            self.counts[at][usize::from(!success)].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A watcher more, until it is dropped.
    pub(crate) fn watching(self: std::sync::Arc<Self>) -> Watching {
        self.watchers.fetch_add(1, Ordering::Relaxed);
        Watching(self)
    }

    /// `/v2/stats/store`.
    pub(crate) fn json(&self) -> String {
        let mut out = String::from("{");
        for (name, counts) in COUNTED.iter().zip(&self.counts) {
            // Go's names of the fields.
            let name = match *name {
                "get" => "gets",
                "set" => "sets",
                name => name,
            };
            let [success, fail] = counts.each_ref().map(|count| count.load(Ordering::Relaxed));
            out.push_str(&format!("\"{name}Success\":{success},\"{name}Fail\":{fail},"));
        }
        let watchers = self.watchers.load(Ordering::Relaxed);
        out.push_str(&format!("\"expireCount\":0,\"watchers\":{watchers}}}"));
        out
    }
}

/// A watcher that is there.
pub(crate) struct Watching(std::sync::Arc<History>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}
