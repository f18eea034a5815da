//! The hub's disk: what must survive, in one redb file.
//!
//! Responsible for making batches of records durable in one commit (one fsync), and for handing them back at
//! start-up. Knows nothing of what the records mean. Invariant: when [`Storage::commit`] returns, all of its records are
//! on disk; it never returns an error, since after a failed fsync nobody knows what is on disk and going on would lie.

use crate::HubError;
use bytes::Bytes;
use mvcc::{LeaseId, Record, Revision, RowId};
use redb::{
    Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};

/// Rows of the history. Key: revision (8 bytes) and place in it (4), big-endian, so that they sort as they happened.
const ROWS: TableDefinition<'_, &[u8; 12], &[u8]> = TableDefinition::new("rows");
/// Leases: id to time to live in seconds.
const LEASES: TableDefinition<'_, i64, i64> = TableDefinition::new("leases");
/// Everything there is one of.
const META: TableDefinition<'_, &str, i64> = TableDefinition::new("meta");
/// Users and roles, under an empty key.
const AUTH: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("auth");

const META_FORMAT: &str = "v";
const META_CLUSTER: &str = "cluster-id";
const META_MEMBER: &str = "member-id";
const META_TERM: &str = "term";
const META_COMPACTED: &str = "compacted";

/// The version of this layout. A file of a newer one is refused.
const FORMAT: i64 = 1;

/// All data is in memory anyway; the cache only saves reading back the upper pages of the trees that each commit
/// rewrites. redb's default is 1 GiB.
const CACHE_BYTES: usize = 8 << 20;

/// Who this hub is, in every response header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) cluster: u64,
    pub(crate) member: u64,
    /// etcd's raft term: here the number of starts.
    pub(crate) term: u64,
}

/// An open database and what was in it.
pub(crate) struct Opened {
    pub(crate) storage: Storage,
    pub(crate) identity: Identity,
    pub(crate) records: Vec<Record>,
}

pub(crate) struct Storage {
    database: Database,
    path: PathBuf,
}

