//! What must hold at every step, and when the faults are over.
//!
//! Invariant: judged by what really is (apps, requests under way, the hub's history), never by what somebody reports.

use super::{router::Router, world::World};
use crate::time::Time;
use model::{Health, Revision, ServiceName};
use muster_core::router::Catalog;
use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

/// What must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// No request is sent to an instance that drains, is out by its check, or is not in the list.
    NothingToTheDraining,
    /// An instance that fails its check gets nothing new once that is known: three checks, and the way to a router.
    FailedIsOut,
    /// While the list has somebody, a request has somewhere to go: failures never empty a service.
    SomebodyIsChosen,
    /// Further tries stay within the budget.
    BudgetHolds,
    /// A unit gets SIGTERM when no live router has anything for it, or `Drain=` is over, or nobody could be told.
    StopWaits,
    /// A router serves what the hub has as of its revision, and besides only what vanished together.
    ServesTheRegistry,
    /// What vanished together, by the end of leases, is served on.
    MassLossIsHeld,
    /// The shown file is what was served, and reloads keep their distance.
    FilesFollow,
    /// When the faults are over everything healthy is registered and served everywhere, and nothing else.
    ComesToRest,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NothingToTheDraining => "nothing new goes to an instance that drains or failed",
            Self::FailedIsOut => "an instance that fails its check is not served once it is known",
            Self::SomebodyIsChosen => "failures never leave a service without an endpoint",
            Self::BudgetHolds => "tries stay within the budget",
            Self::StopWaits => "a stop waits for the routers",
            Self::ServesTheRegistry => "a router serves what the hub has",
            Self::MassLossIsHeld => "what vanishes together is served on",
            Self::FilesFollow => "files show what is served, at their pace",
            Self::ComesToRest => "everything healthy is served in the end",
        })
    }
}

/// A rule that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// When.
    pub at: Time,
    /// Which.
    pub rule: Rule,
    /// By what.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} BROKEN: {}: {}", self.at, self.rule, self.what)
    }
}

/// So long it may take until a failed check is known everywhere, when nothing else is wrong: three checks, each a second
/// after the last and given up after 0.8 s, and the slowest way through the hub.
pub(super) const KNOWN: Duration = Duration::from_secs(9);
/// How long instances that vanished together are served on, as routers are told.
pub(super) const HOLD: Duration = Duration::from_secs(30);
/// Instances that vanish within this time vanish together.
const TOGETHER: Duration = Duration::from_secs(10);

/// The hub's catalogs by revision, and how keys came to be gone.
#[derive(Debug, Default)]
pub(super) struct History {
    catalogs: BTreeMap<Revision, Arc<Catalog>>,
    latest: Catalog,
    /// Upstream keys whose last end was their lease's.
    pub(super) expired: BTreeMap<(ServiceName, String), Revision>,
}

impl History {
    /// The catalog as the hub had it.
    pub(super) fn at(&self, revision: Revision) -> Option<Arc<Catalog>> {
        self.catalogs.range(..=revision).next_back().map(|(_, catalog)| Arc::clone(catalog))
    }

    pub(super) fn latest(&self) -> &Catalog {
        &self.latest
    }

    /// The hub changed.
    pub(super) fn note(&mut self, batch: &mvcc::Batch, by_lease: bool) {
        for event in &batch.events {
            let key = str::from_utf8(&event.kv.key).unwrap_or_default();
            let upstream = match model::keys::service(key) {
                Some((service, model::keys::ServiceKey::Upstream(instance))) => {
                    Some((service, instance.to_owned()))
                }
                _ => None,
            };
            match event.kind {
                mvcc::EventKind::Put => {
                    self.latest.put(key, &event.kv.value);
                    upstream.map(|id| self.expired.remove(&id));
                }
                mvcc::EventKind::Delete => {
                    self.latest.delete(key);
                    if by_lease && let Some(id) = upstream {
                        self.expired.insert(id, Revision(batch.revision.0));
                    }
                }
            }
        }
        self.catalogs.insert(Revision(batch.revision.0), Arc::new(self.latest.clone()));
        while self.catalogs.len() > 4000 {
            self.catalogs.pop_first();
        }
    }
}

/// What a router served before, and when instances were last seen to vanish from the hub's word.
#[derive(Debug, Default)]
pub(super) struct Watched {
    before: Catalog,
    vanished: BTreeMap<(ServiceName, String), Duration>,
}

