//! The engine's driver: stands for election, and while it leads, turns what the hub says into events for
//! `core::engine` and writes its plans back.
//!
//! Invariant: every write is guarded by the leader's key at the revision of the election, so that whoever was
//! deposed writes nothing.

use super::Machine;
use model::{LeaseId, MachineId, RECORD_VERSION, Revision, keys};
use muster_core::{
    cluster::{Cluster, LeaderRecord, Touched},
    engine::{self, Action, Doubts, Plan},
};
use registry::{Change, Changes, Delta, Guard, KeyValue, Store, StoreError, Write};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
use tracing::{debug, info, warn};

/// Actions written in one transaction: etcd takes 128 operations.
const CHUNK: usize = 100;
/// For how long machines that went with most others are waited for once most are back.
const HOLD: Duration = Duration::from_secs(60);
/// While holding, how often it is looked whether that is still right.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Between attempts after an error of the hub.
const PAUSE: Duration = Duration::from_millis(250);

/// Stands for election for ever.
pub(super) async fn run(
    machine: Machine,
    store: Store,
    mut lease: watch::Receiver<Option<LeaseId>>,
) -> anyhow::Result<()> {
    let mut leader = store.follow(keys::LEADER);
    let mut current: Option<(LeaderRecord, Revision, Option<LeaseId>)> = None;
    let mut known = false;
    loop {
        let own_lease = *lease.borrow_and_update();
        if let Some(own_lease) = own_lease.filter(|_| known) {
            // A leader's key under our own lease is ours, also when an earlier run of this daemon wrote it.
            let guard = match &current {
                None => Some(Guard::Absent(keys::LEADER.to_owned())),
                Some((record, revision, under))
                    if record.machine == machine.id && *under == Some(own_lease) =>
                {
                    Some(Guard::Unchanged(keys::LEADER.to_owned(), *revision))
                }
                Some(_) => None,
            };
            if let Some(guard) = guard {
                match campaign(&machine, &store, own_lease, guard).await {
                    Ok(Some(term)) => {
                        info!(%term, "leading");
                        let reason = lead(&machine, &store, term).await;
                        info!(%term, reason, "no longer leading");
                    }
                    Ok(None) => debug!("another machine was faster"),
                    Err(error) => warn!(%error, "election failed, trying again"),
                }
                tokio::time::sleep(PAUSE).await;
                // What happened meanwhile is not known: begin with a fresh list.
                (leader, current, known) = (store.follow(keys::LEADER), None, false);
                continue;
            }
        }
        tokio::select! {
            delta = leader.next() => match delta {
                Some(Delta::Reset(listing)) => {
                    known = true;
                    current = listing.items.iter().find(|kv| kv.key == keys::LEADER).and_then(read);
                }
                Some(Delta::Changes(changes)) => for change in &changes.changes {
                    match change {
                        Change::Put(kv) if kv.key == keys::LEADER => current = read(kv),
                        Change::Delete { key } if key == keys::LEADER => current = None,
                        _ => {}
                    }
                },
                Some(Delta::Lost) => known = false,
                None => return Ok(()),
            },
            changed = lease.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

fn read(kv: &registry::KeyValue) -> Option<(LeaderRecord, Revision, Option<LeaseId>)> {
    let record = serde_json::from_slice(&kv.value).ok()?;
    Some((record, kv.mod_revision, kv.lease))
}

/// Becomes leader if `guard` still holds; gives the term.
async fn campaign(
    machine: &Machine,
    store: &Store,
    lease: LeaseId,
    guard: Guard,
) -> Result<Option<Revision>, StoreError> {
    let record = LeaderRecord { v: RECORD_VERSION, machine: machine.id.clone() };
    let value = serde_json::to_vec(&record).expect("records always render");
    let write = Write::Put { key: keys::LEADER.to_owned(), value: value.into(), lease: Some(lease) };
    let outcome = store.commit(&[guard], &[write]).await?;
    Ok(outcome.committed.then_some(outcome.revision))
}

/// Leads until another one does or the hub cannot be reached; says why it ended.
async fn lead(machine: &Machine, store: &Store, term: Revision) -> &'static str {
    let mut follow = store.follow(keys::MUSTER);
    let mut cluster = Cluster::default();
    let mut last = Plan::default();
    // Under which leases machines are present.
    let mut leases: BTreeMap<MachineId, LeaseId> = BTreeMap::new();
    let mut holding: Option<Instant> = None;
    loop {
        let first = tokio::select! {
            first = follow.next() => first,
            () = tokio::time::sleep(LOOK_AGAIN), if !last.held.is_empty() => Some(Delta::Changes(Changes::default())),
        };
        let Some(first) = first else { return "shutting down" };
        let mut decide = !last.held.is_empty();
        let mut delta = Some(first);
        // Everything that is there already is one decision.
        while let Some(next) = delta {
            match next {
                Delta::Lost => return "the hub is away",
                Delta::Reset(listing) => {
                    let items = listing.items.iter().map(|kv| (kv.key.as_str(), &*kv.value, kv.mod_revision));
                    cluster = Cluster::from_listing(items);
                    leases = listing.items.iter().filter_map(presence).collect();
                    decide = true;
                }
                Delta::Changes(changes) => {
                    for change in &changes.changes {
                        if let Change::Put(kv) = change {
                            leases.extend(presence(kv));
                        }
                        let touched = match change {
                            Change::Put(kv) => cluster.put(&kv.key, &kv.value, kv.mod_revision),
                            Change::Delete { key } => cluster.delete(key),
                        };
                        decide |= !matches!(touched, Touched::State(_) | Touched::Other);
                    }
                }
            }
            delta = follow.try_next();
        }
        if cluster.leader.as_ref().is_none_or(|(_, revision)| *revision != term) {
            return "another machine leads";
        }
        if !decide {
            continue;
        }
        let mut doubts =
            Doubts { holding: holding.is_some_and(|since| since.elapsed() < HOLD), ..Doubts::default() };
        if !engine::lost(&cluster).is_empty() {
            doubts.overdue = overdue(store, &cluster, &leases, machine.config.agent.lease_ttl).await;
        }
        let plan = engine::plan(&cluster, term, &doubts);
        holding = if plan.held.is_empty() { None } else { holding.or_else(|| Some(Instant::now())) };
        report(&plan, &last);
        for chunk in plan.actions.chunks(CHUNK) {
            match write(store, term, chunk).await {
                Ok(Some(revision)) => take(&mut cluster, chunk, revision),
                Ok(None) => return "another machine leads",
                Err(error) => {
                    warn!(%error, "schedule not written");
                    return "the hub is away";
                }
            }
        }
        last = plan;
    }
}

fn presence(kv: &KeyValue) -> Option<(MachineId, LeaseId)> {
    Some((kv.key.strip_prefix(keys::MACHINES)?.parse().ok()?, kv.lease?))
}

/// Machines whose leases should have been renewed by now. A machine renews when a third of its time is over; one
/// that has less than half of it left has missed that.
async fn overdue(
    store: &Store,
    cluster: &Cluster,
    leases: &BTreeMap<MachineId, LeaseId>,
    ttl: Duration,
) -> BTreeSet<MachineId> {
    let mut overdue = BTreeSet::new();
    for id in cluster.machines.keys() {
        let Some(lease) = leases.get(id) else { continue };
        match store.time_left(*lease).await {
            Ok(left) if left < ttl / 2 => {
                overdue.insert(id.clone());
            }
            Ok(_) => {}
            // A hub that cannot be asked will not take a schedule either.
            Err(error) => debug!(%error, "lease not looked at"),
        }
    }
    overdue
}

fn report(plan: &Plan, last: &Plan) {
    if !plan.held.is_empty() && plan.held != last.held {
        warn!(machines = ?plan.held, "most machines are gone at once: holding still until some are back");
    }
    for action in &plan.actions {
        match action {
            Action::Schedule { unit, machine, record } => {
                info!(%unit, %machine, desired = %record.desired, why = record.why, "unit scheduled");
            }
            Action::Unschedule { unit, machine, why } => info!(%unit, %machine, %why, "unit unscheduled"),
        }
    }
    for (unit, refused) in
        plan.refused.iter().filter(|(unit, refused)| last.refused.get(*unit) != Some(refused))
    {
        warn!(%unit, machines = refused.len(), "no machine fits");
    }
}

async fn write(store: &Store, term: Revision, actions: &[Action]) -> Result<Option<Revision>, StoreError> {
    let writes: Vec<_> = actions
        .iter()
        .map(|action| match action {
            Action::Schedule { unit, machine, record } => {
                let value = serde_json::to_vec(record).expect("records always render");
                Write::put(keys::schedule(machine, unit), value)
            }
            Action::Unschedule { unit, machine, .. } => Write::Delete(keys::schedule(machine, unit)),
        })
        .collect();
    let guard = Guard::Unchanged(keys::LEADER.to_owned(), term);
    let outcome = store.commit(&[guard], &writes).await?;
    Ok(outcome.committed.then_some(outcome.revision))
}

/// What was written is known at once; the watch will say the same again.
fn take(cluster: &mut Cluster, actions: &[Action], revision: Revision) {
    for action in actions {
        match action {
            Action::Schedule { unit, machine, record } => {
                let value = serde_json::to_vec(record).expect("records always render");
                cluster.put(&keys::schedule(machine, unit), &value, revision);
            }
            Action::Unschedule { unit, machine, .. } => {
                cluster.delete(&keys::schedule(machine, unit));
            }
        }
    }
}
