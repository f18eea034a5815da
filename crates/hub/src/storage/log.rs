//! The log: groups of entries, each made durable by one write and one fdatasync.
//!
//! Segments are zero-filled before they are used and groups padded to whole blocks, so that a sync overwrites blocks
//! that the disk already has: no metadata, no read-modify-write. Invariants: a group is written only when the one
//! before it is durable, so only the last one can be torn; a torn tail is cut off at the start, and only if nothing
//! valid follows; damage anywhere else refuses to start and changes nothing.

use crate::histogram::Histogram;
use crate::storage::files::{Files, WriteAt};
use crate::storage::frame;
use crate::storage::{OpenError, random_id};
use std::collections::VecDeque;
use std::io;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What groups are padded to: the block of file systems and of most disks.
pub(crate) const BLOCK: usize = 4096;

/// The version of the layout of segments and of the entries in them.
pub(crate) const FORMAT: u32 = 1;

const MAGIC: [u8; 8] = *b"MSTRWAL\n";

/// Zeros are written in pieces of this size, each synced, so that no put waits behind all of them.
const ZEROS: usize = 1 << 20;

/// How long to wait before trying again to prepare a segment on a full disk.
const RETRY: Duration = Duration::from_secs(1);

/// A buffer that a large group left is not kept.
const BUFFER: usize = 1 << 20;

/// How large segments are, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// The very first one: a new hub waits for it.
    pub(crate) first: u64,
    /// All others, made ahead of time.
    pub(crate) segment: u64,
    /// Whether they are made on a thread of their own.
    pub(crate) background: bool,
}

impl Sizes {
    pub(crate) const USUAL: Self = Self { first: 1 << 20, segment: 16 << 20, background: true };
}

struct Segment<W> {
    number: u64,
    file: W,
    salt: u64,
    length: u64,
    /// Where the next group goes.
    at: u64,
}

pub(crate) struct Log<F: Files> {
    files: F,
    sizes: Sizes,
    current: Segment<F::File>,
    spares: VecDeque<Segment<F::File>>,
    making: Option<JoinHandle<io::Result<Segment<F::File>>>>,
    /// Since when no spare segment could be made.
    starved: Option<Instant>,
    /// Segments before the current one: number, length, last group.
    closed: VecDeque<(u64, u64, u64)>,
    /// The number of the last group.
    last: u64,
    buffer: Vec<u8>,
    syncs: Histogram,
}

fn name(number: u64) -> String {
    format!("wal-{number:016}.log")
}

fn number(name: &str) -> Option<u64> {
    name.strip_prefix("wal-")?.strip_suffix(".log")?.parse().ok()
}

fn make<F: Files>(files: &F, number: u64, length: u64) -> io::Result<Segment<F::File>> {
    let temporary = format!("wal-{number:016}.tmp");
    let file = files.create(&temporary)?;
    let salt = random_id().cast_unsigned();
    let mut zeros = vec![0; ZEROS.min(length as usize)];
    let mut at = 0;
    while at < length {
        let piece = zeros.len().min((length - at) as usize);
        if at == 0 {
            zeros[..HEADER].copy_from_slice(&header(number, salt));
        }
        file.write_all_at(&zeros[..piece], at)?;
        file.sync()?;
        zeros[..HEADER].fill(0);
        at += piece as u64;
    }
    let to = name(number);
    files.rename(&temporary, &to)?;
    files.sync_names()?;
    Ok(Segment { number, file, salt, length, at: BLOCK as u64 })
}

/// `magic | format u32 | number u64 | salt u64 | crc32c u32`.
const HEADER: usize = 32;

fn header(number: u64, salt: u64) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    header[12..20].copy_from_slice(&number.to_le_bytes());
    header[20..28].copy_from_slice(&salt.to_le_bytes());
    let crc = crate::storage::crc::Crc::new().feed(&header[..28]).finish();
    header[28..].copy_from_slice(&crc.to_le_bytes());
    header
}

