//! The nouns of a Muster cluster, and the hub's key schema.
//!
//! Pure: no clock, no files, no sockets. Every constructor that can fail is the only place where its rule is
//! checked; whoever holds a `UnitName` holds a valid one.
#![warn(missing_docs)]

/// What happened in the cluster, and why.
pub mod event;
/// Where every key lives in the hub.
pub mod keys;
/// Machines: identity, metadata, presence.
pub mod machine;
/// The cluster network's subnets, in flannel's schema.
pub mod network;
/// Revisions and leases, as in etcd.
pub mod revision;
/// Updates of units, and the texts that they had.
pub mod rollout;
/// Services, instances and endpoints, as `/services` holds them.
pub mod service;
/// Unit names, and what the hub stores about units.
pub mod unit;

pub use event::{EventId, EventKind, EventRecord, Timestamp};
pub use machine::{
    Capacity, MachineId, MachineRecord, Maintenance, MaintenanceRecord, Metadata, MetadataRecord,
};
pub use network::{NetworkConfig, Subnet, SubnetKey, SubnetLease};
pub use revision::{LeaseId, Revision};
pub use rollout::{HistoryRecord, Progress, RolloutRecord, RolloutState, RolloutUnit};
pub use service::{
    Endpoint, Health, Instance, InstanceState, Protocol, RouterRecord, ServiceConfig, ServiceMeta,
    ServiceName, ServiceNameError,
};
pub use unit::{DesiredState, MoveRecord, ScheduleRecord, UnitName, UnitNameError, UnitRecord, UnitState};

/// The version that our own JSON records carry in `"v"`.
pub const RECORD_VERSION: u32 = 1;

/// Fields that this version does not know. They survive read-modify-write, so that an older binary does not
/// destroy what a newer one wrote.
pub type Unknown = serde_json::Map<String, serde_json::Value>;
