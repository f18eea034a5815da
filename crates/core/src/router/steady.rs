//! Between the hub's word and traffic: when most of a service vanishes at once and nobody said that it would, that is
//! more likely trouble of the hub or of the machines' leases than the end of the service. The instances that vanished
//! are served on for a while, and whoever sends traffic finds out by itself which of them answer.
//!
//! Not here: how it is found out that a deletion was meant ([`Steady::explain`] is told). Invariants: what is marked
//! as draining is never served on, nor is what the hub knows otherwise; nothing is served on for longer than the hold, the time when the hub is away left out; a
//! service that is not held is served exactly as the hub has it.

use super::{Catalog, Effect, InstanceView, ServiceView};
use model::{Instance, ServiceName};
use std::{collections::BTreeMap, time::Duration};

/// How long instances that vanished together are served on.
pub const PANIC_HOLD: Duration = Duration::from_secs(30);
/// Instances that vanish within this time vanish together: leases of machines that failed at one moment end within one
/// renewal of each other, and a hub that was away ends them when it is back.
const TOGETHER: Duration = Duration::from_secs(10);

/// An instance that vanished without a word.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gone {
    /// Its service.
    pub service: ServiceName,
    /// The instance.
    pub instance: Instance,
}

/// The catalog to serve.
#[derive(Debug, Clone)]
pub struct Steady {
    hold: Duration,
    known: bool,
    /// As the hub has it.
    latest: Catalog,
    served: Catalog,
    /// Instances that vanished lately without a word, as they were, and when.
    vanished: BTreeMap<ServiceName, BTreeMap<Instance, (InstanceView, Duration)>>,
    /// Services that are held, and until when.
    held: BTreeMap<ServiceName, Duration>,
}

impl Default for Steady {
    fn default() -> Self {
        Self::new(PANIC_HOLD)
    }
}

impl Steady {
    /// Knows nothing yet; zero for no hold at all.
    pub fn new(hold: Duration) -> Self {
        let (latest, served) = (Catalog::default(), Catalog::default());
        Self { hold, known: false, latest, served, vanished: BTreeMap::new(), held: BTreeMap::new() }
    }

    /// Takes in what the hub has now. While the hub is away there is nothing to take in, and nothing changes.
    pub fn update(&mut self, now: Duration, catalog: &Catalog) -> Effect {
        let before = std::mem::replace(&mut self.latest, catalog.clone());
        // The first thing that is heard is believed.
        if std::mem::replace(&mut self.known, true) && !self.hold.is_zero() {
            for (name, view) in &before.services {
                if self.latest.services.get(name) == Some(view) {
                    continue;
                }
                for (instance, old) in &view.instances {
                    if old.routable().is_some() && self.is_unknown(name, instance) {
                        let vanished = self.vanished.entry(name.clone()).or_default();
                        vanished.insert(instance.clone(), (old.clone(), now));
                    }
                }
            }
        }
        self.settle(now)
    }

    /// The deletion of an instance was meant: it is not served on.
    pub fn explain(&mut self, now: Duration, gone: &Gone) -> Effect {
        if let Some(vanished) = self.vanished.get_mut(&gone.service) {
            vanished.remove(&gone.instance);
        }
        self.settle(now)
    }

    /// The hub was away for so long: that time does not count, because nothing could be heard in it.
    pub fn was_away(&mut self, time: Duration) {
        self.held.values_mut().for_each(|until| *until += time);
        self.vanished.values_mut().flat_map(BTreeMap::values_mut).for_each(|(_, at)| *at += time);
    }

    /// Time has passed. Not to be called while the hub is away.
    pub fn tick(&mut self, now: Duration) -> Effect {
        self.settle(now)
    }

    /// When [`Steady::tick`] has something to do.
    pub fn deadline(&self) -> Option<Duration> {
        self.held.values().min().copied()
    }

    /// What to serve.
    pub fn catalog(&self) -> &Catalog {
        &self.served
    }

    /// Services that are held, and until when.
    pub fn held(&self) -> &BTreeMap<ServiceName, Duration> {
        &self.held
    }

    /// Instances that are served although the hub does not know them any more.
    pub fn suspects(&self) -> impl Iterator<Item = Gone> {
        self.held.keys().flat_map(|service| {
            let vanished = self.vanished.get(service).into_iter().flatten();
            vanished.map(|(instance, _)| Gone { service: service.clone(), instance: instance.clone() })
        })
    }

    fn is_unknown(&self, service: &ServiceName, instance: &str) -> bool {
        self.latest.services.get(service).is_none_or(|view| !view.instances.contains_key(instance))
    }

    fn settle(&mut self, now: Duration) -> Effect {
        let mut vanished = std::mem::take(&mut self.vanished);
        vanished.retain(|service, instances| {
            if self.held.get(service).is_some_and(|until| *until <= now) {
                // It was no mistake.
                self.held.remove(service);
                return false;
            }
            let held = self.held.contains_key(service);
            instances.retain(|instance, (_, at)| {
                self.is_unknown(service, instance) && (held || now < *at + TOGETHER)
            });
            !instances.is_empty()
        });
        self.vanished = vanished;
        self.held.retain(|service, _| self.vanished.contains_key(service));
        for (service, instances) in &self.vanished {
            let there = self.latest.services.get(service).map_or(0, |view| view.routable().count());
            // Most of what there was; what has arrived since counts as what is there.
            let suspicious = instances.len() > there;
            if !suspicious {
                self.held.remove(service);
            } else if !self.held.contains_key(service) {
                self.held.insert(service.clone(), now + self.hold);
            }
        }
        let mut served = self.latest.clone();
        for service in self.held.keys() {
            let view = served.services.entry(service.clone()).or_insert_with(|| ServiceView {
                config: self.served.services.get(service).map(|view| view.config.clone()).unwrap_or_default(),
                ..ServiceView::default()
            });
            for (instance, (old, _)) in self.vanished.get(service).into_iter().flatten() {
                view.instances.insert(instance.clone(), old.clone());
            }
        }
        let before = std::mem::replace(&mut self.served, served);
        self.served.effect_since(&before)
    }
}

#[cfg(test)]
mod tests;
