//! Transactions (reference: hub.md A.2).

use crate::{delete, put, range, show};
use mvcc::{
    Compare, CompareOp, CompareTarget, DeleteRangeRequest, Error, EventKind, KeyRange, LeaseId, PutRequest,
    RequestOp, ResponseOp, Revision, Store, TxnRequest,
};

fn put_op(key: &'static str, value: &'static str) -> RequestOp {
    RequestOp::Put(PutRequest::new(key, value))
}

fn delete_op(key: &'static str, range_end: &'static str) -> RequestOp {
    RequestOp::DeleteRange(DeleteRangeRequest::new(KeyRange::from_wire(key, range_end)))
}

fn then(success: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { success, ..TxnRequest::default() }
}

fn compare(key: &'static str, op: CompareOp, target: CompareTarget) -> Compare {
    Compare { range: KeyRange::key(key), op, target }
}

/// Whether the compares hold.
fn holds(store: &mut Store, compare: Vec<Compare>) -> bool {
    store.txn(TxnRequest { compare, ..TxnRequest::default() }).unwrap().response.succeeded
}

#[test]
fn all_of_it_is_one_revision() {
    let mut store = Store::new();
    put(&mut store, "old", "x");
    let applied = store.txn(then(vec![put_op("a", "1"), delete_op("old", ""), put_op("b", "2")])).unwrap();
    assert!(applied.response.succeeded);
    assert_eq!(applied.response.revision, Revision(3));
    let batch = applied.events.unwrap();
    assert_eq!(batch.events.len(), 3);
    assert!(batch.events.iter().all(|event| event.kv.mod_revision == Revision(3)));
    let rows: Vec<String> = applied
        .records
        .iter()
        .map(|record| match record {
            mvcc::Record::Put { row, .. } | mvcc::Record::Delete { row, .. } => row.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(rows, ["3.0", "3.1", "3.2"]);
}

#[test]
fn one_that_changes_nothing_is_no_revision() {
    let mut store = Store::new();
    put(&mut store, "a", "1");
    let applied = store.txn(then(vec![RequestOp::Range(range("a", "")), delete_op("none", "")])).unwrap();
    assert_eq!(applied.response.revision, Revision(2));
    assert!(applied.records.is_empty() && applied.events.is_none());
}

#[test]
fn reads_see_the_writes_before_them() {
    let mut store = Store::new();
    let read = || RequestOp::Range(range("\0", "\0"));
    let applied = store.txn(then(vec![read(), put_op("a", "1"), read(), delete_op("b", "")])).unwrap();
    let [
        ResponseOp::Range(before),
        ResponseOp::Put(put),
        ResponseOp::Range(after),
        ResponseOp::DeleteRange(delete),
    ] = applied.response.responses.as_slice()
    else {
        panic!("{:?}", applied.response);
    };
    assert_eq!((show(before).len(), before.revision), (0, Revision(1)));
    assert_eq!(put.revision, Revision(2));
    assert_eq!((show(after), after.revision), (vec!["a=1".to_owned()], Revision(2)));
    assert_eq!((delete.revision, delete.deleted), (Revision(2), 0));
}

#[test]
fn compares_of_every_target() {
    use CompareOp::{Equal, Greater, Less, NotEqual};
    use CompareTarget::{Create, Lease, Mod, Value, Version};
    let mut store = Store::new();
    put(&mut store, "a", "m");
    put(&mut store, "a", "m"); // create 2, mod 3, version 2
    for (op, target, expected) in [
        (Equal, Version(2), true),
        (Greater, Version(2), false),
        (Less, Version(3), true),
        (NotEqual, Version(2), false),
        (Equal, Create(Revision(2)), true),
        (Equal, Mod(Revision(3)), true),
        (Equal, Value("m".into()), true),
        (Greater, Value("a".into()), true),
        (Less, Value("a".into()), false),
        (Equal, Lease(LeaseId::NONE), true),
    ] {
        let condition = compare("a", op, target);
        assert_eq!(holds(&mut store, vec![condition.clone()]), expected, "{condition:?}");
    }
    // A key that is not there counts as zero, except for its value.
    for (op, target, expected) in [
        (Equal, Version(0), true),
        (Equal, Create(Revision(0)), true),
        (Less, Mod(Revision(1)), true),
        (Greater, Lease(LeaseId(-1)), true),
        (Equal, Value("".into()), false),
        (NotEqual, Value("x".into()), false),
    ] {
        let condition = compare("none", op, target);
        assert_eq!(holds(&mut store, vec![condition.clone()]), expected, "{condition:?}");
    }
    assert!(holds(&mut store, vec![]));
    assert!(!holds(&mut store, vec![Compare::absent("none"), Compare::absent("a")]));
}

#[test]
fn a_compare_of_a_range_is_about_every_key() {
    let mut store = Store::new();
    put(&mut store, "p/a", "1");
    put(&mut store, "p/b", "2");
    let all = |op, target| Compare { range: KeyRange::prefix("p/"), op, target };
    assert!(holds(&mut store, vec![all(CompareOp::Greater, CompareTarget::Version(0))]));
    assert!(!holds(&mut store, vec![all(CompareOp::Equal, CompareTarget::Value("1".into()))]));
    let empty = Compare {
        range: KeyRange::prefix("q/"),
        op: CompareOp::Equal,
        target: CompareTarget::Create(Revision(0)),
    };
    assert!(holds(&mut store, vec![empty]));
}

#[test]
fn nested_compares_are_decided_before_any_write() {
    let mut store = Store::new();
    let inner = TxnRequest {
        compare: vec![Compare::absent("a")],
        success: vec![put_op("saw", "absent")],
        failure: vec![put_op("saw", "present")],
    };
    let applied = store.txn(then(vec![put_op("a", "1"), RequestOp::Txn(inner)])).unwrap();
    assert_eq!(show(&store.range(&range("saw", "")).unwrap()), ["saw=absent"]);
    let ResponseOp::Txn(nested) = &applied.response.responses[1] else { panic!("{:?}", applied.response) };
    assert!(nested.succeeded);
    assert_eq!(nested.revision, Revision(0), "a nested header has no revision, as in etcd");
}

#[test]
fn a_key_is_changed_once() {
    let nested = |success, failure| RequestOp::Txn(TxnRequest { compare: vec![], success, failure });
    let refused = [
        vec![put_op("a", "1"), put_op("a", "2")],
        vec![put_op("b", "1"), delete_op("a", "c")],
        vec![delete_op("a", "c"), put_op("b", "1")],
        vec![put_op("a", "1"), nested(vec![put_op("a", "2")], vec![])],
        vec![put_op("a", "1"), nested(vec![], vec![put_op("a", "2")])],
        vec![nested(vec![put_op("a", "1")], vec![]), nested(vec![], vec![put_op("a", "2")])],
        vec![delete_op("a", ""), nested(vec![put_op("a", "2")], vec![])],
        vec![nested(vec![delete_op("a", "")], vec![]), put_op("a", "1")],
    ];
    for ops in refused {
        let mut store = Store::new();
        assert_eq!(store.txn(then(ops.clone())).unwrap_err(), Error::DuplicateKey, "{ops:?}");
        // The branch that does not run is looked at too.
        let other = TxnRequest { failure: ops, ..TxnRequest::default() };
        assert_eq!(store.txn(other).unwrap_err(), Error::DuplicateKey);
        assert_eq!(store, Store::new());
    }
    let accepted = [
        vec![delete_op("a", ""), delete_op("a", "c")],
        vec![delete_op("a", "\0"), put_op("b", "1")], // etcd overlooks it
        vec![nested(vec![put_op("a", "1")], vec![put_op("a", "2")])],
    ];
    for ops in accepted {
        assert!(Store::new().txn(then(ops.clone())).is_ok(), "{ops:?}");
    }
}

#[test]
fn there_is_a_limit_and_nesting_shares_it() {
    let mut store = Store::new();
    let reads = |n| (0..n).map(|_| RequestOp::Range(range("a", ""))).collect::<Vec<_>>();
    assert!(store.txn(then(reads(128))).is_ok());
    assert_eq!(store.txn(then(reads(129))).unwrap_err(), Error::TooManyOps);
    let failure = TxnRequest { failure: reads(129), ..TxnRequest::default() };
    assert_eq!(store.txn(failure).unwrap_err(), Error::TooManyOps);
    let compares = TxnRequest { compare: vec![Compare::absent("a"); 129], ..TxnRequest::default() };
    assert_eq!(store.txn(compares).unwrap_err(), Error::TooManyOps);
    let mut outer = reads(99);
    outer.push(RequestOp::Txn(then(reads(28))));
    assert!(store.txn(then(outer.clone())).is_ok());
    outer.push(RequestOp::Txn(then(reads(28))));
    assert_eq!(store.txn(then(outer)).unwrap_err(), Error::TooManyOps);
}

#[test]
fn whatever_is_refused_is_refused_before_the_first_write() {
    let mut store = Store::new();
    put(&mut store, "a", "1");
    delete(&mut store, "a");
    let before = store.clone();
    let future = mvcc::RangeRequest { revision: Revision(9), ..range("a", "") };
    for (last, error) in [
        (RequestOp::Put(PutRequest::new("x", "1").with_lease(LeaseId(7))), Error::LeaseNotFound),
        (RequestOp::Put(PutRequest { ignore_value: true, ..PutRequest::new("x", "") }), Error::KeyNotFound),
        (RequestOp::Range(future), Error::FutureRevision),
        (RequestOp::Refused(Error::InvalidSortOption), Error::InvalidSortOption),
        (put_op("", "1"), Error::EmptyKey),
        (RequestOp::Txn(then(vec![RequestOp::Refused(Error::KeyNotFound)])), Error::KeyNotFound),
    ] {
        assert_eq!(store.txn(then(vec![put_op("w", "1"), last])).unwrap_err(), error);
        assert_eq!(store, before);
    }
}

#[test]
fn everything_can_be_replaced_in_one_revision() {
    let mut store = Store::new();
    put(&mut store, "a", "0");
    put(&mut store, "a", "1");
    let applied = store.txn(then(vec![delete_op("\0", "\0"), put_op("a", "2")])).unwrap();
    let kinds: Vec<_> = applied.events.unwrap().events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::Delete, EventKind::Put]);
    let kv = store.range(&range("a", "")).unwrap().kvs.remove(0);
    assert_eq!((kv.create_revision.0, kv.mod_revision.0, kv.version), (4, 4, 1), "a new life");
}

#[test]
fn a_put_of_one_nested_branch_may_be_deleted_by_the_next() {
    // etcd's check lets this pass, so a key can change twice in one revision. Everything has to bear it.
    let mut store = Store::new();
    put(&mut store, "a", "0");
    let ops =
        vec![RequestOp::Txn(then(vec![put_op("a", "1")])), RequestOp::Txn(then(vec![delete_op("a", "")]))];
    let applied = store.txn(then(ops)).unwrap();
    let batch = applied.events.unwrap();
    assert_eq!(batch.events.len(), 2);
    assert_eq!(
        batch.events[1].prev_kv.as_ref().unwrap().value,
        "0",
        "the revision before, not the put before"
    );
    assert!(show(&store.range(&range("a", "")).unwrap()).is_empty());
}
