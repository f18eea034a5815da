//! What the hub should have of this machine's instances, on its way there. What is written is decided by
//! `core::registrar::publish`.
//!
//! Invariant: it is compared with the hub both ways when the lease changes, after every failure and every [`RECONCILE`].

use super::named;
use model::{LeaseId, MachineId, Revision, ServiceConfig, ServiceMeta, keys};
use muster_core::registrar::{
    Id, Record,
    publish::{self, Known, Kv},
};
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

/// Publishes what `wanted` holds, for ever, and says which version the hub has as of which revision.
pub(super) async fn publish(
    store: Store,
    mut lease: watch::Receiver<Option<LeaseId>>,
    mut wanted: watch::Receiver<Wanted>,
    written: watch::Sender<(u64, Revision)>,
) {
    let mut known = Known::default();
    let (mut under, mut listed, mut revision) = (None, Instant::now(), Revision(0));
    let (mut complained, mut settled) = (false, BTreeSet::new());
    let mut conflicts: BTreeMap<Id, String> = BTreeMap::new();
    loop {
        let current = *lease.borrow_and_update();
        let goal = wanted.borrow_and_update().clone();
        let (Some(current), Some((version, mut records))) = (current, goal) else {
            let changed = tokio::select! {
                changed = lease.changed() => changed,
                changed = wanted.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            continue;
        };
        for (id, record) in &mut records {
            record.meta.conflict = conflicts.get(id).cloned();
        }
        let outcome: Result<(), StoreError> = async {
            if under != Some(current) || listed.elapsed() >= RECONCILE {
                let listing = store.list(keys::SERVICES).await?;
                known = Known::of(listing.items.iter().map(entry), current);
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
        let mut found = BTreeMap::new();
        for (id, record) in &records {
            if let Some(config) = &record.config
                && record.upstream
                && let Some(conflict) = configure(&store, id, config, &record.meta, &mut settled).await
            {
                found.insert(id.clone(), conflict);
            }
        }
        if found != conflicts {
            // It is told beside the instance.
            conflicts = found;
            continue;
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

fn entry(kv: &KeyValue) -> Kv<'_> {
    Kv { key: &kv.key, value: &kv.value, lease: kv.lease, written: kv.mod_revision }
}

/// Writes the differences. The revision is that of the last write, if there was one.
async fn write(
    store: &Store,
    known: &mut Known,
    records: &BTreeMap<Id, Record>,
    lease: LeaseId,
) -> Result<Option<Revision>, StoreError> {
    let mut revision = None;
    for chunk in known.differing(records).chunks(INSTANCES) {
        let marks = known.marks_of(chunk);
        let marks = if marks.is_empty() { Vec::new() } else { store.get_many(&marks).await?.items };
        let plan = known.plan(chunk, records, marks.iter().map(entry));
        if plan.writes.is_empty() {
            continue;
        }
        let guards: Vec<_> = plan.guards.iter().cloned().map(guard).collect();
        let writes: Vec<_> = plan.writes.iter().cloned().map(|write| under(write, lease)).collect();
        let outcome = store.commit(&guards, &writes).await?;
        if !outcome.committed {
            return Err(StoreError::Refused(AGAIN.to_owned()));
        }
        debug!(keys = writes.len(), revision = %outcome.revision, "instances written");
        revision = Some(outcome.revision);
        known.carried_out(plan, outcome.revision);
    }
    Ok(revision)
}

fn guard(guard: publish::Guard) -> Guard {
    match guard {
        publish::Guard::Absent(key) => Guard::Absent(key),
        publish::Guard::Unchanged(key, at) => Guard::Unchanged(key, at),
    }
}

fn under(write: publish::Write, lease: LeaseId) -> Write {
    match write {
        publish::Write::Put(key, value) => Write::Put { key, value: value.into(), lease: Some(lease) },
        publish::Write::Delete(key) => Write::Delete(key),
    }
}

/// Sees to it that the service is balanced as its units say: who comes first writes, and who wrote may change it. Gives
/// what somebody else has said otherwise.
async fn configure(
    store: &Store,
    (service, instance): &Id,
    config: &ServiceConfig,
    meta: &ServiceMeta,
    settled: &mut BTreeSet<(String, u64)>,
) -> Option<String> {
    // Once for each run: copies with an older text must not take back what newer ones have written.
    let run = (named(service, instance), meta.generation);
    if settled.contains(&run) {
        return None;
    }
    let key = keys::service_config(service);
    let outcome: Result<Outcome, StoreError> = async {
        let value = || serde_json::to_vec(config).expect("records always render");
        let (guard, write) = match store.get(&key).await? {
            None => (Guard::Absent(key.clone()), Write::put(key.clone(), value())),
            Some(kv) => match serde_json::from_slice::<ServiceConfig>(&kv.value) {
                Ok(there) if says(&there) == says(config) => return Ok(Outcome::Settled),
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
                    return Ok(Outcome::Conflict(format!(
                        "Host=, Path= and the like of its unit differ from what was written by {by}, and have no effect: \
                         make them equal, or delete the key {key}"
                    )));
                }
                Err(error) => {
                    return Ok(Outcome::Conflict(format!("the key {key} cannot be read, and is left alone: {error}")));
                }
            },
        };
        let committed = store.commit(&[guard], &[write]).await?.committed;
        if committed {
            info!(%service, %instance, "service configured");
        }
        Ok(if committed { Outcome::Settled } else { Outcome::Later })
    }
    .await;
    match outcome {
        Ok(Outcome::Settled) => drop(settled.insert(run)),
        // It is looked at again: the key may be deleted, or made equal.
        Ok(Outcome::Conflict(what)) => {
            if meta.conflict.as_ref() != Some(&what) {
                warn!(%service, %instance, conflict = what, "not configured as its unit says");
            }
            return Some(what);
        }
        // At the next change, or the next comparison.
        Ok(Outcome::Later) => {}
        Err(error) => {
            debug!(%service, %error, "service not configured yet");
            return meta.conflict.clone();
        }
    }
    None
}

/// What came of configuring a service.
enum Outcome {
    Settled,
    Later,
    Conflict(String),
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
    Known::of(items.iter().map(entry), lease).adoptable(&machine)
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_core::registrar::{Activity, Event, Found, Registrar};
    use std::sync::Arc;

    const SECONDS: Duration = Duration::from_secs(20);

    /// What the registrar wants of a unit that is up and says so of its service.
    fn records(unit: &str, lines: &str) -> BTreeMap<Id, Record> {
        let machine: MachineId = "0123456789abcdef0123456789abcdef".parse().expect("valid");
        let unit: model::UnitName = unit.parse().expect("valid");
        let text = format!("[Service]\nExecStart=/a\n[X-Service]\nName=web\nPort=80\nCheck=none\n{lines}\n");
        let registrations: Arc<[_]> = unit::check(&unit, &text).expect("valid").registrations.into();
        let mut registrar = Registrar::new(machine, "m1".to_owned());
        let mut out = Vec::new();
        let at = model::Timestamp(7);
        registrar.step(
            Duration::ZERO,
            Event::Unit { unit: unit.clone(), registrations, activity: Activity::Active, at },
            &mut out,
        );
        let found = Found { address: [10, 1, 5, 2].into(), run: "a".to_owned(), unhealthy: None };
        registrar.step(Duration::ZERO, Event::Found(unit, Ok(found)), &mut out);
        let checked = out.iter().find_map(|effect| match effect {
            muster_core::registrar::Effect::Check { id, generation, .. } => Some((id.clone(), *generation)),
            _ => None,
        });
        let (id, generation) = checked.expect("a check");
        registrar.step(Duration::ZERO, Event::Checked { id, generation, outcome: Ok(()) }, &mut out);
        registrar.records().1
    }

    /// A publisher that wants these; it ends with the handle.
    async fn publisher(
        store: &Store,
        wanted: BTreeMap<Id, Record>,
    ) -> (tokio::task::JoinHandle<()>, watch::Sender<Wanted>, watch::Sender<Option<LeaseId>>) {
        let lease = store.grant(Duration::from_secs(600)).await.expect("granted");
        let lease = watch::Sender::new(Some(lease));
        let wanted = watch::Sender::new(Some((1, wanted)));
        let written = watch::Sender::new((0, Revision(0)));
        let task = tokio::spawn(publish(store.clone(), lease.subscribe(), wanted.subscribe(), written));
        (task, wanted, lease)
    }

    async fn until(
        store: &Store,
        what: &str,
        holds: impl Fn(&ServiceConfig, &BTreeMap<String, Option<String>>) -> bool,
    ) {
        let deadline = Instant::now() + SECONDS;
        loop {
            let items = store.list(keys::SERVICES).await.expect("answers").items;
            let mut config = ServiceConfig::default();
            let mut conflicts = BTreeMap::new();
            for kv in &items {
                match keys::service(&kv.key) {
                    Some((_, keys::ServiceKey::Config)) => {
                        config = serde_json::from_slice(&kv.value).unwrap_or_default()
                    }
                    Some((_, keys::ServiceKey::Meta(instance))) => {
                        let meta: ServiceMeta = serde_json::from_slice(&kv.value).expect("a record");
                        conflicts.insert(instance.to_owned(), meta.conflict);
                    }
                    _ => {}
                }
            }
            if holds(&config, &conflicts) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {config:?} {conflicts:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn who_comes_first_configures_and_who_contradicts_is_told() {
        let store = Store::memory();
        let (first, first_wants, _lease) =
            publisher(&store, records("web@1.service", "Host=app.example.com")).await;
        until(&store, "the first writes", |config, _| config.hosts == ["app.example.com"]).await;
        let other = records("other.service", "Host=other.example.com");
        let (second, wants, _lease) = publisher(&store, other).await;
        let told = |conflicts: &BTreeMap<String, Option<String>>| {
            conflicts.get("other").cloned().flatten().is_some_and(|why| why.contains("written by web@"))
        };
        until(&store, "it is told beside the instance", |config, conflicts| {
            config.hosts == ["app.example.com"] && told(conflicts) && conflicts["web@1"].is_none()
        })
        .await;
        // Its unit is made to say the same.
        wants.send_replace(Some((2, records("other.service", "Host=app.example.com"))));
        until(&store, "there is no conflict any more", |_, conflicts| conflicts["other"].is_none()).await;
        // Whoever wrote may change it.
        first_wants.send_replace(Some((2, {
            let mut changed = records("web@1.service", "Host=new.example.com\nPath=/x");
            changed.values_mut().for_each(|record| record.meta.generation += 1);
            changed
        })));
        until(&store, "its own writer changes it", |config, _| config.hosts == ["new.example.com"]).await;
        first.abort();
        second.abort();
    }

    #[tokio::test]
    async fn what_a_person_wrote_stays_until_they_take_it_away() {
        let store = Store::memory();
        let key = keys::service_config(&"web".parse().expect("a name"));
        store.put(&key, r#"{"hosts":["by.hand"],"hold":"9s"}"#.to_owned(), None).await.expect("written");
        let (task, wants, _lease) = publisher(&store, records("web@1.service", "Host=app.example.com")).await;
        let by_hand = |conflicts: &BTreeMap<String, Option<String>>| {
            conflicts
                .get("web@1")
                .cloned()
                .flatten()
                .is_some_and(|why| why.contains("by hand") && why.contains(&key))
        };
        until(&store, "it is told", |config, conflicts| config.hosts == ["by.hand"] && by_hand(conflicts))
            .await;
        store.commit(&[], &[Write::Delete(key.clone())]).await.expect("deleted");
        wants.send_replace(Some((2, records("web@1.service", "Host=app.example.com"))));
        until(&store, "then it is the unit's", |config, conflicts| {
            config.hosts == ["app.example.com"] && conflicts["web@1"].is_none()
        })
        .await;
        // One that nobody can read is told, too, and left alone.
        store.put(&key, "nonsense".to_owned(), None).await.expect("written");
        let (other, _wants, _lease) = publisher(&store, records("other.service", "Host=x.example.com")).await;
        until(&store, "it cannot be read", |_, conflicts| {
            conflicts.get("other").cloned().flatten().is_some_and(|why| why.contains("cannot be read"))
        })
        .await;
        let kept = store.get(&key).await.expect("answers").expect("there");
        assert_eq!(&*kept.value, b"nonsense");
        task.abort();
        other.abort();
    }
}
