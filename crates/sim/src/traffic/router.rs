//! A machine's router: `core::router` between the hub and what is served, a balancer for each service, and the tries of
//! requests. The gateway and the follower of services, without sockets.
//!
//! Invariant: it holds no decision of its own: where a request goes is `core::balance`'s, what is served `Steady`'s.

use super::world::Planted;
use model::{Health, Instance, LeaseId, Revision, RouterRecord, ServiceName, keys};
use muster_core::{
    balance::{Balancer, Member, Outcome, Place, RetryBudget, Settings, Standing, Wish},
    router::{Batch, Catalog, Effect, Gone, InstanceView, Pace, ServiceView, Steady},
};
use mvcc::{Event, EventKind, KeyValue};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

/// Other instances that a request may be tried on.
const RETRIES: usize = 2;

/// What is known of a service, and done for it.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) balancer: Balancer,
    budget: RetryBudget,
    /// Requests so far, and tries that the budget has given.
    pub(super) requests: u64,
    pub(super) withdrawn: u64,
    since: Duration,
}

#[derive(Debug)]
pub(super) struct Router {
    steady: Steady,
    pub(super) catalog: Catalog,
    leases: BTreeMap<Gone, Option<LeaseId>>,
    asked: BTreeSet<Gone>,
    pub(super) revision: Revision,
    pub(super) known: bool,
    away: Option<Duration>,
    pub(super) services: BTreeMap<ServiceName, Service>,
    /// What the file of an output that is reloaded shows.
    batch: Batch,
    pub(super) shown: Option<Catalog>,
    pub(super) reloads: Vec<Duration>,
    planted: Option<Planted>,
}

/// A request on its way through a router.
#[derive(Debug, Clone)]
pub(super) struct Attempt {
    pub(super) service: ServiceName,
    pub(super) tried: Vec<Place>,
    lost: usize,
    /// Twice is the same as once.
    again: bool,
}

impl Attempt {
    pub(super) fn new(service: ServiceName, again: bool) -> Self {
        Self { service, tried: Vec::new(), lost: 0, again }
    }
}

/// Where a request goes.
#[derive(Debug, Clone)]
pub(super) struct Picked {
    pub(super) place: Place,
    pub(super) member: Member,
    pub(super) listed: bool,
}

impl Router {
    pub(super) fn new(hold: Duration, planted: Option<Planted>) -> Self {
        Self {
            steady: Steady::new(hold),
            catalog: Catalog::default(),
            leases: BTreeMap::new(),
            asked: BTreeSet::new(),
            revision: Revision(0),
            known: false,
            away: None,
            services: BTreeMap::new(),
            batch: Batch::default(),
            shown: None,
            reloads: Vec::new(),
            planted,
        }
    }

    /// What is served.
    pub(super) fn served(&self) -> &Catalog {
        self.steady.catalog()
    }

    pub(super) fn holds(&self, service: &ServiceName) -> bool {
        self.steady.held().contains_key(service)
    }

    /// The stream has broken off.
    pub(super) fn lost(&mut self, now: Duration) {
        self.away.get_or_insert(now);
    }

    /// A listing has come.
    pub(super) fn reset(&mut self, now: Duration, revision: Revision, items: &[KeyValue]) {
        if let Some(since) = self.away.take() {
            self.steady.was_away(now.saturating_sub(since));
        }
        let pairs = items.iter().map(|kv| (str::from_utf8(&kv.key).unwrap_or_default(), &*kv.value));
        self.catalog = Catalog::from_listing(pairs);
        items.iter().for_each(|kv| self.note(kv));
        self.revision = revision;
        self.known = true;
        self.take_over(now);
    }

    /// Changes have come.
    pub(super) fn changed(&mut self, now: Duration, revision: Revision, events: &[Event]) {
        for event in events {
            let key = str::from_utf8(&event.kv.key).unwrap_or_default();
            match event.kind {
                EventKind::Put => {
                    self.note(&event.kv);
                    self.catalog.put(key, &event.kv.value);
                }
                EventKind::Delete => drop(self.catalog.delete(key)),
            }
        }
        self.revision = self.revision.max(revision);
        self.take_over(now);
    }

