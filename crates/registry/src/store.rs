//! The hub as the rest of Muster sees it: keys are texts, values are bytes, and every answer says at which
//! revision it holds.
//!
//! Not here: retries (the caller knows whether a write may be repeated; only what found no connection is tried on
//! another endpoint) and the meaning of keys. Invariant: a call either answers within [`CALL_TIMEOUT`] or fails; only
//! [`Watch::next`] waits for ever.

use crate::{etcd, memory};
use access::{Access, FileError};
use bytes::Bytes;
use model::{LeaseId, Revision};
use std::{ops::Range, time::Duration};

/// The longest that a call may take. An etcd cluster that elects a new leader needs about a second; anything
/// longer is an outage, which callers handle by keeping what they know.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// etcd's default `--max-txn-ops`.
pub const MAX_TXN_OPS: usize = 128;

/// A key with its value and history, as etcd's `KeyValue`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Bytes,
    /// When the key was last created from nothing.
    pub create_revision: Revision,
    /// When it was last written.
    pub mod_revision: Revision,
    /// The lease it lives under.
    pub lease: Option<LeaseId>,
}

/// Some of the hub's keys, next to each other in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    /// Those that begin so.
    Prefix(String),
    /// Those from the one on that come before the other.
    Between(String, String),
}

impl Keys {
    /// The least key that it may be.
    pub fn first(&self) -> &str {
        match self {
            Self::Prefix(first) | Self::Between(first, _) => first,
        }
    }
}

impl From<&str> for Keys {
    fn from(prefix: &str) -> Self {
        Self::Prefix(prefix.to_owned())
    }
}

impl From<&String> for Keys {
    fn from(prefix: &String) -> Self {
        Self::Prefix(prefix.clone())
    }
}

impl From<String> for Keys {
    fn from(prefix: String) -> Self {
        Self::Prefix(prefix)
    }
}

impl From<Range<&str>> for Keys {
    fn from(range: Range<&str>) -> Self {
        Self::Between(range.start.to_owned(), range.end.to_owned())
    }
}

/// Keys next to each other, in order, all read at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// When this was true.
    pub revision: Revision,
    /// The keys.
    pub items: Vec<KeyValue>,
}

/// What happened to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It was written.
    Put(KeyValue),
    /// It was deleted, or its lease ended.
    Delete {
        /// Which key.
        key: String,
    },
}

impl Change {
    /// Which key.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(kv) => &kv.key,
            Self::Delete { key } => key,
        }
    }
}

/// Changes that belong together: all of a revision's, and perhaps several revisions'.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// That of the last of them. A watch from the next one goes on without a gap.
    pub revision: Revision,
    /// In the order in which they happened.
    pub changes: Vec<Change>,
}

/// A condition on which a transaction depends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guard {
    /// The key does not exist.
    Absent(String),
    /// The key exists.
    Present(String),
    /// The key has not been written since that revision.
    Unchanged(String, Revision),
}

/// A write in a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put {
        /// Which key.
        key: String,
        /// To which value.
        value: Bytes,
        /// Under which lease.
        lease: Option<LeaseId>,
    },
    /// Deletes a key.
    Delete(String),
    /// Deletes every key that begins so.
    DeletePrefix(String),
}

impl Write {
    /// Sets `key` with no lease.
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self::Put { key: key.into(), value: value.into(), lease: None }
    }
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// True when the guards held and the writes were made; false when nothing was written.
    pub committed: bool,
    /// The hub's revision afterwards.
    pub revision: Revision,
}

/// Why the hub did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No answer.
    #[error("no answer from the hub at {endpoints} within {} s", CALL_TIMEOUT.as_secs())]
    Timeout {
        /// Where it was looked for.
        endpoints: String,
    },
    /// No connection.
    #[error("the hub at {endpoints} cannot be reached: {reason}")]
    Unreachable {
        /// Where it was looked for.
        endpoints: String,
        /// What the network said.
        reason: String,
    },
    /// A certificate, key or password is of no use.
    #[error(transparent)]
    File(#[from] FileError),
    /// The hub answered no.
    #[error("the hub refused: {0}")]
    Refused(String),
    /// The lease has ended.
    #[error("lease {0} has ended")]
    LeaseEnded(LeaseId),
    /// What the watch wanted to read has been compacted away: list again.
    #[error("revision {0} has been compacted")]
    Compacted(Revision),
    /// The watch's stream has ended: watch again.
    #[error("the watch ended: {0}")]
    WatchEnded(String),
}

/// A handle on the hub. Cheap to clone; clones share connections.
#[derive(Clone)]
pub enum Store {
    /// An etcd v3 endpoint.
    Etcd(etcd::Etcd),
    /// The twin in memory.
    Memory(memory::Memory),
}

