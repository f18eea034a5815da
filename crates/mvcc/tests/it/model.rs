//! A store too simple to be wrong: a full copy of all keys per revision.
//!
//! Shares no code with the real one beyond the request types. It does not know which transactions are refused; it
//! only runs those that the real store accepted, and says which ones that must be.

use bytes::Bytes;
use mvcc::{
    Compare, CompareOp, CompareTarget, Event, EventKind, KeyRange, KeyValue, LeaseId, PutRequest,
    RangeRequest, RequestOp, Revision, SortOrder, SortTarget, TxnRequest,
};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) type Keys = BTreeMap<Bytes, KeyValue>;

#[derive(Debug, Clone)]
pub(crate) struct Model {
    /// `past[r]` is what was there at revision `r`; nothing was at 0 and 1.
    pub(crate) past: Vec<Keys>,
    pub(crate) compacted: i64,
    /// Time to live and deadline in seconds.
    pub(crate) leases: BTreeMap<LeaseId, (i64, u64)>,
}

impl Model {
    pub(crate) fn new() -> Self {
        Self { past: vec![Keys::new(), Keys::new()], compacted: -1, leases: BTreeMap::new() }
    }

    pub(crate) fn revision(&self) -> i64 {
        self.past.len() as i64 - 1
    }

    pub(crate) fn now(&self) -> &Keys {
        self.past.last().expect("the model has a past")
    }

    /// Runs `work` on a copy; a new revision if it says that something changed.
    pub(crate) fn write(&mut self, work: impl FnOnce(&mut Keys, i64) -> bool) {
        let mut keys = self.now().clone();
        if work(&mut keys, self.revision() + 1) {
            self.past.push(keys);
        }
    }

    pub(crate) fn put(keys: &mut Keys, main: i64, request: &PutRequest) {
        let old = keys.get(&request.key);
        let kv = KeyValue {
            key: request.key.clone(),
            value: match old {
                Some(old) if request.ignore_value => old.value.clone(),
                _ => request.value.clone(),
            },
            create_revision: old.map_or(Revision(main), |old| old.create_revision),
            mod_revision: Revision(main),
            version: old.map_or(1, |old| old.version + 1),
            lease: match old {
                Some(old) if request.ignore_lease => old.lease,
                _ => request.lease,
            },
        };
        keys.insert(kv.key.clone(), kv);
    }

    pub(crate) fn delete(keys: &mut Keys, range: &KeyRange) -> bool {
        let before = keys.len();
        keys.retain(|key, _| !range.contains(key));
        keys.len() != before
    }

    /// Runs a transaction and tells what each of its operations answers, nested ones in their place.
    pub(crate) fn txn(&mut self, txn: &TxnRequest) -> Vec<Answer> {
        let past = self.past.clone();
        let mut answers = Vec::new();
        self.write(|keys, main| run(txn, &past, keys, main, &mut answers));
        answers
    }

    /// Keys attached to a lease.
    pub(crate) fn attached(&self, id: LeaseId) -> Vec<Bytes> {
        self.now().values().filter(|kv| kv.lease == id).map(|kv| kv.key.clone()).collect()
    }

    pub(crate) fn revoke(&mut self, id: LeaseId) {
        self.leases.remove(&id);
        self.write(|keys, _| {
            let before = keys.len();
            keys.retain(|_, kv| kv.lease != id);
            keys.len() != before
        });
    }

    /// What changed at `revision`, by key. A key put and deleted in the same revision is not in here.
    pub(crate) fn events(&self, revision: i64) -> BTreeMap<Bytes, Event> {
        let (old, new) = (&self.past[revision as usize - 1], &self.past[revision as usize]);
        let tell = |key: &Bytes| if revision > self.compacted.max(0) { old.get(key).cloned() } else { None };
        let mut events = BTreeMap::new();
        for (key, kv) in new.iter().filter(|(_, kv)| kv.mod_revision.0 == revision) {
            let prev_kv = if kv.version == 1 { None } else { tell(key) };
            let event = Event { kind: EventKind::Put, kv: kv.clone(), prev_kv };
            events.insert(key.clone(), event);
        }
        for key in old.keys().filter(|key| !new.contains_key(*key)) {
            let kv = KeyValue { key: key.clone(), mod_revision: Revision(revision), ..KeyValue::default() };
            events.insert(key.clone(), Event { kind: EventKind::Delete, kv, prev_kv: tell(key) });
        }
        events
    }

    /// Key-values, `more` and `count` of a range.
    pub(crate) fn range(&self, request: &RangeRequest) -> (Vec<KeyValue>, bool, i64) {
        select(&self.past, self.now(), request)
    }

