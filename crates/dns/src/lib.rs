//! The cluster's name server: answers for the cluster's own zone from a snapshot in memory, and passes everything else
//! on to the machine's usual resolvers.
//!
//! ```text
//! query ──▶ server ──▶ message: whose name is it?
//!                        ├─ ours   ──▶ muster_core::dns, from the snapshot ──▶ answer
//!                        └─ others ──▶ forward: cache, else an upstream    ──▶ answer
//! ```
//!
//! Not here: what names mean (`muster_core::dns`), and the hub: a question never waits for it. Invariant: whoever sends
//! what, the server goes on; and only containers and this machine get answers about other people's names.
#![warn(missing_docs)]

mod cache;
mod config;
mod forward;
mod message;
mod metrics;
mod server;

pub use config::{DnsConfig, DnsError, Upstream};
pub use metrics::Metrics;
pub use muster_core::dns::{Instance, Snapshot};
pub use server::{Server, serve};
