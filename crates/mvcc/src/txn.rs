//! Transactions, and the write that every mutation is made of.
//!
//! Three steps: static checks ([`check`]), the path and the checks against the state ([`Plan`]), the writes
//! ([`Write`]). Invariant: whatever can be refused is refused before the first write, so that a transaction never
//! fails half-way.

use crate::error::Error;
use crate::index::Version;
use crate::noun::{Event, EventKind, KeyRange, KeyValue, LeaseId, Record, Revision, RowId};
use crate::range;
use crate::request::{
    Compare, CompareOp, CompareTarget, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RequestOp, ResponseOp, TxnRequest, TxnResponse,
};
use crate::store::Store;
use bytes::Bytes;
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// The most compares, and the most operations of a branch, that a transaction may have; etcd's `--max-txn-ops`.
/// A nested transaction gets what its parent left.
pub const MAX_TXN_OPS: usize = 128;

/// What can be said about a transaction without a store.
pub(crate) fn check(txn: &TxnRequest) -> Result<(), Error> {
    check_ops(txn, MAX_TXN_OPS)?;
    check_overlaps(&txn.success)?;
    check_overlaps(&txn.failure)?;
    Ok(())
}

pub(crate) fn check_range(request: &RangeRequest) -> Result<(), Error> {
    check_key(&request.range)
}

pub(crate) fn check_delete(request: &DeleteRangeRequest) -> Result<(), Error> {
    check_key(&request.range)
}

pub(crate) fn check_put(request: &PutRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && !request.lease.is_none() {
        return Err(Error::LeaseProvided);
    }
    Ok(())
}

fn check_key(range: &KeyRange) -> Result<(), Error> {
    if range.start().is_empty() { Err(Error::EmptyKey) } else { Ok(()) }
}

fn check_ops(txn: &TxnRequest, budget: usize) -> Result<(), Error> {
    let most = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    let left = budget.checked_sub(most).ok_or(Error::TooManyOps)?;
    for compare in &txn.compare {
        check_key(&compare.range)?;
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            RequestOp::Range(request) => check_range(request)?,
            RequestOp::Put(request) => check_put(request)?,
            RequestOp::DeleteRange(request) => check_delete(request)?,
            RequestOp::Txn(nested) => check_ops(nested, left)?,
            RequestOp::Refused(error) => return Err(*error),
        }
    }
    Ok(())
}

/// What a list of operations puts and deletes, nested transactions included.
#[derive(Default)]
struct Footprint<'a> {
    puts: BTreeSet<&'a Bytes>,
    deletes: Vec<&'a KeyRange>,
}

impl<'a> Footprint<'a> {
    fn add_put(&mut self, key: &'a Bytes) -> Result<(), Error> {
        if !self.puts.insert(key) { Err(Error::DuplicateKey) } else { Ok(()) }
    }

    /// etcd's interval tree takes the zero byte that means "no end" for an end before the start, so a deletion of
    /// everything from a key on overlaps nothing. Clients may count on it: replacing all keys in one transaction works.
    fn check_deletes(&self, key: &[u8]) -> Result<(), Error> {
        let overlap = self.deletes.iter().any(|range| !range.is_unbounded() && range.contains(key));
        if overlap { Err(Error::DuplicateKey) } else { Ok(()) }
    }
}

/// No key is put twice or both put and deleted, in any combination of branches that can run together; with the gaps
/// that etcd's `checkIntervals` has, whose steps these are: deletions of this level, nested transactions, puts. So a
/// key can still change more than once in a revision.
fn check_overlaps(ops: &[RequestOp]) -> Result<Footprint<'_>, Error> {
    let mut seen = Footprint::default();
    for op in ops {
        if let RequestOp::DeleteRange(request) = op {
            seen.deletes.push(&request.range);
        }
    }
    for op in ops {
        let RequestOp::Txn(nested) = op else { continue };
        let then = check_overlaps(&nested.success)?;
        let otherwise = check_overlaps(&nested.failure)?;
        for key in &then.puts {
            seen.check_deletes(key)?;
            seen.add_put(key)?;
        }
        // Only one of the two branches runs, so a key may be put in both.
        for key in otherwise.puts.iter().filter(|key| !then.puts.contains(**key)) {
            seen.check_deletes(key)?;
            seen.add_put(key)?;
        }
        seen.deletes.extend(then.deletes);
        seen.deletes.extend(otherwise.deletes);
    }
    for op in ops {
        let RequestOp::Put(request) = op else { continue };
        seen.check_deletes(&request.key)?;
        seen.add_put(&request.key)?;
    }
    Ok(seen)
}

