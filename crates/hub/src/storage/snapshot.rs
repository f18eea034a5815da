//! Snapshots: everything that a log up to some group says, without what was overwritten and forgotten.
//!
//! Written beside the log under another name, synced, then renamed: a snapshot that has its name is whole. Invariant:
//! nothing that a snapshot replaces is removed before the snapshot is durable; afterwards all of it may go.

use crate::storage::OpenError;
use crate::storage::entry::{self, Entry};
use crate::storage::files::{Files, WriteAt};
use crate::storage::frame;
use std::io;

/// The version of the layout of snapshots and of the entries in them.
const FORMAT: u32 = 1;
const MAGIC: [u8; 8] = *b"MSTRSNP\n";
const HEADER: usize = 12;

fn name(group: u64) -> String {
    format!("snap-{group:016}.snap")
}

fn group(name: &str) -> Option<u64> {
    name.strip_prefix("snap-")?.strip_suffix(".snap")?.parse().ok()
}

/// A snapshot in the making.
pub(crate) struct Writer<F: Files> {
    files: F,
    file: F::File,
    group: u64,
    frames: u64,
    at: u64,
    buffer: Vec<u8>,
}

impl<F: Files> Writer<F> {
    /// Begins a snapshot of what the log says up to and with `group`.
    pub(crate) fn create(files: F, group: u64) -> io::Result<Self> {
        let file = files.create(&temporary(group))?;
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&MAGIC);
        header[8..].copy_from_slice(&FORMAT.to_le_bytes());
        file.write_all_at(&header, 0)?;
        Ok(Self { files, file, group, frames: 0, at: HEADER as u64, buffer: Vec::new() })
    }

    /// Adds entries, in any order.
    pub(crate) fn add(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        frame::begin(&mut self.buffer);
        fill(&mut self.buffer);
        frame::finish(&mut self.buffer, self.group, self.frames).ok_or(io::ErrorKind::FileTooLarge)?;
        self.file.write_all_at(&self.buffer, self.at)?;
        self.at += self.buffer.len() as u64;
        self.frames += 1;
        Ok(())
    }

    /// Makes it durable, and removes older ones; tells its size.
    pub(crate) fn finish(mut self) -> io::Result<u64> {
        self.add(|_| {})?; // an empty frame is the end
        self.file.sync()?;
        self.files.rename(&temporary(self.group), &name(self.group))?;
        self.files.sync_names()?;
        for old in self.files.list()? {
            if group(&old).is_some_and(|old| old < self.group) {
                self.files.remove(&old)?;
            }
        }
        self.files.sync_names()?;
        Ok(self.at)
    }

    /// Leaves nothing behind.
    pub(crate) fn abandon(self) -> io::Result<()> {
        self.files.remove(&temporary(self.group))
    }
}

fn temporary(group: u64) -> String {
    format!("snap-{group:016}.tmp")
}

/// The newest snapshot, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// The last group that it covers.
    pub(crate) group: u64,
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) entries: Vec<Entry>,
}

pub(crate) fn load<F: Files>(files: &F) -> Result<Loaded, OpenError> {
    let names = files.list()?;
    let Some(newest) = names.iter().filter_map(|name| group(name)).max() else {
        return Ok(Loaded::default());
    };
    let file = name(newest);
    let bytes = files.read(&file)?;
    let entries = read(&file, newest, &bytes)?;
    for leftover in names {
        let old = group(&leftover).is_some_and(|group| group < newest);
        if old || (leftover.starts_with("snap-") && leftover.ends_with(".tmp")) {
            files.remove(&leftover)?;
        }
    }
    Ok(Loaded { group: newest, size: bytes.len() as u64, entries })
}

fn read(file: &str, group: u64, bytes: &[u8]) -> Result<Vec<Entry>, OpenError> {
    let (header, mut rest) =
        bytes
            .split_first_chunk::<HEADER>()
            .filter(|(header, _)| header[..8] == MAGIC)
            .ok_or_else(|| OpenError::damaged(file, "its header is not that of a snapshot"))?;
    let found = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    if found != FORMAT {
        return Err(OpenError::Format { file: file.to_owned(), found, known: FORMAT });
    }
    let mut entries = Vec::new();
    for number in 0.. {
        let at = bytes.len() - rest.len();
        let damaged =
            || OpenError::damaged(file, &format!("what is at byte {at} does not match its checksum"));
        let frame = frame::read(rest, group).filter(|frame| frame.number == number).ok_or_else(damaged)?;
        rest = &rest[frame::HEADER + frame.payload.len()..];
        if frame.payload.is_empty() {
            break;
        }
        if !entry::decode(frame.payload, &mut |entry| entries.push(entry)) {
            return Err(OpenError::damaged(file, &format!("at byte {at} are unknown entries")));
        }
    }
    if rest.is_empty() { Ok(entries) } else { Err(OpenError::damaged(file, "something follows its end")) }
}
