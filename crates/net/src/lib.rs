//! The cluster network in the kernel: reads what Linux has, carries out what `muster_core::overlay` planned, and
//! runs `nft` and `iptables` for the rules.
//!
//! Not here: any decision. Which device, routes and rules there should be is computed in `muster_core::overlay`.
//!
//! Invariant: every operation may be repeated. Making what is there and removing what is gone both succeed, so a
//! plan that was interrupted halfway is repaired by the next one.
#![warn(missing_docs)]

mod changes;
mod error;
mod kernel;
pub mod namespace;
mod rules;
pub mod wireguard;

pub use changes::Changes;
pub use error::NetError;
pub use kernel::{Applied, Kernel};
pub use muster_core::overlay::Underlay;
pub use rules::{
    apply_firewall, enable_forwarding, enable_forwarding6,
    peers::change_peers,
    remove_firewall,
    watch::{RulesMark, rules_mark},
};
