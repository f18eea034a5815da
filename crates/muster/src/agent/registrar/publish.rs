//! What the hub should have of this machine's instances, on its way there: upstream, rich record and drain mark of an
//! instance in one transaction, under the machine's lease.
//!
//! Compared with the hub both ways when the lease changes, after every failure and every [`RECONCILE`]. Invariants: only
//! what stands under this machine's own lease is ever deleted, and only as it was written; a mark or an instance that
//! another machine has taken over meanwhile is left alone.

use super::named;
use bytes::Bytes;
use model::{
    Health, InstanceState, LeaseId, MachineId, Revision, ServiceConfig, ServiceMeta, ServiceName,
    keys::{self, ServiceKey},
};
use muster_core::registrar::{Id, Record};
use registry::{Guard, KeyValue, Store, StoreError, Write};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
use tracing::{debug, info, warn};

/// Everything is compared with the hub this often.
const RECONCILE: Duration = Duration::from_secs(30);
/// Between attempts.
const PAUSE: Duration = Duration::from_millis(100);
/// An instance has three keys; etcd takes 128 operations in a transaction.
const INSTANCES: usize = 40;

type Wanted = Option<(u64, BTreeMap<Id, Record>)>;

/// What the hub has.
#[derive(Default)]
struct Known {
    /// Under our lease.
    ours: BTreeMap<String, (Bytes, Revision)>,
    /// Instances' states that others have set: out of service already, and not ours to change.
    held: BTreeSet<String>,
}

