//! A service as one worker sees it: its balancer, its endpoints' connections, its counters.
//!
//! Invariant: what is under way is counted from the choice of an endpoint to the last byte, whatever happens between.

use crate::access_log::Line;
use crate::metrics::ServiceCounters;
use crate::table;
use crate::upstream::{Upstream, connect};
use crate::worker::Worker;
use model::ServiceName;
use muster_core::balance::{
    Balancer, Member, Moment, Outcome, Place, RetryBudget, Settings, Standing, Verdict, Wish,
};
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::info;

/// How often it is tried whether an endpoint that took no connection takes one, while requests wait for it.
const KNOCK: Duration = Duration::from_millis(50);

/// A service.
pub(crate) struct Service {
    pub(crate) name: ServiceName,
    policy: RefCell<Rc<table::Policy>>,
    balancer: RefCell<Balancer>,
    /// By place.
    upstreams: RefCell<Vec<Option<Rc<Upstream>>>>,
    budget: RefCell<RetryBudget>,
    /// Wakes whoever waits for an endpoint.
    pub(crate) changed: Notify,
    /// How many wait for an endpoint, and whether somebody looks for one that takes connections again.
    waiting: Cell<u32>,
    knocks: Cell<bool>,
    /// Somebody waits for an endpoint's requests to end.
    drains: Cell<bool>,
    pub(crate) counters: Arc<ServiceCounters>,
    worker: Weak<Worker>,
}

impl Service {
    pub(crate) fn new(name: ServiceName, worker: &Rc<Worker>) -> Self {
        Self {
            counters: worker.shared.counters(worker.index, &name),
            name,
            policy: RefCell::default(),
            balancer: RefCell::new(Balancer::new(Settings::default())),
            upstreams: RefCell::default(),
            budget: RefCell::default(),
            changed: Notify::new(),
            waiting: Cell::new(0),
            knocks: Cell::new(false),
            drains: Cell::new(false),
            worker: Rc::downgrade(worker),
        }
    }

    /// Takes what the table says of it.
    pub(crate) fn update(&self, now: Moment, service: &table::Service) {
        let policy = &service.policy;
        let settings = Settings { strategy: policy.balance.strategy(), slow_start: policy.slow_start };
        let members: Vec<_> = service.endpoints.iter().map(member).collect();
        let places = {
            let mut balancer = self.balancer.borrow_mut();
            balancer.configure(settings);
            balancer.update(now, &members)
        };
        if **self.policy.borrow() != *policy {
            *self.policy.borrow_mut() = Rc::new(policy.clone());
        }
        // Those that nothing new goes to, and whether they are gone after a drain.
        let mut gone = Vec::new();
        {
            let mut upstreams = self.upstreams.borrow_mut();
            let length = places.iter().map(|place| place.index() + 1).max().unwrap_or(0);
            if upstreams.len() < length {
                upstreams.resize(length, None);
            }
            for (place, endpoint) in places.iter().zip(&service.endpoints) {
                let entry = &mut upstreams[place.index()];
                let known = entry.as_ref().is_some_and(|known| {
                    known.instance == endpoint.instance
                        && known.address == endpoint.address
                        && known.protocol == endpoint.protocol
                });
                if !known {
                    let new = Upstream::new(endpoint.instance.clone(), endpoint.address, endpoint.protocol);
                    gone.extend(entry.replace(Rc::new(new)).map(|old| (Rc::clone(&old), old.drains.get())));
                }
                if let Some(upstream) = entry {
                    upstream.drains.set(endpoint.draining);
                    if endpoint.draining {
                        gone.push((Rc::clone(upstream), false));
                    } else {
                        upstream.open();
                    }
                }
            }
            for (index, entry) in upstreams.iter_mut().enumerate() {
                if !places.iter().any(|place| place.index() == index) {
                    gone.extend(entry.take().map(|old| (Rc::clone(&old), old.drains.get())));
                }
            }
        }
        for (upstream, over) in gone {
            upstream.close();
            if over {
                upstream.end();
            }
        }
        self.drains.set(self.balancer.borrow().endpoints().any(|e| !e.listed || e.member.draining));
        self.changed.notify_waiters();
    }

