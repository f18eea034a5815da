//! Revisions, keys, ranges, events, durable records.
//!
//! Plain data with public fields: a value of any of these types may be wrong only in ways that the store checks.
//! Invariant: [`KeyRange`] is the only place that knows etcd's range encoding.

use crate::alarm::Alarm;
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;

/// A point in the store's history. An empty store is at 1; every transaction that changes something adds one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub i64);

impl Revision {
    /// The revision after this one: where a watch starts that follows a range.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The revision before this one.
    pub fn previous(self) -> Self {
        Self(self.0 - 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A lease's id. Zero is "no lease", as on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LeaseId(pub i64);

impl LeaseId {
    /// No lease.
    pub const NONE: Self = Self(0);

    /// Whether this is no lease.
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }
}

/// Hexadecimal, as `etcdctl lease` prints it.
impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Where one change of one key stands in the history: the revision, and its place among that revision's changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId {
    /// The revision of the transaction.
    pub main: Revision,
    /// 0, 1, 2… within the transaction.
    pub sub: u32,
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.main, self.sub)
    }
}

/// A set of keys as etcd's `key` and `range_end` describe it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyRange {
    start: Bytes,
    end: End,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum End {
    /// Only the start.
    Single,
    /// Up to and without this key.
    Before(Bytes),
    /// Everything from the start on.
    Unbounded,
}

impl KeyRange {
    /// One key.
    pub fn key(key: impl Into<Bytes>) -> Self {
        Self { start: key.into(), end: End::Single }
    }

    /// Every key that starts with `prefix`; an empty prefix is every key.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        if start.is_empty() {
            return Self::all();
        }
        let end = prefix_end(&start).map_or(End::Unbounded, End::Before);
        Self { start, end }
    }

    /// Every key at or after `key`.
    pub fn from_key(key: impl Into<Bytes>) -> Self {
        Self { start: key.into(), end: End::Unbounded }
    }

    /// Every key.
    pub fn all() -> Self {
        Self::from_key(Bytes::from_static(b"\0"))
    }

    /// From etcd's pair: no end is the single key, an end of one zero byte is everything from the key on, anything
    /// else is `[key, range_end)`.
    pub fn from_wire(key: impl Into<Bytes>, range_end: impl Into<Bytes>) -> Self {
        let (start, range_end) = (key.into(), range_end.into());
        let end = match range_end.as_ref() {
            b"" => End::Single,
            b"\0" => End::Unbounded,
            _ => End::Before(range_end),
        };
        Self { start, end }
    }

    /// The first key that may belong to the range.
    pub fn start(&self) -> &Bytes {
        &self.start
    }

    /// The first key after the range, if it has an end and is more than one key.
    pub fn end(&self) -> Option<&Bytes> {
        match &self.end {
            End::Before(end) => Some(end),
            End::Single | End::Unbounded => None,
        }
    }

    /// Whether the range is exactly one key.
    pub fn is_single(&self) -> bool {
        self.end == End::Single
    }

    /// Whether the range goes on to the last key.
    pub fn is_unbounded(&self) -> bool {
        self.end == End::Unbounded
    }

    /// Whether no key can belong to the range (`range_end` at or before `key`).
    pub fn is_empty(&self) -> bool {
        matches!(&self.end, End::Before(end) if *end <= self.start)
    }

    /// The prefix that this range covers, if it is exactly a prefix's range.
    pub fn as_prefix(&self) -> Option<&Bytes> {
        match &self.end {
            End::Before(end) if prefix_end(&self.start).as_ref() == Some(end) => Some(&self.start),
            _ => None,
        }
    }

    /// Whether `key` belongs to the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            End::Single => self.start == key,
            End::Before(end) => self.start <= key && key < end.as_ref(),
            End::Unbounded => self.start <= key,
        }
    }
}

/// The first key after all keys that start with `prefix`; none if the prefix is all 0xff.
fn prefix_end(prefix: &Bytes) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

/// A key as it was at some revision.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// When the key last came into being; 0 in a delete event.
    pub create_revision: Revision,
    /// When the key was last written.
    pub mod_revision: Revision,
    /// 1 when created, one more with each put; 0 in a delete event.
    pub version: i64,
    /// The lease it is attached to.
    pub lease: LeaseId,
}

/// What happened to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// Created or overwritten.
    Put,
    /// Deleted, by a client or with its lease.
    Delete,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Put or delete.
    pub kind: EventKind,
    /// The key after the change; for a delete only `key` and `mod_revision`.
    pub kv: KeyValue,
    /// The key at the revision before; none if the event creates it or that revision is compacted.
    pub prev_kv: Option<KeyValue>,
}

/// All changes of one revision, in order. Watchers see them together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The revision.
    pub revision: Revision,
    /// Its changes; never empty.
    pub events: Vec<Event>,
}

/// What must be on disk. [`Store::replay`](crate::Store::replay) makes the store out of these again.
///
/// The records of one command belong together: all of them or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A key was written.
    Put {
        /// Where in the history.
        row: RowId,
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
        /// Its lease, or [`LeaseId::NONE`].
        lease: LeaseId,
        /// The key's create revision.
        create_revision: Revision,
        /// The key's version.
        version: i64,
    },
    /// A key was deleted.
    Delete {
        /// Where in the history.
        row: RowId,
        /// The key.
        key: Bytes,
    },
    /// A lease was granted.
    LeaseGrant {
        /// Its id.
        id: LeaseId,
        /// Its time to live in seconds.
        ttl: i64,
    },
    /// A lease is gone; the deletions of its keys come before this in the same command.
    LeaseRevoke {
        /// Its id.
        id: LeaseId,
    },
    /// Revisions below this one can no longer be read.
    Compact {
        /// The compacted revision.
        revision: Revision,
        /// Rows that nobody can read any more. Whoever stores rows by [`RowId`] may drop them, at leisure:
        /// replaying with or without them gives the same store.
        obsolete: Vec<RowId>,
    },
    /// An alarm was raised or disarmed.
    Alarm {
        /// Which.
        alarm: Alarm,
        /// Raised, or else disarmed.
        raised: bool,
    },
    /// Users and roles changed; replaces every record of this kind before it.
    Auth {
        /// All of them, in an encoding of this crate's own.
        state: Bytes,
    },
}

/// A batch that many readers share.
pub(crate) type SharedBatch = Arc<Batch>;
