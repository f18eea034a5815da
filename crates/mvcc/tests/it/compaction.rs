//! Compaction and replay (reference: hub.md A.2).

use crate::{at, delete, put, range, show};
use mvcc::{DeleteRangeRequest, Error, KeyRange, PutRequest, Record, ReplayError, Revision, RowId, Store};
use std::time::Duration;

#[test]
fn it_keeps_what_can_still_be_read() {
    let mut store = Store::new();
    put(&mut store, "a", "1"); // 2
    put(&mut store, "a", "2"); // 3
    put(&mut store, "b", "1"); // 4
    delete(&mut store, "b"); // 5
    put(&mut store, "a", "3"); // 6
    assert_eq!(store.compact(Revision(7)).unwrap_err(), Error::FutureRevision);
    let applied = store.compact(Revision(5)).unwrap();
    let [Record::Compact { obsolete, .. }] = applied.records.as_slice() else { panic!("{applied:?}") };
    let rows: Vec<String> = obsolete.iter().map(RowId::to_string).collect();
    assert_eq!(rows, ["2.0", "4.0"], "3.0 is what `a` is at 5; 5.0 can still be watched");
    assert_eq!(store.compact(Revision(5)).unwrap_err(), Error::Compacted);
    assert_eq!(store.range(&at(range("a", ""), 4)).unwrap_err(), Error::Compacted);
    assert_eq!(show(&store.range(&at(range("\0", "\0"), 5)).unwrap()), ["a=2"]);
    assert_eq!(show(&store.range(&range("\0", "\0")).unwrap()), ["a=3"]);
    let size = store.size();
    let _ = store.compact(Revision(6)).unwrap();
    assert!(store.size() < size);
}

#[test]
fn everything_may_go() {
    let mut store = Store::new();
    put(&mut store, "a", "1");
    delete(&mut store, "a");
    put(&mut store, "b", "1");
    delete(&mut store, "b");
    let _ = store.compact(Revision(4)).unwrap();
    let _ = store.compact(Revision(5)).unwrap();
    assert_eq!(put(&mut store, "c", "1"), 6);
    let _ = store.compact(Revision(6)).unwrap();
    assert_eq!(show(&store.range(&range("\0", "\0")).unwrap()), ["c=1"]);
}

#[test]
fn the_revision_survives_a_replay_even_if_nothing_else_does() {
    let mut store = Store::new();
    let mut records = store.put(PutRequest::new("a", "1")).unwrap().records;
    let request = mvcc::DeleteRangeRequest::new(mvcc::KeyRange::key("a"));
    records.extend(store.delete_range(&request).unwrap().records);
    records.extend(store.compact(Revision(3)).unwrap().records);
    let replayed = Store::replay(records, Duration::ZERO).unwrap();
    assert_eq!(replayed.store, store);
    assert_eq!(replayed.store.revision(), Revision(3));
    assert_eq!(replayed.obsolete.len(), 1);
    assert_eq!(Store::replay([], Duration::ZERO).unwrap().store, Store::new());
}

#[test]
fn a_hole_in_the_records_is_found() {
    let mut store = Store::new();
    let mut records = Vec::new();
    for value in ["1", "2", "3"] {
        records.extend(store.put(PutRequest::new("a", value)).unwrap().records);
    }
    let mut hole = records.clone();
    hole.remove(1);
    let missing = Store::replay(hole, Duration::ZERO).unwrap_err();
    assert!(matches!(missing, ReplayError::Missing { missing: Revision(3), .. }), "{missing}");
    records.swap(0, 1);
    let order = Store::replay(records, Duration::ZERO).unwrap_err();
    assert!(matches!(order, ReplayError::OutOfOrder { .. }), "{order}");
}

#[test]
fn the_history_is_measured() {
    let mut store = Store::new();
    for _ in 0..3 {
        let _ = store.put(PutRequest::new("a", vec![0; 1000])).unwrap();
        let _ = store.put(PutRequest::new("b", vec![0; 500])).unwrap();
    }
    assert!((3000..4000).contains(&store.history_size()), "{}", store.history_size());
    let _ = store.delete_range(&DeleteRangeRequest::new(KeyRange::key("a"))).unwrap();
    let before = store.history_size();
    assert!((4000..5000).contains(&before), "what was deleted is history: {before}");
    // What compaction frees is history, and nothing else.
    let size = store.size();
    let _ = store.compact(Revision(5)).unwrap();
    assert_eq!(before - store.history_size(), size - store.size());
    let _ = store.put(PutRequest::new("c", "")).unwrap();
    let _ = store.compact(store.revision()).unwrap();
    assert_eq!(store.history_size(), 0);
    let replayed = Store::replay(store.dump(), Duration::ZERO).unwrap().store;
    assert_eq!((replayed.size(), replayed.history_size()), (store.size(), 0));
}
