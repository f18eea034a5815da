//! Watching keys: everything, once, in order.

use crate::backend::Backend;
use crate::soon;
use model::Revision;
use registry::{Change, Changes, Store, StoreError, Watch, Write};
use std::collections::BTreeSet;
use tokio::task::JoinSet;

/// More than etcd replays in one message (1000 revisions).
const LONG_HISTORY: i64 = 2500;

fn put_of(change: &Change) -> (&str, i64) {
    match change {
        Change::Put(kv) => (&kv.key, kv.mod_revision.0),
        Change::Delete { key } => panic!("{key} was not deleted"),
    }
}

fn delete(key: &str) -> Change {
    Change::Delete { key: key.to_owned() }
}

/// Puts until the hub is at `revision`, many at a time.
async fn write_until(store: &Store, revision: i64) {
    let present = store.list("").await.unwrap().revision.0;
    let mut writers = JoinSet::new();
    for writer in 0..16 {
        let store = store.clone();
        let share = (present..revision).skip(writer).step_by(16);
        writers.spawn(async move {
            for n in share {
                store.put(&format!("/w/{}", n % 7), n.to_string(), None).await.unwrap();
            }
        });
    }
    writers.join_all().await;
}

/// Reads puts from the watch, one of each revision, from `from` up to `to`. Fails on gaps and repetitions.
async fn read_all(watch: &mut Watch, from: i64, to: i64) {
    let mut expected = from;
    while expected <= to {
        let Changes { revision, changes } = soon(watch.next()).await.unwrap();
        for change in &changes {
            assert_eq!(put_of(change).1, expected, "one of each revision, in order");
            expected += 1;
        }
        assert_eq!(revision.0, expected - 1, "changes are complete up to their revision");
    }
}

pub(crate) async fn a_watch_replays_the_past_in_order(backend: &mut Backend) {
    let store = &backend.store;
    write_until(store, LONG_HISTORY).await;
    for from in [2, 700, LONG_HISTORY] {
        let mut watch = store.watch("/w/", Revision(from)).await.unwrap();
        read_all(&mut watch, from, LONG_HISTORY).await;
    }
}

/// What a client does whose connection broke: it watches again from the revision after the last that it got.
pub(crate) async fn a_watch_goes_on_where_another_stopped(backend: &mut Backend) {
    let store = &backend.store;
    write_until(store, LONG_HISTORY).await;
    let mut seen = BTreeSet::new();
    let mut from = Revision(2);
    while from.0 <= LONG_HISTORY {
        let mut watch = store.watch("/w/", from).await.unwrap();
        let changes = soon(watch.next()).await.unwrap();
        for change in &changes.changes {
            assert!(seen.insert(put_of(change).1), "twice: {change:?}");
        }
        from = changes.revision.next();
    }
    assert_eq!(seen, (2..=LONG_HISTORY).collect());
}

pub(crate) async fn a_watch_misses_nothing_while_others_write(backend: &mut Backend) {
    let store = &backend.store;
    let (early, late) = (300, 1500);
    write_until(store, early).await;
    let mut watchers = JoinSet::new();
    for from in [2, early / 2, early + 1, early + 10] {
        let store = store.clone();
        watchers.spawn(async move {
            let mut watch = store.watch("/w/", Revision(from)).await.unwrap();
            read_all(&mut watch, from, late).await;
        });
    }
    write_until(store, late).await;
    watchers.join_all().await;
}

pub(crate) async fn a_transaction_arrives_together(backend: &mut Backend) {
    let store = &backend.store;
    for key in ["/t/old/2", "/t/old/1", "/elsewhere"] {
        store.put(key, "", None).await.unwrap();
    }
    let first = store.list("").await.unwrap().revision.next();
    let mut live = store.watch("/t/", first).await.unwrap();
    let puts = (0..100).rev().map(|n| Write::put(format!("/t/{n:03}"), n.to_string()));
    let deletes = [Write::DeletePrefix("/t/old/".to_owned()), Write::Delete("/elsewhere".to_owned())];
    let writes: Vec<_> = puts.chain(deletes).collect();
    let outcome = store.commit(&[], &writes).await.unwrap();
    store.put("/t/after", "", None).await.unwrap();
    let mut later = store.watch("/t/", first).await.unwrap();
    for watch in [&mut live, &mut later] {
        let Changes { revision, changes } = soon(watch.next()).await.unwrap();
        assert!(revision >= outcome.revision);
        let (transaction, rest) = changes.split_at(102);
        for (change, n) in transaction.iter().zip((0..100).rev()) {
            assert_eq!(put_of(change), (format!("/t/{n:03}").as_str(), outcome.revision.0));
        }
        assert_eq!(transaction[100..], [delete("/t/old/1"), delete("/t/old/2")]);
        // What came after may be in the same answer or in the next.
        let next = match rest {
            [] => soon(watch.next()).await.unwrap().changes,
            rest => rest.to_vec(),
        };
        assert_eq!(put_of(&next[0]).0, "/t/after");
        assert_eq!(next.len(), 1);
    }
}

