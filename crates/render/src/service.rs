//! Services as templates see them.
//!
//! Invariant: no text in here can end a directive, a string or a comment of the file it is put into: names are DNS labels,
//! addresses are parsed, all else has the characters that names of hosts and units have.

use crate::KeyTree;
use model::{Endpoint, Instance, ServiceName};
use muster_core::router::{Catalog, InstanceView, ServiceView, project};
use serde::Serialize;
use std::collections::BTreeMap;

/// What is rendered.
#[derive(Debug, Clone, Default)]
pub struct Data {
    /// Services that have an endpoint.
    pub services: Vec<Service>,
    /// The hub's keys that the template asks for.
    pub keys: KeyTree,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// The port of its own, if it has one.
    pub port: Option<u16>,
    /// Other host names that it has.
    pub hosts: Vec<String>,
    /// How it is balanced: the word before a colon, and what follows it.
    pub balance: Option<String>,
    /// How long an answer may take to begin, in milliseconds.
    pub timeout: Option<u64>,
    /// The largest request body, in bytes.
    pub max_body: Option<u64>,
    /// How many other instances a request may be tried on.
    pub retries: Option<u32>,
    /// Its endpoints, by instance.
    pub endpoints: Vec<ServiceEndpoint>,
}

/// An endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServiceEndpoint {
    /// The instance's name, fit to stand in a comment.
    pub instance: String,
    /// `<address>:<port>`.
    pub address: String,
    /// The address alone.
    pub host: String,
    /// The port alone.
    pub port: u16,
    /// Its share of the traffic relative to the others, if it is not the usual one.
    pub weight: Option<u32>,
    /// The machine's name.
    pub machine: String,
    /// The unit.
    pub unit: String,
    /// Where Prometheus finds its metrics, and below which path.
    pub metrics: project::Metrics,
}

impl Data {
    /// Of the router's model.
    pub fn new(catalog: &Catalog, keys: KeyTree) -> Self {
        let services = catalog.services.iter().map(|(name, view)| Service::from_view(name, view));
        Self { services: services.filter(|service| !service.endpoints.is_empty()).collect(), keys }
    }
}

impl Service {
    /// A service of which nothing but endpoints is known.
    pub fn new(name: &ServiceName, endpoints: &BTreeMap<Instance, Endpoint>) -> Self {
        let view =
            |endpoint: &Endpoint| InstanceView { endpoint: Some(*endpoint), ..InstanceView::default() };
        let instances = endpoints.iter().map(|(name, endpoint)| (name.clone(), view(endpoint))).collect();
        Self::from_view(name, &ServiceView { instances, ..ServiceView::default() })
    }

    /// What is known of a service.
    pub fn from_view(name: &ServiceName, view: &ServiceView) -> Self {
        let endpoint = |(instance, at): (&Instance, Endpoint)| {
            let view = &view.instances[instance];
            let meta = view.meta.as_ref();
            ServiceEndpoint {
                instance: printable(instance),
                address: at.to_string(),
                host: at.0.ip().to_string(),
                port: at.0.port(),
                weight: meta.map(|meta| meta.weight).filter(|weight| *weight != 100),
                machine: printable(meta.map_or("", |meta| &meta.machine_name)),
                unit: printable(&meta.map(|meta| meta.unit.to_string()).unwrap_or_default()),
                metrics: project::Metrics::of(at, meta),
            }
        };
        let config = &view.config;
        Self {
            name: name.clone(),
            port: None,
            hosts: config.hosts.iter().filter(|host| is_plain_host(host)).cloned().collect(),
            balance: config.balance.as_deref().map(printable),
            timeout: config.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
            max_body: config.max_body,
            retries: config.retries,
            endpoints: view.routable().map(endpoint).collect(),
        }
    }
}

/// Anybody who may register names instances; nobody may write configuration by that.
fn printable(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@._:-".contains(c);
    text.chars().map(|c| if plain(c) { c } else { '?' }).take(80).collect()
}

fn is_plain_host(host: &str) -> bool {
    !host.is_empty()
        && host.len() <= 253
        && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-*_".contains(c))
}