    /// Whether nothing in the transaction could be a reason to refuse it.
    pub(crate) fn must_accept(&self, txn: &TxnRequest) -> bool {
        let (mut puts, mut deletes) = (Vec::new(), Vec::new());
        collect(txn, &mut puts, &mut deletes);
        let unique: BTreeSet<_> = puts.iter().map(|put| &put.key).collect();
        unique.len() == puts.len()
            && puts.iter().all(|put| {
                !deletes.iter().any(|range| range.contains(&put.key))
                    && (put.lease.is_none() || self.leases.contains_key(&put.lease))
                    && !put.ignore_value
                    && !put.ignore_lease
            })
    }
}

fn select(past: &[Keys], now: &Keys, request: &RangeRequest) -> (Vec<KeyValue>, bool, i64) {
    let keys = if request.revision.0 <= 0 { now } else { &past[request.revision.0 as usize] };
    let mut kvs: Vec<KeyValue> =
        keys.values().filter(|kv| request.range.contains(&kv.key)).cloned().collect();
    let count = kvs.len() as i64;
    if request.count_only {
        return (Vec::new(), false, count);
    }
    for (min, max, get) in [
        (request.min_mod_revision, request.max_mod_revision, modified as fn(&KeyValue) -> Revision),
        (request.min_create_revision, request.max_create_revision, created),
    ] {
        kvs.retain(|kv| (min.0 == 0 || get(kv) >= min) && (max.0 == 0 || get(kv) <= max));
    }
    kvs.sort_by(|a, b| {
        let ordering = match request.sort_target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        };
        if request.sort_order == SortOrder::Descend { ordering.reverse() } else { ordering }
    });
    let more = request.limit > 0 && kvs.len() as i64 > request.limit;
    if more {
        kvs.truncate(request.limit as usize);
    }
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    (kvs, more, count)
}

fn modified(kv: &KeyValue) -> Revision {
    kv.mod_revision
}

fn created(kv: &KeyValue) -> Revision {
    kv.create_revision
}

fn collect<'a>(txn: &'a TxnRequest, puts: &mut Vec<&'a PutRequest>, deletes: &mut Vec<&'a KeyRange>) {
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            RequestOp::Put(put) => puts.push(put),
            RequestOp::DeleteRange(delete) => deletes.push(&delete.range),
            RequestOp::Txn(nested) => collect(nested, puts, deletes),
            RequestOp::Range(_) | RequestOp::Refused(_) => {}
        }
    }
}

/// Whether something changed.
fn run(txn: &TxnRequest, past: &[Keys], keys: &mut Keys, main: i64, answers: &mut Vec<Answer>) -> bool {
    let holds = txn.compare.iter().all(|compare| holds(compare, &past[main as usize - 1]));
    let mut changed = false;
    answers.push(Answer::Branch(holds));
    for op in if holds { &txn.success } else { &txn.failure } {
        changed |= match op {
            RequestOp::Put(put) => {
                answers.push(Answer::Put(keys.get(&put.key).filter(|_| put.prev_kv).cloned()));
                Model::put(keys, main, put);
                true
            }
            RequestOp::DeleteRange(delete) => {
                let matching = keys.values().filter(|kv| delete.range.contains(&kv.key));
                let doomed: Vec<KeyValue> = matching.cloned().collect();
                let deleted = doomed.len() as i64;
                answers.push(Answer::Delete(deleted, if delete.prev_kv { doomed } else { vec![] }));
                Model::delete(keys, &delete.range)
            }
            RequestOp::Txn(nested) => run(nested, past, keys, main, answers),
            RequestOp::Range(request) => {
                let (kvs, more, count) = select(past, keys, request);
                answers.push(Answer::Range(kvs, more, count));
                false
            }
            RequestOp::Refused(_) => false,
        };
    }
    changed
}

/// What an operation of a transaction answers, without revisions.
#[derive(Debug, PartialEq)]
pub(crate) enum Answer {
    /// A transaction begins, and takes this branch.
    Branch(bool),
    Put(Option<KeyValue>),
    Delete(i64, Vec<KeyValue>),
    Range(Vec<KeyValue>, bool, i64),
}

fn holds(compare: &Compare, keys: &Keys) -> bool {
    let mut kvs: Vec<KeyValue> =
        keys.values().filter(|kv| compare.range.contains(&kv.key)).cloned().collect();
    if kvs.is_empty() {
        if matches!(compare.target, CompareTarget::Value(_)) {
            return false;
        }
        kvs.push(KeyValue::default());
    }
    kvs.iter().all(|kv| {
        let ordering = match &compare.target {
            CompareTarget::Version(given) => kv.version.cmp(given),
            CompareTarget::Create(given) => kv.create_revision.cmp(given),
            CompareTarget::Mod(given) => kv.mod_revision.cmp(given),
            CompareTarget::Value(given) => kv.value.cmp(given),
            CompareTarget::Lease(given) => kv.lease.cmp(given),
        };
        match compare.op {
            CompareOp::Equal => ordering.is_eq(),
            CompareOp::Greater => ordering.is_gt(),
            CompareOp::Less => ordering.is_lt(),
            CompareOp::NotEqual => ordering.is_ne(),
        }
    })
}
