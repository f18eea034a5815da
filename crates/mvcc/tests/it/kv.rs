//! Puts, deletions, ranges (reference: hub.md A.2).

use crate::{at, delete, put, range, show};
use mvcc::{
    Code, DeleteRangeRequest, Error, KeyRange, LeaseId, PutRequest, RangeRequest, Revision, SortOrder,
    SortTarget, Store,
};

#[test]
fn a_store_starts_at_one_and_moves_only_when_something_changes() {
    let mut store = Store::new();
    assert_eq!(store.revision(), Revision(1));
    assert_eq!(put(&mut store, "a", "1"), 2);
    assert_eq!(put(&mut store, "a", "1"), 3, "the same value is a new revision");
    assert_eq!(delete(&mut store, "nothing"), 3);
    assert_eq!(delete(&mut store, "a"), 4);
    assert_eq!(store.revision(), Revision(4));
}

#[test]
fn versions_count_from_creation() {
    let mut store = Store::new();
    put(&mut store, "a", "1");
    put(&mut store, "a", "2");
    let kv = store.range(&range("a", "")).unwrap().kvs.remove(0);
    assert_eq!((kv.create_revision.0, kv.mod_revision.0, kv.version), (2, 3, 2));
    delete(&mut store, "a");
    put(&mut store, "a", "3");
    let kv = store.range(&range("a", "")).unwrap().kvs.remove(0);
    assert_eq!((kv.create_revision.0, kv.mod_revision.0, kv.version), (5, 5, 1));
}

#[test]
fn a_delete_is_one_revision_and_its_event_bears_only_the_key() {
    let mut store = Store::new();
    put(&mut store, "a", "1");
    put(&mut store, "b", "2");
    let request = DeleteRangeRequest { range: KeyRange::all(), prev_kv: true };
    let applied = store.delete_range(&request).unwrap();
    assert_eq!((applied.response.revision.0, applied.response.deleted), (4, 2));
    assert_eq!(applied.response.prev_kvs.len(), 2);
    let batch = applied.events.unwrap();
    assert_eq!(batch.revision, Revision(4));
    let event = &batch.events[1];
    assert_eq!((event.kv.key.as_ref(), event.kv.mod_revision.0), (&b"b"[..], 4));
    assert_eq!((event.kv.create_revision.0, event.kv.version, event.kv.value.len()), (0, 0, 0));
    assert_eq!(event.prev_kv.as_ref().unwrap().value, "2");
}