    fn note(&mut self, kv: &KeyValue) {
        let key = str::from_utf8(&kv.key).unwrap_or_default();
        if let Some((service, keys::ServiceKey::Upstream(instance))) = keys::service(key) {
            let lease = (kv.lease.0 != 0).then_some(LeaseId(kv.lease.0));
            self.leases.insert(Gone { service, instance: instance.to_owned() }, lease);
        }
    }

    fn take_over(&mut self, now: Duration) {
        self.steady.update(now, &self.catalog.clone());
        self.apply(now);
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Duration) {
        if self.away.is_none() && self.steady.deadline().is_some_and(|at| at <= now) {
            self.steady.tick(now);
            self.apply(now);
        }
        if self.batch.due(&Pace::default()).is_some_and(|due| due <= now) {
            self.shown = Some(self.served().clone());
            self.reloads.push(now);
            self.batch.applied(&Pace::default(), now);
        }
    }

    /// When there is something to do.
    pub(super) fn due(&self) -> Option<Duration> {
        let steady = self.steady.deadline().filter(|_| self.away.is_none());
        steady.into_iter().chain(self.batch.due(&Pace::default())).min()
    }

    /// Instances that are served although they vanished and that nobody has asked after yet, with their leases.
    pub(super) fn doubts(&mut self) -> Vec<(Gone, Option<LeaseId>)> {
        let suspects: BTreeSet<Gone> = self.steady.suspects().collect();
        let new: Vec<Gone> = suspects.difference(&self.asked).cloned().collect();
        self.asked = suspects;
        let with = |gone: Gone| {
            let lease = self.leases.get(&gone).copied().flatten();
            (gone, lease)
        };
        new.into_iter().map(with).collect()
    }

    /// Its deletion was meant.
    pub(super) fn explain(&mut self, now: Duration, gone: &Gone) {
        self.steady.explain(now, gone);
        self.apply(now);
    }

    /// Serves what is to be served now.
    fn apply(&mut self, now: Duration) {
        let served = self.steady.catalog();
        let effect = match &self.shown {
            Some(shown) => served.effect_since(shown),
            None => Effect::Removed,
        };
        self.batch.note(now, effect);
        let names: BTreeSet<ServiceName> =
            served.services.keys().chain(self.services.keys()).cloned().collect();
        for name in names {
            let members: Vec<Member> = served.services.get(&name).map(members).unwrap_or_default();
            let service = self.services.entry(name).or_insert_with(|| Service {
                balancer: Balancer::new(Settings::default()),
                budget: RetryBudget::default(),
                requests: 0,
                withdrawn: 0,
                since: now,
            });
            let members: Vec<Member> = match self.planted {
                Some(Planted::RoutesToDraining) => {
                    members.into_iter().map(|member| Member { draining: false, ..member }).collect()
                }
                Some(Planted::DropsEjected) => {
                    let out: BTreeSet<Instance> = service
                        .balancer
                        .endpoints()
                        .filter(|one| matches!(one.standing, Standing::Out { .. }) || one.inflight > 4)
                        .map(|one| one.member.instance.clone())
                        .collect();
                    members.into_iter().filter(|member| !out.contains(&member.instance)).collect()
                }
                _ => members,
            };
            service.balancer.update(now, &members);
        }
    }

    /// What balancers have left out until it can be reached.
    pub(super) fn unreachable(&self) -> Vec<(ServiceName, Place, IpAddr)> {
        let mut found = Vec::new();
        for (name, service) in &self.services {
            let suspects: BTreeSet<Place> = service.balancer.suspects().collect();
            let endpoints = service.balancer.endpoints().filter(|one| suspects.contains(&one.place));
            found.extend(endpoints.map(|one| (name.clone(), one.place, one.member.address.ip())));
        }
        found
    }

    /// A check has reached it.
    pub(super) fn reached(&mut self, service: &ServiceName, place: Place) {
        if let Some(service) = self.services.get_mut(service) {
            service.balancer.reached(place);
        }
    }

