//! What the hub should have of a machine's instances, against what it has: upstream, rich record and drain mark of an
//! instance belong to one transaction, under the machine's lease.
//!
//! Not here: talking to the hub, and when. Invariants: only what stands under the machine's own lease is ever deleted, and
//! only as it was written; a mark or an instance that another machine has taken over meanwhile is left alone.

use super::{Id, Record};
use model::{
    Health, InstanceState, LeaseId, MachineId, Revision, ServiceMeta, ServiceName,
    keys::{self, ServiceKey},
};
use std::collections::{BTreeMap, BTreeSet};

/// A key as the hub has it.
#[derive(Debug, Clone, Copy)]
pub struct Kv<'a> {
    /// The key.
    pub key: &'a str,
    /// Its value.
    pub value: &'a [u8],
    /// The lease that it stands under.
    pub lease: Option<LeaseId>,
    /// When it was written.
    pub written: Revision,
}

/// A condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guard {
    /// The key does not exist.
    Absent(String),
    /// The key has not been written since.
    Unchanged(String, Revision),
}

/// A write of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets a key, under the machine's lease.
    Put(String, Vec<u8>),
    /// Deletes a key.
    Delete(String),
}

/// A transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Its conditions.
    pub guards: Vec<Guard>,
    /// Its writes; with none there is nothing to do.
    pub writes: Vec<Write>,
}

/// What the hub has under `/services/`, as far as it concerns a machine.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Under its lease.
    ours: BTreeMap<String, (Vec<u8>, Revision)>,
    /// Instances' states that others have set: out of service already, and not ours to change.
    held: BTreeSet<String>,
}

impl Known {
    /// From a listing of `/services/`.
    pub fn of<'a>(items: impl IntoIterator<Item = Kv<'a>>, lease: LeaseId) -> Self {
        let mut known = Self::default();
        for kv in items {
            if kv.lease == Some(lease) {
                known.ours.insert(kv.key.to_owned(), (kv.value.to_vec(), kv.written));
            } else if matches!(keys::service(kv.key), Some((_, ServiceKey::State(_)))) {
                known.held.insert(kv.key.to_owned());
            }
        }
        known
    }

    /// Instances of which the hub has something else than it should.
    pub fn differing(&self, records: &BTreeMap<Id, Record>) -> Vec<Id> {
        let mine = self.ours.keys().filter_map(|key| id_of(key));
        let ids: BTreeSet<Id> = records.keys().cloned().chain(mine).collect();
        ids.into_iter().filter(|id| self.differs(id, records.get(id))).collect()
    }

    /// States that have to be looked at before these instances are written: what is left of an earlier run elsewhere must
    /// not keep a new one out.
    pub fn marks_of(&self, ids: &[Id]) -> Vec<String> {
        let new = |(service, instance): &&Id| !self.ours.contains_key(&keys::service_meta(service, instance));
        ids.iter().filter(new).map(|(service, instance)| keys::instance_state(service, instance)).collect()
    }

    /// The transaction that makes these instances what they should be. `marks` is what the hub has of
    /// [`Known::marks_of`].
    pub fn plan<'a>(
        &self,
        ids: &[Id],
        records: &BTreeMap<Id, Record>,
        marks: impl IntoIterator<Item = Kv<'a>>,
    ) -> Plan {
        let stale: BTreeMap<&str, Revision> = marks
            .into_iter()
            .filter(|kv| InstanceState::parse(kv.value) == Some(InstanceState::Drain))
            .map(|kv| (kv.key, kv.written))
            .collect();
        let mut plan = Plan::default();
        for id in ids {
            let (service, instance) = id;
            for (key, value) in self.values(id, records.get(id)) {
                match (value, self.ours.get(&key)) {
                    (Some(value), Some((before, _))) if *before == value => {}
                    (Some(value), _) => {
                        // A mark concerns the instance that we wrote, and no later one of another machine.
                        if key == keys::instance_state(service, instance) {
                            plan.guards.push(Guard::Absent(key.clone()));
                            let upstream = keys::upstream(service, instance);
                            let at = self.ours.get(&upstream).map(|(_, at)| *at);
                            plan.guards.extend(at.map(|at| Guard::Unchanged(upstream, at)));
                        }
                        plan.writes.push(Write::Put(key, value));
                    }
                    (None, Some((_, at))) => {
                        plan.guards.push(Guard::Unchanged(key.clone(), *at));
                        plan.writes.push(Write::Delete(key));
                    }
                    (None, None) => {
                        if let Some(at) = stale.get(key.as_str()) {
                            plan.guards.push(Guard::Unchanged(key.clone(), *at));
                            plan.writes.push(Write::Delete(key));
                        }
                    }
                }
            }
        }
        plan
    }

    /// A transaction was carried out.
    pub fn carried_out(&mut self, plan: Plan, at: Revision) {
        for write in plan.writes {
            match write {
                Write::Put(key, value) => drop(self.ours.insert(key, (value, at))),
                Write::Delete(key) => drop(self.ours.remove(&key)),
            }
        }
    }

    /// What an earlier run of the daemon has registered under the lease that goes on, with the upstream or without it.
    pub fn adoptable(&self, machine: &MachineId) -> Vec<(Id, ServiceMeta, bool)> {
        let read = |(key, (value, _)): (&String, &(Vec<u8>, Revision))| {
            let (service, ServiceKey::Meta(instance)) = keys::service(key)? else { return None };
            let meta: ServiceMeta = serde_json::from_slice(value).ok()?;
            let upstream = self.ours.contains_key(&keys::upstream(&service, instance));
            let drains = self.ours.contains_key(&keys::instance_state(&service, instance));
            let usable = meta.machine == *machine && !drains && meta.health != Health::Starting;
            usable.then(|| ((service.clone(), instance.to_owned()), meta, upstream))
        };
        self.ours.iter().filter_map(read).collect()
    }

    /// The keys of an instance, and what they should hold.
    fn values(
        &self,
        (service, instance): &(ServiceName, String),
        record: Option<&Record>,
    ) -> [(String, Option<Vec<u8>>); 3] {
        let meta = record.map(|record| serde_json::to_vec(&record.meta).expect("records always render"));
        let upstream = record.filter(|record| record.upstream);
        let upstream = upstream.map(|record| record.meta.addr.clone().into_bytes());
        let state = keys::instance_state(service, instance);
        let drains = |record: &&Record| record.draining && record.upstream && !self.held.contains(&state);
        let drain = record.filter(drains).map(|_| InstanceState::Drain.as_str().as_bytes().to_vec());
        [
            (keys::upstream(service, instance), upstream),
            (keys::service_meta(service, instance), meta),
            (state, drain),
        ]
    }

    fn differs(&self, id: &Id, record: Option<&Record>) -> bool {
        let same = |(key, value): (String, Option<Vec<u8>>)| {
            self.ours.get(&key).map(|(value, _)| value) == value.as_ref()
        };
        !self.values(id, record).into_iter().all(same)
    }
}

fn id_of(key: &str) -> Option<Id> {
    let (service, kind) = keys::service(key)?;
    match kind {
        ServiceKey::Upstream(instance) | ServiceKey::Meta(instance) | ServiceKey::State(instance) => {
            Some((service, instance.to_owned()))
        }
        ServiceKey::Config => None,
    }
}
