//! The deciders of Muster: what should happen, given what is known.
//!
//! Pure: time and randomness are arguments, nothing is read or written. Each decider turns events or
//! observations into a plan; a plan is data, each action carries its reason, and whoever carries it out has no
//! choices left.
#![warn(missing_docs)]

/// What a machine's agent asks of systemd.
pub mod agent;
/// Which endpoint of a service the next request goes to.
pub mod balance;
/// What the hub says about the cluster, read into types.
pub mod cluster;
/// What the cluster's own names mean.
pub mod dns;
/// On which machine each unit runs.
pub mod engine;
/// What to stop and to kill of the units that may not outlive their machine's lease.
pub mod fence;
/// The cluster network: subnets, datapath, rules.
pub mod overlay;
/// Which instances the hub should have, and when each is checked.
pub mod registrar;
/// Bringing a new text into units, a few at a time.
pub mod rollout;
/// From registered upstreams to the endpoints that traffic may go to.
pub mod router;