    /// Begins a request.
    pub(super) fn begin(&mut self, service: &ServiceName) {
        if let Some(service) = self.services.get_mut(service) {
            service.requests += 1;
            service.budget.deposit();
        }
    }

    /// Where it goes next.
    pub(super) fn pick(&mut self, now: Duration, random: u64, attempt: &Attempt) -> Option<Picked> {
        if attempt.tried.len() > RETRIES {
            return None;
        }
        let balancer = &mut self.services.get_mut(&attempt.service)?.balancer;
        let wish = Wish { hash: None, stick: None, tried: &attempt.tried, may_probe: attempt.again };
        let place = balancer.pick(now, random, &wish)?;
        let view = balancer.endpoints().find(|one| one.place == place)?;
        Some(Picked { place, member: view.member.clone(), listed: view.listed })
    }

    /// How it went; true if it is to be tried elsewhere.
    pub(super) fn ended(
        &mut self,
        now: Duration,
        attempt: &mut Attempt,
        place: Place,
        how: Outcome,
        sent: bool,
    ) -> bool {
        let planted = self.planted;
        let Some(service) = self.services.get_mut(&attempt.service) else { return false };
        service.balancer.finish(now, place, how);
        if matches!(how, Outcome::Answered(_) | Outcome::Unwell(_) | Outcome::Nothing) {
            return false;
        }
        attempt.tried.push(place);
        if !sent {
            return true;
        }
        if !attempt.again || attempt.lost >= RETRIES {
            return false;
        }
        attempt.lost += 1;
        let given = planted == Some(Planted::IgnoresTheBudget) || service.budget.withdraw(now);
        service.withdrawn += u64::from(given);
        given
    }

    /// Tries beyond what the budget may give (`RetryBudget`): a fifth of the requests, ten, and one a second.
    pub(super) fn overdrawn(&self, now: Duration) -> Option<String> {
        self.services.iter().find_map(|(name, service)| {
            let trickled = now.saturating_sub(service.since).as_millis() as u64;
            let may = service.requests * 200 + 10_000 + trickled;
            let over = service.withdrawn * 1000 > may;
            over.then(|| {
                format!("{name}: {} of {} requests were tried again", service.withdrawn, service.requests)
            })
        })
    }

    /// What is under way at an instance.
    pub(super) fn under_way(&self, service: &ServiceName, instance: &str) -> u64 {
        let balancer = self.services.get(service).map(|service| &service.balancer);
        let all = balancer.into_iter().flat_map(Balancer::endpoints);
        all.filter(|one| one.member.instance == instance).map(|one| u64::from(one.inflight)).sum()
    }

    /// What it tells whoever drains an instance.
    pub(super) fn record(&self, machine: &model::MachineId) -> Option<RouterRecord> {
        if !self.known {
            return None;
        }
        let mut record = RouterRecord::new(machine.clone(), self.revision);
        for (name, service) in &self.services {
            let ending = |one: &muster_core::balance::EndpointView<'_>| !one.listed || one.member.draining;
            for one in service.balancer.endpoints().filter(ending).filter(|one| one.inflight > 0) {
                let count = record.inflight.entry(name.clone()).or_default();
                *count.entry(one.member.instance.clone()).or_default() += u64::from(one.inflight);
            }
        }
        Some(record)
    }

    /// Whether something of it drains.
    pub(super) fn drains(&self) -> bool {
        let views = self.served().services.values();
        views.flat_map(|view| view.instances.values()).any(|instance| instance.state.is_some())
    }
}

/// As the gateway's table has it.
fn members(view: &ServiceView) -> Vec<Member> {
    let member = |(instance, view): (&Instance, &InstanceView)| {
        let meta = view.meta.as_ref();
        if meta.is_some_and(|meta| meta.health == Health::Critical) {
            return None;
        }
        Some(Member {
            instance: instance.clone(),
            generation: meta.map_or(0, |meta| meta.generation),
            address: view.endpoint?.0.into(),
            weight: meta.map_or(100, |meta| meta.weight),
            draining: view.state.is_some(),
        })
    };
    view.instances.iter().filter_map(member).collect()
}
