//! Requests and responses: etcd's messages, without protobuf and without headers.
//!
//! Each response carries the revision that etcd puts into its header. Invariant: nothing here checks anything; the
//! store does, so that a request from a test and one from the wire meet the same rules.

use crate::error::Error;
use crate::noun::{KeyRange, KeyValue, LeaseId, Revision};
use bytes::Bytes;

/// How to sort a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SortOrder {
    /// By key, or ascending when the target is not the key.
    #[default]
    None,
    /// Lowest first.
    Ascend,
    /// Highest first.
    Descend,
}

/// What to sort a range by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SortTarget {
    /// The key.
    #[default]
    Key,
    /// The version.
    Version,
    /// The create revision.
    Create,
    /// The mod revision.
    Mod,
    /// The value.
    Value,
}

/// Reads keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeRequest {
    /// Which keys.
    pub range: KeyRange,
    /// At most so many; 0 or less is no limit.
    pub limit: i64,
    /// At which revision; 0 or less is the current one.
    pub revision: Revision,
    /// In which order.
    pub sort_order: SortOrder,
    /// Sorted by what.
    pub sort_target: SortTarget,
    /// Without values.
    pub keys_only: bool,
    /// Only the count.
    pub count_only: bool,
    /// Keys last written at or after; 0 is off.
    pub min_mod_revision: Revision,
    /// Keys last written at or before; 0 is off.
    pub max_mod_revision: Revision,
    /// Keys created at or after; 0 is off.
    pub min_create_revision: Revision,
    /// Keys created at or before; 0 is off.
    pub max_create_revision: Revision,
}

impl RangeRequest {
    /// Everything in `range`, now.
    pub fn new(range: KeyRange) -> Self {
        Self {
            range,
            limit: 0,
            revision: Revision(0),
            sort_order: SortOrder::None,
            sort_target: SortTarget::Key,
            keys_only: false,
            count_only: false,
            min_mod_revision: Revision(0),
            max_mod_revision: Revision(0),
            min_create_revision: Revision(0),
            max_create_revision: Revision(0),
        }
    }
}

/// The keys read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeResponse {
    /// The store's revision (not the one that was asked for).
    pub revision: Revision,
    /// The keys.
    pub kvs: Vec<KeyValue>,
    /// Whether the limit cut some off.
    pub more: bool,
    /// How many keys the range has, whatever the limit and the filters.
    pub count: i64,
}

/// Writes a key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PutRequest {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// The lease to attach to; [`LeaseId::NONE`] detaches.
    pub lease: LeaseId,
    /// Answer what was there before.
    pub prev_kv: bool,
    /// Keep the value; the key must exist.
    pub ignore_value: bool,
    /// Keep the lease; the key must exist.
    pub ignore_lease: bool,
}

impl PutRequest {
    /// A plain put.
    pub fn new(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self { key: key.into(), value: value.into(), ..Self::default() }
    }

    /// The same under a lease.
    pub fn with_lease(self, lease: LeaseId) -> Self {
        Self { lease, ..self }
    }
}

/// The key is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutResponse {
    /// The revision of the write.
    pub revision: Revision,
    /// What was there before, if asked for and if anything was.
    pub prev_kv: Option<KeyValue>,
}

/// Deletes keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteRangeRequest {
    /// Which keys.
    pub range: KeyRange,
    /// Answer what was there before.
    pub prev_kv: bool,
}

impl DeleteRangeRequest {
    /// A plain delete.
    pub fn new(range: KeyRange) -> Self {
        Self { range, prev_kv: false }
    }
}

/// The keys are gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteRangeResponse {
    /// The revision of the deletion, or the current one if nothing matched.
    pub revision: Revision,
    /// How many keys there were.
    pub deleted: i64,
    /// What was there before, if asked for.
    pub prev_kvs: Vec<KeyValue>,
}

/// How a compare relates what is stored to what is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompareOp {
    /// Stored = given.
    Equal,
    /// Stored > given.
    Greater,
    /// Stored < given.
    Less,
    /// Stored ≠ given.
    NotEqual,
}

