//! The gateway, kept in step with the registered services: the table is swapped, nothing is reloaded.
//!
//! Invariants: while the hub is away the last table stays; a daemon that is restarted by systemd refuses no connection,
//! because systemd keeps the listening sockets meanwhile.

/// From the catalog to the table.
mod table;

use super::{
    applied::{Inflight, Reporter},
    steady::{Served, Services},
};
use ::gateway::{Applied, Gateway, GatewayConfig, GatewayError, Inherited, Table};
use anyhow::Result;
use model::{Revision, ServiceName};
use std::{collections::BTreeMap, os::fd::AsFd, time::Duration};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Between attempts to begin, when an address is taken.
const AGAIN: Duration = Duration::from_secs(2);
/// What requests under way get when the daemon ends.
const DRAIN: Duration = Duration::from_millis(2500);

/// Serves until `stop`.
pub(super) async fn run(
    config: GatewayConfig,
    mut services: Services,
    reporter: Reporter,
    stop: CancellationToken,
) -> Result<()> {
    // Before the hub was heard nothing is known, and a gateway that knows nothing would refuse.
    let first = tokio::select! {
        served = next(&mut services) => served,
        () = stop.cancelled() => return Ok(()),
    };
    let Some(gateway) = begin(&config, &first, &stop).await else { return Ok(()) };
    let mut applied = gateway.applied();
    let mut problems = BTreeMap::new();
    let mut kept = keep(&gateway, &BTreeMap::new());
    serve(&gateway, &first, &mut problems);
    loop {
        tokio::select! {
            served = next(&mut services) => {
                serve(&gateway, &served, &mut problems);
                kept = keep(&gateway, &kept);
            }
            changed = applied.changed() => match changed {
                Ok(()) => {
                    let (revision, inflight) = reported(&applied.borrow_and_update());
                    reporter.report(revision, inflight);
                }
                Err(_) => break,
            },
            () = stop.cancelled() => break,
        }
    }
    // Nobody waits for a gateway that ends.
    drop(reporter);
    let _ = tokio::task::spawn_blocking(move || gateway.shutdown(DRAIN)).await;
    Ok(())
}

/// What is to be served next; waits for ever when nobody is left who could say.
async fn next(services: &mut Services) -> Served {
    loop {
        if services.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        let served = services.borrow_and_update().clone();
        if served.known {
            return served;
        }
    }
}

/// Tries until it can listen.
async fn begin(config: &GatewayConfig, first: &Served, stop: &CancellationToken) -> Option<Gateway> {
    let mut inherited = inherited();
    let mut said = String::new();
    loop {
        let (config, table) = (config.clone(), table::table(&first.catalog));
        let sockets = std::mem::take(&mut inherited);
        let started =
            tokio::task::spawn_blocking(move || Gateway::start_with(config, table, sockets)).await.ok()?;
        match started {
            Ok(gateway) => {
                let addresses: Vec<_> = gateway.addresses().values().map(ToString::to_string).collect();
                info!(addresses = addresses.join(" "), "gateway serves");
                return Some(gateway);
            }
            Err(error) => complain(&mut said, error),
        }
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            () = stop.cancelled() => return None,
        }
    }
}

fn complain(said: &mut String, error: GatewayError) {
    let text = format!("{:#}", anyhow::Error::new(error));
    if *said != text {
        warn!(error = text, "the gateway cannot begin (is nginx or another server there?), trying on");
        *said = text;
    }
}

fn serve(gateway: &Gateway, served: &Served, problems: &mut BTreeMap<ServiceName, String>) {
    let table: Table = table::table(&served.catalog);
    let found = table.problems.clone();
    for (service, problem) in found.iter().filter(|(service, problem)| problems.get(service) != Some(problem))
    {
        warn!(%service, problem, "not served as its configuration says");
    }
    *problems = found;
    gateway.update(table, u64::try_from(served.revision.0).unwrap_or_default());
}

fn reported(applied: &Applied) -> (Revision, Inflight) {
    let mut inflight = Inflight::new();
    for ((service, instance), count) in applied.draining.iter().filter(|(_, count)| **count > 0) {
        inflight.entry(service.clone()).or_default().insert(instance.clone(), *count);
    }
    (Revision(i64::try_from(applied.revision).unwrap_or(i64::MAX)), inflight)
}

/// Sockets that systemd kept while the daemon was restarted.
fn inherited() -> Inherited {
    ::gateway::inherited().unwrap_or_else(|error| {
        warn!(%error, "systemd's copies of the gateway's sockets are of no use: connections were refused meanwhile");
        Inherited::new()
    })
}

/// How many sockets systemd has of each listener.
type Kept = BTreeMap<String, usize>;

/// Gives systemd the sockets that it does not have yet, and has it forget those of listeners that are gone.
fn keep(gateway: &Gateway, kept: &Kept) -> Kept {
    let Ok(sockets) = gateway.sockets() else { return kept.clone() };
    let mut now = Kept::new();
    for (listener, _) in &sockets {
        *now.entry(listener.to_string()).or_default() += 1;
    }
    if now == *kept {
        return now;
    }
    // Without systemd there is nobody to tell.
    for name in kept.keys().filter(|name| !now.contains_key(*name)) {
        let _ =
            sd_notify::notify(&[sd_notify::NotifyState::FdStoreRemove, sd_notify::NotifyState::FdName(name)]);
    }
    for (name, count) in now.iter().filter(|(name, count)| kept.get(*name) != Some(count)) {
        // All of one name at once; what systemd already had under it is forgotten first, so that none is left over.
        let _ =
            sd_notify::notify(&[sd_notify::NotifyState::FdStoreRemove, sd_notify::NotifyState::FdName(name)]);
        let of = sockets.iter().filter(|(listener, _)| listener.to_string() == *name);
        let descriptors: Vec<_> = of.map(|(_, socket)| socket.as_fd()).take(*count).collect();
        let stored = sd_notify::notify_with_fds(
            &[sd_notify::NotifyState::FdStore, sd_notify::NotifyState::FdName(name)],
            &descriptors,
        );
        if let Err(error) = stored {
            warn!(%error, name, "systemd was not given a socket: connections are refused while the daemon restarts");
        }
    }
    now
}
