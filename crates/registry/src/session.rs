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
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, task::JoinHandle, time::Instant};
use tracing::{info, warn};

/// Renewals per time to live. Three may be lost before the lease ends.
const RENEWALS_PER_TTL: f64 = 3.4;

/// The hub's last word on the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    /// Which lease.
    pub lease: LeaseId,
    /// The hub lets it live until then at least: counted from when the renewal was sent, so that the machine
    /// never believes in its lease for longer than the hub does.
    pub until: Instant,
}

/// A lease that is kept alive.
pub struct Session {
    lease: Arc<watch::Sender<Option<LeaseId>>>,
    acknowledged: watch::Receiver<Option<Acknowledged>>,
    store: Store,
    file: PathBuf,
    task: JoinHandle<()>,
}

impl Session {
    /// Begins a session, or goes on with the one that `file` names.
    pub fn start(store: &Store, ttl: Duration, file: &Path) -> Self {
        let lease = Arc::new(watch::Sender::new(None));
        let (acknowledge, acknowledged) = watch::channel(None);
        let task = tokio::spawn(run(store.clone(), ttl, file.to_owned(), lease.clone(), acknowledge));
        Self { lease, acknowledged, store: store.clone(), file: file.to_owned(), task }
    }

    /// The current lease; `None` until the hub was reached, and after the session's end.
    pub fn lease(&self) -> watch::Receiver<Option<LeaseId>> {
        self.lease.subscribe()
    }

    /// Until when the lease lives at least; `None` until the hub was reached. Stands still while the hub is away.
    pub fn acknowledged(&self) -> watch::Receiver<Option<Acknowledged>> {
        self.acknowledged.clone()
    }

    /// Ends the session and with it everything under its lease: the machine says good-bye. Whoever publishes
    /// under the lease is told first.
    pub async fn end(&self) -> Result<(), StoreError> {
        self.task.abort();
        // A daemon that starts later must not find it.
        if let Err(error) = std::fs::remove_file(&self.file) {
            warn!(%error, "lease file not removed");
        }
        match self.lease.send_replace(None) {
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

async fn run(
    store: Store,
    ttl: Duration,
    file: PathBuf,
    sender: Arc<watch::Sender<Option<LeaseId>>>,
    acknowledge: watch::Sender<Option<Acknowledged>>,
) {
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
                let end = renew(keeper, lease, interval, &acknowledge).await;
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

/// Renews until that fails: at once, because only an answer tells how long the lease has, then regularly.
async fn renew(
    mut keeper: LeaseKeeper,
    lease: LeaseId,
    interval: Duration,
    acknowledge: &watch::Sender<Option<Acknowledged>>,
) -> StoreError {
    loop {
        let sent = Instant::now();
        match keeper.renewed_for().await {
            Ok(ttl) => acknowledge.send_replace(Some(Acknowledged { lease, until: sent + ttl })),
            Err(error) => return error,
        };
        tokio::time::sleep_until(sent + interval).await;
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