pub(crate) async fn a_watch_sees_deletes(backend: &mut Backend) {
    let store = &backend.store;
    let first = store.put("/d", "1", None).await.unwrap();
    store.commit(&[], &[Write::Delete("/d".to_owned())]).await.unwrap();
    store.put("/d", "2", None).await.unwrap();
    let last = store.commit(&[], &[Write::DeletePrefix("/d".to_owned())]).await.unwrap().revision;
    let mut watch = store.watch("/d", first).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 4 {
        let changes = soon(watch.next()).await.unwrap();
        seen.extend(changes.changes);
        if seen.len() == 4 {
            assert_eq!(changes.revision, last, "a delete's revision counts too");
        }
    }
    assert_eq!((put_of(&seen[0]), put_of(&seen[2])), (("/d", 2), ("/d", 4)));
    assert_eq!((&seen[1], &seen[3]), (&delete("/d"), &delete("/d")));
}

pub(crate) async fn a_watch_sees_its_prefix_only(backend: &mut Backend) {
    let store = &backend.store;
    let mut watch = store.watch("/a/", Revision(2)).await.unwrap();
    for key in ["/a", "/ab", "/a/x", "/b", "/a0", "/a/y"] {
        store.put(key, "", None).await.unwrap();
    }
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let changes = soon(watch.next()).await.unwrap();
        assert!(!changes.changes.is_empty());
        seen.extend(changes.changes.iter().map(|change| change.key().to_owned()));
    }
    assert_eq!(seen, ["/a/x", "/a/y"]);
}

pub(crate) async fn a_watch_may_begin_in_the_future(backend: &mut Backend) {
    let store = &backend.store;
    let mut watch = store.watch("/w/", Revision(5)).await.unwrap();
    // Each put alone, so that the watch has every opportunity to show what it should not.
    let mut first = std::pin::pin!(watch.next());
    for _ in 2..5 {
        store.put("/w/early", "", None).await.unwrap();
        assert!(tokio::time::timeout(std::time::Duration::from_millis(50), &mut first).await.is_err());
    }
    store.put("/w/in-time", "", None).await.unwrap();
    let changes = soon(first).await.unwrap();
    assert_eq!(changes.revision, Revision(5));
    assert_eq!(put_of(&changes.changes[0]), ("/w/in-time", 5));
}

/// As in etcd's API, where a watch without a start revision begins now.
pub(crate) async fn a_watch_may_begin_now(backend: &mut Backend) {
    let store = &backend.store;
    store.put("/w/old", "", None).await.unwrap();
    let mut watch = store.watch("/w/", Revision(0)).await.unwrap();
    store.put("/w/new", "", None).await.unwrap();
    let changes = soon(watch.next()).await.unwrap();
    assert_eq!(changes.changes.iter().map(put_of).collect::<Vec<_>>(), [("/w/new", 3)]);
}

/// 6 MiB: more than a gRPC client takes unless told to.
pub(crate) async fn a_replay_may_be_large(backend: &mut Backend) {
    let store = &backend.store;
    for _ in 0..6 {
        store.put("/large", vec![7; 1 << 20], None).await.unwrap();
    }
    let mut watch = store.watch("/large", Revision(2)).await.unwrap();
    read_all(&mut watch, 2, 7).await;
}

pub(crate) async fn a_watch_of_a_compacted_revision_says_so(backend: &mut Backend) {
    write_until(&backend.store, 20).await;
    backend.compact(Revision(10)).await;
    let store = &backend.store;
    let mut watch = store.watch("/w/", Revision(5)).await.unwrap();
    let error = soon(watch.next()).await.unwrap_err();
    assert!(matches!(error, StoreError::Compacted(Revision(10))), "{error:?}");
    assert_eq!(error.to_string(), "revision 10 has been compacted");
    let mut watch = store.watch("/w/", Revision(10)).await.unwrap();
    read_all(&mut watch, 10, 20).await;
}
