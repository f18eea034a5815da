//! Load for HTTP services, with an account of every request: what was answered and how, what was lost and why, and how
//! long it took from the moment at which it should have been sent.

/// Endpoints for benchmarks.
pub mod app;
/// A load and what came of it.
pub mod load;
/// The balancers that are compared.
pub mod peers;
/// How long things took.
pub mod quantiles;
/// One connection that speaks HTTP/1.1.
mod wire;

pub use load::{Load, Method, Pace, Running, Tally, run, start};
pub use quantiles::Quantiles;
