//! Leading: the hub's changes go to `core::engine`, its effects come back as transactions, events and log lines.
//!
//! No decision is made here. Invariant: the engine is told of everything that it wrote itself before it decides
//! again, so that what it knows is what the hub has.

use crate::agent::{Machine, events};
use events::Events;
use futures_util::{StreamExt, stream};
use model::{EventKind, EventRecord, LeaseId, MachineId, Revision, Timestamp, UnitName, keys};
use muster_core::{
    cluster::Delta,
    engine::{Effect, Engine, Event, Notice, Removal},
};
use registry::{Change, Delta as News, Follow, Guard, KeyValue, Store, StoreError, Write};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// Writes in one transaction: etcd takes 128 operations.
const CHUNK: usize = 100;
/// Leases that are asked after at the same time.
const PROBES: usize = 32;
/// Why leading ended when the hub cannot be reached.
pub(super) const AWAY: &str = "the hub is away";
const DEPOSED: &str = "another machine leads";
const STALE: &str = "another machine leads, or a lost machine is back";

struct Lead<'a> {
    machine: &'a Machine,
    store: &'a Store,
    term: Revision,
    engine: Engine,
    events: Events,
    /// Keys that the engine knows, and when they were written.
    seen: BTreeMap<String, Revision>,
    /// Under which leases machines are present, and what they are called.
    leases: BTreeMap<MachineId, LeaseId>,
    names: BTreeMap<MachineId, String>,
    /// Up to where the hub was followed, and what was written last.
    view: Revision,
    written: Revision,
    /// What is to be told to the engine with the next event.
    news: Vec<Delta>,
    /// Units among it: what the engine knows of their files is not the newest.
    changed: BTreeSet<UnitName>,
    timer: Option<Timestamp>,
    /// The engine's clock begins with the term, and nobody sets it.
    began: Instant,
}

/// Leads until another one does or the hub cannot be reached; says why it ended.
pub(super) async fn lead(
    machine: &Machine,
    store: &Store,
    term: Revision,
    reachable: Instant,
    events: Events,
) -> &'static str {
    let patience = machine.config.agent.lease_ttl.saturating_sub(reachable.elapsed());
    let mut lead = Lead {
        machine,
        store,
        term,
        engine: Engine::new(term, Timestamp(0).after(patience)),
        events,
        seen: BTreeMap::new(),
        leases: BTreeMap::new(),
        names: BTreeMap::new(),
        view: Revision(0),
        written: Revision(0),
        news: Vec::new(),
        changed: BTreeSet::new(),
        timer: None,
        began: Instant::now(),
    };
    let mut follow = store.follow(keys::MUSTER);
    loop {
        match lead.turn(&mut follow).await {
            Ok(()) => {}
            Err(reason) => return reason,
        }
    }
}

