//! A whole cluster in one thread on virtual time, with seeded faults, readable scripts and rules that are checked at
//! every step.
//!
//! The deciders are those that ship: `core`'s engine and agent, `mvcc` as the hub, `unit` for unit files. Simulated
//! is what is between them: the network, clocks, machines, systemd. The drivers here are `muster`'s without sockets:
//! they hold no decision of their own.
//!
//! ```
//! let transcript = sim::script::play("cluster 2\nsubmit a.service\nstart a\nsettle\nshow running\n", None)?;
//! assert!(transcript.ends_with("> show running\n  m1   a\n  m2\n"));
//! # Ok::<(), sim::script::ScriptError>(())
//! ```
#![warn(missing_docs)]

/// A machine's daemon: `muster agent` without sockets.
pub mod daemon;
/// The hub.
pub mod hub;
/// What everybody says to each other.
pub mod message;
/// What will happen, soonest first.
pub mod queue;
/// Random runs.
pub mod random;
/// When everything is as it should be.
pub mod rest;
/// Seeded randomness.
pub mod rng;
/// What must hold at every step.
pub mod rules;
/// Scripts and transcripts.
pub mod script;
/// What is done to the cluster.
pub mod step;
/// A machine's systemd.
pub mod systemd;
/// Virtual time.
pub mod time;
/// What happened, for people.
pub mod trace;
/// The way from a check to a request.
pub mod traffic;
/// The world.
pub mod world;
