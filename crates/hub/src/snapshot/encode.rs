//! A store as an etcd's snapshot.
//!
//! Made from the store's records, on a thread of its own, while the hub goes on. Invariant: the bytes are the same for
//! the same records, and exactly as many as were announced.

use super::access;
use super::schema::{self, KeyValue, Lease};
use crate::bolt::write::{Bucket, Entry, Plan};
use bytes::Bytes;
use mvcc::{Auth, Record, Revision, RowId};
use prost::Message;
use sha2::{Digest, Sha256};
use std::io::{self, Write};

/// Bytes per piece of the stream: as etcd, well below what clients take in one message.
const PIECE: usize = 64 << 10;

/// A snapshot to be written.
pub(crate) struct Snapshot {
    buckets: Vec<Bucket<Row>>,
}

enum Row {
    /// A put, a deletion or a lease.
    Record(Record),
    Pair(Vec<u8>, Vec<u8>),
}

impl Row {
    fn message(&self) -> Value {
        match self {
            Self::Pair(_, value) => Value::Bytes(value.clone()),
            Self::Record(Record::Put { row, key, value, lease, create_revision, version }) => {
                Value::KeyValue(KeyValue {
                    key: key.clone(),
                    create_revision: create_revision.0,
                    mod_revision: row.main.0,
                    version: *version,
                    value: value.clone(),
                    lease: lease.0,
                })
            }
            Self::Record(Record::Delete { key, .. }) => {
                Value::KeyValue(KeyValue { key: key.clone(), ..KeyValue::default() })
            }
            Self::Record(Record::LeaseGrant { id, ttl }) => Value::Lease(Lease { id: id.0, ttl: *ttl }),
            Self::Record(_) => Value::Bytes(Vec::new()), // not rows
        }
    }
}

enum Value {
    Bytes(Vec<u8>),
    KeyValue(KeyValue),
    Lease(Lease),
}

impl Entry for Row {
    fn lengths(&self) -> (usize, usize) {
        let key = match self {
            Self::Pair(key, _) => key.len(),
            Self::Record(Record::Delete { .. }) => schema::ROW + 1,
            Self::Record(Record::LeaseGrant { .. }) => size_of::<i64>(),
            Self::Record(_) => schema::ROW,
        };
        let value = match self.message() {
            Value::Bytes(bytes) => bytes.len(),
            Value::KeyValue(message) => message.encoded_len(),
            Value::Lease(message) => message.encoded_len(),
        };
        (key, value)
    }

    fn put_key(&self, out: &mut Vec<u8>) {
        match self {
            Self::Pair(key, _) => out.extend_from_slice(key),
            Self::Record(Record::Put { row, .. }) => out.extend_from_slice(&schema::row_key(*row)),
            Self::Record(Record::Delete { row, .. }) => {
                out.extend_from_slice(&schema::row_key(*row));
                out.push(schema::TOMBSTONE);
            }
            Self::Record(Record::LeaseGrant { id, .. }) => out.extend_from_slice(&id.0.to_be_bytes()),
            Self::Record(_) => {} // not rows
        }
    }

    fn put_value(&self, out: &mut Vec<u8>) {
        match self.message() {
            Value::Bytes(bytes) => out.extend_from_slice(&bytes),
            // These only fail when the buffer is full, and a vector never is.
            Value::KeyValue(message) => message.encode(out).unwrap_or_default(),
            Value::Lease(message) => message.encode(out).unwrap_or_default(),
        }
    }
}

impl Snapshot {
    /// Of the records of a store at `revision`, in any order. `term` is what the hub says in its answers.
    pub(crate) fn new(records: Vec<Record>, revision: Revision, term: u64) -> Self {
        let (mut rows, mut leases) = (Vec::with_capacity(records.len()), Vec::new());
        let mut compacted = None;
        let mut auth = Auth::default();
        for record in records {
            match &record {
                Record::Put { row, .. } | Record::Delete { row, .. } => {
                    rows.push((*row, Row::Record(record)));
                }
                Record::LeaseGrant { id, .. } => leases.push((id.0.cast_unsigned(), Row::Record(record))),
                Record::Compact { revision, .. } => compacted = Some(RowId { main: *revision, sub: 0 }),
                // A store's own, so it can be read.
                Record::Auth { state } => auth = Auth::of_state(state).unwrap_or_default(),
                // What is wrong with a member is not with its copy; a revocation is no record of a store as it is.
                Record::Alarm { .. } | Record::LeaseRevoke { .. } => {}
            }
        }
        rows.sort_unstable_by_key(|(row, _)| *row); // they come by key
        leases.sort_unstable_by_key(|(id, _)| *id); // bbolt compares bytes, so a negative id comes last

        // etcd's raft index; ours is the revision, as in the answers of Status.
        let index = revision.0.to_be_bytes().to_vec();
        let mut meta = vec![Row::Pair(schema::CONSISTENT_INDEX.into(), index)];
        if let Some(compacted) = compacted {
            for name in [schema::FINISHED_COMPACT, schema::SCHEDULED_COMPACT] {
                meta.push(Row::Pair(name.into(), schema::row_key(compacted).to_vec()));
            }
        }
        meta.push(Row::Pair(schema::TERM.into(), term.to_be_bytes().to_vec()));

        let pairs = |pairs: Vec<(Vec<u8>, Vec<u8>)>| {
            Some(pairs.into_iter().map(|(key, value)| Row::Pair(key, value)).collect::<Vec<_>>())
        };
        let mut flags = pairs(access::flags(&auth));
        let (mut users, mut roles) = (pairs(access::users(&auth)), pairs(access::roles(&auth)));
        let mut rows = Some(rows.into_iter().map(|(_, row)| row).collect());
        let mut meta = Some(meta);
        let mut leases = Some(leases.into_iter().map(|(_, lease)| lease).collect());
        let buckets = schema::BUCKETS.map(|name| {
            let entries = match name {
                schema::KEY => rows.take(),
                schema::LEASE => leases.take(),
                schema::META => meta.take(),
                schema::AUTH => flags.take(),
                schema::AUTH_USERS => users.take(),
                schema::AUTH_ROLES => roles.take(),
                _ => None,
            };
            Bucket { name, entries: entries.unwrap_or_default() }
        });
        Self { buckets: buckets.into() }
    }

    /// Gives the file piece by piece, each with how many bytes of it are left, and last its checksum. Ends early if
    /// `send` refuses.
    pub(crate) fn stream(&self, send: impl FnMut(Bytes, u64) -> io::Result<()>) -> io::Result<()> {
        let plan = Plan::new(&self.buckets);
        let piece = Vec::with_capacity(PIECE);
        let mut pieces = Pieces { piece, left: plan.bytes(), sum: Sha256::new(), send };
        plan.write(&mut pieces)?;
        pieces.flush()?;
        let Pieces { sum, mut send, .. } = pieces;
        send(Bytes::copy_from_slice(&sum.finalize()), 0)
    }
}

struct Pieces<F> {
    piece: Vec<u8>,
    left: u64,
    sum: Sha256,
    send: F,
}

impl<F: FnMut(Bytes, u64) -> io::Result<()>> Write for Pieces<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        self.sum.update(&piece);
        self.left = self.left.saturating_sub(piece.len() as u64);
        (self.send)(piece.into(), self.left)
    }
}
