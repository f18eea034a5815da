//! What watchers see (reference: hub.md A.3).

use crate::{delete, put};
use mvcc::{Error, EventKind, KeyRange, Revision, Store, WatchIndex, Watcher};

/// What a watcher sees of the history from a revision on, as `revision:key`.
fn replay(store: &Store, watcher: &Watcher, from: i64) -> Vec<String> {
    let history = store.history(Revision(from)).unwrap();
    history
        .flat_map(|batch| watcher.select(batch).collect::<Vec<_>>())
        .map(|event| format!("{}:{}", event.kv.mod_revision, String::from_utf8_lossy(&event.kv.key)))
        .collect()
}

#[test]
fn history_starts_where_asked() {
    let mut store = Store::new();
    put(&mut store, "a", "1");
    put(&mut store, "b", "1");
    delete(&mut store, "a");
    let all = Watcher::new(KeyRange::all());
    assert_eq!(replay(&store, &all, 1), ["2:a", "3:b", "4:a"]);
    assert_eq!(replay(&store, &all, 3), ["3:b", "4:a"]);
    assert!(replay(&store, &all, 5).is_empty());
    assert!(replay(&store, &all, 99).is_empty(), "the future is empty, not an error");
    assert_eq!(replay(&store, &Watcher::new(KeyRange::key("a")), 1), ["2:a", "4:a"]);
    let _ = store.compact(Revision(3)).unwrap();
    assert_eq!(replay(&store, &all, 3), ["3:b", "4:a"], "the compacted revision itself can be watched");
    assert_eq!(store.history(Revision(2)).err(), Some(Error::Compacted));
}

#[test]
fn a_deletion_at_the_compacted_revision_is_still_seen() {
    let mut store = Store::new();
    put(&mut store, "a", "1");
    delete(&mut store, "a");
    let _ = store.compact(Revision(3)).unwrap();
    assert_eq!(replay(&store, &Watcher::new(KeyRange::all()), 3), ["3:a"]);
}

#[test]
fn filters_and_what_was_before() {
    let mut store = Store::new();
    put(&mut store, "a", "1");
    put(&mut store, "a", "2");
    let batch =
        store.delete_range(&mvcc::DeleteRangeRequest::new(KeyRange::key("a"))).unwrap().events.unwrap();
    let watcher = Watcher { prev_kv: true, ..Watcher::new(KeyRange::all()) };
    let seen: Vec<_> = watcher.select(&batch).collect();
    assert_eq!(seen[0].kind, EventKind::Delete);
    assert_eq!(seen[0].prev_kv.as_ref().unwrap().value, "2");
    assert!(Watcher::new(KeyRange::all()).select(&batch).all(|event| event.prev_kv.is_none()));
    assert_eq!(Watcher { no_delete: true, ..watcher.clone() }.select(&batch).count(), 0);
    assert_eq!(replay(&store, &Watcher { no_put: true, ..watcher }, 1), ["4:a"]);
}

#[test]
fn what_was_before_the_compacted_revision_is_not_told() {
    let mut store = Store::new();
    put(&mut store, "a", "1");
    put(&mut store, "a", "2");
    put(&mut store, "a", "3");
    let _ = store.compact(Revision(3)).unwrap();
    let before: Vec<_> = store
        .history(Revision(3))
        .unwrap()
        .map(|batch| batch.events[0].prev_kv.as_ref().map(|kv| kv.value.clone()))
        .collect();
    assert_eq!(before, [None, Some("2".into())]);
}

#[test]
fn the_index_finds_who_wants_a_key() {
    let ranges = [
        KeyRange::key("a"),
        KeyRange::key("ab"),
        KeyRange::prefix("a"),
        KeyRange::prefix("ab"),
        KeyRange::from_wire("a", "abc"),
        KeyRange::all(),
        KeyRange::from_key("b"),
        KeyRange::from_wire("b", "a"),
        KeyRange::prefix(&b"\xff"[..]),
    ];
    let mut index = WatchIndex::default();
    for (id, range) in ranges.iter().enumerate() {
        index.insert(range, id);
    }
    let check = |index: &WatchIndex<usize>, live: &[usize]| {
        for key in [&b"a"[..], b"ab", b"abc", b"b", b"\xff\x01", b"\0", b""] {
            let mut found = Vec::new();
            index.matching(key, |id| found.push(id));
            found.sort_unstable();
            let expected: Vec<_> = live.iter().copied().filter(|id| ranges[*id].contains(key)).collect();
            assert_eq!(found, expected, "{key:?}");
        }
    };
    check(&index, &[0, 1, 2, 3, 4, 5, 6, 7, 8]);
    for gone in [0, 2, 4, 8] {
        index.remove(&ranges[gone], gone);
    }
    check(&index, &[1, 3, 5, 6, 7]);
}
