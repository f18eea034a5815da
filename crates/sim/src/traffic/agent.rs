//! A machine's daemon, as far as services are concerned: its lease, its registrar and its router. `muster`'s drivers
//! without sockets.
//!
//! Invariant: it knows the time by its machine's clock only, and the hub by what has come.

use super::{
    publisher::{self, Next, Publisher},
    router::Router,
    rules::HOLD,
    world::Planted,
};
use crate::message::{Answer, Failure, Request, Write};
use model::{LeaseId, MachineId, Revision, RouterRecord, Timestamp, UnitName, keys};
use muster_core::{
    registrar::{Activity, Effect, Event, Found, Id, Registrar, publish::Known},
    router::Gone,
};
use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc, time::Duration};
use unit::Registration;

/// The lease's time, how often it is renewed, and pauses after failures, as the real ones have them.
pub(super) const TTL: Duration = Duration::from_secs(5);
const RENEW: Duration = Duration::from_millis(1500);
const AGAIN: Duration = Duration::from_millis(100);
pub(super) const RELIST: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(500);
const SOON: Duration = Duration::from_millis(20);
const LATER: Duration = Duration::from_secs(1);

/// What a follow is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Topic {
    Services,
    Routers,
}

impl Topic {
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Services => keys::SERVICES,
            Self::Routers => keys::ROUTERS,
        }
    }
}