impl Lead<'_> {
    /// Waits for something to happen and does what follows from it.
    async fn turn(&mut self, follow: &mut Follow) -> Result<(), &'static str> {
        let begun = self.view != Revision(0);
        let timer = self.timer.map(|at| self.began + at.since(Timestamp(0)));
        let alarm = async {
            match timer {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let mut ticked = false;
        tokio::select! {
            news = follow.next() => self.hear(news)?,
            () = alarm => (ticked, self.timer) = (true, None),
        }
        // Everything that is there already is one decision; and its own writes come first.
        loop {
            if let Some(news) = follow.try_next() {
                self.hear(Some(news))?;
            } else if self.view < self.written {
                match tokio::time::timeout(registry::CALL_TIMEOUT, follow.next()).await {
                    Ok(news) => self.hear(news)?,
                    Err(_) => return Err(AWAY),
                }
            } else {
                break;
            }
        }
        if !begun {
            let message = format!("{} leads", self.machine.name);
            let mut event =
                EventRecord::new(events::now(), EventKind::Leading, "elected".to_owned(), message);
            event.machine = Some(self.machine.id.clone());
            self.events.tell(event);
        }
        let mut pending = VecDeque::new();
        self.changed.clear();
        if !self.news.is_empty() {
            pending.push_back(Event::Hub(std::mem::take(&mut self.news)));
        }
        if ticked {
            pending.push_back(Event::Tick);
        }
        while let Some(event) = pending.pop_front() {
            let now = Timestamp(0).after(self.began.elapsed());
            let mut effects = Vec::new();
            self.engine.step(now, event, &mut effects);
            if self.carry_out(effects).await? {
                let late = overdue(self.store, self.present(), self.machine.config.agent.lease_ttl).await;
                pending.push_back(Event::Overdue(late));
            }
        }
        Ok(())
    }

    /// Takes in what the hub says.
    fn hear(&mut self, news: Option<News>) -> Result<(), &'static str> {
        match news {
            None => Err("shutting down"),
            Some(News::Lost) => Err(AWAY),
            Some(News::Reset(listing)) => {
                let mut gone = std::mem::take(&mut self.seen);
                for kv in &listing.items {
                    match gone.remove(&kv.key) {
                        Some(revision) if revision == kv.mod_revision => {
                            self.seen.insert(kv.key.clone(), revision);
                        }
                        _ => self.put(kv)?,
                    }
                }
                for key in gone.into_keys() {
                    self.delete(&key)?;
                }
                self.view = listing.revision;
                if self.seen.contains_key(keys::LEADER) { Ok(()) } else { Err(DEPOSED) }
            }
            Some(News::Changes(changes)) => {
                for change in &changes.changes {
                    match change {
                        Change::Put(kv) => self.put(kv)?,
                        Change::Delete { key } => self.delete(key)?,
                    }
                }
                self.view = self.view.max(changes.revision);
                Ok(())
            }
        }
    }

    fn put(&mut self, kv: &KeyValue) -> Result<(), &'static str> {
        if kv.key == keys::LEADER && kv.mod_revision != self.term {
            return Err(DEPOSED);
        }
        if kv.key.starts_with(keys::EVENTS) {
            return Ok(());
        }
        self.seen.insert(kv.key.clone(), kv.mod_revision);
        let (engine, changed) = (&self.engine, &self.changed);
        let same = |unit: &UnitName, hash: &str| !changed.contains(unit) && engine.has_file(unit, hash);
        match Delta::read(&kv.key, Some(&kv.value), kv.mod_revision, same) {
            Ok(Some(delta)) => {
                if let Delta::Machine(id, Some(record)) = &delta {
                    self.names.insert(id.clone(), record.name.clone());
                    self.leases.extend(kv.lease.map(|lease| (id.clone(), lease)));
                }
                if let Delta::Unit(name, _) = &delta {
                    self.changed.insert(name.clone());
                }
                self.tell_maintenance(&delta);
                self.news.push(delta);
            }
            Ok(None) => {}
            Err(error) => warn!(key = kv.key, %error, "unreadable record left alone"),
        }
        Ok(())
    }

    fn delete(&mut self, key: &str) -> Result<(), &'static str> {
        if key == keys::LEADER {
            return Err("the leadership ended");
        }
        self.seen.remove(key);
        if let Ok(Some(delta)) = Delta::read(key, None, Revision(0), |_, _| false) {
            self.tell_maintenance(&delta);
            self.news.push(delta);
        }
        Ok(())
    }

    /// Carries out what the engine wants; true if it asked who is late.
    async fn carry_out(&mut self, effects: Vec<Effect>) -> Result<bool, &'static str> {
        let mut probe = false;
        // A key may come up twice: what was wanted last counts.
        let mut writes: Vec<(String, Option<Vec<u8>>)> = Vec::new();
        let mut at: BTreeMap<String, usize> = BTreeMap::new();
        let mut write = |key: String, value: Option<Vec<u8>>| match at.get(&key) {
            Some(index) => writes[*index].1 = value,
            None => {
                at.insert(key.clone(), writes.len());
                writes.push((key, value));
            }
        };
        let mut told = Vec::new();
        let mut lost = BTreeSet::new();
        for effect in effects {
            match &effect {
                Effect::Schedule(placement) => {
                    let value = serde_json::to_vec(&placement.record).expect("records always render");
                    write(keys::schedule(&placement.machine, &placement.unit), Some(value));
                }
                Effect::Unschedule { unit, machine, why } => {
                    if *why == Removal::MachineLost {
                        lost.insert(machine.clone());
                    }
                    write(keys::schedule(machine, unit), None);
                }
                Effect::Forget(unit) => write(keys::move_order(unit), None),
                Effect::ForgetMachine(machine) => {
                    write(keys::maintenance(machine), None);
                    write(keys::metadata(machine), None);
                }
                Effect::Probe => probe = true,
                Effect::SetTimer(when) => self.timer = Some(*when),
                Effect::Tell(_) => {}
            }
            told.push(effect);
        }
        for chunk in writes.chunks(CHUNK) {
            match commit(self.store, self.term, &lost, chunk).await {
                Ok(Some(revision)) => self.written = revision,
                Ok(None) => return Err(STALE),
                Err(error) => {
                    warn!(%error, "schedule not written");
                    return Err(AWAY);
                }
            }
        }
        for effect in &told {
            self.report(effect);
        }
        Ok(probe)
    }

    /// Machines that are present, with their leases.
    fn present(&self) -> Vec<(MachineId, LeaseId)> {
        let present = self.leases.iter().filter(|(id, _)| self.seen.contains_key(&keys::machine(id)));
        present.map(|(id, lease)| (id.clone(), *lease)).collect()
    }

    fn name(&self, machine: &MachineId) -> String {
        self.names.get(machine).cloned().unwrap_or_else(|| machine.short().to_owned())
    }

    fn tell(
        &mut self,
        kind: EventKind,
        unit: Option<&UnitName>,
        machine: Option<&MachineId>,
        reason: String,
        message: String,
    ) {
        let mut event = EventRecord::new(events::now(), kind, reason, message);
        (event.unit, event.machine) = (unit.cloned(), machine.cloned());
        self.events.tell(event);
    }

    fn tell_maintenance(&mut self, delta: &Delta) {
        let Delta::Maintenance(machine, record) = delta else { return };
        if self.view == Revision(0) {
            return;
        }
        let name = self.name(machine);
        let (reason, message) = match record {
            Some(record) => (record.reason.clone(), format!("{name} is {} (by {})", record.state, record.by)),
            None => (String::new(), format!("{name} takes units again")),
        };
        info!(%machine, message, "maintenance");
        self.tell(EventKind::Maintenance, None, Some(machine), reason, message);
    }

    /// Says what was done, in the journal and as an event.
    fn report(&mut self, effect: &Effect) {
        match effect {
            Effect::Schedule(placement) => {
                let (unit, machine, why) = (&placement.unit, &placement.machine, &placement.record.why);
                info!(%unit, %machine, desired = %placement.record.desired, why, "unit scheduled");
                let message =
                    format!("{unit} is {} on {}: {why}", placement.record.desired, self.name(machine));
                self.tell(EventKind::Scheduled, Some(unit), Some(machine), why.clone(), message);
            }
            Effect::Unschedule { unit, machine, why } => {
                info!(%unit, %machine, %why, "unit unscheduled");
                let message = format!("{unit} leaves {}: {why}", self.name(machine));
                self.tell(EventKind::Unscheduled, Some(unit), Some(machine), why.to_string(), message);
            }
            Effect::ForgetMachine(machine) => {
                info!(%machine, "machine long gone, its maintenance and metadata removed")
            }
            Effect::Tell(notice) => self.report_notice(notice),
            Effect::Forget(_) | Effect::Probe | Effect::SetTimer(_) => {}
        }
    }

    fn report_notice(&mut self, notice: &Notice) {
        match notice {
            Notice::Waiting { unit } => {
                let refusals = self.engine.refusals(unit);
                let some: Vec<_> = refusals
                    .iter()
                    .take(3)
                    .map(|(machine, refusal)| format!("{}: {refusal}", self.name(machine)))
                    .collect();
                let reason = if some.is_empty() { "no machine is there".to_owned() } else { some.join("; ") };
                warn!(%unit, machines = refusals.len(), reason, "no machine fits");
                let message = format!("{unit} waits, no machine fits ({reason})");
                self.tell(EventKind::Waiting, Some(unit), None, reason, message);
            }
            Notice::Stuck { unit, machine } => {
                warn!(%unit, %machine, "unit cannot leave the machine that is drained");
                let message = format!("{unit} stays on {}: no other machine fits", self.name(machine));
                let reason = format!("see `muster why {unit}`");
                self.tell(EventKind::Stuck, Some(unit), Some(machine), reason, message);
            }
            Notice::MoveRefused { unit, machine, why } => {
                warn!(%unit, %machine, why, "unit not moved");
                let message = format!("{unit} does not move to {}: {why}", self.name(machine));
                self.tell(EventKind::Stuck, Some(unit), Some(machine), why.clone(), message);
            }
            Notice::MachineJoined(machine) => {
                let message = format!("{} joined", self.name(machine));
                self.tell(EventKind::MachineJoined, None, Some(machine), String::new(), message);
            }
            Notice::MachineLost(machine) => {
                info!(%machine, "machine gone");
                let message = format!("{} is gone", self.name(machine));
                self.tell(EventKind::MachineLost, None, Some(machine), "its lease ended".to_owned(), message);
            }
            Notice::Holding(machines) => {
                warn!(?machines, "most machines are gone at once: holding still until some are back");
                let names: Vec<_> = machines.iter().map(|machine| self.name(machine)).collect();
                let message = format!("holding still: {} are gone with most others", names.join(", "));
                let reason = "most machines are gone at once".to_owned();
                self.tell(EventKind::Holding, None, None, reason, message);
            }
            Notice::Released => {
                info!("deciding again");
                let message = "deciding again".to_owned();
                self.tell(EventKind::Released, None, None, String::new(), message);
            }
        }
    }
}

