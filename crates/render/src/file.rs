//! A text, put in place in steps of which each can fail or be the last one: staged beside its destination, checked,
//! noted, renamed, its reader told, noted again. What failed is taken back.
//!
//! Invariants: a text is compared with what was last *applied*, not with what is on disk, so that a reader that could not
//! be told is told again; after a kill at any moment the next start brings file and reader together.

use crate::{Error, Output, Rendered};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};
use tracing::{info, warn};

/// Why a reader does not use a file that is in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// It does not run, so nobody uses the old file either; with the remedy.
    NotRunning(String),
    /// It could not be told, or does not do as it was told.
    Failed(String),
}

/// What applying did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It is in use already.
    Unchanged,
    /// It is in place and in use now.
    Changed,
}

/// Whose a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Owner {
    /// The user; that of the file before by default.
    pub uid: Option<u32>,
    /// The group; that of the file before by default.
    pub gid: Option<u32>,
    /// The permissions; those of the file before, or 0644, by default.
    pub mode: Option<u32>,
}

/// What is known of a file beside its text: in `.<name>.muster`, beside it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    v: u32,
    /// The digest of the text that its reader was last seen to use.
    #[serde(default)]
    applied: Option<String>,
    /// The digest of a text that is being put in place. One that is found at the start was interrupted.
    #[serde(default)]
    trying: Option<String>,
}

/// A file that is kept as it should be.
pub struct File<O> {
    destination: PathBuf,
    owner: Owner,
    output: O,
    /// The digest of what its reader uses; none when that is not known.
    applied: Option<String>,
    opened: bool,
}

impl<O: Output> File<O> {
    /// The file at `destination`, whose reader is `output`.
    pub fn new(destination: PathBuf, owner: Owner, output: O) -> Self {
        Self { destination, owner, output, applied: None, opened: false }
    }

    /// Where it is.
    pub fn destination(&self) -> &Path {
        &self.destination
    }

    /// Its reader.
    pub fn output(&self) -> &O {
        &self.output
    }

    /// What is in place.
    pub fn current(&self) -> Option<String> {
        fs::read_to_string(&self.destination).ok()
    }

    /// Whether applying would change anything.
    pub fn differs(&mut self, text: &str) -> bool {
        self.open();
        self.applied.as_deref() != Some(&digest(text.as_bytes()))
    }

    /// Says whether `text` would do. Touches nothing but the staged file.
    pub async fn check(&mut self, text: &str) -> Result<(), Error> {
        self.open();
        let staged = self.stage(text)?;
        let checked = self.output.check(&staged, text).await;
        // One that is left over is written anew.
        let _ = fs::remove_file(&staged);
        checked
    }

    /// Puts the text in place and its reader to use it, unless that was done before.
    pub async fn apply(&mut self, rendered: &Rendered) -> Result<Applied, Error> {
        if !self.differs(&rendered.text) {
            return Ok(Applied::Unchanged);
        }
        let new = digest(rendered.text.as_bytes());
        let staged = self.stage(&rendered.text)?;
        if let Err(error) = self.output.check(&staged, &rendered.text).await {
            let _ = fs::remove_file(&staged);
            return Err(error);
        }
        let before = fs::read(&self.destination).ok();
        let mut note = self.note();
        // What was tried and not applied is no text to go back to: the one before it is kept.
        if before.as_ref().is_none_or(|before| note.applied.is_none() || note.applied == Some(digest(before)))
        {
            self.keep(before.as_deref())?;
        }
        note.trying = Some(new.clone());
        self.write_note(&note)?;
        fs::rename(&staged, &self.destination).map_err(|source| self.wrong(&self.destination, source))?;
        self.applied = None;
        match self.output.activate(rendered).await {
            Ok(()) => {
                self.write_note(&Note { v: 1, applied: Some(new.clone()), trying: None })?;
                self.applied = Some(new);
                Ok(Applied::Changed)
            }
            // It will read what is there when it starts, and that has passed the check.
            Err(Failure::NotRunning(remedy)) => Err(Error::NotRunning(remedy)),
            Err(Failure::Failed(said)) => {
                let after = self.take_back().await.err();
                Err(Error::TakenBack { path: self.destination.clone(), said, after })
            }
        }
    }

