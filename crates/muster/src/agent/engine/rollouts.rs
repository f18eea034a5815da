//! Rollouts under way, carried out by the machine that leads: what `core::rollout` decides is written, and told.
//!
//! No decision is made here. It stands beside the engine and not in it: it needs texts and states, which the engine
//! does without, and needs them only while there is a rollout. Invariants: a step is one transaction, guarded by the
//! term, by the rollout's record and by every unit in it; a step is decided on a view that has the last one in it.

use crate::agent::{Machine, events, history};
use events::Events;
use model::{EventKind, EventRecord, Revision, RolloutRecord, Timestamp, UnitName, UnitRecord, keys};
use muster_core::{
    cluster::Cluster,
    rollout::{Change as Step, Decision, Notice, Rollout},
};
use registry::{Change, Delta, Follow, Guard, Store, StoreError, Write};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// After an error of the hub, and after somebody else was faster.
const PAUSE: Duration = Duration::from_millis(500);
/// How often it is looked for what belongs to no unit any longer.
const SWEEP: Duration = Duration::from_secs(3600);
/// Deletions in one transaction: etcd takes 128 operations.
const CHUNK: usize = 100;

/// Works until its future is dropped, which is when the leadership ends.
pub(super) async fn run(
    machine: &Machine,
    store: &Store,
    term: Revision,
    events: Events,
) -> std::convert::Infallible {
    let mut driver = Driver {
        machine,
        store,
        term,
        events,
        cluster: Cluster::default(),
        rollouts: BTreeMap::new(),
        under_way: BTreeMap::new(),
        view: Revision(0),
        written: Revision(0),
        began: Instant::now(),
    };
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        // While there is none, nothing but their own keys is followed.
        let mut follow = store.follow(keys::ROLLOUTS);
        driver.forget();
        while !driver.is_busy() {
            tokio::select! {
                news = follow.next() => driver.hear(news).await,
                _ = sweep.tick() => driver.sweep().await,
            }
        }
        let mut follow = store.follow(keys::MUSTER);
        driver.forget();
        driver.hear(follow.next().await).await;
        while driver.is_busy() || driver.view == Revision(0) {
            let mut wake = None;
            if driver.catch_up(&mut follow).await {
                wake = driver.step().await;
            }
            let alarm = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                news = follow.next() => driver.hear(news).await,
                () = alarm => {}
            }
        }
    }
}

struct Driver<'a> {
    machine: &'a Machine,
    store: &'a Store,
    term: Revision,
    events: Events,
    cluster: Cluster,
    /// Records that can be read, and when they were written.
    rollouts: BTreeMap<UnitName, (RolloutRecord, Revision)>,
    /// The deciders of those that are active, each with when it was ordered.
    under_way: BTreeMap<UnitName, (Timestamp, Rollout)>,
    /// Up to where the hub was followed, and what was written last.
    view: Revision,
    written: Revision,
    /// The deciders' clock begins with the term, and nobody sets it.
    began: Instant,
}

