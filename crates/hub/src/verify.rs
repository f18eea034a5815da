//! Whether a hub's data is sound.
//!
//! Looks at a copy, so that the data is never written to, not even repaired. Invariant: all that is wrong is told, not
//! only the first.

use crate::HubError;
use crate::restore::sibling;
use crate::storage::{Opened, Storage};
use bytes::Bytes;
use mvcc::{Auth, LeaseId, Record, Revision, RowId, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// More than these are counted, not told one by one.
const TOLD: usize = 100;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The current revision.
    pub revision: Revision,
    /// The lowest revision that can be read; -1 if nothing was compacted.
    pub compacted: Revision,
    /// Versions of keys, deletions included.
    pub rows: u64,
    /// Keys that exist now.
    pub keys: u64,
    /// Leases.
    pub leases: u64,
    /// Users.
    pub users: u64,
    /// Roles.
    pub roles: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// CRC-32C over the history, the same as `etcdctl endpoint hashkv` of a hub with this data.
    pub hash: u32,
    /// What is wrong; nothing in a sound one. At most a hundred, and how many more there are.
    pub problems: Vec<String>,
}

/// Checks every record of `data_dir`, which no hub may have open. Blocks. An error is what kept it from looking;
/// what it saw is in the report.
pub fn verify(data_dir: &Path) -> Result<Report, HubError> {
    let in_dir = |source| HubError::DataDir { path: data_dir.to_owned(), source };
    let absolute = std::path::absolute(data_dir).map_err(in_dir)?;
    let copy = sibling(&absolute, "verifying").ok_or_else(|| in_dir(io::ErrorKind::InvalidInput.into()))?;
    let report = copy_whole(&absolute, &copy).and_then(|bytes| {
        let Opened { storage, records, .. } = Storage::open(&copy)?;
        drop(storage);
        Ok(examine(records, bytes))
    });
    let removed = match fs::remove_dir_all(&copy) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(in_dir(error)),
        _ => Ok(()),
    };
    let report = report.map_err(|error| rename(error, &copy, &absolute))?;
    removed.map(|()| report)
}

/// Nobody should look for the copy.
fn rename(error: HubError, copy: &Path, original: &Path) -> HubError {
    let real = |path: PathBuf| path.strip_prefix(copy).map(|rest| original.join(rest)).unwrap_or(path);
    match error {
        HubError::Corrupt { path, what } => HubError::Corrupt { path: real(path), what },
        HubError::Format { path, found, known } => HubError::Format { path: real(path), found, known },
        other => other,
    }
}

/// Copies the files of a directory and below, while no hub may open them; tells their bytes.
fn copy_whole(from: &Path, to: &Path) -> Result<u64, HubError> {
    let in_dir = |source| HubError::DataDir { path: from.to_owned(), source };
    let mut locked = Vec::new();
    let (mut bytes, mut found) = (0, false);
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        fs::create_dir_all(to.join(&directory)).map_err(in_dir)?;
        for entry in fs::read_dir(from.join(&directory)).map_err(in_dir)? {
            let entry = entry.map_err(in_dir)?;
            let name = directory.join(entry.file_name());
            let kind = entry.file_type().map_err(in_dir)?;
            if kind.is_dir() {
                directories.push(name);
            } else if kind.is_file() {
                let file = File::open(entry.path()).map_err(in_dir)?;
                match file.try_lock_shared() {
                    Ok(()) => locked.push(file),
                    Err(TryLockError::WouldBlock) => return Err(HubError::Locked { path: from.to_owned() }),
                    Err(TryLockError::Error(error)) => return Err(in_dir(error)),
                }
                bytes += fs::copy(entry.path(), to.join(name)).map_err(in_dir)?;
                found = true;
            }
        }
    }
    if found { Ok(bytes) } else { Err(in_dir(io::Error::other("there is no hub's data in it"))) }
}