impl Storage {
    /// Opens `data_dir/hub.redb`, and makes it first if need be. Blocks.
    pub(crate) fn open(data_dir: &Path) -> Result<Opened, HubError> {
        let in_dir = |source| HubError::DataDir { path: data_dir.to_owned(), source };
        fs::create_dir_all(data_dir).map_err(in_dir)?;
        let path = data_dir.join("hub.redb");
        let database =
            Database::builder().set_cache_size(CACHE_BYTES).create(&path).map_err(|error| match error {
                DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
                    HubError::Locked { path: data_dir.to_owned() }
                }
                other => HubError::storage(&path, other),
            })?;
        // The file's name must survive a power cut too.
        File::open(data_dir).and_then(|dir| dir.sync_all()).map_err(in_dir)?;
        let storage = Self { database, path };
        let identity = storage.identify()?;
        let records = storage.load()?;
        Ok(Opened { storage, identity, records })
    }

    fn error(&self, error: impl Into<redb::Error>) -> HubError {
        HubError::storage(&self.path, error)
    }

    /// Reads who we are, or makes it up on the first start; counts the start.
    fn identify(&self) -> Result<Identity, HubError> {
        self.try_identify().map_err(|error| self.error(error))?
    }

    fn try_identify(&self) -> Result<Result<Identity, HubError>, redb::Error> {
        let txn = self.database.begin_write()?;
        let identity = {
            let mut meta = txn.open_table(META)?;
            txn.open_table(ROWS)?;
            txn.open_table(LEASES)?;
            txn.open_table(AUTH)?;
            let format = meta.get(META_FORMAT)?.map(|value| value.value());
            if let Some(found) = format.filter(|found| *found != FORMAT) {
                return Ok(Err(HubError::Format { path: self.path.clone(), found, known: FORMAT }));
            }
            if format.is_none() {
                meta.insert(META_FORMAT, FORMAT)?;
                meta.insert(META_CLUSTER, random_id())?;
                meta.insert(META_MEMBER, random_id())?;
            }
            let read =
                |name| -> Result<i64, redb::Error> { Ok(meta.get(name)?.map_or(0, |value| value.value())) };
            let (cluster, member, term) = (read(META_CLUSTER)?, read(META_MEMBER)?, read(META_TERM)? + 1);
            meta.insert(META_TERM, term)?;
            Identity {
                cluster: cluster.cast_unsigned(),
                member: member.cast_unsigned(),
                term: term.cast_unsigned(),
            }
        };
        txn.commit()?;
        Ok(Ok(identity))
    }

    fn load(&self) -> Result<Vec<Record>, HubError> {
        let mut records = Vec::new();
        let read = |records: &mut Vec<Record>| -> Result<Option<RowId>, redb::Error> {
            let txn = self.database.begin_read()?;
            if let Some(compacted) = txn.open_table(META)?.get(META_COMPACTED)? {
                let revision = Revision(compacted.value());
                records.push(Record::Compact { revision, obsolete: Vec::new() });
            }
            if let Some(state) = txn.open_table(AUTH)?.get("")? {
                records.push(Record::Auth { state: Bytes::copy_from_slice(state.value()) });
            }
            for lease in txn.open_table(LEASES)?.iter()? {
                let (id, ttl) = lease?;
                records.push(Record::LeaseGrant { id: LeaseId(id.value()), ttl: ttl.value() });
            }
            for entry in txn.open_table(ROWS)?.iter()? {
                let (key, value) = entry?;
                let row = row_id(key.value());
                let Some(record) = decode(row, value.value()) else { return Ok(Some(row)) };
                records.push(record);
            }
            Ok(None)
        };
        match read(&mut records) {
            Ok(None) => Ok(records),
            Ok(Some(row)) => Err(HubError::Corrupt { path: self.path.clone(), what: format!("row {row}") }),
            Err(error) => Err(self.error(error)),
        }
    }

    /// Makes the records durable, and drops rows that nobody can read any more. One fsync. Aborts the process if that
    /// fails: nothing that was promised before is lost, and the next start sees what the disk has.
    pub(crate) fn commit<'a>(&self, records: impl Iterator<Item = &'a Record>, drop: &[RowId]) {
        if let Err(error) = self.try_commit(records, drop) {
            tracing::error!(path = %self.path.display(), %error, "could not make data durable; aborting");
            std::process::abort();
        }
    }

    fn try_commit<'a>(
        &self,
        records: impl Iterator<Item = &'a Record>,
        drop: &[RowId],
    ) -> Result<(), redb::Error> {
        let mut txn: WriteTransaction = self.database.begin_write()?;
        txn.set_durability(Durability::Immediate)?;
        {
            let mut rows = txn.open_table(ROWS)?;
            let mut leases = None;
            let mut buffer = Vec::new();
            for record in records {
                match record {
                    Record::Put { row, .. } | Record::Delete { row, .. } => {
                        encode(record, &mut buffer);
                        rows.insert(&row_key(*row), buffer.as_slice())?;
                    }
                    Record::LeaseGrant { id, ttl } => {
                        open(&mut leases, || txn.open_table(LEASES))?.insert(id.0, *ttl)?;
                    }
                    Record::LeaseRevoke { id } => {
                        open(&mut leases, || txn.open_table(LEASES))?.remove(id.0)?;
                    }
                    Record::Auth { state } => {
                        txn.open_table(AUTH)?.insert("", state.as_ref())?;
                    }
                    Record::Compact { revision, .. } => {
                        txn.open_table(META)?.insert(META_COMPACTED, revision.0)?;
                    }
                }
            }
            for row in drop {
                rows.remove(&row_key(*row))?;
            }
        }
        txn.commit()?;
        Ok(())
    }

    /// Gives free pages back to the file system. Blocks for as long as it takes to rewrite what is left.
    pub(crate) fn defragment(&mut self) {
        match self.database.compact() {
            Ok(_) => {}
            Err(error) => {
                // As in `commit`: the state of the file is unknown.
                tracing::error!(path = %self.path.display(), %error, "could not defragment; aborting");
                std::process::abort();
            }
        }
    }

    /// Bytes of the file.
    pub(crate) fn size(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |metadata| metadata.len())
    }
}