/// What a compare looks at, and what it is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompareTarget {
    /// The version; 0 for a key that does not exist.
    Version(i64),
    /// The create revision; 0 for a key that does not exist.
    Create(Revision),
    /// The mod revision; 0 for a key that does not exist.
    Mod(Revision),
    /// The value; always false for a key that does not exist.
    Value(Bytes),
    /// The lease; 0 for none and for a key that does not exist.
    Lease(LeaseId),
}

/// A condition of a transaction: must hold for every key in the range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// Which keys.
    pub range: KeyRange,
    /// The relation.
    pub op: CompareOp,
    /// The two sides.
    pub target: CompareTarget,
}

impl Compare {
    /// The key's mod revision is exactly `revision`: nobody wrote it since it was read.
    pub fn unchanged(key: impl Into<Bytes>, revision: Revision) -> Self {
        Self { range: KeyRange::key(key), op: CompareOp::Equal, target: CompareTarget::Mod(revision) }
    }

    /// The key does not exist.
    pub fn absent(key: impl Into<Bytes>) -> Self {
        Self { range: KeyRange::key(key), op: CompareOp::Equal, target: CompareTarget::Create(Revision(0)) }
    }
}

/// One operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestOp {
    /// Read.
    Range(RangeRequest),
    /// Write.
    Put(PutRequest),
    /// Delete.
    DeleteRange(DeleteRangeRequest),
    /// A transaction within the transaction.
    Txn(TxnRequest),
    /// Nothing that could be done: the wire had no operation, or one with a number outside its enumeration. Refused
    /// with this error when its turn to be checked comes.
    Refused(Error),
}

/// If all compares hold do one list of operations, else the other; in one revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TxnRequest {
    /// The conditions; none is true.
    pub compare: Vec<Compare>,
    /// If they hold.
    pub success: Vec<RequestOp>,
    /// If one does not.
    pub failure: Vec<RequestOp>,
}

/// What one operation of a transaction answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResponseOp {
    /// Of a read.
    Range(RangeResponse),
    /// Of a write.
    Put(PutResponse),
    /// Of a deletion.
    DeleteRange(DeleteRangeResponse),
    /// Of a transaction within.
    Txn(TxnResponse),
}

/// The transaction is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnResponse {
    /// The revision it made, or the current one if it changed nothing. 0 in a nested response, as in etcd.
    pub revision: Revision,
    /// Whether the compares held.
    pub succeeded: bool,
    /// One per operation of the branch that ran.
    pub responses: Vec<ResponseOp>,
}

/// The history below a revision is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactResponse {
    /// The store's revision.
    pub revision: Revision,
}

/// Grants a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseGrantRequest {
    /// Its id. Never zero: whoever serves clients picks one at random, since the store has no randomness.
    pub id: LeaseId,
    /// Time to live in seconds; less than [`MIN_LEASE_TTL`](crate::MIN_LEASE_TTL) is raised to it.
    pub ttl: i64,
}

/// The lease is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseGrantResponse {
    /// The store's revision; a grant does not change it.
    pub revision: Revision,
    /// The id.
    pub id: LeaseId,
    /// The time to live in seconds that was granted.
    pub ttl: i64,
}

/// The lease and its keys are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseRevokeResponse {
    /// The revision of the deletions, or the current one if the lease had no keys.
    pub revision: Revision,
}

/// The lease lives on, or is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseKeepAliveResponse {
    /// The store's revision.
    pub revision: Revision,
    /// The id.
    pub id: LeaseId,
    /// The full time to live in seconds; 0 if there is no such lease.
    pub ttl: i64,
}

/// How a lease stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseTimeToLiveResponse {
    /// The store's revision.
    pub revision: Revision,
    /// The id.
    pub id: LeaseId,
    /// Whole seconds left; -1 if there is no such lease.
    pub ttl: i64,
    /// Seconds granted; 0 if there is no such lease.
    pub granted_ttl: i64,
    /// Its keys in order, if asked for.
    pub keys: Vec<Bytes>,
}