fn read_header(name: &str, number: u64, bytes: &[u8]) -> Result<u64, OpenError> {
    let damaged = || OpenError::damaged(name, "its header is not that of a segment of the log");
    let found: &[u8; HEADER] = bytes.first_chunk().ok_or_else(damaged)?;
    if found[..8] == MAGIC {
        let format = u32::from_le_bytes([found[8], found[9], found[10], found[11]]);
        if format != FORMAT {
            return Err(OpenError::Format { file: name.to_owned(), found: format, known: FORMAT });
        }
    }
    let (_, salt) = found[..28].split_last_chunk().ok_or_else(damaged)?;
    let salt = u64::from_le_bytes(*salt);
    if header(number, salt) == *found { Ok(salt) } else { Err(damaged()) }
}

fn padded(length: usize) -> usize {
    length.next_multiple_of(BLOCK)
}

/// What reading found so far.
struct Scan<W> {
    /// The number that the next group must have; none before the first.
    expected: Option<u64>,
    /// Segments read, with the number of the last group up to their end.
    segments: Vec<(Segment<W>, u64)>,
    /// Where the log ends: index into `segments`, and whether there is something to cut off.
    end: Option<(usize, bool)>,
    /// The last group: index into `segments`, where it begins, its blocks.
    tail: Option<(usize, u64, Vec<u8>)>,
}

