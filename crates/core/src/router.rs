//! The router's model: from the keys under `/services/` to the endpoints that traffic may go to, and when to
//! hand them to an output that must be reloaded.
//!
//! Not here: rendering and reloading. Invariant: a value that cannot be read concerns its own entry only; it is
//! kept in [`Catalog::quarantined`] with the reason, and everything else goes on.

use model::{Endpoint, Instance, ServiceName, keys};
use std::{collections::BTreeMap, time::Duration};

/// Every service with its endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalog {
    /// The endpoints of each service, by instance. Services without endpoints are not here.
    pub services: BTreeMap<ServiceName, BTreeMap<Instance, Endpoint>>,
    /// Keys whose values are no endpoints, and why.
    pub quarantined: BTreeMap<String, String>,
}

/// What a change did to the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Traffic goes where it went.
    Nothing,
    /// An endpoint arrived.
    Added,
    /// An endpoint went away or moved: traffic must stop going there.
    Removed,
}

impl Catalog {
    /// A catalog from a full listing.
    pub fn from_listing<'a>(items: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let mut catalog = Self::default();
        for (key, value) in items {
            catalog.put(key, value);
        }
        catalog
    }

    /// Takes in a written key.
    pub fn put(&mut self, key: &str, value: &[u8]) -> Effect {
        let Some((service, instance)) = keys::upstream(key) else { return Effect::Nothing };
        let endpoint = str::from_utf8(value).map_err(|_| "it is not UTF-8".to_owned());
        match endpoint.and_then(|text| text.parse::<Endpoint>().map_err(|error| error.to_string())) {
            Ok(endpoint) => {
                self.quarantined.remove(key);
                let instances = self.services.entry(service).or_default();
                match instances.insert(instance.to_owned(), endpoint) {
                    None => Effect::Added,
                    Some(before) if before == endpoint => Effect::Nothing,
                    Some(_) => Effect::Removed,
                }
            }
            Err(reason) => {
                // The instance no longer says where it is, so nobody is sent to where it was.
                let effect = self.delete(key);
                self.quarantined.insert(key.to_owned(), reason);
                effect
            }
        }
    }

    /// Takes in a deleted key.
    pub fn delete(&mut self, key: &str) -> Effect {
        self.quarantined.remove(key);
        let Some((service, instance)) = keys::upstream(key) else { return Effect::Nothing };
        let Some(instances) = self.services.get_mut(&service) else { return Effect::Nothing };
        let effect = if instances.remove(instance).is_some() { Effect::Removed } else { Effect::Nothing };
        if instances.is_empty() {
            self.services.remove(&service);
        }
        effect
    }

    /// What changed from `before` to `self`.
    pub fn effect_since(&self, before: &Self) -> Effect {
        if self.services == before.services {
            return Effect::Nothing;
        }
        let kept = before.services.iter().all(|(service, instances)| {
            let now = self.services.get(service);
            instances
                .iter()
                .all(|(instance, endpoint)| now.and_then(|now| now.get(instance)) == Some(endpoint))
        });
        if kept { Effect::Added } else { Effect::Removed }
    }
}

/// How often an output may be reloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// How long to wait for more changes after the first one: registrations come in bursts.
    pub settle: Duration,
    /// The least time between reloads. Every reload of nginx closes its clients' idle connections.
    pub interval: Duration,
    /// The same when an endpoint went away: waiting would send requests to nobody.
    pub removal_interval: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            settle: Duration::from_millis(10),
            interval: Duration::from_secs(2),
            removal_interval: Duration::from_millis(500),
        }
    }
}

/// Decides when an output is brought up to date. Times are durations since any fixed moment.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pending: Option<(Duration, Effect)>,
    applied: Option<Duration>,
}

impl Batch {
    /// Notes a change.
    pub fn note(&mut self, now: Duration, effect: Effect) {
        if effect != Effect::Nothing {
            let (since, worst) = self.pending.unwrap_or((now, effect));
            self.pending = Some((since, worst.max(effect)));
        }
    }

    /// When to apply what is pending; `None` when nothing is.
    pub fn due(&self, pace: &Pace) -> Option<Duration> {
        let (since, worst) = self.pending?;
        let interval = if worst == Effect::Removed { pace.removal_interval } else { pace.interval };
        let settled = since + pace.settle;
        Some(self.applied.map_or(settled, |applied| settled.max(applied + interval)))
    }

    /// Notes that everything pending was applied, or at least tried.
    pub fn applied(&mut self, now: Duration) {
        self.pending = None;
        self.applied = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "/services/someapp/upstream/someapp@1";

    #[test]
    fn endpoints_arrive_move_and_go() {
        let mut catalog = Catalog::default();
        assert_eq!(catalog.put(KEY, b"10.1.5.2:3000"), Effect::Added);
        assert_eq!(catalog.put(KEY, b"10.1.5.2:3000"), Effect::Nothing);
        assert_eq!(catalog.put(KEY, b"10.1.6.2:3000"), Effect::Removed);
        assert_eq!(catalog.put("/services/someapp/config", b"{}"), Effect::Nothing);
        assert_eq!(catalog.delete(KEY), Effect::Removed);
        assert_eq!(catalog, Catalog::default());
    }

    #[test]
    fn rubbish_concerns_its_own_entry_only() {
        let mut catalog = Catalog::default();
        catalog.put(KEY, b"10.1.5.2:3000");
        catalog.put("/services/someapp/upstream/someapp@2", b"10.1.6.2:3000");
        assert_eq!(catalog.put(KEY, b":3000"), Effect::Removed);
        assert_eq!(catalog.services.len(), 1);
        assert!(catalog.quarantined[KEY].contains("is no endpoint"));
        assert_eq!(catalog.put(KEY, b"10.1.5.2:3000"), Effect::Added);
        assert!(catalog.quarantined.is_empty());
    }

    #[test]
    fn a_listing_is_compared_with_what_was_known() {
        let before = Catalog::from_listing([(KEY, &b"10.1.5.2:3000"[..])]);
        let more =
            Catalog::from_listing([(KEY, &b"10.1.5.2:3000"[..]), ("/services/b/upstream/b", b"10.1.1.1:1")]);
        assert_eq!(more.effect_since(&before), Effect::Added);
        assert_eq!(before.effect_since(&more), Effect::Removed);
        assert_eq!(before.effect_since(&before), Effect::Nothing);
    }

    #[test]
    fn the_first_change_is_applied_at_once_and_the_next_wait() {
        let (pace, ms) = (Pace::default(), Duration::from_millis);
        let mut batch = Batch::default();
        assert_eq!(batch.due(&pace), None);
        batch.note(ms(1000), Effect::Added);
        batch.note(ms(1005), Effect::Added);
        assert_eq!(batch.due(&pace), Some(ms(1010)));
        batch.applied(ms(1010));
        assert_eq!(batch.due(&pace), None);
        batch.note(ms(1100), Effect::Added);
        assert_eq!(batch.due(&pace), Some(ms(3010)));
        batch.note(ms(1200), Effect::Removed);
        assert_eq!(batch.due(&pace), Some(ms(1510)));
        batch.note(ms(1300), Effect::Nothing);
        assert_eq!(batch.due(&pace), Some(ms(1510)));
    }
}
