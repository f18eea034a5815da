//! A load balancer without reloads: HTTP/1.1, HTTP/2, gRPC, WebSocket and TCP, to endpoints that come and go.
//!
//! ```no_run
//! # fn main() -> Result<(), gateway::GatewayError> {
//! use gateway::{Gateway, GatewayConfig, Table};
//! let gateway = Gateway::start(GatewayConfig::default(), Table::default())?;
//! gateway.update(Table::default(), 7); // whenever something changed
//! let serves = gateway.applied().borrow().revision; // 7, as soon as all threads do
//! gateway.shutdown(std::time::Duration::from_secs(10));
//! # Ok(())
//! # }
//! ```
//!
//! Not here: where the table comes from, and which endpoint is chosen (`muster_core::balance`). Each thread is a world of
//! its own: runtime, listening sockets, connections to endpoints, and what it knows of them. Nothing is shared on a
//! request's way. Invariant: a request that may have reached an app is not sent again unless its sender allows it.

/// Lines for requests.
mod access_log;
/// Metrics, health, routes.
mod admin;
/// Bodies, and what ends with them.
mod body;
/// The configuration.
mod config;
/// What threads have in common.
mod control;
/// A request's way.
mod forward;
/// Where requests begin and end, read with suspicion.
mod framing;
/// Start, update, shutdown.
mod gateway;
/// What happens to headers.
mod headers;
/// A client's connection.
mod io;
/// Listening sockets.
mod listen;
/// Counters.
mod metrics;
/// A request as an endpoint gets it.
mod outgoing;
/// For whom a proxy speaks.
mod proxy_protocol;
/// What the gateway answers itself.
mod refusal;
/// From host and path to a service.
mod route;
/// What a client's connection speaks, and until when.
mod serve;
/// A service, in one thread.
mod service;
/// What it serves and knows, for people.
mod snapshot;
/// What is served.
mod table;
/// Handing sockets to the next process.
mod takeover;
/// Bytes both ways.
mod tcp;
/// Certificates.
mod tls;
/// An endpoint's connections.
mod upstream;
/// Frames of WebSocket, and a way to end it in order.
mod websocket;
/// One thread.
mod worker;

pub use config::{CertificateFiles, GatewayConfig, Limits};
pub use control::Applied;
pub use gateway::Gateway;
pub use listen::{Inherited, Listener, ListenerError};
pub use snapshot::{EndpointState, Snapshot};
pub use table::{
    Balance, BalanceError, Endpoint, HostPattern, HostPatternError, Policy, Route, Service, Table,
};
pub use takeover::{Takeover, inherited};
pub use tls::CertificateError;

use std::io as std_io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a gateway could not be started.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// An address is taken, or not ours, or its port needs rights.
    #[error("could not listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel says.
        source: std_io::Error,
    },
    /// A certificate or its key is of no use.
    #[error("could not use a certificate")]
    Certificate {
        /// Which file, and what is wrong with it.
        source: CertificateError,
    },
    /// The access log cannot be opened.
    #[error("could not open the access log {path}")]
    AccessLog {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        source: std_io::Error,
    },
    /// The socket for taking over cannot be had.
    #[error("could not listen on {path}")]
    Takeover {
        /// The socket.
        path: PathBuf,
        /// What the kernel says.
        source: std_io::Error,
    },
    /// The system gives no thread.
    #[error("could not start a thread")]
    Thread {
        /// What the kernel says.
        source: std_io::Error,
    },
}