/// Writes if the term still lasts and none of `lost` is back, because what the engine follows may have fallen silent;
/// gives the revision.
async fn commit(
    store: &Store,
    term: Revision,
    lost: &BTreeSet<MachineId>,
    writes: &[(String, Option<Vec<u8>>)],
) -> Result<Option<Revision>, StoreError> {
    let writes: Vec<_> = writes
        .iter()
        .map(|(key, value)| match value {
            Some(value) => Write::put(key.clone(), value.clone()),
            None => Write::Delete(key.clone()),
        })
        .collect();
    let mut guards = vec![Guard::Unchanged(keys::LEADER.to_owned(), term)];
    guards.extend(lost.iter().map(|machine| Guard::Absent(keys::machine(machine))));
    let outcome = store.commit(&guards, &writes).await?;
    Ok(outcome.committed.then_some(outcome.revision))
}

/// Machines whose leases should have been renewed by now. A machine renews when a third of its time is over; one that
/// has less than half of it left has missed that.
async fn overdue(store: &Store, present: Vec<(MachineId, LeaseId)>, ttl: Duration) -> BTreeSet<MachineId> {
    let late = |(id, lease): (MachineId, LeaseId)| async move {
        match store.time_left(lease).await {
            Ok(left) => (left < ttl / 2).then_some(id),
            // A hub that cannot be asked will not take a schedule either.
            Err(error) => {
                debug!(%error, "lease not looked at");
                None
            }
        }
    };
    stream::iter(present).map(late).buffer_unordered(PROBES).filter_map(std::future::ready).collect().await
}