/// What an answer is to.
#[derive(Debug, Clone)]
pub(super) enum Tag {
    Follow(Topic),
    Adopt,
    Publish,
    Lease,
    Renew(LeaseId),
    Ask(Gone),
    Report(RouterRecord, LeaseId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timer {
    Tick,
    Renew,
    Publish,
    Relist(Topic),
    Report,
    Adopt,
}

/// What a daemon wants done.
#[derive(Debug)]
pub(super) enum Out {
    Call(Tag, Request),
    /// By the machine's clock.
    After(Duration, Timer),
    Find(UnitName),
    Check(Id, u64, Ipv4Addr, Duration),
    Drained(UnitName),
    NoteLease(LeaseId),
    Say(String),
}

/// A unit as systemd has it.
#[derive(Debug, Clone)]
pub(super) struct Unit {
    pub(super) unit: UnitName,
    pub(super) registrations: Arc<[Registration]>,
    pub(super) activity: Activity,
}

pub(super) struct Agent {
    pub(super) run: u32,
    pub(super) machine: MachineId,
    begin: Duration,
    pub(super) registrar: Registrar,
    publisher: Publisher,
    pub(super) router: Router,
    pub(super) lease: Option<LeaseId>,
    routers: BTreeMap<MachineId, RouterRecord>,
    adopted: bool,
    units: BTreeMap<UnitName, Unit>,
    reported: Option<(RouterRecord, LeaseId)>,
    reporting: bool,
    report_due: Option<Duration>,
    last_report: Option<Duration>,
    ticks: Option<Duration>,
    publishing: Option<Duration>,
    pub(super) listing: BTreeMap<Topic, bool>,
    planted: Option<Planted>,
}

impl Agent {
    /// A daemon that starts at `now` by its machine's clock.
    pub(super) fn new(
        run: u32,
        machine: MachineId,
        name: String,
        now: Duration,
        planted: Option<Planted>,
    ) -> Self {
        let hold = if planted == Some(Planted::BelievesMassLoss) { Duration::ZERO } else { HOLD };
        let publisher = Publisher::new(planted == Some(Planted::ForgetsTheLease));
        Self {
            run,
            registrar: Registrar::new(machine.clone(), name),
            machine,
            begin: now,
            publisher,
            router: Router::new(hold, planted),
            lease: None,
            routers: BTreeMap::new(),
            adopted: false,
            units: BTreeMap::new(),
            reported: None,
            reporting: false,
            report_due: None,
            last_report: None,
            ticks: None,
            publishing: None,
            listing: BTreeMap::new(),
            planted,
        }
    }

    /// Its own time.
    pub(super) fn own(&self, now: Duration) -> Duration {
        now.saturating_sub(self.begin)
    }

    /// The first thing it does. `lease` is what an earlier run has noted.
    pub(super) fn start(&mut self, lease: Option<LeaseId>, out: &mut Vec<Out>) {
        match lease {
            Some(lease) => out.push(Out::Call(Tag::Renew(lease), Request::Renew(lease))),
            None => out.push(Out::Call(Tag::Lease, Request::Grant(TTL))),
        }
        for topic in [Topic::Services, Topic::Routers] {
            self.list(topic, out);
        }
    }

    fn list(&mut self, topic: Topic, out: &mut Vec<Out>) {
        if !self.listing.insert(topic, true).unwrap_or(false) {
            out.push(Out::Call(Tag::Follow(topic), Request::List(topic.prefix().to_owned())));
        }
    }

    /// systemd says how its units are.
    pub(super) fn systemd(&mut self, now: Duration, at: Timestamp, units: Vec<Unit>, out: &mut Vec<Out>) {
        for unit in units {
            let (name, registrations, activity) =
                (unit.unit.clone(), unit.registrations.clone(), unit.activity);
            self.units.insert(name.clone(), unit);
            if self.adopted {
                self.step(now, Event::Unit { unit: name, registrations, activity, at }, out);
            }
        }
    }

    pub(super) fn found(
        &mut self,
        now: Duration,
        unit: UnitName,
        found: Result<Found, String>,
        out: &mut Vec<Out>,
    ) {
        self.step(now, Event::Found(unit, found), out);
    }

    pub(super) fn checked(
        &mut self,
        now: Duration,
        id: Id,
        generation: u64,
        outcome: Result<(), String>,
        out: &mut Vec<Out>,
    ) {
        let outcome = if self.planted == Some(Planted::BelievesInHealth) { Ok(()) } else { outcome };
        self.step(now, Event::Checked { id, generation, outcome }, out);
    }

    /// A unit is about to stop.
    pub(super) fn drain(&mut self, now: Duration, unit: UnitName, out: &mut Vec<Out>) {
        self.step(now, Event::Drain { unit, alive: true }, out);
    }

    fn step(&mut self, now: Duration, event: Event, out: &mut Vec<Out>) {
        let mut effects = Vec::new();
        self.registrar.step(self.own(now), event, &mut effects);
        for effect in effects {
            match effect {
                Effect::Find(unit) => out.push(Out::Find(unit)),
                Effect::Check { id, generation, address, timeout, .. } => {
                    out.push(Out::Check(id, generation, address, timeout));
                }
                Effect::Drained(unit) => out.push(Out::Drained(unit)),
                Effect::Told { id: (service, instance), health, reason } => {
                    let why = reason.unwrap_or_default();
                    out.push(Out::Say(format!("{service}/{instance} is {health:?} {why}")));
                }
            }
        }
        self.publish(now, out);
        self.set_ticks(now, out);
    }

    /// Has the timer go off when something is due.
    pub(super) fn set_ticks(&mut self, now: Duration, out: &mut Vec<Out>) {
        let own = self.own(now);
        let due = self.registrar.due().into_iter().chain(self.router.due()).min();
        // Never at once: what is due already is looked at in a moment.
        let at = due.map(|due| due.max(own + Duration::from_millis(1)));
        if let Some(at) = at.filter(|at| self.ticks.is_none_or(|set| *at < set)) {
            self.ticks = Some(at);
            out.push(Out::After(at - own, Timer::Tick));
        }
    }

    pub(super) fn timer(&mut self, now: Duration, timer: Timer, out: &mut Vec<Out>) {
        match timer {
            Timer::Tick => {
                let own = self.own(now);
                if self.ticks.is_some_and(|set| set <= own) {
                    self.ticks = None;
                }
                self.router.tick(own);
                self.step(now, Event::Tick, out);
                self.after_router(now, out);
            }
            Timer::Renew => match self.lease {
                Some(lease) => out.push(Out::Call(Tag::Renew(lease), Request::Renew(lease))),
                None => out.push(Out::Call(Tag::Lease, Request::Grant(TTL))),
            },
            Timer::Publish => {
                self.publishing = None;
                self.publish(now, out);
            }
            Timer::Relist(topic) => self.list(topic, out),
            Timer::Report => {
                self.report_due = None;
                self.report(now, out);
            }
            Timer::Adopt => self.adopt(out),
        }
    }

    fn adopt(&mut self, out: &mut Vec<Out>) {
        if !self.adopted && self.lease.is_some() {
            out.push(Out::Call(Tag::Adopt, Request::List(keys::SERVICES.to_owned())));
        }
    }

    fn publish(&mut self, now: Duration, out: &mut Vec<Out>) {
        let Some(lease) = self.lease.filter(|_| self.adopted && self.publisher.is_idle()) else { return };
        let next = self.publisher.go_on(self.own(now), lease, || self.registrar.records());
        self.next(now, next, out);
    }

    fn next(&mut self, now: Duration, next: Next, out: &mut Vec<Out>) {
        match next {
            Next::Call(request) => out.push(Out::Call(Tag::Publish, request)),
            Next::Written(version, revision) => self.step(now, Event::Written(version, revision), out),
            Next::Later => self.publish_after(now, AGAIN, out),
            Next::Nothing => self.publish_after(now, publisher::RECONCILE, out),
        }
    }

    fn publish_after(&mut self, now: Duration, pause: Duration, out: &mut Vec<Out>) {
        let due = self.own(now) + pause;
        if self.publishing.is_none_or(|set| due < set) {
            self.publishing = Some(due);
            out.push(Out::After(pause, Timer::Publish));
        }
    }

    fn has_lease(&mut self, now: Duration, lease: LeaseId, out: &mut Vec<Out>) {
        let new = self.lease.replace(lease) != Some(lease);
        out.push(Out::NoteLease(lease));
        if new {
            out.push(Out::Say(format!("has the lease {:x}", lease.0)));
            self.adopt(out);
            self.publish(now, out);
            self.report(now, out);
        }
        out.push(Out::After(RENEW, Timer::Renew));
    }

    /// An answer of the hub.
    pub(super) fn answer(
        &mut self,
        now: Duration,
        at: Timestamp,
        tag: Tag,
        answer: Result<Answer, Failure>,
        out: &mut Vec<Out>,
    ) {
        match (tag, answer) {
            (Tag::Lease, Ok(Answer::Granted(lease))) => self.has_lease(now, lease, out),
            (Tag::Renew(lease), Ok(Answer::Renewed(left))) if !left.is_zero() => {
                self.has_lease(now, lease, out)
            }
            (Tag::Renew(lease), Ok(Answer::Renewed(_))) => {
                out.push(Out::Say(format!("has lost the lease {:x}", lease.0)));
                self.lease = None;
                out.push(Out::Call(Tag::Lease, Request::Grant(TTL)));
            }
            (Tag::Renew(lease), _) if self.lease.is_none() => {
                // It may go on with it when the hub is back.
                self.lease = None;
                out.push(Out::NoteLease(lease));
                out.push(Out::After(RETRY, Timer::Renew));
            }
            (Tag::Lease | Tag::Renew(_), _) => out.push(Out::After(RETRY, Timer::Renew)),
            (Tag::Adopt, Ok(Answer::Listing { items, .. })) if !self.adopted => {
                let Some(lease) = self.lease else { return };
                self.adopted = true;
                let known = Known::of(items.iter().map(publisher::entry), lease);
                for (id, meta, upstream) in known.adoptable(&self.machine) {
                    self.step(now, Event::Adopted(Box::new(meta), id, upstream), out);
                }
                let units: Vec<Unit> = self.units.values().cloned().collect();
                self.systemd(now, at, units, out);
                self.publish(now, out);
            }
            (Tag::Adopt, Err(_)) => out.push(Out::After(AGAIN, Timer::Adopt)),
            (Tag::Publish, answer) => {
                let next = self.publisher.answered(self.own(now), self.lease, answer);
                let again = matches!(next, Next::Nothing | Next::Written(..));
                self.next(now, next, out);
                if again {
                    self.publish(now, out);
                }
            }
            (Tag::Follow(topic), Ok(Answer::Listing { revision, items })) => {
                self.listing.insert(topic, false);
                match topic {
                    Topic::Services => {
                        self.router.reset(self.own(now), revision, &items);
                        self.after_router(now, out);
                    }
                    Topic::Routers => {
                        let read =
                            |kv: &mvcc::KeyValue| serde_json::from_slice::<RouterRecord>(&kv.value).ok();
                        self.routers =
                            items.iter().filter_map(read).map(|r| (r.machine.clone(), r)).collect();
                        let routers = self.routers.clone();
                        self.step(now, Event::Routers(routers), out);
                    }
                }
            }
            (Tag::Follow(topic), _) => {
                self.listing.insert(topic, false);
                self.lost(now, topic, out);
            }
            (Tag::Ask(gone), Ok(Answer::Left(left))) if !left.is_zero() => {
                self.router.explain(self.own(now), &gone);
                self.after_router(now, out);
            }
            (Tag::Report(record, lease), answer) => {
                self.reporting = false;
                if matches!(answer, Ok(Answer::Committed { yes: true, .. })) {
                    self.reported = Some((record, lease));
                    self.report(now, out);
                } else {
                    self.report_after(now, RETRY / 2, out);
                }
            }
            _ => {}
        }
    }

    /// A stream has broken off, or cannot be had.
    pub(super) fn lost(&mut self, now: Duration, topic: Topic, out: &mut Vec<Out>) {
        if topic == Topic::Services {
            self.router.lost(self.own(now));
        }
        out.push(Out::After(RETRY, Timer::Relist(topic)));
    }

    /// Changes of the hub.
    pub(super) fn changes(&mut self, now: Duration, topic: Topic, batch: &mvcc::Batch, out: &mut Vec<Out>) {
        let events: Vec<_> = batch
            .events
            .iter()
            .filter(|event| event.kv.key.starts_with(topic.prefix().as_bytes()))
            .cloned()
            .collect();
        let revision = Revision(batch.revision.0);
        match topic {
            Topic::Services => {
                self.router.changed(self.own(now), revision, &events);
                self.after_router(now, out);
            }
            Topic::Routers => {
                for event in events {
                    let key = str::from_utf8(&event.kv.key).unwrap_or_default();
                    match serde_json::from_slice::<RouterRecord>(&event.kv.value) {
                        Ok(record) if event.kind == mvcc::EventKind::Put => {
                            drop(self.routers.insert(record.machine.clone(), record));
                        }
                        _ => self.routers.retain(|machine, _| keys::router(machine) != key),
                    }
                }
                let routers = self.routers.clone();
                self.step(now, Event::Routers(routers), out);
            }
        }
    }

    /// What follows when what is served may have changed.
    pub(super) fn after_router(&mut self, now: Duration, out: &mut Vec<Out>) {
        for (gone, lease) in self.router.doubts() {
            let own = self.own(now);
            match lease {
                None => self.router.explain(own, &gone),
                Some(lease) => out.push(Out::Call(Tag::Ask(gone), Request::TimeLeft(lease))),
            }
        }
        self.report(now, out);
        self.set_ticks(now, out);
    }

    /// Tells the hub what is served here, if that has changed.
    pub(super) fn report(&mut self, now: Duration, out: &mut Vec<Out>) {
        let (Some(mut record), Some(lease)) = (self.router.record(&self.machine), self.lease) else { return };
        if self.planted == Some(Planted::AcknowledgesEarly) {
            record.inflight.clear();
            record.revision = Revision(record.revision.0 + 1000);
        }
        if self.reporting || self.reported.as_ref() == Some(&(record.clone(), lease)) {
            return;
        }
        let ends =
            self.reported.as_ref().is_none_or(|(before, of)| !before.inflight.is_empty() || *of != lease);
        let pause = if ends || self.router.drains() { SOON } else { LATER };
        let own = self.own(now);
        let due = self.last_report.map_or(own, |last| last + pause);
        if due > own {
            self.report_after(now, due - own, out);
            return;
        }
        self.last_report = Some(own);
        self.reporting = true;
        let value = serde_json::to_vec(&record).expect("records always render");
        let key = keys::router(&self.machine);
        let writes = vec![Write::Put { key, value: value.into(), lease: Some(lease) }];
        out.push(Out::Call(Tag::Report(record, lease), Request::Commit { guards: Vec::new(), writes }));
    }

    fn report_after(&mut self, now: Duration, pause: Duration, out: &mut Vec<Out>) {
        let due = self.own(now) + pause;
        if self.report_due.is_none_or(|set| due < set) {
            self.report_due = Some(due);
            out.push(Out::After(pause, Timer::Report));
        }
    }
}
