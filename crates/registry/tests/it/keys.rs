//! Reading and writing keys: revisions, prefixes, guards, and what is refused.

use crate::backend::Backend;
use model::{LeaseId, Revision};
use registry::store::MAX_TXN_OPS;
use registry::{Guard, KeyValue, Listing, Outcome, Store, StoreError, Write};
use tokio::task::JoinSet;

/// The keys of a listing, in its order.
fn keys(listing: &Listing) -> Vec<&str> {
    listing.items.iter().map(|kv| kv.key.as_str()).collect()
}

/// The revision that the hub is at.
async fn now(store: &Store) -> Revision {
    store.list("/").await.unwrap().revision
}

fn refusal(outcome: &Result<Outcome, StoreError>) -> &str {
    match outcome {
        Err(StoreError::Refused(text)) => text,
        other => panic!("not refused: {other:?}"),
    }
}

pub(crate) async fn an_empty_hub_is_at_revision_one(backend: &mut Backend) {
    let store = &backend.store;
    assert_eq!(store.list("/").await.unwrap(), Listing { revision: Revision(1), items: Vec::new() });
    assert_eq!(store.get("/a").await.unwrap(), None);
    assert_eq!(store.get_many(&[]).await.unwrap().items, []);
}

pub(crate) async fn a_put_is_read_back(backend: &mut Backend) {
    let store = &backend.store;
    assert_eq!(store.put("/a", "1", None).await.unwrap(), Revision(2));
    assert_eq!(store.put("/b", vec![0, 0xff], None).await.unwrap(), Revision(3));
    assert_eq!(store.put("/a", "", None).await.unwrap(), Revision(4));
    let a = KeyValue {
        key: "/a".to_owned(),
        value: "".into(),
        create_revision: Revision(2),
        mod_revision: Revision(4),
        lease: None,
    };
    assert_eq!(store.get("/a").await.unwrap(), Some(a.clone()));
    assert_eq!(store.get("/b").await.unwrap().unwrap().value, vec![0, 0xff]);
    assert_eq!(store.get("/").await.unwrap(), None);
    // Deleted and made again, it is another one.
    store.commit(&[], &[Write::Delete("/a".to_owned())]).await.unwrap();
    assert_eq!(store.get("/a").await.unwrap(), None);
    store.put("/a", "", None).await.unwrap();
    let again = KeyValue { create_revision: Revision(6), mod_revision: Revision(6), ..a };
    assert_eq!(store.get("/a").await.unwrap(), Some(again));
}

/// More keys than fit into one of etcd's transactions, while a writer sets all of them to the same value again
/// and again: whoever reads them at one revision sees one value.
pub(crate) async fn many_are_read_at_one_revision(backend: &mut Backend) {
    let store = &backend.store;
    // One in each of the reader's transactions, and others around them that do not exist.
    let wanted: Vec<String> = (0..3 * MAX_TXN_OPS).map(|n| format!("/many/{n:04}")).collect();
    let written: Vec<String> = wanted.iter().step_by(MAX_TXN_OPS).cloned().collect();
    let all_to = |value: usize| -> Vec<Write> {
        written.iter().map(|key| Write::put(key.as_str(), value.to_string())).collect()
    };
    store.commit(&[], &all_to(0)).await.unwrap();
    let mut writer = JoinSet::new();
    let (writing, writes) = (store.clone(), (1..200).map(all_to).collect::<Vec<_>>());
    writer.spawn(async move {
        for write in writes {
            writing.commit(&[], &write).await.unwrap();
        }
    });
    let mut over = false;
    while !over {
        over = writer.try_join_next().map(Result::unwrap).is_some();
        let found = store.get_many(&wanted).await.unwrap().items;
        assert_eq!(found.iter().map(|kv| &kv.key).collect::<Vec<_>>(), written.iter().collect::<Vec<_>>());
        let revisions: Vec<_> = found.iter().map(|kv| kv.mod_revision).collect();
        assert!(revisions.iter().all(|revision| *revision == revisions[0]), "{revisions:?}");
    }
    // In the order in which they were asked for, each as often.
    let mixed = [&written[1], &written[0], &written[1]].map(Clone::clone);
    let found = store.get_many(&mixed).await.unwrap().items;
    assert_eq!(found.iter().map(|kv| &kv.key).collect::<Vec<_>>(), mixed.iter().collect::<Vec<_>>());
}