macro_rules! both {
    ($self:expr, $inner:ident => $call:expr) => {
        match $self {
            Store::Etcd($inner) => $call,
            Store::Memory($inner) => $call,
        }
    };
}

impl Store {
    /// The hub that `access` names, or endpoints alone, e.g. `http://10.0.0.1:2379`. Connects and logs in when first
    /// used, and again whenever the connection is lost or the login over.
    pub async fn connect(access: impl Into<Access>) -> Result<Self, StoreError> {
        etcd::Etcd::connect(access.into()).await.map(Self::Etcd)
    }

    /// An empty hub in memory.
    pub fn memory() -> Self {
        Self::Memory(memory::Memory::default())
    }

    /// The value of `key`, if it exists.
    pub async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        both!(self, inner => inner.get(key).await)
    }

    /// The values of those of `keys` that exist, in this order, all read at one revision.
    pub async fn get_many(&self, keys: &[String]) -> Result<Listing, StoreError> {
        both!(self, inner => inner.get_many(keys).await)
    }

    /// All of `keys` that there are: a text stands for every key that begins with it.
    pub async fn list(&self, keys: impl Into<Keys>) -> Result<Listing, StoreError> {
        let keys = keys.into();
        both!(self, inner => inner.list(&keys).await)
    }

    /// Sets a key.
    pub async fn put(
        &self,
        key: &str,
        value: impl Into<Bytes>,
        lease: Option<LeaseId>,
    ) -> Result<Revision, StoreError> {
        let write = Write::Put { key: key.to_owned(), value: value.into(), lease };
        Ok(self.commit(&[], &[write]).await?.revision)
    }

    /// Makes all of `writes` in one revision if all of `guards` hold, else none. No key may occur twice in
    /// `writes`, and there may be [`MAX_TXN_OPS`] of them.
    pub async fn commit(&self, guards: &[Guard], writes: &[Write]) -> Result<Outcome, StoreError> {
        both!(self, inner => inner.commit(guards, writes).await)
    }

    /// A lease that ends after `ttl` unless it is renewed. The hub may raise a very short `ttl`.
    pub async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        both!(self, inner => inner.grant(ttl).await)
    }

    /// How long a lease has left; zero when it has ended. Whole seconds, rounded down.
    pub async fn time_left(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        both!(self, inner => inner.time_left(lease).await)
    }

    /// Ends a lease and deletes what lives under it.
    pub async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        both!(self, inner => inner.revoke(lease).await)
    }

    /// A handle for renewing a lease. Fails with [`StoreError::LeaseEnded`] when it has ended.
    pub async fn keeper(&self, lease: LeaseId) -> Result<LeaseKeeper, StoreError> {
        match self {
            Self::Etcd(inner) => inner.keeper(lease).await.map(LeaseKeeper::Etcd),
            Self::Memory(inner) => inner.keeper(lease).map(LeaseKeeper::Memory),
        }
    }

    /// What happens to `keys`, from revision `from` on, which may be in the future. As in etcd's API, revision 0 is
    /// now.
    pub async fn watch(&self, keys: impl Into<Keys>, from: Revision) -> Result<Watch, StoreError> {
        let keys = keys.into();
        match self {
            Self::Etcd(inner) => inner.watch(&keys, from).await.map(Watch::Etcd),
            Self::Memory(inner) => inner.watch(&keys, from).map(Watch::Memory),
        }
    }
}

/// Renews one lease.
pub enum LeaseKeeper {
    /// On an etcd v3 endpoint.
    Etcd(etcd::Keeper),
    /// On the twin in memory.
    Memory(memory::Keeper),
}

impl LeaseKeeper {
    /// Renews it for its whole time to live. Fails with [`StoreError::LeaseEnded`] when it has ended.
    pub async fn renew(&mut self) -> Result<(), StoreError> {
        self.renewed_for().await.map(drop)
    }

    /// Renews it and tells its time to live: from when the hub got the request, not from when its answer came.
    /// Fails as [`LeaseKeeper::renew`].
    pub async fn renewed_for(&mut self) -> Result<Duration, StoreError> {
        match self {
            Self::Etcd(keeper) => keeper.renewed_for().await,
            Self::Memory(keeper) => keeper.renewed_for(),
        }
    }
}

/// A stream of changes.
pub enum Watch {
    /// From an etcd v3 endpoint.
    Etcd(etcd::EtcdWatch),
    /// From the twin in memory.
    Memory(memory::MemoryWatch),
}

impl Watch {
    /// The next changes, in order and without gaps; waits for them. After an error the watch is over.
    pub async fn next(&mut self) -> Result<Changes, StoreError> {
        match self {
            Self::Etcd(watch) => watch.next().await,
            Self::Memory(watch) => watch.next().await,
        }
    }
}
