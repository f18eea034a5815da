//! etcd's semantics in memory: revisions, ranges, transactions, leases, watches, compaction.
//!
//! Pure: no clock, no files, no sockets, no randomness. A mutating command goes in; its response, the records that
//! must be durable before anyone sees that response, and the events for watchers come out. Who stores and who
//! delivers is somebody else's: the embedded hub (disk and gRPC), the registry's in-memory twin, the simulator.
//!
//! ```
//! use mvcc::{KeyRange, PutRequest, RangeRequest, Store};
//!
//! let mut store = Store::new();
//! let applied = store.put(PutRequest::new("/services/web/a", "10.1.5.2:3000"))?;
//! assert_eq!(applied.response.revision.0, 2); // an empty store is at revision 1
//! assert_eq!(applied.records.len(), 1); // make these durable, then answer
//! let all = store.range(&RangeRequest::new(KeyRange::prefix("/services/")))?;
//! assert_eq!(all.count, 1);
//! # Ok::<(), mvcc::Error>(())
//! ```
//!
//! The rules come from etcd's API guide and source; where the two differ, from the source.
#![warn(missing_docs)]

/// Which keys a set of permissions covers.
mod access;
/// What is wrong with a member.
pub mod alarm;
/// Users, roles and what they may do.
pub mod auth;
/// Users and roles as bytes.
mod auth_record;
/// One command for every mutation, for callers that keep commands as data (simulator, property tests).
pub mod command;
/// A store as the records that make it.
mod dump;
/// What can be refused, in etcd's own words and gRPC codes.
pub mod error;
/// A checksum over the history, for `HashKV`.
mod hash;
/// Per key, what it was at each revision since compaction.
mod index;
/// Leases and their deadlines.
mod lease;
/// The nouns: revisions, keys, ranges, events, records.
pub mod noun;
/// What a caller may ask, request by request.
mod permit;
/// Reading a range: limits, sorts, filters.
mod range;
/// A store out of its durable records.
mod replay;
/// Requests and responses, etcd's messages without protobuf.
pub mod request;
/// The store itself.
mod store;
/// Transactions: the checks before the first write, then the writes.
mod txn;
/// Watchers: what they select from a batch, and an index of who wants a key.
pub mod watch;

pub use alarm::{Alarm, AlarmKind};
pub use auth::{Auth, AuthCommand, PasswordHash, Permission, PermissionKind, User};
pub use command::{Command, Response};
pub use error::{Code, Error, ReplayError};
pub use hash::crc32c;
pub use lease::{MAX_LEASE_TTL, MIN_LEASE_TTL};
pub use noun::{Batch, Event, EventKind, KeyRange, KeyValue, LeaseId, Record, Revision, RowId};
pub use permit::Caller;
pub use replay::Replayed;
pub use request::{
    CompactResponse, Compare, CompareOp, CompareTarget, DeleteRangeRequest, DeleteRangeResponse,
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveResponse, LeaseRevokeResponse,
    LeaseTimeToLiveResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp, ResponseOp,
    SortOrder, SortTarget, TxnRequest, TxnResponse,
};
pub use store::{Applied, Store};
pub use txn::MAX_TXN_OPS;
pub use watch::{WatchIndex, Watcher};
