//! Advisory locks between processes (flock(2)): one for a whole lab while it goes up or down, one per machine while
//! its power changes. The kernel drops them with the process, so an interrupted `up` never blocks the next.
//!
//! Invariant: whoever holds a [`LabLock`] holds the lock file that is *at that path now*; `down` removes it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::{Error, Result};

/// Held while a lab goes up or down.
#[derive(Debug)]
pub(crate) struct LabLock {
    path: PathBuf,
    _file: File,
}

impl LabLock {
    /// Waits for the lock at `path`, which is made if it is not there.
    pub(crate) fn take(path: &Path) -> Result<LabLock> {
        loop {
            let file = File::options()
                .create(true)
                .append(true)
                .open(path)
                .map_err(Error::io("open the lock file", path))?;
            lock(&file, path)?;
            // While we waited its last holder may have removed it; then ours is a lock on nothing.
            let here = file.metadata().map_err(Error::io("look at", path))?;
            if std::fs::metadata(path).is_ok_and(|now| now.ino() == here.ino() && now.dev() == here.dev()) {
                return Ok(LabLock { path: path.to_owned(), _file: file });
            }
        }
    }

    /// Removes the file, then lets go: `down` leaves nothing behind.
    pub(crate) fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(Error::io("remove", &self.path))
    }
}

/// Held while a machine's power changes. The lock is on its directory, so there is no file to forget.
pub(crate) fn machine(dir: &Path) -> Result<File> {
    let file = File::open(dir).map_err(Error::io("open", dir))?;
    lock(&file, dir)?;
    Ok(file)
}

fn lock(file: &File, path: &Path) -> Result<()> {
    loop {
        match flock(file, FlockOperation::LockExclusive) {
            Err(rustix::io::Errno::INTR) => continue,
            done => return done.map_err(Error::os("lock", path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_lock_is_not_shared_with_its_waiters() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = LabLock::take(&path).unwrap();
        let waiter = std::thread::spawn({
            let path = path.clone();
            move || LabLock::take(&path).map(|lock| (path.exists(), lock))
        });
        first.remove().unwrap();
        let (exists, second) = waiter.join().unwrap().unwrap();
        assert!(exists);
        second.remove().unwrap();
        assert!(!path.exists());
    }
}