    /// It is no longer in the table.
    pub(crate) fn retire(&self, now: Moment) {
        self.update(now, &table::Service { endpoints: Vec::new(), policy: (**self.policy.borrow()).clone() });
    }

    pub(crate) fn policy(&self) -> Rc<table::Policy> {
        Rc::clone(&self.policy.borrow())
    }

    /// Chooses an endpoint; the request counts as under way there until the flight ends.
    pub(crate) fn pick(
        self: &Rc<Self>,
        now: Moment,
        random: u64,
        wish: &Wish<'_>,
    ) -> Option<(Flight, Rc<Upstream>)> {
        let place = self.balancer.borrow_mut().pick(now, random, wish)?;
        let upstream = self.upstreams.borrow().get(place.index()).cloned().flatten();
        let Some(upstream) = upstream else {
            self.balancer.borrow_mut().leave(place);
            return None;
        };
        let flight = Flight { service: Rc::clone(self), place, told: false, line: None };
        Some((flight, upstream))
    }

    /// Waits until there may be an endpoint: another table, one that is let in again, or one that takes connections again.
    pub(crate) async fn wait(self: &Rc<Self>, left: Duration) {
        ServiceCounters::add(&self.counters.held, 1);
        let waiting = Waiting::new(self);
        if !self.knocks.replace(true) {
            tokio::task::spawn_local(knock(Rc::clone(self)));
        }
        let _ = tokio::time::timeout(left, self.changed.notified()).await; // whoever waits looks again either way
        drop(waiting);
    }

    pub(crate) fn deposit(&self) {
        self.budget.borrow_mut().deposit();
    }

    pub(crate) fn withdraw(&self, now: Moment) -> bool {
        self.budget.borrow_mut().withdraw(now)
    }

    fn observe(&self, now: Moment, place: Place, outcome: Outcome) {
        let verdict = self.balancer.borrow_mut().observe(now, place, outcome);
        self.announce(place, verdict);
    }

    fn announce(&self, place: Place, verdict: Verdict) {
        if verdict == Verdict::Same {
            return;
        }
        let upstream = self.upstreams.borrow().get(place.index()).cloned().flatten();
        let Some(upstream) = upstream else { return };
        match verdict {
            Verdict::Ejected(length) => {
                ServiceCounters::add(&self.counters.ejections, 1);
                upstream.flush();
                info!(service = %self.name, instance = %upstream.instance, ?length, "endpoint ejected");
            }
            Verdict::Readmitted => {
                self.changed.notify_waiters();
                info!(service = %self.name, instance = %upstream.instance, "endpoint readmitted");
            }
            Verdict::Same => {}
        }
    }

    /// What is under way at endpoints that drain or are gone.
    pub(crate) fn draining(&self) -> Vec<(String, u64)> {
        let balancer = self.balancer.borrow();
        balancer
            .endpoints()
            .filter(|endpoint| !endpoint.listed || endpoint.member.draining)
            .map(|endpoint| (endpoint.member.instance.clone(), u64::from(endpoint.inflight)))
            .collect()
    }

    /// Whether there is nothing of it left: no endpoint, nothing under way.
    pub(crate) fn is_over(&self) -> bool {
        self.balancer.borrow().endpoints().next().is_none()
    }

    /// Endpoints that should be looked at: they could not be reached.
    pub(crate) fn suspects(&self) -> Vec<(Place, Rc<Upstream>)> {
        let balancer = self.balancer.borrow();
        let upstreams = self.upstreams.borrow();
        let with = |place: Place| Some((place, upstreams.get(place.index())?.clone()?));
        balancer.suspects().filter_map(with).collect()
    }

    /// A check has reached an endpoint.
    pub(crate) fn reached(&self, place: Place, upstream: &Rc<Upstream>) {
        let still = self.upstreams.borrow().get(place.index()).cloned().flatten();
        if still.is_some_and(|still| Rc::ptr_eq(&still, upstream)) {
            self.balancer.borrow_mut().reached(place);
        }
    }

    pub(crate) fn tidy(&self, now: std::time::Instant) {
        for upstream in self.upstreams.borrow().iter().flatten() {
            upstream.tidy(now);
        }
    }

