//! The router's model: from the keys under `/services/` to the endpoints that traffic may go to, and when to
//! hand them to an output that must be reloaded.
//!
//! Not here: rendering and reloading. [`Steady`] stands between the catalog and whoever serves it. Invariant: a value that cannot be read concerns its own entry only; it is
//! kept in [`Catalog::quarantined`] with the reason, and everything else goes on.

/// What two claim.
mod conflict;
/// When an output is reloaded.
mod pace;
/// The catalog in other programs' formats.
pub mod project;
/// What is served while the hub's word is doubted.
mod steady;

pub use conflict::Conflict;
pub use pace::{Batch, Pace};
pub use steady::{Gone, PANIC_HOLD, Steady};

use model::{
    Endpoint, Health, Instance, InstanceState, ServiceConfig, ServiceMeta, ServiceName,
    keys::{self, ServiceKey},
};
use std::collections::BTreeMap;

/// Every service with its instances.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catalog {
    /// All that is known of each service. One of which nothing is known is not here.
    pub services: BTreeMap<ServiceName, ServiceView>,
    /// Keys whose values cannot be read, and why.
    pub quarantined: BTreeMap<String, String>,
}

/// What is known of a service.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServiceView {
    /// Its instances, those without an endpoint included.
    pub instances: BTreeMap<Instance, InstanceView>,
    /// How it is balanced.
    pub config: ServiceConfig,
}

/// What is known of an instance.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InstanceView {
    /// Where it listens; none while it must not be reached.
    pub endpoint: Option<Endpoint>,
    /// More about it, if its registrar says more.
    pub meta: Option<ServiceMeta>,
    /// What operators and agents say about it.
    pub state: Option<InstanceState>,
}

impl InstanceView {
    /// Where new requests may go; none while it drains or is out.
    pub fn routable(&self) -> Option<Endpoint> {
        let healthy = self.meta.as_ref().is_none_or(|meta| meta.health != Health::Critical);
        self.endpoint.filter(|_| self.state.is_none() && healthy)
    }

    fn is_unknown(&self) -> bool {
        *self == Self::default()
    }
}

impl ServiceView {
    /// The endpoints that new requests may go to.
    pub fn routable(&self) -> impl Iterator<Item = (&Instance, Endpoint)> {
        self.instances.iter().filter_map(|(name, instance)| Some((name, instance.routable()?)))
    }

    fn is_unknown(&self) -> bool {
        self.instances.is_empty() && self.config == ServiceConfig::default()
    }
}

/// What a change did to the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Traffic goes where it went.
    Nothing,
    /// An endpoint arrived, or something else about a service changed.
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
        self.change(key, Some(value))
    }

    /// Takes in a deleted key.
    pub fn delete(&mut self, key: &str) -> Effect {
        self.change(key, None)
    }

    fn change(&mut self, key: &str, value: Option<&[u8]>) -> Effect {
        self.quarantined.remove(key);
        let Some((name, kind)) = keys::service(key) else { return Effect::Nothing };
        let service = self.services.entry(name.clone()).or_default();
        let result = match kind {
            ServiceKey::Config => read(value, json).map(|config| {
                let config = config.unwrap_or_default();
                let effect = if service.config == config { Effect::Nothing } else { Effect::Added };
                service.config = config;
                effect
            }),
            ServiceKey::Upstream(instance) => {
                let endpoint =
                    read(value, |value| text(value)?.parse::<Endpoint>().map_err(|error| error.to_string()));
                // One that no longer says where it is: nobody is sent to where it was.
                let known = endpoint.as_ref().ok().copied().flatten();
                let effect = service.edit(instance, |view| view.endpoint = known);
                if let Err(reason) = endpoint {
                    self.quarantined.insert(key.to_owned(), reason);
                }
                Ok(effect)
            }
            ServiceKey::Meta(instance) => {
                read(value, json).map(|meta| service.edit(instance, |view| view.meta = meta))
            }
            ServiceKey::State(instance) => {
                let state = |value: &[u8]| {
                    InstanceState::parse(value)
                        .ok_or_else(|| "it is neither `drain` nor `maintenance`".to_owned())
                };
                read(value, state).map(|state| service.edit(instance, |view| view.state = state))
            }
        };
        if service.is_unknown() {
            self.services.remove(&name);
        }
        result.unwrap_or_else(|reason| {
            // What was known before stays.
            self.quarantined.insert(key.to_owned(), reason);
            Effect::Nothing
        })
    }

    /// What changed from `before` to `self`.
    pub fn effect_since(&self, before: &Self) -> Effect {
        if self.services == before.services {
            return Effect::Nothing;
        }
        let kept = before.services.iter().all(|(service, view)| {
            let now = self.services.get(service);
            view.routable().all(|(instance, endpoint)| {
                now.and_then(|now| now.instances.get(instance)?.routable()) == Some(endpoint)
            })
        });
        if kept { Effect::Added } else { Effect::Removed }
    }

    /// The endpoints that new requests may go to, by service; services without one are not there.
    pub fn routable(&self) -> BTreeMap<ServiceName, BTreeMap<Instance, Endpoint>> {
        let endpoints = |view: &ServiceView| -> BTreeMap<_, _> {
            view.routable().map(|(instance, endpoint)| (instance.clone(), endpoint)).collect()
        };
        let services = self.services.iter().map(|(name, view)| (name.clone(), endpoints(view)));
        services.filter(|(_, endpoints)| !endpoints.is_empty()).collect()
    }
}

