//! The engine's driver: stands for election, and while it leads, turns what the hub says into events for
//! `core::engine` and carries out its effects (in `lead`); beside it `rollouts` carries out updates,
//! `projections` writes services in other programs' formats, and `conflicts` tells what two services claim.
//!
//! Invariant: every write is guarded by the leader's key at the revision of the election, so that whoever was
//! deposed writes nothing. The leadership has a lease of its own, shorter than a machine's: a leader that dies is
//! followed by another within about two seconds, and no machine is thought dead any sooner for it.

mod conflicts;
mod lead;
mod projections;
mod rollouts;

use super::{Machine, events::Events};
use model::{LeaseId, RECORD_VERSION, Revision, keys};
use muster_core::cluster::LeaderRecord;
use registry::{Change, Delta, Guard, LeaseKeeper, Store, StoreError, Write};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// How long a leadership outlives its last renewal. etcd grants nothing below two seconds.
const LEADERSHIP: Duration = Duration::from_secs(2);
/// How often it is renewed: three renewals may be lost.
const RENEWAL: Duration = Duration::from_millis(500);
/// Between attempts after an error of the hub.
const PAUSE: Duration = Duration::from_millis(250);

/// Stands for election until `stop`, then gives up the lead so that another engine need not wait for it.
pub(super) async fn run(machine: Machine, store: Store, stop: CancellationToken) -> anyhow::Result<()> {
    let mut leader = store.follow(keys::LEADER);
    // Whether nobody leads, as far as is known.
    let mut vacant = false;
    // Since when the hub has answered without a gap: leases have had that long to be renewed.
    let mut reachable: Option<Instant> = None;
    loop {
        if vacant {
            match campaign(&machine, &store).await {
                Ok(Some((term, lease))) => {
                    info!(%term, "leading");
                    let since = *reachable.get_or_insert_with(Instant::now);
                    let reason = reign(&machine, &store, term, lease, since, &stop).await;
                    info!(%term, reason, "no longer leading");
                    if reason == lead::AWAY {
                        reachable = None;
                    }
                    if stop.is_cancelled() {
                        return Ok(());
                    }
                }
                Ok(None) => debug!("another machine was faster"),
                Err(error) => warn!(%error, "election failed, trying again"),
            }
            tokio::time::sleep(PAUSE).await;
            // What happened meanwhile is not known: begin with a fresh list.
            (leader, vacant) = (store.follow(keys::LEADER), false);
            continue;
        }
        tokio::select! {
            delta = leader.next() => match delta {
                Some(Delta::Reset(listing)) => {
                    reachable.get_or_insert_with(Instant::now);
                    vacant = !listing.items.iter().any(|kv| kv.key == keys::LEADER);
                }
                Some(Delta::Changes(changes)) => for change in &changes.changes {
                    if change.key() == keys::LEADER {
                        vacant = matches!(change, Change::Delete { .. });
                    }
                },
                Some(Delta::Lost) => (vacant, reachable) = (false, None),
                None => return Ok(()),
            },
            () = stop.cancelled() => return Ok(()),
        }
    }
}

/// Becomes leader if nobody is; gives the term, and the lease that the leadership stands under.
async fn campaign(machine: &Machine, store: &Store) -> Result<Option<(Revision, LeaseId)>, StoreError> {
    let lease = store.grant(LEADERSHIP).await?;
    let record = LeaderRecord { v: RECORD_VERSION, machine: machine.id.clone() };
    let value = serde_json::to_vec(&record).expect("records always render");
    let write = Write::Put { key: keys::LEADER.to_owned(), value: value.into(), lease: Some(lease) };
    let outcome = store.commit(&[Guard::Absent(keys::LEADER.to_owned())], &[write]).await?;
    if outcome.committed {
        return Ok(Some((outcome.revision, lease)));
    }
    store.revoke(lease).await?;
    Ok(None)
}

/// Leads, and renews the leadership meanwhile; says why it ended.
async fn reign(
    machine: &Machine,
    store: &Store,
    term: Revision,
    lease: LeaseId,
    reachable: Instant,
    stop: &CancellationToken,
) -> &'static str {
    let events = Events::new(store.clone(), term);
    let reason = tokio::select! {
        reason = Box::pin(lead::lead(machine, store, term, reachable, events.clone())) => reason,
        reason = renew(store, lease) => reason,
        never = Box::pin(conflicts::run(store, events.clone())) => match never {},
        never = Box::pin(rollouts::run(machine, store, term, events)) => match never {},
        never = Box::pin(projections::run(machine, store, term)) => match never {},
        () = stop.cancelled() => "shutting down",
    };
    // Nobody need wait for the lease to end by itself.
    if let Err(error) = store.revoke(lease).await {
        debug!(%error, "leadership not given up in order");
    }
    reason
}

/// Renews until that cannot work any longer.
async fn renew(store: &Store, lease: LeaseId) -> &'static str {
    let mut keeper: Option<LeaseKeeper> = None;
    loop {
        let renewed = async {
            match &mut keeper {
                Some(keeper) => keeper.renew().await,
                None => {
                    keeper = Some(store.keeper(lease).await?);
                    Ok(())
                }
            }
        };
        match tokio::time::timeout(LEADERSHIP, renewed).await {
            Ok(Ok(())) => {}
            Ok(Err(StoreError::LeaseEnded(_))) => return "the leadership was not renewed in time",
            Ok(Err(error)) => {
                debug!(%error, "leadership not renewed, trying again");
                keeper = None;
            }
            Err(_) => keeper = None,
        }
        tokio::time::sleep(RENEWAL).await;
    }
}