pub(crate) async fn a_list_is_ordered_and_of_one_revision(backend: &mut Backend) {
    let store = &backend.store;
    for key in ["/l/b", "/l/a/x", "/l/a", "/l/ä", "/l/B", "/l/a!"] {
        store.put(key, key, None).await.unwrap();
    }
    let listing = store.list("/l/").await.unwrap();
    assert_eq!(keys(&listing), ["/l/B", "/l/a", "/l/a!", "/l/a/x", "/l/b", "/l/ä"]);
    assert_eq!(listing.revision, Revision(7));
    assert!(listing.items.iter().all(|kv| kv.value == kv.key.as_bytes()));
    // While others write, the list is of one revision all the same: the writer moves one key to and fro.
    let (writing, mut writer) = (store.clone(), JoinSet::new());
    writer.spawn(async move {
        for n in 0..200 {
            let (from, to) = if n % 2 == 0 { ("/l/a", "/l/z") } else { ("/l/z", "/l/a") };
            writing.commit(&[], &[Write::Delete(from.to_owned()), Write::put(to, "")]).await.unwrap();
        }
    });
    let mut over = false;
    while !over {
        over = writer.try_join_next().map(Result::unwrap).is_some();
        let listing = store.list("/l/").await.unwrap();
        assert_eq!(listing.items.len(), 6, "{:?}", keys(&listing));
        let newest = listing.items.iter().map(|kv| kv.mod_revision).max().unwrap();
        assert_eq!(newest, listing.revision, "the revision is the one at which this was true");
    }
}

pub(crate) async fn a_prefix_ends_where_it_says(backend: &mut Backend) {
    let store = &backend.store;
    for key in ["/a", "/a.", "/a/", "/a/b", "/a/b/c", "/a0", "/ab", "/b"] {
        store.put(key, "", None).await.unwrap();
    }
    assert_eq!(keys(&store.list("/a/").await.unwrap()), ["/a/", "/a/b", "/a/b/c"]);
    assert_eq!(keys(&store.list("/a/b").await.unwrap()), ["/a/b", "/a/b/c"]);
    assert_eq!(keys(&store.list("/ab").await.unwrap()), ["/ab"]);
    assert_eq!(store.list("/a").await.unwrap().items.len(), 7);
    assert!(store.list("/a//").await.unwrap().items.is_empty());
    assert_eq!(keys(&store.list("/a/".."/a0").await.unwrap()), ["/a/", "/a/b", "/a/b/c"]);
    assert_eq!(keys(&store.list("/a/b".."/b").await.unwrap()), ["/a/b", "/a/b/c", "/a0", "/ab"]);
    let mut watch = store.watch("/a/b".."/b", Revision(0)).await.unwrap();
    for key in ["/a/", "/b", "/ab"] {
        store.put(key, "2", None).await.unwrap();
    }
    let changes = watch.next().await.unwrap().changes;
    assert_eq!(changes.iter().map(registry::Change::key).collect::<Vec<_>>(), ["/ab"]);
}

pub(crate) async fn the_empty_prefix_is_everything(backend: &mut Backend) {
    let store = &backend.store;
    for key in ["\u{1}", "a", "\u{10ffff}"] {
        store.put(key, "", None).await.unwrap();
    }
    assert_eq!(keys(&store.list("").await.unwrap()), ["\u{1}", "a", "\u{10ffff}"]);
    assert_eq!(keys(&store.list("\u{10ffff}").await.unwrap()), ["\u{10ffff}"]);
    store.commit(&[], &[Write::DeletePrefix(String::new())]).await.unwrap();
    assert!(store.list("").await.unwrap().items.is_empty());
}

