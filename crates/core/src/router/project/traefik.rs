//! Traefik's KV schema: for each service a router, and its servers in numbered slots.
//!
//! Invariants: the slots of a service are numbered without gaps, and a server that stays keeps its slot unless it fills
//! one; a router that routes nothing is always there, because Traefik keeps what it has when it finds no routers at all.

use crate::router::{Catalog, ServiceView};
use model::ServiceName;
use std::collections::BTreeMap;

/// What names of our routers and services begin with; others are somebody else's.
const OURS: &str = "muster-";

/// The keys below a root.
#[derive(Debug, Clone)]
pub struct Traefik {
    root: String,
}

impl Traefik {
    /// Below Traefik's `rootKey`.
    pub fn new(root: &str) -> Self {
        Self { root: root.trim_end_matches('/').to_owned() }
    }

    /// What all of the keys begin with.
    pub fn prefixes(&self) -> [String; 2] {
        ["routers", "services"].map(|kind| format!("{}/http/{kind}/{OURS}", self.root))
    }

    /// Whether a key is one that this projection writes.
    pub fn is_ours(&self, key: &str) -> bool {
        self.prefixes().iter().any(|prefix| key.starts_with(prefix))
    }

    /// The name of the router or service that a key is of: its keys are written together.
    pub fn group(key: &str) -> &str {
        let from = key.find(OURS).unwrap_or(0);
        key[from..].split('/').next().unwrap_or("")
    }

    /// All keys with their values, where `existing` are there now.
    pub fn keys(&self, catalog: &Catalog, existing: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let root = &self.root;
        let mut keys = BTreeMap::new();
        let mut router = |name: &str, rule: String, service: &str| {
            keys.insert(format!("{root}/http/routers/{OURS}{name}/rule"), rule);
            keys.insert(format!("{root}/http/routers/{OURS}{name}/service"), service.to_owned());
        };
        router("placeholder", "Host(`placeholder.muster.invalid`)".to_owned(), "noop@internal");
        let routable = catalog.routable();
        for service in routable.keys() {
            router(service.as_str(), rule(service, &catalog.services[service]), &format!("{OURS}{service}"));
        }
        for (service, endpoints) in routable {
            let prefix = format!("{root}/http/services/{OURS}{service}/loadbalancer/servers/");
            let mut wanted: Vec<String> =
                endpoints.values().map(|endpoint| format!("http://{endpoint}")).collect();
            // Two instances at one address are one server.
            wanted.sort();
            wanted.dedup();
            let mut slots: Vec<Option<String>> = vec![None; wanted.len()];
            wanted.retain(|url| {
                let slot =
                    (0..slots.len()).find(|slot| existing.get(&format!("{prefix}{slot}/url")) == Some(url));
                if let Some(slot) = slot {
                    slots[slot] = Some(url.clone());
                }
                slot.is_none()
            });
            let mut rest = wanted.into_iter();
            for (slot, url) in slots.into_iter().enumerate() {
                let url = url.or_else(|| rest.next()).expect("there are as many slots as servers");
                keys.insert(format!("{prefix}{slot}/url"), url);
            }
        }
        keys
    }
}

/// By which requests a service is reached.
fn rule(service: &ServiceName, view: &ServiceView) -> String {
    let plain = |text: &&String, more: &str| {
        !text.is_empty()
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c) || more.contains(c))
    };
    let hosts = view.config.hosts.iter().filter(|host| plain(host, ""));
    let hosts: Vec<String> = std::iter::once(service.as_str())
        .chain(hosts.map(String::as_str))
        .map(|host| format!("Host(`{host}`)"))
        .collect();
    let paths = view.config.paths.iter().filter(|path| plain(path, "/~%+@:"));
    let paths: Vec<String> = paths.map(|path| format!("PathPrefix(`{path}`)")).collect();
    let hosts = hosts.join(" || ");
    if paths.is_empty() { format!("({hosts})") } else { format!("({hosts}) && ({})", paths.join(" || ")) }
}
