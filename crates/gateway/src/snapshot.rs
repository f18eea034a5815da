//! What the gateway serves and knows at a moment, for people: `muster route ls`, `/routes` on the admin port.

use model::ServiceName;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub struct Snapshot {
    /// The revision that every thread serves.
    pub revision: u64,
    /// Where it listens: the listener and its address.
    pub listeners: BTreeMap<String, SocketAddr>,
    /// Ports that could not be opened and services that are not served as they ask, with the reason.
    pub problems: BTreeMap<String, String>,
    /// Client connections.
    pub connections: usize,
    /// The routes besides each service's own name.
    pub routes: Vec<crate::Route>,
    /// The TCP ports.
    pub tcp: BTreeMap<u16, ServiceName>,
    /// What is known of each service's endpoints, all threads together.
    pub services: BTreeMap<ServiceName, Vec<EndpointState>>,
}

/// What is known of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EndpointState {
    /// Its name within the service.
    pub instance: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// How often it was started.
    pub generation: u64,
    /// Its share.
    pub weight: u32,
    /// Nothing new goes there.
    pub draining: bool,
    /// Whether the table has it; otherwise something is still under way there.
    pub listed: bool,
    /// `in`, `out for 3s`, `out, unreachable`, `probation`; of several threads' the worst.
    pub standing: String,
    /// What is under way there.
    pub inflight: u64,
    /// Idle connections to it.
    pub idle: u64,
    /// Connections made to it so far.
    pub connects: u64,
    /// How long it takes to answer, in microseconds; of several threads' the longest.
    pub latency_micros: u64,
}

/// One thread's part.
#[derive(Debug, Clone)]
pub(crate) struct WorkerState {
    pub(crate) revision: u64,
    pub(crate) services: BTreeMap<ServiceName, Vec<EndpointState>>,
}

/// All threads together.
pub(crate) fn together(parts: Vec<WorkerState>) -> (u64, BTreeMap<ServiceName, Vec<EndpointState>>) {
    let revision = parts.iter().map(|part| part.revision).min().unwrap_or(0);
    let mut all: BTreeMap<ServiceName, Vec<EndpointState>> = BTreeMap::new();
    for (name, endpoints) in parts.into_iter().flat_map(|part| part.services) {
        let known = all.entry(name).or_default();
        for endpoint in endpoints {
            let same = |other: &&mut EndpointState| {
                (&other.instance, other.address, other.generation)
                    == (&endpoint.instance, endpoint.address, endpoint.generation)
            };
            match known.iter_mut().find(same) {
                None => known.push(endpoint),
                Some(sum) => {
                    if sum.standing == "in" {
                        sum.standing = endpoint.standing;
                    }
                    sum.inflight += endpoint.inflight;
                    sum.idle += endpoint.idle;
                    sum.connects += endpoint.connects;
                    sum.latency_micros = sum.latency_micros.max(endpoint.latency_micros);
                }
            }
        }
    }
    (revision, all)
}
