//! The cluster network of one machine, as its own API shows it: status, a doctor's findings, and metrics for
//! Prometheus. Types, routes and client of these in one place.
//!
//! These paths answer for the machine that is asked, and for no other.

use crate::{
    client::{Client, ClientError},
    types::ApiError,
};
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::Method;
use model::{MachineId, SubnetKey, UnitName};
use serde::{Deserialize, Serialize};
use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr},
};

/// `GET /v1/network`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Which machine.
    pub machine: Option<MachineId>,
    /// Which of its networks; empty for the one that every machine has.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Whether the datapath and the rules are as they should be.
    pub ready: bool,
    /// What keeps it from being so, or what was refused; the datapath stays as it was meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// `vxlan`, `host-gw`, `wireguard` or `alloc`.
    pub backend: String,
    /// All of the cluster network.
    pub network: String,
    /// This machine's share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<SubnetKey>,
    /// The machine's address on the machines' network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_ip: Option<IpAddr>,
    /// Our device; empty where the backend has none.
    pub device: String,
    /// What containers may send at once, in bytes.
    pub mtu: u32,
    /// Peers that the hub has forgotten and that are held.
    pub held: usize,
    /// What was done by hand to routes, entries, addresses and devices, and was repaired, since the daemon started.
    pub repaired: u64,
    /// How often the rules were put in place again for the same reason.
    pub rules_repaired: u64,
    /// How often the kernel was compared with what it should be.
    pub rounds: u64,
    /// How long the last round took, in microseconds.
    pub last_round: u64,
    /// The other machines.
    pub peers: Vec<NetworkPeer>,
    /// Units of this machine that have an address of their own, by their names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<UnitAddress>,
    /// The machine's other networks, which have none themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<NetworkStatus>,
}

/// A unit with `Address=own`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnitAddress {
    /// Which unit.
    pub unit: UnitName,
    /// What it has.
    pub address: Ipv4Addr,
}

/// Another machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkPeer {
    /// Its subnet.
    pub subnet: String,
    /// Where it is reached.
    pub public_ip: IpAddr,
    /// How: `vxlan 02:…`, `direct`, or `wireguard` with the start of its key.
    pub via: String,
    /// WireGuard: how long ago keys were agreed on, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handshake: Option<u64>,
}

/// `GET /v1/network/doctor`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// One for each peer.
    pub peers: Vec<Finding>,
}

/// What a doctor says of one peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Which.
    pub peer: NetworkPeer,
    /// How long a small packet through the overlay took there and back, in microseconds; absent when none came back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip: Option<u64>,
    /// Whether the peer's machine answers on the machines' own network.
    pub underlay: bool,
    /// Whether packets of the overlay's full MTU arrive.
    pub full_size: bool,
    /// Whether TCP is answered.
    pub tcp: bool,
    /// `nobody`, `underlay`, `firewall`, `mtu` or `checksum`.
    pub culprit: String,
    /// What to do.
    pub remedy: String,
}

/// What the server answers these from.
pub trait Network: Clone + Send + Sync + 'static {
    /// How the network is; an error where the machine is not on it.
    fn network(&self) -> Result<NetworkStatus, ApiError>;
    /// Probes every peer.
    fn examine(&self) -> impl Future<Output = Result<Findings, ApiError>> + Send;
    /// In Prometheus' text format.
    fn metrics(&self) -> String;
}

pub(crate) fn routes<S: Network>() -> Router<S> {
    Router::new()
        .route("/v1/network", get(network::<S>))
        .route("/v1/network/doctor", get(examine::<S>))
        .route("/metrics", get(metrics::<S>))
        .route("/readyz", get(ready::<S>))
}

async fn network<S: Network>(State(service): State<S>) -> Result<Json<NetworkStatus>, ApiError> {
    service.network().map(Json)
}

async fn examine<S: Network>(State(service): State<S>) -> Result<Json<Findings>, ApiError> {
    service.examine().await.map(Json)
}

async fn metrics<S: Network>(State(service): State<S>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], service.metrics()).into_response()
}

/// 200 when the datapath has converged, or when the machine is not on the network at all.
async fn ready<S: Network>(State(service): State<S>) -> Response {
    match service.network() {
        Ok(status) if !status.ready => {
            let problem = status.problem.unwrap_or_else(|| "the cluster network is not up yet".to_owned());
            (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")).into_response()
        }
        _ => (StatusCode::OK, "ok\n").into_response(),
    }
}

impl Client {
    /// How the cluster network of the asked machine is.
    pub async fn network(&self) -> Result<NetworkStatus, ClientError> {
        self.ask(Method::GET, "/v1/network", None::<&()>).await
    }

    /// Has the asked machine probe every peer.
    pub async fn examine(&self) -> Result<Findings, ClientError> {
        self.ask(Method::GET, "/v1/network/doctor", None::<&()>).await
    }
}