    /// Forgets what is known, so that an edit of somebody's is noticed.
    pub fn look_again(&mut self) {
        (self.opened, self.applied) = (false, None);
    }

    /// Finds out where an earlier process was.
    fn open(&mut self) {
        if std::mem::replace(&mut self.opened, true) {
            return;
        }
        let note = self.note();
        let current = fs::read(&self.destination).ok().map(|text| digest(&text));
        if note.trying.is_some() {
            info!(file = %self.destination.display(), "putting it in place was interrupted, doing it again");
        } else if current.is_some() && current == note.applied {
            self.applied = current;
        }
    }

    /// Puts the text before back.
    async fn take_back(&mut self) -> Result<(), String> {
        let previous = fs::read_to_string(self.beside("previous")).ok();
        let restored = match &previous {
            Some(text) => self
                .stage(text)
                .map_err(|error| error.to_string())
                .and_then(|staged| fs::rename(staged, &self.destination).map_err(|error| error.to_string())),
            None => fs::remove_file(&self.destination).map_err(|error| error.to_string()),
        };
        restored?;
        let applied = previous.as_ref().map(|text| digest(text.as_bytes()));
        let used = self.output.activate(&Rendered::plain(previous.unwrap_or_default())).await;
        self.write_note(&Note { v: 1, applied: applied.clone(), trying: None })
            .map_err(|error| error.to_string())?;
        self.applied = applied;
        match used {
            Ok(()) => Ok(()),
            Err(Failure::NotRunning(said) | Failure::Failed(said)) => Err(said),
        }
    }

    /// Writes the text beside the destination.
    fn stage(&self, text: &str) -> Result<PathBuf, Error> {
        let staged = self.beside("new");
        let wrong = |source| self.wrong(&staged, source);
        let before = fs::metadata(&self.destination).ok();
        let mut file = fs::File::create(&staged).map_err(wrong)?;
        let mode =
            self.owner.mode.or_else(|| before.as_ref().map(|before| before.mode() & 0o7777)).unwrap_or(0o644);
        file.set_permissions(fs::Permissions::from_mode(mode)).map_err(wrong)?;
        let new = file.metadata().map_err(wrong)?;
        let uid =
            self.owner.uid.or_else(|| before.as_ref().map(MetadataExt::uid)).filter(|uid| *uid != new.uid());
        let gid =
            self.owner.gid.or_else(|| before.as_ref().map(MetadataExt::gid)).filter(|gid| *gid != new.gid());
        if uid.is_some() || gid.is_some() {
            std::os::unix::fs::fchown(&file, uid, gid).map_err(wrong)?;
        }
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(wrong)?;
        Ok(staged)
    }

    /// Keeps the text that is in use, to go back to.
    fn keep(&self, before: Option<&[u8]>) -> Result<(), Error> {
        let path = self.beside("previous");
        let kept = match before {
            Some(before) => write(&path, before),
            None => match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        };
        kept.map_err(|source| self.wrong(&path, source))
    }

    /// A file that no pattern such as `*.conf` finds.
    fn beside(&self, what: &str) -> PathBuf {
        let name = self.destination.file_name().unwrap_or_default().to_string_lossy();
        self.destination.with_file_name(format!(".{name}.{what}"))
    }

    fn note(&self) -> Note {
        let path = self.beside("muster");
        let Ok(text) = fs::read(&path) else { return Note::default() };
        serde_json::from_slice(&text).unwrap_or_else(|error| {
            warn!(file = %path.display(), %error, "unreadable note passed over");
            Note::default()
        })
    }

    fn write_note(&self, note: &Note) -> Result<(), Error> {
        let path = self.beside("muster");
        let text = serde_json::to_vec(&Note { v: 1, ..note.clone() }).expect("notes always render");
        write(&path, &text).map_err(|source| self.wrong(&path, source))
    }

    fn wrong(&self, path: &Path, source: io::Error) -> Error {
        Error::File { path: path.to_owned(), source }
    }
}

fn digest(text: &[u8]) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Replaces a file as a whole.
fn write(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut staged = path.as_os_str().to_owned();
    staged.push("~");
    fs::write(&staged, contents)?;
    fs::rename(&staged, path)
}

#[cfg(test)]
mod tests;
