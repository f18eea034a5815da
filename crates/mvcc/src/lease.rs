//! Leases and their deadlines.
//!
//! Times are a monotonic `Duration` since some start that the caller chose. Not responsible for deleting keys: the
//! store does that when it revokes. Invariant: `deadlines` holds exactly one entry per lease.

use crate::error::Error;
use crate::noun::LeaseId;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The least time to live in seconds. etcd raises to one and a half election timeouts (1.5 s by default), rounded up.
pub const MIN_LEASE_TTL: i64 = 2;

/// The greatest time to live in seconds; etcd's, about 285 years.
pub const MAX_LEASE_TTL: i64 = 9_000_000_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    /// Seconds.
    pub(crate) ttl: i64,
    pub(crate) deadline: Duration,
    pub(crate) keys: BTreeSet<Bytes>,
}

impl Lease {
    fn full(&self) -> Duration {
        Duration::from_secs(self.ttl.unsigned_abs())
    }
}

/// All leases. Ordered maps, so that a simulation of it is repeatable.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Leases {
    leases: BTreeMap<LeaseId, Lease>,
    deadlines: BTreeSet<(Duration, LeaseId)>,
}

impl Leases {
    /// Grants a lease and tells the time to live that it got.
    pub(crate) fn grant(&mut self, now: Duration, id: LeaseId, ttl: i64) -> Result<i64, Error> {
        if id.is_none() {
            return Err(Error::LeaseNotFound);
        }
        if ttl > MAX_LEASE_TTL {
            return Err(Error::LeaseTtlTooLarge);
        }
        if self.leases.contains_key(&id) {
            return Err(Error::LeaseExists);
        }
        let ttl = ttl.max(MIN_LEASE_TTL);
        let mut lease = Lease { ttl, deadline: now, keys: BTreeSet::new() };
        lease.deadline = now + lease.full();
        self.deadlines.insert((lease.deadline, id));
        self.leases.insert(id, lease);
        Ok(ttl)
    }

    pub(crate) fn get(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.get(&id)
    }

    pub(crate) fn remove(&mut self, id: LeaseId) -> Option<Lease> {
        let lease = self.leases.remove(&id)?;
        self.deadlines.remove(&(lease.deadline, id));
        Some(lease)
    }

    /// Starts the lease's time anew. None if it does not exist or its time is over: whoever is late stays late, even
    /// if nobody has revoked it yet.
    pub(crate) fn keep_alive(&mut self, now: Duration, id: LeaseId) -> Option<i64> {
        let lease = self.leases.get_mut(&id).filter(|lease| lease.deadline > now)?;
        self.deadlines.remove(&(lease.deadline, id));
        lease.deadline = now + lease.full();
        self.deadlines.insert((lease.deadline, id));
        Some(lease.ttl)
    }

    /// Every lease with its time to live in seconds, by id.
    pub(crate) fn granted(&self) -> impl Iterator<Item = (LeaseId, i64)> {
        self.leases.iter().map(|(id, lease)| (*id, lease.ttl))
    }

    pub(crate) fn attach(&mut self, id: LeaseId, key: &Bytes) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.keys.insert(key.clone());
        }
    }

    pub(crate) fn detach(&mut self, id: LeaseId, key: &[u8]) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.keys.remove(key);
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    pub(crate) fn expired(&self, now: Duration) -> impl Iterator<Item = LeaseId> {
        self.deadlines.iter().take_while(move |(deadline, _)| *deadline <= now).map(|(_, id)| *id)
    }

    /// All leases with their time to live in seconds.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (LeaseId, i64)> {
        self.leases.iter().map(|(id, lease)| (*id, lease.ttl))
    }

    /// All ids, soonest to expire first, as etcd lists them.
    pub(crate) fn ids(&self) -> impl Iterator<Item = LeaseId> {
        self.deadlines.iter().map(|(_, id)| *id)
    }
}
