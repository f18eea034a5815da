//! Whether there is room for a write, and what is refused while an alarm is raised.
//!
//! As in etcd, a request that would exceed the quota is refused and raises an alarm, and from then on whatever adds is
//! refused until space was freed and somebody disarmed it: a hub that takes one write and refuses the next would be
//! harder to understand. A full disk is refused likewise, without an alarm to disarm. Invariant: reading, deleting,
//! compacting and defragmenting, by which space is freed, are never refused for want of space.

use crate::request::Request;
use mvcc::{Alarm, AlarmKind, Error, Record, RequestOp, Store, TxnRequest};

/// What a write takes beside its key and value, and what a lease takes; etcd's.
const KEY: usize = 256;
const LEASE: usize = 64;

/// etcd's number of an alarm in its API.
pub(crate) fn number(kind: AlarmKind) -> i32 {
    match kind {
        AlarmKind::NoSpace => 1,
        AlarmKind::Corrupt => 2,
    }
}

#[derive(Debug)]
pub(crate) struct Space {
    quota: u64,
    member: u64,
    /// Whether the disk has no room for more than deletions.
    pub(crate) disk_full: bool,
}

impl Space {
    /// `quota` is in bytes, of keys, values and their history.
    pub(crate) fn new(quota: u64, member: u64) -> Self {
        Self { quota, member, disk_full: false }
    }

    pub(crate) fn quota(&self) -> u64 {
        self.quota
    }

    /// Whether the request may be done; raises the alarm if it is the first that does not fit.
    pub(crate) fn admit(
        &self,
        store: &mut Store,
        request: &Request,
        records: &mut Vec<Record>,
    ) -> Result<(), Error> {
        if store.has_alarm(AlarmKind::Corrupt) && changes(request) {
            return Err(Error::Corrupt);
        }
        let cost = match request {
            Request::Put(put, _) => KEY + put.key.len() + put.value.len(),
            Request::Txn(txn, _) => of_txn(txn),
            Request::LeaseGrant(..) => LEASE,
            _ => 0,
        };
        if cost == 0 {
            return Ok(());
        }
        if self.disk_full || store.has_alarm(AlarmKind::NoSpace) {
            return Err(Error::NoSpace);
        }
        if store.size() + cost as u64 >= self.quota {
            let alarm = Alarm { kind: AlarmKind::NoSpace, member: self.member };
            tracing::warn!(
                quota = self.quota,
                "the quota is used up: keys may only be deleted until space is freed and the alarm disarmed \
                 (`etcdctl alarm disarm`)"
            );
            records.extend(store.alarm_raise(alarm).records);
            return Err(Error::NoSpace);
        }
        Ok(())
    }

    /// Alarms to be told: a full disk is one too, though it ends by itself.
    pub(crate) fn alarms(&self, store: &Store) -> Vec<Alarm> {
        let mut alarms: Vec<Alarm> = store.alarms().collect();
        let full = Alarm { kind: AlarmKind::NoSpace, member: self.member };
        if self.disk_full && !alarms.contains(&full) {
            alarms.push(full);
        }
        alarms
    }
}

/// What the greater branch puts.
fn of_txn(txn: &TxnRequest) -> usize {
    let of = |ops: &[RequestOp]| {
        ops.iter()
            .map(|op| match op {
                RequestOp::Put(put) => KEY + put.key.len() + put.value.len(),
                RequestOp::Txn(nested) => of_txn(nested),
                RequestOp::Range(_) | RequestOp::DeleteRange(_) | RequestOp::Refused(_) => 0,
            })
            .sum::<usize>()
    };
    of(&txn.success).max(of(&txn.failure))
}

/// Whether a request changes keys, history or leases.
fn changes(request: &Request) -> bool {
    fn writes(txn: &TxnRequest) -> bool {
        txn.success.iter().chain(&txn.failure).any(|op| match op {
            RequestOp::Put(_) | RequestOp::DeleteRange(_) => true,
            RequestOp::Txn(nested) => writes(nested),
            RequestOp::Range(_) | RequestOp::Refused(_) => false,
        })
    }
    match request {
        Request::Put(..)
        | Request::DeleteRange(..)
        | Request::Compact { .. }
        | Request::LeaseGrant(..)
        | Request::LeaseRevoke(..) => true,
        Request::Txn(txn, _) => writes(txn),
        _ => false,
    }
}