impl<F: Files> Log<F> {
    /// Opens the log, gives the payload of each group after number `from` to `take` (which says whether it was
    /// good), and makes sure that all of it is durable.
    pub(crate) fn open(
        files: F,
        from: u64,
        sizes: Sizes,
        mut take: impl FnMut(&[u8]) -> bool,
    ) -> Result<Self, OpenError> {
        let names = files.list()?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| number(name)).collect();
        numbers.sort_unstable();
        if numbers.is_empty() {
            if from > 0 {
                return Err(OpenError::damaged(&name(1), "there is a snapshot but no log"));
            }
            let current = make(&files, 1, sizes.first)?;
            let mut log = Self::with(files, sizes, current, 0);
            log.prepare();
            return Ok(log);
        }
        let mut scan = Scan { expected: None, segments: Vec::new(), end: None, tail: None };
        for (index, number) in numbers.iter().enumerate() {
            if *number != numbers[0] + index as u64 {
                return Err(OpenError::damaged(&name(numbers[0] + index as u64), "it is missing"));
            }
            scan.segment(&files, *number, from, &mut take)?;
        }
        for leftover in names.iter().filter(|name| name.starts_with("wal-") && name.ends_with(".tmp")) {
            files.remove(leftover)?;
        }
        scan.into_log(files, from, sizes)
    }

    fn with(files: F, sizes: Sizes, current: Segment<F::File>, last: u64) -> Self {
        Self {
            files,
            sizes,
            current,
            spares: VecDeque::new(),
            making: None,
            starved: None,
            closed: VecDeque::new(),
            last,
            buffer: Vec::new(),
            syncs: Histogram::default(),
        }
    }

    /// How long the syncs of groups took.
    pub(crate) fn syncs(&self) -> Histogram {
        self.syncs
    }

    /// The number of the last group.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Bytes of the groups that are kept, padding included.
    pub(crate) fn size(&self) -> u64 {
        self.closed.iter().map(|(_, length, _)| length).sum::<u64>() + self.current.at
    }

    /// Makes what `fill` writes durable, all or none; tells the group's number. After an error nobody knows what is
    /// on disk: the caller must end the process.
    pub(crate) fn append(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> io::Result<u64> {
        let mut buffer = std::mem::take(&mut self.buffer);
        frame::begin(&mut buffer);
        fill(&mut buffer);
        let needed = padded(buffer.len()) as u64;
        // A group that no segment could hold makes its segment longer.
        if self.current.at + needed > self.current.length && self.current.at > BLOCK as u64 {
            self.roll()?;
        }
        let group = self.last + 1;
        frame::finish(&mut buffer, self.current.salt, group).ok_or(io::ErrorKind::FileTooLarge)?;
        buffer.resize(padded(buffer.len()), 0);
        self.current.file.write_all_at(&buffer, self.current.at)?;
        let began = Instant::now();
        self.current.file.sync()?;
        self.syncs.observe(began.elapsed());
        self.current.at += needed;
        self.current.length = self.current.length.max(self.current.at);
        self.last = group;
        buffer.clear();
        buffer.shrink_to(BUFFER);
        self.buffer = buffer;
        Ok(group)
    }

    fn roll(&mut self) -> io::Result<()> {
        let next = match (self.spares.pop_front(), self.making.take()) {
            (Some(spare), making) => {
                self.making = making;
                spare
            }
            (None, Some(making)) => join(making)?,
            (None, None) => make(&self.files, self.current.number + 1, self.sizes.segment)?,
        };
        let full = std::mem::replace(&mut self.current, next);
        self.closed.push_back((full.number, full.at, self.last));
        self.prepare();
        Ok(())
    }

    /// Sees to it that there is a next segment before it is needed.
    pub(crate) fn prepare(&mut self) {
        if self.making.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(making) = self.making.take()
        {
            self.prepared(join(making));
        }
        let waits = self.starved.is_some_and(|since| since.elapsed() < RETRY);
        if !self.spares.is_empty() || self.making.is_some() || waits {
            return;
        }
        let (files, number, length) = (self.files.clone(), self.current.number + 1, self.sizes.segment);
        if !self.sizes.background {
            let made = make(&files, number, length);
            return self.prepared(made);
        }
        let thread = thread::Builder::new().name("hub-segment".to_owned());
        match thread.spawn(move || make(&files, number, length)) {
            Ok(making) => self.making = Some(making),
            Err(error) => self.prepared(Err(error)),
        }
    }

    fn prepared(&mut self, made: io::Result<Segment<F::File>>) {
        match made {
            Ok(spare) => {
                self.spares.push_back(spare);
                self.starved = None;
            }
            Err(error) => {
                tracing::warn!(%error, "could not prepare the log's next segment; writes are refused until it can");
                self.starved = Some(Instant::now());
            }
        }
    }

    /// Whether the disk has no room for the next segment.
    pub(crate) fn is_starved(&self) -> bool {
        self.starved.is_some()
    }

    /// Removes segments that have no group after number `through`, oldest first and durably, so that what is left
    /// never has a gap.
    pub(crate) fn truncate(&mut self, through: u64) -> io::Result<()> {
        while let Some((number, _, last)) = self.closed.front()
            && *last <= through
        {
            self.files.remove(&name(*number))?;
            self.closed.pop_front();
            self.files.sync_names()?;
        }
        Ok(())
    }
}

impl<F: Files> Drop for Log<F> {
    /// No thread of this log writes in the directory after it is gone.
    fn drop(&mut self) {
        if let Some(making) = self.making.take() {
            let _ = join(making); // a segment that is not there is made when it is needed
        }
    }
}

fn join<T>(thread: JoinHandle<io::Result<T>>) -> io::Result<T> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that makes segments panicked")))
}

