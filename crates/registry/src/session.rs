//! A machine's session with the hub: one lease, renewed as long as the daemon lives, under which the machine's
//! presence and states stand.
//!
//! The lease's id is kept in a file, so that a daemon that was killed and started again goes on with the same
//! lease: nobody sees the machine leave. Invariant: the lease in [`Session::lease`] was alive at its last
//! renewal; when it ends a new one is granted, and whoever publishes under it learns so and publishes again.

use crate::{LeaseKeeper, Store, StoreError};
use model::LeaseId;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{sync::watch, task::JoinHandle, time::Instant};
use tracing::{info, warn};

/// Renewals per time to live. Three may be lost before the lease ends.
const RENEWALS_PER_TTL: f64 = 3.4;

/// A lease that is kept alive.
pub struct Session {
    lease: watch::Receiver<Option<LeaseId>>,
    store: Store,
    file: PathBuf,
    task: JoinHandle<()>,
}

impl Session {
    /// Begins a session, or goes on with the one that `file` names.
    pub fn start(store: &Store, ttl: Duration, file: &Path) -> Self {
        let (sender, lease) = watch::channel(None);
        let task = tokio::spawn(run(store.clone(), ttl, file.to_owned(), sender));
        Self { lease, store: store.clone(), file: file.to_owned(), task }
    }

    /// The current lease; `None` until the hub was reached.
    pub fn lease(&self) -> watch::Receiver<Option<LeaseId>> {
        self.lease.clone()
    }

    /// Ends the session and with it everything under its lease: the machine says good-bye.
    pub async fn end(self) -> Result<(), StoreError> {
        self.task.abort();
        // A daemon that starts later must not find it.
        if let Err(error) = std::fs::remove_file(&self.file) {
            warn!(%error, "lease file not removed");
        }
        let lease = *self.lease.borrow();
        match lease {
            Some(lease) => self.store.revoke(lease).await,
            None => Ok(()),
        }
    }
}

impl Drop for Session {
    /// Stops renewing, without ending the lease: that is what a restart needs.
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(store: Store, ttl: Duration, file: PathBuf, sender: watch::Sender<Option<LeaseId>>) {
    let interval = ttl.div_f64(RENEWALS_PER_TTL);
    let mut known = read(&file);
    let mut complained = false;
    loop {
        match begin(&store, ttl, known).await {
            Ok((lease, keeper)) => {
                complained = false;
                if known != Some(lease) {
                    info!(%lease, "session begun");
                    known = Some(lease);
                    write(&file, lease);
                }
                sender.send_if_modified(|current| {
                    let new = *current != Some(lease);
                    *current = Some(lease);
                    new
                });
                let end = renew(keeper, interval).await;
                if matches!(end, StoreError::LeaseEnded(_)) {
                    warn!(%lease, "lease ended, beginning a new session");
                    known = None;
                } else {
                    warn!(%lease, error = %end, "renewal failed, trying again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut complained, true) {
                    warn!(%error, "no session with the hub yet, trying on");
                }
                tokio::time::sleep(interval / 4).await;
            }
        }
    }
}

/// Goes on with `known` if it is alive, else asks for a new lease.
async fn begin(
    store: &Store,
    ttl: Duration,
    known: Option<LeaseId>,
) -> Result<(LeaseId, LeaseKeeper), StoreError> {
    if let Some(lease) = known {
        match store.keeper(lease).await {
            Ok(keeper) => return Ok((lease, keeper)),
            Err(StoreError::LeaseEnded(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let lease = store.grant(ttl).await?;
    Ok((lease, store.keeper(lease).await?))
}

/// Renews until that fails.
async fn renew(mut keeper: LeaseKeeper, interval: Duration) -> StoreError {
    let mut due = Instant::now() + interval;
    loop {
        tokio::time::sleep_until(due).await;
        due = Instant::now() + interval;
        if let Err(error) = keeper.renew().await {
            return error;
        }
    }
}

fn read(file: &Path) -> Option<LeaseId> {
    let text = std::fs::read_to_string(file).ok()?;
    i64::from_str_radix(text.trim(), 16).ok().map(LeaseId)
}

fn write(file: &Path, lease: LeaseId) {
    if let Err(error) = std::fs::write(file, format!("{lease}\n")) {
        warn!(%error, file = %file.display(), "lease not noted: a restart will look like a new machine for a moment");
    }
}