/// Most commits touch no lease: opening its table only when needed saves writing its root anew.
fn open<T, E>(slot: &mut Option<T>, make: impl FnOnce() -> Result<T, E>) -> Result<&mut T, E> {
    if let Some(open) = slot {
        return Ok(open);
    }
    Ok(slot.insert(make()?))
}

/// A positive number that nobody else has: the standard library's hasher is keyed by the system's randomness.
pub(crate) fn random_id() -> i64 {
    loop {
        let id = (RandomState::new().hash_one(std::process::id()) >> 1).cast_signed();
        if id != 0 {
            return id;
        }
    }
}

fn row_key(row: RowId) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&row.main.0.to_be_bytes());
    key[8..].copy_from_slice(&row.sub.to_be_bytes());
    key
}

fn row_id(key: &[u8; 12]) -> RowId {
    let [a, b, c, d, e, f, g, h, sub @ ..] = *key;
    RowId { main: Revision(i64::from_be_bytes([a, b, c, d, e, f, g, h])), sub: u32::from_be_bytes(sub) }
}

const KIND_DELETE: u8 = 0;
const KIND_PUT: u8 = 1;

/// `kind | key length u32 | key`, and for a put ` | create i64 | version i64 | lease i64 | value`.
fn encode(record: &Record, buffer: &mut Vec<u8>) {
    buffer.clear();
    match record {
        Record::Put { key, value, lease, create_revision, version, .. } => {
            buffer.reserve(29 + key.len() + value.len());
            buffer.push(KIND_PUT);
            encode_key(key, buffer);
            buffer.extend_from_slice(&create_revision.0.to_be_bytes());
            buffer.extend_from_slice(&version.to_be_bytes());
            buffer.extend_from_slice(&lease.0.to_be_bytes());
            buffer.extend_from_slice(value);
        }
        Record::Delete { key, .. } => {
            buffer.push(KIND_DELETE);
            encode_key(key, buffer);
        }
        Record::LeaseGrant { .. }
        | Record::LeaseRevoke { .. }
        | Record::Compact { .. }
        | Record::Auth { .. } => {} // not rows
    }
}

fn encode_key(key: &Bytes, buffer: &mut Vec<u8>) {
    // A request is at most 1.5 MiB, so a key's length fits.
    buffer.extend_from_slice(&(key.len() as u32).to_be_bytes());
    buffer.extend_from_slice(key);
}

fn decode(row: RowId, bytes: &[u8]) -> Option<Record> {
    let (kind, rest) = bytes.split_first()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (key, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    let key = Bytes::copy_from_slice(key);
    match *kind {
        KIND_DELETE => rest.is_empty().then_some(Record::Delete { row, key }),
        KIND_PUT => {
            let (create, rest) = rest.split_first_chunk::<8>()?;
            let (version, rest) = rest.split_first_chunk::<8>()?;
            let (lease, value) = rest.split_first_chunk::<8>()?;
            Some(Record::Put {
                row,
                key,
                value: Bytes::copy_from_slice(value),
                lease: LeaseId(i64::from_be_bytes(*lease)),
                create_revision: Revision(i64::from_be_bytes(*create)),
                version: i64::from_be_bytes(*version),
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_their_encoding() {
        let row = RowId { main: Revision(1 << 40), sub: 7 };
        assert_eq!(row_id(&row_key(row)), row);
        let put = Record::Put {
            row,
            key: Bytes::from_static(b"\0key\xff"),
            value: Bytes::from_static(b"value"),
            lease: LeaseId(-3),
            create_revision: Revision(9),
            version: 4,
        };
        let delete = Record::Delete { row, key: Bytes::from_static(b"k") };
        let mut buffer = Vec::new();
        for record in [put, delete] {
            encode(&record, &mut buffer);
            assert_eq!(decode(row, &buffer), Some(record));
            for cut in 0..buffer.len().min(30) {
                // A torn row is never taken for a whole one, except that a value may be shorter.
                let torn = decode(row, &buffer[..cut]);
                assert!(torn.is_none() || cut >= 29, "{cut}: {torn:?}");
            }
        }
        assert_eq!(decode(row, &[9, 0, 0, 0, 0]), None);
    }
}
