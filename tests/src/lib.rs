//! A cluster of Muster on a lab's machines: what the demonstration shows, the benchmarks measure and the end-to-end
//! tests check. Dev only: nothing that ships depends on it.

/// Muster installed on a lab's machines as `packaging/` says.
pub mod cluster;
/// The promises of registration and balancing, one row each.
pub mod discovery;
/// How long things take, on a cluster that runs.
pub mod measure;
/// Load on a cluster's gateways, with an account of every request.
pub mod traffic;

pub use cluster::{Cluster, eventually};
pub use traffic::{Account, Traffic};
