//! Muster's API: the types on the wire, the server and the client, in one crate so that they cannot differ.
//!
//! HTTP/1.1 with JSON, on a unix socket for local root and on TCP where the configuration says so. What the
//! server answers comes from a [`Service`]; the daemon gives the real one. What only one machine knows (status,
//! journal, exec) is asked of that machine's API, by the server that was asked first.

/// Talking to an API.
pub mod client;
/// Services for programs that discover targets.
pub mod discovery;
/// fleet's HTTP API v1.
pub mod fleet;
/// Output of a program, sent while it runs.
pub mod frames;
/// The cluster network of one machine, and metrics.
pub mod network;
/// What operators ask and order.
pub mod operations;
/// Updates.
pub mod rollouts;
/// Answering.
pub mod server;
/// What is said.
pub mod types;

pub use client::{Client, ClientError, Endpoint};
pub use discovery::Discovery;
pub use network::Network;
pub use operations::Operations;
pub use rollouts::Rollouts;
pub use server::{Place, Service, serve};
pub use types::ApiError;
