//! Random requests: raw protobuf, so that malformed ones are among them.
//!
//! Invariant: nothing is asked that Debian's etcd is known to die of, or to answer at random.

use crate::dice::Dice;
use etcd_client::proto as pb;

/// Where requests go: below a prefix and to leases of their own, so that many sequences can share a server. A prefix
/// must be greater than any used before: some ranges have no end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scope {
    pub(crate) prefix: String,
    /// Leases are the four ids after it.
    pub(crate) leases: i64,
}

/// The keys there are. Fewer than twelve: Go sorts as many stably, so that ties can be compared.
pub(crate) const KEYS: [&str; 7] = ["a", "ab", "abc", "b", "ba", "c", "d"];

/// Makes requests of choices.
pub(crate) struct Generator<'a> {
    pub(crate) dice: &'a mut Dice,
    pub(crate) scope: &'a Scope,
    /// The revision of the moment.
    pub(crate) current: i64,
}

impl Generator<'_> {
    pub(crate) fn key(&mut self) -> Vec<u8> {
        if self.dice.one_in(60) {
            return Vec::new();
        }
        let key = self.dice.pick(&KEYS);
        format!("{}{key}", self.scope.prefix).into()
    }

    pub(crate) fn range_end(&mut self) -> Vec<u8> {
        match self.dice.pick(&["", "", "", "\0", "b", "c", "ac", "z", "a"]) {
            end @ ("" | "\0") => end.into(),
            end => format!("{}{end}", self.scope.prefix).into(),
        }
    }

    fn revision(&mut self) -> i64 {
        if self.dice.one_in(3) { self.current + 3 - self.dice.roll(12) as i64 } else { 0 }
    }

    pub(crate) fn lease(&mut self) -> i64 {
        if self.dice.one_in(2) { 0 } else { self.some_lease() }
    }

    /// One of the four.
    pub(crate) fn some_lease(&mut self) -> i64 {
        self.scope.leases + 1 + self.dice.roll(4) as i64
    }

    pub(crate) fn put(&mut self) -> pb::PbPutRequest {
        pb::PbPutRequest {
            key: self.key(),
            value: self.dice.pick(&["", "1", "2", "3", "4"]).into(),
            lease: self.lease(),
            prev_kv: self.dice.one_in(2),
            ignore_value: self.dice.one_in(10),
            ignore_lease: self.dice.one_in(10),
        }
    }

    pub(crate) fn range(&mut self) -> pb::PbRangeRequest {
        let mut filter = || if self.dice.one_in(6) { self.current - self.dice.roll(8) as i64 } else { 0 };
        let (min_mod_revision, max_mod_revision) = (filter(), filter());
        let (min_create_revision, max_create_revision) = (filter(), filter());
        pb::PbRangeRequest {
            key: self.key(),
            range_end: self.range_end(),
            limit: self.dice.pick(&[0, 0, 1, 2, 3, -1]),
            revision: self.revision(),
            sort_order: self.dice.pick(&[0, 0, 1, 2, 2]), // 3.4 does not refuse others yet, later ones do
            sort_target: self.dice.pick(&[0, 0, 1, 2, 3, 4]),
            serializable: self.dice.one_in(4),
            keys_only: self.dice.one_in(6),
            count_only: self.dice.one_in(10),
            min_mod_revision,
            max_mod_revision,
            min_create_revision,
            max_create_revision,
        }
    }

    pub(crate) fn delete(&mut self) -> pb::PbDeleteRequest {
        pb::PbDeleteRequest { key: self.key(), range_end: self.range_end(), prev_kv: self.dice.one_in(2) }
    }

    pub(crate) fn compare(&mut self) -> pb::PbCompare {
        use pb::PbTargetUnion as Given;
        let target = self.dice.roll(5) as i32;
        let near = (self.current - self.dice.roll(6) as i64).max(0);
        let near = self.dice.pick(&[0, near]);
        pb::PbCompare {
            result: self.dice.roll(4) as i32,
            target,
            key: self.key(),
            range_end: if self.dice.one_in(3) { self.range_end() } else { vec![] },
            target_union: Some(match target {
                0 => Given::Version(self.dice.roll(4) as i64),
                1 => Given::CreateRevision(near),
                2 => Given::ModRevision(near),
                3 => Given::Value(self.dice.pick(&["", "1", "2"]).into()),
                _ => Given::Lease(self.lease()),
            }),
        }
    }

    pub(crate) fn txn(&mut self, depth: u64) -> pb::PbTxnRequest {
        let compares = self.dice.roll(3);
        let mut txn = pb::PbTxnRequest {
            compare: (0..compares).map(|_| self.compare()).collect(),
            success: self.ops(depth),
            failure: self.ops(depth),
        };
        // To keep the value or the lease of a key that the same transaction has deleted kills etcd 3.4.
        if deletes_to_the_end(&mut txn) {
            keep_nothing(&mut txn);
        }
        txn
    }

    pub(crate) fn ops(&mut self, depth: u64) -> Vec<pb::PbTxnRequestOp> {
        use pb::PbTxnOpRequest as Op;
        let count = self.dice.roll(4);
        (0..count)
            .map(|_| {
                let request = match self.dice.roll(10) {
                    0..5 => Some(Op::RequestPut(self.put())),
                    5 | 6 => Some(Op::RequestRange(self.range())),
                    7 => Some(Op::RequestDeleteRange(self.delete())),
                    8 if depth > 0 => Some(Op::RequestTxn(self.txn(depth - 1))),
                    9 if self.dice.one_in(30) => None,
                    _ => Some(Op::RequestPut(self.put())),
                };
                pb::PbTxnRequestOp { request }
            })
            .collect()
    }
}

fn requests(txn: &mut pb::PbTxnRequest) -> impl Iterator<Item = &mut pb::PbTxnOpRequest> {
    txn.success.iter_mut().chain(&mut txn.failure).filter_map(|op| op.request.as_mut())
}

fn deletes_to_the_end(txn: &mut pb::PbTxnRequest) -> bool {
    requests(txn).any(|request| match request {
        pb::PbTxnOpRequest::RequestDeleteRange(delete) => delete.range_end == b"\0",
        pb::PbTxnOpRequest::RequestTxn(nested) => deletes_to_the_end(nested),
        _ => false,
    })
}

fn keep_nothing(txn: &mut pb::PbTxnRequest) {
    requests(txn).for_each(|request| match request {
        pb::PbTxnOpRequest::RequestPut(put) => (put.ignore_value, put.ignore_lease) = (false, false),
        pb::PbTxnOpRequest::RequestTxn(nested) => keep_nothing(nested),
        _ => {}
    });
}