impl ServiceView {
    fn edit(&mut self, instance: &str, change: impl FnOnce(&mut InstanceView)) -> Effect {
        let view = self.instances.entry(instance.to_owned()).or_default();
        let before = view.clone();
        change(view);
        let effect = match (before.routable(), view.routable()) {
            _ if before == *view => Effect::Nothing,
            (Some(before), now) if now != Some(before) => Effect::Removed,
            _ => Effect::Added,
        };
        if view.is_unknown() {
            self.instances.remove(instance);
        }
        effect
    }
}

/// A value as what it is; `None` when it was deleted.
fn read<T>(
    value: Option<&[u8]>,
    parse: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Result<Option<T>, String> {
    value.map(parse).transpose()
}

fn json<T: serde::de::DeserializeOwned>(value: &[u8]) -> Result<T, String> {
    serde_json::from_slice(value).map_err(|error| error.to_string())
}

fn text(value: &[u8]) -> Result<&str, String> {
    str::from_utf8(value).map_err(|_| "it is not UTF-8".to_owned())
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
        assert_eq!(catalog.put("/services/someapp/other", b"{}"), Effect::Nothing);
        assert_eq!(catalog.delete(KEY), Effect::Removed);
        assert_eq!(catalog, Catalog::default());
    }

    #[test]
    fn rubbish_concerns_its_own_entry_only() {
        let mut catalog = Catalog::default();
        catalog.put(KEY, b"10.1.5.2:3000");
        catalog.put("/services/someapp/upstream/someapp@2", b"10.1.6.2:3000");
        assert_eq!(catalog.put(KEY, b":3000"), Effect::Removed);
        assert_eq!(catalog.routable()[&"someapp".parse().expect("valid")].len(), 1);
        assert!(catalog.quarantined[KEY].contains("is no endpoint"));
        assert_eq!(catalog.put(KEY, b"10.1.5.2:3000"), Effect::Added);
        assert!(catalog.quarantined.is_empty());
    }

    #[test]
    fn an_instance_that_drains_is_known_and_not_routable() {
        let mut catalog = Catalog::from_listing([(KEY, &b"10.1.5.2:3000"[..])]);
        let state = "/services/someapp/state/someapp@1";
        assert_eq!(catalog.put(state, b"drain"), Effect::Removed);
        assert!(catalog.routable().is_empty());
        assert_eq!(catalog.put(state, b"nonsense"), Effect::Nothing);
        assert!(catalog.quarantined[state].contains("neither"));
        assert!(catalog.routable().is_empty(), "what was known before stays");
        assert_eq!(catalog.delete(KEY), Effect::Added);
        assert_eq!(catalog.delete(state), Effect::Added);
        assert_eq!(catalog, Catalog::default());
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
}