    /// What it knows of its endpoints.
    pub(crate) fn view(&self, now: Moment) -> Vec<crate::snapshot::EndpointState> {
        let balancer = self.balancer.borrow();
        let upstreams = self.upstreams.borrow();
        balancer
            .endpoints()
            .map(|endpoint| {
                let upstream = upstreams.get(endpoint.place.index()).and_then(Option::as_ref);
                crate::snapshot::EndpointState {
                    instance: endpoint.member.instance.clone(),
                    address: endpoint.member.address,
                    generation: endpoint.member.generation,
                    weight: endpoint.member.weight,
                    draining: endpoint.member.draining,
                    listed: endpoint.listed,
                    standing: match endpoint.standing {
                        Standing::In => "in".to_owned(),
                        Standing::Probation { .. } => "probation".to_owned(),
                        Standing::Out { unreachable: true, .. } => "out, unreachable".to_owned(),
                        Standing::Out { until, unreachable: false } => {
                            let left = Duration::from_secs(until.saturating_sub(now).as_secs() + 1);
                            format!("out for {}", humantime::format_duration(left))
                        }
                    },
                    inflight: u64::from(endpoint.inflight),
                    idle: upstream.map_or(0, |upstream| upstream.idle() as u64),
                    connects: upstream.map_or(0, |upstream| upstream.connects.get()),
                    latency_micros: endpoint.latency.as_micros() as u64,
                }
            })
            .collect()
    }
}

/// Counts one who waits.
struct Waiting<'a>(&'a Cell<u32>);

impl<'a> Waiting<'a> {
    fn new(service: &'a Service) -> Self {
        service.waiting.set(service.waiting.get() + 1);
        Self(&service.waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// Tries whether an endpoint takes connections, for all who wait for one. Its kernel says no at once and at no cost.
async fn knock(service: Rc<Service>) {
    while service.waiting.get() > 0 {
        tokio::time::sleep(KNOCK).await;
        let timeout = service.policy().connect_timeout;
        let doors: Vec<_> = {
            let upstreams = service.upstreams.borrow();
            upstreams.iter().flatten().filter(|u| !u.drains.get()).map(|u| u.address).collect()
        };
        let mut asked = JoinSet::new();
        doors.into_iter().for_each(|door| drop(asked.spawn_local(connect(door, timeout))));
        while let Some(answer) = asked.join_next().await {
            if matches!(answer, Ok(Ok(_))) {
                service.changed.notify_waiters();
                break;
            }
        }
    }
    service.knocks.set(false);
}

fn member(endpoint: &table::Endpoint) -> Member {
    Member {
        instance: endpoint.instance.clone(),
        generation: endpoint.generation,
        address: endpoint.address,
        weight: endpoint.weight,
        draining: endpoint.draining,
    }
}

/// A request, or a connection, that is under way at an endpoint.
pub(crate) struct Flight {
    pub(crate) service: Rc<Service>,
    pub(crate) place: Place,
    /// The balancer knows how it went.
    told: bool,
    /// What the log will say.
    pub(crate) line: Option<Box<Line>>,
}

impl Flight {
    /// Says how it went.
    pub(crate) fn tell(&mut self, now: Moment, outcome: Outcome) {
        self.told = true;
        self.service.observe(now, self.place, outcome);
    }

    /// The body has broken off.
    pub(crate) fn broke(&mut self) {
        if let Some(worker) = self.service.worker.upgrade() {
            self.service.observe(worker.now(), self.place, Outcome::Reset);
        }
    }

    /// It has ended well.
    pub(crate) fn complete(mut self, bytes: u64) {
        ServiceCounters::add(&self.service.counters.bytes_out, bytes);
        if let Some(line) = self.line.take() {
            line.write(bytes, true);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let service = &self.service;
        {
            let mut balancer = service.balancer.borrow_mut();
            if !self.told {
                balancer.observe(Moment::ZERO, self.place, Outcome::Nothing);
            }
            balancer.leave(self.place);
        }
        if let Some(line) = self.line.take() {
            line.write(0, false);
        }
        if service.drains.get()
            && let Some(worker) = service.worker.upgrade()
        {
            worker.report();
        }
    }
}
