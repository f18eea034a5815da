//! Access to the hub, whoever runs it: Muster's embedded one or an etcd cluster.
//!
//! Everything that Muster keeps goes through [`Store`]. It has two faces with one behaviour, checked by one
//! contract test: an etcd v3 endpoint, and a twin in memory for tests and simulations. This crate knows how to
//! reach the hub and what a lease, a watch and an election are; what the keys mean is `model`'s and `core`'s.

/// The machine's lease, and what is published under it.
pub mod session;
/// Reading, writing and watching keys.
pub mod store;

/// An etcd v3 endpoint.
mod etcd;
/// List, then watch, then list again: a view that cannot go stale unnoticed.
mod follow;
/// The twin in memory.
mod memory;

pub use follow::{Delta, Follow};
pub use session::{Acknowledged, Session};
pub use store::{
    CALL_TIMEOUT, Change, Changes, Guard, KeyValue, Keys, LeaseKeeper, Listing, Outcome, Store, StoreError,
    Watch, Write,
};
