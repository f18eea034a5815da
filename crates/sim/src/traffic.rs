//! The way from an app's check to a user's request, on virtual time: registrars, what they publish, routers that follow,
//! balancers that choose, and clients that ask all the while. Apps and daemons crash, the hub is away, streams break, get
//! stuck, are late or say things twice, leases end together, clocks differ, and instances are replaced one by one.
//!
//! The deciders are those that ship: `core::registrar` with `publish`, `core::router` with `Steady` and `Batch`, and
//! `core::balance`. Simulated is what is between them. [`Rule`] says what must hold; [`Scenario`] makes a run out of a seed.

/// A machine's daemon: registrar, lease, follows.
mod agent;
/// What the registrar wants, on its way to the hub.
mod publisher;
/// A machine's router: what it serves, and to whom it sends requests.
mod router;
/// What must hold.
mod rules;
/// Random runs.
mod scenario;
/// What is between them, and when things happen.
mod world;

pub use rules::{Rule, Violation};
pub use scenario::{Broken, Scenario, Step, Survived};
pub use world::Planted;
