//! The hub's disk: what must survive, as a log and snapshots of it.
//!
//! Four things can be done: [`append`](Storage::append) a batch of records, replay them at the start
//! ([`open`](Storage::open)), take a [`snapshot`](Storage::snapshot), and [`truncate`](Storage::truncate) what it
//! replaces. Nothing here knows what records mean, and nothing else in the hub what is on disk. Invariant: when
//! `append` returns all of its records are durable, in one group: after a crash there are all of them or none. It never
//! returns an error, since after a failed sync nobody knows what is on disk and going on would lie.

/// CRC-32C.
mod crc;
/// Records as bytes.
mod entry;
/// The files beneath.
mod files;
/// Checked pieces of a file.
mod frame;
/// The log's segments.
mod log;
/// Snapshot files.
mod snapshot;
/// Payloads of bytes that anybody made.
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz {
    /// The records of a payload, unless it is damaged.
    pub(crate) fn entries(payload: &[u8]) -> Option<Vec<mvcc::Record>> {
        let mut records = Vec::new();
        let whole = super::entry::decode(payload, &mut |entry| {
            if let super::Entry::Record(record) = entry {
                records.push(record);
            }
        });
        whole.then_some(records)
    }
}

/// Every way in which a disk may fail, at every point.
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod crash;
/// A disk that fails as it is told to.
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod faulty;

use crate::HubError;
use crate::histogram::Histogram;
use entry::Entry;
use files::{Directory, Files};
use log::{Log, Sizes};
use mvcc::Record;
use std::fs::{self, File, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

pub(crate) use entry::Identity;

/// What to do about damage: in every message that reports some.
const ADVICE: &str =
    "nothing was changed. Restore the directory from a backup; or, to start without these data, move it away";

/// Why the data could not be opened.
#[derive(Debug)]
pub(crate) enum OpenError {
    Io(io::Error),
    Format { file: String, found: u32, known: u32 },
    Damaged { file: String, what: String },
}

impl OpenError {
    fn damaged(file: &str, what: &str) -> Self {
        Self::Damaged { file: file.to_owned(), what: what.to_owned() }
    }

    fn in_directory(self, directory: &Path) -> HubError {
        match self {
            Self::Io(source) => HubError::DataDir { path: directory.to_owned(), source },
            Self::Format { file, found, known } => {
                HubError::Format { path: directory.join(file), found: found.into(), known: known.into() }
            }
            Self::Damaged { file, what } => {
                HubError::Corrupt { path: directory.join(file), what: format!("{what}; {ADVICE}") }
            }
        }
    }
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// An open data directory and what was in it.
pub(crate) struct Opened {
    pub(crate) storage: Storage,
    pub(crate) identity: Identity,
    pub(crate) records: Vec<Record>,
}

/// The storage of a hub that runs.
pub(crate) struct Storage {
    disk: Disk<Directory>,
    path: PathBuf,
    snapshot_after: u64,
    commit: Histogram,
    /// Held for as long as the directory is in use.
    _lock: File,
}

impl Storage {
    /// Opens the directory, and makes it first if need be. Blocks.
    pub(crate) fn open(data_dir: &Path) -> Result<Opened, HubError> {
        let in_dir = |source| HubError::DataDir { path: data_dir.to_owned(), source };
        fs::create_dir_all(data_dir).map_err(in_dir)?;
        let lock = File::create(data_dir.join("LOCK")).map_err(in_dir)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => HubError::Locked { path: data_dir.to_owned() },
            TryLockError::Error(source) => in_dir(source),
        })?;
        if let Some(parent) = data_dir.canonicalize().map_err(in_dir)?.parent() {
            // The directory's own name must survive a power cut too.
            files::sync_directory(parent).map_err(in_dir)?;
        }
        let (disk, records) = Disk::open(Directory(data_dir.to_owned()), Sizes::USUAL)
            .map_err(|error| error.in_directory(data_dir))?;
        let identity = disk.identity;
        let snapshot_after = crate::Limits::default().log;
        let (path, commit) = (data_dir.to_owned(), Histogram::default());
        let storage = Self { disk, path, snapshot_after, commit, _lock: lock };
        Ok(Opened { storage, identity, records })
    }

    /// Makes the records durable; one sync. Aborts the process if that fails: nothing that was promised before is
    /// lost, and the next start sees what the disk has.
    pub(crate) fn append(&mut self, records: &[Record]) {
        let began = Instant::now();
        if let Err(error) = self.disk.append(records) {
            tracing::error!(path = %self.path.display(), %error, "could not make data durable; aborting");
            std::process::abort();
        }
        self.commit.observe(began.elapsed());
    }

    /// A snapshot is due when the log has grown by this and by the size of the last snapshot: the disk holds about twice
    /// the data, a start reads no more than that, and no byte is copied more than about once for each that is written.
    pub(crate) fn set_snapshot_after(&mut self, bytes: u64) {
        self.snapshot_after = bytes;
    }

    /// Commits since the start.
    pub(crate) fn commits(&self) -> Commits {
        Commits { commit: self.commit, sync: self.disk.log.syncs() }
    }

    /// Whether the log has grown enough for a snapshot.
    pub(crate) fn is_snapshot_due(&self) -> bool {
        self.disk.is_snapshot_due(self.snapshot_after)
    }

    /// Begins a snapshot of all that was appended so far.
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.disk.snapshot()
    }

    /// Removes what the snapshot replaces.
    pub(crate) fn truncate(&mut self, written: Written) {
        if let Err(error) = self.disk.truncate(written) {
            tracing::warn!(path = %self.path.display(), %error, "could not remove old segments of the log");
        }
    }

    /// Whether the disk is full: what is left is for deletions.
    pub(crate) fn is_full(&mut self) -> bool {
        self.disk.log.prepare();
        self.disk.log.is_starved()
    }

    /// Bytes of the log and the snapshot.
    pub(crate) fn size(&self) -> u64 {
        self.disk.log.size() + self.disk.snapshot_size
    }
}

