//! nginx, kept in step with the registered services: `core::router` says when, the `nginx` crate does it.
//!
//! Invariant: while the hub is away, and whenever nginx refuses, the last good endpoints stay.

use anyhow::Result;
use model::keys;
use muster_core::router::{Batch, Catalog, Effect, Pace};
use nginx::{Applied, Nginx, Service};
use registry::{Change, Delta, Store};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;
use tracing::{info, warn};

/// After a refusal: how long until it is tried again although nothing changed.
const RETRY: Duration = Duration::from_secs(2);

pub(super) async fn run(store: Store, mut nginx: Nginx) -> Result<()> {
    let (start, pace) = (Instant::now(), Pace::default());
    let mut catalog = Catalog::default();
    let mut quarantined = BTreeMap::new();
    let mut batch = Batch::default();
    let mut known = false;
    // Said once, and not every time it is tried again.
    let mut said = String::new();
    let mut follow = store.follow(keys::SERVICES);
    loop {
        let due = batch.due(&pace).map(|due| start + due);
        tokio::select! {
            delta = follow.next() => {
                let effect = match delta {
                    None => return Ok(()),
                    Some(Delta::Lost) => Effect::Nothing,
                    Some(Delta::Reset(listing)) => {
                        let before = std::mem::replace(
                            &mut catalog,
                            Catalog::from_listing(listing.items.iter().map(|kv| (kv.key.as_str(), &*kv.value))),
                        );
                        // The first listing is applied in any case: what nginx shows so far is not known.
                        if std::mem::replace(&mut known, true) { catalog.effect_since(&before) } else { Effect::Removed }
                    }
                    Some(Delta::Changes(changes)) => {
                        let effects = changes.changes.iter().map(|change| match change {
                            Change::Put(kv) => catalog.put(&kv.key, &kv.value),
                            Change::Delete { key } => catalog.delete(key),
                        });
                        effects.max().unwrap_or(Effect::Nothing)
                    }
                };
                batch.note(start.elapsed(), effect);
                for (key, reason) in catalog.quarantined.iter().filter(|(key, _)| !quarantined.contains_key(*key)) {
                    warn!(key, reason, "entry passed over");
                }
                quarantined = catalog.quarantined.clone();
            }
            () = sleep_until(due), if due.is_some() => {
                batch.applied(start.elapsed());
                match apply(&mut nginx, &catalog).await {
                    Ok(()) => said.clear(),
                    Err(error) => {
                        let error = format!("{:#}", anyhow::Error::new(error));
                        if said != error {
                            warn!(error, "nginx does not show the newest endpoints, trying on");
                            said = error;
                        }
                        batch.note(start.elapsed() + RETRY, Effect::Added);
                    }
                }
            }
        }
    }
}

async fn apply(nginx: &mut Nginx, catalog: &Catalog) -> Result<(), nginx::NginxError> {
    let services: Vec<_> =
        catalog.routable().iter().map(|(name, endpoints)| Service::new(name, endpoints)).collect();
    let text = nginx.render(&services)?;
    if nginx.apply(&text).await? == Applied::Reloaded {
        let endpoints: usize = services.iter().map(|service| service.endpoints.len()).sum();
        info!(services = services.len(), endpoints, "nginx reloaded");
    }
    Ok(())
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