/// Which branches run: decided for the whole tree before the first write.
pub(crate) struct Plan {
    succeeded: bool,
    /// One per nested transaction of the branch that runs, in order.
    nested: Vec<Plan>,
}

impl Plan {
    /// Evaluates the compares, and checks what depends on the state, of the branches that will run.
    pub(crate) fn make(store: &Store, txn: &TxnRequest) -> Result<Self, Error> {
        let plan = Self::path(store, txn);
        plan.check(txn, &mut |op| match op {
            RequestOp::Put(request) => store.check_kept(request).and_then(|()| store.check_lease(request)),
            _ => Ok(()),
        })?;
        plan.check(txn, &mut |op| match op {
            // Unlike outside of a transaction, a negative revision is one from before everything.
            RequestOp::Range(request) if request.revision.0 != 0 && request.revision < store.compacted => {
                Err(Error::Compacted)
            }
            RequestOp::Range(request) => store.check_revision(request.revision).map(|_| ()),
            _ => Ok(()),
        })?;
        Ok(plan)
    }

    fn path(store: &Store, txn: &TxnRequest) -> Self {
        let succeeded = txn.compare.iter().all(|compare| holds(store, compare));
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let nested = ops.iter().filter_map(|op| match op {
            RequestOp::Txn(nested) => Some(Self::path(store, nested)),
            _ => None,
        });
        Self { succeeded, nested: nested.collect() }
    }

    fn check(
        &self,
        txn: &TxnRequest,
        rule: &mut dyn FnMut(&RequestOp) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut nested = self.nested.iter();
        for op in self.branch(txn) {
            match op {
                RequestOp::Txn(inner) => {
                    if let Some(plan) = nested.next() {
                        plan.check(inner, rule)?;
                    }
                }
                op => rule(op)?,
            }
        }
        Ok(())
    }

    fn branch<'a>(&self, txn: &'a TxnRequest) -> &'a [RequestOp] {
        if self.succeeded { &txn.success } else { &txn.failure }
    }

    /// Does it. Nothing can fail any more.
    pub(crate) fn run(&self, txn: TxnRequest, write: &mut Write<'_>) -> TxnResponse {
        let mut nested = self.nested.iter();
        let ops = if self.succeeded { txn.success } else { txn.failure };
        let mut responses = Vec::with_capacity(ops.len());
        for op in ops {
            responses.push(match op {
                RequestOp::Range(request) => ResponseOp::Range(write.range(&request)),
                RequestOp::Put(request) => ResponseOp::Put(write.put(request)),
                RequestOp::DeleteRange(request) => ResponseOp::DeleteRange(write.delete_range(&request)),
                RequestOp::Txn(inner) => match nested.next() {
                    Some(plan) => ResponseOp::Txn(plan.run(inner, write)),
                    None => continue,
                },
                RequestOp::Refused(_) => continue, // by `check`, before
            });
        }
        TxnResponse { revision: Revision(0), succeeded: self.succeeded, responses }
    }
}

fn holds(store: &Store, compare: &Compare) -> bool {
    let mut any = false;
    for (_, version) in store.index.range(&compare.range, store.revision) {
        any = true;
        let ordering = match &compare.target {
            CompareTarget::Version(given) => version.version.cmp(given),
            CompareTarget::Create(given) => version.create_revision.cmp(given),
            CompareTarget::Mod(given) => version.row.main.cmp(given),
            CompareTarget::Value(given) => version.value.cmp(given),
            CompareTarget::Lease(given) => version.lease.cmp(given),
        };
        if !compare.op.accepts(ordering) {
            return false;
        }
    }
    if any {
        return true;
    }
    // Nothing there: everything but the value counts as 0; a missing value is not an empty one.
    match &compare.target {
        CompareTarget::Value(_) => false,
        CompareTarget::Version(given) => compare.op.accepts(0.cmp(given)),
        CompareTarget::Create(given) | CompareTarget::Mod(given) => compare.op.accepts(0.cmp(&given.0)),
        CompareTarget::Lease(given) => compare.op.accepts(0.cmp(&given.0)),
    }
}

