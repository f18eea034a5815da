//! The API over real sockets, answered from a cluster in memory.

/// Requests that nobody's client sends.
mod fuzz;
/// Every request and answer that fleet's API documents.
mod golden;
/// What fleetctl 1.0 asks, and when.
mod imitation;
/// A cluster in memory.
mod memory;
/// The description of our own API.
mod openapi;
/// What an operator asks, in memory.
mod operations;
/// HTTP by hand.
mod raw;
/// A real fleetctl, where there is one.
mod real;
/// Updates, in memory.
mod rollouts;
/// Shells, and what is passed on to other machines.
mod shells;