/// Publishes what `wanted` holds, for ever, and says which version the hub has as of which revision.
pub(super) async fn publish(
    store: Store,
    mut lease: watch::Receiver<Option<LeaseId>>,
    mut wanted: watch::Receiver<Wanted>,
    written: watch::Sender<(u64, Revision)>,
) {
    let mut known = Known::default();
    let (mut under, mut listed, mut revision) = (None, Instant::now(), Revision(0));
    let (mut complained, mut conflicts) = (false, BTreeSet::new());
    loop {
        let current = *lease.borrow_and_update();
        let goal = wanted.borrow_and_update().clone();
        let (Some(current), Some((version, records))) = (current, goal) else {
            let changed = tokio::select! {
                changed = lease.changed() => changed,
                changed = wanted.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            continue;
        };
        let outcome: Result<(), StoreError> = async {
            if under != Some(current) || listed.elapsed() >= RECONCILE {
                let listing = store.list(keys::SERVICES).await?;
                known = ours(&listing.items, current);
                (under, listed, revision) = (Some(current), Instant::now(), listing.revision);
            }
            if let Some(at) = write(&store, &mut known, &records, current).await? {
                revision = at;
            }
            Ok(())
        }
        .await;
        match outcome {
            Ok(()) => {
                complained = false;
                written.send_if_modified(|before| {
                    std::mem::replace(before, (version, revision)) != (version, revision)
                });
            }
            Err(StoreError::Refused(ref why)) if why == AGAIN => {
                under = None;
                tokio::time::sleep(PAUSE / 5).await;
                continue;
            }
            Err(error) => {
                super::super::complain(&mut complained, &error, "instances not registered");
                under = None;
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        }
        for (id, record) in &records {
            if let Some(config) = &record.config
                && record.upstream
            {
                configure(&store, id, config, &record.meta, &mut conflicts).await;
            }
        }
        let changed = tokio::select! {
            changed = lease.changed() => changed,
            changed = wanted.changed() => changed,
            () = tokio::time::sleep_until(listed + RECONCILE) => Ok(()),
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Somebody else has written meanwhile.
const AGAIN: &str = "changed meanwhile";

fn ours(items: &[KeyValue], lease: LeaseId) -> Known {
    let own = items.iter().filter(|kv| kv.lease == Some(lease));
    let ours = own.map(|kv| (kv.key.clone(), (kv.value.clone(), kv.mod_revision))).collect();
    let foreign = |kv: &&KeyValue| {
        kv.lease != Some(lease) && matches!(keys::service(&kv.key), Some((_, ServiceKey::State(_))))
    };
    Known { ours, held: items.iter().filter(foreign).map(|kv| kv.key.clone()).collect() }
}

/// Writes the differences. The revision is that of the last write, if there was one.
async fn write(
    store: &Store,
    known: &mut Known,
    records: &BTreeMap<Id, Record>,
    lease: LeaseId,
) -> Result<Option<Revision>, StoreError> {
    let mut revision = None;
    let mine: Vec<Id> = known.ours.keys().filter_map(|key| id_of(key)).collect();
    let ids: BTreeSet<Id> = records.keys().cloned().chain(mine).collect();
    let ids: Vec<_> = ids.into_iter().filter(|id| differs(known, id, records.get(id))).collect();
    for chunk in ids.chunks(INSTANCES) {
        // What is left of an earlier run elsewhere must not keep a new one out.
        let fresh: Vec<_> = chunk
            .iter()
            .filter(|(service, instance)| !known.ours.contains_key(&keys::service_meta(service, instance)))
            .map(|(service, instance)| keys::instance_state(service, instance))
            .collect();
        let marks = if fresh.is_empty() { Vec::new() } else { store.get_many(&fresh).await?.items };
        let stale = |kv: &&KeyValue| InstanceState::parse(&kv.value) == Some(InstanceState::Drain);
        let stale: BTreeMap<_, _> =
            marks.iter().filter(stale).map(|kv| (kv.key.clone(), kv.mod_revision)).collect();
        let (mut guards, mut writes) = (Vec::new(), Vec::new());
        let mut after = Vec::new();
        for (service, instance) in chunk {
            let record = records.get(&(service.clone(), instance.clone()));
            let values = values(known, service, instance, record);
            for (key, value) in values {
                let had = known.ours.get(&key);
                match (value, had) {
                    (Some(value), Some((before, _))) if *before == value => {}
                    (Some(value), _) => {
                        // A mark concerns the instance that we wrote, and no later one of another machine.
                        if key == keys::instance_state(service, instance) {
                            guards.push(Guard::Absent(key.clone()));
                            let upstream = known.ours.get(&keys::upstream(service, instance));
                            guards.extend(
                                upstream
                                    .map(|(_, at)| Guard::Unchanged(keys::upstream(service, instance), *at)),
                            );
                        }
                        writes.push(Write::Put {
                            key: key.clone(),
                            value: value.clone(),
                            lease: Some(lease),
                        });
                        after.push((key, Some(value)));
                    }
                    (None, Some((_, at))) => {
                        guards.push(Guard::Unchanged(key.clone(), *at));
                        writes.push(Write::Delete(key.clone()));
                        after.push((key, None));
                    }
                    (None, None) => {
                        if let Some(at) = stale.get(&key) {
                            guards.push(Guard::Unchanged(key.clone(), *at));
                            writes.push(Write::Delete(key.clone()));
                        }
                    }
                }
            }
        }
        if writes.is_empty() {
            continue;
        }
        let outcome = store.commit(&guards, &writes).await?;
        if !outcome.committed {
            return Err(StoreError::Refused(AGAIN.to_owned()));
        }
        debug!(keys = writes.len(), revision = %outcome.revision, "instances written");
        revision = Some(outcome.revision);
        for (key, value) in after {
            match value {
                Some(value) => drop(known.ours.insert(key, (value, outcome.revision))),
                None => drop(known.ours.remove(&key)),
            }
        }
    }
    Ok(revision)
}

fn id_of(key: &str) -> Option<Id> {
    let (service, kind) = keys::service(key)?;
    match kind {
        ServiceKey::Upstream(instance) | ServiceKey::Meta(instance) | ServiceKey::State(instance) => {
            Some((service, instance.to_owned()))
        }
        ServiceKey::Config => None,
    }
}

/// The keys of an instance, and what they should hold.
fn values(
    known: &Known,
    service: &ServiceName,
    instance: &str,
    record: Option<&Record>,
) -> [(String, Option<Bytes>); 3] {
    let meta = record.map(|record| serde_json::to_vec(&record.meta).expect("records always render").into());
    let upstream =
        record.filter(|record| record.upstream).map(|record| Bytes::from(record.meta.addr.clone()));
    let state = keys::instance_state(service, instance);
    let drain = record.filter(|record| record.draining && record.upstream && !known.held.contains(&state));
    let drain = drain.map(|_| Bytes::from_static(InstanceState::Drain.as_str().as_bytes()));
    [
        (keys::upstream(service, instance), upstream),
        (keys::service_meta(service, instance), meta),
        (state, drain),
    ]
}

fn differs(known: &Known, (service, instance): &Id, record: Option<&Record>) -> bool {
    let same = |(key, value): (String, Option<Bytes>)| {
        known.ours.get(&key).map(|(value, _)| value) == value.as_ref()
    };
    !values(known, service, instance, record).into_iter().all(same)
}

/// Sees to it that the service is balanced as its units say: who comes first writes, and who wrote may change it.
async fn configure(
    store: &Store,
    (service, instance): &Id,
    config: &ServiceConfig,
    meta: &ServiceMeta,
    settled: &mut BTreeSet<(String, u64)>,
) {
    // Once for each run: copies with an older text must not take back what newer ones have written.
    let run = (named(service, instance), meta.generation);
    if settled.contains(&run) {
        return;
    }
    let key = keys::service_config(service);
    let outcome: Result<bool, StoreError> = async {
        let value = || serde_json::to_vec(config).expect("records always render");
        let (guard, write) = match store.get(&key).await? {
            None => (Guard::Absent(key.clone()), Write::put(key.clone(), value())),
            Some(kv) => match serde_json::from_slice::<ServiceConfig>(&kv.value) {
                Ok(there) if says(&there) == says(config) => return Ok(true),
                Ok(there) if there.written_by == config.written_by => {
                    // What the unit does not speak of, and what is unknown here, stays.
                    let mut there = there;
                    there.hosts.clone_from(&config.hosts);
                    there.paths.clone_from(&config.paths);
                    there.balance.clone_from(&config.balance);
                    there.sticky.clone_from(&config.sticky);
                    there.tcp_port = config.tcp_port;
                    let value = serde_json::to_vec(&there).expect("records always render");
                    (Guard::Unchanged(key.clone(), kv.mod_revision), Write::put(key.clone(), value))
                }
                Ok(there) => {
                    let by = there.written_by.unwrap_or_else(|| "hand".to_owned());
                    warn!(%service, %instance, by, "its unit's Host=, Path= and the like differ from what was written \
                           before, and have no effect: make them equal, or delete the key {key}");
                    return Ok(true);
                }
                Err(error) => {
                    warn!(%service, key, %error, "the service's configuration cannot be read: left alone");
                    return Ok(true);
                }
            },
        };
        let committed = store.commit(&[guard], &[write]).await?.committed;
        if committed {
            info!(%service, %instance, "service configured");
        }
        Ok(committed)
    }
    .await;
    match outcome {
        Ok(true) => drop(settled.insert(run)),
        // At the next change, or the next comparison.
        Ok(false) => {}
        Err(error) => debug!(%service, %error, "service not configured yet"),
    }
}

/// What a unit can say about its service.
fn says(config: &ServiceConfig) -> impl PartialEq {
    let ServiceConfig { hosts, paths, balance, sticky, tcp_port, .. } = config.clone();
    (hosts, paths, balance, sticky, tcp_port)
}

/// What an earlier run of this daemon has registered, once this machine is in the cluster again: only what stands under
/// the lease that goes on.
pub(super) async fn adopt(
    store: Store,
    mut lease: watch::Receiver<Option<LeaseId>>,
    machine: MachineId,
) -> Vec<(Id, ServiceMeta, bool)> {
    let mut complained = false;
    let (lease, items) = loop {
        let Ok(Some(current)) = lease.wait_for(Option::is_some).await.map(|lease| *lease) else {
            return Vec::new();
        };
        match store.list(keys::SERVICES).await {
            Ok(listing) => break (current, listing.items),
            Err(error) => {
                super::super::complain(&mut complained, &error, "not known yet what is registered");
                tokio::time::sleep(PAUSE).await;
            }
        }
    };
    let known = ours(&items, lease).ours;
    let read = |(key, (value, _)): (&String, &(Bytes, Revision))| {
        let (service, ServiceKey::Meta(instance)) = keys::service(key)? else { return None };
        let meta: ServiceMeta = serde_json::from_slice(value).ok()?;
        let upstream = known.contains_key(&keys::upstream(&service, instance));
        let drains = known.contains_key(&keys::instance_state(&service, instance));
        let usable = meta.machine == machine && !drains && meta.health != Health::Starting;
        usable.then(|| ((service.clone(), instance.to_owned()), meta, upstream))
    };
    known.iter().filter_map(read).collect()
}
