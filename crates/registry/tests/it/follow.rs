//! Following a prefix: what a consumer holds is what the hub holds, also across restarts of the hub.

use crate::backend::Backend;
use crate::{eventually, soon};
use model::Revision;
use registry::{Change, Delta, Follow, KeyValue, Listing, Store, Write};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::task::JoinSet;

/// A consumer that does what it is told.
#[derive(Default)]
struct View {
    keys: BTreeMap<String, KeyValue>,
    revision: Revision,
    resets: usize,
    losses: usize,
}

impl View {
    fn apply(&mut self, delta: Delta) {
        match delta {
            Delta::Reset(listing) => {
                assert!(listing.revision >= self.revision, "back in time");
                self.revision = listing.revision;
                self.keys = listing.items.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
                self.resets += 1;
            }
            Delta::Changes(changes) => {
                assert_eq!(self.resets, self.losses + 1, "changes only while the hub is there");
                assert!(changes.revision > self.revision, "news are new");
                self.revision = changes.revision;
                for change in changes.changes {
                    match change {
                        Change::Put(kv) => self.keys.insert(kv.key.clone(), kv),
                        Change::Delete { key } => self.keys.remove(&key),
                    };
                }
            }
            Delta::Lost => {
                assert_eq!(self.resets, self.losses + 1, "lost once, after it was there");
                self.losses += 1;
            }
        }
    }

    /// Follows until it holds what the hub holds.
    async fn catch_up(&mut self, follow: &mut Follow, store: &Store, prefix: &str) {
        let hub = store.list(prefix).await.unwrap();
        let hub: BTreeMap<_, _> = hub.items.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
        while self.keys != hub || self.losses == self.resets {
            self.apply(soon(follow.next()).await.unwrap());
        }
    }
}

pub(crate) async fn a_follower_gets_everything_then_changes(backend: &mut Backend) {
    let store = &backend.store;
    for key in ["/f/1", "/f/2", "/fo"] {
        store.put(key, "", None).await.unwrap();
    }
    let expected = store.list("/f/").await.unwrap();
    assert_eq!(expected.items.len(), 2);
    let mut follow = store.follow("/f/");
    assert_eq!(soon(follow.next()).await, Some(Delta::Reset(expected)));
    assert_eq!(follow.try_next(), None);
    store.put("/fo", "", None).await.unwrap();
    let writes = [Write::Delete("/f/1".to_owned()), Write::put("/f/3", "new")];
    let outcome = store.commit(&[], &writes).await.unwrap();
    let Some(Delta::Changes(changes)) = soon(follow.next()).await else { panic!("changes come next") };
    assert_eq!(changes.revision, outcome.revision);
    assert_eq!(changes.changes[0], Change::Delete { key: "/f/1".to_owned() });
    assert_eq!(changes.changes[1].key(), "/f/3");
    assert_eq!(changes.changes.len(), 2);
    // Nothing there is also something to know.
    let mut nothing = store.follow("/nothing/");
    let empty = Listing { revision: outcome.revision, items: Vec::new() };
    assert_eq!(soon(nothing.next()).await, Some(Delta::Reset(empty)));
}

pub(crate) async fn a_follower_sees_leases_end(backend: &mut Backend) {
    let store = &backend.store;
    let lease = store.grant(Duration::from_secs(2)).await.unwrap();
    store.put("/f/mine", "", Some(lease)).await.unwrap();
    let mut follow = store.follow("/f/");
    let Some(Delta::Reset(listing)) = soon(follow.next()).await else { panic!("a reset comes first") };
    assert_eq!(listing.items[0].lease, Some(lease));
    let Some(Delta::Changes(changes)) = soon(follow.next()).await else { panic!("changes come next") };
    assert_eq!(changes.changes, [Change::Delete { key: "/f/mine".to_owned() }]);
}

pub(crate) async fn followers_agree_with_the_hub(backend: &mut Backend) {
    let mut writers = JoinSet::new();
    for writer in 0..4 {
        let store = backend.store.clone();
        writers.spawn(async move {
            for n in 0..100 {
                let key = format!("/f/{writer}/{}", n % 5);
                let write =
                    if n % 3 == 0 { Write::DeletePrefix(key) } else { Write::put(key, n.to_string()) };
                store.commit(&[], &[write]).await.unwrap();
            }
        });
    }
    let mut follows = Vec::new();
    for _ in 0..4 {
        let (mut follow, mut view) = (backend.store.follow("/f/"), View::default());
        view.apply(soon(follow.next()).await.unwrap());
        follows.push((follow, view));
    }
    writers.join_all().await;
    for (mut follow, mut view) in follows {
        view.catch_up(&mut follow, &backend.store, "/f/").await;
        assert_eq!((view.resets, view.losses), (1, 0));
    }
}

pub(crate) async fn a_follower_outlives_a_restart(backend: &mut Backend) {
    let (mut follow, mut view) = begin(backend).await;
    backend.stop().await;
    lose(&mut follow, &mut view).await;
    come_back(backend, follow, view).await;
}

pub(crate) async fn a_follower_outlives_a_crash(backend: &mut Backend) {
    let (mut follow, mut view) = begin(backend).await;
    backend.crash().await;
    lose(&mut follow, &mut view).await;
    come_back(backend, follow, view).await;
}

async fn begin(backend: &Backend) -> (Follow, View) {
    let (mut follow, mut view) = (backend.store.follow("/f/"), View::default());
    view.apply(soon(follow.next()).await.unwrap());
    for key in ["/f/1", "/f/2"] {
        backend.store.put(key, "before", None).await.unwrap();
    }
    view.catch_up(&mut follow, &backend.store, "/f/").await;
    // The consumer does not look, and then the hub is gone: what was acknowledged comes nevertheless.
    backend.store.put("/f/1", "last", None).await.unwrap();
    (follow, view)
}

async fn lose(follow: &mut Follow, view: &mut View) {
    while view.losses == 0 {
        view.apply(soon(follow.next()).await.unwrap());
    }
    // It keeps what it has.
    assert_eq!(view.keys.len(), 2);
}

async fn come_back(backend: &mut Backend, mut follow: Follow, mut view: View) {
    backend.start_again().await;
    // Perhaps before the follower is back, perhaps after: it must not matter.
    let store = backend.another_store().await;
    eventually("the hub writes again", async || store.put("/f/2", "after", None).await.is_ok()).await;
    view.catch_up(&mut follow, &store, "/f/").await;
    assert_eq!((view.resets, view.losses), (2, 1));
    assert_eq!((&view.keys["/f/1"].value[..], &view.keys["/f/2"].value[..]), (&b"last"[..], &b"after"[..]));
    store.commit(&[], &[Write::Delete("/f/1".to_owned())]).await.unwrap();
    view.catch_up(&mut follow, &store, "/f/").await;
    assert_eq!((view.resets, view.losses), (2, 1), "and is followed as before");
}
