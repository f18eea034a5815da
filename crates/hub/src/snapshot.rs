//! Snapshots as etcd makes them: a bbolt file with etcd's buckets, and the SHA-256 of it behind.
//!
//! Written for whoever backs up with `etcdctl snapshot save`, and so that `etcdctl snapshot restore` makes a real etcd
//! of a hub; read so that `muster hub restore` makes a hub of either. Here is what a file says of itself. Invariant: a
//! file is taken for whole only if its checksum says so, or if the caller waives it.

/// Users and roles.
mod access;
/// Out of a snapshot.
mod decode;
/// Into a snapshot.
mod encode;
/// What both know of etcd's buckets.
mod schema;

pub(crate) use encode::Snapshot;

use crate::bolt::read::File;
use mvcc::{Record, ReplayError, Revision};
use sha2::{Digest, Sha256};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Bytes of a SHA-256.
const SUM: usize = 32;

/// A bbolt file's length is a multiple of this, so that one with a checksum behind can be told from one without; etcd's
/// rule.
const SECTOR: usize = 512;

/// Whether a file without a checksum is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HashCheck {
    /// The file must end in its checksum: it came from `snapshot save`.
    #[default]
    Required,
    /// The file may be a copy of an etcd's `member/snap/db`, which has none. One that is there must still be right.
    Skipped,
}

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file cannot be read.
    #[error("could not read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no checksum.
    #[error(
        "{path} has no checksum behind its data: it was cut short, or it is a copy of an etcd's member/snap/db; if \
         it is such a copy, use --skip-hash-check"
    )]
    NoChecksum {
        /// The file.
        path: PathBuf,
    },
    /// The checksum is wrong.
    #[error(
        "the checksum of {path} is wrong: it was changed or damaged after it was saved; use another copy"
    )]
    Checksum {
        /// The file.
        path: PathBuf,
    },
    /// The content makes no sense.
    #[error("{path} is not a whole snapshot: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        what: String,
    },
    /// The rows are not a history.
    #[error("{path} is not a whole snapshot")]
    History {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: ReplayError,
    },
}

/// What a snapshot is, as `etcdctl snapshot status` reports it and a little more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotStatus {
    /// CRC-32C of the buckets, the same as etcdctl's.
    pub hash: u32,
    /// The revision that it was taken at.
    pub revision: Revision,
    /// The lowest revision that can be read from it; -1 if nothing was compacted.
    pub compacted: Revision,
    /// Entries of all buckets, as etcdctl counts them: every version of every key is one, so is every lease.
    pub total_keys: u64,
    /// Versions of keys, deletions included.
    pub rows: u64,
    /// Keys that exist at the revision.
    pub keys: u64,
    /// Leases.
    pub leases: u64,
    /// Bytes, without the checksum.
    pub size: u64,
    /// Whether the file ends in its checksum.
    pub checksum: bool,
    /// Whether users are in force.
    pub auth: bool,
    /// Users.
    pub users: u64,
    /// Roles.
    pub roles: u64,
}

/// A snapshot that was read.
#[derive(Debug)]
pub struct SnapshotFile {
    /// What it is.
    pub status: SnapshotStatus,
    /// What it holds, as [`mvcc::Store::replay`] takes it.
    pub records: Vec<Record>,
}

/// The records of a file, unless it is damaged.
#[cfg(any(test, fuzzing))]
pub(crate) fn records(file: &File<'_>) -> Option<Vec<Record>> {
    decode::content(file).ok().map(|content| content.records)
}

impl SnapshotFile {
    /// Reads a file and checks all of it. Blocks; holds the file in memory meanwhile.
    pub fn read(path: &Path, check: HashCheck) -> Result<Self, SnapshotError> {
        let bytes = fs::read(path).map_err(|source| SnapshotError::Read { path: path.to_owned(), source })?;
        let checksum = bytes.len() % SECTOR == SUM;
        let data = match bytes.split_last_chunk::<SUM>() {
            Some((data, sum)) if checksum => {
                if Sha256::digest(data).as_slice() != sum {
                    return Err(SnapshotError::Checksum { path: path.to_owned() });
                }
                data
            }
            _ if check == HashCheck::Skipped => &bytes,
            _ => return Err(SnapshotError::NoChecksum { path: path.to_owned() }),
        };
        let damaged = |what| SnapshotError::Damaged { path: path.to_owned(), what };
        let file = File::open(data).map_err(|damage| damaged(damage.to_string()))?;
        let content = decode::content(&file).map_err(damaged)?;
        let history = |source| SnapshotError::History { path: path.to_owned(), source };
        let store = mvcc::Store::replay(content.records.iter().cloned(), std::time::Duration::ZERO)
            .map_err(history)?
            .store;
        let all = mvcc::RangeRequest { count_only: true, ..mvcc::RangeRequest::new(mvcc::KeyRange::all()) };
        let keys = store.range(&all).map_or(0, |all| all.count.unsigned_abs());
        let status = SnapshotStatus {
            hash: content.hash,
            revision: store.revision(),
            compacted: store.compacted(),
            total_keys: content.total_keys,
            rows: content.rows,
            keys,
            leases: content.leases,
            size: file.size(),
            checksum,
            auth: content.auth.is_enabled(),
            users: content.auth.users().count() as u64,
            roles: content.auth.roles().count() as u64,
        };
        Ok(Self { status, records: content.records })
    }
}