pub(crate) async fn guards_hold(backend: &mut Backend) {
    let store = &backend.store;
    store.put("/there", "1", None).await.unwrap();
    let at = store.put("/there", "2", None).await.unwrap();
    let (there, not) = (|| "/there".to_owned(), || "/not".to_owned());
    let cases = [
        (Guard::Absent(not()), true),
        (Guard::Absent(there()), false),
        (Guard::Present(there()), true),
        (Guard::Present(not()), false),
        (Guard::Unchanged(there(), at), true),
        (Guard::Unchanged(there(), Revision(at.0 - 1)), false),
        (Guard::Unchanged(there(), at.next()), false),
        (Guard::Unchanged(not(), at), false),
        // A key that does not exist was last written at revision 0.
        (Guard::Unchanged(not(), Revision(0)), true),
        (Guard::Unchanged(there(), Revision(0)), false),
    ];
    for (number, (guard, holds)) in cases.into_iter().enumerate() {
        let key = format!("/written/{number}");
        let before = now(store).await;
        let outcome = store.commit(std::slice::from_ref(&guard), &[Write::put(&key, "")]).await.unwrap();
        assert_eq!(outcome.committed, holds, "{guard:?}");
        assert_eq!(outcome.revision, if holds { before.next() } else { before }, "{guard:?}");
        assert_eq!(store.get(&key).await.unwrap().is_some(), holds, "{guard:?}");
    }
    // What a guard says of a deleted key.
    store.commit(&[], &[Write::Delete(there())]).await.unwrap();
    for (guard, holds) in [
        (Guard::Unchanged(there(), at), false),
        (Guard::Present(there()), false),
        (Guard::Absent(there()), true),
    ] {
        assert_eq!(
            store.commit(std::slice::from_ref(&guard), &[]).await.unwrap().committed,
            holds,
            "{guard:?}"
        );
    }
}

pub(crate) async fn all_guards_must_hold(backend: &mut Backend) {
    let store = &backend.store;
    let at = store.put("/a", "", None).await.unwrap();
    let good = [Guard::Present("/a".to_owned()), Guard::Absent("/b".to_owned())];
    let unchanged = |at| Guard::Unchanged("/a".to_owned(), at);
    let write = [Write::put("/c", "")];
    let with = |guard| [good.as_slice(), &[guard]].concat();
    assert!(!store.commit(&with(unchanged(at.next())), &write).await.unwrap().committed);
    assert!(store.commit(&with(unchanged(at)), &write).await.unwrap().committed);
}

pub(crate) async fn a_failed_commit_changes_nothing(backend: &mut Backend) {
    let store = &backend.store;
    for key in ["/x/1", "/x/2", "/y"] {
        store.put(key, "old", None).await.unwrap();
    }
    let before = store.list("").await.unwrap();
    let writes = [
        Write::put("/z", "new"),
        Write::put("/y", "new"),
        Write::Delete("/x/1".to_owned()),
        Write::DeletePrefix("/x/2".to_owned()),
    ];
    let outcome = store.commit(&[Guard::Absent("/y".to_owned())], &writes).await.unwrap();
    assert_eq!(outcome, Outcome { committed: false, revision: before.revision });
    assert_eq!(store.list("").await.unwrap(), before);
}

pub(crate) async fn a_commit_is_one_revision(backend: &mut Backend) {
    let store = &backend.store;
    store.put("/old", "", None).await.unwrap();
    let most = (1..MAX_TXN_OPS).map(|n| Write::put(format!("/n/{n}"), ""));
    let writes: Vec<_> = most.chain([Write::Delete("/old".to_owned())]).collect();
    let outcome = store.commit(&[], &writes).await.unwrap();
    assert_eq!(outcome, Outcome { committed: true, revision: Revision(3) });
    let listing = store.list("/").await.unwrap();
    assert_eq!(listing.items.len(), MAX_TXN_OPS - 1);
    assert!(listing.items.iter().all(|kv| kv.mod_revision == Revision(3)));
}

