//! What etcd keeps in which bucket, as far as a hub has it (etcd's `server/storage/schema`, and `mvcc` of 3.4).
//!
//! Invariant: the spelling of a revision's key and of the two messages is here and nowhere else.

use bytes::Bytes;
use mvcc::{Revision, RowId};

/// Every version of every key, by revision.
pub(super) const KEY: &str = "key";
/// Leases, by id.
pub(super) const LEASE: &str = "lease";
/// What there is one of.
pub(super) const META: &str = "meta";
/// Whether users are in force, and their revision.
pub(super) const AUTH: &str = "auth";
/// Users, by name.
pub(super) const AUTH_USERS: &str = "authUsers";
/// Roles, by name.
pub(super) const AUTH_ROLES: &str = "authRoles";

/// All buckets that an etcd 3.4 makes, sorted; those of later versions are made on their first start.
pub(super) const BUCKETS: [&str; 10] =
    ["alarm", AUTH, AUTH_ROLES, AUTH_USERS, "cluster", KEY, LEASE, "members", "members_removed", META];

/// In [`META`], sorted: the index in the raft log up to which the rest is applied (u64, big-endian); up to which revision
/// the history is gone, and is to go; the raft term (u64, big-endian; since 3.5).
pub(super) const CONSISTENT_INDEX: &str = "consistent_index";
pub(super) const FINISHED_COMPACT: &str = "finishedCompactRev";
pub(super) const SCHEDULED_COMPACT: &str = "scheduledCompactRev";
pub(super) const TERM: &str = "term";

/// In [`AUTH`], sorted: one byte, 1 if users are in force; their revision (u64, big-endian).
pub(super) const AUTH_ENABLED: &str = "authEnabled";
pub(super) const AUTH_REVISION: &str = "authRevision";

/// Bytes of a revision's key: main, `_`, sub.
pub(super) const ROW: usize = 17;
/// Behind a revision's key: the key was deleted.
pub(super) const TOMBSTONE: u8 = b't';

/// etcd's `mvccpb.KeyValue`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) key: Bytes,
    #[prost(int64, tag = "2")]
    pub(super) create_revision: i64,
    #[prost(int64, tag = "3")]
    pub(super) mod_revision: i64,
    #[prost(int64, tag = "4")]
    pub(super) version: i64,
    #[prost(bytes = "bytes", tag = "5")]
    pub(super) value: Bytes,
    #[prost(int64, tag = "6")]
    pub(super) lease: i64,
}

/// etcd's `leasepb.Lease`. What remains of it is only kept by clusters that are told to; ours starts at its full time.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Lease {
    #[prost(int64, tag = "1")]
    pub(super) id: i64,
    /// Seconds.
    #[prost(int64, tag = "2")]
    pub(super) ttl: i64,
}

/// etcd's `authpb.User`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct User {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) name: Bytes,
    /// bcrypt's text.
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) password: Bytes,
    #[prost(string, repeated, tag = "3")]
    pub(super) roles: Vec<String>,
    #[prost(message, optional, tag = "4")]
    pub(super) options: Option<UserOptions>,
}

/// etcd's `authpb.UserAddOptions`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct UserOptions {
    #[prost(bool, tag = "1")]
    pub(super) no_password: bool,
}

/// etcd's `authpb.Role`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Role {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) name: Bytes,
    #[prost(message, repeated, tag = "2")]
    pub(super) permissions: Vec<Permission>,
}

/// etcd's `authpb.Permission`; `kind` is 0 to read, 1 to write, 2 for both.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Permission {
    #[prost(int32, tag = "1")]
    pub(super) kind: i32,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) key: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) range_end: Bytes,
}

pub(super) fn row_key(row: RowId) -> [u8; ROW] {
    let mut key = [b'_'; ROW];
    key[..8].copy_from_slice(&row.main.0.to_be_bytes());
    key[9..].copy_from_slice(&u64::from(row.sub).to_be_bytes());
    key
}

/// The row, and whether it is a deletion.
pub(super) fn parse_row(key: &[u8]) -> Option<(RowId, bool)> {
    let (main, rest) = key.split_first_chunk::<8>()?;
    let (b'_', rest) = rest.split_first()? else { return None };
    let (sub, rest) = rest.split_first_chunk::<8>()?;
    let deleted = match rest {
        [] => false,
        [TOMBSTONE] => true,
        _ => return None,
    };
    let sub = u32::try_from(u64::from_be_bytes(*sub)).ok()?;
    Some((RowId { main: Revision(i64::from_be_bytes(*main)), sub }, deleted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_sort_as_they_happened_and_come_back() {
        let rows = [(1, 0), (1, 1), (1, 256), (2, 0), (1 << 40, 7)];
        let rows = rows.map(|(main, sub)| RowId { main: Revision(main), sub });
        assert!(rows.is_sorted_by_key(|row| row_key(*row)));
        for row in rows {
            let mut key = row_key(row).to_vec();
            assert_eq!(parse_row(&key), Some((row, false)));
            key.push(TOMBSTONE);
            assert_eq!(parse_row(&key), Some((row, true)));
            assert_eq!(parse_row(&key[..16]), None);
        }
        assert!(BUCKETS.is_sorted(), "bbolt's order");
    }
}
