//! A hub's data directory out of a snapshot: a hub's own, or a real etcd's.
//!
//! Everything keeps its revision, version and lease; leases start at their full time, as after a restart. The hub is a
//! new one: it gets ids of its own. Invariant: the directory appears whole or not at all, and nothing that exists is
//! overwritten.

use crate::HubError;
use crate::snapshot::{HashCheck, SnapshotError, SnapshotFile, SnapshotStatus};
use crate::storage::{Opened, Storage};
use mvcc::Record;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Records per commit, and bytes of keys and values: neither a sync for each record nor all of them in memory twice.
const COMMIT: usize = 10_000;
const COMMIT_BYTES: usize = 8 << 20;

/// Why a snapshot was not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is something already.
    #[error("{path} has data already: name a directory that does not exist, or move this one away first")]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// The path has no last part, as `/` or `..`.
    #[error("{path} cannot be made: name a directory that does not exist")]
    NoName {
        /// The directory.
        path: PathBuf,
    },
    /// The snapshot is at fault.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The data could not be written.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The directory could not be made.
    #[error("could not make data directory {path}")]
    Make {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes `data_dir` out of the snapshot `file`. Blocks.
pub fn restore(file: &Path, data_dir: &Path, check: HashCheck) -> Result<SnapshotStatus, RestoreError> {
    let data_dir = std::path::absolute(data_dir)
        .map_err(|source| RestoreError::Make { path: data_dir.to_owned(), source })?;
    if occupied(&data_dir) {
        return Err(RestoreError::Exists { path: data_dir });
    }
    let SnapshotFile { status, records } = SnapshotFile::read(file, check)?;
    let sibling =
        sibling(&data_dir, "restoring").ok_or_else(|| RestoreError::NoName { path: data_dir.clone() })?;
    let made = fill(&sibling, &records).and_then(|()| {
        put_in_place(&sibling, &data_dir)
            .map_err(|source| RestoreError::Make { path: data_dir.clone(), source })
    });
    if let Err(error) = made {
        let _ = fs::remove_dir_all(&sibling); // the first error is the one to tell
        return Err(error);
    }
    Ok(status)
}

/// Whether there is anything that a hub's data must not replace.
fn occupied(path: &Path) -> bool {
    match fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// A name beside a directory, on the same file system, that nobody else uses.
pub(crate) fn sibling(directory: &Path, purpose: &str) -> Option<PathBuf> {
    let name = directory.file_name()?.to_string_lossy();
    Some(directory.with_file_name(format!(".{name}.{purpose}-{}", std::process::id())))
}

fn fill(directory: &Path, mut records: &[Record]) -> Result<(), RestoreError> {
    let Opened { mut storage, .. } = Storage::open(directory)?;
    while !records.is_empty() {
        let (now, later) = records.split_at(portion(records));
        storage.append(now);
        records = later;
    }
    Ok(())
}

/// How many of the records to commit together; at least one.
fn portion(records: &[Record]) -> usize {
    let mut bytes = 0;
    let fits = records.iter().take(COMMIT).take_while(|record| {
        bytes += match record {
            Record::Put { key, value, .. } => key.len() + value.len(),
            Record::Delete { key, .. } => key.len(),
            Record::LeaseGrant { .. }
            | Record::LeaseRevoke { .. }
            | Record::Compact { .. }
            | Record::Alarm { .. } => 0,
            Record::Auth { state } => state.len(),
        };
        bytes <= COMMIT_BYTES
    });
    fits.count().max(1)
}

/// An empty directory of that name is replaced.
fn put_in_place(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    // The new name must survive a power cut too.
    to.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}