impl CompareOp {
    fn accepts(self, ordering: Ordering) -> bool {
        match self {
            Self::Equal => ordering.is_eq(),
            Self::Greater => ordering.is_gt(),
            Self::Less => ordering.is_lt(),
            Self::NotEqual => ordering.is_ne(),
        }
    }
}

/// One revision in the making. Reads through it see what it has written so far.
pub(crate) struct Write<'a> {
    store: &'a mut Store,
    main: Revision,
    pub(crate) events: Vec<Event>,
    pub(crate) records: Vec<Record>,
}

impl<'a> Write<'a> {
    pub(crate) fn new(store: &'a mut Store) -> Self {
        let main = store.revision.next();
        // Most transactions change one key, and their events stay in memory: a vector's usual start is four.
        Self { store, main, events: Vec::with_capacity(1), records: Vec::with_capacity(1) }
    }

    /// The revision that reads of this transaction see.
    fn reading(&self) -> Revision {
        if self.events.is_empty() { self.store.revision } else { self.main }
    }

    fn next_row(&self) -> RowId {
        let sub = u32::try_from(self.events.len()).expect("a transaction changes fewer than 2^32 keys");
        RowId { main: self.main, sub }
    }

    pub(crate) fn range(&self, request: &RangeRequest) -> crate::request::RangeResponse {
        let current = self.reading();
        let at = if request.revision.0 <= 0 { current } else { request.revision };
        range::read(&self.store.index, request, at, current)
    }

    pub(crate) fn put(&mut self, request: PutRequest) -> PutResponse {
        let PutRequest { key, value, lease, prev_kv, ignore_value, ignore_lease } = request;
        let row = self.next_row();
        let old = self.store.index.get(&key, self.main);
        let (create_revision, version) =
            old.map_or((self.main, 1), |old| (old.create_revision, old.version + 1));
        let value = if ignore_value { old.map(|old| old.value.clone()).unwrap_or_default() } else { value };
        let old_lease = old.map_or(LeaseId::NONE, |old| old.lease);
        let lease = if ignore_lease { old_lease } else { lease };
        let previous = if prev_kv { old.map(|old| old.key_value(&key)) } else { None };
        // A creation has nothing before it, even if the same transaction deleted the key first.
        let before = if version == 1 { None } else { self.before(&key) };

        let written = Version { row, create_revision, version, lease, value: value.clone() };
        let kv = written.key_value(&key);
        if old_lease != lease {
            self.store.leases.detach(old_lease, &key);
            self.store.leases.attach(lease, &key);
        }
        self.store.index.push(key.clone(), written);
        self.records.push(Record::Put { row, key, value, lease, create_revision, version });
        self.events.push(Event { kind: EventKind::Put, kv, prev_kv: before });
        PutResponse { revision: self.main, prev_kv: previous }
    }

    pub(crate) fn delete_range(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        let doomed: Vec<KeyValue> = self
            .store
            .index
            .range(&request.range, self.main)
            .map(|(key, version)| version.key_value(key))
            .collect();
        for kv in &doomed {
            self.delete(kv);
        }
        let deleted = i64::try_from(doomed.len()).unwrap_or(i64::MAX);
        let prev_kvs = if request.prev_kv { doomed } else { Vec::new() };
        DeleteRangeResponse { revision: self.reading(), deleted, prev_kvs }
    }

    /// Deletes a key that is live.
    fn delete(&mut self, kv: &KeyValue) {
        let row = self.next_row();
        let prev_kv = self.before(&kv.key);
        self.store.leases.detach(kv.lease, &kv.key);
        self.store.index.push(kv.key.clone(), Version::tombstone(row));
        self.records.push(Record::Delete { row, key: kv.key.clone() });
        let tombstone = KeyValue { key: kv.key.clone(), mod_revision: self.main, ..KeyValue::default() };
        self.events.push(Event { kind: EventKind::Delete, kv: tombstone, prev_kv });
    }

    /// The key before this transaction, for watchers that ask for it.
    fn before(&self, key: &Bytes) -> Option<KeyValue> {
        self.store.index.get(key, self.store.revision).map(|version| version.key_value(key))
    }
}