fn examine(records: Vec<Record>, bytes: u64) -> Report {
    let mut problems = Vec::new();
    let mut rows = 0;
    let mut leases = BTreeSet::new();
    let mut users = Auth::default();
    let mut keys: BTreeMap<&Bytes, Seen> = BTreeMap::new();
    for record in &records {
        match record {
            Record::Put { row, key, lease, create_revision, version, .. } => {
                rows += 1;
                let put = Seen { row: *row, created: *create_revision, version: *version, lease: *lease };
                let before = keys.insert(key, put);
                if let Some(what) = wrong(before, put) {
                    problems.push(format!("row {row}, key {}: {what}", key.escape_ascii()));
                }
            }
            Record::Delete { row, key } => {
                rows += 1;
                keys.insert(key, Seen { row: *row, created: Revision(0), version: 0, lease: LeaseId::NONE });
            }
            Record::LeaseGrant { id, ttl } => {
                leases.insert(*id);
                if *ttl < 1 {
                    problems.push(format!("lease {id}: its time to live is {ttl} s"));
                }
            }
            Record::LeaseRevoke { id } => {
                leases.remove(id);
            }
            Record::Auth { state } => users = Auth::of_state(state).unwrap_or_default(),
            Record::Compact { .. } | Record::Alarm { .. } => {}
        }
    }
    for (key, seen) in &keys {
        if !seen.lease.is_none() && !leases.contains(&seen.lease) {
            problems.push(format!("key {}: its lease {} does not exist", key.escape_ascii(), seen.lease));
        }
    }
    if users.is_enabled() && !users.has_root() {
        problems.push("users are in force, but none of them is `root` with the role `root`".to_owned());
    }
    let live = keys.values().filter(|seen| seen.version > 0).count() as u64;
    let mut report = Report {
        revision: Revision(0),
        compacted: Revision(-1),
        rows,
        keys: live,
        leases: leases.len() as u64,
        users: users.users().count() as u64,
        roles: users.roles().count() as u64,
        bytes,
        hash: 0,
        problems,
    };
    match Store::replay(records, Duration::ZERO) {
        Ok(replayed) => {
            report.revision = replayed.store.revision();
            report.compacted = replayed.store.compacted();
            report.hash = replayed.store.hash(Revision(0)).unwrap_or_default(); // the present can be read
        }
        Err(error) => report.problems.push(error.to_string()),
    }
    if report.problems.len() > TOLD {
        let more = report.problems.len() - TOLD;
        report.problems.truncate(TOLD);
        report.problems.push(format!("and {more} more"));
    }
    report
}

/// A key's last row so far; a deletion has version 0.
#[derive(Clone, Copy)]
struct Seen {
    row: RowId,
    created: Revision,
    version: i64,
    lease: LeaseId,
}

/// What is wrong with a put, given what was before it; before the first may be what compaction dropped.
fn wrong(before: Option<Seen>, put: Seen) -> Option<String> {
    let Seen { row, created, version, .. } = put;
    if created > row.main || created.0 < 1 || version < 1 || (version == 1 && created != row.main) {
        return Some(format!("version {version}, created at {created}"));
    }
    match before {
        Some(before) if before.version == 0 => {
            (version != 1).then(|| format!("version {version} right after a deletion"))
        }
        Some(before) if before.created != created || before.version + 1 != version => Some(format!(
            "version {version}, created at {created}, follows version {}, created at {} (row {})",
            before.version, before.created, before.row
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(main: i64, sub: u32, key: &'static str, created: i64, version: i64, lease: i64) -> Record {
        Record::Put {
            row: RowId { main: Revision(main), sub },
            key: key.into(),
            value: Bytes::new(),
            lease: LeaseId(lease),
            create_revision: Revision(created),
            version,
        }
    }

    fn delete(main: i64, sub: u32, key: &'static str) -> Record {
        Record::Delete { row: RowId { main: Revision(main), sub }, key: key.into() }
    }

    #[test]
    fn a_sound_history_has_no_problems() {
        let records = vec![
            Record::Compact { revision: Revision(5), obsolete: Vec::new() },
            Record::LeaseGrant { id: LeaseId(7), ttl: 60 },
            put(4, 0, "old", 2, 3, 0),
            put(5, 0, "a", 5, 1, 7),
            put(6, 0, "a", 5, 2, 7),
            delete(7, 0, "a"),
            put(7, 1, "a", 7, 1, 7),
            put(8, 0, "old", 2, 4, 0),
        ];
        let report = examine(records, 0);
        assert_eq!(report.problems, Vec::<String>::new());
        assert_eq!((report.revision.0, report.rows, report.keys, report.leases), (8, 6, 2, 1));
    }

    #[test]
    fn each_thing_that_cannot_be_is_told() {
        let records = vec![
            Record::LeaseGrant { id: LeaseId(1), ttl: 0 },
            put(2, 0, "a", 2, 1, 9),
            put(3, 0, "a", 2, 3, 9),
            delete(4, 0, "a"),
            put(5, 0, "a", 2, 4, 9),
            put(6, 0, "b", 7, 1, 0),
            put(8, 0, "c", 8, 1, 0),
            Auth::new(true, 7, [], [("r".to_owned(), Vec::new())]).record(),
        ];
        let report = examine(records, 0);
        assert_eq!((report.users, report.roles), (0, 1));
        let expected = [
            "lease 0000000000000001: its time to live is 0 s",
            "row 3.0, key a: version 3, created at 2, follows version 1, created at 2 (row 2.0)",
            "row 5.0, key a: version 4 right after a deletion",
            "row 6.0, key b: version 1, created at 7",
            "key a: its lease 0000000000000009 does not exist",
            "users are in force, but none of them is `root` with the role `root`",
            "no record of revision 7; the next one is 8.0",
        ];
        assert_eq!(report.problems, expected);
    }
}