impl Watched {
    /// Looks at a router that may have changed; `now` is its own time.
    pub(super) fn look(
        &mut self,
        now: Duration,
        away: bool,
        router: &Router,
        history: &History,
    ) -> Option<(Rule, String)> {
        let served = router.served();
        if let Some(broken) = serves_the_registry(router, history) {
            return Some(broken);
        }
        let before = std::mem::replace(&mut self.before, served.clone());
        // What was routable, and is known to nobody any more.
        for (service, view) in &before.services {
            for (instance, _) in view.routable() {
                let id = (service.clone(), instance.clone());
                let unknown = |catalog: &Catalog| {
                    !catalog.services.get(service).is_some_and(|view| view.instances.contains_key(instance))
                };
                if unknown(&router.catalog) {
                    self.vanished.entry(id).or_insert(now);
                } else {
                    self.vanished.remove(&id);
                }
            }
        }
        let mut broken = None;
        for (service, view) in &before.services {
            let is_gone = |instance: &String| {
                !served.services.get(service).is_some_and(|view| view.instances.contains_key(instance))
            };
            let lost: Vec<&String> =
                view.routable().map(|(instance, _)| instance).filter(|i| is_gone(i)).collect();
            // Those whose lease ended, not long ago, and nobody said anything.
            let by_lease = |instance: &&&String| {
                let id = (service.clone(), (**instance).clone());
                let recent = self.vanished.get(&id).is_some_and(|at| now < *at + HOLD);
                history.expired.contains_key(&id) && recent
            };
            let vanished =
                self.vanished.iter().filter(|((of, _), at)| of == service && now < **at + TOGETHER).count();
            let left = router.catalog.services.get(service).map_or(0, |view| view.routable().count());
            let wrongly = lost.iter().filter(by_lease).count();
            if wrongly > left && vanished > left && !away {
                broken = Some((
                    Rule::MassLossIsHeld,
                    format!(
                        "{service}: {lost:?} vanished with their leases, {left} are left, and they are served no more"
                    ),
                ));
            }
        }
        self.vanished.retain(|_, at| now < *at + HOLD * 2);
        broken
    }
}

/// What it serves is what the hub had at its revision, but for what it holds.
fn serves_the_registry(router: &Router, history: &History) -> Option<(Rule, String)> {
    if !router.known {
        return None;
    }
    let truth = history.at(router.revision)?;
    for (service, view) in &router.served().services {
        let there = truth.services.get(service);
        for (instance, endpoint) in view.routable() {
            let known = there.and_then(|there| there.instances.get(instance));
            let same = known.is_some_and(|known| known.routable() == Some(endpoint));
            let held = known.is_none() && router.holds(service);
            if !same && !held {
                let what =
                    format!("{service}/{instance} is served at {endpoint}, and the hub says {known:?}");
                return Some((Rule::ServesTheRegistry, what));
            }
        }
    }
    for (service, view) in &truth.services {
        for (instance, endpoint) in view.routable() {
            let here = router
                .served()
                .services
                .get(service)
                .and_then(|view| view.instances.get(instance)?.routable());
            if here != Some(endpoint) {
                return Some((
                    Rule::ServesTheRegistry,
                    format!("{service}/{instance} at {endpoint} is not served"),
                ));
            }
        }
    }
    None
}

/// What is not as it should be, now that nothing goes wrong any more.
pub(super) fn missing(world: &World) -> Vec<String> {
    let mut missing = Vec::new();
    let latest = world.history.latest();
    let mut wanted: BTreeMap<(ServiceName, String), String> = BTreeMap::new();
    for machine in &world.machines {
        for app in &machine.apps {
            let (service, instance) = (app.service.clone(), app.instance.clone());
            if app.is_well(world.now()) {
                wanted.insert((service, instance), format!("{}:80", app.address));
            } else {
                missing.push(format!("{} does not run as it should", app.unit));
            }
        }
        if !machine.is_well() {
            missing.push(format!("the daemon of {} does not run", machine.host));
        }
    }
    let there: BTreeMap<(ServiceName, String), String> = latest
        .services
        .iter()
        .flat_map(|(service, view)| {
            view.routable().map(|(i, endpoint)| ((service.clone(), i.clone()), endpoint.to_string()))
        })
        .collect();
    for (id, address) in &wanted {
        match there.get(id) {
            None => missing.push(format!("{}/{} is healthy and not registered", id.0, id.1)),
            Some(other) if other != address => {
                missing.push(format!("{}/{} is at {address} and registered at {other}", id.0, id.1));
            }
            Some(_) => {}
        }
    }
    for id in there.keys().filter(|id| !wanted.contains_key(*id)) {
        missing.push(format!("{}/{} is registered and should not be", id.0, id.1));
    }
    for view in latest.services.values().flat_map(|view| &view.instances) {
        if view.1.meta.as_ref().is_some_and(|meta| meta.health == Health::Critical) || view.1.state.is_some()
        {
            missing.push(format!("{} is not in service", view.0));
        }
    }
    for machine in &world.machines {
        let Some(agent) = &machine.agent else { continue };
        if agent.router.served().services != latest.services {
            missing.push(format!("the router of {} serves something else than the hub has", machine.host));
        }
        if agent
            .router
            .shown
            .as_ref()
            .is_none_or(|shown| shown.effect_since(latest) != muster_core::router::Effect::Nothing)
        {
            missing.push(format!("the file of {} shows something else than the hub has", machine.host));
        }
        let stands = |balancer: &muster_core::balance::Balancer| {
            balancer.endpoints().any(|one| one.standing != muster_core::balance::Standing::In)
        };
        if agent.router.services.values().any(|service| stands(&service.balancer)) {
            missing.push(format!("the router of {} keeps a healthy endpoint out", machine.host));
        }
    }
    missing
}