/// How long commits took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Commits {
    /// The whole of each.
    pub(crate) commit: Histogram,
    /// The sync in it.
    pub(crate) sync: Histogram,
}

/// A snapshot to be written, by any thread.
pub(crate) type Snapshot = SnapshotOf<Directory>;

/// Log and snapshots on any kind of disk.
struct Disk<F: Files> {
    files: F,
    log: Log<F>,
    identity: Identity,
    snapshot_size: u64,
    /// The log's size when the snapshot had replaced what it could.
    log_then: u64,
}

impl<F: Files> Disk<F> {
    /// Reads all, counts the start.
    fn open(files: F, sizes: Sizes) -> Result<(Self, Vec<Record>), OpenError> {
        let snapshot = snapshot::load(&files)?;
        let mut records = Vec::new();
        let mut identity = None;
        let mut take = |entry, records: &mut Vec<Record>| match entry {
            Entry::Start(start) => identity = Some(start),
            Entry::Record(record) => records.push(record),
        };
        for entry in snapshot.entries {
            take(entry, &mut records);
        }
        // A snapshot is by key, history is by revision.
        records.sort_by_key(|record| match record {
            Record::Put { row, .. } | Record::Delete { row, .. } => Some(*row),
            Record::LeaseGrant { .. }
            | Record::LeaseRevoke { .. }
            | Record::Compact { .. }
            | Record::Auth { .. }
            | Record::Alarm { .. } => None,
        });
        let log = Log::open(files.clone(), snapshot.group, sizes, |payload| {
            entry::decode(payload, &mut |entry| take(entry, &mut records))
        })?;
        let identity = match identity {
            Some(identity) => Identity { term: identity.term + 1, ..identity },
            None => Identity {
                cluster: random_id().cast_unsigned(),
                member: random_id().cast_unsigned(),
                term: 1,
            },
        };
        let mut disk = Self { files, log, identity, snapshot_size: snapshot.size, log_then: 0 };
        disk.log.append(|buffer| entry::encode_start(&identity, buffer))?;
        Ok((disk, records))
    }

    fn append(&mut self, records: &[Record]) -> io::Result<()> {
        self.log.append(|buffer| records.iter().for_each(|record| entry::encode(record, buffer)))?;
        Ok(())
    }

    fn is_snapshot_due(&self, after: u64) -> bool {
        self.log.size().saturating_sub(self.log_then) > after + self.snapshot_size
    }

    fn snapshot(&self) -> SnapshotOf<F> {
        SnapshotOf { files: self.files.clone(), group: self.log.last(), identity: self.identity }
    }

    fn truncate(&mut self, written: Written) -> io::Result<()> {
        self.snapshot_size = written.size;
        let result = self.log.truncate(written.group);
        self.log_then = self.log.size();
        result
    }
}

pub(crate) struct SnapshotOf<F: Files> {
    files: F,
    group: u64,
    identity: Identity,
}

/// A snapshot that is durable.
pub(crate) struct Written {
    group: u64,
    size: u64,
}

impl<F: Files> SnapshotOf<F> {
    /// Writes what `next` gives, in pieces, until it gives none. Nothing if `next` gives up.
    pub(crate) fn write(
        self,
        mut next: impl FnMut() -> Result<Option<Vec<Record>>, GivenUp>,
    ) -> io::Result<Option<Written>> {
        let mut writer = snapshot::Writer::create(self.files, self.group)?;
        writer.add(|buffer| entry::encode_start(&self.identity, buffer))?;
        loop {
            match next() {
                Ok(Some(records)) if records.is_empty() => {}
                Ok(Some(records)) => {
                    writer.add(|buffer| records.iter().for_each(|record| entry::encode(record, buffer)))?;
                }
                Ok(None) => return Ok(Some(Written { group: self.group, size: writer.finish()? })),
                Err(GivenUp) => return writer.abandon().map(|()| None),
            }
        }
    }
}

/// The history was compacted while it was being read.
#[derive(Debug)]
pub(crate) struct GivenUp;

/// A positive number that nobody else has: the standard library's hasher is keyed by the system's randomness.
pub(crate) fn random_id() -> i64 {
    loop {
        let id = (RandomState::new().hash_one(std::process::id()) >> 1).cast_signed();
        if id != 0 {
            return id;
        }
    }
}