impl Driver<'_> {
    fn is_busy(&self) -> bool {
        self.rollouts.values().any(|(record, _)| record.state.is_active())
    }

    /// Before another prefix is followed.
    fn forget(&mut self) {
        (self.cluster, self.rollouts, self.view) = (Cluster::default(), BTreeMap::new(), Revision(0));
    }

    async fn hear(&mut self, news: Option<Delta>) {
        match news {
            // The daemon ends, or the hub is away: the engine beside this one sees that, too, and ends the term.
            None => tokio::time::sleep(PAUSE).await,
            Some(Delta::Lost) => {}
            Some(Delta::Reset(listing)) => {
                self.forget();
                for kv in &listing.items {
                    self.put(&kv.key, &kv.value, kv.mod_revision);
                }
                self.view = listing.revision;
            }
            Some(Delta::Changes(changes)) => {
                for change in &changes.changes {
                    match change {
                        Change::Put(kv) => self.put(&kv.key, &kv.value, kv.mod_revision),
                        Change::Delete { key } => {
                            self.cluster.delete(key);
                            if let Some(name) = rollout(key) {
                                self.rollouts.remove(&name);
                            }
                        }
                    }
                }
                self.view = self.view.max(changes.revision);
            }
        }
    }

    fn put(&mut self, key: &str, value: &[u8], revision: Revision) {
        let Some(name) = rollout(key) else {
            self.cluster.put(key, value, revision);
            return;
        };
        match serde_json::from_slice(value) {
            Ok(record) => drop(self.rollouts.insert(name, (record, revision))),
            Err(error) => warn!(key, %error, "unreadable record left alone"),
        }
    }

    /// Takes in everything that is there already; false when its own last write is not among it yet.
    async fn catch_up(&mut self, follow: &mut Follow) -> bool {
        while let Some(news) = follow.try_next() {
            self.hear(Some(news)).await;
        }
        self.view != Revision(0) && self.view >= self.written
    }

    /// Decides once for each; gives when to decide again at the latest.
    async fn step(&mut self) -> Option<Instant> {
        let now = Timestamp(0).after(self.began.elapsed());
        let active = |(record, _): &(RolloutRecord, Revision)| record.state.is_active();
        self.under_way.retain(|name, (at, _)| {
            self.rollouts.get(name).is_some_and(|known| active(known) && known.0.at == *at)
        });
        let mut wake: Option<Instant> = None;
        for (name, (record, revision)) in &self.rollouts {
            if !record.state.is_active() {
                continue;
            }
            let decider =
                self.under_way.entry(name.clone()).or_insert_with(|| (record.at, Rollout::default()));
            let decision = decider.1.step(now, name, record, &self.cluster);
            let again = decision.wake.map(|at| self.began + at.since(Timestamp(0)));
            wake = wake.into_iter().chain(again).min();
            if decision.changes.is_empty() && decision.record == *record {
                continue;
            }
            match self.write(name, &decision, record, *revision).await {
                Ok(Some(written)) => {
                    self.written = written;
                    for notice in decision.notices {
                        tell(&mut self.events, &self.cluster, notice);
                    }
                    // The others decide on what this one did.
                    return wake;
                }
                Ok(None) => debug!(%name, "somebody else was faster"),
                Err(error) => warn!(%name, %error, "update not written"),
            }
            wake = wake.into_iter().chain([Instant::now() + PAUSE]).min();
        }
        wake
    }

    /// Writes a step; gives the revision, or `None` when what it was decided on has changed.
    async fn write(
        &self,
        name: &UnitName,
        decision: &Decision,
        before: &RolloutRecord,
        revision: Revision,
    ) -> Result<Option<Revision>, StoreError> {
        let key = keys::rollout(name);
        let mut guards = vec![
            Guard::Unchanged(keys::LEADER.to_owned(), self.term),
            Guard::Unchanged(key.clone(), revision),
        ];
        let mut writes = vec![Write::put(key, render(&decision.record))];
        // Two changes may concern one unit, which is written once.
        let mut units: BTreeMap<&UnitName, UnitRecord> = BTreeMap::new();
        for change in &decision.changes {
            let (Step::Replace { unit, .. } | Step::Restore { unit, .. } | Step::Relaunch { unit }) = change;
            let known = self.cluster.units.get(unit);
            let current = units.get(unit).or_else(|| known.map(|known| &known.record)).cloned();
            if !units.contains_key(unit) {
                let key = keys::unit(unit);
                guards.push(match known {
                    Some(known) => Guard::Unchanged(key, known.revision),
                    None => Guard::Absent(key),
                });
            }
            let record = match (change, current) {
                (Step::Replace { text, hash, .. }, Some(current)) => {
                    writes.extend(history::keep(unit, &current, &before.by));
                    current.replaced(text.clone(), hash.clone())
                }
                (Step::Replace { text, hash, .. }, None) => {
                    UnitRecord::new(text.clone(), hash.clone()).counted_from(self.view)
                }
                (Step::Restore { text, hash, .. }, Some(current)) => {
                    let (record, forgotten) = history::undo(unit, &current, text.clone(), hash.clone());
                    writes.extend(forgotten);
                    record
                }
                (Step::Relaunch { .. }, Some(current)) => {
                    UnitRecord { launch: current.launch.saturating_add(1), ..current }
                }
                (Step::Restore { .. } | Step::Relaunch { .. }, None) => continue,
            };
            units.insert(unit, record);
        }
        writes.extend(units.iter().map(|(unit, record)| Write::put(keys::unit(unit), render(record))));
        let outcome = self.store.commit(&guards, &writes).await?;
        if outcome.committed {
            info!(%name, state = %decision.record.state, units = units.len(), "update goes on");
        }
        Ok(outcome.committed.then_some(outcome.revision))
    }

    /// Deletes history and rollouts of units that are gone: whoever destroyed them did it, unless they were replaced
    /// at the same moment.
    async fn sweep(&self) {
        if let Err(error) = self.try_sweep().await {
            debug!(%error, machine = self.machine.name, "history not looked through");
        }
    }

    async fn try_sweep(&self) -> Result<(), StoreError> {
        let mut kept = self.store.list(keys::HISTORY).await?.items;
        kept.extend(self.store.list(keys::ROLLOUTS).await?.items);
        if kept.is_empty() {
            return Ok(());
        }
        let units = self.store.list(keys::UNITS).await?.items;
        let known: BTreeSet<UnitName> =
            units.iter().filter_map(|kv| kv.key.strip_prefix(keys::UNITS)?.parse().ok()).collect();
        let templates: BTreeSet<UnitName> = known.iter().filter_map(UnitName::template).collect();
        let orphans = kept.iter().filter(|kv| {
            let unit = keys::unit_and_version(&kv.key).map(|(unit, _)| unit).or_else(|| rollout(&kv.key));
            unit.is_some_and(|unit| !known.contains(&unit) && !templates.contains(&unit))
        });
        let orphans: Vec<_> = orphans.map(|kv| (kv.key.clone(), kv.mod_revision)).collect();
        for chunk in orphans.chunks(CHUNK) {
            let mut guards = vec![Guard::Unchanged(keys::LEADER.to_owned(), self.term)];
            guards.extend(chunk.iter().map(|(key, revision)| Guard::Unchanged(key.clone(), *revision)));
            let writes: Vec<_> = chunk.iter().map(|(key, _)| Write::Delete(key.clone())).collect();
            self.store.commit(&guards, &writes).await?;
        }
        Ok(())
    }
}

fn tell(events: &mut Events, cluster: &Cluster, notice: Notice) {
    info!(unit = %notice.unit, reason = notice.reason, "{}", notice.message);
    let mut event = EventRecord::new(events::now(), EventKind::Rollout, notice.reason, notice.message);
    event.machine = cluster.machine_of(&notice.unit).cloned();
    event.unit = Some(notice.unit);
    events.tell(event);
}

fn rollout(key: &str) -> Option<UnitName> {
    key.strip_prefix(keys::ROLLOUTS)?.parse().ok()
}

fn render(record: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("records always render")
}

#[cfg(test)]
mod tests;
