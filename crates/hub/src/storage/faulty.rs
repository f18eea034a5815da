//! A disk that fails as it is told to.
//!
//! It knows two states: what reads give back (the page cache) and what a power cut leaves. Every call is a numbered
//! point at which one fault can be injected; afterwards the machine may lose power, with all, some or none of the unsynced
//! sectors of 512 bytes on the disk. Invariant: what was synced without error survives, and nothing else is promised:
//! neither contents, nor names, nor the order in which unsynced things reach the disk.

use crate::storage::files::{Files, WriteAt};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

const SECTOR: usize = 512;

/// What goes wrong, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process dies before the call has any effect.
    Kill,
    /// The process dies after the call.
    KillAfter,
    /// EIO; a sync that fails so has forgotten what it should have written, as Linux does.
    Error,
    /// A write takes only some of the bytes, and the process goes on.
    Short,
    /// A write takes only some of the bytes, and the process dies.
    ShortThenKill,
    /// ENOSPC on whatever needs space, from now on.
    Full,
}

/// The kind of a call, for the proof that each is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    List,
    Read,
    Create,
    Open,
    Rename,
    Remove,
    SyncNames,
    Write,
    Sync,
}

#[derive(Debug, Clone, Default)]
struct Inode {
    cache: Vec<u8>,
    disk: Vec<u8>,
    /// Sectors that were written and not synced.
    dirty: BTreeMap<usize, ()>,
}

#[derive(Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    disk_names: BTreeMap<String, usize>,
    /// Name changes not synced: name, and what it is now.
    changes: Vec<(String, Option<usize>)>,
    calls: Vec<Call>,
    fault: Option<(usize, Fault)>,
    dead: bool,
    full: bool,
}

/// A disk; clones are the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct FaultyDisk(Arc<Mutex<State>>);

#[derive(Debug)]
pub(crate) struct FaultyFile {
    disk: FaultyDisk,
    inode: usize,
}

fn error(what: i32) -> io::Error {
    io::Error::from_raw_os_error(what)
}

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const ENOENT: i32 = 2;

/// What a call is to do.
#[derive(PartialEq, Eq)]
enum Verdict {
    Go,
    GoThenDie,
    Short,
    ShortThenDie,
}

impl FaultyDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Injects a fault at a point of those that follow.
    pub(crate) fn inject(&self, point: usize, fault: Fault) {
        let mut state = self.state();
        state.calls.clear();
        state.fault = Some((point, fault));
    }

    /// The calls since the last injection.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// Whether the fault has happened.
    pub(crate) fn is_reached(&self) -> bool {
        self.state().fault.is_none()
    }

    /// The process has ended and another will begin; the machine went on.
    pub(crate) fn restart(&self) {
        let mut state = self.state();
        (state.dead, state.full, state.fault) = (false, false, None);
    }

    /// The machine loses power. `lucky` says of each unsynced sector and name whether it was written in time.
    pub(crate) fn cut_power(&self, mut lucky: impl FnMut() -> bool) {
        let mut guard = self.state();
        let state = &mut *guard;
        for (name, inode) in std::mem::take(&mut state.changes) {
            if lucky() {
                match inode {
                    Some(inode) => state.disk_names.insert(name, inode),
                    None => state.disk_names.remove(&name),
                };
            }
        }
        for inode in &mut state.inodes {
            for sector in std::mem::take(&mut inode.dirty).into_keys() {
                if lucky() {
                    inode.write_back(sector);
                }
            }
            inode.cache = inode.disk.clone();
        }
        state.names = state.disk_names.clone();
        drop(guard);
        self.restart();
    }

    /// Changes bytes behind everybody's back.
    pub(crate) fn damage(&self, name: &str, at: usize, bytes: &[u8]) {
        let mut state = self.state();
        let inode = state.names[name];
        let inode = &mut state.inodes[inode];
        for contents in [&mut inode.cache, &mut inode.disk] {
            contents[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }

    fn enter(&self, call: Call) -> io::Result<(MutexGuard<'_, State>, Verdict)> {
        let mut state = self.state();
        if state.dead {
            return Err(error(EIO)); // nobody hears it: the process is no more
        }
        let point = state.calls.len();
        state.calls.push(call);
        let fault = match state.fault {
            Some((at, fault)) if at == point => {
                state.fault = None;
                Some(fault)
            }
            _ => None,
        };
        let verdict = match fault {
            None => Verdict::Go,
            Some(Fault::Kill) => {
                state.dead = true;
                return Err(error(EIO));
            }
            Some(Fault::KillAfter) => Verdict::GoThenDie,
            Some(Fault::Error) => {
                if call == Call::Sync {
                    return Ok((state, Verdict::Short)); // the file forgets what is dirty
                }
                return Err(error(EIO));
            }
            Some(Fault::Short) => Verdict::Short,
            Some(Fault::ShortThenKill) => Verdict::ShortThenDie,
            Some(Fault::Full) => {
                state.full = true;
                Verdict::Go
            }
        };
        if state.full && matches!(call, Call::Create) {
            return Err(error(ENOSPC));
        }
        Ok((state, verdict))
    }

    fn change(&self, call: Call, work: impl FnOnce(&mut State) -> io::Result<usize>) -> io::Result<usize> {
        let (mut state, verdict) = self.enter(call)?;
        let result = work(&mut state)?;
        if matches!(verdict, Verdict::GoThenDie | Verdict::ShortThenDie) {
            state.dead = true;
            return Err(error(EIO));
        }
        Ok(result)
    }
}

impl State {
    fn name(&mut self, name: &str, inode: Option<usize>) {
        match inode {
            Some(inode) => self.names.insert(name.to_owned(), inode),
            None => self.names.remove(name),
        };
        self.changes.push((name.to_owned(), inode));
    }

    fn find(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| error(ENOENT))
    }
}