impl<W: WriteAt> Scan<W> {
    fn segment<F: Files<File = W>>(
        &mut self,
        files: &F,
        number: u64,
        from: u64,
        take: &mut impl FnMut(&[u8]) -> bool,
    ) -> Result<(), OpenError> {
        let file_name = name(number);
        let bytes = files.read(&file_name)?;
        let salt = read_header(&file_name, number, &bytes)?;
        let mut at = BLOCK;
        let index = self.segments.len();
        if let Some((end, torn)) = self.end {
            // The log ended before. It may go on here if nothing was torn off there.
            let goes_on = frame::read(bytes.get(at..).unwrap_or_default(), salt)
                .is_some_and(|frame| !torn && self.expected.is_none_or(|expected| frame.number == expected));
            if goes_on {
                self.end = None;
            } else if let Some(follows) = any_frame(&bytes, at, salt) {
                return Err(self.gap(end, follows));
            }
        }
        while self.end.is_none() {
            let rest = bytes.get(at..).unwrap_or_default();
            let valid = frame::read(rest, salt)
                .filter(|frame| self.expected.is_none_or(|expected| frame.number == expected));
            let Some(frame) = valid else {
                self.end = Some((index, rest.iter().any(|byte| *byte != 0)));
                if let Some(follows) = any_frame(&bytes, at, salt) {
                    return Err(OpenError::damaged(
                        &file_name,
                        &format!("what is at byte {at} is not a valid group, and group {follows} follows it"),
                    ));
                }
                break;
            };
            if self.expected.is_none() && frame.number > from + 1 {
                let what = format!("its first group is {}, groups after {from} are missing", frame.number);
                return Err(OpenError::damaged(&file_name, &what));
            }
            if frame.number > from && !take(frame.payload) {
                return Err(OpenError::damaged(
                    &file_name,
                    &format!("group {} has unknown entries", frame.number),
                ));
            }
            self.expected = Some(frame.number + 1);
            let length = padded(frame::HEADER + frame.payload.len());
            self.tail = Some((index, at as u64, rest[..length.min(rest.len())].to_vec()));
            at += length;
        }
        let last = self.expected.map_or(0, |expected| expected - 1);
        let segment = Segment {
            number,
            file: files.open(&file_name)?,
            salt,
            length: bytes.len() as u64,
            at: at as u64,
        };
        self.segments.push((segment, last));
        Ok(())
    }

    fn gap(&self, end: usize, follows: u64) -> OpenError {
        let Some((segment, last)) = self.segments.get(end) else {
            return OpenError::damaged("log", "it has a gap");
        };
        let what =
            format!("it ends at byte {} after group {last}, and group {follows} follows later", segment.at);
        OpenError::damaged(&name(segment.number), &what)
    }

    fn into_log<F: Files<File = W>>(self, files: F, from: u64, sizes: Sizes) -> Result<Log<F>, OpenError> {
        let last = self.expected.map_or(0, |expected| expected - 1);
        if last < from {
            let what = format!("it ends after group {last}, before the snapshot's {from}");
            return Err(OpenError::damaged("the log", &what));
        }
        // What a sync failed to write may still be in the page cache, so the last group is written again: it is
        // about to be shown to clients. All before it were synced before it was written.
        if let Some((index, at, blocks)) = &self.tail
            && let Some((segment, _)) = self.segments.get(*index)
        {
            segment.file.write_all_at(blocks, *at)?;
            segment.file.sync()?;
        }
        let (end, torn) = self.end.unwrap_or((self.segments.len() - 1, false));
        let mut segments = self.segments;
        let mut spares: VecDeque<_> = segments.drain(end + 1..).map(|(segment, _)| segment).collect();
        let Some((current, _)) = segments.pop() else {
            return Err(OpenError::damaged("the log", "it has no segment"));
        };
        if torn {
            tracing::warn!(after = last, at = current.at, "cutting off a group that was never acknowledged");
            let zeros = vec![0; ZEROS];
            let mut at = current.at;
            while at < current.length {
                let piece = zeros.len().min((current.length - at) as usize);
                current.file.write_all_at(&zeros[..piece], at)?;
                at += piece as u64;
            }
            current.file.sync()?;
        }
        for spare in &mut spares {
            spare.at = BLOCK as u64;
        }
        files.sync_names()?;
        let mut log = Log::with(files, sizes, current, last);
        log.closed = segments.into_iter().map(|(segment, last)| (segment.number, segment.at, last)).collect();
        log.spares = spares;
        log.prepare();
        Ok(log)
    }
}

/// The number of a valid group at or after `at`.
fn any_frame(bytes: &[u8], at: usize, salt: u64) -> Option<u64> {
    let blocks = (at..bytes.len()).step_by(BLOCK);
    blocks.filter_map(|at| frame::read(&bytes[at..], salt)).map(|frame| frame.number).next()
}