pub(crate) async fn a_prefix_is_deleted(backend: &mut Backend) {
    let store = &backend.store;
    for key in ["/p", "/p/a", "/p/b", "/pq"] {
        store.put(key, "", None).await.unwrap();
    }
    let writes = [Write::DeletePrefix("/p/".to_owned()), Write::put("/new", "")];
    assert_eq!(store.commit(&[], &writes).await.unwrap().revision, Revision(6));
    let left = store.list("/").await.unwrap();
    assert_eq!(keys(&left), ["/new", "/p", "/pq"]);
    assert_eq!(left.revision, Revision(6));
}

pub(crate) async fn a_delete_of_nothing_is_no_revision(backend: &mut Backend) {
    let store = &backend.store;
    let nothing = [Write::Delete("/a".to_owned()), Write::DeletePrefix("/b/".to_owned())];
    let unchanged = Outcome { committed: true, revision: Revision(1) };
    assert_eq!(store.commit(&[], &nothing).await.unwrap(), unchanged);
    assert_eq!(store.commit(&[], &[]).await.unwrap(), unchanged);
}

/// How an election works.
pub(crate) async fn one_of_many_writers_wins(backend: &mut Backend) {
    let mut candidates = JoinSet::new();
    for name in 0..16 {
        let store = backend.store.clone();
        candidates.spawn(async move {
            let write = Write::put("/leader", name.to_string());
            let outcome = store.commit(&[Guard::Absent("/leader".to_owned())], &[write]).await.unwrap();
            outcome.committed.then(|| name.to_string())
        });
    }
    let elected: Vec<_> = candidates.join_all().await.into_iter().flatten().collect();
    let leader = backend.store.get("/leader").await.unwrap().unwrap();
    assert_eq!(elected, [String::from_utf8(leader.value.to_vec()).unwrap()]);
    assert_eq!(now(&backend.store).await, Revision(2), "the losers changed nothing");
}

pub(crate) async fn what_is_refused(backend: &mut Backend) {
    let store = &backend.store;
    let lease = Some(LeaseId(0x77));
    let twice = [Write::put("/a", "1"), Write::put("/a", "2")];
    let put_and_deleted = [Write::put("/a", "1"), Write::DeletePrefix("/".to_owned())];
    let many: Vec<_> = (0..=MAX_TXN_OPS).map(|n| Write::put(format!("/{n}"), "")).collect();
    let orphan = [Write::Put { key: "/a".to_owned(), value: "".into(), lease }];
    let cases: [(&[Write], &str); 5] = [
        (&twice, "duplicate key given in txn request"),
        (&put_and_deleted, "duplicate key given in txn request"),
        (&many, "too many operations in txn request"),
        (&orphan, "requested lease not found"),
        (&[Write::put("", "")], "key is not provided"),
    ];
    for (writes, why) in cases {
        let outcome = store.commit(&[], writes).await;
        assert!(refusal(&outcome).contains(why), "{outcome:?}");
    }
    assert!(matches!(store.get("").await, Err(StoreError::Refused(_))));
    assert!(matches!(store.revoke(LeaseId(0x77)).await, Err(StoreError::Refused(_))));
    assert_eq!(store.list("").await.unwrap(), Listing { revision: Revision(1), items: Vec::new() });
}

/// 6 MiB: more than a gRPC client takes unless told to.
pub(crate) async fn a_list_may_be_large(backend: &mut Backend) {
    let store = &backend.store;
    let names: Vec<_> = (0..6).map(|n| format!("/large/{n}")).collect();
    for name in &names {
        store.put(name, vec![7; 1 << 20], None).await.unwrap();
    }
    let size = |items: &[KeyValue]| items.iter().map(|kv| kv.value.len()).sum::<usize>();
    assert_eq!(size(&store.list("/large/").await.unwrap().items), 6 << 20);
    assert_eq!(size(&store.get_many(&names).await.unwrap().items), 6 << 20);
}