impl Inode {
    fn write_back(&mut self, sector: usize) {
        let start = sector * SECTOR;
        let end = (start + SECTOR).min(self.cache.len());
        if self.disk.len() < end {
            self.disk.resize(end, 0);
        }
        self.disk[start..end].copy_from_slice(&self.cache[start..end]);
    }
}

impl Files for FaultyDisk {
    type File = FaultyFile;

    fn list(&self) -> io::Result<Vec<String>> {
        let (state, _) = self.enter(Call::List)?;
        Ok(state.names.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let (state, _) = self.enter(Call::Read)?;
        Ok(state.inodes[state.find(name)?].cache.clone())
    }

    fn create(&self, name: &str) -> io::Result<FaultyFile> {
        let inode = self.change(Call::Create, |state| {
            state.inodes.push(Inode::default());
            let inode = state.inodes.len() - 1;
            state.name(name, Some(inode));
            Ok(inode)
        })?;
        Ok(FaultyFile { disk: self.clone(), inode })
    }

    fn open(&self, name: &str) -> io::Result<FaultyFile> {
        let (state, _) = self.enter(Call::Open)?;
        Ok(FaultyFile { disk: self.clone(), inode: state.find(name)? })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(Call::Rename, |state| {
            let inode = state.find(from)?;
            // One step for a file system: both or none.
            state.names.remove(from);
            state.names.insert(to.to_owned(), inode);
            state.changes.push((to.to_owned(), Some(inode)));
            Ok(inode)
        })?;
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change(Call::Remove, |state| {
            let inode = state.find(name)?;
            state.name(name, None);
            Ok(inode)
        })?;
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let (mut state, verdict) = self.enter(Call::SyncNames)?;
        state.changes.clear();
        state.disk_names = state.names.clone();
        state.dead = verdict == Verdict::GoThenDie;
        if state.dead { Err(error(EIO)) } else { Ok(()) }
    }
}

impl WriteAt for FaultyFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let (mut state, verdict) = self.disk.enter(Call::Write)?;
        let mut bytes = bytes;
        if matches!(verdict, Verdict::Short | Verdict::ShortThenDie) {
            bytes = &bytes[..bytes.len().div_ceil(3)];
        }
        let (offset, full) = (offset as usize, state.full);
        let inode = &mut state.inodes[self.inode];
        let end = offset + bytes.len();
        if full && end > inode.cache.len() {
            return Err(error(ENOSPC)); // writing in place needs no space
        }
        if inode.cache.len() < end {
            inode.cache.resize(end, 0);
        }
        inode.cache[offset..end].copy_from_slice(bytes);
        inode.dirty.extend((offset / SECTOR..end.div_ceil(SECTOR)).map(|sector| (sector, ())));
        state.dead = matches!(verdict, Verdict::GoThenDie | Verdict::ShortThenDie);
        if state.dead { Err(error(EIO)) } else { Ok(bytes.len()) }
    }

    fn sync(&self) -> io::Result<()> {
        let (mut state, verdict) = self.disk.enter(Call::Sync)?;
        let inode = &mut state.inodes[self.inode];
        let dirty = std::mem::take(&mut inode.dirty);
        if verdict == Verdict::Short {
            return Err(error(EIO));
        }
        for sector in dirty.into_keys() {
            inode.write_back(sector);
        }
        let length = inode.cache.len();
        inode.disk.resize(length, 0);
        state.dead = matches!(verdict, Verdict::GoThenDie | Verdict::ShortThenDie);
        if state.dead { Err(error(EIO)) } else { Ok(()) }
    }
}
