//! Who this machine is, and which cluster it belongs to: an id in the hub, made by the first machine, noted by each.
//!
//! An agent does what the schedule says, and an empty schedule says "stop everything". So a hub that lost its data,
//! or another cluster's hub behind a mistyped address, must not be taken for ours. Invariant: a machine that knows
//! its cluster never follows the schedule of a hub with another id, or with none.

use super::write_file;
use crate::config::STATE_DIR;
use anyhow::{Context, bail};
use model::{MachineId, keys};
use registry::{Guard, Store, StoreError, Write};
use std::{
    io,
    path::{Path, PathBuf},
};
use tracing::info;

/// Why the hub's schedule is not followed.
#[derive(Debug, thiserror::Error)]
pub(super) enum IdentityError {
    /// Another cluster's, or a fresh one.
    #[error(
        "the hub is not this machine's: the machine belongs to cluster {own}, the hub {}. Units are left as they are. \
         If the change is meant, remove {} and restart muster",
        found.as_ref().map_or_else(|| "has lost its data or is new".to_owned(), |found| format!("is that of cluster {found}")),
        file().display()
    )]
    Foreign {
        /// The machine's.
        own: String,
        /// The hub's.
        found: Option<String>,
    },
    /// The hub did not say.
    #[error(transparent)]
    Hub(#[from] StoreError),
    /// The machine's note cannot be read or written.
    #[error("cannot use {}", file().display())]
    File(#[source] io::Error),
}

fn file() -> PathBuf {
    Path::new(STATE_DIR).join("cluster")
}

/// Fails unless the hub is this machine's. A machine that belongs to none yet joins.
pub(super) async fn confirm(store: &Store) -> Result<(), IdentityError> {
    let own = note(&file()).map_err(IdentityError::File)?;
    let found = read(store).await?;
    match (own, found) {
        (Some(own), Some(found)) if own == found => Ok(()),
        (Some(own), found) => Err(IdentityError::Foreign { own, found }),
        (None, Some(found)) => join(&found),
        (None, None) => {
            let id = random().map_err(IdentityError::File)?;
            let write = Write::put(keys::CLUSTER, id.trim().to_owned());
            store.commit(&[Guard::Absent(keys::CLUSTER.to_owned())], &[write]).await?;
            // Whoever was faster decides.
            match read(store).await? {
                Some(found) => join(&found),
                None => Err(IdentityError::Foreign { own: id.trim().to_owned(), found: None }),
            }
        }
    }
}

/// The cluster that this machine belongs to, if it has joined one.
pub(super) fn own() -> Option<String> {
    note(&file()).ok().flatten()
}

fn note(path: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Which installation of Muster this is: an id made when it is asked for first.
pub(super) fn instance() -> anyhow::Result<String> {
    let path = Path::new(STATE_DIR).join("instance");
    let known = note(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if let Some(known) = known.filter(|known| !known.is_empty()) {
        return Ok(known);
    }
    let id = random()?.trim().to_owned();
    write_file(&path, &format!("{id}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(id)
}

fn random() -> io::Result<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/uuid")
}

/// The machine's own id, as `/etc/machine-id` has it.
pub(super) fn machine() -> anyhow::Result<MachineId> {
    let path = "/etc/machine-id";
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    text.parse().with_context(|| format!("in {path}: run `systemd-machine-id-setup`"))
}

/// Fails when the machine has got another id than `known`: the daemon has to begin anew with it.
pub(super) fn still(known: &MachineId) -> anyhow::Result<()> {
    match machine() {
        Ok(id) if id != *known => bail!("the machine-id has changed to {id}: starting again with it"),
        _ => Ok(()),
    }
}

async fn read(store: &Store) -> Result<Option<String>, StoreError> {
    let kv = store.get(keys::CLUSTER).await?;
    Ok(kv.map(|kv| String::from_utf8_lossy(&kv.value).into_owned()))
}

fn join(cluster: &str) -> Result<(), IdentityError> {
    write_file(&file(), &format!("{cluster}\n")).map_err(IdentityError::File)?;
    info!(cluster, "machine joins");
    Ok(())
}