#[test]
fn ranges_follow_the_wire() {
    let mut store = Store::new();
    for key in ["a", "ab", "b", "c"] {
        put(&mut store, key, "x");
    }
    let keys = |request: &RangeRequest| {
        let kvs = store.range(request).unwrap().kvs;
        kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(keys(&range("a", "")), ["a"]);
    assert_eq!(keys(&range("a", "b")), ["a", "ab"]);
    assert_eq!(keys(&range("b", "\0")), ["b", "c"]);
    assert_eq!(keys(&range("\0", "\0")), ["a", "ab", "b", "c"]);
    assert!(keys(&range("b", "a")).is_empty(), "a reversed range is empty, not an error");
    assert!(keys(&range("b", "b")).is_empty());
    assert_eq!(keys(&RangeRequest::new(KeyRange::prefix("a"))), ["a", "ab"]);
    assert_eq!(keys(&RangeRequest::new(KeyRange::prefix(""))).len(), 4);
    assert_eq!(store.range(&range("", "")).unwrap_err(), Error::EmptyKey);
}

#[test]
fn a_prefix_of_high_bytes_has_no_end() {
    let range = KeyRange::prefix(&b"\xff\xff"[..]);
    assert!(range.contains(b"\xff\xff\x01") && !range.contains(b"\xff\xfe"));
    assert_eq!(KeyRange::prefix(&b"a\xff"[..]).end().unwrap().as_ref(), b"b");
}

#[test]
fn limit_count_and_more() {
    let mut store = Store::new();
    for key in ["a", "b", "c"] {
        put(&mut store, key, "x");
    }
    let answer = store.range(&RangeRequest { limit: 2, ..range("\0", "\0") }).unwrap();
    assert_eq!((answer.kvs.len(), answer.count, answer.more), (2, 3, true));
    let answer = store.range(&RangeRequest { limit: 3, ..range("\0", "\0") }).unwrap();
    assert_eq!((answer.kvs.len(), answer.count, answer.more), (3, 3, false));
    let answer = store.range(&RangeRequest { count_only: true, ..range("\0", "\0") }).unwrap();
    assert_eq!((answer.kvs.len(), answer.count, answer.more), (0, 3, false));
    let answer = store.range(&RangeRequest { keys_only: true, ..range("\0", "\0") }).unwrap();
    assert!(answer.kvs.iter().all(|kv| kv.value.is_empty()));
}

#[test]
fn sorts_come_before_the_limit() {
    let mut store = Store::new();
    for (key, value) in [("a", "2"), ("b", "3"), ("c", "1"), ("a", "2")] {
        put(&mut store, key, value);
    }
    let sorted = |target, order, limit| {
        let request = RangeRequest { sort_target: target, sort_order: order, limit, ..range("\0", "\0") };
        show(&store.range(&request).unwrap())
    };
    assert_eq!(sorted(SortTarget::Key, SortOrder::Descend, 2), ["c=1", "b=3"]);
    assert_eq!(sorted(SortTarget::Value, SortOrder::Ascend, 1), ["c=1"]);
    assert_eq!(sorted(SortTarget::Mod, SortOrder::Descend, 1), ["a=2"]);
    assert_eq!(sorted(SortTarget::Create, SortOrder::Ascend, 1), ["a=2"]);
    assert_eq!(sorted(SortTarget::Version, SortOrder::Descend, 1), ["a=2"]);
    assert_eq!(sorted(SortTarget::Mod, SortOrder::None, 0), ["b=3", "c=1", "a=2"], "no order is ascending");
    let request = RangeRequest {
        sort_target: SortTarget::Value,
        sort_order: SortOrder::Descend,
        keys_only: true,
        ..range("\0", "\0")
    };
    assert_eq!(show(&store.range(&request).unwrap()), ["b=", "a=", "c="], "sorted before values go");
}

#[test]
fn filters_change_what_is_shown_but_not_the_count() {
    let mut store = Store::new();
    for key in ["a", "b", "c", "a"] {
        put(&mut store, key, "x"); // a: created 2, modified 5; b: 3; c: 4
    }
    let filtered = RangeRequest { min_mod_revision: Revision(4), ..range("\0", "\0") };
    let answer = store.range(&filtered).unwrap();
    assert_eq!((show(&answer), answer.count), (vec!["a=x".to_owned(), "c=x".to_owned()], 3));
    let filtered = RangeRequest { max_create_revision: Revision(3), limit: 1, ..range("\0", "\0") };
    let answer = store.range(&filtered).unwrap();
    assert_eq!((show(&answer), answer.more), (vec!["a=x".to_owned()], true));
    let filtered =
        RangeRequest { max_mod_revision: Revision(4), min_create_revision: Revision(4), ..range("\0", "\0") };
    assert_eq!(show(&store.range(&filtered).unwrap()), ["c=x"]);
}

#[test]
fn the_past_can_be_read() {
    let mut store = Store::new();
    put(&mut store, "a", "1");
    put(&mut store, "a", "2");
    delete(&mut store, "a");
    let read = |revision| show(&store.range(&at(range("a", ""), revision)).unwrap());
    assert!(read(1).is_empty());
    assert_eq!(read(2), ["a=1"]);
    assert_eq!(read(3), ["a=2"]);
    assert!(read(4).is_empty() && read(0).is_empty() && read(-1).is_empty());
    assert_eq!(store.range(&at(range("a", ""), 2)).unwrap().revision, Revision(4), "the header is of now");
    assert_eq!(store.range(&at(range("a", ""), 5)).unwrap_err(), Error::FutureRevision);
}

#[test]
fn a_put_can_answer_and_keep_what_was_there() {
    let mut store = Store::new();
    let request = || PutRequest { prev_kv: true, ..PutRequest::new("a", "1") };
    assert_eq!(store.put(request()).unwrap().response.prev_kv, None);
    assert_eq!(store.put(request()).unwrap().response.prev_kv.unwrap().value, "1");
    let keep = PutRequest { ignore_value: true, ..PutRequest::new("a", "") };
    assert!(store.put(keep).is_ok());
    assert_eq!(show(&store.range(&range("a", "")).unwrap()), ["a=1"]);

    for (bad, error) in [
        (PutRequest { ignore_value: true, ..PutRequest::new("none", "") }, Error::KeyNotFound),
        (PutRequest { ignore_lease: true, ..PutRequest::new("none", "x") }, Error::KeyNotFound),
        (PutRequest { ignore_value: true, ..PutRequest::new("a", "x") }, Error::ValueProvided),
        (
            PutRequest { ignore_lease: true, lease: LeaseId(1), ..PutRequest::new("a", "x") },
            Error::LeaseProvided,
        ),
        (PutRequest::new("", "x"), Error::EmptyKey),
        (PutRequest::new("a", "x").with_lease(LeaseId(9)), Error::LeaseNotFound),
    ] {
        assert_eq!(store.put(bad).unwrap_err(), error);
    }
    assert_eq!(store.revision(), Revision(4), "a refusal changes nothing");
}

#[test]
fn refusals_are_etcds() {
    let texts = [
        (Error::EmptyKey, Code::InvalidArgument, "etcdserver: key is not provided"),
        (Error::KeyNotFound, Code::InvalidArgument, "etcdserver: key not found"),
        (Error::ValueProvided, Code::InvalidArgument, "etcdserver: value is provided"),
        (Error::LeaseProvided, Code::InvalidArgument, "etcdserver: lease is provided"),
        (Error::TooManyOps, Code::InvalidArgument, "etcdserver: too many operations in txn request"),
        (Error::DuplicateKey, Code::InvalidArgument, "etcdserver: duplicate key given in txn request"),
        (Error::InvalidSortOption, Code::InvalidArgument, "etcdserver: invalid sort option"),
        (Error::RequestTooLarge, Code::InvalidArgument, "etcdserver: request is too large"),
        (Error::Compacted, Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
        (Error::FutureRevision, Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision"),
        (Error::NoSpace, Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
        (Error::LeaseNotFound, Code::NotFound, "etcdserver: requested lease not found"),
        (Error::LeaseExists, Code::FailedPrecondition, "etcdserver: lease already exists"),
        (Error::LeaseTtlTooLarge, Code::OutOfRange, "etcdserver: too large lease TTL"),
        (Error::Stopped, Code::Unavailable, "etcdserver: server stopped"),
    ];
    for (error, code, text) in texts {
        assert_eq!((error.code(), error.to_string().as_str()), (code, text));
    }
}

#[test]
fn the_hash_is_of_the_history() {
    let mut store = Store::new();
    put(&mut store, "a", "1");
    let early = store.hash(Revision(0)).unwrap();
    put(&mut store, "a", "2");
    assert_eq!(store.hash(Revision(2)).unwrap(), early);
    assert_ne!(store.hash(Revision(3)).unwrap(), early);
    assert_eq!(store.hash(Revision(4)).unwrap_err(), Error::FutureRevision);
}
